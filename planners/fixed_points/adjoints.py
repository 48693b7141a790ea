"""How gradients pass through a fixed point: unrolled, implicit, phantom, one step.

Legend: v* fixed point, J = df/dv at v*, g = dl/dv* incoming gradient, w adjoint vector, K forward steps, B samples.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from planners.fixed_points.solution import AdjointRecord, AdjointSlot, Result, Solution, Solver, Step
from planners.fixed_points.solvers import Anderson, ForwardIteration, apply, rule_of
from planners.fixed_points.stopping import (
    ResidualRule,
    at_least_single,
    close,
    flat,
    norm_per_sample,
    relative_residual,
    rows,
    safe_norm_per_sample,
    scale_per_sample,
)

_COUPLED = 0.02
"""A defect of this size, relative, is coupling: f may compute in half precision (autocast), whose rounding is below."""

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
        z, fz, trace, rule = v0, v0, list[Tensor](), rule_of(solver)
        # The error rule learns from every step; the residual rule knows the first one's size, and judges the last.
        every = solver.record or not isinstance(rule, ResidualRule)
        for k in range(1, solver.max_steps + 1):
            z, fz = fz, apply(f, fz, forward_mode=True)
            if every or k in (1, solver.max_steps):
                with torch.no_grad():
                    verdict = rule.judge(z, fz)
                    trace.append(verdict.residual)
        with torch.no_grad():
            result = torch.where(verdict.done, int(rule.success), int(Result.MAX_STEPS))
            result = torch.where(verdict.diverged | rule.grown(), int(Result.DIVERGED), result).to(torch.int8)
        steps = torch.full_like(result, solver.max_steps, dtype=torch.int64)
        # Memory of its own: f may have given its argument, or what it captures.
        return Solution(fz.clone(), trace[-1], steps, result, torch.stack(trace) if solver.record else None)


@dataclass(frozen=True)
class Implicit:
    """Implicit differentiation at the fixed point (Eqs. 3-6).

    w^T = w^T df/dv + dl/dv*, then dl/d(.) = w^T df/d(.). One application of f is saved, whatever K is. The system is
    solved for each sample from w = g, in the backward pass, which leaves its residual and steps in `Solution.adjoint`;
    where it fails, w is the best iterate found, `adjoint.result` says so, and a RuntimeWarning unless `inexact`: a
    caller who asks for nothing else takes the gradient for exact. There is no gradient to v0, and the backward pass
    itself cannot be differentiated.

    Args:
        solver: Solver of the adjoint system; its max_steps is K_bwd (section 4.3).
        inexact: An unsolved system is wanted, as in the paper, where 10 to 15 steps leave some percent and train as
            well: no warning, and no product spent on looking whether samples are coupled. Planners set it; a solver
            of tolerance 0 means it too.
    """

    solver: Solver = field(default_factory=lambda: Anderson(max_steps=100))
    inexact: bool = False

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
        scale = rows(scale_per_sample(g), g)
        rest = at_least_single(g) / scale  # a power of two, so that a norm of tiny or huge numbers is not 0 or inf
        size = norm_per_sample(rest)
        size = rows(torch.where((size > 0.0) & torch.isfinite(size), size, 1.0), g)
        unit = (rest / size).to(g.dtype)
        found = self.solver.solve(lambda w: transposed_jacobian(w) + unit, unit)
        slot.record = AdjointRecord(found.residual, found.steps, found.result, found.trace)
        w = (at_least_single(found.value) * size * scale).to(g.dtype)
        if not self.inexact and self.solver.tolerance > 0.0:
            coupled = _coupling(lambda x: transposed_jacobian(x) + g - x, w, size * scale, found.residual)
            slot.record = replace(slot.record, result=found.result.masked_fill(coupled, int(Result.MAX_STEPS)))
            warn_unsolved("fixed_point", g, slot.record, coupled)
        return w


def _coupling(defect: Step, w: Tensor, sizes: Tensor, residual: Tensor) -> Tensor:
    """Return [B] bool: the adjoint system as it was before each sample's was scaled is not solved by w.

    Scaling is harmless where samples are independent, so this is where they are not (batch norm in training, attention
    across the batch), and the solution of the scaled systems is none of the whole.
    """
    if not bool((sizes != sizes[:1]).any()):
        return torch.zeros_like(residual, dtype=torch.bool)
    left = safe_norm_per_sample(defect(w)) / torch.maximum(safe_norm_per_sample(w), sizes.flatten())
    return torch.isfinite(left) & (left > 10.0 * residual + _COUPLED)


def warn_unsolved(name: str, g: Tensor, record: AdjointRecord, coupled: Tensor | None = None) -> None:
    """Warn where the system of a gradient that is taken for exact was not solved."""
    failed = (record.result == Result.MAX_STEPS) | (record.result == Result.DIVERGED)
    count = int(failed.sum())
    if not count:
        return
    why = "is dF/dv singular or ill-conditioned" if name == "root" else "is the solution's Jacobian ill-conditioned"
    if coupled is not None and bool(coupled.any()):
        why = "does f couple the samples of a batch, which must be independent (batch norm in training)"
    if not bool(torch.isfinite(flat(g)).all()):
        why = "the incoming gradient is not finite, and so is this one; does the loss overflow"
    warnings.warn(
        f"{name}: the linear system of the gradient was not solved for {count} of {g.shape[0]} samples (relative "
        f"residual up to {float(record.residual.max()):.1e}); {why}, or max_steps too small? Where an approximate "
        "gradient is wanted, Implicit(..., inexact=True) says so",
        RuntimeWarning,
        stacklevel=3,
    )


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
        result = torch.where(torch.isfinite(residual), int(Result.MAX_STEPS), int(Result.DIVERGED)).to(torch.int8)
        slot.record = AdjointRecord(residual, steps, result)
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
        return _with_last_step(found, value.detach(), value.clone(), solver)


class Attached(torch.autograd.Function):
    """A value whose gradient is handed, as `pull_back` makes it, to the graph of another tensor."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, value: Tensor, pull_back: Step) -> Tensor:  # noqa: D102
        ctx.pull_back = pull_back
        return value.detach().clone()  # memory of its own: f may have given what it captures

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
        return _with_last_step(found, value, value.clone(), solver)
    v = linearisation_point(found.value)
    fv = apply(f, v)
    solution = _with_last_step(found, fv.detach(), fv.detach().clone(), solver)
    if not reaches_more_than(fv, v):
        return solution
    product, slot = transposed_jacobian(fv, v), solution.slot
    value = Attached.apply(fv, fv.detach(), lambda g: adjoin(product, g, slot))
    return replace(solution, value=value)


def linearisation_point(v: Tensor) -> Tensor:
    """Return v as a leaf that requires a gradient; raise RuntimeError under torch.func's transformations."""
    try:
        return v.detach().clone().requires_grad_()
    except RuntimeError as error:
        raise RuntimeError(
            "an implicit gradient can't be taken inside torch.func transformations (grad, vmap, jacrev, ...): use "
            f"torch.autograd, or the Unrolled adjoint, whose steps they can follow ({error})"
        ) from error


def reaches_more_than(output: Tensor, v: Tensor) -> bool:
    """Return whether a gradient of the output has anywhere to go but to the leaf v."""
    if not output.requires_grad:
        return False
    if output.grad_fn is None:
        return output is not v
    seen, left = set[Node](), [output.grad_fn]
    while left:
        node = left.pop()
        if node in seen:
            continue
        seen.add(node)
        following = [after for after, _ in node.next_functions if after is not None]
        # A node without followers is a leaf's, or one that hides what it reaches: that must not lose its gradient.
        if not following and getattr(node, "variable", None) is not v:
            return True
        left += following
    return False


def _solve_before_last(f: Step, v0: Tensor, solver: Solver) -> Solution:
    """Return the solution after one step less than the solver allows."""
    if solver.max_steps > 1:
        return replace(solver, max_steps=solver.max_steps - 1).solve(f, v0)  # type: ignore[type-var]
    v0 = v0.detach().clone()
    residual = torch.full_like(norm_per_sample(v0), torch.inf)
    steps = torch.zeros_like(residual, dtype=torch.int64)
    trace = residual.new_zeros(0, v0.shape[0]) if getattr(solver, "record", False) else None
    result = torch.full_like(steps, int(Result.MAX_STEPS), dtype=torch.int8)
    return Solution(v0, residual, steps, result, trace)


@torch.no_grad()
def _with_last_step(found: Solution, image: Tensor, value: Tensor, solver: Solver) -> Solution:
    """Return the solution with `value` = f(found.value), and the quality that this last application showed."""
    residual = relative_residual(found.value, image)
    success: Tensor | int = int(Result.SETTLED)
    reached = (residual <= solver.tolerance) & (solver.tolerance > 0.0)
    if getattr(solver, "rule", "residual") == "error":
        residual = _exact_residual(found.value, image)
        unmoved = close(found.value, image, 0.0) if solver.max_steps == 1 else torch.zeros_like(reached)
        kept = (found.result == Result.CONVERGED) & close(found.value, image, solver.tolerance)
        reached, success = (kept | unmoved) & (solver.tolerance > 0.0), int(Result.CONVERGED)
    elif not hasattr(solver, "rule"):  # from elsewhere: what it says stands, unless f's last application denies it
        success = torch.where(found.result == Result.CONVERGED, found.result, int(Result.SETTLED))
    diverged = (found.result == Result.DIVERGED) | ~torch.isfinite(residual)
    steps, trace = found.steps + 1, None
    if found.trace is not None:
        trace = last_kept(torch.cat((found.trace, residual[None])), steps, residual)
    result = torch.where(reached, success, int(Result.MAX_STEPS))
    result = torch.where(diverged, int(Result.DIVERGED), result).to(torch.int8)
    return Solution(value, residual, steps, result, trace, found.slot)


def _exact_residual(z: Tensor, fz: Tensor) -> Tensor:
    """Return ||f(z) - z|| / ||f(z)|| per sample, whatever the size of either; inf where it is not finite."""
    scale = scale_per_sample(z, fz)
    change, size = (norm_per_sample(at_least_single(x) / rows(scale, x)) for x in (fz - z, fz))
    ratio = torch.where(change > 0.0, change / size, change)
    return torch.where(torch.isfinite(change) & torch.isfinite(size), ratio, torch.inf)


def last_kept(trace: Tensor, steps: Tensor, residual: Tensor) -> Tensor:
    """Return a trace [K, B] in which each sample's last residual stands from its last step on."""
    return torch.where(torch.arange(1, len(trace) + 1, device=trace.device)[:, None] >= steps, residual, trace)
