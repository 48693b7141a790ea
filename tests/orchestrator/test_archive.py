"""Results as one file: out of a storage, into another, and refused where they are not what they say."""

from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mutations import EXAMPLES, bounded, mutated
from samples import put_curves, put_result, sample_run

from orchestrator.cli.main import main
from orchestrator.storage.archive import SCHEMA, read_archive
from orchestrator.storage.evaluations import EvaluationResult, read_evaluation
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import Owner, free, latest_lease, take
from orchestrator.storage.results import (
    ResultError,
    TrialResult,
    write_bytes,
    write_json,
)
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.specs import SweepSpec, expand

SWEEP = SweepSpec.model_validate(
    {"name": "kept", "planners": {"vin": {"core": "vin", "adjoint": "unrolled"}}, "grid": {"k": [30], "seed": [0, 1]}}
)
TRIALS = expand(SWEEP)
ROOT = Path(__file__).parents[2]
TESTED = ("navigation-27-ab12", "test", 54)


@pytest.fixture
def storage(tmp_path):
    for trial in TRIALS:
        run, directory = sample_run(trial), Storage(tmp_path / "one").trial(trial.trial_id).path
        TrialDirectory(directory).write_spec(trial.spec)
        put_curves(directory, run.curves)
        found = EvaluationResult(
            trial_id=trial.trial_id, dataset_id="navigation-27-ab12", split="test", map_size=27, maps=9, k=54,
            success_rate=0.5, optimality=0.4, spl=0.45, accuracy=0.6, seconds=1.0,
        )  # fmt: skip
        write_json(TrialDirectory(directory).evaluation(found.dataset_id, "test", 54), found.model_dump(mode="json"))
        put_result(directory, run.result)
    return tmp_path / "one"


def test_what_is_archived_comes_back_and_nothing_is_overwritten(storage, tmp_path, capsys):
    file, other = tmp_path / "results.parquet", tmp_path / "other"
    assert main(["archive", str(file), "--storage", str(storage)]) == 0
    assert pq.read_table(file).select(["core", "seed"]).to_pylist() == [
        {"core": "vin", "seed": trial.spec.seed} for trial in sorted(TRIALS, key=lambda trial: trial.trial_id)
    ]
    assert main(["unarchive", str(file), "--storage", str(other)]) == 0
    for trial in TRIALS:
        was, now = (Storage(place).trial(trial.trial_id).path for place in (storage, other))
        assert TrialDirectory(now).read_result() == TrialDirectory(was).read_result()
        assert repr(TrialDirectory(now).read_curves()) == repr(TrialDirectory(was).read_curves())
        assert (now / "spec.json").read_text() == (was / "spec.json").read_text()
        first, second = (read_evaluation(TrialDirectory(place).evaluation(*TESTED)) for place in (was, now))
        assert first == second and first is not None
    broken_off = Storage(tmp_path / "third").trial(TRIALS[0].trial_id)
    for path in broken_off.of_training:
        write_bytes(path, b"of a training that did not end")
    assert main(["unarchive", str(file), "--storage", str(tmp_path / "third")]) == 0
    assert broken_off.read_result().final and not any(path.exists() for path in broken_off.of_training)
    kept = Storage(other).trial(TRIALS[0].trial_id).path
    changed = TrialResult(trial_id=TRIALS[0].trial_id, status="OUT_OF_MEMORY")
    put_result(kept, changed)
    capsys.readouterr()
    assert main(["unarchive", str(file), "--storage", str(other)]) == 0
    said = capsys.readouterr()
    assert "0 of 2 trials put there, 2 it had already" in said.out
    assert said.err.startswith(f"idp: 1 of those that {other} had are of other code") and said.err.count("\n") == 1
    assert TrialDirectory(kept).read_result() == changed


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


@pytest.fixture
def file(storage, tmp_path):
    path = tmp_path / "results.parquet"
    assert main(["archive", str(path), "--storage", str(storage)]) == 0
    return path


def changed(path, edit, schema=SCHEMA):
    """The archive as 0.1.0 wrote it, without checksums, its rows edited."""
    rows = pq.read_table(path).to_pylist()
    rows = edit(rows) or rows
    pq.write_table(pa.Table.from_pylist(rows, schema).drop_columns("checksum"), path)


def setting(column, value):
    return lambda rows: rows[1].__setitem__(column, value)


def of_result(**fields):
    def edit(rows):
        content = {**json.loads(rows[1]["result"]), **fields}
        del content["checksum"]
        rows[1]["result"] = json.dumps(content)

    return edit


DEEP = json.loads("[" * 300 + "]" * 300)
"""What JSON's readers take, and a later writer would not."""


def of_evaluation(**fields):
    return lambda rows: rows[1].__setitem__(
        "evaluations", json.dumps([{**json.loads(rows[1]["evaluations"])[0], **fields}])
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (setting("spec", None), "row 1: spec"),
        (setting("spec", "5"), "row 1: spec"),
        (setting("evaluations", "[" * 100_000), "row 1: evaluations"),
        (setting("curves", "[" * 100_000), "row 1: curves"),
        (setting("curves", '{"a": 1}'), "row 1: curves"),
        (setting("curves", "[5]"), "row 1: curves"),
        (setting("curves", "[{}]"), "row 1: curves: epoch"),
        (setting("curves", '[{"epoch": 1}, {"epoch": "x"}]'), "row 1: curves: epoch"),
        (setting("curves", '[{"epoch": 1, "a": 1}, {"epoch": 2, "a": "x"}]'), "row 1: curves"),
        (setting("curves", '[{"epoch": [{"a": {}}]}]'), "row 1: curves"),
        (setting("curves", f'[{{"epoch": {10**30}}}]'), "row 1: curves"),
        (setting("curves", f'[{{"epoch": 1, "peak_bytes": {"9" * 5000}}}]'), "row 1: curves"),
        (setting("curves", '[{"epoch": 1, "valid_success_rate": 7.0}]'), "row 1: curves: valid_success_rate"),
        (setting("curves", json.dumps([{"epoch": 1, **{f"c{n}": 1 for n in range(64)}}])), "row 1: curves"),
        (setting("curves", json.dumps([{"epoch": n} for n in range(1, 100_002)])), "row 1: curves: .* too many"),
        (of_evaluation(k=10**300), "row 1: evaluations: k"),
        (of_evaluation(k=-5), "row 1: evaluations: k"),
        (of_evaluation(success_rate=math.nan), "row 1: evaluations"),
        (of_evaluation(zz=[math.nan]), "row 1: evaluations"),
        (of_evaluation(zz=DEEP), "row 1: evaluations: nested too deeply"),
        (of_evaluation(trial_id="f" * 16), "row 1: evaluations: trial_id"),
        (of_evaluation(dataset_id="x\n"), "row 1: evaluations: dataset_id"),
        (of_result(zz={"a": [math.nan]}), "row 1: result"),
        (of_result(zz=DEEP), "row 1: result: nested too deeply"),
        (of_result(test_success_rate=99.0), "row 1: result: test_success_rate"),
        (of_result(status="FAILED"), "row 1: result: status"),
        (of_result(curves="../../../etc/passwd"), "row 1: result: curves"),
        (lambda rows: [rows[0], rows[0]], "row 1: trial_id: .* is there twice"),
    ],
)
def test_a_row_of_0_1_0_that_can_not_be_is_refused_before_anything_is_written(file, tmp_path, edit, message):
    changed(file, edit)
    with pytest.raises(ResultError, match=message):
        read_archive(file, Storage(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_an_archive_of_0_1_0_is_read(file, storage, tmp_path):
    changed(file, lambda rows: None)
    assert read_archive(file, Storage(tmp_path / "other")) == (2, 2)
    assert Storage(tmp_path / "other").results() == Storage(storage).results()


def test_a_number_that_was_altered_is_no_other_number(file, tmp_path):
    table = pq.read_table(file)
    for column in ("test_success_rate", "seed", "curves"):
        rows = table.to_pylist()
        rows[1][column] = rows[1][column].replace("1", "2") if column == "curves" else 0
        pq.write_table(pa.Table.from_pylist(rows, table.schema), file)
        with pytest.raises(ResultError, match=r"row 1: (its checksum does not fit|curves)"):
            read_archive(file, Storage(tmp_path / "other"))


def test_fuzzed_archives_are_refused_whole_or_the_same(file, storage, tmp_path):
    content, good, other = file.read_bytes(), Storage(storage).results(), tmp_path / "other"
    with bounded(processor_seconds=5 + 0.3 * EXAMPLES, mebibytes=500):
        for number in range(EXAMPLES):
            file.write_bytes(mutated(content, number))
            place = other / str(number)
            try:
                read_archive(file, Storage(place))
            except ResultError as error:
                assert str(file) in str(error) and "\n" not in str(error) and not place.exists()
            else:
                assert Storage(place).results() == good


def test_an_archive_that_lost_rows_is_refused(file, tmp_path):
    table = pq.read_table(file)
    for rows in (table.slice(0, 1), table.slice(0, 0), table.replace_schema_metadata({"checksun": "0"})):
        pq.write_table(rows, file)
        with pytest.raises(ResultError, match=r"(rows are missing|no trials)"):
            read_archive(file, Storage(tmp_path / "other"))


def test_rows_that_other_tools_chose_are_taken(file, tmp_path):
    chosen = pq.read_table(file).to_pandas().query("seed == 1")
    chosen.to_parquet(file)
    assert read_archive(file, Storage(tmp_path / "other")) == (1, 1)


def test_fuzzed_rows_of_0_1_0_are_refused_whole_or_taken_whole(file, tmp_path):
    content = file.read_bytes()
    for number in range(EXAMPLES):
        file.write_bytes(content)
        draw = random.Random(number)
        column = draw.choice(["trial_id", "spec", "result", "curves", "evaluations"])

        def edit(rows, column=column, number=number):
            text = mutated(rows[1][column].encode(), number).decode(errors="replace")
            rows[1][column] = text.replace('"checksum"', '"was"', 1) if column == "result" else text

        changed(file, edit)
        place = tmp_path / "other" / str(number)
        try:
            read_archive(file, Storage(place))
        except ResultError as error:
            assert "row 1: " in str(error) and "\n" not in str(error) and not place.exists()
        else:
            assert {name for name in Storage(place).results()} == {trial.trial_id for trial in TRIALS}
            for found in Storage(place).results().values():
                assert found.final and all(map(math.isfinite, [found.test_success_rate, found.epochs]))
                Storage(place).trial(found.trial_id).read_curves()


def test_a_small_file_does_not_unfold_into_gigabytes(file, tmp_path, monkeypatch):
    row = pq.read_table(file).to_pylist()[0]
    del row["checksum"]
    result = {**json.loads(row["result"]), "pad": "A" * 1_000_000}
    del result["checksum"]
    row["result"] = json.dumps(result)
    table = pa.Table.from_pylist([row], SCHEMA).drop_columns("checksum")
    for rows, most in ((300, 2**30), (300, 2**28), (1, 2**19)):
        pq.write_table(pa.concat_tables([table] * rows), file, compression="zstd")
        assert file.stat().st_size < 200_000
        monkeypatch.setattr("orchestrator.storage.archive.MOST_CHUNK_BYTES", most)
        with (
            bounded(processor_seconds=5, mebibytes=100),
            pytest.raises(ResultError, match=r"(twice|too many)"),
        ):
            read_archive(file, Storage(tmp_path / "other"))


def test_texts_are_json_that_every_reader_takes(storage, tmp_path):
    directory = Storage(storage).trial(TRIALS[0].trial_id).path
    records = [{"epoch": n, "train_loss": value} for n, value in enumerate((math.nan, math.inf, -math.inf, 0.5), 1)]
    records[2]["train_loss"] = math.inf
    put_curves(directory, records)
    file = tmp_path / "a.parquet"
    assert main(["archive", str(file), "--storage", str(storage)]) == 0
    for row in pq.read_table(file).to_pylist():
        for column in ("spec", "result", "curves", "evaluations"):
            json.loads(row[column], parse_constant=pytest.fail)
    read_archive(file, Storage(tmp_path / "other"))
    assert repr(Storage(tmp_path / "other").trial(TRIALS[0].trial_id).read_curves()) == repr(records)


def test_twice_the_same_archive_is_the_same_file(file, storage, tmp_path):
    read_archive(file, Storage(tmp_path / "other"))
    again = tmp_path / "again.parquet"
    assert main(["archive", str(again), "--storage", str(tmp_path / "other")]) == 0
    assert again.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED", "damaged"])
def test_what_is_not_final_is_replaced(file, storage, state):
    directory = Storage(storage).trial(TRIALS[0].trial_id).path
    good = TrialDirectory(directory).read_result()
    if state == "damaged":
        (directory / "result.json").write_text("{")
    else:
        put_result(directory, TrialResult(trial_id=directory.name, status=state))
        (directory / "cancelled").write_text("stop")
    (directory / "checkpoint.pt").write_bytes(b"of what did not end")
    assert read_archive(file, Storage(storage)) == (1, 2)
    assert TrialDirectory(directory).read_result() == good and not (directory / "cancelled").exists()
    assert (directory / "checkpoint.pt").exists() == (state == "damaged") and free(latest_lease(directory))


def test_a_trial_that_is_running_is_left_to_its_process(file, tmp_path, capsys):
    directory = Storage(tmp_path / "other").trial(TRIALS[0].trial_id).path
    take(directory, Owner.here())
    assert main(["unarchive", str(file), "--storage", str(tmp_path / "other")]) == 0
    printed = capsys.readouterr()
    assert "1 of 2 trials put there" in printed.out and "works on this trial; left alone" in printed.err
    assert TrialDirectory(directory).read_result() is None


def test_a_damaged_file_costs_itself_alone(storage, tmp_path, capsys):
    one, two = (Storage(storage).trial(trial.trial_id).path for trial in TRIALS)
    (one / "curves.parquet").write_bytes(b"x")
    TrialDirectory(one).evaluation("navigation-27-ab12", "test", 54).write_text("{")
    (two / "result.json").write_text("{")
    file = tmp_path / "a.parquet"
    assert main(["archive", str(file), "--storage", str(storage)]) == 0
    said = capsys.readouterr().err.splitlines()
    assert [next(word for word in ("curve is", "test is", "trial is") if word in line) for line in said] == [
        "trial is", "curve is", "test is"
    ] or len(said) == 3  # fmt: skip
    assert read_archive(file, Storage(tmp_path / "other")) == (1, 1)


@pytest.mark.parametrize("content", [None, b"", b"\xff", b"{}", "other"])
def test_a_spec_that_is_not_the_trials_is_refused_when_it_is_written(storage, tmp_path, capsys, content):
    path = Storage(storage).trial(TRIALS[0].trial_id).path / "spec.json"
    if content is None:
        path.unlink()
    else:
        other = Storage(storage).trial(TRIALS[1].trial_id).path / "spec.json"
        path.write_bytes(other.read_bytes() if content == "other" else content)
    assert main(["archive", str(tmp_path / "a.parquet"), "--storage", str(storage)]) == 2
    said = capsys.readouterr().err
    assert str(path) in said and said.count("\n") == 1 and not (tmp_path / "a.parquet").exists()


def test_places_that_take_no_file_are_named(storage, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, Path("/proc/a.parquet"), tmp_path / "pipe" / "a.parquet", tmp_path / "pipe"):
        assert main(["archive", str(place), "--storage", str(storage)]) == 2
        said = capsys.readouterr().err
        assert str(place) in said and said.count("\n") == 1
    assert (tmp_path / "pipe").is_fifo()
    for place in (tmp_path, tmp_path / "pipe", Path("/dev/zero"), tmp_path / "absent"):
        with bounded(processor_seconds=2, mebibytes=50):
            assert main(["unarchive", str(place), "--storage", str(tmp_path / "other")]) == 2
        said = capsys.readouterr().err
        assert str(place) in said and said.count("\n") == 1
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("place", ["", ".", "/"])
def test_a_place_without_a_name_is_a_folder(storage, tmp_path, monkeypatch, capsys, place):
    monkeypatch.chdir(tmp_path)
    assert main(["archive", place, "--storage", str(storage)]) == 2
    assert capsys.readouterr().err.endswith(f"idp: {place or '.'}: Is a directory\n")


def test_a_name_of_another_kind_of_file_is_refused(storage, tmp_path, capsys):
    assert main(["archive", str(tmp_path / "results.csv"), "--storage", str(storage)]) == 2
    assert "results.csv: expected a name that ends in .parquet" in capsys.readouterr().err
    assert not (tmp_path / "results.csv").exists()


def test_what_is_no_archive_is_said(tmp_path, capsys):
    (tmp_path / "x.parquet").write_text("x")
    assert main(["unarchive", str(tmp_path / "x.parquet"), "--storage", str(tmp_path)]) == 2
    assert "not an archive of results" in capsys.readouterr().err
    assert main(["archive", str(tmp_path / "y.parquet"), "--storage", str(tmp_path / "none")]) == 2
    assert "no trial that has ended" in capsys.readouterr().err


def page_rows(heading):
    """Return the cells of a table of reachability's page, row by row, without its head."""
    text = (ROOT / "docs" / "planners" / "reachability.md").read_text()
    lines = text.partition(heading)[2].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.slow
def test_the_published_results_of_reachability_are_what_its_page_says(tmp_path, capsys):
    """Every seed is right in every set: all starts arrive, each whole way is a shortest one; and beside the others."""
    assert main(["unarchive", str(ROOT / "docs/results/reachability.parquet"), "--storage", str(tmp_path)]) == 0

    def table(sweep, *more):
        capsys.readouterr()
        assert main(["table", str(ROOT / "sweeps" / f"{sweep}.yaml"), "--storage", str(tmp_path), "--json", *more]) == 0
        document = json.loads(capsys.readouterr().out)
        tests = {json.dumps(entry["axes"]): entry["tests"] for entry in document["further_tests"]}
        return [(row, tests.get(json.dumps(row["axes"]))) for row in document["rows"] if row["used"]]

    def percent(*numbers):
        return " / ".join(f"{100 * number:.1f}" for number in numbers)

    for name, sets in (("far", 15), ("maze_unique", 1), ("far_axes", 93)):
        ((row, tests),) = table(name)
        assert (row["used"], row["success_rate"], row["exact"]) == (5, 1.0, 1.0)
        assert len(tests) == sets
        assert all((test["n"], test["success_rate"], test["exact"]) == (5, 1.0, 1.0) for test in tests)
    places = {"mazes27": 1, "mazes33": 2, "maze_unique30": 3}
    best = table("fair", "--profile", "laptop", "--best", "training.learning_rate")
    for (row, tests), said in zip(best, page_rows("| planner | parameters |"), strict=True):
        cells = {places[f"{test['about']['task']}{test['map_size']}"]: test for test in tests} | {0: row}
        found = [percent(cells[place]["exact"], cells[place]["success_rate"]) for place in range(4)]
        assert said[0] == row["axes"]["planner"] and said[2:] == [f"{row['axes']['training.learning_rate']:g}", *found]
    measured = [(row["axes"]["planner"], tests) for row, tests in best]
    alike = {test["path_independence"]: name for name, tests in measured for test in tests if test["path_independence"]}
    told = {name: [t["residual_auroc"] for t in tests if t["residual_auroc"] is not None] for name, tests in measured}
    assert (f"{min(alike):.3f}", alike[min(alike)]) == ("0.653", "id-convgppn")
    every = [share for shares in told.values() for share in shares]
    assert (f"{min(every):.2f}", f"{max(every):.2f}") == ("0.18", "1.00") and told["reachability"] == []
    least = {name: min(shares) for name, shares in told.items() if shares}
    assert f"{least.pop('id-convgppn'):.2f}" == "0.82" and max(least.values()) < 0.69
    page = (ROOT / "docs" / "planners" / "reachability.md").read_text()
    by_step = {
        (row["axes"]["planner"], row["axes"]["training.learning_rate"]): f"{100 * row['success_rate']:.1f}"
        for row, _ in table("fair", "--profile", "laptop")
    }
    assert f"ConvGPPN has {by_step['convgppn', 0.003]} % at 0.003 and {by_step['convgppn', 0.01]} at 0.01" in page
    assert f"contractive {by_step['contractive', 0.003]} and {by_step['contractive', 0.01]}" in page
    assert f"ID-VIN {by_step['id-vin', 0.003]}\n(its solves diverged) and {by_step['id-vin', 0.01]};" in page
    assert {by_step["reachability", step] for step in (0.01, 0.003, 0.001)} == {"100.0"}
    cores: dict[tuple[str, str], list[str]] = {}
    for row, tests in table("factorial", "--profile", "laptop"):
        cell = cores.setdefault((row["axes"]["planner"], row["axes"].get("planner.group", "trivial")), [])
        cell += [percent(row["success_rate"])]
        cell += [percent(test["success_rate"]) for test in tests if test["map_size"] == 33]
    for core, recipe, tied, *said in page_rows("| core | recipe |"):
        planner = core + ("-d2" if recipe == "the paper's" else "")
        assert cores.pop((planner, "trivial" if tied == "-" else tied)) == said
    assert not cores
    assert main(["unarchive", str(ROOT / "docs/results/table1.parquet"), "--storage", str(tmp_path)]) == 0
    spaces = table("table1_ours", "--profile", "laptop", "--only", "planner=reachability,task=manipulation")
    assert [(row["used"], row["success_rate"], row["success_rate_std"]) for row, _ in spaces] == [(3, 1.0, 0.0)] * 6
    scenes = table("table1_ours", "--profile", "laptop", "--only", "planner=reachability,task=workspace_manipulation")
    said = [f"{100 * row['success_rate']:.1f} ± {100 * row['success_rate_std']:.1f}" for row, _ in scenes]
    assert "from {}, {} and {} %, on panoramas".format(*said) in page
    five = expand(load_sweep(ROOT / "sweeps" / "far.yaml"))
    seconds = [Storage(tmp_path).trial(trial.trial_id).read_result().train_seconds for trial in five]
    assert (round(min(seconds)), round(max(seconds))) == (56, 160)
    trials = [
        trial for name in ("far", "maze_unique") for trial in expand(load_sweep(ROOT / "sweeps" / f"{name}.yaml"))
    ]
    tested = [file for trial in trials for file in Storage(tmp_path).trial(trial.trial_id).path.glob("evaluations/*")]
    assert len(tested) == 535 and all(json.loads(file.read_text())["accuracy"] == 1.0 for file in tested)
