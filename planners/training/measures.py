"""What else there is to say of a policy: success by length and by detour, path-independence, what the residual tells.

- By *length*: the cost of the shortest path of a start.
- By *detour*: the way round that an adjacent wall would save. Were the wall w beside x free, its way would be
  c(x, w) + min_n (c(w, n) + d(n)) over the free neighbours n of w; what that saves of d(x) is the detour, the largest
  over the walls beside x, 0 where none saves anything. A planner to which a wall is a price walks through it there.
- *Path-independence*: the mean cosine of the fixed points from two starts (asymptotic alignment; Anil et al., "Path
  independent equilibrium models can better exploit test-time computation", 2022). The second start is drawn for each
  problem from the normal distribution with the mean and the deviation of the first fixed point, seeded by the
  problem's number. Only where a start is free to choose: not where values are settled from the goal (`reachability`),
  swept in place, or where the map enters through the start (`spt` without `inject_map`).
- *AUROC of the residual*: how often a plan whose way from its one start (as `exact` judges it) is wrong has a larger
  residual than one whose way is right; ties count half. 0.5 tells nothing, 1 tells all.
- *Cost ratio* and *cost rank*: see `planners.training.costs`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from datagen.problem import Moves
from planners.compiled.solvers import BestFirst, GaussSeidel
from planners.cores.reachability import ReachabilityStep
from planners.fixed_points import Solution
from planners.planner import Plan, Planner
from planners.registry import Measure
from planners.training.costs import cost_ratio, rank_correlation
from planners.training.rollout import ENDS, Counts, Measured, Roads, exact_ways, follow, moves_of, parts


@dataclass(frozen=True, eq=False)
class Facts:
    """A policy on a batch of problems, and what it is judged by; as the arguments of `rollout.evaluate_policy`."""

    actions: Tensor
    free: Tensor
    goal: Tensor
    distance: Tensor
    optimal_actions: Tensor
    moves: Moves | Roads
    start: Tensor | None = None

    def take(self, part: slice) -> Facts:
        """Return the same of those maps."""
        return Facts(
            self.actions[part],
            self.free[part],
            self.goal[part],
            self.distance[part],
            self.optimal_actions[part],
            moves_of(self.moves, part),
            None if self.start is None else self.start[part],
        )

    def exact(self) -> Tensor:
        """Return for each map whether the whole way from one start is a shortest one, bool [n]."""
        return exact_ways(self.actions, self.goal, self.distance, self.optimal_actions, self.moves, self.start)


def measure(
    names: Collection[Measure],
    facts: Facts,
    residual: Tensor,
    cosine: Tensor,
    costs: Tensor | None = None,
    recovered: Tensor | None = None,
) -> Measured:
    """Return what was asked for.

    Args:
        names: What.
        facts: The policy.
        residual: [n], of each problem's solve.
        cosine: [n], of its two fixed points; nan where there is one.
        costs: [n, h, w], what cells cost; None where that is all the same.
        recovered: [n, h, w], what a mapper says that they cost, in any unit; nan without one.
    """
    found: dict[str, Any] = {}
    every = [facts.take(part) for part in parts(facts.actions)]
    if "lengths" in names:
        found["lengths"] = merged([counts(some.distance, some) for some in every])
    if "detours" in names and isinstance(facts.moves, Moves):
        found["detours"] = merged([counts(detours(some.free, some.distance, facts.moves), some) for some in every])
    if "path_independence" in names and not cosine.isnan().any():
        found["path_independence"] = float(cosine.double().mean())
    if "residual_auroc" in names:
        found["residual_auroc"] = auroc(residual, ~torch.cat([some.exact() for some in every]).cpu())
    if "cost_ratio" in names:
        found["cost_ratio"] = cost_ratio([vars(some) for some in every])
    if "cost_rank" in names and costs is not None and recovered is not None:
        found["cost_rank"] = rank_correlation(recovered, costs.cpu())
    return Measured(**found)


def counts(quantity: Tensor, facts: Facts) -> Counts:
    """Return the starts that have a way, the goal left out, by a quantity [n, h, w] of theirs."""
    arrived, _ = follow(facts.actions, facts.free.bool(), facts.goal.long(), facts.moves)
    right = ((facts.optimal_actions.long() >> facts.actions) & 1).bool()
    chosen = facts.optimal_actions > 0
    ends = torch.tensor(ENDS, device=quantity.device)
    bins = torch.bucketize(quantity[chosen], ends)
    every = torch.bincount(bins, minlength=len(ENDS)).tolist()
    some = [torch.bincount(bins[part[chosen]], minlength=len(ENDS)).tolist() for part in (arrived, right)]
    last = max((place + 1 for place, count in enumerate(every) if count), default=0)
    starts, arrivals, rights = (tuple(row[:last]) for row in (every, *some))
    return Counts(starts, arrivals, rights)


def merged(parts: Sequence[Counts]) -> Counts:
    """Return the sum of counts."""

    def total(rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        longest = max(map(len, rows), default=0)
        return tuple(sum(row[place] for row in rows if place < len(row)) for place in range(longest))

    return Counts(*(total([getattr(part, name) for part in parts]) for name in ("starts", "arrivals", "right")))


def detours(free: Tensor, distance: Tensor, moves: Moves) -> Tensor:
    """Return for each cell the way round that the best wall beside it would save, float32 [n, h, w].

    Args:
        free: uint8 or bool [n, h, w].
        distance: float32 [n, h, w], inf where there is no way.
        moves: What the actions do; the edge of the map is no wall that could go.
    """
    distance = torch.where(free.bool(), distance, math.inf)
    wall = torch.where(free.bool(), math.inf, 0.0)

    def best(of: Tensor) -> Tensor:
        led = [_ahead(of, offset, moves.wrap) + cost for offset, cost in zip(moves.offsets, moves.costs, strict=True)]
        return torch.stack(led).amin(0)

    through = best(best(distance) + wall)
    saved = (distance - through).clamp(min=0)
    return torch.where(distance.isfinite() & through.isfinite(), saved, torch.zeros_like(saved))


def _ahead(x: Tensor, offset: tuple[int, int], wrap: bool) -> Tensor:
    """Return what lies an offset away from each cell, [n, h, w]; inf beyond the edge."""
    row, column = offset
    rolled = x.roll((-row, -column), dims=(1, 2))
    if not wrap:
        rows, columns = (torch.arange(side, device=x.device) for side in x.shape[1:])
        rolled[:, (rows + row < 0) | (rows + row >= x.shape[1])] = math.inf
        rolled[:, :, (columns + column < 0) | (columns + column >= x.shape[2])] = math.inf
    return rolled


def auroc(score: Tensor, positive: Tensor) -> float | None:
    """Return how often a positive has a larger score than a negative, ties half; None without one of either."""
    high, low = score[positive].double(), score[~positive].double().sort().values
    if not len(high) or not len(low):
        return None
    wins = torch.searchsorted(low, high) + torch.searchsorted(low, high, right=True)
    return float(wins.double().mean() / (2 * len(low)))


def starts_anywhere(planner: Planner, plan: Plan) -> bool:
    """Return whether the planner's iteration may start from any value."""
    settled = isinstance(planner.solver, BestFirst | GaussSeidel) or isinstance(plan.step, ReachabilityStep)
    return not settled and bool(getattr(planner.core, "inject_map", True))


@torch.no_grad()
def cosines(planner: Planner, plan: Plan, numbers: Sequence[int], k_fwd: int | None = None) -> Tensor:
    """Return the cosine of each problem's fixed points from two starts, [B]; nan where no second start is free.

    Args:
        planner: The planner.
        plan: What it found from its own start.
        numbers: The problems' numbers, which seed their second starts.
        k_fwd: Most forward steps; None is the planner's own number.
    """
    value = plan.solution.value
    if not starts_anywhere(planner, plan):
        return torch.full((len(value),), math.nan)
    solver = planner.solver if k_fwd is None else replace(planner.solver, max_steps=k_fwd)
    start = torch.stack([_drawn(one, number) for one, number in zip(value, numbers, strict=True)])
    prepared = getattr(plan.step, "prepared", None)
    other: Solution = planner.adjoint.solve(plan.step if prepared is None else prepared(), start, solver)
    return torch.cosine_similarity(value.double().flatten(1), other.value.double().flatten(1), dim=1).cpu()


def _drawn(value: Tensor, number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    noise = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
    return value.mean() + value.std() * noise
