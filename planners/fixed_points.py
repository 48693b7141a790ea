"""Differentiable fixed points and roots, for any map and any solver.

Legend: v* solution, f step, F optimality condition, g = dl/dv* incoming gradient, w adjoint vector, B samples.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from planners.adjoints import Attached, Implicit, transposed_jacobian
from planners.linear import GMRES
from planners.solution import Adjoint, AdjointRecord, AdjointSlot, Result, Solution, Solver, Step
from planners.solvers import Broyden, ForwardIteration, apply, norm_per_sample, relative_residual

__all__ = ["Adjoint", "AdjointRecord", "Result", "Solution", "Solver", "Step", "fixed_point", "root"]


def fixed_point(f: Step, v0: Tensor, *, solver: Solver | None = None, adjoint: Adjoint | None = None) -> Solution:
    """Return v* = f(v*) for each sample, differentiable in every tensor that f captures.

    v* = f(v*), dv*/d(.) = (I - df/dv)^{-1} df/d(.), Eqs. 2-4. The same value comes out of `ForwardIteration` whichever
    adjoint differentiates it: max_steps counts all applications of f that make the value, the one that attaches
    the graph included.

    Args:
        f: One step, [B, ...] -> [B, ...], the samples independent of each other. It may have `take(rows)`, the same
            step for those rows [n] of the batch; then samples that have converged stop costing.
        v0: [B, ...] where to start.
        solver: Finds v*; `ForwardIteration()` when not given.
        adjoint: Differentiates it; `Implicit()` when not given.

    Returns:
        The solution with residual, steps and result per sample.

    Raises:
        ValueError: When v0 has no batch dimension, f changes its shape, or the adjoint cannot differentiate the solver.
    """
    _check_value("v0", v0)
    return (adjoint or Implicit()).solve(f, v0, solver or ForwardIteration())


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
            non-singular at v*.
        v0: [B, ...] where to start.
        solver: Finds v* as the fixed point of v - F(v); `Broyden(max_steps=100, tolerance=1e-6)` when not given.
        adjoint: Solver of the linear system; `Implicit(GMRES())` when not given, which needs no contraction. Any
            other solver iterates w = w - (dF/dv)^T w + g. A system left unsolved raises a RuntimeWarning.
        solution: [B, ...] v* from elsewhere, in place of v0 and solver; its residual is judged against 1e-6 and its
            value is returned unchanged.

    Returns:
        The solution with residual per sample; `Solution.adjoint` says after the backward pass how well the linear
        system was solved.

    Raises:
        ValueError: When neither or both of v0 and solution are given, or F changes the shape.
    """
    if (v0 is None) == (solution is None):
        raise ValueError("root needs either v0, where to start solving, or solution, a value found elsewhere")
    if solution is not None:
        if solver is not None:
            raise ValueError("solver: expected none beside solution, which is not solved for again")
        _check_value("solution", solution)
        found = _judge(F, solution.detach())
    else:
        assert v0 is not None
        _check_value("v0", v0)
        found = (solver or Broyden(max_steps=100, tolerance=1e-6)).solve(lambda v: v - apply(F, v), v0)
    if not torch.is_grad_enabled():
        return found
    v = found.value.detach().requires_grad_()
    condition = apply(F, v)
    if not condition.requires_grad:
        return found
    product, method = transposed_jacobian(condition, v), (adjoint or Implicit(GMRES())).solver

    def pull_back(g: Tensor) -> Tensor:
        return -_solve_transposed(product, g, method, found.slot)

    return replace(found, value=Attached.apply(condition, found.value, pull_back))


def _solve_transposed(product: Step, g: Tensor, method: Solver, slot: AdjointSlot) -> Tensor:
    """Return w with (dF/dv)^T w = g, and warn when that failed: a caller of `root` expects an exact gradient."""
    if isinstance(method, GMRES):
        found = method.solve_linear(product, g)
        w, record = found.value, AdjointRecord(found.residual, found.steps, found.result)
        slot.record = record
    else:
        w = Implicit(method).adjoin(lambda w: w - product(w), g, slot)
        assert slot.record is not None
        record = slot.record
    failed = int((record.result != Result.CONVERGED).sum())
    if failed:
        warnings.warn(
            f"root: the linear system of the gradient was not solved for {failed} of {g.shape[0]} samples (relative "
            f"residual up to {float(record.residual.max()):.1e}); is dF/dv singular, or max_steps too small?",
            RuntimeWarning,
            stacklevel=2,
        )
    return w


def _check_value(name: str, v: Tensor) -> None:
    if v.ndim < 1 or not v.is_floating_point():
        raise ValueError(f"{name}: expected a floating point tensor [B, ...], got {v.dtype} {tuple(v.shape)}")


@torch.no_grad()
def _judge(F: Step, v: Tensor) -> Solution:
    """Return a value found elsewhere as a solution, with the residual that F leaves."""
    residual = relative_residual(v, v - apply(F, v))
    result = torch.where(residual <= 1e-6, int(Result.CONVERGED), int(Result.MAX_STEPS))
    result = torch.where(torch.isfinite(residual), result, int(Result.DIVERGED)).to(torch.int8)
    return Solution(v, residual, torch.zeros_like(norm_per_sample(v), dtype=torch.int64), result)
