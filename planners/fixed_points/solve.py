"""Differentiable fixed points and roots, for any map and any solver.

Legend: v* solution, f step, F optimality condition, J = dF/dv, g = dl/dv* incoming gradient, w adjoint vector, B
samples.
"""

from __future__ import annotations

import warnings
from dataclasses import is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from planners.fixed_points.adjoints import (
    Attached,
    Implicit,
    Unrolled,
    linearisation_point,
    reaches_more_than,
    transposed_jacobian,
    warn_unsolved,
)
from planners.fixed_points.gmres import GMRES
from planners.fixed_points.solution import Adjoint, AdjointRecord, AdjointSlot, Result, Solution, Solver, Step
from planners.fixed_points.solvers import Broyden, ForwardIteration, apply
from planners.fixed_points.stopping import flat, rows, safe_norm_per_sample, scale_per_sample

__all__ = ["Adjoint", "AdjointRecord", "Result", "Solution", "Solver", "Step", "fixed_point", "root"]

_ROOT = Broyden(max_steps=100, tolerance=1e-6, depth=100)  # never forgets: a rotation of 20 unknowns needs 60


def fixed_point(f: Step, v0: Tensor, *, solver: Solver | None = None, adjoint: Adjoint | None = None) -> Solution:
    """Return v* = f(v*) for each sample, differentiable in every tensor that f captures.

    v* = f(v*), dv*/d(.) = (I - df/dv)^{-1} df/d(.), Eqs. 2-4. The same value comes out of `ForwardIteration` whichever
    adjoint differentiates it: max_steps counts all applications of f that make the value, the one that attaches the
    graph included. `planners.fixed_points.solution` says what a verdict promises. A solver of tolerance 0 says that
    its K steps are wanted, and so does `Unrolled`; otherwise a tolerance that was not reached warns, as does a gradient
    whose adjoint system was not solved, unless `Implicit(..., inexact=True)` asks for one.

    Args:
        f: One step, [B, ...] -> [B, ...], the samples independent of each other; it gives a new tensor. It may have
            `take(rows)`, the same step for those rows [n] of the batch; then samples that have converged stop costing.
        v0: [B, ...] where to start. One system of n unknowns is [1, n]: entries of a [n] are n samples of their own,
            and an f that couples them is refused.
        solver: Finds v*; `ForwardIteration()` when not given.
        adjoint: Differentiates it; `Implicit()` when not given.

    Returns:
        The solution with residual, steps and result per sample.

    Warns:
        RuntimeWarning: When a sample ran out of steps or diverged; and, in the backward pass, when the adjoint system
            was left unsolved.

    Raises:
        TypeError: When solver or adjoint is none, or f gives no real tensor.
        ValueError: When v0 has no batch dimension, f changes its shape or its argument, or the adjoint cannot
            differentiate the solver.
    """
    solver, adjoint = ForwardIteration() if solver is None else solver, Implicit() if adjoint is None else adjoint
    _check_solver("solver", solver)
    _check_adjoint(adjoint)
    _check_value("v0", v0)
    _check_vector("fixed_point", f, v0)
    found = adjoint.solve(f, v0, solver)
    if solver.tolerance > 0.0:
        advice = "; does f contract, or are max_steps too few? A solver of tolerance 0 says that its steps are wanted"
        wanted = (Result.MAX_STEPS,) if isinstance(adjoint, Unrolled) else ()
        _warn_failed("fixed_point: no fixed point was found for", found, advice, wanted)
    return found


def root(
    F: Step,
    v0: Tensor | None = None,
    *,
    solver: Solver | None = None,
    adjoint: Implicit | None = None,
    solution: Tensor | None = None,
) -> Solution:
    """Return v* with F(v*) = 0 for each sample, differentiable in every tensor that F captures.

    (dF/dv)^T w = g, dl/d(.) = -w^T dF/d(.), the implicit function theorem (section 4.1, for any optimality condition).
    How v* was found does not matter: by a solver here, on v = v - F(v), or by anything at all outside torch.
    Blondel et al., Efficient and modular implicit differentiation, 2022.

    Args:
        F: The optimality condition, [B, ...] -> [B, ...], the samples independent of each other; dF/dv must be
            non-singular at v*. Its units are free: neither the search nor a verdict depends on a factor before F.
        v0: [B, ...] where to start; one system of n unknowns is [1, n].
        solver: Finds v* as the fixed point of v - F(v). When not given, on v - c F(v), c = ||F|| / ||J^T F|| at v0,
            `Broyden(max_steps=100, tolerance=1e-6, depth=100)`.
        adjoint: Solver of the linear system; `Implicit(GMRES())` when not given, which needs no contraction. Any
            other solver iterates w = w - (dF/dv)^T w + g.
        solution: [B, ...] v* from elsewhere, in place of v0 and solver. Its value is returned unchanged, in memory of
            its own; CONVERGED when the distance to the root is at most 1e-6: of each number, by a step of Newton's
            method (up to 32 unknowns), and of its length by ||F||^2 / ||J^T F||, a bound from below if F is linear.

    Returns:
        The solution with residual per sample (of a given one the estimated distance, relative); `Solution.adjoint` says
        after the backward pass how well the linear system was solved.

    Warns:
        RuntimeWarning: When a root was not found, or is none; and, in the backward pass, when a linear system was left
            unsolved, unless the adjoint is `inexact`.

    Raises:
        TypeError: When solver or adjoint is of another kind, or F gives no real tensor.
        ValueError: When neither or both of v0 and solution are given, or F changes the shape or its argument.
    """
    if (v0 is None) == (solution is None):
        raise ValueError("root needs either v0, where to start solving, or solution, a value found elsewhere")
    adjoint = Implicit(GMRES()) if adjoint is None else adjoint
    if not isinstance(adjoint, Implicit):
        raise TypeError(f"adjoint: expected Implicit(solver), which root differentiates by, got {_described(adjoint)}")
    _check_solver("adjoint.solver", adjoint.solver)
    if solution is not None:
        if solver is not None:
            raise ValueError("solver: expected none beside solution, which is not solved for again")
        _check_value("solution", solution)
        _check_vector("root", F, solution)
        found = _judge(F, solution.detach().clone())
    else:
        assert v0 is not None
        _check_value("v0", v0)
        _check_vector("root", F, v0)
        found = _find(F, v0, solver)
    if solution is not None:
        _warn_failed("root: the given solution is no root of F for", found, "")
    elif solver is None or solver.tolerance > 0.0:
        advice = "; is there one, does v0 lead to it, or are max_steps too few?"
        _warn_failed("root: no root was found for", found, advice)
    if not torch.is_grad_enabled():
        return found
    v = linearisation_point(found.value)
    condition = apply(F, v)
    if not reaches_more_than(condition, v):
        return found
    product, method = transposed_jacobian(condition, v), adjoint

    def pull_back(g: Tensor) -> Tensor:
        return -_solve_transposed(product, g, method, found.slot)

    return replace(found, value=Attached.apply(condition, found.value, pull_back))


def _find(F: Step, v0: Tensor, solver: Solver | None) -> Solution:
    if solver is not None:
        _check_solver("solver", solver)
        return solver.solve(lambda v: v - apply(F, v), v0)
    start = v0.detach()
    value, gradient = _value_and_pull(F, start)
    unit = scale_per_sample(value)
    c = _length_and_slope(value, gradient)[1] * unit.double()
    c = rows(torch.where(torch.isfinite(c) & (c > 0.0), c, 1.0), value).to(value.dtype)
    unit = rows(unit, value).to(value.dtype)  # c alone may be no number of the dtype
    return _ROOT.solve(lambda v: v - c * (apply(F, v) / unit), start)


def _solve_transposed(product: Step, g: Tensor, adjoint: Implicit, slot: AdjointSlot) -> Tensor:
    """Return w with (dF/dv)^T w = g, and warn when that failed: a caller of `root` expects an exact gradient."""
    method = adjoint.solver
    if isinstance(method, GMRES):
        found = method.solve_linear(product, g)
        w, slot.record = found.value, AdjointRecord(found.residual, found.steps, found.result, found.trace)
    else:
        w = Implicit(method, inexact=True).adjoin(lambda w: w - product(w), g, slot)
    assert slot.record is not None
    if not adjoint.inexact and method.tolerance > 0.0:
        warn_unsolved("root", g, slot.record)
    finite = torch.isfinite(g).flatten(1).all(dim=1) if g.ndim > 1 else torch.isfinite(g)
    return torch.where(rows(finite, g), w, torch.nan)


def _warn_failed(what: str, found: Solution, advice: str, wanted: tuple[Result, ...] = ()) -> None:
    """Warn, in the name of the caller's caller, of samples that ended otherwise than well or as wanted."""
    failed = torch.ones_like(found.result, dtype=torch.bool)
    for result in (Result.CONVERGED, Result.SETTLED, *wanted):
        failed &= found.result != result
    if count := int(failed.sum()):
        warnings.warn(
            f"{what} {count} of {len(failed)} samples (relative residual up to "
            f"{float(found.residual[failed].max()):.1e}){advice}",
            RuntimeWarning,
            stacklevel=3,
        )


def _described(thing: Any) -> str:
    return f"the class {thing.__name__}, not an object of it" if isinstance(thing, type) else type(thing).__name__


def _check_solver(name: str, solver: Any) -> None:
    parts = ("max_steps", "tolerance", "solve")
    if isinstance(solver, type) or not all(hasattr(solver, part) for part in parts):
        raise TypeError(
            f"{name}: expected a solver such as Anderson(max_steps=30), with {', '.join(parts)}; got "
            f"{_described(solver)}"
        )
    if not is_dataclass(solver):
        raise TypeError(
            f"{name}: expected a dataclass, whose max_steps `dataclasses.replace` can change (see "
            f"`planners.fixed_points.solution.Solver`); {type(solver).__name__} is none"
        )


def _check_adjoint(adjoint: Any) -> None:
    if isinstance(adjoint, type) or not hasattr(adjoint, "solve") or hasattr(adjoint, "max_steps"):
        hint = f"; a solver of the adjoint system is Implicit({type(adjoint).__name__}(...))"
        raise TypeError(
            f"adjoint: expected an adjoint such as Implicit(), got {_described(adjoint)}"
            + (hint if hasattr(adjoint, "max_steps") and not isinstance(adjoint, type) else "")
        )
    if hasattr(adjoint, "solver"):
        _check_solver("adjoint.solver", adjoint.solver)


def _check_value(name: str, v: Any) -> None:
    if not isinstance(v, Tensor):
        raise TypeError(f"{name}: expected a tensor [B, ...], got {_described(v)}")
    if v.ndim < 1 or not v.is_floating_point():
        raise ValueError(f"{name}: expected a floating point tensor [B, ...], got {v.dtype} {tuple(v.shape)}")


def _check_vector(name: str, f: Step, v: Tensor) -> None:
    """Refuse an f that couples the entries of a [n]: they are samples, and each would be solved as if alone."""
    if v.ndim != 1 or len(v) < 2:
        return
    even = torch.arange(len(v), device=v.device) % 2 == 0
    weights = torch.rand(len(v), generator=torch.Generator().manual_seed(0), dtype=torch.float64).add(0.5).to(v)
    for asked in (even, ~even):
        _, moved = _value_and_pull(f, v.detach(), torch.where(asked, weights, 0.0))
        if bool((moved[~asked] != 0.0).any()):
            raise ValueError(
                f"{name}: f couples the {len(v)} entries of a vector [{len(v)}], which are {len(v)} samples of one "
                f"unknown each; one system of {len(v)} unknowns has the shape [1, {len(v)}] (v0[None])"
            )


def _value_and_pull(F: Step, v: Tensor, u: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return F(v) and J^T u; zeros where F does not let a gradient through.

    Without u it is F(v) over its own size: J^T F(v) is in squares of F's units, which the dtype may not hold.
    """
    with torch.inference_mode(False), torch.enable_grad():
        v = linearisation_point(v)
        value = apply(F, v)
        u = value.detach() / rows(scale_per_sample(value.detach()), value).to(value.dtype) if u is None else u.clone()
        pulled = transposed_jacobian(value, v)(u) if value.requires_grad else torch.zeros_like(v)
    return value.detach(), pulled


def _length_and_slope(value: Tensor, pulled: Tensor) -> tuple[Tensor, Tensor]:
    """Return ||F|| and ||F|| / ||J^T F|| per sample, in float64, of what `_value_and_pull` gives."""
    length = safe_norm_per_sample(value).double()
    return length, length / scale_per_sample(value).double() / safe_norm_per_sample(pulled).double()


def _judge(F: Step, v: Tensor) -> Solution:
    """Return a value found elsewhere as a solution, with its relative distance to the root, by F and its slope."""
    value, pulled = _value_and_pull(F, v)
    length, slope = _length_and_slope(value, pulled)
    distance = torch.where(length > 0.0, length * slope, length)
    size = safe_norm_per_sample(v).double()
    tolerance = max(1e-6, 4.0 * torch.finfo(v.dtype).eps)
    error = torch.where(distance > 0.0, distance / size, distance)
    if 0 < v[0:1].numel() <= 32:
        step, numbers = _newton_step(F, v, value), flat(v).abs().double()
        # Every number by itself, as the error rule judges; beside much larger ones it is as good as their rounding.
        numbers = numbers + 4.0 * torch.finfo(v.dtype).eps / tolerance * numbers.amax(dim=1, keepdim=True)
        error = torch.maximum(error, torch.where(step > 0.0, step / numbers, 0.0).amax(dim=1))
    result = torch.where(error <= tolerance, int(Result.CONVERGED), int(Result.MAX_STEPS))
    finite = torch.isfinite(length) & torch.isfinite(size)
    result = torch.where(finite, result, int(Result.DIVERGED)).to(torch.int8)
    residual = torch.where(torch.isfinite(error), error, torch.inf).to(torch.promote_types(v.dtype, torch.float32))
    return Solution(v, residual, torch.zeros_like(result, dtype=torch.int64), result)


def _newton_step(F: Step, v: Tensor, value: Tensor) -> Tensor:
    """Return |J^{-1} F| number by number, of least squares where J is singular, [B, N] in float64."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = linearisation_point(v)
        condition = apply(F, leaf)
        if not condition.requires_grad:
            return torch.zeros(len(v), v[0:1].numel(), dtype=torch.float64, device=v.device)
        n, product = v[0:1].numel(), transposed_jacobian(condition, leaf)
        units = torch.eye(n, dtype=v.dtype, device=v.device).view(n, 1, *v.shape[1:]).expand(n, *v.shape)
        jacobian = torch.stack([product(unit.contiguous()).reshape(len(v), n) for unit in units], dim=1).double()
    right = value.reshape(len(v), n, 1).double()
    usable = torch.isfinite(jacobian).all(dim=2).all(dim=1) & torch.isfinite(right).all(dim=2).all(dim=1)
    jacobian, right = (torch.where(usable[:, None, None], part, 0.0) for part in (jacobian, right))
    step = torch.linalg.pinv(jacobian, rtol=n * torch.finfo(v.dtype).eps) @ right
    return step[:, :, 0].abs()
