"""From a trial directory to a route: what a notebook does, with nothing but torch and numpy's company."""

import json
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch

from datagen.expert import goal_distances
from datagen.navigation import draw
from datagen.problem import FOUR, FOUR_WRAP, Moves
from datagen.task import DatasetSpec
from planners import PlannerSpec, RoutePlanner, TrainingSpec, build_planner, load_planner, plot
from planners.routes import PlannerError, _follow
from planners.training import Trainer

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
            route = planner.solve(map_, tuple(goal), tuple(start))
            assert route.arrives and route.converged and route.cost == distance[tuple(start)]
            assert tuple(route.cells[0]) == tuple(start) and tuple(route.cells[-1]) == tuple(goal)
            assert len(route.cells) == route.cost + 1 and map_[tuple(route.cells.T)].all()
            reach = np.isfinite(distance)
            np.testing.assert_array_equal(-route.values[reach], distance[reach])


def test_a_route_ends_at_a_bump_and_at_a_cycle():
    free = np.ones((1, 4), np.uint8)
    east, west = 3, 1
    cells, cost = _follow(np.array([[east, west, east, east]]), free, (0, 3), (0, 0), FOUR)
    assert cells.tolist() == [[0, 0], [0, 1]] and cost == 1.0
    cells, _ = _follow(np.array([[0, 0, 0, 0]]), free, (0, 3), (0, 0), FOUR)
    assert cells.tolist() == [[0, 0]]
    diagonal = Moves(names=("d",), offsets=((1, 1),), costs=(1.5,))
    cells, cost = _follow(np.zeros((3, 3), int), np.ones((3, 3), np.uint8), (2, 2), (0, 0), diagonal)
    assert cost == 3.0 and len(cells) == 3


def test_a_trial_becomes_a_planner_for_maps_of_any_size(trial):
    planner = load_planner(trial)
    rng = np.random.default_rng(0)
    for shape in ((9, 9), (5, 14), (21, 8)):
        grid = rng.random(shape) < 0.8
        grid[1, 1] = grid[2, 3] = True
        route = planner.solve(grid, (1, 1), (2, 3))
        assert route.values.shape == route.actions.shape == shape
        assert route.steps <= 12 and len(route.trace) == route.steps
        assert route.residual == pytest.approx(route.trace[-1])
    longer = planner.solve(grid, (1, 1), (2, 3), k=200)
    assert longer.steps > 12 or longer.converged


def test_it_plans_as_the_planner_it_comes_from(trial):
    planner = load_planner(trial)
    problems = draw(DATA, "test", 0, 8)
    for map_, goal in zip(problems.map, problems.goal, strict=True):
        x = torch.zeros(2, 1, 1, 9, 9)
        x[0, 0, 0], x[1, 0, 0, goal[0], goal[1]] = torch.from_numpy(map_).float(), 1.0
        expected = planner.planner.plan(x[0], x[1])
        route = planner.solve(map_, tuple(goal), tuple(goal))
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


def test_it_needs_torch_and_numpy_alone(tmp_path, trial):
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
route = planner.solve(numpy.ones((6, 7)), goal=(1, 1), start=(4, 5))
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
        planner.solve(np.ones((5, 5)), (1, 1), (2, 2))


def test_a_route_is_drawn(tmp_path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    grid = np.ones((5, 6))
    grid[2, :4] = 0
    route = exact().solve(grid, (4, 0), (0, 0))
    axes = plot(route)
    assert "arrives at cost 12" in axes.get_title()
    x, y = axes.lines[0].get_data()
    np.testing.assert_array_equal(np.stack([y, x], 1), route.cells)
    axes.figure.savefig(tmp_path / "route.png")
    assert plot(route, axes) is axes
    pyplot.close(axes.figure)
