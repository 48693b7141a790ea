"""How good a policy is: success, optimality and SPL of the greedy policy from every reachable cell of every map.

A deterministic policy is a map from cell to cell. Composing that map with itself doubles the number of steps, so all
roll-outs of a map of S cells end after log2(S) gathers, on whatever device the logits are. On the CPU a compiled
walk that goes through every cell once is faster still.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datagen.problem import Moves
from datagen.shapes import shaped
from planners.compiled.rollout import Policies, sums_over_maps

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64, Integer, Shaped

DISTANCE_BINS = (10.0, 20.0, 40.0, 80.0, 160.0, math.inf)
"""Upper ends of the shortest-path bins in which success is also counted."""

Roads = tuple[Tensor, Tensor]
"""On graphs: where each action leads, int32 [n, h * w, actions], and what that costs, float32 of that shape."""

_CELLS_AT_ONCE = 1 << 23  # bounds the memory of the gathers, not the result


ENDS = (0.0, *(10.0 * 2**power for power in range(20)), math.inf)
"""Upper ends of the bins of `Counts`, in costs of a path: longer than any that a map of 1001x1001 has."""


@dataclass(frozen=True)
class Counts:
    """Starts by the bin of `ENDS` that they fall into, as far as any does.

    Attributes:
        starts: How many.
        arrivals: How many of them arrive.
        right: How many take an optimal action.
    """

    starts: tuple[int, ...]
    arrivals: tuple[int, ...]
    right: tuple[int, ...]


@dataclass(frozen=True)
class Measured:
    """What was asked for; None for the rest, and for what there is none of.

    Attributes:
        lengths: By the cost of the shortest path.
        detours: By the way round that an adjacent wall would save.
        path_independence: Mean cosine, -1..1.
        residual_auroc: 0..1; none where all plans are right, or all wrong.
        cost_ratio: 1 or more; none where no way from a start arrives.
        cost_rank: -1..1; none where cells have no costs, or nothing has recovered them.
    """

    lengths: Counts | None = None
    detours: Counts | None = None
    path_independence: float | None = None
    residual_auroc: float | None = None
    cost_ratio: float | None = None
    cost_rank: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """What a policy achieves on a set of maps; shares are averaged over the cells of a map, then over maps.

    Attributes:
        maps: Number of maps.
        success_rate: Share of the cells that can reach the goal (goal included) whose roll-out arrives.
        success_deviation: Sample standard deviation of that share over the maps (n - 1); 0 for a single map.
        optimality: Share of those cells whose roll-out arrives at the optimal cost.
        spl: Mean of success x optimal cost / cost taken (1 at the goal).
        accuracy: Share of the non-goal cells that can reach the goal whose action is one of the optimal ones; 1 where
            there is no such cell.
        cells_by_distance: Cells per bin of `DISTANCE_BINS` (optimal cost in (previous end, end]).
        arrivals_by_distance: How many of them arrive.
        exact: Share of the maps whose whole way from one start is a shortest one: from the problem's own start, or
            where it names none from the cell that is farthest from the goal (the first such in reading order).
        measured: What else was asked for, see `planners.training.measures`.
        searched: The success of a graph search in the planner's place, on the map that its mapper drew; None where the
            map is given, on which a search always arrives.
    """

    maps: int
    success_rate: float
    optimality: float
    spl: float
    accuracy: float
    cells_by_distance: tuple[int, ...]
    arrivals_by_distance: tuple[int, ...]
    exact: float
    success_deviation: float
    measured: Measured = Measured()
    searched: float | None = None


@shaped
def follow(
    actions: Int64[Tensor, "n h w"], free: Bool[Tensor, "n h w"], goal: Integer[Tensor, "n 2"], moves: Moves | Roads
) -> tuple[Bool[Tensor, "n h w"], Float[Tensor, "n h w"]]:
    """Follow a policy from every cell until it arrives or can no longer arrive.

    Args:
        actions: int64 [n, h, w], the action taken in each cell.
        free: bool [n, h, w], cells that can be entered.
        goal: int64 [n, 2], row and column.
        moves: What the actions do.

    Returns:
        arrived, bool [n, h, w]: the roll-out reaches the goal; cost, float32 [n, h, w]: what it took, where it arrives.
    """
    n, h, w = actions.shape
    cells = h * w
    device = actions.device
    target, inside, cost = _led(actions, moves)
    here = torch.arange(cells, device=device).expand(n, cells)
    enters = inside & free.reshape(n, cells).gather(1, target)
    goal_cell = (goal[:, 0] * w + goal[:, 1]).view(n, 1)
    at_goal = here == goal_cell
    step = torch.where(enters & ~at_goal, target, here)
    cost = cost.masked_fill(at_goal, 0.0)
    for _ in range(max(1, math.ceil(math.log2(cells)))):
        cost = cost + cost.gather(1, step)
        step = step.gather(1, step)
    return (step == goal_cell).view(n, h, w), cost.view(n, h, w)


def _led(actions: Tensor, moves: Moves | Roads) -> tuple[Tensor, Tensor, Tensor]:
    """Return where each cell's action leads, whether that is on the map, and what it costs, [n, h * w] each."""
    n, h, w = actions.shape
    device = actions.device
    if not isinstance(moves, Moves):
        target, cost = (part.gather(2, actions.view(n, h * w, 1)).squeeze(2) for part in moves)
        return target.long(), torch.ones_like(target, dtype=torch.bool), cost
    rows = torch.arange(h, device=device).view(1, h, 1)
    columns = torch.arange(w, device=device).view(1, 1, w)
    offsets = torch.tensor(moves.offsets, device=device)
    to_row, to_column = rows + offsets[actions, 0], columns + offsets[actions, 1]
    if moves.wrap:
        to_row, to_column = to_row % h, to_column % w
        inside = torch.ones_like(to_row, dtype=torch.bool)
    else:
        inside = (to_row >= 0) & (to_row < h) & (to_column >= 0) & (to_column < w)
        to_row, to_column = to_row.clamp(0, h - 1), to_column.clamp(0, w - 1)
    cost = torch.tensor(moves.costs, device=device)[actions]
    return (to_row * w + to_column).view(n, -1), inside.view(n, -1), cost.view(n, -1)


@shaped
def exact_ways(
    actions: Int64[Tensor, "n h w"],
    goal: Integer[Tensor, "n 2"],
    distance: Float[Tensor, "n h w"],
    optimal_actions: Integer[Tensor, "n h w"],
    moves: Moves | Roads,
    start: Integer[Tensor, "n 2"] | None = None,
) -> Bool[Tensor, " n"]:
    """Return for each map whether the whole way from one start is a shortest one, bool [n].

    Args:
        actions: int64 [n, h, w], the action taken in each cell.
        goal: integer [n, 2], row and column.
        distance: float32 [n, h, w], optimal cost to the goal, inf where there is no path.
        optimal_actions: uint8 [n, h, w], bit a set where action a is optimal.
        moves: What the actions do.
        start: integer [n, 2], row and column; None for the cell that is farthest from the goal.
    """
    n, _, w = actions.shape
    if start is None:
        here = torch.where(torch.isfinite(distance), distance, -1.0).view(n, -1).argmax(1)
    else:
        here = start[:, 0].long() * w + start[:, 1].long()
    cells = torch.arange(actions[0].numel(), device=actions.device)
    right = ((optimal_actions.long() >> actions) & 1).bool().view(n, -1)
    step = torch.where(right, _led(actions, moves)[0], cells)
    for _ in range(max(1, math.ceil(math.log2(len(cells))))):
        step = step.gather(1, step)
    return step.gather(1, here.view(n, 1)).squeeze(1) == goal[:, 0].long() * w + goal[:, 1].long()


@shaped
def evaluate_policy(
    actions: Int64[Tensor, "n h w"],
    free: Shaped[Tensor, "n h w"],
    goal: Integer[Tensor, "n 2"],
    distance: Float[Tensor, "n h w"],
    optimal_actions: Integer[Tensor, "n h w"],
    moves: Moves,
    start: Integer[Tensor, "n 2"] | None = None,
) -> Evaluation:
    """Measure a policy by rolling it out from every cell that can reach the goal.

    Args:
        actions: int64 [n, h, w], the greedy action in each cell.
        free: uint8 or bool [n, h, w], 1 where a cell can be entered.
        goal: integer [n, 2], row and column.
        distance: float32 [n, h, w], optimal cost to the goal, inf where there is no path.
        optimal_actions: uint8 [n, h, w], bit a set where action a is optimal.
        moves: What the actions do.
        start: integer [n, 2], the cells that the problems start from, where they name them.

    Returns:
        The measures, averaged over maps.

    Source:
        Definitions of GPPN (Lee et al., 2018) and the authors' code: a bump or a cycle never arrives.
    """
    # DEVIATION(5.1): the authors' SPL scores the goal cell 0, so that a perfect policy stays below 1; ours scores it 1.
    if actions.device.type == "cpu":
        facts = (actions.long(), free.to(torch.uint8), goal.long(), distance.float(), optimal_actions)
        policies = Policies(*(fact.contiguous().numpy() for fact in facts))
        shares, by_distance = sums_over_maps(policies, moves.offsets, moves.costs, moves.wrap, DISTANCE_BINS)
        exact = _exact(actions, goal, distance, optimal_actions, moves, start)
        return _evaluation(len(actions), torch.from_numpy(shares), torch.from_numpy(by_distance), exact)
    return evaluate_by_squaring(actions, free, goal, distance, optimal_actions, moves, start)


@shaped
def evaluate_by_squaring(
    actions: Int64[Tensor, "n h w"],
    free: Shaped[Tensor, "n h w"],
    goal: Integer[Tensor, "n 2"],
    distance: Float[Tensor, "n h w"],
    optimal_actions: Integer[Tensor, "n h w"],
    moves: Moves | Roads,
    start: Integer[Tensor, "n 2"] | None = None,
) -> Evaluation:
    """Do what `evaluate_policy` does, on any device, on graphs too; arguments as there."""
    n = len(actions)
    shares = torch.zeros(5, dtype=torch.float64)
    by_distance = torch.zeros(2, len(DISTANCE_BINS), dtype=torch.int64)
    for part in parts(actions):
        own = moves_of(moves, part)
        arrived, cost = follow(actions[part], free[part].bool(), goal[part].long(), own)
        part_shares, part_by_distance = _sums(actions[part], arrived, cost, distance[part], optimal_actions[part])
        shares += part_shares
        by_distance += part_by_distance
    return _evaluation(n, shares, by_distance, _exact(actions, goal, distance, optimal_actions, moves, start))


def parts(actions: Tensor) -> Iterator[slice]:
    """Yield slices of maps that bound the memory of what is done with each."""
    at_once = max(1, _CELLS_AT_ONCE // actions[0].numel())
    for first in range(0, len(actions), at_once):
        yield slice(first, first + at_once)


def moves_of(moves: Moves | Roads, part: slice) -> Moves | Roads:
    """Return the moves of those maps."""
    return moves if isinstance(moves, Moves) else (moves[0][part], moves[1][part])


def _exact(
    actions: Tensor,
    goal: Tensor,
    distance: Tensor,
    optimal_actions: Tensor,
    moves: Moves | Roads,
    start: Tensor | None,
) -> float:
    right = 0
    for part in parts(actions):
        facts = (actions[part], goal[part], distance[part], optimal_actions[part], moves_of(moves, part))
        right += int(exact_ways(*facts, None if start is None else start[part]).sum())
    return right / len(actions)


def _evaluation(n: int, shares: Tensor, by_distance: Tensor, exact: float) -> Evaluation:
    success_rate, optimality, spl, accuracy, squared = (shares / n).tolist()
    deviation = math.sqrt(max(0.0, squared - success_rate**2) * n / (n - 1)) if n > 1 else 0.0
    cells, arrivals = (tuple(row) for row in by_distance.tolist())
    return Evaluation(n, success_rate, optimality, spl, accuracy, cells, arrivals, exact, deviation)


def _sums(
    actions: Tensor, arrived: Tensor, cost: Tensor, distance: Tensor, optimal_actions: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the per-map shares summed over maps, and the cells and arrivals per bin of distance."""
    reachable = torch.isfinite(distance)
    arrived = arrived & reachable
    slack = (1e-5 * (distance + 1)).clamp(max=0.5)  # rounding, and never a move
    optimal = arrived & (cost <= distance + slack)
    ratio = torch.where(arrived, distance / cost.clamp(min=1e-9), torch.zeros_like(distance))
    ratio = torch.where(arrived & (distance == 0), torch.ones_like(ratio), ratio)
    away = optimal_actions > 0
    right = away & ((optimal_actions.long() >> actions) & 1).bool()

    def shares_of(part: Tensor, whole: Tensor) -> Tensor:
        return part.double().sum((1, 2)) / whole.sum((1, 2)).clamp(min=1)

    def share(part: Tensor, whole: Tensor) -> Tensor:
        return shares_of(part, whole).sum()

    alone = ~away.flatten(1).any(1)  # the goal: nowhere is anything to decide, and nothing is wrong
    accurate = share(right, away) + alone.sum()
    shares = [share(arrived, reachable), share(optimal, reachable), share(ratio, reachable), accurate]
    shares += [shares_of(arrived, reachable).square().sum()]
    ends = torch.tensor(DISTANCE_BINS, device=distance.device)
    bins = torch.bucketize(distance[away], ends)
    counts = [torch.bincount(bins, weights=w, minlength=len(ends)) for w in (None, arrived[away].double())]
    return torch.stack(shares).cpu(), torch.stack([count.long() for count in counts]).cpu()
