"""Pictures of problems and plans: what they show is what the dataset and the planner say."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver
from mutations import EXAMPLES, bounded, mutated

from datagen.problem import FOUR, FOUR_WRAP, Moves
from datagen.storage import dataset as parquet
from datagen.storage.manifest import DatasetError
from datagen.storage.npz import import_npz
from datagen.tasks.registry import DatasetSpec
from orchestrator.cli.main import main
from orchestrator.figures.cells import roll_out, trail
from orchestrator.figures.problem import (
    plan_figure,
    problem_figure,
    read_problem,
    write_dataset_picture,
    write_trial_pictures,
)
from orchestrator.figures.style import style
from orchestrator.storage.evaluations import missing_evaluations, planned_evaluations
from orchestrator.storage.layout import Storage
from orchestrator.storage.results import ResultError
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.specs import TrialSpec, expand, trial_id
from orchestrator.trial.evaluate import evaluate_trial, keep_evaluation
from orchestrator.trial.train import run_trial
from orchestrator.trial.trained import convergence, load_trained, solve
from planners import load_planner
from planners.published import WEIGHTS
from planners.specs import PlannerSpec, TrainingSpec


def make(root, **fields):
    spec = DatasetSpec(**fields)
    parquet.make_dataset(spec, root)
    return parquet.directory_of(spec, root)


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def trial(storage):
    spec = TrialSpec(
        data=DatasetSpec(map_size=7, train=256, valid=8, test=8),
        planner=PlannerSpec(core="contractive", k_fwd=12),
        training=TrainingSpec(epochs=3, batch_size=8, optimizer="adam", learning_rate=0.01, labels="all_optimal"),
    )
    make(storage / "datasets", **spec.data.model_dump())
    result = run_trial(spec, Storage(storage))
    assert result.status == "COMPLETED", result.traceback
    return Storage(storage).trial(trial_id(spec)).path


def arrows(axes):
    return sum(len(child.U) for child in axes.get_children() if isinstance(child, Quiver))


@pytest.mark.parametrize(
    ("task", "panels"),
    [
        ("navigation", 3),
        ("manipulation", 4),
        ("workspace_manipulation", 4),
    ],
)
def test_a_problem_of_every_task_is_drawn(storage, tmp_path, task, panels):
    dataset = make(storage / "datasets", task=task, map_size=9, train=0, valid=0, test=3)
    spec, problem = read_problem(dataset, "test", 2)
    np.testing.assert_array_equal(problem.map, parquet.read_split(dataset, "test").map[2:3])
    with style():
        figure = problem_figure(spec, problem)
    titled = [axes for axes in figure.axes if axes.get_title("left")]
    assert len(titled) == panels
    optimal = problem.optimal_actions[0]
    assert arrows(titled[-1]) == sum(int((optimal >> action & 1).sum()) for action in range(4))
    write_dataset_picture(dataset, "test", 2, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def imported(root, task, map_size, **arrays):
    """A dataset of two problems a split from a file in the GPPN layout without policies."""
    maps, goal = np.ones((2, map_size, map_size)), np.zeros((2, 1, map_size, map_size))
    maps[:, 1::3, ::2] = 0
    maps[:, 2, 3] = goal[:, 0, 2, 3] = 1
    root.mkdir(exist_ok=True)
    np.savez(root / "file.npz", *[maps, goal] * 3, *[arrays[name] for name in arrays for _ in range(3)])
    return import_npz(root / "file.npz", task, root)


def test_a_set_that_came_with_images_alone_is_drawn(tmp_path):
    image = (np.random.default_rng(0).random((2, 1, 96, 96)) < 0.2).astype(float)
    dataset = imported(tmp_path / "datasets", "workspace_manipulation", 18, image=image)
    spec, problem = read_problem(dataset, "test", 1)
    with style():
        figure = problem_figure(spec, problem)
    titled = [axes for axes in figure.axes if axes.get_title("left")]
    assert titled[0].get_title("left") == "image that is seen" and len(titled) == 4
    np.testing.assert_array_equal(titled[0].images[0].get_array(), problem.observation[0, 0])
    write_dataset_picture(dataset, "test", 1, tmp_path / "picture.png")


def test_a_large_map_is_drawn_with_few_artists_and_arrives_as_evaluate_says(trial, tmp_path):
    dataset = imported(tmp_path / "datasets", "navigation", 150)
    spec, problem = read_problem(dataset, "test", 0)
    trained = load_trained(trial)
    with style():
        figure = plan_figure(trained, spec, problem, k=20)
    titled = [axes for axes in figure.axes if axes.get_title("left")]
    assert all(len(axes.get_children()) < 60 for axes in titled)
    assert titled[1].get_xlabel() == "too many cells for arrows" and not arrows(titled[1])
    (crosses,) = [line for line in titled[2].lines if line.get_marker() == "x"]
    columns, rows = (part.astype(int) for part in crosses.get_data())
    lost = np.isfinite(problem.distance[0]).sum()
    assert 0 < len(rows) < lost / 5 and np.isfinite(problem.distance[0][rows, columns]).all()
    found = evaluate_trial(TrialDirectory(trial), dataset, k=20)
    shown = int(titled[2].get_xlabel().split()[0])
    assert shown == pytest.approx(found.success_rate * lost, abs=0.5)


def test_a_path_is_cut_at_the_seam_of_the_torus_and_nowhere_else():
    free, goal = np.ones((6, 6), np.uint8), np.array([0, 1], np.int16)
    figure = Figure()
    round_it = roll_out((0, 4), np.full((6, 6), 3), free, goal, FOUR_WRAP)
    knight = Moves(names=("k",), offsets=((2, 1),), costs=(1.0,))
    leap = roll_out((1, 0), np.zeros((6, 6), int), free, np.array([5, 2], np.int16), knight)
    for path, pieces in ((round_it, 2), (leap, 1)):
        axes = figure.add_subplot()
        assert path.arrives
        trail(axes, path, "black")
        strokes = [
            line.get_xydata() for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xydata()) > 1
        ]
        assert len(strokes) == pieces
        assert max(np.abs(np.diff(stroke, axis=0)).max() for stroke in strokes) <= np.abs(path.moves).max()


def test_wrong_options_are_told_in_one_line(storage, trial, tmp_path, capsys):
    dataset = make(storage / "datasets", map_size=9, train=0, valid=0, test=3)
    views = make(storage / "datasets", task="workspace_manipulation", map_size=9, train=0, valid=0, test=3)
    file, folder = tmp_path / "file", tmp_path / "folder.png"
    file.write_bytes(b"")
    folder.mkdir()
    os.mkfifo(pipe := tmp_path / "pipe.png")
    out = ["--out", str(tmp_path / "x.png")]
    for words, reason in (
        (["evaluate", trial, dataset, "--k", "0"], "--k 0: expected at least 1"),
        (["evaluate", trial, dataset, "--k", "-3"], "--k -3: expected at least 1"),
        (["evaluate", trial, dataset, "--threads", "0"], "--threads 0: expected at least 1"),
        (["evaluate", trial, dataset, "--k", f"{10**12}"], f"--k {10**12}: expected at most 1,000,000"),
        (["evaluate", trial, dataset, "--threads", "100000"], "--threads 100000: expected at most 1,024"),
        (["evaluate", file, dataset], f"{file}: expected the directory of a trial, got a file"),
        (["show", file, *out], f"{file}: expected the directory of a trial, got a file"),
        (["show", trial, "--dataset", dataset, "--k", "0", *out], "--k 0: expected at least 1"),
        (["show", trial, "--dataset", dataset, "--k", f"{10**12}", *out], f"--k {10**12}: expected at most 1,000,000"),
        (["show", dataset, "--out", folder], f"--out {folder}: is a folder"),
        (["show", dataset, "--out", pipe], f"--out {pipe}: expected a file, found a pipe"),
        (["show", dataset, "--out", file / "x.png"], f"--out {file / 'x.png'}: "),
        (["show", dataset, "--out", "/proc/x.png"], "--out /proc/x.png: "),
        (["show", trial, "--dataset", dataset, "--k", "2", "--frames", file, *out], f"--frames {file}/step-0001.png: "),
        (["show", trial, "--dataset", views, *out], "not those of 'workspace_manipulation'"),
        (["show", dataset, "--index", "-1", *out], "--index -1: "),
    ):
        assert main([str(word) for word in words]) == 2, words
        said = capsys.readouterr().err
        assert reason in said and said.count("\n") == 1, said


def test_published_weights_are_shown_on_a_set_or_a_map_that_is_named(tmp_path, capsys):
    assert main(["show", "reachability", "--out", str(tmp_path / "a.png")]) == 2
    assert "is not here; --dataset names another set, --map a map" in capsys.readouterr().err


def test_what_cannot_be_drawn_is_told(storage, trial, tmp_path):
    dataset = make(storage / "datasets", map_size=9, train=0, valid=0, test=3)
    with pytest.raises(ResultError, match="has 3 test problems, numbered from 0"):
        write_dataset_picture(dataset, "test", 3, tmp_path / "a.png")
    with pytest.raises(ResultError, match=r"a name ending in \.png"):
        write_dataset_picture(dataset, "test", 0, tmp_path / "a.gif")
    with pytest.raises(DatasetError, match=r"not a finished dataset"):
        write_trial_pictures(trial, "test", 0, tmp_path / "a.png", dataset=tmp_path)
    with pytest.raises(ResultError, match="not a trial directory"):
        write_trial_pictures(tmp_path, "test", 0, tmp_path / "a.png")
    torus = make(storage / "datasets", task="manipulation", map_size=9, train=0, valid=0, test=3)
    with pytest.raises(ResultError, match="not those of 'manipulation'"):
        write_trial_pictures(trial, "test", 0, tmp_path / "a.png", dataset=torus)


def test_a_trials_picture_shows_its_policy(storage, trial, tmp_path):
    trained = load_trained(trial)
    spec, problem = read_problem(parquet.directory_of(trained.spec.data, storage / "datasets"), "test", 1)
    with style():
        figure = plan_figure(trained, spec, problem)
    board, values, fates, residuals = [axes for axes in figure.axes if axes.get_title("left")]
    assert arrows(values) == (problem.optimal_actions > 0).sum()
    assert board.get_title("left") == "paths of the policy"
    from planners.training.evaluation import evaluate

    found = evaluate(trained.planner, problem, moves=FOUR)
    reachable = int(np.isfinite(problem.distance).sum())
    assert fates.get_xlabel() == f"{round(found.success_rate * reachable)} of {reachable} starts arrive (blue)"
    assert residuals.get_xlabel() == "step of the forward solve (12 used)"


def test_frames_show_the_iteration_step_by_step(trial, tmp_path):
    write_trial_pictures(trial, "test", 0, tmp_path / "plan.svg", k=3, frames=tmp_path / "frames")
    assert sorted(path.name for path in (tmp_path / "frames").iterdir()) == [f"step-000{n}.png" for n in (1, 2, 3)]
    frames = {path.read_bytes() for path in (tmp_path / "frames").iterdir()}
    assert len(frames) == 3 and b"</svg>" in (tmp_path / "plan.svg").read_bytes()


def test_a_roll_out_arrives_bumps_or_cycles_also_round_the_torus():
    free, goal = np.ones((3, 4), np.uint8), np.array([1, 1], np.int16)
    west, east = np.full((3, 4), 1), np.full((3, 4), 3)
    assert roll_out((1, 3), west, free, goal, FOUR).cells.tolist() == [[1, 3], [1, 2], [1, 1]]
    bump = roll_out((0, 2), west, free, goal, FOUR)
    assert not bump.arrives and bump.cells[-1].tolist() == [0, 0]
    assert roll_out((1, 2), east, free, goal, FOUR_WRAP).cells.tolist() == [[1, 2], [1, 3], [1, 0], [1, 1]]
    cycle = roll_out((0, 2), east, free, goal, FOUR_WRAP)
    assert not cycle.arrives and cycle.cells.tolist() == [[0, 2], [0, 3], [0, 0], [0, 1], [0, 2]]


def test_damaged_or_foreign_files_are_never_planned_with(storage, trial, tmp_path, capsys):
    copy, dataset = tmp_path / trial.name, make(storage / "datasets", map_size=9, train=0, valid=0, test=3)
    shutil.copytree(trial, copy)
    whole, spec = (trial / "checkpoint.pt").read_bytes(), (trial / "spec.json").read_bytes()
    # The last bytes of the largest member are weights; its check sum alone can tell.
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    other = spec.replace(b'"k_fwd": 12', b'"k_fwd": 13')
    before = sorted(path.name for path in copy.rglob("*"))
    for file, content, reason in (
        ("checkpoint.pt", bytes(flipped), "checkpoint.pt: is damaged"),
        ("checkpoint.pt", whole[:5000], "checkpoint.pt: is damaged"),
        ("checkpoint.pt", b"", "checkpoint.pt: is empty"),
        ("spec.json", b"{", "spec.json: is not JSON"),
        ("spec.json", other, "spec.json: is the spec of trial "),
        ("spec.json", spec.replace(b'"seed"', b'"need"'), "unknown field 'need'"),
    ):
        (copy / file).write_bytes(content)
        for words in (["evaluate", copy, dataset], ["show", copy, "--dataset", dataset, "--out", tmp_path / "x.png"]):
            assert main([str(word) for word in words]) == 2
            said = capsys.readouterr().err
            assert reason in said and said.count("\n") == 1, said
        (copy / file).write_bytes({"checkpoint.pt": whole, "spec.json": spec}[file])
    renamed = copy.rename(tmp_path / "mine")
    (renamed / "spec.json").write_bytes(other)
    with pytest.raises(ResultError, match=r"made by another trial .*: planner.k_fwd differs"):
        load_trained(renamed)
    assert before == sorted(path.name for path in renamed.rglob("*"))
    assert not (tmp_path / "x.png").exists()


def test_fuzzed_checkpoints_are_refused_or_tested_the_same(trial, tmp_path):
    for file in ("spec.json", "checkpoint.pt"):
        shutil.copy(trial / file, tmp_path)
    whole, expected, refused = (trial / "checkpoint.pt").read_bytes(), load_trained(trial), 0
    with bounded(processor_seconds=60 + EXAMPLES / 2, mebibytes=200):
        for number in range(EXAMPLES):
            (tmp_path / "checkpoint.pt").write_bytes(mutated(whole, number))
            try:
                found = load_trained(tmp_path)
            except ResultError as error:
                assert "checkpoint.pt" in str(error) and "\n" not in str(error)
                refused += 1
                continue
            assert (found.epoch, found.spec) == (expected.epoch, expected.spec)
            for name, tensor in expected.planner.state_dict().items():
                assert torch.equal(found.planner.state_dict()[name], tensor), (number, name)
    assert refused > EXAMPLES / 2


def test_convergence_is_recorded_step_by_step(storage, trial):
    trained = load_trained(trial)
    problems = parquet.read_split(parquet.directory_of(trained.spec.data, storage / "datasets"), "test")
    found = convergence(trained.planner, problems)
    assert len(found.forward) == 12 and len(found.backward) == trained.spec.planner.k_bwd
    assert found.forward[0] > found.forward[-1] > 0 and found.backward[0] > found.backward[-1]
    plan = solve(trained.planner, problems)
    assert found.forward == pytest.approx(plan.solution.trace.median(dim=1).values.tolist())


def test_a_planner_is_tested_on_larger_maps_with_more_steps(storage, trial):
    larger = make(storage / "datasets", map_size=11, train=0, valid=0, test=6)
    few, many = (evaluate_trial(TrialDirectory(trial), larger, k=k) for k in (1, 40))
    assert (few.map_size, few.maps, few.k, many.k) == (11, 6, 1, 40)
    assert few.success_rate + 0.2 < many.success_rate
    own = parquet.directory_of(load_trained(trial).spec.data, storage / "datasets")

    assert (
        evaluate_trial(TrialDirectory(trial), own).success_rate == TrialDirectory(trial).read_result().test_success_rate
    )
    assert (evaluate_trial(TrialDirectory(trial), own).k, evaluate_trial(TrialDirectory(trial), larger).k) == (
        12,
        19,
    )  # 12 for 7 rows
    with pytest.raises(ResultError, match="train split is empty"):
        evaluate_trial(TrialDirectory(trial), larger, "train")


def test_missing_evaluations_are_those_of_trained_planners(storage, trial, tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(
        """
name: s
tasks: [{map_size: 7}]
data: {train: 256, valid: 8, test: 8, distinct: maps}
planners:
  own: &own
    core: contractive
    training: {optimizer: adam, learning_rate: 0.01, labels: all_optimal}
  grown: {<<: *own, test_steps_per_row: 3}
  untrained: {core: vin}
grid: {k: [12], seed: [0]}
training: {epochs: 3, batch_size: 8}
test_on: [{map_size: 9, test: 3}, {map_size: 7, test: 5}]
"""
    )
    sweep = load_sweep(path)
    planned = planned_evaluations(sweep, expand(sweep))
    assert [p.k for p in planned] == [12, 12, 27, 21, 12, 12]
    missing = missing_evaluations(planned, Storage(storage))
    assert [(str(p.trial.axes["planner"]), p.data.map_size) for p in missing] == [
        ("own", 9),
        ("own", 7),
        ("grown", 9),
        ("grown", 7),
    ]
    dataset = make(storage / "datasets", map_size=9, train=0, valid=0, test=3)
    done = evaluate_trial(TrialDirectory(trial), dataset, k=27)
    keep_evaluation(TrialDirectory(trial), done)
    assert len(missing_evaluations(planned, Storage(storage))) == 3
    path = TrialDirectory(trial).evaluation(done.dataset_id, "test", 27)
    for other in ({"code": "0" * 12, "parts": {}}, {"plugins": {"a_plug_in_that_went": "0" * 12}}):
        made = done.provenance.model_copy(update=other)
        path.write_text(done.model_copy(update={"provenance": made}).model_dump_json())
        assert len(missing_evaluations(planned, Storage(storage))) == 4, other


def test_the_commands_show_and_evaluate(storage, trial, tmp_path, capsys):
    dataset = make(storage / "datasets", map_size=9, train=0, valid=0, test=3)
    for directory in (dataset, trial):
        out = tmp_path / f"{directory.name}.pdf"
        assert main(["show", str(directory), "--index", "1", "--out", str(out)]) == 0
        assert out.read_bytes().startswith(b"%PDF") and capsys.readouterr().out == f"{out}\n"
    named = ("evaluate", trial.name[:8], str(dataset), "--storage", str(storage))
    assert main([*named, "--k", "20", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["map_size"], shown["maps"], shown["k"]) == (9, 3, 20) and 0 <= shown["success_rate"] <= 1
    assert main(["evaluate", str(trial), str(tmp_path)]) == 2
    assert "is not a finished dataset" in capsys.readouterr().err


def test_weights_are_those_of_the_result_beside_them(storage, trial, tmp_path, capsys):
    """Of a training that goes on, or that was begun anew over a result, a test is told and not kept, or not made."""
    dataset = make(storage / "datasets", map_size=9, train=0, valid=0, test=3)
    copy = Storage(tmp_path).trial(trial.name)
    shutil.copytree(trial, copy.path, ignore=shutil.ignore_patterns("evaluations"))
    written = copy.result_file.read_text()
    copy.result_file.unlink()
    capsys.readouterr()
    assert main(["evaluate", str(copy), str(dataset)]) == 0
    said = capsys.readouterr()
    assert "3 maps, success" in said.out and "not kept: " in said.err and not copy.evaluations

    copy.result_file.write_text(written)
    assert main(["evaluate", str(copy), str(dataset)]) == 0 and len(copy.evaluations) == 1
    again = torch.load(copy.checkpoint, weights_only=True)
    again["records"][-1]["train_seconds"] += 1.0
    torch.save(again, copy.checkpoint)
    for words in (["evaluate", str(copy), str(dataset)], ["export-model", str(copy), str(tmp_path / "model")]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "the trial's result is of other weights" in said and f"remove {copy.result_file}, then" in said


def test_what_is_no_trial_or_cannot_be_written_keeps_no_test(storage, trial, tmp_path, capsys):
    dataset = make(storage / "datasets", map_size=9, train=0, valid=0, test=3)
    before = sorted(WEIGHTS.rglob("*"))
    assert main(["evaluate", "reachability", str(dataset)]) == 0
    assert "not kept: " in capsys.readouterr().err and sorted(WEIGHTS.rglob("*")) == before
    copy = Storage(tmp_path).trial(trial.name)
    shutil.copytree(trial, copy.path, ignore=shutil.ignore_patterns("evaluations"))
    (copy.path / "evaluations").write_text("in the way")
    assert main(["evaluate", str(copy), str(dataset)]) == 0
    said = capsys.readouterr()
    assert "3 maps, success" in said.out and "not kept: " in said.err


def test_a_sweep_tests_its_planners_on_further_maps_once(tmp_path, storage_with_database, idp):
    path = tmp_path / "s.yaml"
    path.write_text(
        """
name: further
tasks: [{map_size: 7}]
data: {train: 32, valid: 0, test: 4}
planners:
  same: &same {core: contractive, q_channels: 8, hidden_channels: 8}
  grown: {<<: *same, test_steps_per_row: 2}
grid: {k: [5], seed: [0]}
training: {epochs: 1, batch_size: 16}
test_on: [{map_size: 9, test: 3}]
figures: [generalisation]
"""
    )
    run = ["run", path, "--storage", storage_with_database, "--in-process"]
    done = idp(*run)
    assert done.returncode == 0, done.stderr
    (directory,) = (tmp_path / "storage" / "trials").iterdir()
    found = sorted((directory / "evaluations").iterdir())
    assert [file.name.rsplit("-", 1)[1] for file in found] == ["k18.json", "k5.json"]
    assert "on 9x9, K=18  tested" in done.stderr
    trained, planner = load_trained(directory), load_planner(directory)
    assert [trained.steps(size) for size in (2, 9, 50)] == [5, 18, 100] and planner.steps_per_row == 2
    report = (tmp_path / "storage" / "sweeps" / "further" / "report.html").read_text()
    assert "grown (K = 18)" in report and "still running" not in report
    again = idp(*run)
    assert again.returncode == 0 and "in this process" not in again.stderr
