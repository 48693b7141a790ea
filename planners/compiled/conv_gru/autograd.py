"""The ConvGRU as a differentiable fixed point whose solves, forward and adjoint, run compiled.

Legend: B samples, S state channels; v state, r reward, w adjoint vector.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from planners.compiled.conv_gru.buffers import take_pages
from planners.compiled.conv_gru.convolution import OUTPUTS_AT_ONCE
from planners.compiled.conv_gru.forward import GRUResult, solve_gru
from planners.compiled.conv_gru.gauss_seidel import sweep_gru
from planners.compiled.conv_gru.gauss_seidel_adjoint import sweep_gru_adjoint
from planners.compiled.conv_gru.step import GRUFilters
from planners.compiled.conv_gru.tile_step import GRUTiles
from planners.compiled.conv_gru.unrolled import GRUGradients, back_through_gru, unroll_gru
from planners.compiled.layout import Grid, grid_of, tap_offsets
from planners.compiled.linalg import Options
from planners.compiled.solvers import GaussSeidel
from planners.compiled.threads import run_in_threads
from planners.compiled.tile_registers import available as tiles_available
from planners.compiled.tiles import QUICK_FROM, pack_tiles
from planners.compiled.value_iteration.autograd import anderson_options, other_rule
from planners.compiled.value_iteration.step import pack_weights
from planners.cores.steps import GRUIteration
from planners.fixed_points import (
    Adjoint,
    Anderson,
    ForwardIteration,
    Implicit,
    OneStep,
    Phantom,
    Result,
    Solution,
    Solver,
    Step,
    Unrolled,
)
from planners.fixed_points.stopping import GROWTH, norm_per_sample


def unsupported(step: GRUIteration, solver: Solver, adjoint: Adjoint) -> str | None:
    """Return why the compiled loop cannot take this, or None when it can."""
    tensors = (step.initial, step.reward, step.gates, step.candidate, step.from_reward, step.bias)
    height, width = step.initial.shape[-2:]
    pad = step.gates.shape[-1] // 2
    if (reason := unsupported_solve(solver, adjoint)) is not None:
        return reason
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in tensors):
        return "the compiled ConvGRU works on float32 tensors on the CPU"
    if step.wrap and pad > min(height, width):
        return f"filters reach {pad} cells far, around a torus of {height} x {width}"
    return None


def unsupported_solve(solver: Solver, adjoint: Adjoint) -> str | None:
    """Return why the compiled loop has no such solver or adjoint, whatever the step; None when it has."""
    if not isinstance(adjoint, Implicit | Phantom | OneStep | Unrolled):
        return f"no compiled backward pass for the adjoint {type(adjoint).__name__}"
    if isinstance(adjoint, Unrolled) and not isinstance(solver, ForwardIteration):
        return "only forward iteration can be unrolled"
    if not isinstance(solver, ForwardIteration | Anderson | GaussSeidel):
        return f"the compiled ConvGRU has no solver {type(solver).__name__}"
    return other_rule(solver)


def fixed_point(step: GRUIteration, *, solver: Solver, adjoint: Any) -> Solution:
    """Return what `planners.fixed_point` returns for this step, solver and adjoint from `step.initial`.

    Args:
        step: The step.
        solver: ForwardIteration, Anderson or GaussSeidel, whose sweeps are followed by one step.
        adjoint: Implicit, Phantom, OneStep or Unrolled. The adjoint system runs compiled for the same three solvers.

    Raises:
        ValueError: With the reason that `unsupported` gives.
    """
    reason = unsupported(step, solver, adjoint)
    if reason is not None:
        raise ValueError(reason)
    packed = _PackedStep(step, solver.tolerance >= QUICK_FROM)
    last: Step = step
    if isinstance(adjoint, Unrolled):
        return _unrolled(packed, solver)
    if isinstance(adjoint, OneStep):
        last = _LastStep(packed)
    by_kernel = isinstance(adjoint, Implicit) and isinstance(adjoint.solver, ForwardIteration | Anderson | GaussSeidel)
    if by_kernel and other_rule(adjoint.solver) is None:
        adjoint = replace(adjoint, solver=_Compiled(packed, adjoint.solver, adjoint.solver.max_steps, adjoint=True))
        last = _LastStep(packed)
    forward = _Compiled(packed, solver, solver.max_steps, adjoint=False)
    return adjoint.solve(last, step.initial, forward)


@torch.no_grad()
def sweep(step: GRUIteration, v0: Tensor, solver: GaussSeidel) -> Solution:
    """Return what Gauss-Seidel sweeps make of v0 [B, S, h, w].

    Raises:
        ValueError: If the compiled loop cannot take this step.
    """
    reason = unsupported(step, solver, Implicit())
    if reason is not None:
        raise ValueError(solver.refusal(reason))
    return _Compiled(_PackedStep(step), solver, solver.max_steps, adjoint=False).solve(step, v0)


@dataclass
class _PackedStep:
    """One step's data in the order in which the kernel reads it, the state that it is linearised at, what it kept.

    Attributes:
        step: The step.
        quick: Whether the solver's tolerance leaves room for quick products (`planners.compiled.tiles`).
        state: Its channels.
        missing: Channels of zeros that the kernel is given beside them.
        grid: How a map lies in memory.
        filters: Gates, candidate and what of them reads r, packed.
        tiles: The same for tile registers, where the processor has some and quick products will do.
        reward: r [B, 1, h, w].
        at: The state that the next steps start from: v_0, and what a forward solve ends with once it has run.
        kept: What the steps taken for the backward pass kept; there once those steps have run.
    """

    step: GRUIteration
    quick: bool = False
    state: int = field(init=False)
    missing: int = field(init=False)
    grid: Grid = field(init=False)
    filters: GRUFilters = field(init=False)
    tiles: GRUTiles | None = field(init=False)
    reward: np.ndarray = field(init=False)
    at: np.ndarray = field(init=False)
    kept: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        state, size = self.step.candidate.shape[0], self.step.gates.shape[-1]
        missing = -state % OUTPUTS_AT_ONCE
        height, width = self.step.initial.shape[2:]
        self.state, self.missing = state, missing
        self.grid = grid_of(height, width, size // 2, self.step.wrap)
        step, channels = self.step, (2 * state, state)
        w_r, bias = step.from_reward.detach().split(channels), step.bias.detach()[:, None, None, None].split(channels)
        gates = _padded(step.gates.detach(), 2, missing, missing)
        candidate = _padded(step.candidate.detach(), 1, missing, missing)
        reading = (
            torch.cat((gates, _padded(w_r[0], 2, missing)), 1),
            torch.cat((candidate, _padded(w_r[1], 1, missing)), 1),
        )
        turned = (w.transpose(0, 1).flip(2, 3) for w in (*gates.chunk(2), candidate))
        all_filters = [np.ascontiguousarray(w.numpy()) for w in (*reading, *turned)]
        packed = (pack_weights(w[None])[0] for w in all_filters)
        self.tiles = None
        if self.quick and tiles_available():  # with six products for each they take as long as the vector registers
            offsets, length = tap_offsets(1, size, self.grid), self.grid.length
            tiles = (pack_tiles(w.reshape(*w.shape[:2], -1), offsets, length) for w in all_filters)
            self.tiles = GRUTiles(*tiles)
        biases = (_padded(part, halves, missing).flatten().numpy() for part, halves in zip(bias, (2, 1), strict=True))
        offsets = tap_offsets(state + missing + 1, size, self.grid)
        zeros = np.zeros(state + missing, np.float32)
        self.filters = GRUFilters(*packed, *biases, zeros, offsets)  # type: ignore[call-arg]
        self.reward = self.step.reward.detach().contiguous().numpy()
        self.at = self.padded(self.step.initial)

    @property
    def layout(self) -> tuple[GRUFilters, GRUTiles | None, Grid]:
        """Return what all kernels but the sweeps are told of the step."""
        return self.filters, self.tiles, self.grid

    def padded(self, x: Tensor) -> np.ndarray:
        """Return x [B, S, h, w] with channels of zeros up to a multiple of five."""
        return nn.functional.pad(x.detach(), (0, 0, 0, 0, 0, self.missing)).contiguous().numpy()

    def run(self, solver: Any, start: np.ndarray, *, adjoint: bool) -> GRUResult:
        """Return the state from `start`, or the adjoint vector whose right-hand side and start that is."""
        batch = start.shape[0]
        found = GRUResult(
            np.empty(start.shape, np.float32),
            np.empty(batch, np.float32),
            np.empty(batch, np.int64),
            np.empty(batch, np.int8),
            np.empty((solver.max_steps, batch), np.float32),
        )
        plain_layout, limits = (self.filters, self.grid), (solver.max_steps, solver.tolerance)
        if not isinstance(solver, GaussSeidel):
            plain = Options(solver.max_steps, solver.tolerance, 0, 1.0, 0.0)
            options = anderson_options(solver) if isinstance(solver, Anderson) else plain
            kept = self.kept if adjoint else np.empty((batch, 0, 0), np.float32)
            quick = self.quick and (not adjoint or solver.tolerance >= QUICK_FROM)
            run_in_threads(solve_gru, batch, start, self.reward, kept, *self.layout, quick, options, found)
        elif adjoint:
            run_in_threads(sweep_gru_adjoint, batch, start, self.kept, *plain_layout, *limits, found)
        else:
            run_in_threads(sweep_gru, batch, start, self.reward, *plain_layout, *limits, found)
        return found


@dataclass(frozen=True)
class _Compiled:
    """A solver in compiled form, for the state or for the adjoint vector of one solve."""

    packed: _PackedStep
    solver: Any
    max_steps: int
    adjoint: bool

    @property
    def tolerance(self) -> float:
        return self.solver.tolerance

    @property
    def record(self) -> bool:
        return self.solver.record

    def solve(self, f: Step, v0: Tensor) -> Solution:
        """Return the fixed point from v0; f is what the kernel knows."""
        of = self.packed
        found = of.run(replace(self.solver, max_steps=self.max_steps), of.padded(v0), adjoint=self.adjoint)
        if not self.adjoint:
            of.at = found.value
        value, residual, steps, result, trace = (torch.from_numpy(x) for x in found)
        return Solution(value[:, : of.state], residual, steps, result, trace if self.record else None)


@dataclass(frozen=True)
class _LastStep:
    """One step from where the solver stopped, differentiable where gradients are wanted."""

    packed: _PackedStep

    def __call__(self, v: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.packed.step(v)
        # Nothing asks for the gradient to v: the adjoint system has it already.
        return _kept_steps(self.packed, v.detach(), 1)[0]


def _kept_steps(packed: _PackedStep, v: Tensor, steps: int, every: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Return v after some steps from `packed.at`, which is v; their residuals and the sizes of f(v), [K, B].

    Without `every`, those of the first and the last step; the rest is NaN.
    """
    step = packed.step
    trace, sizes = torch.full((2, steps, len(v)), torch.nan).unbind()
    # The kernel makes the reward's part itself; here it carries the gradient on to reward, filters and biases.
    part = step.reward_part()
    value = _Unroll.apply(v, part, step.gates, step.candidate, packed, (every, trace.numpy(), sizes.numpy()))
    return value, trace, sizes


def _unrolled(packed: _PackedStep, solver: Any) -> Solution:
    """Return what `Unrolled` returns, the steps kept where gradients are wanted."""
    step, steps = packed.step, solver.max_steps
    trace: Tensor | None
    if torch.is_grad_enabled():
        value, trace, sizes = _kept_steps(packed, step.initial, steps, solver.record)
        residual = trace[-1]
        large = sizes[-1] > GROWTH * torch.maximum(norm_per_sample(step.initial.detach()), sizes[0]).clamp(min=1.0)
    else:
        found = _Compiled(packed, replace(solver, tolerance=0.0), steps, adjoint=False).solve(step, step.initial)
        value, residual, trace, large = found.value, found.residual, found.trace, found.result == int(Result.DIVERGED)
    result = torch.where((residual <= solver.tolerance) & (solver.tolerance > 0), Result.SETTLED, Result.MAX_STEPS)
    result = torch.where(large | ~torch.isfinite(residual), Result.DIVERGED, result).to(torch.int8)
    return Solution(
        value, residual, torch.full_like(result, steps, dtype=torch.int64), result, trace if solver.record else None
    )


class _Unroll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, initial: Tensor, part: Tensor, gates: Tensor, candidate: Tensor, packed: _PackedStep, quality: Any
    ) -> Tensor:
        every, *measured = quality
        start, steps = packed.at, len(measured[0])
        # What the backward pass needs belongs to torch, so that memory meters and profilers see it.
        make = take_pages if steps > 1 else torch.empty  # the few of one step would push out those of many
        ctx.kept = make(len(start), steps, 4 * start.shape[1] * packed.grid.length)
        ctx.packed, packed.kept = packed, ctx.kept.numpy()
        value = np.empty(start.shape, np.float32)
        out = (value, *measured)
        run_in_threads(
            unroll_gru, len(start), start, packed.reward, *packed.layout, packed.quick, ctx.kept.numpy(), every, out
        )
        tensors = (initial, part, gates, candidate)
        if not all(torch.isfinite(each).all() for each in tensors):  # the compiled tanh cuts off what is no number
            sound = torch.isfinite(part).flatten(1).all(1) & torch.isfinite(initial).flatten(1).all(1)
            sound &= torch.isfinite(gates).all() & torch.isfinite(candidate).all()
            value[~sound.numpy()] = np.nan
            measured[0][:, ~sound.numpy()] = np.inf
        return torch.from_numpy(value)[:, : packed.state]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the compiled backward pass cannot be differentiated again (create_graph=True); kernel 'reference' can"
            )
        packed: _PackedStep = ctx.packed
        state, size = packed.state, packed.step.gates.shape[-1]
        u = packed.padded(grads[0])
        batch, padded = u.shape[:2]
        offsets = tap_offsets(1, size, packed.grid)
        offsets = np.concatenate([offsets, offsets[-1:].repeat(-len(offsets) % 9)])
        dv0, d_part = np.empty_like(u), np.empty((batch, 3 * padded, *u.shape[2:]), np.float32)
        dw_gates, dw_candidate = (np.empty((batch, n * padded**2 * len(offsets)), np.float32) for n in (2, 1))
        gradients = GRUGradients(dv0, d_part, dw_gates, dw_candidate)
        how = (packed.filters, packed.tiles, offsets, packed.grid, packed.quick)
        run_in_threads(back_through_gru, batch, u, *how, ctx.kept.numpy(), gradients, ctx.needs_input_grad[0])
        d_part = torch.from_numpy(d_part).unflatten(1, (3, padded))[:, :, :state].flatten(1, 2)
        d_gates = torch.from_numpy(dw_gates).sum(0).view(2, padded, padded, -1)[:, :state].flatten(0, 1)
        d_candidate = torch.from_numpy(dw_candidate).sum(0).view(padded, padded, -1)[:state]
        filters = (d[:, :state, : size * size].unflatten(2, (size, size)) for d in (d_gates, d_candidate))
        to_start = torch.from_numpy(dv0)[:, :state] if ctx.needs_input_grad[0] else None
        return to_start, d_part, *filters, None, None


def _padded(w: Tensor, parts: int, missing: int, missing_inputs: int = 0) -> Tensor:
    """Return filters [out, in, F, F] with `missing` zero filters after each part of the outputs, and zero inputs."""
    return torch.cat([nn.functional.pad(part, (0, 0, 0, 0, 0, missing_inputs, 0, missing)) for part in w.chunk(parts)])
