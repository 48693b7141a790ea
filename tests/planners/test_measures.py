"""What tests measure beside success, against brute force."""

import numpy as np
import pytest
import torch

from datagen.expert.grid import goal_distances, optimal_actions
from datagen.problem import FOUR, FOUR_WRAP, Moves
from datagen.tasks import mazes
from datagen.tasks.registry import DatasetSpec
from planners.planner import build_planner
from planners.specs import PlannerSpec
from planners.training import measures
from planners.training.evaluation import evaluate
from planners.training.measures import ENDS, Counts, Facts, auroc, counts, detours, merged

COSTLY = Moves(costs=(1.0, 2.0, 1.0, 0.5))
EVERY = ("lengths", "detours", "path_independence", "residual_auroc")


def world(seed, size=7, share=0.6):
    rng = np.random.default_rng(seed)
    free = (rng.random((6, size, size)) < share).astype(np.uint8)
    goal = rng.integers(0, size, (6, 2)).astype(np.int16)
    free[np.arange(6), goal[:, 0], goal[:, 1]] = 1
    return free, goal, rng


def problems(size=9, count=12, **options):
    spec = DatasetSpec(task="mazes", map_size=size, test=count, options=options)
    return mazes.draw(spec, "test", 0, count)


@pytest.mark.parametrize("moves", [FOUR, FOUR_WRAP, COSTLY], ids=["walls", "wrap", "costs"])
@pytest.mark.parametrize("seed", range(4))
def test_a_detour_is_what_is_saved_once_the_wall_is_gone(moves, seed):
    free, goal, _ = world(seed)
    distance = goal_distances(free, goal, moves)
    expected = np.zeros_like(distance)
    for problem, row, column in np.argwhere(np.isfinite(distance)):
        for down, right in moves.offsets:
            beside = (row + down, column + right)
            if moves.wrap:
                beside = tuple(part % 7 for part in beside)
            if not all(0 <= part < 7 for part in beside) or free[problem][beside]:
                continue
            opened = free[problem].copy()
            opened[beside] = 1
            shorter = goal_distances(opened[None], goal[problem : problem + 1], moves)[0, row, column]
            saved = distance[problem, row, column] - shorter
            expected[problem, row, column] = max(saved, expected[problem, row, column])
    found = detours(*map(torch.from_numpy, (free, distance)), moves)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert expected.max() > 0


@pytest.mark.parametrize("seed", range(4))
def test_starts_are_counted_one_by_one(seed):
    free, goal, rng = world(seed, size=12)
    distance = goal_distances(free, goal, FOUR)
    best = optimal_actions(free, distance, FOUR)
    expert = np.where(best > 0, np.log2(np.maximum(best & -best.astype(np.int16), 1)), 0).astype(np.int64)
    actions = np.where(rng.random(free.shape) < 0.9, expert, rng.integers(0, 4, free.shape))
    facts = Facts(*map(torch.from_numpy, (actions, free, goal, distance, best)), FOUR)
    found = counts(facts.distance, facts)
    expected = np.zeros((3, len(ENDS)), int)
    for problem, row, column in np.argwhere((distance > 0) & np.isfinite(distance)):
        place = next(place for place, end in enumerate(ENDS) if distance[problem, row, column] <= end)
        at, arrives = (row, column), False
        for _ in range(free[0].size):
            down, right = FOUR.offsets[actions[problem][at]]
            to = (at[0] + down, at[1] + right)
            at = to if all(0 <= part < 12 for part in to) and free[problem][to] else at
            arrives = arrives or at == tuple(goal[problem])
            if arrives:
                break
        right_action = best[problem, row, column] >> actions[problem, row, column] & 1
        expected[:, place] += (1, arrives, right_action)
    last = np.flatnonzero(expected[0]).max() + 1
    assert found == Counts(*(tuple(map(int, row[:last])) for row in expected))
    assert 0 < sum(found.arrivals) < sum(found.starts)
    halves = [counts(part.distance, part) for part in (facts.take(slice(0, 3)), facts.take(slice(3, 6)))]
    assert merged(halves) == found


def test_an_auroc_is_how_often_the_wrong_one_is_larger():
    rng = np.random.default_rng(0)
    score, wrong = rng.integers(0, 5, 40).astype(float), rng.random(40) < 0.3
    pairs = [(a, b) for a in score[wrong] for b in score[~wrong]]
    expected = np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs])
    assert auroc(torch.from_numpy(score), torch.from_numpy(wrong)) == pytest.approx(expected)
    assert auroc(torch.ones(3), torch.tensor([True, True, True])) is None
    assert auroc(torch.tensor([1.0, float("inf")]), torch.tensor([False, True])) == 1.0


def test_a_perfect_policy_is_right_in_every_bin():
    given = problems(15, 8, kinds=["perfect"])
    best = given.optimal_actions
    actions = np.where(best > 0, np.log2(np.maximum(best & -best.astype(np.int16), 1)), 0).astype(np.int64)
    facts = Facts(*map(torch.from_numpy, (actions, given.map, given.goal, given.distance, best)), FOUR)
    found = measures.measure(EVERY, facts, torch.zeros(8), torch.ones(8))
    for part in (found.lengths, found.detours):
        assert part.starts == part.arrivals == part.right and sum(part.starts) == (best > 0).sum()
    assert found.path_independence == 1.0 and found.residual_auroc is None
    assert found.lengths.starts[0] == 0 < found.lengths.starts[-1]  # no start is at the goal


SPECS = {
    "contractive": PlannerSpec(core="contractive", discount=0.9, k_fwd=300, tolerance=1e-6),
    "vin": PlannerSpec(core="vin", q_channels=8, adjoint="unrolled", k_fwd=3),
    "gru": PlannerSpec(core="conv_gppn", hidden_channels=4, q_channels=4, k_fwd=8),
    "reachability": PlannerSpec(core="reachability", solver="best_first", solver_bwd="best_first"),
    "swept": PlannerSpec(core="contractive", solver="gauss_seidel"),
    "spt": PlannerSpec(core="spt", embedding=8, heads=2, feedforward=8, k_fwd=3),
}


@pytest.mark.parametrize("name", SPECS)
def test_planners_are_measured_and_success_stays_what_it_was(name):
    torch.manual_seed(0)
    planner = build_planner(SPECS[name])
    given = problems()
    plain = evaluate(planner, given, moves=FOUR)
    found = evaluate(planner, given, moves=FOUR, measures=EVERY, batch_size=5)
    assert plain.measured == measures.Measured()
    assert (plain.success_rate, plain.exact) == (found.success_rate, found.exact)
    measured = found.measured
    assert sum(measured.lengths.starts) == sum(measured.detours.starts) == sum(found.cells_by_distance)
    assert sum(measured.lengths.arrivals) == sum(measured.detours.arrivals) == sum(found.arrivals_by_distance)
    again = evaluate(planner, given, moves=FOUR, measures=EVERY, batch_size=12).measured
    if name in ("reachability", "swept", "spt"):
        assert measured.path_independence is None  # no start is free to choose
    else:
        assert measured.path_independence == pytest.approx(again.path_independence, abs=1e-5)
        assert -1 <= measured.path_independence <= 1 + 1e-9
    if name == "contractive":
        assert measured.path_independence > 1 - 1e-6
    if name == "gru":  # eight steps do not forget where they began
        assert measured.path_independence < 1 - 1e-6
