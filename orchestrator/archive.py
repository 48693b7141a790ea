"""All results of a storage as one small Parquet file, to publish and to rebuild tables and figures from.

One row per trial that has ended: what was asked (its spec), what came out (result, curves, tests on further maps), and
a few columns to read without this package. Checkpoints, logs and datasets stay behind.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from datagen.plugins import PluginError
from datagen.spec import first_problem
from orchestrator.evaluation import FOLDER, EvaluationResult, evaluation_path
from orchestrator.results import (
    ResultError,
    TrialResult,
    list_results,
    read_curves,
    trial_directory,
    write_bytes,
    write_curves,
    write_json,
    write_result,
    write_spec,
)
from orchestrator.specs import TrialSpec, trial_id

_DATASET_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")

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
    }
)


def write_archive(storage: Path, path: Path) -> int:
    """Write the trials of a storage that have ended (COMPLETED, OUT_OF_MEMORY) to one file.

    Args:
        storage: The storage directory.
        path: The Parquet file; replaced where there is one.

    Returns:
        How many trials.

    Raises:
        ResultError: The storage has none, or a trial directory is damaged.
    """
    rows = []
    for name, result in list_results(storage).items():
        if not result.final:
            continue
        directory = trial_directory(storage, name)
        text = (directory / "spec.json").read_text()
        try:
            spec = TrialSpec.model_validate_json(text)
        except ValidationError as error:
            raise ResultError(f"{directory / 'spec.json'}: {first_problem(error)}") from error
        evaluations = [json.loads(file.read_text()) for file in sorted((directory / FOLDER).glob("*.json"))]
        rows.append(
            {
                "trial_id": name,
                "core": spec.planner.core,
                "adjoint": spec.planner.adjoint,
                "task": spec.data.task,
                "map_size": spec.data.map_size,
                "seed": spec.seed,
                "status": result.status,
                "test_success_rate": result.test_success_rate,
                "code": result.provenance.code,
                "spec": text,
                "result": (directory / "result.json").read_text(),
                "curves": json.dumps(read_curves(directory)),
                "evaluations": json.dumps(evaluations),
            }
        )
    if not rows:
        raise ResultError(f"{storage}: no trial that has ended")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), sink, compression="zstd")
    write_bytes(path, sink.getvalue().to_pybytes())
    return len(rows)


def read_archive(path: Path, storage: Path) -> tuple[int, int]:
    """Put the trials of an archive into a storage; those that it has already stay as they are.

    Args:
        path: The Parquet file. It may come from anybody: names in the storage follow from what was checked.
        storage: The storage directory.

    Returns:
        How many trials were put there, and how many the archive has.

    Raises:
        ResultError: It is no archive, or a row of it is not what it says; then nothing is written.
    """
    try:
        rows = pq.read_table(path, schema=SCHEMA).to_pylist()
    except (OSError, pa.ArrowException, KeyError) as error:
        raise ResultError(f"{path}: not an archive of results: {str(error).splitlines()[0]}") from None
    checked = [_checked(row, f"{path}: row {number}") for number, row in enumerate(rows)]
    written = 0
    for spec, result, curves, evaluations in checked:
        directory = trial_directory(storage, result.trial_id)
        if (directory / "result.json").exists():
            continue
        write_spec(directory, spec)
        if curves:
            write_curves(directory, curves)
        for found in evaluations:
            place = evaluation_path(directory, found.dataset_id, found.split, found.k)
            write_json(place, found.model_dump(mode="json"))
        write_result(directory, result)
        written += 1
    return written, len(checked)


def _checked(
    row: dict[str, str], where: str
) -> tuple[TrialSpec, TrialResult, list[dict[str, float]], list[EvaluationResult]]:
    field = "spec"
    try:
        spec = TrialSpec.model_validate_json(row["spec"])
        field = "result"
        result = TrialResult.model_validate_json(row["result"])
        field = "evaluations"
        evaluations = [EvaluationResult.model_validate(found) for found in json.loads(row["evaluations"])]
        if not all(_DATASET_ID.fullmatch(found.dataset_id) for found in evaluations):
            raise ValueError("dataset_id: expected letters, digits, - and _")
        field = "curves"
        curves = json.loads(row["curves"])
    except ValidationError as error:
        raise ResultError(f"{where}: {field}: {first_problem(error)}") from None
    except (PluginError, TypeError, ValueError) as error:
        raise ResultError(f"{where}: {field}: {error}") from None
    if not trial_id(spec) == result.trial_id == row["trial_id"]:
        raise ResultError(
            f"{where}: trial_id: expected {trial_id(spec)}, the digest of its spec, got {row['trial_id']!r}"
        )
    return spec, result, curves, evaluations
