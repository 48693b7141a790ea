"""Datasets on disk: Parquet shards, a card and a manifest; the same spec gives the same bytes.

A dataset is `ROOT/DATASET_ID/` with `{train,valid,test}-NNNNN-of-NNNNN.parquet`, `README.md` and, written last,
`manifest.json`. Until then each finished shard has a small `.sum.json` beside it, by which an interrupted generation
goes on from the shards it has. Any process may write any shard.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from datagen.columns import array_of, problems_from_table, schema_of, table_from_problems
from datagen.manifest import DatasetError, Manifest, ShardRecord, card
from datagen.plugins import OWNERS, PluginNotLoaded
from datagen.problem import Problems
from datagen.provenance import code_hash
from datagen.spec import canonical_json
from datagen.splits import map_hashes
from datagen.task import SPLITS, TASKS, DatasetSpec, Split, dataset_id

PROBLEMS_PER_SHARD = 1000
_SHARD_BYTES = 400_000_000
"""Raw bytes after which a shard is full, whatever the number of problems."""
_ROW_GROUP = 256
_IMAGE_ROW_GROUP = 16
"""Problems per row group where observations are large: what a shuffling reader holds at a time."""


@dataclass(frozen=True)
class Shard:
    """Problems `start` to `stop` of a split, file `index` of `of`."""

    split: Split
    index: int
    of: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """File name."""
        return f"{self.split}-{self.index:05d}-of-{self.of:05d}.parquet"


def bytes_per_problem(spec: DatasetSpec) -> int:
    """Return the raw size of one problem: map, distance, optimal actions, label, observation."""
    task = TASKS[spec.task]
    return 7 * math.prod(task.map_shape(spec)) + math.prod(task.observation_shape(spec) or (0,))


def shards(spec: DatasetSpec) -> list[Shard]:
    """Return the shards of a dataset, a function of the spec alone."""
    size = max(1, min(PROBLEMS_PER_SHARD, _SHARD_BYTES // bytes_per_problem(spec)))
    result = []
    for split in SPLITS:
        count = spec.count(split)
        of = max(1, -(-count // size))
        result += [Shard(split, i, of, i * size, min(count, (i + 1) * size)) for i in range(of)]
    return result


def directory_of(spec: DatasetSpec, root: Path) -> Path:
    """Return the folder of the dataset under `root`."""
    return Path(root) / dataset_id(spec)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a crash.

    Raises:
        DatasetError: The disk is full or cannot be written.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise DatasetError(
            f"{path}: cannot write {len(content):,} bytes: {error.strerror or error}; what is finished is kept, "
            "run the same command again once there is room"
        ) from error


def _sum_path(directory: Path, shard: Shard) -> Path:
    return directory / f"{shard.name}.sum.json"


def _known(spec: DatasetSpec, directory: Path) -> dict[str, ShardRecord]:
    """Return what the finished shards should be: by their sums, else by the manifest of an earlier finish."""
    known: dict[str, ShardRecord] = {}
    if (directory / "manifest.json").exists():
        manifest = load_manifest(directory)
        if manifest.code == code_hash(spec.task) or all(_intact(directory, record) for record in manifest.shards):
            known = {record.name: record for record in manifest.shards}
    for shard in shards(spec):
        path = _sum_path(directory, shard)
        if path.exists():
            try:
                record = ShardRecord.model_validate_json(path.read_bytes())
            except ValidationError:
                continue  # A torn or foreign sum: the shard counts as missing and is made again.
            if record.code == code_hash(spec.task):
                known[shard.name] = record
    return known


def _intact(directory: Path, record: ShardRecord) -> bool:
    path = directory / record.name
    return path.is_file() and path.stat().st_size == record.bytes and file_sha256(path) == record.sha256


def missing_shards(spec: DatasetSpec, root: Path) -> list[Shard]:
    """Return the shards that are not there, fail their checksum, or come from other code than their neighbours.

    Args:
        spec: The dataset.
        root: The folder of all datasets.
    """
    directory = directory_of(spec, root)
    known = _known(spec, directory)
    return [s for s in shards(spec) if s.name not in known or not _intact(directory, known[s.name])]


def shard_bytes(spec: DatasetSpec, shard: Shard, problems: Problems) -> bytes:
    """Return the Parquet file that holds `problems` as `shard` of `spec`."""
    task = TASKS[spec.task]
    schema = schema_of(problems, task.moves).with_metadata(
        {
            **schema_of(problems, task.moves).metadata,
            b"task": spec.task.encode(),
            b"spec": canonical_json(spec).encode(),
            b"split": shard.split.encode(),
        }
    )
    table = table_from_problems(problems, schema, shard.start)
    rows = _ROW_GROUP if problems.observation is None else _IMAGE_ROW_GROUP
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=rows,
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        write_statistics=False,
        store_schema=True,
    )
    return bytes(sink.getvalue())


def write_shard(spec: DatasetSpec, shard: Shard, root: Path) -> None:
    """Make a shard and write it atomically with its checksum; the same bytes whoever writes it, and however often.

    Args:
        spec: The dataset.
        shard: One of `shards(spec)`.
        root: The folder of all datasets.

    Raises:
        DatasetError: The disk is full or cannot be written, or the set was imported and cannot be made.
    """
    if spec.imported is not None:
        raise DatasetError(
            f"{dataset_id(spec)}: {shard.name} is missing or altered and cannot be made: the set was imported "
            "(spec.imported); import its file again"
        )
    problems = TASKS[spec.task].draw()(spec, shard.split, shard.start, shard.stop)
    store_shard(spec, shard, problems, directory_of(spec, root))


def store_shard(spec: DatasetSpec, shard: Shard, problems: Problems, directory: Path) -> None:
    """Write `problems` as `shard` into `directory`, then its checksum."""
    content = shard_bytes(spec, shard, problems)
    # Without its sum a shard counts as missing, so an old sum must not outlive a new file, nor come before it.
    _sum_path(directory, shard).unlink(missing_ok=True)
    write_atomically(directory / shard.name, content)
    record = ShardRecord(
        name=shard.name,
        split=shard.split,
        rows=shard.stop - shard.start,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        code=code_hash(spec.task),
    )
    write_atomically(_sum_path(directory, shard), record.model_dump_json().encode())


def _shared_maps(directory: Path, records: list[ShardRecord]) -> int:
    """Return the number of distinct maps that are in more than one split."""
    hashes: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for record in records:
        table = pq.read_table(directory / record.name, columns=["map"])
        hashes[record.split].append(map_hashes(array_of(table, "map")))
    unique = np.concatenate([np.unique(np.concatenate(parts)) for parts in hashes.values()])
    found, splits = np.unique(unique, return_counts=True)
    return int(np.count_nonzero(splits > 1)) if len(found) else 0


def finish_dataset(spec: DatasetSpec, root: Path) -> Manifest:
    """Check all shards and that no map is in two splits, then write the card and, last, the manifest.

    Args:
        spec: The dataset.
        root: The folder of all datasets.

    Returns:
        The manifest.

    Raises:
        DatasetError: A shard is missing or fails its checksum, or the splits share a map.
    """
    directory = directory_of(spec, root)
    known = _known(spec, directory)
    records = []
    for shard in shards(spec):
        if shard.name not in known or not _intact(directory, known[shard.name]):
            raise DatasetError(
                f"{directory / shard.name}: missing, altered, or made by other code than this; make it again first"
            )
        records.append(known[shard.name])
    shared_maps = _shared_maps(directory, records)
    if shared_maps and spec.imported is None:
        raise DatasetError(f"{directory}: {shared_maps} maps are in more than one split; the generator is at fault")
    manifest = Manifest(
        dataset_id=dataset_id(spec),
        spec=spec,
        source="imported" if spec.imported else "generated",
        shards=tuple(records),
        code=records[0].code,
        versions={name: version(name) for name in ("numpy", "numba", "pyarrow", *TASKS[spec.task].libraries)},
        shared_maps=shared_maps,
        plugins=tuple(OWNERS[line] for line in [("TASKS", spec.task)] if line in OWNERS),
    )
    write_atomically(directory / "README.md", card(manifest).encode())
    content = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
    write_atomically(directory / "manifest.json", content.encode())
    for shard in shards(spec):
        _sum_path(directory, shard).unlink(missing_ok=True)
    for left in directory.glob(".*.tmp"):  # of writers that were killed
        left.unlink(missing_ok=True)
    return manifest


def load_manifest(directory: Path) -> Manifest:
    """Return the manifest of the dataset in `directory`.

    Raises:
        DatasetError: There is none, or it is not what a manifest should be; names the file.
    """
    path = Path(directory) / "manifest.json"
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file: {directory} is not a finished dataset") from None
    except ValidationError as error:
        first = error.errors()[0]
        if isinstance(reason := first.get("ctx", {}).get("error"), PluginNotLoaded):
            raise DatasetError(f"{path}: {reason}") from None
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DatasetError(f"{path}: {field}: {first['msg']}; delete the file to have the set made again") from error


def is_complete(spec: DatasetSpec, root: Path, *, verify: bool = True) -> bool:
    """Return whether the dataset is there, whole and unaltered.

    Args:
        spec: The dataset.
        root: The folder of all datasets.
        verify: Also compare the sha256 of every shard; False looks at the sizes only (to plan a sweep).
    """
    directory = directory_of(spec, root)
    if not (directory / "manifest.json").exists():
        return False
    for record in load_manifest(directory).shards:
        path = directory / record.name
        if not path.is_file() or path.stat().st_size != record.bytes:
            return False
        if verify and file_sha256(path) != record.sha256:
            return False
    return True


def _content(directory: Path, record: ShardRecord, verify: bool) -> pa.Buffer:
    """Return a shard's bytes, the very ones that were checked."""
    path = directory / record.name
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DatasetError(f"{path}: missing; make the dataset again, only this shard is made") from None
    if verify and (len(content) != record.bytes or hashlib.sha256(content).hexdigest() != record.sha256):
        raise DatasetError(f"{path}: altered or truncated (sha256 differs from the manifest's); make it again")
    return pa.py_buffer(content)


def read_shards(directory: Path, split: Split, *, verify: bool = True) -> Iterator[Problems]:
    """Yield the shards of a split in order, one in memory at a time.

    Raises:
        DatasetError: A shard is missing or fails its checksum; names the file.
    """
    for record in load_manifest(directory).shards:
        if record.split == split:
            yield problems_from_table(pq.read_table(_content(Path(directory), record, verify)))


def read_split(directory: Path, split: Split, verify: bool = True) -> Problems:
    """Return a whole split in memory.

    Args:
        directory: The dataset's folder.
        split: "train", "valid" or "test".
        verify: Compare every shard's sha256 with the manifest's.

    Raises:
        DatasetError: A shard is missing or fails its checksum; names the file.
    """
    return concatenate(list(read_shards(directory, split, verify=verify)))


def concatenate(parts: list[Problems]) -> Problems:
    """Return batches of problems of one size as one batch."""
    if len(parts) == 1:
        return parts[0]

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    obstacles = [part.obstacles for part in parts]
    return Problems(
        map=joined("map"),
        goal=joined("goal"),
        distance=joined("distance"),
        optimal_actions=joined("optimal_actions"),
        label=joined("label"),
        observation=None if parts[0].observation is None else joined("observation"),
        obstacles=None if obstacles[0] is None else [scene for part in obstacles for scene in part or []],
    )
