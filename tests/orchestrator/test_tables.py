import csv
import io
import json
import statistics
from dataclasses import replace

import pytest

from orchestrator.errors import SweepError
from orchestrator.storage.code import code_hash
from orchestrator.storage.provenance import Provenance
from orchestrator.storage.results import TrialResult
from orchestrator.sweep.specs import PlannedTrial, TrialSpec
from orchestrator.tables.formats import render as render_summary
from orchestrator.tables.records import TrialRecord, best_on_validation
from orchestrator.tables.rows import notes, rows, success
from orchestrator.tables.summary import Summary
from orchestrator.tables.table import MISSING

CODE = code_hash()


def planned(number: int, planner: str = "vin", k: int = 30) -> PlannedTrial:
    axes = {"planner": planner, "task": "navigation", "map_size": 15, "k": k, "seed": number}
    return PlannedTrial(f"{number:016x}", TrialSpec(seed=number), axes)


def completed(
    number: int, rate: float, code: str = CODE, cpu: str = "fast", exclusive: bool = False, **fields: object
) -> TrialResult:
    return TrialResult(
        trial_id=f"{number:016x}",
        status="COMPLETED",
        test_success_rate=rate,
        test_spl=rate,
        trial_diverged=rate < 0.2,
        provenance=Provenance(code=code, cpu=cpu, exclusive=exclusive),
        **fields,
    )


def table_of(*results: TrialResult, expected: int | None = None):
    found = {result.trial_id: result for result in results}
    return rows([planned(number) for number in range(expected or len(results))], found)


def render(table, format, title="sweep"):
    return render_summary(Summary(title, list(table), [], [], []), format)


def test_mean_and_sample_deviation_over_seeds():
    rates = [0.4, 0.5, 0.75]
    (row,) = table_of(*(completed(i, rate) for i, rate in enumerate(rates)))
    assert row.success_rate == pytest.approx(statistics.mean(rates))
    assert row.success_rate_std == pytest.approx(statistics.stdev(rates))
    assert success(row) == "55.0 ± 18.0"
    assert notes(row) == []


def test_times_are_of_trials_that_had_their_device_to_themselves_where_there_are_any():
    slow, fast = (completed(i, 0.5, exclusive=i == 1, forward_seconds=s) for i, s in enumerate((9.0, 2.0)))
    (row,) = table_of(slow, fast)
    assert (row.forward_seconds, row.timed, row.exclusive) == (2.0, 1, True)
    (row,) = table_of(slow)
    assert (row.forward_seconds, row.timed, row.exclusive) == (9.0, 1, False)
    said = [Summary("sweep", table_of(*results), [], [], []).warnings() for results in ((slow,), (slow, fast))]
    assert said == [["Times in 1 of 1 rows are of trials that were not timed alone."], []]


def test_one_seed_has_no_deviation_and_a_missing_one_is_counted():
    (row,) = table_of(completed(0, 0.5), expected=3)
    assert (row.used, row.expected, row.success_rate_std) == (1, 3, None)
    assert success(row) == "50.0"
    assert row.outcomes == {"COMPLETED": 1, "MISSING": 2}


def test_stale_is_never_averaged_with_fresh():
    (row,) = table_of(completed(0, 0.9, code="old"), completed(1, 0.5), completed(2, 0.7))
    assert row.success_rate == pytest.approx(0.6)
    assert (row.used, row.stale, row.stale_used) == (2, 1, False)
    assert "1 stale, left out" in notes(row)


def test_where_all_is_stale_one_version_is_shown_and_said():
    (row,) = table_of(completed(0, 0.9, code="older"), completed(1, 0.5, code="old"), completed(2, 0.7, code="old"))
    assert row.success_rate == pytest.approx(0.6)
    assert (row.used, row.stale, row.stale_used) == (2, 3, True)
    assert "3 stale, shown" in notes(row)


def test_times_of_different_machines_are_not_averaged():
    (row,) = table_of(
        completed(0, 0.5, cpu="slow", forward_seconds=9.0),
        completed(1, 0.5, forward_seconds=1.0),
        completed(2, 0.5, forward_seconds=3.0),
    )
    assert row.forward_seconds == pytest.approx(2.0)
    assert row.success_rate == pytest.approx(0.5) and row.used == 3
    assert "times of 2 on fast" in notes(row)


def test_every_cell_says_what_happened():
    oom = TrialResult(trial_id="0" * 16, status="OUT_OF_MEMORY", peak_bytes=12, provenance=Provenance(code=CODE))
    failed = oom.model_copy(update={"status": "FAILED"})
    assert success(table_of(oom)[0]) == "OOM"
    assert success(table_of(failed)[0]) == MISSING
    assert notes(table_of(failed)[0]) == ["1 failed"]
    (row,) = table_of(oom, completed(1, 0.5))
    assert success(row) == "50.0" and notes(row) == ["1 OOM"]


def test_diverged_entries_are_in_italics():
    table = table_of(completed(0, 0.1), completed(1, 0.5))
    assert "| *30.0 ± 28.3* |" in render(table, "md")
    assert r"\textit{30.0 $\pm$ 28.3}" in render(table, "tex")
    assert notes(table[0]) == ["1/2 under 20 %"]


def test_what_diverged_on_the_way_is_noted():
    still, falls = [0.5, 0.2, 0.2, 0.2], [0.5, 0.2, 0.1, 0.05]
    (row,) = table_of(
        completed(0, 0.5, backward_trace=still), completed(1, 0.5, backward_trace=falls, forward_diverged=True)
    )
    assert notes(row) == ["1/2 forward diverged", "1/2 backward stalled"]


def test_rows_keep_the_order_of_the_sweep_and_only_varying_axes_are_shown():
    trials = [planned(0, "vin", 80), planned(1, "vin", 30), planned(2, "id_vin", 80)]
    text = render(rows(trials, {}), "text", title="name")
    lines = text.splitlines()
    assert lines[0] == "name"
    assert lines[3].split()[:2] == ["planner", "K"]
    assert [line.split()[:2] for line in lines[5:]] == [["vin", "80"], ["vin", "30"], ["id_vin", "80"]]
    assert r"id\_vin" in render(rows(trials, {}), "tex")


def test_machine_formats_are_read_back_unrounded():
    rate = 1 / 3
    table = table_of(completed(0, rate, test_exact=0.5), completed(1, rate, test_exact=0.5))
    (line,) = csv.DictReader(io.StringIO(render(table, "csv")))
    assert float(line["success_rate"]) == rate
    assert (float(line["exact_low"]), float(line["exact_high"])) == table[0].exact_interval
    assert (line["planner"], line["used"], line["completed"], line["missing"]) == ("vin", "2", "2", "0")
    document = json.loads(render(table, "json", title="t"), parse_constant=pytest.fail)
    assert document["rows"][0]["success_rate"] == rate
    assert document["rows"][0]["axes"] == {"planner": "vin", "task": "navigation", "map_size": 15, "k": 30}


def test_an_empty_sweep_cell_has_dashes_everywhere():
    text = render(rows([planned(0)], {}), "text")
    assert text.splitlines()[-1].split() == ["vin", "30", MISSING, MISSING, "0/1", *[MISSING] * 3]


def test_success_by_path_length_says_when_it_is_of_fewer():
    bins = {"test_cells_by_distance": [100, 50, 0, 0, 0, 0], "test_arrivals_by_distance": [90, 10, 0, 0, 0, 0]}
    (row,) = table_of(completed(0, 0.5, **bins), completed(1, 0.5))
    assert row.success_by_distance == (0.9, 0.2, None, None, None, None)
    assert notes(row) == ["path lengths of 1"]
    (row,) = table_of(completed(0, 0.5, train_seconds=2.0), completed(1, 0.5, train_seconds=4.0))
    assert (row.success_by_distance, row.train_seconds) == ((), 3.0)


def test_a_budget_that_allowed_few_steps_is_said():
    short, long = {"ended_by_budget": True, "steps": 49}, {"ended_by_budget": True, "steps": 50}
    (row,) = table_of(completed(0, 0.5, **short), completed(1, 0.5, **long), completed(2, 0.5, steps=3))
    assert row.cut_short == 1 and notes(row) == ["1/3 under 50 steps in the budget"]


def tried(rates: dict[float, tuple[tuple[float, float], ...]]) -> list[TrialRecord]:
    """Runs of one planner whose seeds have, at each step size, these success rates in validation and test."""
    runs = []
    for step_size, seeds in rates.items():
        for seed, (valid, test) in enumerate(seeds):
            trial = planned(len(runs))
            axes = {**trial.axes, "seed": seed, "training.learning_rate": step_size}
            result = completed(len(runs), test, valid_success_rate=valid)
            runs.append(TrialRecord(PlannedTrial(trial.trial_id, trial.spec, axes), result, [], []))
    return runs


def test_the_best_of_an_axis_is_chosen_on_validation_maps():
    """By the mean over the seeds, whatever the tests say; a step size that nothing has ended with is never chosen."""
    runs = tried({0.1: ((0.9, 0.2), (0.1, 0.9)), 0.01: ((0.6, 0.3), (0.6, 0.4)), 0.001: ((0.7, 1.0), (0.4, 1.0))})
    waiting = planned(9)
    axes = {**waiting.axes, "training.learning_rate": 1.0}
    runs.append(TrialRecord(PlannedTrial(waiting.trial_id, waiting.spec, axes), None, [], []))
    for name in ("training.learning_rate", "learning_rate"):
        chosen = best_on_validation(runs, name)
        assert [run.axis("training.learning_rate") for run in chosen] == [0.01, 0.01]
    for name in ("planner", "seed", "learning"):
        with pytest.raises(SweepError, match=rf"--best: no single axis '{name}' of the sweep; .*learning_rate"):
            best_on_validation(runs, name)
    nothing = [replace(run, result=None) for run in runs]
    unvalidated = [replace(run, result=completed(number, 0.5)) for number, run in enumerate(runs)]
    for without in (nothing, unvalidated):
        with pytest.raises(SweepError, match=r"--best: no number to choose training.learning_rate by"):
            best_on_validation(without, "learning_rate")
    other = [replace(run, trial=replace(run.trial, axes={**run.trial.axes, "task": "mazes"})) for run in unvalidated]
    assert best_on_validation([*runs, *other], "learning_rate") == [*chosen, *other]
    system = TrialSpec.model_construct(system=object())
    with pytest.raises(SweepError, match=r"--best: .* systems have none"):
        best_on_validation([TrialRecord(PlannedTrial("", system, {}), None, [], [])], "learning_rate")
