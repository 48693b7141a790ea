"""Results as one file: out of a storage, into another, and refused where they are not what they say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from samples import sample_run

from orchestrator.cli import main
from orchestrator.evaluation import EvaluationResult, evaluation_path
from orchestrator.results import (
    read_curves,
    read_result,
    trial_directory,
    write_curves,
    write_json,
    write_result,
    write_spec,
)
from orchestrator.specs import SweepSpec, expand

SWEEP = SweepSpec.model_validate(
    {"name": "kept", "planners": {"vin": {"core": "vin", "adjoint": "unrolled"}}, "grid": {"k": [30], "seed": [0, 1]}}
)
TRIALS = expand(SWEEP)


@pytest.fixture
def storage(tmp_path):
    for trial in TRIALS:
        run, directory = sample_run(trial), trial_directory(tmp_path / "one", trial.trial_id)
        write_spec(directory, trial.spec)
        write_curves(directory, run.curves)
        found = EvaluationResult(
            trial_id=trial.trial_id, dataset_id="navigation-27-ab12", split="test", map_size=27, maps=9, k=54,
            success_rate=0.5, optimality=0.4, spl=0.45, accuracy=0.6, seconds=1.0,
        )  # fmt: skip
        write_json(evaluation_path(directory, found.dataset_id, "test", 54), found.model_dump(mode="json"))
        write_result(directory, run.result)
    return tmp_path / "one"


def test_what_is_archived_comes_back_and_nothing_is_overwritten(storage, tmp_path, capsys):
    file, other = tmp_path / "results.parquet", tmp_path / "other"
    assert main(["archive", str(file), "--storage", str(storage)]) == 0
    assert pq.read_table(file).select(["core", "seed"]).to_pylist() == [
        {"core": "vin", "seed": trial.spec.seed} for trial in sorted(TRIALS, key=lambda trial: trial.trial_id)
    ]
    assert main(["unarchive", str(file), "--storage", str(other)]) == 0
    for trial in TRIALS:
        was, now = (trial_directory(place, trial.trial_id) for place in (storage, other))
        assert read_result(now) == read_result(was)
        assert repr(read_curves(now)) == repr(read_curves(was))
        for name in ("spec.json", "evaluations/navigation-27-ab12-test-k54.json"):
            assert json.loads((now / name).read_text()) == json.loads((was / name).read_text())
    kept = trial_directory(other, TRIALS[0].trial_id) / "result.json"
    changed = kept.read_text().replace('"COMPLETED"', '"OUT_OF_MEMORY"')
    kept.write_text(changed)
    capsys.readouterr()
    assert main(["unarchive", str(file), "--storage", str(other)]) == 0
    assert "0 of 2 trials put there, 2 it had already" in capsys.readouterr().out
    assert kept.read_text() == changed


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("trial_id", lambda text: "../../outside", "row 1: trial_id: expected"),
        ("spec", lambda text: text.replace('"vin"', '"symvin"'), "row 1: "),
        ("result", lambda text: text[:40], "row 1: result: "),
        ("evaluations", lambda text: text.replace("navigation-27", "../../../x"), "row 1: evaluations: dataset_id"),
        ("curves", lambda text: "[", "row 1: curves: "),
    ],
)
def test_a_row_that_is_not_what_it_says_is_refused_and_nothing_is_written(
    storage, tmp_path, capsys, column, change, message
):
    file, other = tmp_path / "results.parquet", tmp_path / "other"
    assert main(["archive", str(file), "--storage", str(storage)]) == 0
    table = pq.read_table(file)
    rows = table.to_pylist()
    rows[1][column] = change(rows[1][column])
    pq.write_table(table.from_pylist(rows, table.schema), file)
    assert main(["unarchive", str(file), "--storage", str(other)]) == 2
    assert message in capsys.readouterr().err
    assert not other.exists()


def test_what_is_no_archive_is_said(tmp_path, capsys):
    (tmp_path / "x.parquet").write_text("x")
    assert main(["unarchive", str(tmp_path / "x.parquet"), "--storage", str(tmp_path)]) == 2
    assert "not an archive of results" in capsys.readouterr().err
    assert main(["archive", str(tmp_path / "y.parquet"), "--storage", str(tmp_path / "none")]) == 2
    assert "no trial that has ended" in capsys.readouterr().err


def test_the_published_results_give_the_tables_of_the_reproduction_page(tmp_path, capsys):
    root = Path(__file__).parents[2]
    assert main(["unarchive", str(root / "docs/results/results.parquet"), "--storage", str(tmp_path)]) == 0
    page = (root / "REPRODUCTION.md").read_text()
    capsys.readouterr()
    assert main(["table", str(root / "sweeps/cores.yaml"), "--storage", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 20 and all(row["used"] == 1 for row in rows)
    said = {float(number) for line in page.splitlines() for number in re.findall(r"\d+\.\d", line) if line[0:1] == "|"}
    assert all(round(100 * row["success_rate"], 1) in said for row in rows)
    for name in ("accuracy", "figure9", "figure15", "id_vin", "spt", "table1_ours"):
        sweep = str(root / f"sweeps/{name}.yaml")
        assert main(["table", sweep, "--profile", "laptop", "--storage", str(tmp_path), "--json"]) == 0
        rates = [row["success_rate"] for row in json.loads(capsys.readouterr().out)["rows"] if row["used"]]
        best_and_worst = {round(100 * rate, 1) for rate in (max(rates), min(rates))}
        assert best_and_worst <= {float(number) for number in re.findall(r"\d+\.\d", page)}
