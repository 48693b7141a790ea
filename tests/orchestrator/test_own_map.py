"""`idp show --map`: a planner on somebody's own map; and a sweep's planner by its name and seed."""

import re
import shlex
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.quiver import Quiver
from PIL import Image

from datagen.problem import FOUR
from datagen.tasks.registry import TASKS
from orchestrator.api import load_planner as of_sweep
from orchestrator.cli.main import main
from orchestrator.figures.own_map import route_figure
from orchestrator.figures.style import style
from orchestrator.storage.results import ResultError
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.specs import SweepError, expand
from planners import build_planner, load_planner
from planners.inference import PlannerError

FREE = np.array([[1, 0, 1, 1], [1, 1, 1, 0], [0, 1, 1, 1]], np.uint8)
SWEEP = """
name: own
tasks: [{map_size: 5}]
data: {train: 4, valid: 0, test: 2}
planners: {vin: {core: vin, hidden_channels: 4, q_channels: 4}, sym: {core: contractive}}
grid: {k: [4], seed: [0, 1]}
training: {epochs: 1, batch_size: 4}
"""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep, one of whose four trials has left a planner; its file, its storage and that trial's id."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.yaml").write_text(SWEEP)
    (trial,) = (t for t in expand(load_sweep(folder / "own.yaml")) if (t.axes["planner"], t.axes["seed"]) == ("vin", 1))
    directory = folder / "storage" / "trials" / trial.trial_id
    directory.mkdir(parents=True)
    (directory / "spec.json").write_text(trial.spec.model_dump_json())
    torch.manual_seed(0)
    planner = build_planner(trial.spec.planner)
    torch.save({"trainer": {"planner": planner.state_dict(), "moves": asdict(FOUR)}}, directory / "checkpoint.pt")
    return folder / "own.yaml", folder / "storage", trial.trial_id


@pytest.fixture
def show(tmp_path, capsys, sweep):
    """Run `idp show` in the folder of the maps; its exit code, and what it says."""

    def run(*words):
        code = main(["show", *map(str, words), "--out", str(tmp_path / "x.png"), "--storage", str(sweep[1])])
        return code, capsys.readouterr().err

    Image.fromarray(FREE * 255).save(tmp_path / "m.png")
    Image.fromarray(FREE * 254).save(tmp_path / "m.pgm")
    np.save(tmp_path / "c.npy", np.where(FREE, 1 + 4.0 * (np.arange(12).reshape(3, 4) == 6), np.inf))
    (tmp_path / "m.yaml").write_text(
        "image: m.pgm\nresolution: 0.5\norigin: [-1, 0, 0]\nnegate: 0\noccupied_thresh: 0.65\nfree_thresh: 0.25\n"
    )
    (tmp_path / "a.map").write_text("type octile\nheight 3\nwidth 4\nmap\n.@..\n...@\n@...\n")
    (tmp_path / "a.scen").write_text("version 1\n" + "".join(f"0 a.map 4 3 0 0 {x} 2 3.4\n" for x in (1, 3)))
    return run


def test_a_map_of_each_kind_is_planned_on(show, tmp_path, sweep):
    # the way from the upper left to the lower right takes five moves; by metres that is from (-1, 1.5) to (1, 0)
    for words in (
        ("--map", tmp_path / "m.png", "--start", "0,0", "--goal", "2,3"),
        ("reachability", "--map", tmp_path / "a.map", "--start", "0,0", "--goal", "2,3"),
        ("--map", tmp_path / "a.scen", "--index", "1"),
        ("--map", tmp_path / "m.yaml", "--start=-0.9m,1.4m", "--goal", "0.99m,0.01m"),
        ("--costs", tmp_path / "c.npy", "--start", "0,0", "--goal", "2,3"),
    ):
        assert show(*words) == (
            0,
            "idp: arrives at cost 5 (the cheapest way: 5), by 5 moves; 1 step, residual 0.0e+00\n",
        ), words
        assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
        (tmp_path / "x.png").unlink()
    assert show("--map", tmp_path / "m.png", "--costs", tmp_path / "m.png", "--start", "0,0", "--goal", "1,2")[
        1
    ].startswith("idp: arrives at cost 3 (the cheapest way: 3)")
    for who in ((sweep[2][:8],), (sweep[0], "--only", "planner=vin,seed=1")):
        code, said = show(*who, "--map", tmp_path / "m.png", "--start", "0,0", "--goal", "2,3")
        assert code == 0 and "the cheapest way: 5" in said and " steps, residual" in said


def test_what_is_wrong_is_told_in_one_line(show, tmp_path, sweep):
    np.save(tmp_path / "wide.npy", np.ones((3, 5)))
    ends, map_ = ["--start", "0,0", "--goal", "2,3"], ["--map", tmp_path / "m.png"]
    for words, said in (
        ([*map_], "--start: is missing: row and column of a free cell"),
        ([*map_, "--start", "0,0"], "--goal: is missing"),
        ([*map_, "--start", "0,1", "--goal", "2,3"], "--start: 0,1 is an obstacle; the nearest free cell is 0,0"),
        ([*map_, "--start", "0,0", "--goal", "3,0"], "--goal: expected a cell of the 3 x 4 map, got 3,0"),
        ([*map_, "--start", "1m,0m", "--goal", "2,3"], "--start: metres are of ROS maps"),
        (
            ["--map", tmp_path / "m.yaml", "--start", "9m,0m", "--goal", "2,3"],
            "--start: (9.0 m, 0.0 m) is not on the map",
        ),
        (["--map", tmp_path / "a.scen", "--index", "2"], "a.scen has 2 problems, numbered from 0"),
        ([*map_, *ends, "--costs", tmp_path / "wide.npy"], "wide.npy: expected one cost a cell of the (3, 4) map"),
        ([sweep[2], *map_, *ends, "--costs", tmp_path / "m.png"], "costs: only a planner with core 'reachability'"),
        ([*map_, *ends, "--dataset", tmp_path], "--dataset: is not for a map of one's own"),
        ([*map_, *ends, "--split", "train"], "--split: is not for a map of one's own"),
        ([*map_, *ends, "--index", "1"], "--index: of a map of one's own, is for a .scen without --start and --goal"),
        ([tmp_path, "--start", "0,0"], "--start: is for --map or --costs"),
        ([*map_, *ends, "--only", "seed=0"], "--only: is for a sweep, and 'reachability' is none"),
        ([*map_, *ends, "--k", "0"], "--k 0: expected at least 1"),
        (["--map", tmp_path / "a.map", *ends, "--threshold", "9"], "--threshold: is for .png and .pgm files, got "),
        ([*map_, *ends, "--unknown-is-free"], "--unknown-is-free: is for .yaml and .yml files, got "),
        ([*map_, *ends, "--darkest", "3"], "--darkest: is for .png and .pgm files, got none"),
        (["nobody", *map_, *ends], "'nobody' is no folder, and no trial in"),
        ([sweep[0], *map_, *ends], "expected one trial, got 4 trials; say which planner (vin, sym), seed (0, 1)"),
        ([sweep[0], *map_, *ends, "--only", "planner=vin,seed=0"], "has not been trained; `idp run "),
        ([], "show: expected a trial's or a dataset's folder, or --map FILE"),
    ):
        code, told = show(*words)
        assert code == 2 and said in told and told.count("\n") == 1, (words, told)
    assert not (tmp_path / "x.png").exists()


def test_the_page_is_right(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[2] / "docs" / "own-maps.md").read_text()
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    scripts = []
    for language, block in blocks:
        if named := re.match(r"# (\S+\.(?:py|yaml))\n", block):
            Path(named[1]).parent.mkdir(exist_ok=True)
            Path(named[1]).write_text(block)
        elif language == "python":
            scripts.append(block)
    made = {}
    exec(scripts[0], made)  # the files that commands and the other script use
    for line in "".join(block for language, block in blocks if language == "console").splitlines():
        assert main(shlex.split(line)[1:]) == 0, line
    assert "the cheapest way: 1,339.97), by 106 moves" in capsys.readouterr().err
    exec(scripts[1], made)
    assert made["route"].cost == pytest.approx(1339.97, abs=0.01)
    (trial,) = expand(load_sweep("hills.yaml"))
    problems = TASKS["hills"].draw()(trial.spec.data, "test", 0, 3)
    assert problems.observation.shape == (3, 1, 9, 9) and 1 <= problems.costs.min() < problems.costs.max()


def test_the_picture_shows_way_value_and_steps(sweep):
    grid = np.ones((6, 9), np.uint8)
    grid[:, 4] = grid[0, 5:] = 0
    planner = load_planner(sweep[1] / "trials" / sweep[2])
    route = planner.solve(grid, start=(1, 1), goal=(3, 2))
    reaches = np.zeros(grid.shape, bool)
    reaches[:, :4] = True
    with style():
        board, values, residuals, _ = route_figure(planner, route, "said", reaches).axes
    assert sum(len(child.U) for child in values.get_children() if isinstance(child, Quiver)) == 23
    assert values.images[-1].get_array().count() == 24 and len(residuals.lines[0].get_xdata()) == route.steps > 1
    way = max((line.get_xydata() for line in board.lines), key=len)
    np.testing.assert_array_equal(way[0], route.cells[0][::-1])
    exact = load_planner("reachability")
    with style():
        figure = route_figure(exact, exact.solve(grid, start=(1, 1), goal=(3, 2)), "said", reaches, costs=1.0 * grid)
    assert [axes.get_title("left") for axes in figure.axes][:2] == ["costs, and the path", "value and policy"]
    assert not any(axes.get_title("left") == "convergence" for axes in figure.axes)


def test_a_sweeps_planner_by_name_and_seed(sweep, tmp_path):
    file, storage, trial_id = sweep
    planner = of_sweep(file, planner="vin", seed=1, storage=storage)
    assert planner.planner.solver.max_steps == 4
    assert (storage / "trials" / trial_id / "checkpoint.pt").exists()
    for wanted, message in (
        ({"planner": "vin"}, r"expected one trial, got 2 trials; say which seed \(0, 1\)"),
        ({"seed": 1}, r"expected one trial, got 2 trials; say which planner \(vin, sym\)"),
        ({"planner": "vim", "seed": 1}, "planner=vim: no trial of the sweep matches; did you mean 'vin'"),
    ):
        with pytest.raises(SweepError, match=message):
            of_sweep(file, storage=storage, **wanted)
    with pytest.raises(ResultError, match=r"has not been trained; `idp run .*own.yaml` does"):
        of_sweep(file, storage=storage, only="seed=0", planner="sym")
    with pytest.raises(PlannerError, match=r"own.yaml: of sweeps, orchestrator.api.load_planner"):
        load_planner(file)
