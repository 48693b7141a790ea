"""Solvers that exist in compiled form alone; no kernel is imported before one solves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from planners.cores.reachability import ReachabilityStep
from planners.cores.steps import GRUIteration, ValueIteration
from planners.fixed_points import Solution, Step
from planners.fixed_points.solvers import check_options


@dataclass(frozen=True)
class _CompiledSolver:
    max_steps: int = 30
    tolerance: float = 1e-4
    record: bool = False

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class GaussSeidel(_CompiledSolver):
    """Sweeps that update the cells of a map in place: of value iterations (VIN, SymVIN, Contractive) and the ConvGRU.

    Of the ConvGRU, whose sweeps are in `planners.compiled.conv_gru.gauss_seidel`, it solves the adjoint system too. One
    sweep counts as one application of f. A sample stops at its first sweep that changes its value by at most the
    tolerance; an adjoint's last application of f then gives the residual of f itself.

    Args:
        max_steps: Most sweeps, at least 1.
        tolerance: Relative change ||S(z) - z|| / (1e-5 + ||S(z)||) at which a sample stops; 0 runs all sweeps.
        record: Keep the change of each sweep.
    """

    @torch.no_grad()
    def solve(self, f: Step, v0: Tensor) -> Solution:
        """Return the value after at most max_steps sweeps from v0 [B, G, h, w].

        Raises:
            ValueError: If f is no step in the form that compiled loops take.
        """
        if isinstance(f, ValueIteration):
            from planners.compiled.value_iteration.autograd import sweep

            return sweep(f, v0, self)
        if isinstance(f, GRUIteration):
            from planners.compiled.conv_gru.autograd import sweep as sweep_gru

            return sweep_gru(f, v0, self)
        raise ValueError(self.refusal())

    def refusal(self, reason: str = "") -> str:
        """Return the message of a step that can't be swept, and why."""
        return (
            "solver gauss_seidel updates cells in place, which takes a step v' = max_a (r_a + W_a * v) in compiled "
            "form: core vin, symvin or contractive with temperature 0, or conv_gppn, in float32 on the CPU, kernel "
            "'auto'" + (f" ({reason})" if reason else "")
        )


@dataclass(frozen=True)
class BestFirst(_CompiledSolver):
    """Solves the core `reachability` from the goal outwards; of its implicit adjoint too.

    Args:
        max_steps: Most sweeps where latent actions still mix destinations, at least 1; what is settled takes one.
        tolerance: Relative rise of log v below which a sweep changes nothing.
        record: Keep the change of the last sweep.
    """

    @torch.no_grad()
    def solve(self, f: Step, v0: Tensor) -> Solution:
        """Return log v*, [B, 1, h, w].

        Raises:
            ValueError: If f is no step of the core `reachability` on the CPU.
        """
        if not isinstance(f, ReachabilityStep) or v0.device.type != "cpu":
            raise ValueError("solver best_first solves the step of the core reachability, on the CPU")
        from planners.compiled.reachability.best_first import solve

        return solve(f, v0.dtype, self)
