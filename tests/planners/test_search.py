"""Searches give cheapest ways behind the planners' `solve`, and a learned value spares them expansions."""

import importlib.util
import math

import numpy as np
import pytest

from datagen.expert.grid import goal_distances, solve
from datagen.problem import FOUR, FOUR_WRAP, Moves
from planners import PlannerSpec, RoutePlanner, SearchPlanner, build_planner, load_planner, plot
from planners.inference import PlannerError
from planners.search import ALGORITHMS, learned_heuristic, without_walls

EIGHT = Moves(
    ("n", "w", "s", "e", "nw", "sw", "se", "ne"),
    ((-1, 0), (0, -1), (1, 0), (0, 1), (-1, -1), (1, -1), (1, 1), (-1, 1)),
    (1.0,) * 4 + (math.sqrt(2),) * 4,
)
SKFMM = importlib.util.find_spec("skfmm") is not None


def worlds(count=6, shape=(11, 13), seed=0):
    chance = np.random.default_rng(seed)
    for _ in range(count):
        free = (chance.random(shape) < 0.75).astype(np.uint8)
        start, goal = (tuple(map(int, cell)) for cell in chance.permutation(np.argwhere(free))[:2])
        yield free, start, goal, chance.random(shape) * 3


@pytest.mark.parametrize("algorithm", ["a_star", "dijkstra", "breadth_first"])
@pytest.mark.parametrize("moves", [FOUR, FOUR_WRAP, EIGHT], ids=["four", "torus", "eight"])
def test_ways_are_shortest(algorithm, moves):
    arrives = 0
    for free, start, goal, _ in worlds():
        if algorithm == "breadth_first" and moves is EIGHT:
            with pytest.raises(PlannerError, match="moves that cost the same"):
                SearchPlanner(algorithm, moves).solve(free, start=start, goal=goal)
            continue
        route = SearchPlanner(algorithm, moves).solve(free, start=start, goal=goal)
        best = goal_distances(free[None], np.array([goal], np.int16), moves)[0][start]
        assert route.arrives == np.isfinite(best)
        if route.arrives:
            arrives += 1
            assert route.cost == pytest.approx(best, rel=1e-6) and route.outcome == "arrives" and not route.advice
            assert tuple(route.cells[0]) == start and tuple(route.cells[-1]) == goal and free[*route.cells.T].all()
            assert route.values[start] == pytest.approx(-best, rel=1e-6)
        else:
            assert route.advice == f"no way leads from {start} to {goal}" and route.cells.tolist() == [list(start)]
    assert arrives >= 3 or (algorithm, moves) == ("breadth_first", EIGHT)


def test_costs_are_paid_as_trained_planners_pay_them():
    planner = load_planner("reachability")
    for free, start, goal, costs in worlds():
        own = planner.solve(free, start=start, goal=goal, costs=costs)
        for algorithm in ("a_star", "dijkstra"):
            route = SearchPlanner(algorithm).solve(free, start=start, goal=goal, costs=costs)
            assert route.arrives == own.arrives
            assert not route.arrives or route.cost == pytest.approx(own.cost, rel=1e-6)


@pytest.mark.parametrize("moves", [FOUR, FOUR_WRAP, EIGHT], ids=["four", "torus", "eight"])
def test_the_heuristic_is_the_distance_without_walls(moves):
    open_map = np.ones((1, 7, 9), np.uint8)
    exact = goal_distances(open_map, np.array([[2, 6]], np.int16), moves)[0]
    np.testing.assert_allclose(without_walls((7, 9), (2, 6), moves), exact, rtol=1e-6)
    assert not without_walls((7, 9), (2, 6), Moves(("knight",), ((1, 2),), (1.0,))).any()


def test_a_star_expands_fewer_cells_and_with_the_learned_value_hardly_more_than_the_way():
    planner, total = load_planner("reachability"), np.zeros(3)
    for free, start, goal, costs in worlds(8, (21, 21), seed=3):
        for given in (None, costs):
            learned = learned_heuristic(planner, free, goal=goal, costs=given)
            world = {"start": start, "goal": goal, "costs": given}
            found = [
                SearchPlanner("dijkstra").solve(free, **world),
                SearchPlanner("a_star").solve(free, **world),
                SearchPlanner("a_star").solve(free, **world, heuristic=learned),
            ]
            assert len({route.arrives for route in found}) == 1
            if found[0].arrives:
                assert found[2].cost == pytest.approx(found[0].cost, rel=1e-5)
                assert found[2].steps <= 1.3 * len(found[2].cells)
                total += [route.steps for route in found]
    assert total[2] < 0.5 * total[1] < 0.5 * total[0]


def test_a_weight_buys_speed_with_cost():
    free, start, goal, _ = next(worlds(1, (25, 25), seed=5))
    best, fast = (SearchPlanner("a_star", weight=w).solve(free, start=start, goal=goal) for w in (1.0, 3.0))
    assert best.cost <= fast.cost <= 3 * best.cost and fast.steps <= best.steps


marches = pytest.mark.skipif(not SKFMM, reason="scikit-fmm is an extra, which `make test` installs")


@marches
@pytest.mark.parametrize("moves", [FOUR, FOUR_WRAP], ids=["edge", "torus"])
def test_fast_marching_arrives_wherever_there_is_a_way(moves):
    for free, start, goal, costs in worlds(10):
        exact = solve(free[None], np.array([goal], np.int16), moves, np.zeros(1, np.uint64)).distance[0][start]
        for given in (None, costs):
            route = SearchPlanner("fast_marching", moves).solve(free, start=start, goal=goal, costs=given)
            assert route.arrives == np.isfinite(exact)
            assert not route.arrives or given is not None or exact <= route.cost <= 1.5 * exact


@marches
@pytest.mark.parametrize("moves", [FOUR, FOUR_WRAP, EIGHT], ids=["edge", "torus", "eight"])
@pytest.mark.parametrize("shape", [(1, 2), (1, 19), (19, 1), (2, 2), (2, 9), (12, 12)], ids=str)
def test_fast_marching_arrives_on_maps_of_any_shape_and_by_costs_of_any_size(moves, shape):
    chance, arrives = np.random.default_rng(sum(shape)), 0
    for _ in range(20):
        free = (chance.random(shape) < 0.7).astype(np.uint8)
        free[0, 0] = 1
        start, goal = (tuple(map(int, cell)) for cell in chance.choice(np.argwhere(free), 2))
        for costs in (None, np.zeros(shape), chance.choice([0.0, 1e-300, 1e-6, 1.0, 1e4, 1e20], size=shape)):
            world = {"start": start, "goal": goal, "costs": costs}
            route, exact = (SearchPlanner(name, moves).solve(free, **world) for name in ("fast_marching", "dijkstra"))
            assert route.arrives == exact.arrives and route.cost >= exact.cost * (1 - 1e-12)
            arrives += route.arrives
    assert arrives


@marches
def test_fast_marching_of_a_goal_alone_and_of_cells_that_cost_nothing():
    march, alone = SearchPlanner("fast_marching").solve, np.zeros((5, 5))
    alone[0, 0] = alone[2, 2] = 1
    away = march(alone, start=(0, 0), goal=(2, 2))
    assert not away.arrives and away.advice == "no way leads from (0, 0) to (2, 2)"
    for grid, cell in ((alone, (2, 2)), ([[1]], (0, 0))):
        there = march(grid, start=cell, goal=cell)
        assert there.arrives and there.cost == 0 and there.cells.tolist() == [list(cell)] and there.values[cell] == 0
    hill = march(np.ones((3, 1)), start=(0, 0), goal=(2, 0), costs=[[0], [1e3], [0]])
    assert hill.arrives and hill.cost == 1e3 and hill.cells.tolist() == [[0, 0], [1, 0], [2, 0]]
    assert hill.values[1, 0] == pytest.approx(-1e3) and hill.actions[:, 0].tolist() == [2, 2, -1]


def test_without_its_library_fast_marching_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "skfmm", None)
    with pytest.raises(PlannerError, match=r"pip install 'idp\[search\]'"):
        SearchPlanner("fast_marching").solve(np.ones((3, 3)), start=(0, 0), goal=(2, 2))


def test_a_search_s_route_is_drawn(tmp_path):
    free, start, goal, _ = next(worlds(1))
    plot(SearchPlanner().solve(free, start=start, goal=goal)).figure.savefig(tmp_path / "route.png")
    assert (tmp_path / "route.png").stat().st_size > 1000


def test_what_cannot_be_is_told():
    assert set(ALGORITHMS) == {"a_star", "breadth_first", "dijkstra", "fast_marching"}
    world = {"start": (0, 0), "goal": (2, 2)}
    for make, told in (
        (lambda: SearchPlanner("a*"), "algorithm: expected a_star"),
        (lambda: SearchPlanner(moves=Moves(links="x:y")), "of a graph"),
        (lambda: SearchPlanner(moves="eight"), "moves: expected datagen.problem.Moves"),
        (lambda: SearchPlanner(weight=-1), "weight: expected a number from 0 on, got -1"),
        (lambda: SearchPlanner(weight=math.nan), "weight: expected a number from 0 on, got nan"),
        (lambda: SearchPlanner("dijkstra", weight=2), "weight: is the heuristic's, and dijkstra has none"),
        (lambda: SearchPlanner("dijkstra").solve(np.ones((3, 3)), **world, heuristic=np.ones((3, 3))), "takes none"),
        (lambda: SearchPlanner().solve(np.ones((3, 3)), **world, heuristic=np.ones((3, 2))), "heuristic: expected"),
        (
            lambda: SearchPlanner().solve(np.ones((3, 3)), **world, heuristic="far"),
            "heuristic: .* got a str that is none",
        ),
        (lambda: SearchPlanner().solve(np.ones((3, 3)), **world, heuristic=[[1], [1, 2]]), "heuristic: .* got a list"),
        (
            lambda: SearchPlanner().solve(np.ones((3, 3)), **world, heuristic=np.ma.masked_equal(np.eye(3), 1)),
            "heuristic: .* or NaN",
        ),
        (lambda: SearchPlanner("breadth_first").solve(np.ones((3, 3)), **world, costs=np.ones((3, 3))), "the same"),
        (lambda: SearchPlanner().solve(np.ones((3, 3)), start=(0, 0), goal=(3, 3)), "goal: expected row and column"),
        (lambda: SearchPlanner().solve(np.ones((3, 3)), **world, costs=-np.ones((3, 3))), "costs: expected finite"),
        (
            lambda: learned_heuristic(RoutePlanner(build_planner(PlannerSpec())), np.ones((3, 3)), goal=(0, 0)),
            "core 'reachability'",
        ),
    ):
        with pytest.raises(PlannerError, match=told):
            make()
