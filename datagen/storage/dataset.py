"""Datasets on disk: Parquet shards, a card and a manifest; the same spec gives the same bytes.

A dataset is `ROOT/DATASET_ID/` with `{train,valid,test}-NNNNN-of-NNNNN.parquet`, `README.md` and, written last,
`manifest.json`. Until then each finished shard has a small `.sum.json` beside it, by which an interrupted generation
goes on from the shards it has. Any process may write any shard.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from datagen.plugins import OWNERS, PluginNotLoaded
from datagen.problem import Problems, concatenate
from datagen.storage.checks import check_file, check_pages, checked_problems, readable
from datagen.storage.encoding import hashes_of, shard_bytes
from datagen.storage.files import open_file, read_file, write_atomically
from datagen.storage.manifest import DatasetError, Manifest, ShardRecord, card, manifest_bytes, shard_name
from datagen.storage.provenance import code_hash
from datagen.storage.samples import samples_from_table
from datagen.storage.schema import parquet_file
from datagen.tasks.registry import SPLITS, TASKS, DatasetSpec, Split, dataset_id
from datagen.tasks.samples import SampleColumns, Samples

PROBLEMS_PER_SHARD = 1000
_SHARD_BYTES = 400_000_000
"""Raw bytes after which a shard is full, whatever the number of problems."""
_SUM_BYTES, _MANIFEST_BYTES = 2**12, 2**26
_ABANDONED_SECONDS = 3600.0
_DATASET_ID = re.compile(r".+-[0-9]+-[0-9a-f]{12}")


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
        return shard_name(self.split, self.index, self.of)


def bytes_per_problem(spec: DatasetSpec) -> int:
    """Return the raw size of one problem: map, distance, actions, label, costs, observation; or a sample's columns."""
    task = TASKS[spec.task]
    if isinstance(task, Samples):
        return task.bytes_per_sample(spec)
    cell = 7 + 4 * task.cell_costs
    return cell * math.prod(task.map_shape(spec)) + math.prod(task.observation_shape(spec) or (0,))


def shards(spec: DatasetSpec) -> list[Shard]:
    """Return the shards of a dataset, a function of the spec alone."""
    task, result = TASKS[spec.task], []
    most = task.per_file if isinstance(task, Samples) else PROBLEMS_PER_SHARD
    size = max(1, min(most, _SHARD_BYTES // bytes_per_problem(spec)))
    for split in SPLITS:
        count = spec.count(split)
        of = max(1, -(-count // size))
        result += [Shard(split, i, of, i * size, min(count, (i + 1) * size)) for i in range(of)]
    return result


def directory_of(spec: DatasetSpec, root: Path) -> Path:
    """Return the folder of the dataset under `root`."""
    return Path(root) / dataset_id(spec)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a regular file, read in pieces."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sum_path(directory: Path, shard: Shard) -> Path:
    return directory / f"{shard.name}.sum.json"


def _sum(spec: DatasetSpec, shard: Shard, directory: Path) -> ShardRecord | None:
    """Return what a finished shard should be, by the sum beside it; None where there is none by this code."""
    try:
        record = ShardRecord.model_validate_json(read_file(_sum_path(directory, shard), _SUM_BYTES))
    except (OSError, ValidationError):
        return None  # No sum, a torn or a foreign one: the shard counts as missing and is made again.
    fits = (record.name, record.split, record.rows) == (shard.name, shard.split, shard.stop - shard.start)
    return record if fits and record.code == code_hash(spec.task) else None


def _manifest(spec: DatasetSpec, directory: Path) -> Manifest | None:
    """Return the manifest of the spec's dataset, None where there is none yet."""
    if not (directory / "manifest.json").exists():
        return None
    manifest = load_manifest(directory)
    if manifest.dataset_id != dataset_id(spec):
        raise DatasetError(
            f"{directory / 'manifest.json'}: of {manifest.dataset_id}, not of {dataset_id(spec)}; delete the file to "
            "have the set made again"
        )
    return manifest


def _known(spec: DatasetSpec, directory: Path) -> dict[str, ShardRecord]:
    """Return what the finished shards should be: by their sums, else by the manifest of an earlier finish."""
    # The sums first: another process that finishes the set writes the manifest before it removes them.
    sums = {shard.name: record for shard in shards(spec) if (record := _sum(spec, shard, directory)) is not None}
    manifest = _manifest(spec, directory)
    known: dict[str, ShardRecord] = {}
    if manifest is not None and (
        manifest.code == code_hash(spec.task) or all(intact(directory, record) for record in manifest.shards)
    ):
        known = {record.name: record for record in manifest.shards}
    return known | sums


def intact(directory: Path, record: ShardRecord) -> bool:
    """Return whether a shard is in the folder, with the very bytes that it should have."""
    path = directory / record.name
    return path.is_file() and path.stat().st_size == record.bytes and file_sha256(path) == record.sha256


def _present(spec: DatasetSpec, shard: Shard, directory: Path) -> bool:
    """Return whether this code has made the shard, another process perhaps since it was found missing."""
    record = _sum(spec, shard, directory)
    if record is None and (manifest := _manifest(spec, directory)) and manifest.code == code_hash(spec.task):
        record = next((known for known in manifest.shards if known.name == shard.name), None)
    return record is not None and intact(directory, record)


def missing_shards(spec: DatasetSpec, root: Path) -> list[Shard]:
    """Return the shards that are not there, fail their checksum, or come from other code than their neighbours.

    Args:
        spec: The dataset.
        root: The folder of all datasets.
    """
    directory = directory_of(spec, root)
    known = _known(spec, directory)
    return [s for s in shards(spec) if s.name not in known or not intact(directory, known[s.name])]


def write_shard(spec: DatasetSpec, shard: Shard, root: Path) -> None:
    """Make a shard and write it atomically with its checksum; the same bytes whoever writes it, and however often.

    Several processes may make one set at the same time: what another has written is left as it is.

    Args:
        spec: The dataset.
        shard: One of `shards(spec)`.
        root: The folder of all datasets.

    Raises:
        DatasetError: The disk is full or cannot be written, or the set was imported and cannot be made.
    """
    directory = directory_of(spec, root)
    if _present(spec, shard, directory):
        return
    if spec.imported is not None:
        raise DatasetError(
            f"{dataset_id(spec)}: {shard.name} is missing or altered and cannot be made: the set was imported "
            "(spec.imported); import its file again"
        )
    problems = TASKS[spec.task].draw()(spec, shard.split, shard.start, shard.stop)
    store_shard(spec, shard, problems, directory)


def store_shard(spec: DatasetSpec, shard: Shard, problems: Problems | SampleColumns, directory: Path) -> None:
    """Write `problems` as `shard` into `directory`, then its checksum."""
    content = shard_bytes(spec, shard.split, shard.start, problems)
    # The sum after its shard, never removed before it: another process may be finishing the set.
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


def _shared_maps(spec: DatasetSpec, directory: Path, records: list[ShardRecord]) -> int:
    """Return the number of distinct maps, or of samples that are to be distinct, that are in more than one split."""
    task = TASKS[spec.task]
    if isinstance(task, Samples) and not task.distinct:
        return 0
    hashes: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for record in records:
        path = directory / record.name
        with readable(path):
            file = _shard_file(path, spec, record)
            hashes[record.split].append(hashes_of(file, spec))
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
        if shard.name not in known or not intact(directory, known[shard.name]):
            raise DatasetError(
                f"{directory / shard.name}: missing, altered, or made by other code than this; make it again first"
            )
        records.append(known[shard.name])
    shared_maps = _shared_maps(spec, directory, records)
    if shared_maps and spec.imported is None:
        what = "samples" if isinstance(TASKS[spec.task], Samples) else "maps"
        raise DatasetError(f"{directory}: {shared_maps} {what} are in more than one split; the generator is at fault")
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
    write_atomically(directory / "manifest.json", manifest_bytes(manifest))
    for shard in shards(spec):
        _sum_path(directory, shard).unlink(missing_ok=True)
    _clear(directory)
    return manifest


def _clear(directory: Path) -> None:
    """Remove what killed writers left: files that are older than any write takes, by one and the same clock."""
    now = (directory / "manifest.json").stat().st_mtime
    for left in directory.glob(".*.tmp"):
        try:
            if left.stat().st_mtime < now - _ABANDONED_SECONDS:
                left.unlink()
        except FileNotFoundError:
            continue  # its writer lives, or another process has cleared it


def make_dataset(spec: DatasetSpec, root: Path) -> None:
    """Make in this process what is missing of a dataset; any number of processes may do so at the same time."""
    missing = missing_shards(spec, root)
    for shard in missing:
        write_shard(spec, shard, root)
    if missing or not is_complete(spec, root):
        finish_dataset(spec, root)


def load_manifest(directory: Path) -> Manifest:
    """Return the manifest of the dataset in `directory`.

    Raises:
        DatasetError: There is none, or it is not what a manifest should be; names the file.
    """
    path = Path(directory) / "manifest.json"
    try:
        manifest = Manifest.model_validate_json(read_file(path, _MANIFEST_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetError(f"{path}: no such file: {directory} is not a finished dataset") from None
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        reason = first["ctx"]["error"] if first["type"] == "value_error" else first["msg"]
        again = "; delete the file to have the set made again (an imported one: import it again)"
        again = "" if isinstance(reason, PluginNotLoaded) else again
        raise DatasetError(f"{path}: {field}: {reason}{again}") from error
    for name in {Path(directory).name, Path(directory).resolve().name}:
        if name != manifest.dataset_id and _DATASET_ID.fullmatch(name):
            raise DatasetError(f"{path}: of {manifest.dataset_id}, but in a folder of the name {name}")
    most = max(1, _SHARD_BYTES // bytes_per_problem(manifest.spec))
    for record in manifest.shards:
        if record.rows > most:
            raise DatasetError(f"{path}: {record.name}: {record.rows:,} problems, where a shard has {most:,} at most")
    return manifest


def is_complete(spec: DatasetSpec, root: Path, *, verify: bool = True) -> bool:
    """Return whether the dataset is there, whole and unaltered.

    Args:
        spec: The dataset.
        root: The folder of all datasets.
        verify: Also compare the sha256 of every shard; False looks at the sizes only (to plan a sweep).
    """
    directory = directory_of(spec, root)
    if (manifest := _manifest(spec, directory)) is None:
        return False
    for record in manifest.shards:
        path = directory / record.name
        if not path.is_file() or path.stat().st_size != record.bytes:
            return False
        if verify and file_sha256(path) != record.sha256:
            return False
    return True


def _shard_file(path: Path, spec: DatasetSpec, record: ShardRecord) -> pq.ParquetFile:
    """Return a shard whose bytes, and no others, have been checked."""
    try:
        content = read_file(path, record.bytes)
    except FileNotFoundError:
        raise DatasetError(f"{path}: missing; make the dataset again, only this shard is made") from None
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error}; make it again") from error
    if len(content) != record.bytes or hashlib.sha256(content).hexdigest() != record.sha256:
        raise DatasetError(f"{path}: altered or truncated (sha256 differs from the manifest's); make it again")
    file = parquet_file(content)
    check_file(file, spec, record, path)
    check_pages(BytesIO(content), file, range(file.metadata.num_row_groups), path)
    return file


def _tables(directory: Path, split: Split, *, samples: bool) -> Iterator[tuple[pa.Table, int, Path]]:
    """Yield the tables of a split's shards, each with the number of its first problem and its path."""
    manifest, first = load_manifest(directory), 0
    if isinstance(TASKS[manifest.spec.task], Samples) != samples:
        expected, got = ("samples", "maps") if samples else ("maps", "samples")
        raise DatasetError(f"{directory}: expected a dataset of {expected}, got {got}: of {manifest.spec.task!r}")
    for record in manifest.shards:
        if record.split == split:
            path = Path(directory) / record.name
            with readable(path):
                table = _shard_file(path, manifest.spec, record).read(use_threads=False)
            yield table, first, path
            first += record.rows


def read_shards(directory: Path, split: Split) -> Iterator[Problems]:
    """Yield the shards of a split in order, one in memory at a time.

    Raises:
        DatasetError: A shard is missing, fails its checksum, or is none of this dataset; names the file.
    """
    moves = TASKS[load_manifest(directory).spec.task].moves
    for table, first, path in _tables(directory, split, samples=False):
        with readable(path):
            problems = checked_problems(table, moves, first, path)
        yield problems


def read_samples(directory: Path, split: Split) -> SampleColumns:
    """Return a split of a dataset of samples, in memory, by column; errors as of `read_shards`."""
    parts = [samples_from_table(*table) for table in _tables(directory, split, samples=True)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def read_split(directory: Path, split: Split) -> Problems:
    """Return a whole split in memory.

    Args:
        directory: The dataset's folder.
        split: "train", "valid" or "test".

    Raises:
        DatasetError: A shard is missing or fails its checksum; names the file.
    """
    return concatenate(list(read_shards(directory, split)))
