"""Forward iteration by one launch, where the step is one that the kernels know and its maps fit."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, fields
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from planners.cores.reachability import ReachabilityStep
from planners.cores.steps import ValueIteration
from planners.fixed_points import ForwardIteration, Solution, Step, Unrolled

MOST_CELLS = 4096
"""Cells of a map whose value fits the registers of one multiprocessor, beside its neighbours' and Q."""
_CELLS_PER_THREAD = 8
_LANES = 32


@dataclass(frozen=True)
class OnChip(ForwardIteration):
    """`ForwardIteration` whose steps stay on the chip, where `refusal` has no reason against it."""

    def solve(self, f: Step, v0: Tensor) -> Solution:
        """Return what `ForwardIteration` returns, for the steps of `ValueIteration` and `Reachability`."""
        if isinstance(f, ValueIteration):
            return iterate(f.prepared(), v0, self)
        assert isinstance(f, ReachabilityStep)
        return reach(f, v0, self)


def on_chip(step: Any, solver: Any, adjoint: Any) -> OnChip | None:
    """Return the solver that does on the chip what this one does for the step, None where none does."""
    if solver_refusal(solver, adjoint) or step_refusal(step):
        return None
    if missing((step.reward if isinstance(step, ValueIteration) else step.goal).device):
        return None
    return OnChip(**{field.name: getattr(solver, field.name) for field in fields(solver)})


def solver_refusal(solver: Any, adjoint: Any) -> str:
    """Return why the kernels do not what this solver does, empty where they do."""
    if type(solver) is not ForwardIteration or solver.rule != "residual" or solver.record:
        return "the kernels iterate forward, by the residual rule, and record nothing"
    if isinstance(adjoint, Unrolled):
        return "what is differentiated through step by step leaves the chip at each"
    return ""


def step_refusal(step: Any) -> str:
    """Return why the kernels do not know this step, empty where they do."""
    if isinstance(step, ValueIteration):
        tensors = (step.reward, step.w_v)
        if step.channels != 1 or step.temperature != 0.0:
            return "value iteration of one channel, by the maximum"
    elif isinstance(step, ReachabilityStep):
        tensors = (step.goal, step.taps)
        if step.costs is not None:
            return "reachability without costs"
    else:
        return f"{type(step).__name__} has no kernel"
    if any(part.dtype != torch.float32 for part in tensors):
        return "float32"
    cells = tensors[0].shape[-2] * tensors[0].shape[-1]
    return "" if cells <= MOST_CELLS else f"maps of up to {MOST_CELLS} cells"


@cache
def _can_compile() -> bool:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    return find_spec("triton") is not None and compiler is not None


def missing(device: torch.device) -> str:
    """Return what there is not to run the kernels on this device, empty where there is all."""
    if device.type != "cuda":
        return "a CUDA device"
    if not _can_compile():
        return "triton, and a C compiler by which it makes its launchers"
    return "" if torch.cuda.get_device_capability(device) >= (8, 0) else "compute capability 8.0"


def iterate(step: ValueIteration, v0: Tensor, solver: ForwardIteration, actions: Tensor | None = None) -> Solution:
    """Return the value iteration's solution from v0 [B, 1, h, w]; no graph is recorded.

    Args:
        step: Prepared.
        v0: Where to start.
        solver: Steps and tolerance.
        actions: int32 [B, h, w], to be filled with the first maximal action of each cell's last step; None for no need.
    """
    from planners.compiled.on_chip import kernels

    start, reward, taps = (part.detach().contiguous() for part in (v0, step.reward, step.w_v))
    found, grid = _Found.like(start), _Grid.of(start)
    chosen = torch.empty(0, dtype=torch.int32, device=start.device) if actions is None else actions
    kernels.value_iteration[grid.programs](
        start, reward, taps, *found.parts, chosen,
        *grid.size, len(taps), solver.max_steps, float(solver.tolerance),
        FILTER=taps.shape[-1], WRAP=step.wrap, ARGMAX=actions is not None, BLOCK=grid.block, num_warps=grid.warps,
    )  # fmt: skip
    return found.solution()


def reach(step: ReachabilityStep, v0: Tensor, solver: ForwardIteration) -> Solution:
    """Return reachability's solution from v0 [B, 1, h, w]; no graph is recorded."""
    from planners.compiled.on_chip import kernels

    assert isinstance(step.floor, float)
    start, moves, taps = (part.detach().contiguous() for part in (v0, step.moves, step.taps))
    found, grid = _Found.like(start), _Grid.of(start)
    kernels.reachability[grid.programs](
        start, moves, taps, taps.argmax(1).int(), *found.parts,
        *grid.size, len(taps), solver.max_steps, float(solver.tolerance), step.floor,
        NEIGHBOURS=step.neighbours, WRAP=step.wrap, SHARP=step.sharp, BLOCK=grid.block, num_warps=grid.warps,
    )  # fmt: skip
    return found.solution()


@dataclass(frozen=True)
class _Grid:
    """One program a map: how many, over how many cells (a power of two), by how many warps."""

    programs: tuple[int]
    size: tuple[int, int]
    block: int
    warps: int

    @classmethod
    def of(cls, v: Tensor) -> _Grid:
        batch, _, height, width = v.shape
        block = max(_LANES, 1 << (height * width - 1).bit_length())
        return cls((batch,), (height, width), block, min(16, max(1, block // (_LANES * _CELLS_PER_THREAD // 4))))


@dataclass(frozen=True, eq=False)
class _Found:
    """Where a kernel leaves its solution."""

    parts: tuple[Tensor, Tensor, Tensor, Tensor]

    @classmethod
    def like(cls, v: Tensor) -> _Found:
        residual = v.new_empty(len(v))
        steps, result = (torch.empty_like(residual, dtype=kind) for kind in (torch.int64, torch.int8))
        return cls((torch.empty_like(v), residual, steps, result))

    def solution(self) -> Solution:
        value, residual, steps, result = self.parts
        return Solution(value, residual, steps, result)
