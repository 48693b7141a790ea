"""How gradients pass through a fixed point: unrolled, implicit, phantom, one step.

Legend: v* fixed point, J = df/dv at v*, g = dl/dv* incoming gradient, w adjoint vector, K forward steps, B samples.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from .derivatives import Applied, Inverse, Solve, follow, linearised, linearised_below, reaches_more_than
from .solution import AdjointRecord, AdjointSlot, NotSolved, Result, Solution, Solver, Step
from .solvers import Anderson, ForwardIteration, apply, rule_of, stops
from .stopping import (
    ResidualRule,
    Verdict,
    at_least_single,
    close,
    flat,
    floored,
    norm_per_sample,
    relative_residual,
    rows,
    safe_norm_per_sample,
    scale_per_sample,
)
from .transforms import Lowered, active, below, constants

_COUPLED = 0.02
"""A defect of this size, relative, is coupling: f may compute in half precision (autocast), whose rounding is below."""


class _Adjoins(Protocol):
    """An adjoint that solves (I - J)^T w = g, by products with J^T; or with J, for forward mode."""

    @property
    def orders(self) -> int:
        """How many derivatives torch.autograd can take."""

    @property
    def exact(self) -> bool:
        """Whether more solves give more orders."""

    def solves(self, slot: AdjointSlot) -> Solve | None:
        """Return the solve, which leaves its record in the slot; None where w is g itself."""


@dataclass(frozen=True)
class Unrolled:
    """Algorithmic differentiation through exactly K applications of f (section 3; Eqs. 7-10).

    Memory for the backward pass grows linearly with K. The gradient reaches v0 too.

    Args:
        checkpoint: Steps between the iterates that are kept; the ones between are computed again in the backward pass,
            which gives the same gradient with memory for K / checkpoint iterates and `checkpoint` applications of f. 0
            keeps all.
    """

    checkpoint: int = 0

    def __post_init__(self) -> None:
        if self.checkpoint < 0:
            raise ValueError(f"checkpoint must be at least 0, got {self.checkpoint}")

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
        lowered = Lowered(f, v0) if active() else None
        if lowered is not None and self.checkpoint:
            raise RuntimeError("Unrolled(checkpoint=...) needs hooks that torch.func refuses: without it, or Implicit")
        trace, rule, applied = list[Tensor](), rule_of(solver), 0
        # The error rule learns from every step; the residual rule knows the first one's size, and judges the last.
        every = solver.record or not isinstance(rule, ResidualRule)

        def judge(z: Tensor, fz: Tensor) -> Verdict:
            if lowered is None:
                return rule.judge(z, fz)
            with below():
                return rule.judge(lowered.plain(z), lowered.plain(fz))

        verdict: Verdict | None = None

        def advance(fz: Tensor, steps: int) -> Tensor:
            nonlocal verdict, applied
            for _ in range(steps):
                z, fz = fz, apply(f, fz, forward_mode=True)
                applied += 1  # beyond max_steps when the backward pass comes by once more
                if applied <= solver.max_steps and (every or applied in (1, solver.max_steps)):
                    with constants():
                        verdict = judge(z, fz)
                        trace.append(verdict.residual)
            return fz

        fz = v0
        for start in range(0, solver.max_steps, self.checkpoint or solver.max_steps):
            steps = min(self.checkpoint or solver.max_steps, solver.max_steps - start)
            fz = checkpoint(advance, fz, steps, use_reentrant=False) if self.checkpoint else advance(fz, steps)
        assert verdict is not None
        with constants(), below():
            result = torch.where(verdict.done, int(rule.success), int(Result.MAX_STEPS))
            result = torch.where(verdict.diverged | rule.grown(), int(Result.DIVERGED), result).to(torch.int8)
            steps_taken = torch.full_like(result, solver.max_steps, dtype=torch.int64)
            kept = torch.stack(trace) if solver.record else None
        found = Solution(v0, trace[-1], steps_taken, result, kept)
        # Memory of its own: f may have given its argument, or what it captures.
        return replace(found if lowered is None else lowered.lifted(found), value=fz.clone())


@dataclass(frozen=True)
class Implicit:
    """Implicit differentiation at the fixed point (Eqs. 3-6).

    w^T = w^T df/dv + dl/dv*, then dl/d(.) = w^T df/d(.). `order` applications of f are saved, whatever K. The system is
    solved for each sample from w = g, in the backward pass, which leaves its residual and steps in
    `Solution.adjoint`; where it fails, w is the best iterate found, `adjoint.result` says so, and a RuntimeWarning
    unless `inexact`: a caller who asks for nothing else takes the gradient for exact. There is no gradient to v0.
    Under torch.func (vmap, grad, vjp, jvp, jacrev, jacfwd, hessian) derivatives are as many as are asked for.

    Args:
        solver: Solver of the adjoint system; its max_steps is K_bwd (section 4.3).
        inexact: An unsolved system is wanted, as in the paper, where 10 to 15 steps leave some percent and train as
            well: no warning, and no product spent on looking whether samples are coupled. Planners set it; a solver
            of tolerance 0 means it too.
        order: Derivatives that torch.autograd can take one of the other (create_graph=True), each for one application
            of f kept; when not given 2, or 1 with `inexact`.
        throw: Raise NotSolved where the system was not solved, in place of the warning.
        start: [B, ...] w to start from, `adjoint.value` of an earlier solution; a gradient of another shape ignores it.
    """

    solver: Solver = field(default_factory=lambda: Anderson(max_steps=100))
    inexact: bool = False
    order: int | None = None
    throw: bool = False
    start: Tensor | None = field(default=None, compare=False, repr=False)

    exact = True

    def __post_init__(self) -> None:
        if self.order is not None and self.order < 1:
            raise ValueError(f"order must be at least 1, got {self.order}")

    @property
    def orders(self) -> int:
        """How many derivatives torch.autograd can take."""
        return self.order or (1 if self.inexact else 2)

    def solve(self, f: Step, v0: Tensor, solver: Solver) -> Solution:
        """Return the solver's fixed point after K - 1 steps and one more application of f, differentiable."""
        return _solve_and_attach(f, v0, solver, self)

    def solves(self, slot: AdjointSlot) -> Solve:  # noqa: D102
        return lambda product, g: self.adjoin(product, g, slot)

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
        unit = start = (rest / size).to(g.dtype)
        if self.start is not None and self.start.shape == g.shape:
            start = (at_least_single(self.start) / scale / size).to(g.dtype)
        found = self.solver.solve(lambda w: transposed_jacobian(w) + unit, start)
        w = (at_least_single(found.value) * size * scale).to(g.dtype)
        slot.record = AdjointRecord(found.residual, found.steps, found.result, found.trace, w)
        if not self.inexact and stops(self.solver):
            coupled = _coupling(lambda x: transposed_jacobian(x) + g - x, w, size * scale, found.residual)
            slot.record = replace(slot.record, result=found.result.masked_fill(coupled, int(Result.MAX_STEPS)))
            report_unsolved("fixed_point", g, slot.record, coupled, throw=self.throw)
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


def report_unsolved(
    name: str, g: Tensor, record: AdjointRecord, coupled: Tensor | None = None, *, throw: bool = False
) -> None:
    """Warn, or raise NotSolved, where the system of a gradient that is taken for exact was not solved."""
    failed = (record.result == int(Result.MAX_STEPS)) | (record.result == int(Result.DIVERGED))
    count = int(failed.sum())
    if not count:
        return
    why = "is dF/dv singular or ill-conditioned" if name == "root" else "is the solution's Jacobian ill-conditioned"
    if coupled is not None and bool(coupled.any()):
        why = "does f couple the samples of a batch, which must be independent (batch norm in training)"
    if not bool(torch.isfinite(flat(g)).all()):
        why = "the incoming gradient is not finite, and so is this one; does the loss overflow"
    message = (
        f"{name}: the linear system of the gradient was not solved for {count} of {g.shape[0]} samples (relative "
        f"residual up to {float(record.residual.max()):.1e}); {why}, or max_steps too small? Where an approximate "
        "gradient is wanted, Implicit(..., inexact=True) says so"
    )
    if throw:
        raise NotSolved(message, record)
    warnings.warn(message, RuntimeWarning, stacklevel=3)


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
        return _solve_and_attach(f, v0, solver, self)

    orders, exact = 1, False

    def solves(self, slot: AdjointSlot) -> Solve:  # noqa: D102
        return lambda product, g: self.adjoin(product, g, slot)

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

    orders, exact = 1, False

    def solves(self, slot: AdjointSlot) -> None:  # noqa: D102
        return None

    def solve(self, f: Step, v0: Tensor, solver: Solver) -> Solution:
        """Return the solver's fixed point after K - 1 steps and one more application of f, differentiable."""
        return _solve_and_attach(f, v0, solver, self)


def _solve_and_attach(f: Step, v0: Tensor, solver: Solver, adjoint: _Adjoins) -> Solution:
    """Solve for K - 1 steps, apply f once with its graph, and let the adjoint turn g into w in the backward pass."""
    if active():
        return _attach_under_transforms(f, v0, solver, adjoint)
    with constants():
        found = _solve_before_last(f, v0, solver)
    forward_mode = forward_ad._current_level >= 0
    if not torch.is_grad_enabled() and not forward_mode:
        value = apply(f, found.value)
        return _with_last_step(found, value, value.clone(), solver)
    solve = adjoint.solves(found.slot)
    v, fv = (None, apply(f, found.value, forward_mode=True)) if solve is None else linearised(f, found.value)
    solution = _with_last_step(found, fv.detach(), fv.detach().clone(), solver)
    differentiated = torch.is_grad_enabled() and reaches_more_than(fv, v)
    carried = forward_mode and forward_ad.unpack_dual(fv).tangent is not None
    if not differentiated and not carried:
        return solution
    orders = adjoint.orders if differentiated else 1
    if differentiated and carried and orders < 2:
        raise RuntimeError(_no_more(adjoint))
    inverse = Inverse(None if solve is None else fv, v, solve, orders)
    with torch.set_grad_enabled(differentiated):
        value = Applied.apply(fv, inverse, fv.detach())
    return replace(solution, value=follow(lambda v: apply(f, v, forward_mode=True) - v, value, inverse, orders - 1))


def _attach_under_transforms(f: Step, v0: Tensor, solver: Solver, adjoint: _Adjoins) -> Solution:
    lowered = Lowered(lambda v: apply(f, v, forward_mode=True), v0)
    with lowered.entered() as step:
        found = _solve_before_last(step, lowered.start, solver)
        solve = adjoint.solves(found.slot)
        v, fv = (None, step(found.value)) if solve is None else linearised_below(step, found.value)
        plain = _with_last_step(found, fv.detach(), fv.detach().clone(), solver)
    solution = replace(lowered.lifted(plain), value=lowered.lift(plain.value))
    image = apply(f, lowered.lift(found.value), forward_mode=True)
    orders, limited = lowered.orders(image), lowered.reaches_ground(image)
    if limited:
        orders += adjoint.orders
    if orders == 0:
        return solution
    if orders > 1 and not adjoint.exact:
        raise RuntimeError(_no_more(adjoint))
    # torch.func.vjp pulls when its level has ended, with create_graph: what may be differentiated still is linear in g.
    inverse = Inverse(None if solve is None else fv, v, solve, orders if limited else None, lowered.spread)
    return replace(
        solution, value=follow(lambda v: apply(f, v, forward_mode=True) - v, solution.value, inverse, orders)
    )


def _no_more(adjoint: _Adjoins) -> str:
    return (
        f"{type(adjoint).__name__} gives first derivatives alone as it is, and more than one is taken here (by "
        "torch.func, in forward mode, or of parameters that require gradients): Implicit(..., order=2) gives more"
    )


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
    absolute, norm = getattr(solver, "absolute", 0.0), getattr(solver, "norm", None)
    success: Tensor | int = int(Result.SETTLED)
    own = hasattr(solver, "rule")  # planners train by the residual rule, whose tolerance is as it was given
    tolerance = solver.tolerance if own else floored(solver.tolerance, image.dtype)
    residual, reached = ResidualRule(tolerance, absolute, norm).measure(found.value, image)
    if getattr(solver, "rule", "residual") == "error":
        residual = _exact_residual(found.value, image)
        unmoved = close(found.value, image, 0.0) if solver.max_steps == 1 else torch.zeros_like(reached)
        kept = (found.result == int(Result.CONVERGED)) & close(found.value, image, solver.tolerance, absolute, norm)
        reached, success = (kept | unmoved) & stops(solver), int(Result.CONVERGED)
    elif not own:  # from elsewhere: what it says stands, unless f's last application denies it
        success = torch.where(found.result == int(Result.CONVERGED), found.result, int(Result.SETTLED))
    diverged = (found.result == int(Result.DIVERGED)) | ~torch.isfinite(residual)
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
