"""Compiled value iteration as a differentiable fixed point, equal to the generic path within float32 rounding.

Where actions tie, as on a map that is its own mirror image, both give an element of the subdifferential, but rounding
decides which one: there the gradients need not be equal.

Legend: B samples, A actions, G value channels, C reward channels; v value, r reward, w adjoint vector.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from planners.compiled.layout import BLOCK, Grid, grid_of, tap_offsets
from planners.compiled.linalg import Options
from planners.compiled.solvers import GaussSeidel
from planners.compiled.threads import run_in_threads
from planners.compiled.tile_registers import available as tiles_available
from planners.compiled.tiles import TAPS_OF_A_TILE, TileFilters, pack_tiles
from planners.compiled.value_iteration.backward import anderson, backward, linearise, transposed
from planners.compiled.value_iteration.forward import Filters, Schedule, VIGradients, VIResult, forward
from planners.compiled.value_iteration.gauss_seidel import SweepFilters, pack_by_tap, sweep_batch, tap_order
from planners.compiled.value_iteration.step import pack_weights
from planners.cores.steps import ValueIteration
from planners.fixed_points import Anderson, ForwardIteration
from planners.fixed_points.adjoints import Implicit, OneStep, Phantom, Unrolled, last_kept
from planners.fixed_points.solution import Adjoint, AdjointSlot, Result, Solution, Solver, Step


def unsupported(step: ValueIteration, solver: Solver, adjoint: Adjoint) -> str | None:
    """Return why the compiled loop cannot take this, or None when it can."""
    tensors = [step.reward, step.w_v] + ([] if step.w_r is None else [step.w_r])
    height, width = step.reward.shape[-2:]
    pad = _pad(step)
    if step.temperature > 0:
        return "the maximum is smoothed"
    if (reason := unsupported_solve(solver, adjoint)) is not None:
        return reason
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in tensors):
        return "compiled value iteration works on float32 tensors on the CPU"
    if step.w_v.shape[0] // step.channels > np.iinfo(np.int16).max:
        return "too many actions for a 16-bit index"
    if step.wrap and pad > min(height, width):
        return f"filters reach {pad} cells far, around a torus of {height} x {width}"
    return None


def unsupported_solve(solver: Solver, adjoint: Adjoint) -> str | None:
    """Return why the compiled loop has no such solver or adjoint, whatever the step; None when it has."""
    if not isinstance(solver, ForwardIteration | GaussSeidel):
        return f"compiled value iteration is forward iteration; the solver is {type(solver).__name__}"
    if isinstance(solver, GaussSeidel) and isinstance(adjoint, Unrolled):
        return "Gauss-Seidel sweeps leave no steps to unroll"
    if not isinstance(adjoint, Implicit | Phantom | OneStep | Unrolled):
        return f"no compiled backward pass for the adjoint {type(adjoint).__name__}"
    return other_rule(solver)


def other_rule(solver: Any) -> str | None:
    """Return why a compiled loop cannot stop as this solver does, or None when it can."""
    if solver.tolerance > 0.0 and getattr(solver, "rule", "residual") != "residual":
        return f"compiled loops stop by the residual rule; the solver's is {solver.rule!r}"
    if getattr(solver, "absolute", 0.0) > 0.0 or getattr(solver, "norm", None) is not None:
        return "compiled loops know neither an absolute tolerance nor another norm"
    return None


def fixed_point(
    step: ValueIteration, v0: Tensor, *, solver: ForwardIteration | GaussSeidel, adjoint: Adjoint
) -> Solution:
    """Return what `planners.fixed_point` returns for this step, solver and adjoint.

    Second derivatives are not available (the reference path has them under `Unrolled`).

    Args:
        step: The step.
        v0: [B, G, h, w] where to start.
        solver: Forward iteration, or Gauss-Seidel sweeps followed by one step.
        adjoint: Implicit, Phantom, OneStep or Unrolled.

    Raises:
        ValueError: With the reason that `unsupported` gives, or when shapes do not fit.
    """
    reason = unsupported(step, solver, adjoint)
    if reason is not None:
        raise ValueError(reason)
    expected = (step.reward.shape[0], step.channels, *step.reward.shape[2:])
    if tuple(v0.shape) != expected or v0.dtype != torch.float32:
        raise ValueError(f"v0: expected float32 {expected}, got {v0.dtype} {tuple(v0.shape)}")
    swept = None
    if isinstance(solver, GaussSeidel):
        if solver.max_steps > 1:
            swept = sweep(step, v0, replace(solver, max_steps=solver.max_steps - 1))
            v0 = swept.value
        solver = ForwardIteration(1, solver.tolerance, solver.record, rule="residual")
    packed = _PackedSolve.of(step, solver, adjoint)
    w_r = step.w_v.new_zeros(0) if step.w_r is None else step.w_r
    value = _Iterate.apply(step.reward, w_r, step.w_v, v0, packed)
    residual, steps, result, trace = (torch.from_numpy(x) for x in packed.record[1:5])
    if swept is not None:
        steps = steps + swept.steps
        result = torch.where(swept.result == int(Result.DIVERGED), swept.result, result)
        trace = trace if swept.trace is None else torch.cat((swept.trace, trace))
    kept = last_kept(trace, steps, residual) if solver.record else None
    return Solution(value, residual, steps, result, kept, packed.slot)


@torch.no_grad()
def sweep(step: ValueIteration, v0: Tensor, solver: GaussSeidel) -> Solution:
    """Return v0 [B, G, h, w] after sweeps that update cells in place.

    Raises:
        ValueError: If the compiled loop cannot take this step.
    """
    reason = unsupported(step, solver, OneStep())
    if reason is not None:
        raise ValueError(solver.refusal(reason))
    packed = _PackedSolve.of(step, ForwardIteration(), None)
    filters, batch = packed.filters, v0.shape[0]
    weights = (pack_by_tap(filters.r, filters.r_size), pack_by_tap(filters.v, filters.v_size))
    offsets = (
        filters.r_offsets[tap_order(filters.r.shape[2], filters.r_size)],
        filters.v_offsets[tap_order(filters.v.shape[2], filters.v_size)],
    )
    out = (
        np.empty(v0.shape, np.float32),
        np.empty(batch, np.float32),
        np.empty(batch, np.int64),
        np.empty(batch, np.int8),
        np.empty((solver.max_steps, batch), np.float32),
    )
    by_tap = SweepFilters(*weights, *offsets, filters.v.shape[1])
    limits = (solver.max_steps, solver.tolerance)
    run_in_threads(sweep_batch, batch, _numpy(step.reward), _numpy(v0), by_tap, packed.grid, limits, out)
    value, residual, steps, result, trace = (torch.from_numpy(x) for x in out)
    return Solution(value, residual, steps, result, trace if solver.record else None)


def _pad(step: ValueIteration) -> int:
    return max(step.w_v.shape[-1], 1 if step.w_r is None else step.w_r.shape[-1]) // 2


@dataclass
class _PackedSolve:
    """One solve: its layout, filters and options, and, once it has run, what it wrote.

    Attributes:
        grid: How a map lies in memory.
        filters: Of reward and value, as the kernel reads them.
        solver: Forward iteration.
        adjoint: Implicit, Phantom, OneStep or Unrolled.
        slot: Where the backward pass reports its own solve.
        differentiated: Whether gradients were wanted when the solve was set up.
        out: What the forward pass wrote; None until `_Iterate.forward` has run, from then on what backward reads.
    """

    grid: Grid
    filters: Filters
    solver: ForwardIteration
    adjoint: Any
    slot: AdjointSlot
    differentiated: bool
    out: VIResult | None = None

    @property
    def record(self) -> VIResult:
        assert self.out is not None
        return self.out

    @classmethod
    def of(cls, step: ValueIteration, solver: ForwardIteration, adjoint: Any) -> _PackedSolve:
        height, width = step.reward.shape[2:]
        grid = grid_of(height, width, _pad(step), step.wrap)
        w_r = step.w_v.new_zeros(step.w_v.shape[0], 0, 1, 1) if step.w_r is None else step.w_r
        r, v = (_by_channel(w, step.channels) for w in (w_r, step.w_v))
        r_offsets, v_offsets = (tap_offsets(w.shape[1], w.shape[-1], grid) for w in (w_r, step.w_v))
        sizes = (w_r.shape[-1], step.w_v.shape[-1])
        filters = Filters(r, v, pack_weights(r), pack_weights(v), r_offsets, v_offsets, *sizes)
        return cls(grid, filters, solver, adjoint, AdjointSlot(), torch.is_grad_enabled())

    def tiles(self) -> TileFilters | None:
        """Return the filters of v as tiles, where the processor has registers for them and a filter fills one."""
        channels, actions, taps = self.filters.v.shape
        if taps < TAPS_OF_A_TILE or not tiles_available():
            return None
        w = self.filters.v.reshape(channels * actions, channels, taps // channels)
        return pack_tiles(w, tap_offsets(1, self.filters.v_size, self.grid), self.grid.length)


def _by_channel(w: Tensor, channels: int) -> np.ndarray:
    """Return filters [A x G, C, F, F] as [G, A, T]."""
    return np.ascontiguousarray(
        w.detach().reshape(w.shape[0] // channels, channels, w[0].numel()).transpose(0, 1).numpy()
    )


def _by_action(dw: np.ndarray, like: Tensor, channels: int) -> Tensor:
    """Return gradients per sample [B, G x A x T] summed, in the order of filters [A x G, C, F, F]."""
    return torch.from_numpy(dw).sum(0).view(channels, -1, like[0].numel()).transpose(0, 1).reshape(like.shape)


class _Iterate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, r: Tensor, w_r: Tensor, w_v: Tensor, v0: Tensor, packed: _PackedSolve) -> Tensor:
        batch, channels = v0.shape[:2]
        unrolled, steps = isinstance(packed.adjoint, Unrolled), packed.solver.max_steps
        unrecorded, recorded = (0, steps) if unrolled and packed.differentiated else (steps - 1, 1)
        value = np.empty(v0.shape, np.float32)
        out = VIResult(
            value,
            np.empty(batch, np.float32),
            np.empty(batch, np.int64),
            np.empty(batch, np.int8),
            np.empty((steps, batch), np.float32),
            # What the backward pass needs belongs to torch, so that memory meters and profilers see it.
            torch.empty((batch, recorded, channels * packed.grid.length)).numpy(),
            torch.empty((batch, recorded, channels * packed.grid.blocks * BLOCK), dtype=torch.int16).numpy(),
        )
        schedule = Schedule(unrecorded, recorded, not unrolled, packed.solver.tolerance)
        layout = (packed.filters, packed.tiles(), packed.grid)
        run_in_threads(forward, batch, _numpy(r), _numpy(v0), *layout, schedule, out)
        packed.out = out
        ctx.packed = packed
        ctx.save_for_backward(r, w_r, w_v)
        return torch.from_numpy(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the compiled backward pass cannot be differentiated again (create_graph=True); the generic "
                "fixed_point with the Unrolled adjoint can"
            )
        r, w_r, w_v = ctx.saved_tensors
        packed, (g,) = ctx.packed, grads
        unrolled = isinstance(packed.adjoint, Unrolled)
        u = g if unrolled or isinstance(packed.adjoint, OneStep) else _adjoin(packed, g)
        filters, batch, channels = packed.filters, g.shape[0], g.shape[1]
        dr, dv0 = torch.zeros(r.shape), torch.empty(g.shape)
        dw_r, dw_v = (np.empty((batch, w.size), np.float32) for w in (filters.r, filters.v))
        gradients = VIGradients(dr.numpy(), dw_r, dw_v, dv0.numpy())
        run_in_threads(backward, batch, _numpy(u), _numpy(r), filters, packed.grid, packed.record, gradients)
        d_filters_r = _by_action(dw_r, w_r, channels) if w_r.numel() else None
        return dr, d_filters_r, _by_action(dw_v, w_v, channels), dv0 if unrolled else None, None


def _adjoin(packed: _PackedSolve, g: Tensor) -> Tensor:
    """Return the adjoint vector w; Anderson's solver runs compiled where it records nothing, any other on compiled
    products."""
    adjoint = packed.adjoint
    method = adjoint.solver if isinstance(adjoint, Implicit) else None
    if isinstance(method, Anderson) and not method.record and other_rule(method) is None:
        adjoint = replace(adjoint, solver=_CompiledAnderson(packed, method))
    return adjoint.adjoin(_product(packed), g, packed.slot)


@dataclass(frozen=True)
class _CompiledAnderson:
    """`Anderson` for the system w = J^T w + g of one packed, started at w = g, where `Implicit` starts it."""

    packed: _PackedSolve
    solver: Anderson

    @property
    def max_steps(self) -> int:
        return self.solver.max_steps

    @property
    def tolerance(self) -> float:
        return self.solver.tolerance

    def solve(self, f: Step, v0: Tensor) -> Solution:
        """Return w; f is w -> J^T w + v0, which the kernel knows."""
        packed, solver, batch = self.packed, self.solver, v0.shape[0]
        out = (
            np.empty(v0.shape, np.float32),
            np.empty(batch, np.float32),
            np.empty(batch, np.int64),
            np.empty(batch, np.int8),
        )
        options = anderson_options(solver)
        run_in_threads(anderson, batch, _numpy(v0), packed.record.greedy, packed.filters, packed.grid, options, out)
        value, residual, steps, result = (torch.from_numpy(x) for x in out)
        return Solution(value, residual, steps, result)


def anderson_options(solver: Anderson) -> Options:
    """Return what Anderson's kernels are told."""
    # The weight as in `planners.fixed_points.acceleration.AndersonMemory`.
    weight = max(solver.regularisation**2, 1e-15)
    return Options(solver.max_steps, solver.tolerance, solver.depth, solver.mixing, weight)


def _product(packed: _PackedSolve) -> Step:
    """Return w -> w^T df/dv at the recorded step."""
    jacobian: list[np.ndarray] = []

    def product(w: Tensor) -> Tensor:
        batch, out = w.shape[0], torch.empty(w.shape)
        if not jacobian:
            channels, _, taps = packed.filters.v.shape
            jacobian.append(torch.empty((batch, channels, taps, packed.grid.blocks * BLOCK)).numpy())
            run_in_threads(linearise, batch, packed.record.greedy, packed.filters.v, jacobian[0])
        run_in_threads(transposed, batch, _numpy(w), jacobian[0], packed.filters.v_offsets, packed.grid, out.numpy())
        return out

    return product


def _numpy(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()
