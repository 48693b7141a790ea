"""Differentiable fixed points and roots, for any map and any solver."""

from __future__ import annotations

from torch import Tensor

from planners.adjoints import Implicit
from planners.solution import Adjoint, AdjointRecord, Result, Solution, Solver, Step
from planners.solvers import ForwardIteration

__all__ = ["Adjoint", "AdjointRecord", "Result", "Solution", "Solver", "Step", "fixed_point"]


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
    if v0.ndim < 1 or not v0.is_floating_point():
        raise ValueError(f"v0 must be a floating point tensor [B, ...], got {v0.dtype} {tuple(v0.shape)}")
    return (adjoint or Implicit()).solve(f, v0, solver or ForwardIteration())
