"""The ConvGRU as a differentiable fixed point whose solves, forward and adjoint, run compiled.

The last application, which carries the graph, is torch's own: parameter gradients are those of the generic path.

Legend: B samples, S state channels; v state, r reward, w adjoint vector.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from planners import fixed_points
from planners.adjoints import Implicit, OneStep, Phantom
from planners.cores.bellman import convolve
from planners.cores.gru_kernel import OUTPUTS_AT_ONCE, GRUFilters
from planners.cores.gru_solver import Found, Method, solve_gru
from planners.cores.plane import grid_of, tap_offsets
from planners.cores.value_iteration import share
from planners.cores.vin_kernel import pack_weights
from planners.solution import Adjoint, Solution, Solver, Step
from planners.solvers import Anderson, ForwardIteration


@dataclass(frozen=True)
class GRUIteration:
    """The step v' = (1 - u) v + u n of `planners.cores.conv_gppn` as data that a compiled loop can take.

    Attributes:
        initial: v_0 [B, S, h, w].
        reward: r [B, 1, h, w].
        gates: Filters of update and reset gate, [2 S, S, F, F].
        candidate: [S, S, F, F].
        from_reward: What of gates and candidate reads r, [3 S, 1, F, F].
        bias: [3 S].
        wrap: True pads circularly.
    """

    initial: Tensor
    reward: Tensor
    gates: Tensor
    candidate: Tensor
    from_reward: Tensor
    bias: Tensor
    wrap: bool

    def __call__(self, v: Tensor) -> Tensor:
        """Return f(v), [B, S, h, w], by the generic operations."""
        state = v.shape[1]
        gates, candidate = convolve(self.reward, self.from_reward, self.bias, wrap=self.wrap).split(
            (2 * state, state), dim=1
        )
        u, s = torch.sigmoid(gates + convolve(v, self.gates, wrap=self.wrap)).chunk(2, dim=1)
        n = torch.tanh(candidate + convolve(s * v, self.candidate, wrap=self.wrap))
        return torch.lerp(v, n, u)

    def take(self, rows: Tensor) -> GRUIteration:
        """Return the same step for those samples."""
        return replace(self, initial=self.initial[rows], reward=self.reward[rows])


def unsupported(step: GRUIteration, solver: Solver, adjoint: Adjoint) -> str | None:
    """Return why the compiled loop cannot take this, or None when it can."""
    tensors = (step.initial, step.reward, step.gates, step.candidate, step.from_reward, step.bias)
    height, width = step.initial.shape[-2:]
    pad = step.gates.shape[-1] // 2
    if not isinstance(adjoint, Implicit | Phantom | OneStep):
        return f"the compiled ConvGRU records no steps for the adjoint {type(adjoint).__name__}"
    if not isinstance(solver, ForwardIteration | Anderson):
        return f"the compiled ConvGRU has no solver {type(solver).__name__}"
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in tensors):
        return "the compiled ConvGRU works on float32 tensors on the CPU"
    if step.wrap and pad > min(height, width):
        return f"filters reach {pad} cells far, around a torus of {height} x {width}"
    return None


def fixed_point(step: GRUIteration, *, solver: Solver, adjoint: Any) -> Solution:
    """Return what `planners.fixed_point` returns for this step, solver and adjoint from `step.initial`.

    Args:
        step: The step.
        solver: ForwardIteration or Anderson.
        adjoint: Implicit, Phantom or OneStep. The adjoint system runs compiled for the same two solvers.

    Raises:
        ValueError: With the reason that `unsupported` gives.
    """
    reason = unsupported(step, solver, adjoint)
    if reason is not None:
        raise ValueError(reason)
    solve = _Solve(step)
    if isinstance(adjoint, Implicit) and isinstance(adjoint.solver, ForwardIteration | Anderson):
        adjoint = replace(adjoint, solver=_Compiled(solve, adjoint.solver, adjoint.solver.max_steps, adjoint=True))
    forward = _Compiled(solve, solver, solver.max_steps, adjoint=False)
    return fixed_points.fixed_point(step, step.initial, solver=forward, adjoint=adjoint)


@dataclass
class _Solve:
    """One step's data in the order in which the kernel reads it, and the state that it is linearised at."""

    step: GRUIteration
    at: np.ndarray = field(init=False)

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
        turned = (w.transpose(0, 1).flip(2, 3) for w in (gates, candidate))
        packed = (pack_weights(np.ascontiguousarray(w.numpy())[None])[0] for w in (*reading, *turned))
        biases = (_padded(part, halves, missing).flatten().numpy() for part, halves in zip(bias, (2, 1), strict=True))
        offsets = (tap_offsets(n, size, self.grid) for n in (state + missing + 1, 2 * (state + missing)))
        zeros = np.zeros(state + missing, np.float32)
        self.filters = GRUFilters(*packed, *biases, zeros, *offsets)  # type: ignore[call-arg]
        self.reward = self.step.reward.detach().contiguous().numpy()
        self.at = self.padded(self.step.initial)

    def padded(self, x: Tensor) -> np.ndarray:
        """Return x [B, S, h, w] with channels of zeros up to a multiple of five."""
        return nn.functional.pad(x.detach(), (0, 0, 0, 0, 0, self.missing)).contiguous().numpy()

    def run(self, start: np.ndarray, right: np.ndarray, method: Method) -> Found:
        batch = start.shape[0]
        found = Found(
            np.empty(start.shape, np.float32),
            np.empty(batch, np.float32),
            np.empty(batch, np.int64),
            np.empty(batch, np.int8),
            np.empty((method.max_steps, batch), np.float32),
        )
        share(solve_gru, batch, start, self.reward, right, self.filters, self.grid, method, found)
        return found


@dataclass(frozen=True)
class _Compiled:
    """A solver in compiled form, for the state or for the adjoint vector of one solve."""

    solve_of: _Solve
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
        of, solver = self.solve_of, self.solver
        if isinstance(solver, Anderson):
            options = (solver.depth, solver.mixing, max(solver.regularisation**2, 1e-15))
        else:
            options = (0, 1.0, 0.0)
        start = of.padded(v0)
        method = Method(self.max_steps, solver.tolerance, *options)
        found = of.run(of.at, start, method) if self.adjoint else of.run(start, start[:, :0], method)
        if not self.adjoint:
            of.at = found.value
        value, residual, steps, result, trace = (torch.from_numpy(x) for x in found)
        return Solution(value[:, : of.state], residual, steps, result, trace if self.record else None)


def _padded(w: Tensor, parts: int, missing: int, missing_inputs: int = 0) -> Tensor:
    """Return filters [out, in, F, F] with `missing` zero filters after each part of the outputs, and zero inputs."""
    return torch.cat([nn.functional.pad(part, (0, 0, 0, 0, 0, missing_inputs, 0, missing)) for part in w.chunk(parts)])
