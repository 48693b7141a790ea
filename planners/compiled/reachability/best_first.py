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
from planners.compiled.reachability.kernel import (
    Leads,
    cheapest,
    read_batch,
    settle_batch,
    solve_batch,
)
from planners.compiled.solvers import BestFirst
from planners.compiled.threads import run_in_threads
from planners.cores.reachability import LEAST_LOG_ADVANTAGE, LookedUp, ReachabilityStep, floor_of
from planners.fixed_points import Implicit
from planners.fixed_points.solution import AdjointRecord, AdjointSlot, Result, Solution

_MOST_PASSES = 100
_ROUNDING = 1e-12


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
    u = _Settle.apply(step.moves, step.taps, found, max(tolerance, _ROUNDING), slot)
    return u, found.solution(u.to(step.moves.dtype), slot)


def policy(step: ReachabilityStep, u: Tensor) -> Tensor:
    """Return the logits at u, [B, actions, h, w]; as `ReachabilityStep.policy` where nothing is looked up."""
    if not (isinstance(step.given, LookedUp) and step.sharp):
        return step.policy(u)
    table, pattern = step.given
    values = u[:, 0].double().contiguous().numpy()
    head = step.head.detach().contiguous().numpy()
    logits = np.empty((len(values), len(head), *values.shape[1:]), head.dtype)
    given = (pattern.numpy(), table.double().contiguous().numpy(), _leads(step), floor_of(u))
    rule = (head.dtype.type(step.scale), LEAST_LOG_ADVANTAGE)
    run_in_threads(read_batch, len(values), *given, head, rule, values, logits)
    return torch.from_numpy(logits)


def _leads(step: ReachabilityStep) -> Leads:
    cells = np.array(step.neighbours)
    return Leads(step.taps.detach().double().exp().contiguous().numpy(), cells // 3 - 1, cells % 3 - 1, step.wrap)


@dataclass(frozen=True, eq=False)
class _Result:
    """What the kernels found.

    Attributes:
        u: float64 [B, h, w].
        taken: int64 [B, h, w], the action taken, -1 for none.
        change: float64 [B], the largest rise of the last sweep.
        steps: int64 [B].
        leads: Where latent actions lead.
        solver: What was asked for.
    """

    u: np.ndarray
    taken: np.ndarray
    change: np.ndarray
    steps: np.ndarray
    leads: Leads
    solver: BestFirst

    @classmethod
    def of(cls, step: ReachabilityStep, solver: BestFirst) -> _Result:
        goal, leads = step.goal, _leads(step)
        batch, _, height, width = goal.shape
        u, taken = np.empty((batch, height, width)), np.empty((batch, height, width), np.int64)
        change, steps = np.empty(batch), np.empty(batch, np.int64)
        goals = (goal[:, 0] == 0).numpy()
        rule = (solver.max_steps, max(solver.tolerance, _ROUNDING))
        out = (u, taken, change, steps)
        if isinstance(step.given, LookedUp) and step.sharp:
            table, pattern = step.given
            costs = cheapest(np.ascontiguousarray(table.numpy().T), leads.p.argmax(axis=1), len(leads.rows))
            run_in_threads(settle_batch, batch, pattern.numpy(), costs, leads, goals, out)
        else:
            given = step.moves.detach().contiguous().numpy()
            run_in_threads(solve_batch, batch, given, leads, goals, step.sharp, rule, out)
        return cls(u, taken, change, steps, leads, solver)

    def solution(self, value: Tensor, slot: AdjointSlot | None = None) -> Solution:
        """Return the solution whose value is given."""
        residual = torch.from_numpy(self.change / (1e-5 + np.abs(self.u).max(axis=(1, 2)))).float()
        settled = torch.from_numpy(self.change == 0.0)
        result = torch.where(settled, int(Result.SETTLED), int(Result.MAX_STEPS)).to(torch.int8)
        steps = torch.from_numpy(self.steps)
        trace = residual.expand(int(steps.max()), -1).clone() if self.solver.record else None
        return Solution(value, residual, steps, result, trace, slot or AdjointSlot())


class _Settle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, moves: Tensor, taps: Tensor, found: _Result, tolerance: float, slot: AdjointSlot) -> Tensor:
        ctx.found, ctx.tolerance, ctx.slot = found, tolerance, slot
        ctx.shape, ctx.dtype = moves.shape, moves.dtype
        return torch.from_numpy(found.u).unsqueeze(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("the flow of a gradient can't be differentiated again (create_graph=True)")
        found, gradient = ctx.found, grads[0][:, 0].double().contiguous().numpy()
        batch = len(gradient)
        p = found.leads.p
        total, of_taps, left = np.empty(gradient.shape), np.empty((batch, *p.shape)), np.empty(batch)
        out = (total, of_taps, left)
        rule = (_MOST_PASSES, ctx.tolerance)
        run_in_threads(flow_batch, batch, found.u, found.taken, found.leads, gradient, rule, out)
        size = np.abs(gradient).sum(axis=(1, 2))
        residual = torch.from_numpy(left / np.maximum(size, np.finfo(float).tiny)).float()
        result = torch.where(residual <= ctx.tolerance, int(Result.SETTLED), int(Result.MAX_STEPS)).to(torch.int8)
        ctx.slot.record = AdjointRecord(residual, torch.ones(batch, dtype=torch.int64), result, residual[None])
        of_moves = torch.zeros(ctx.shape, dtype=ctx.dtype)
        taken = torch.from_numpy(found.taken).unsqueeze(1)
        of_moves.scatter_(1, taken.clamp(min=0), torch.from_numpy(total).unsqueeze(1).to(ctx.dtype))
        return of_moves, torch.from_numpy(of_taps.sum(axis=0)).to(ctx.dtype), None, None, None
