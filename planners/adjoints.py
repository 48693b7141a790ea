"""How gradients pass through a fixed point: unrolled, implicit, phantom, one step.

Legend: v* fixed point, J = df/dv at v*, g = dl/dv* incoming gradient, w adjoint vector, K forward steps, B samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from planners.solution import AdjointRecord, AdjointSlot, Result, Solution, Solver, Step
from planners.solvers import (
    Anderson,
    ForwardIteration,
    apply,
    growth_limit,
    has_diverged,
    norm_per_sample,
    relative_residual,
)

Adjoin = Callable[[Step, Tensor, AdjointSlot], Tensor]
"""(J^T, g, slot) -> w."""


@dataclass(frozen=True)
class Unrolled:
    """Algorithmic differentiation through exactly K applications of f (section 3; Eqs. 7-10).

    Memory for the backward pass grows linearly with K. The gradient reaches v0 too.
    """

    def solve(self, f: Step, v0: Tensor, solver: Solver) -> Solution:
        """Return f applied K times to v0 [B, ...], no sample stopping early.

        Args:
            f: The step; may capture tensors that require gradients.
            v0: [B, ...] where to start.
            solver: `ForwardIteration`, whose max_steps is K; its tolerance only labels the result.

        Raises:
            ValueError: For any other solver.
        """
        if not isinstance(solver, ForwardIteration):
            raise ValueError(
                f"adjoint Unrolled differentiates through ForwardIteration, got {type(solver).__name__}; "
                "use Implicit with other solvers"
            )
        z, fz, trace, limit = v0, v0, [], torch.empty(0)
        for k in range(solver.max_steps):
            z, fz = fz, apply(f, fz)
            with torch.no_grad():
                if k == 0:
                    limit = growth_limit(z, fz)
                if solver.record or k == solver.max_steps - 1:
                    trace.append(relative_residual(z, fz))
        with torch.no_grad():
            diverged = has_diverged(fz, trace[-1], limit)
        result = _result(trace[-1], solver.tolerance, diverged)
        steps = torch.full_like(result, solver.max_steps, dtype=torch.int64)
        return Solution(fz, trace[-1], steps, result, torch.stack(trace) if solver.record else None)


@dataclass(frozen=True)
class Implicit:
    """Implicit differentiation at the fixed point (Eqs. 3-6).

    w^T = w^T df/dv + dl/dv*, then dl/d(.) = w^T df/d(.). One application of f is saved, whatever K is. The system is
    solved for each sample from w = g, in the backward pass, which leaves its residual and steps in `Solution.adjoint`;
    where it fails, w is the best iterate found and `adjoint.result` says so. There is no gradient to v0, and the
    backward pass itself cannot be differentiated.

    Args:
        solver: Solver of the adjoint system; its max_steps is K_bwd (section 4.3).
    """

    solver: Solver = field(default_factory=lambda: Anderson(max_steps=15))

    def solve(self, f: Step, v0: Tensor, solver: Solver) -> Solution:
        """Return the solver's fixed point after K - 1 steps and one more application of f, differentiable."""
        return _solve_and_attach(f, v0, solver, self.adjoin)

    def adjoin(self, transposed_jacobian: Step, g: Tensor, slot: AdjointSlot) -> Tensor:
        """Return w with w = J^T w + g, Eq. 6.

        Args:
            transposed_jacobian: w [B, ...] -> J^T w.
            g: [B, ...] incoming gradient.
            slot: Where the record of the solve goes.
        """
        # DEVIATION(4.1): each sample's system is scaled to ||g|| = 1. It is linear, and the offset in the relative
        # residual would otherwise call the small gradients of a mean loss converged before the first step.
        size = norm_per_sample(g)
        size = torch.where((size > 0.0) & torch.isfinite(size), size, 1.0).to(g.dtype)
        size = size.reshape(-1, *[1] * (g.ndim - 1))
        unit = g / size
        found = self.solver.solve(lambda w: transposed_jacobian(w) + unit, unit)
        slot.record = AdjointRecord(found.residual, found.steps, found.result, found.trace)
        return found.value * size


@dataclass(frozen=True)
class Phantom:
    """The phantom gradient: a damped, truncated Neumann series in place of the inverse in Eq. 5.

    w_{j+1} = (1 - damping) w_j + damping (J^T w_j + g) from w_0 = 0, for a few steps. One application of f is saved.
    Geng et al., On training implicit models, 2021 (Neumann-series form).

    Args:
        steps: Terms of the series; one less vector-Jacobian product is spent.
        damping: In (0, 1].
    """

    steps: int = 5
    damping: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not 0.0 < self.damping <= 1.0:
            raise ValueError(f"damping must be in (0, 1], got {self.damping}")

    def solve(self, f: Step, v0: Tensor, solver: Solver) -> Solution:
        """Return the solver's fixed point after K - 1 steps and one more application of f, differentiable."""
        return _solve_and_attach(f, v0, solver, self.adjoin)

    def adjoin(self, transposed_jacobian: Step, g: Tensor, slot: AdjointSlot) -> Tensor:
        """Return the truncated series for w; the record's residual is that of w before its last step."""
        w, image = torch.zeros_like(g), g
        for j in range(self.steps):
            if j > 0:
                image = transposed_jacobian(w) + g
            before, w = w, (1.0 - self.damping) * w + self.damping * image
        residual = relative_residual(before, image)
        steps = torch.full_like(residual, self.steps - 1, dtype=torch.int64)
        slot.record = AdjointRecord(residual, steps, _result(residual, 0.0, ~torch.isfinite(residual)))
        return w


@dataclass(frozen=True)
class OneStep:
    """The one-step, or Jacobian-free, gradient: w = g, as if v* did not depend on what f captures.

    Costs no vector-Jacobian product beyond that of f itself and solves no system, so it leaves no record.
    Fung et al., JFB: Jacobian-free backpropagation for implicit networks, 2022.
    """

    def solve(self, f: Step, v0: Tensor, solver: Solver) -> Solution:
        """Return the solver's fixed point after K - 1 steps and one more application of f, differentiable."""
        found = _solve_before_last(f, v0, solver)
        value = apply(f, found.value)
        return _with_last_step(found, value.detach(), value, solver)


class Attached(torch.autograd.Function):
    """A value whose gradient is handed, as `pull_back` makes it, to the graph of another tensor."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, value: Tensor, pull_back: Step) -> Tensor:  # noqa: D102
        ctx.pull_back = pull_back
        return value.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # noqa: D102
        if torch.is_grad_enabled():
            raise RuntimeError(
                "an implicit gradient cannot be differentiated again (create_graph=True): the adjoint solve is not "
                "recorded; use the Unrolled adjoint for second derivatives"
            )
        return ctx.pull_back(grads[0]), None, None


def transposed_jacobian(output: Tensor, v: Tensor) -> Step:
    """Return w -> w^T d(output)/dv from a graph that is kept for further products."""

    def product(w: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(output, v, w, retain_graph=True, allow_unused=True)
        return torch.zeros_like(v) if gradient is None else gradient

    return product


def _solve_and_attach(f: Step, v0: Tensor, solver: Solver, adjoin: Adjoin) -> Solution:
    """Solve for K - 1 steps, apply f once with its graph, and let `adjoin` turn g into w in the backward pass."""
    found = _solve_before_last(f, v0, solver)
    if not torch.is_grad_enabled():
        value = apply(f, found.value)
        return _with_last_step(found, value, value, solver)
    v = found.value.detach().requires_grad_()
    fv = apply(f, v)
    solution = _with_last_step(found, fv.detach(), fv, solver)
    if not fv.requires_grad:
        return solution
    product, slot = transposed_jacobian(fv, v), solution.slot
    value = Attached.apply(fv, fv.detach(), lambda g: adjoin(product, g, slot))
    return replace(solution, value=value)


def _solve_before_last(f: Step, v0: Tensor, solver: Solver) -> Solution:
    """Return the solution after one step less than the solver allows."""
    if solver.max_steps > 1:
        return replace(solver, max_steps=solver.max_steps - 1).solve(f, v0)  # type: ignore[type-var]
    v0 = v0.detach()
    residual = torch.full_like(norm_per_sample(v0), torch.inf)
    steps = torch.zeros_like(residual, dtype=torch.int64)
    trace = residual.new_zeros(0, v0.shape[0]) if getattr(solver, "record", False) else None
    return Solution(v0, residual, steps, _result(residual, 0.0, torch.zeros_like(steps, dtype=torch.bool)), trace)


@torch.no_grad()
def _with_last_step(found: Solution, image: Tensor, value: Tensor, solver: Solver) -> Solution:
    """Return the solution with `value` = f(found.value), and the quality that this last application showed."""
    residual = relative_residual(found.value, image)
    diverged = (found.result == Result.DIVERGED) | ~torch.isfinite(residual)
    steps, trace = found.steps + 1, None
    if found.trace is not None:
        trace = last_kept(torch.cat((found.trace, residual[None])), steps, residual)
    return Solution(value, residual, steps, _result(residual, solver.tolerance, diverged), trace, found.slot)


def last_kept(trace: Tensor, steps: Tensor, residual: Tensor) -> Tensor:
    """Return a trace [K, B] in which each sample's last residual stands from its last step on."""
    return torch.where(torch.arange(1, len(trace) + 1, device=trace.device)[:, None] >= steps, residual, trace)


def _result(residual: Tensor, tolerance: float, diverged: Tensor) -> Tensor:
    converged = (residual <= tolerance) & (tolerance > 0.0)
    result = torch.where(converged, int(Result.CONVERGED), int(Result.MAX_STEPS))
    return torch.where(diverged, int(Result.DIVERGED), result).to(torch.int8)
