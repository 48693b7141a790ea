"""All results of a storage as one small Parquet file, to publish and to rebuild tables and figures from.

One row per trial that has ended: what was asked (its spec), what came out (result, curves, tests on further maps), and
a few columns to read without this package. Checkpoints, logs and datasets stay behind. Texts are JSON as every reader
takes it: a number that is not finite is null, an infinite one in a curve "Infinity" or "-Infinity".
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from datagen.spec import first_problem
from orchestrator.storage.code import code_hash
from orchestrator.storage.curves import checked_curves, curves_file
from orchestrator.storage.evaluations import EvaluationResult, read_evaluation, write_evaluation
from orchestrator.storage.files import MOST_JSON_BYTES, check_output, checksum_of, parsed, read_value, sealed
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import LeaseLost, Owner, TrialHeld
from orchestrator.storage.results import ResultError, TrialResult, no_room, write_bytes
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.sweep.specs import TrialSpec, trial_id
from orchestrator.words import first_line

MOST_ROWS = 1_000_000
MOST_CHUNK_BYTES = 2**28
_ROWS_AT_ONCE = 64
"""Bound what is unfolded at a time: Parquet packs equal texts so well that the size of a file says nothing."""

SCHEMA = pa.schema(
    {
        "trial_id": pa.string(),
        "core": pa.string(),
        "adjoint": pa.string(),
        "task": pa.string(),
        "map_size": pa.int32(),
        "seed": pa.int64(),
        "status": pa.string(),
        "test_success_rate": pa.float64(),
        "code": pa.string(),
        "spec": pa.string(),
        "result": pa.string(),
        "curves": pa.string(),
        "evaluations": pa.string(),
        "checksum": pa.string(),
    }
)
_TEXTS = ("trial_id", "spec", "result", "curves", "evaluations")
_OF_0_1_0 = set(SCHEMA.names) - {"checksum"}


@dataclass(frozen=True)
class Archived:
    """One trial of an archive, checked.

    Attributes:
        spec: What was asked.
        result: What came out.
        curves: Content of its `curves.parquet`, empty where it has none.
        evaluations: Its tests on further maps.
    """

    spec: TrialSpec
    result: TrialResult
    curves: bytes
    evaluations: list[EvaluationResult]


def write_archive(storage: Storage, path: Path, say: Callable[[str], object] = str) -> int:
    """Write the trials of a storage that have ended (COMPLETED, OUT_OF_MEMORY) to one file.

    Args:
        storage: The storage directory.
        path: The Parquet file; replaced where there is one.
        say: Is told of each damaged file, which is left out.

    Returns:
        How many trials.

    Raises:
        ResultError: The storage has none, a spec is not its trial's, or the file can't be written.
    """
    check_output(path)
    rows = []
    for name, result in storage.results().items():
        if result.final:
            rows.append(_row(storage.trial(name), result, say))
        elif result.reason.startswith("unreadable: "):
            say(f"{result.reason.removeprefix('unreadable: ')}; the trial is left out")
    if not rows:
        raise ResultError(f"{storage}: no trial that has ended")
    sink = pa.BufferOutputStream()
    whole = checksum_of([row["checksum"] for row in rows])
    table = pa.Table.from_pylist(rows, SCHEMA).replace_schema_metadata({"checksum": whole})
    pq.write_table(table, sink, compression="zstd", row_group_size=_ROWS_AT_ONCE, write_page_checksum=True)
    try:
        write_bytes(path, sink.getvalue().to_pybytes())
    except OSError as error:
        raise no_room(error, path) or ResultError(f"{path}: {error.strerror}") from error
    return len(rows)


def _row(trial: TrialDirectory, result: TrialResult, say: Callable[[str], object]) -> dict[str, Any]:
    spec = trial.read_spec()
    try:
        curves = trial.read_curves()
    except ResultError as error:
        say(f"{error}; the curve is left out")
        curves = []
    evaluations = []
    for path in trial.evaluations:
        try:
            found = read_evaluation(path)
        except ResultError as error:
            say(f"{error}; the test is left out")
            continue
        if found is not None:
            evaluations.append(found.model_dump(mode="json"))
    row = {
        "trial_id": trial.name,
        "core": spec.system.name if spec.system else spec.planner.core,
        "adjoint": None if spec.system else spec.planner.adjoint,
        "task": spec.data.task,
        "map_size": None if spec.system else spec.data.map_size,
        "seed": spec.seed,
        "status": result.status,
        "test_success_rate": result.test_success_rate,
        "code": result.provenance.code,
        "spec": json.dumps(spec.model_dump(mode="json"), indent=2) + "\n",
        "result": json.dumps(sealed(result.model_dump(mode="json")), indent=2) + "\n",
        "curves": json.dumps([{name: _strict(value) for name, value in row.items()} for row in curves]),
        "evaluations": json.dumps(evaluations),
    }
    return {**row, "checksum": checksum_of(row)}


def _strict(value: Any) -> Any:
    """Return a value of a curve as JSON has it."""
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _loose(value: Any) -> Any:
    return {None: math.nan, "Infinity": math.inf, "-Infinity": -math.inf}.get(value, value)


def read_archive(path: Path, storage: Storage, say: Callable[[str], object] = str) -> tuple[int, int]:
    """Put the trials of an archive into a storage; those that have a final result there stay as they are.

    Args:
        path: The Parquet file. It may come from anybody: names in the storage follow from what was checked.
        storage: The storage directory.
        say: Is told of each trial that is left alone because a process works on it, and how many stay of other code.

    Returns:
        How many trials were put there, and how many the archive has.

    Raises:
        ResultError: It is no archive, or a row of it is not what it says; then nothing is written.
    """
    try:
        # Opened once: what is written is what was checked, whatever happens to the name meanwhile.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror}") from None
    with os.fdopen(handle, "rb") if path.is_file() else _none(handle, path) as file:
        seen = _check(file, path)
        written = outdated = 0
        for number, row in enumerate(_rows(file, path)):
            archived = _checked(row, f"{path}: row {number}")
            put = _put(archived, storage, say)
            written += put
            outdated += not put and _is_newer(archived.result, storage)
    if outdated:
        say(
            f"{outdated} of those that {storage} had are of other code, and stay; the archive's are of the present "
            "code: put it into a storage of its own to see them"
        )
    return written, seen


def _is_newer(result: TrialResult, storage: Storage) -> bool:
    """Return whether the present code made a result, and other code the one that the storage has."""
    there, code = storage.trial(result.trial_id).whole_result(), code_hash()
    return there is not None and result.provenance.made_by(code) and not there.provenance.made_by(code)


def _check(file: Any, path: Path) -> int:
    """Check every row, and that none is missing or there twice; return how many there are."""
    seen: dict[str, str | None] = {}
    for number, row in enumerate(_rows(file, path)):
        name = _checked(row, f"{path}: row {number}").result.trial_id
        if name in seen:
            raise ResultError(f"{path}: row {number}: trial_id: {name} is there twice")
        seen[name] = row.get("checksum")
    if not seen:
        raise ResultError(f"{path}: there are no trials in it")
    file.seek(0)
    # Of 0.1.0, or written again with other tools, perhaps in part: then only the rows vouch for themselves.
    notes = {name: text for name, text in (pq.read_schema(file).metadata or {}).items() if name != b"pandas"}
    if notes and notes.get(b"checksum") != checksum_of(list(seen.values())).encode():
        raise ResultError(f"{path}: its checksum does not fit: rows are missing, or of another archive")
    return len(seen)


def _none(handle: int, path: Path) -> Any:
    os.close(handle)
    raise ResultError(f"{path}: expected a file")


def _rows(file: Any, path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of an archive one at a time; equal texts are unfolded one at a time too."""
    file.seek(0)
    try:
        schema = pq.read_schema(file)
        if set(schema.names) not in (_OF_0_1_0, set(SCHEMA.names)):
            raise ResultError(f"{path}: not an archive of results: expected columns {', '.join(SCHEMA.names)}")
        file.seek(0)
        texts = [field.name for field in schema if pa.types.is_string(field.type)]
        parquet = pq.ParquetFile(file, read_dictionary=texts, page_checksum_verification=True, pre_buffer=False)
        _check_sizes(parquet.metadata)
        for batch in parquet.iter_batches(batch_size=1, use_threads=False):
            yield batch.to_pylist()[0]
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        if isinstance(error, ResultError):
            raise
        raise ResultError(f"{path}: not an archive of results: {first_line(error)}") from None


def _check_sizes(found: pq.FileMetaData) -> None:
    groups = [found.row_group(number) for number in range(found.num_row_groups)]
    chunks = [group.column(number).total_uncompressed_size for group in groups for number in range(group.num_columns)]
    if found.num_rows > MOST_ROWS or max(chunks, default=0) > MOST_CHUNK_BYTES:
        raise ValueError(f"{found.num_rows:,} rows of {sum(chunks):,} bytes are too many")


def _checked(row: dict[str, Any], where: str) -> Archived:
    field = "spec"
    try:
        for field in _TEXTS:
            if not isinstance(row[field], str) or len(row[field]) > MOST_JSON_BYTES:
                raise ValueError(f"expected a text of at most {MOST_JSON_BYTES:,} letters, got {row[field]!r:.40}")
        field = "spec"
        spec = TrialSpec.model_validate_json(row["spec"])
        field = "result"
        result = parsed(TrialResult, row["result"])
        if not result.final:
            raise ValueError(f"status: expected COMPLETED or OUT_OF_MEMORY, got {result.status}")
        field = "evaluations"
        found = read_value(row["evaluations"])
        evaluations = [EvaluationResult.model_validate(one) for one in found]
        if any(one.trial_id != result.trial_id for one in evaluations):
            raise ValueError("trial_id: the test of another trial")
        field = "curves"
        rows = checked_curves(json.loads(row["curves"], parse_int=_whole))
        loose = [{name: _loose(value) for name, value in record.items()} for record in rows]
        curves = curves_file(checked_curves(loose)) if rows else b""
    except ValidationError as error:
        raise ResultError(f"{where}: {field}: {first_problem(error)}") from None
    except (TypeError, ValueError, OverflowError, RecursionError, pa.ArrowException) as error:
        raise ResultError(f"{where}: {field}: {' '.join(str(error).split()):.300}") from None
    if not trial_id(spec) == result.trial_id == row["trial_id"]:
        raise ResultError(
            f"{where}: trial_id: expected {trial_id(spec)}, the digest of its spec, got {row['trial_id']!r:.80} and, "
            f"in its result, {result.trial_id!r:.80}"
        )
    if "checksum" in row and row["checksum"] != checksum_of({k: v for k, v in row.items() if k != "checksum"}):
        raise ResultError(f"{where}: its checksum does not fit: altered since it was written")
    return Archived(spec, result, curves, evaluations)


def _whole(digits: str) -> int:
    if len(digits) > 18:
        raise ValueError(f"{digits[:40]}... is too large")
    return int(digits)


def _put(archived: Archived, storage: Storage, say: Callable[[str], object]) -> bool:
    """Write one trial, and return whether it was not there already."""
    trial = storage.trial(archived.result.trial_id)
    before = trial.whole_result()
    if before is not None and before.final:
        return False
    try:
        lease = trial.take(Owner.here())
    except TrialHeld as held:
        say(f"{held}; left alone")
        return False
    try:
        before = trial.whole_result()
        if before is not None and before.final:
            return False
        damaged = before is None and trial.result_file.exists()  # its weights may be those of the archive's result
        for path in () if damaged else trial.of_training:
            path.unlink(missing_ok=True)  # of a training that did not end: a final result would pass for theirs
        trial.write_spec(archived.spec)
        if archived.curves:
            trial.put_curves(lease, archived.curves)
        for found in archived.evaluations:
            write_evaluation(trial, found)
        trial.publish(lease, archived.result)
    except LeaseLost as lost:
        say(f"{lost}; left alone")
        return False
    finally:
        lease.release()
    return True
