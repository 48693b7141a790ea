"""Best-first solution of reachability, exact where each action has one destination, and its adjoint in one pass.

The fixed point of max-probability planning is a tree of best ways. Where each latent action leads to one neighbour,
cells are settled in the order of their cost of arriving, each once (Dijkstra's algorithm with buckets); while training
still mixes destinations, cells are updated in place, sweep after sweep. The adjoint system is a flow of the gradient
down the tree. Values are float64 throughout, and the policy reads them so: a million steps away, neighbours differ by a
part in a million.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from planners.compiled.reachability.flow import flow_batch
from planners.compiled.reachability.kernel import Leads, settle_batch, solve_batch
from planners.compiled.reachability.policy import Reading, read_batch
from planners.compiled.reachability.waves import Waves, look_up_batch, offsets_of, spread_batch
from planners.compiled.solvers import BestFirst
from planners.compiled.threads import run_in_threads
from planners.cores.patterns import LookedUp
from planners.cores.reachability import LEAST_LOG_ADVANTAGE, ReachabilityStep
from planners.fixed_points import Implicit
from planners.fixed_points.solution import AdjointRecord, AdjointSlot, Result, Solution

_MOST_PASSES = 100
_ROUNDING = 1e-12
_FEWEST_CELLS = 16
"""From this size on, what has no way is so far below the rest that its advantage is the least."""


def unsupported(step: ReachabilityStep, solver: Any, adjoint: Any) -> str | None:
    """Return why the value and its gradient can't be found best first, or None when they can."""
    if not isinstance(solver, BestFirst):
        return f"Reachability is compiled for the solver best_first alone; the solver is {type(solver).__name__}"
    if step.goal.device.type != "cpu":
        return "best_first works on the CPU"
    flows = isinstance(adjoint, Implicit) and isinstance(adjoint.solver, BestFirst)
    if torch.is_grad_enabled() and not flows:
        return "the adjoint system is solved by the generic operations"
    return None


def solve(step: ReachabilityStep, dtype: torch.dtype, solver: BestFirst) -> Solution:
    """Return log v*, [B, 1, h, w], not differentiable."""
    found = _Result.of(step, solver)
    return found.solution(torch.from_numpy(found.u).unsqueeze(1).to(dtype))


def fixed_point(step: ReachabilityStep, solver: BestFirst, adjoint: Any) -> tuple[Tensor, Solution]:
    """Return log v* in float64, [B, 1, h, w], and the solution in the core's own type; differentiable."""
    found = _Result.of(step, solver)
    if not torch.is_grad_enabled():
        u = torch.from_numpy(found.u).unsqueeze(1)
        return u, found.solution(u.to(step.goal.dtype))
    slot = AdjointSlot()
    tolerance = getattr(getattr(adjoint, "solver", None), "tolerance", 0.0)
    u = _Settle.apply(step.moves, step.taps, step.costs, found, max(tolerance, _ROUNDING), slot)
    return u, found.solution(u.to(step.moves.dtype), slot)


def policy(step: ReachabilityStep, u: Tensor) -> Tensor:
    """Return the logits at u, [B, actions, h, w]; as `ReachabilityStep.policy` where nothing is looked up."""
    if not (isinstance(step.given, LookedUp) and step.sharp) or step.costs is not None:
        return step.policy(u)
    assert isinstance(step.floor, float)
    pattern, values = step.given.pattern.numpy(), u[:, 0].double().contiguous().numpy()
    reading, waves = _reading(step), _waves(step)
    logits = np.empty((len(values), len(reading.head), *values.shape[1:]), reading.head.dtype)
    offsets = offsets_of(reading.leads, values.shape[2])
    if waves is None or values[:1].size < _FEWEST_CELLS or len(offsets) != 1 + len(reading.head):
        table = step.given.table.double().contiguous().numpy()
        run_in_threads(read_batch, len(values), pattern, table, step.floor, reading, values, logits)
    else:
        run_in_threads(look_up_batch, len(values), pattern, waves, offsets, step.floor, values, logits)
    return torch.from_numpy(logits)


def _leads(step: ReachabilityStep) -> Leads:
    cells = np.array(step.neighbours)
    return Leads(step.taps.detach().double().exp().contiguous().numpy(), cells // 3 - 1, cells % 3 - 1, step.wrap)


def _reading(step: ReachabilityStep) -> Reading:
    leads, head = _leads(step), step.head.detach().contiguous().numpy()
    return Reading(leads, leads.p.argmax(axis=1), head, head.dtype.type(step.scale), LEAST_LOG_ADVANTAGE)


def _waves(step: ReachabilityStep) -> Waves | None:
    """Return what the table of patterns comes to where all that survives costs the same and no map wraps, or None."""
    assert isinstance(step.given, LookedUp)
    if step.wrap or step.costs is not None:
        return None
    derived = step.given.derived
    if "waves" not in derived:
        derived["waves"] = _equal_costs(step.given.table, _reading(step))
    waves: Waves | None = derived["waves"]
    return waves


def _equal_costs(table: Tensor, reading: Reading) -> Waves | None:
    moves = table.double().numpy()
    survives = moves > -np.inf
    costs = np.unique(-moves[survives])
    # A number of 24 bits, summed 2^29 times in float64, is its multiple to the bit.
    if table.dtype != torch.float32 or len(costs) != 1 or not 0.0 < costs[0] < 1.0:
        return None
    to = np.eye(len(reading.leads.rows))[reading.destination]
    leading = survives.astype(float) @ to > 0
    scaled = reading.head.T.astype(np.float64) * reading.scale
    weights = np.einsum("pa,at,ak->pkt", survives, to, scaled)
    # An action that does not survive has the least advantage.
    rest = reading.least * (~survives).astype(float) @ scaled
    parts = (weights.astype(reading.head.dtype), rest.astype(reading.head.dtype))
    ways = np.packbits(leading[:, 1:], axis=1, bitorder="little")[:, 0]
    return Waves(float(costs[0]), ways, np.where(leading, 0.0, -np.inf), *parts, reading.least)


@dataclass(frozen=True, eq=False)
class _Result:
    """What the kernels found.

    Attributes:
        u: float64 [B, h, w].
        taken: int64 [B, h, w], the action taken, -1 for none; empty where no gradient can be asked for.
        change: float64 [B], the largest rise of the last sweep.
        steps: int64 [B].
        leads: Where latent actions lead.
        costs: float64 [B, h, w], what entering each cell costs beside its moves.
        solver: What was asked for.
    """

    u: np.ndarray
    taken: np.ndarray
    change: np.ndarray
    steps: np.ndarray
    leads: Leads
    costs: np.ndarray
    solver: BestFirst

    @classmethod
    def of(cls, step: ReachabilityStep, solver: BestFirst) -> _Result:
        leads, goals = _leads(step), (step.goal[:, 0] == 0).numpy()
        batch, height, width = goals.shape
        u, change, steps = np.empty(goals.shape), np.empty(batch), np.empty(batch, np.int64)
        costs, priced = np.zeros(goals.shape), step.costs is not None
        if step.costs is not None:
            costs = step.costs.detach()[:, 0].double().contiguous().numpy()
        looked_up = step.given if isinstance(step.given, LookedUp) and step.sharp else None
        waves = None if looked_up is None else _waves(step)
        if looked_up is not None and waves is not None:
            given = (looked_up.pattern.numpy(), waves, offsets_of(leads, width)[1:], goals, step.floor)
            run_in_threads(spread_batch, batch, *given, (u, change, steps))
            return cls(u, np.empty((0, 0, 0), np.int64), change, steps, leads, costs, solver)
        taken = np.empty(goals.shape, np.int64)
        floor = np.broadcast_to(np.asarray(step.floor, np.float64).reshape(-1), batch).copy()
        out = (u, taken, change, steps)
        if not step.sharp:
            moves = step.moves.detach().contiguous().numpy()
            rule = (solver.max_steps, max(solver.tolerance, _ROUNDING), -np.inf if priced else step.floor)
            run_in_threads(solve_batch, batch, moves, costs, leads, goals, floor, rule, out)
        else:
            if looked_up is None:
                row = np.arange(height * width, dtype=np.int32).reshape(1, height, width)
                table = step.moves.detach().flatten(2).contiguous().numpy()
            else:
                row, table = looked_up.pattern.numpy(), looked_up.table.T.unsqueeze(0).contiguous().numpy()
            entering = costs if priced else costs[:0]
            run_in_threads(settle_batch, batch, row, table, entering, leads, goals, floor, out)
        return cls(u, taken, change, steps, leads, costs, solver)

    def solution(self, value: Tensor, slot: AdjointSlot | None = None) -> Solution:
        """Return the solution whose value is given."""
        size = np.abs(self.u).max(axis=(1, 2)) if self.change.any() else 1.0
        residual = torch.from_numpy(self.change / (1e-5 + size)).float()
        settled = torch.from_numpy(self.change == 0.0)
        result = torch.where(settled, int(Result.SETTLED), int(Result.MAX_STEPS)).to(torch.int8)
        steps = torch.from_numpy(self.steps)
        trace = residual.expand(int(steps.max()), -1).clone() if self.solver.record else None
        return Solution(value, residual, steps, result, trace, slot or AdjointSlot())


class _Settle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        moves, _, costs, found, tolerance, slot = given
        ctx.found, ctx.tolerance, ctx.slot = found, tolerance, slot
        ctx.shape, ctx.dtype, ctx.of_costs = moves.shape, moves.dtype, None if costs is None else costs.dtype
        return torch.from_numpy(found.u).unsqueeze(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("the flow of a gradient can't be differentiated again (create_graph=True)")
        found, gradient = ctx.found, grads[0][:, 0].double().contiguous().numpy()
        batch = len(gradient)
        p = found.leads.p
        total, entered, left = np.empty(gradient.shape), np.empty(gradient.shape), np.empty(batch)
        of_taps = np.empty((batch, *p.shape))
        out = (total, entered, of_taps, left)
        rule = (_MOST_PASSES, ctx.tolerance)
        run_in_threads(flow_batch, batch, found.u, found.taken, found.costs, found.leads, gradient, rule, out)
        size = np.abs(gradient).sum(axis=(1, 2))
        residual = torch.from_numpy(left / np.maximum(size, np.finfo(float).tiny)).float()
        result = torch.where(residual <= ctx.tolerance, int(Result.SETTLED), int(Result.MAX_STEPS)).to(torch.int8)
        ctx.slot.record = AdjointRecord(residual, torch.ones(batch, dtype=torch.int64), result, residual[None])
        of_moves = torch.zeros(ctx.shape, dtype=ctx.dtype)
        taken = torch.from_numpy(found.taken).unsqueeze(1)
        of_moves.scatter_(1, taken.clamp(min=0), torch.from_numpy(total).unsqueeze(1).to(ctx.dtype))
        of_costs = None if ctx.of_costs is None else torch.from_numpy(-entered).unsqueeze(1).to(ctx.of_costs)
        return of_moves, torch.from_numpy(of_taps.sum(axis=0)).to(ctx.dtype), of_costs, None, None, None
