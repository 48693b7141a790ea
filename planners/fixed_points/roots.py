"""Finding a root, judging one that was given, and solving with dF/dv, for `planners.fixed_points.solve.root`.

Legend: v* root, F optimality condition, J = dF/dv, g = dl/dv* incoming gradient, w adjoint vector, B samples.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .adjoints import Implicit, report_unsolved
from .derivatives import Solve, linearised, transposed_jacobian
from .gmres import GMRES
from .solution import AdjointRecord, AdjointSlot, Result, Solution, Solver, Step
from .solvers import Broyden, apply, stops
from .stopping import flat, rows, safe_norm_per_sample, scale_per_sample

_ROOT = Broyden(max_steps=100, tolerance=1e-6, depth=100)  # never forgets: a rotation of 20 unknowns needs 60


def find(F: Step, v0: Tensor, solver: Solver | None) -> Solution:
    """Return a root of F found from v0 [B, ...], by the solver on v - F(v), or by Broyden's method on v - c F(v)."""
    if solver is not None:
        return solver.solve(lambda v: v - apply(F, v), v0)
    start = v0.detach()
    value, gradient = value_and_pull(F, start)
    unit = scale_per_sample(value)
    c = _length_and_slope(value, gradient)[1] * unit.double()
    c = rows(torch.where(torch.isfinite(c) & (c > 0.0), c, 1.0), value).to(value.dtype)
    unit = rows(unit, value).to(value.dtype)  # c alone may be no number of the dtype
    return _ROOT.solve(lambda v: v - c * (apply(F, v) / unit), start)


def solves(adjoint: Implicit, slot: AdjointSlot) -> Solve:
    """Return the solve for x with J x = g, or w with J^T w = g, which tells of a gradient that is not exact."""
    method = adjoint.solver

    def solve(product: Step, g: Tensor) -> Tensor:
        if isinstance(method, GMRES):
            start = adjoint.start if adjoint.start is not None and adjoint.start.shape == g.shape else None
            found = method.solve_linear(product, g, start)
            w = found.value
            slot.record = AdjointRecord(found.residual, found.steps, found.result, found.trace, w)
        else:
            w = replace(adjoint, inexact=True).adjoin(lambda w: w - product(w), g, slot)
        assert slot.record is not None
        if not adjoint.inexact and stops(method):
            report_unsolved("root", g, slot.record, throw=adjoint.throw)
        finite = torch.isfinite(g).flatten(1).all(dim=1) if g.ndim > 1 else torch.isfinite(g)
        return torch.where(rows(finite, g), w, torch.nan)

    return solve


def value_and_pull(F: Step, v: Tensor, u: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return F(v) and J^T u; zeros where F does not let a gradient through.

    Without u it is F(v) over its own size: J^T F(v) is in squares of F's units, which the dtype may not hold.
    """
    with torch.inference_mode(False), torch.enable_grad():
        v, value = linearised(F, v)
        u = value.detach() / rows(scale_per_sample(value.detach()), value).to(value.dtype) if u is None else u.clone()
        pulled = transposed_jacobian(value, v)(u) if value.requires_grad else torch.zeros_like(v)
    return value.detach(), pulled


def _length_and_slope(value: Tensor, pulled: Tensor) -> tuple[Tensor, Tensor]:
    """Return ||F|| and ||F|| / ||J^T F|| per sample, in float64, of what `value_and_pull` gives."""
    length = safe_norm_per_sample(value).double()
    return length, length / scale_per_sample(value).double() / safe_norm_per_sample(pulled).double()


def judge(F: Step, v: Tensor) -> Solution:
    """Return a value found elsewhere as a solution, with its relative distance to the root, by F and its slope."""
    value, pulled = value_and_pull(F, v)
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
        leaf, condition = linearised(F, v)
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
