"""From a trial directory to a route: what a notebook does, with nothing but torch and numpy's company."""

import dataclasses
import json
import shutil
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from mutations import EXAMPLES, mutated

from datagen.expert.grid import goal_distances
from datagen.problem import FOUR, FOUR_WRAP, Moves
from datagen.tasks.navigation import draw
from datagen.tasks.registry import DatasetSpec
from planners import PlannerSpec, Route, RoutePlanner, TrainingSpec, build_planner, load_planner, plot, trial_files
from planners.inference import PlannerError, followed
from planners.training.trainer import Trainer

DATA = DatasetSpec(map_size=9, train=64, valid=8, test=8)
PLANNER = PlannerSpec(core="vin", hidden_channels=8, q_channels=6, k_fwd=12)


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """What a trial leaves behind that `load_planner` reads."""
    folder = tmp_path_factory.mktemp("trial")
    training = TrainingSpec(epochs=1, batch_size=8)
    trainer = Trainer(PLANNER, training, draw(DATA, "train", 0, 64), draw(DATA, "valid", 0, 8), moves=FOUR, seed=0)
    trainer.run_epoch()
    spec = {"planner": PLANNER.model_dump(mode="json"), "training": training.model_dump(mode="json"), "plugins": []}
    (folder / "spec.json").write_text(json.dumps(spec))
    torch.save({"trainer": trainer.state_dict(), "records": [], "code": "x"}, folder / "checkpoint.pt")
    return folder


def exact(moves=FOUR, wrap=False):
    """A planner that is right: values are minus the distance, found by value iteration with the true moves."""

    class Expert(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def encode(self, x):
            return x

        def initial_value(self, x):
            return torch.where(x[:, 1:] > 0, 0.0, -99.0)

        def action_values(self, v, x):
            blocked = torch.where(x[:, :1] > 0, v, torch.full_like(v, -99.0))
            if moves.wrap:
                parts = [blocked.roll((-r, -c), (2, 3)) for r, c in moves.offsets]
            else:
                padded = torch.nn.functional.pad(blocked, (1, 1, 1, 1), value=-99.0)
                h, w = v.shape[2:]
                parts = [padded[:, :, 1 + r : 1 + r + h, 1 + c : 1 + c + w] for r, c in moves.offsets]
            return torch.cat(parts, 1) - torch.tensor(moves.costs).view(1, -1, 1, 1)

        def step(self, v, x):
            best = self.action_values(v, x).amax(1, keepdim=True)
            return torch.where(x[:, 1:] > 0, torch.zeros_like(v), best.clamp(min=-99.0))

        def policy(self, v, x):
            return self.action_values(v, x)

    planner = build_planner(PlannerSpec(k_fwd=80, wrap=wrap))
    planner.core = Expert()
    return RoutePlanner(planner, moves)


@pytest.mark.parametrize("moves", [FOUR, FOUR_WRAP])
def test_a_right_planner_gives_the_shortest_route(moves):
    problems = draw(DATA, "test", 0, 8)
    planner = exact(moves)
    for map_, goal in zip(problems.map, problems.goal, strict=True):
        distance = goal_distances(map_[None], goal[None], moves)[0]
        for start in np.argwhere(np.isfinite(distance))[::7]:
            route = planner.solve(map_, start=tuple(start), goal=tuple(goal))
            assert route.arrives and route.converged and route.cost == distance[tuple(start)]
            assert tuple(route.cells[0]) == tuple(start) and tuple(route.cells[-1]) == tuple(goal)
            assert len(route.cells) == route.cost + 1 and map_[tuple(route.cells.T)].all()
            reach = np.isfinite(distance)
            np.testing.assert_array_equal(-route.values[reach], distance[reach])


def test_a_route_ends_at_a_bump_and_at_a_cycle():
    free = np.ones((1, 4), np.uint8)
    east, west = 3, 1
    cells, cost = followed(np.array([[east, west, east, east]]), free, (0, 3), (0, 0), FOUR)
    assert cells.tolist() == [[0, 0], [0, 1]] and cost == 1.0
    cells, _ = followed(np.array([[0, 0, 0, 0]]), free, (0, 3), (0, 0), FOUR)
    assert cells.tolist() == [[0, 0]]
    diagonal = Moves(names=("d",), offsets=((1, 1),), costs=(1.5,))
    cells, cost = followed(np.zeros((3, 3), int), np.ones((3, 3), np.uint8), (2, 2), (0, 0), diagonal)
    assert cost == 3.0 and len(cells) == 3


def test_a_trial_becomes_a_planner_for_maps_of_any_size(trial):
    planner = load_planner(trial)
    rng = np.random.default_rng(0)
    for shape in ((9, 9), (5, 14), (21, 8)):
        grid = rng.random(shape) < 0.8
        grid[1, 1] = grid[2, 3] = True
        route = planner.solve(grid, start=(2, 3), goal=(1, 1))
        assert route.values.shape == route.actions.shape == shape
        assert route.steps <= 12 and len(route.trace) == route.steps
        assert route.residual == pytest.approx(route.trace[-1])
    longer = planner.solve(grid, start=(2, 3), goal=(1, 1), k=200)
    assert longer.steps > 12 or longer.converged


def test_it_plans_as_the_planner_it_comes_from(trial):
    planner = load_planner(trial)
    problems = draw(DATA, "test", 0, 8)
    for map_, goal in zip(problems.map, problems.goal, strict=True):
        x = torch.zeros(2, 1, 1, 9, 9)
        x[0, 0, 0], x[1, 0, 0, goal[0], goal[1]] = torch.from_numpy(map_).float(), 1.0
        expected = planner.planner.plan(x[0], x[1])
        route = planner.solve(map_, start=tuple(goal), goal=tuple(goal))
        np.testing.assert_allclose(route.values, expected.solution.value[0, 0].detach(), rtol=1e-4, atol=1e-5)
        assert route.arrives and route.cost == 0.0 and len(route.cells) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": np.full((4, 4), 2)}, r"grid: expected an array \[h, w\] of 1 \(free\) and 0"),
        ({"grid": np.ones((4, 4, 1))}, "grid: expected"),
        ({"goal": (4, 0)}, r"goal: expected row and column of a cell of the \(4, 4\) map"),
        ({"start": (-1, 0)}, "start: expected"),
        ({"start": (3, 3)}, r"start: \(3, 3\) is an obstacle"),
    ],
)
def test_a_bad_map_is_told(change, message):
    grid = np.ones((4, 4))
    grid[3, 3] = 0
    with pytest.raises(PlannerError, match=message):
        exact().solve(**{"grid": grid, "goal": (0, 0), "start": (1, 1)} | change)


def test_what_is_no_trial_is_told(tmp_path, trial):
    with pytest.raises(PlannerError, match=r"spec.json: no such file: .* is not the directory of a trained trial"):
        load_planner(tmp_path)
    (tmp_path / "spec.json").write_text('{"planner": {"core": "vim"}}')
    (tmp_path / "checkpoint.pt").write_bytes((trial / "checkpoint.pt").read_bytes())
    with pytest.raises(PlannerError, match=r"spec.json: planner: .*unknown name 'vim'; known: vin,"):
        load_planner(tmp_path)
    (tmp_path / "spec.json").write_text('{"planner": {"core": "vin"}}')
    with pytest.raises(PlannerError, match=r"spec.json: planner: not of this version \(KeyError: 'options'\)"):
        load_planner(tmp_path)
    wider = PlannerSpec(core="vin").model_dump(mode="json")
    (tmp_path / "spec.json").write_text(json.dumps({"planner": wider}))
    with pytest.raises(PlannerError, match="its weights do not fit"):
        load_planner(tmp_path)
    for directory, message in (
        (None, "directory: expected the name of a folder or of published weights, got None"),
        (3, "directory: expected the name of a folder"),
        ("a" * 5000, "directory: 'aaa.*File name too long"),
        ("a\0", r"directory: 'a\\x00': embedded null byte"),
    ):
        with pytest.raises(PlannerError, match=message):
            load_planner(directory)
    with pytest.raises(
        PlannerError, match=r"plugins: expected names of modules, \['mine'\] for one, got the text 'mine'"
    ):
        load_planner("reachability", plugins="mine")


@pytest.mark.slow
def test_it_needs_torch_and_numpy_alone(tmp_path, trial, monkeypatch):
    monkeypatch.delenv("IDP_CHECK_SHAPES")
    made = {}
    for core in ("vin", "contractive", "conv_gppn", "spt"):
        made[core] = tmp_path / core
        made[core].mkdir()
        spec = PlannerSpec(core=core, solver="anderson", k_fwd=2, k_bwd=2)
        (made[core] / "spec.json").write_text(json.dumps({"planner": spec.model_dump(mode="json")}))
        trainer = {"planner": build_planner(spec).state_dict(), "moves": asdict(FOUR)}
        torch.save({"trainer": trainer}, made[core] / "checkpoint.pt")
    program = f"""
import importlib.metadata, sys
torchs_own = "torch torchgen functorch numpy typing_extensions sympy mpmath networkx jinja2 markupsafe filelock fsspec"
for name in importlib.metadata.packages_distributions():
    if name not in torchs_own.split() and name not in ("planners", "datagen"):
        sys.modules[name] = None
assert sys.modules["pydantic"] is sys.modules["numba"] is sys.modules["yaml"] is None
import numpy, torch
from planners import load_planner
planner = load_planner({str(trial)!r})
route = planner.solve(numpy.ones((6, 7)), start=(4, 5), goal=(1, 1))
print(route.cells[0].tolist(), route.values.shape)
for core in {list(map(str, made.values()))!r}:
    plan = load_planner(core).planner.plan(*torch.ones(2, 1, 1, 5, 5))
    plan.logits.sum().backward()
    print(plan.kernel)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[4, 5] (6, 7)"] + ["reference: numba is not installed"] * 4, done.stderr


def test_a_planner_that_reads_more_than_a_map_says_so():
    planner = RoutePlanner(build_planner(PlannerSpec(core="vin", hidden_channels=4, q_channels=4, channels=3)))
    with pytest.raises(PlannerError, match="reads 3 channels beside map and goal"):
        planner.solve(np.ones((5, 5)), start=(2, 2), goal=(1, 1))


@pytest.mark.parametrize(
    "places, names, to_write",
    [
        (((3, 3), (0, 1)), {}, "give goal and start by name, goal=..., start=..."),
        (((3, 3),), {"start": (0, 1)}, "give goal by name, goal=..."),
    ],
)
def test_goal_and_start_by_place_work_with_a_warning(places, names, to_write):
    expected = exact().solve(np.ones((4, 4)), start=(0, 1), goal=(3, 3))
    with pytest.warns(DeprecationWarning, match=rf"RoutePlanner\.solve: {to_write}; by place goes with") as told:
        route = exact().solve(np.ones((4, 4)), *places, **names)
    assert told[0].filename == __file__ and route.goal == (3, 3)
    np.testing.assert_array_equal(route.cells, expected.cells)


@pytest.mark.parametrize(
    "places, names, message",
    [
        ((), {"goal": (0, 0)}, "'start'"),
        (((0, 0),), {"goal": (0, 0), "start": (1, 1)}, "takes 2 positional arguments"),
        (((0, 0), (1, 1), 5), {}, "takes 2 positional arguments"),
    ],
)
def test_goal_and_start_are_each_given_once(places, names, message):
    with pytest.raises(TypeError, match=message):
        exact().solve(np.ones((4, 4)), *places, **names)


@pytest.mark.slow
def test_a_route_is_drawn(tmp_path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    grid = np.ones((5, 6))
    grid[2, :4] = 0
    route = exact().solve(grid, start=(0, 0), goal=(4, 0))
    axes = plot(route)
    assert "arrives at cost 12" in axes.get_title()
    x, y = axes.lines[0].get_data()
    np.testing.assert_array_equal(np.stack([y, x], 1), route.cells)
    axes.figure.savefig(tmp_path / "route.png")
    assert plot(route, axes) is axes
    pyplot.close(axes.figure)


@pytest.mark.parametrize(
    "cell",
    [
        [(1, 1), (2, 2)], (1.0, 1.0), (True, False), (np.True_, 1), None, 3, "12", (1,), (1, 1, 1), {0: 1, 1: 2},
        (1, None), np.array([1.0, 1.0]), np.ones((2, 2), int), torch.tensor([1.0, 1.0]), (10**30, 0),
        (np.ma.masked, 1), (1, np.nan),
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_cell_is_told_in_one_line(cell):
    for name in ("goal", "start"):
        with pytest.raises(
            PlannerError, match=rf"^{name}: expected row and column of a cell of the \(4, 4\) map"
        ) as told:
            exact().solve(np.ones((4, 4)), **{"goal": (0, 0), "start": (1, 1)} | {name: cell})
        assert "\n" not in str(told.value) and len(str(told.value)) < 200


@pytest.mark.parametrize("cell", [[1, 2], np.array([1, 2]), torch.tensor([1, 2]), (np.int16(1), np.uint8(2))], ids=repr)
def test_any_two_whole_numbers_are_a_cell(cell):
    route = exact().solve(np.ones((4, 4)), start=cell, goal=cell)
    assert route.goal == (1, 2) and type(route.goal[0]) is int and route.arrives


MASKED = np.ma.masked_array(np.ones((3, 5)), mask=np.tile(np.arange(5) == 2, (3, 1)))


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (
            np.full((64, 64), 255, np.uint8),
            "got uint8 .64, 64. with values from 255 up to 255; of an image, image > 127",
        ),
        (np.array([[1.0, np.nan], [1.0, 1.0]]), r"float64 \[2, 2\] with NaN"),
        (np.array([[1, -1], [1, 1]]), r"values from -1 up to 1$"),
        (np.full((2, 2), 0.3), "values from 0.3 up to 0.3$"),
        (np.full((2, 2), np.inf), "values from inf up to inf$"),
        (MASKED, r"grid: 3 cells are masked, neither free nor obstacle; grid.filled\(0\) makes obstacles"),
        (list(MASKED), "grid: 3 cells are masked"),
        ([[1, 1], [1]], "got a list that is none"),
        (torch.ones(3, 3, requires_grad=True), "got a Tensor that is none"),
        ([["a", "b"], ["c", "d"]], "got <U1"),
        (np.ones((2, 2), complex), "got complex128"),
        (None, "got object"),
    ],
    ids=lambda part: None if isinstance(part, str) else type(part).__name__,
)
def test_what_is_no_map_is_told_in_one_line(grid, message):
    with pytest.raises(PlannerError, match=message) as told:
        exact().solve(grid, start=(1, 1), goal=(1, 0))
    assert "\n" not in str(told.value)


def test_a_masked_array_without_masked_cells_is_a_map():
    assert exact().solve(np.ma.masked_array(np.ones((3, 5)), mask=False), start=(1, 4), goal=(1, 0)).arrives


@pytest.mark.parametrize("k", [0, -3, 2.5, True, "9"])
def test_a_number_of_steps_is_a_number(k):
    with pytest.raises(PlannerError, match="k: expected a whole number of steps, at least 1, got"):
        exact().solve(np.ones((4, 4)), start=(1, 1), goal=(0, 0), k=k)


def ends(actions, goal=(0, 3), free=None, **fields):
    """A route by a policy that is given."""
    actions = np.array(actions)
    free = np.ones(actions.shape, np.uint8) if free is None else np.array(free, np.uint8)
    cells, cost = followed(actions, free, goal, (0, 0), fields.get("moves", FOUR))
    parts = {"values": np.arange(actions.size, dtype=np.float32).reshape(actions.shape), "residual": 1e-6, "steps": 8}
    parts |= {"converged": True, "trace": np.zeros(8, np.float32), "arrives": tuple(cells[-1]) == goal}
    return Route(cells=cells, cost=cost, actions=actions, grid=free, goal=goal, **parts | fields)


def test_a_route_says_how_it_ends_and_what_to_try():
    south, west, east = 2, 1, 3
    assert ends([[east] * 4]).outcome == "arrives" and ends([[east] * 4]).advice == ""
    assert "has not converged in 8 steps (residual 1.0e-01): try k=16" in ends(
        [[east] * 4], residual=0.1, converged=False
    ).advice  # fmt: skip
    lost = ends([[east, west, east, east]], converged=False, residual=0.1)
    assert lost.outcome == "cycles" and "the goal is 3 moves away: try k=16" in lost.advice
    wall = ends([[south] * 4, [east] * 4], free=[[1, 1, 1, 1], [0, 1, 1, 1]])
    assert (
        wall.outcome == "bumps" and "the policy bumps at (0, 0) nevertheless: more steps change nothing" in wall.advice
    )
    assert ends([[west] * 4]).outcome == "leaves the map"
    assert ends([[west] * 4], moves=FOUR_WRAP).outcome == "arrives"
    assert ends([[east] * 4], free=[[1, 1, 0, 1]]).advice == "no way leads from (0, 0) to (0, 3)"
    assert "trained unrolled, and more than its 8 steps may make it worse" in ends([[west] * 4], all_steps=True).advice
    assert "diverged" in ends([[west] * 4], residual=float("inf"), converged=False).advice


def test_a_goal_too_far_for_the_discount_is_told():
    length = 500
    actions, values = np.full((1, length), 1), 50 + 0.99 ** np.arange(length - 1, -1, -1, dtype=np.float32)[None]
    far = ends(actions, (0, length - 1), values=values, discount=0.99)
    assert "converged" in far.advice and "499 moves away and too little of its pull is left" in far.advice
    assert "a discount of 0.99 leaves 0.007" in far.advice


def test_larger_maps_get_more_steps_as_the_planner_was_trained_or_is_tested(trial, tmp_path):
    own = json.loads((trial / "spec.json").read_text())
    plan = {}
    for name, change, rule in (
        ("as it was trained", {}, None),
        ("tested with more", {}, 4.5),
        ("unrolled", {"adjoint": "unrolled"}, None),
    ):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(trial / "checkpoint.pt", folder)
        spec = own | {"planner": own["planner"] | change, "data": {"map_size": 9}}
        (folder / "spec.json").write_text(json.dumps(spec))
        if rule is not None:
            (folder / "test_steps.json").write_text(json.dumps(trial_files.sealed({"steps_per_row": rule})))
        planner = dataclasses.replace(load_planner(folder), tolerance=0.0)
        plan[name] = [
            planner.solve(np.ones(shape), start=(1, 2), goal=(1, 1)).steps for shape in ((5, 5), (9, 9), (4, 30))
        ]
    assert plan == {"as it was trained": [12, 12, 40], "tested with more": [23, 41, 135], "unrolled": [12, 12, 12]}
    rules = tmp_path / "tested with more" / "test_steps.json"
    rules.write_text(json.dumps(trial_files.sealed({"steps_per_row": -1})))
    with pytest.raises(PlannerError, match=r"test_steps.json: steps_per_row: expected .*, at most 1000, got -1"):
        load_planner(rules.parent)
    rules.write_text(json.dumps(trial_files.sealed({"steps_per_row": 4.5})).replace("4.5", "5.5"))
    with pytest.raises(PlannerError, match=r"test_steps.json: damaged: its checksum does not fit"):
        load_planner(rules.parent)
    rules.write_text('{"steps_per_row": 4.5}')
    with pytest.raises(PlannerError, match=r"test_steps.json: damaged: has no checksum; remove it, and the sweep's"):
        load_planner(rules.parent)


def test_fuzzed_steps_of_a_test_are_the_same_or_refused(tmp_path):
    path = tmp_path / trial_files.STEPS_FILE
    written = json.dumps(trial_files.sealed({"steps_per_row": 4.5})).encode() + b"\n"
    for number in range(EXAMPLES):
        path.write_bytes(mutated(written, number))
        try:
            assert trial_files.read_steps_per_row(tmp_path) == 4.5
        except trial_files.PlannerError as error:
            assert "test_steps.json: " in str(error) and "\n" not in str(error)


def test_a_route_round_the_torus_is_drawn_with_breaks_at_the_seam():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    planner = exact(FOUR_WRAP, wrap=True)
    for start, goal in (((9, 16), (9, 1)), ((1, 4), (17, 4))):
        route = planner.solve(np.ones((18, 18)), start=start, goal=goal)
        assert route.arrives and route.cost == min(route.cost, 3.0)
        axes = plot(route)
        strokes = [line.get_xydata() for line in axes.lines if len(line.get_xydata()) > 1]
        assert len(strokes) == 2 and max(np.abs(np.diff(stroke, axis=0)).max() for stroke in strokes) <= 1
        pyplot.close(axes.figure)
