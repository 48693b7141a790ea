"""What a solver returns: the answer, and how good it is, sample by sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from torch import Tensor

Step = Callable[[Tensor], Tensor]
"""One application of f: [B, ...] -> [B, ...]. Dimension 0 is the batch; samples do not see each other."""


class Result(IntEnum):
    """How the solve of one sample ended."""

    CONVERGED = 0
    """The relative residual is at most the tolerance."""
    MAX_STEPS = 1
    """The steps ran out first."""
    DIVERGED = 2
    """An iterate was not finite, or grew past `solvers.GROWTH` times the size of the first one."""


@dataclass(frozen=True, eq=False)
class AdjointRecord:
    """How the adjoint system (Eq. 6) was solved in the latest backward pass.

    Attributes:
        residual: [B] relative residual of w.
        steps: [B] vector-Jacobian products spent.
        result: [B] int8, a `Result` each; what is not CONVERGED gave an approximate gradient.
        trace: [K_bwd, B] residual after each product, or None when the adjoint's solver recorded none.
    """

    residual: Tensor
    steps: Tensor
    result: Tensor
    trace: Tensor | None = None


@dataclass(eq=False)
class AdjointSlot:
    """Where the backward pass leaves its record; a solution exists before its backward pass has run."""

    record: AdjointRecord | None = None


@dataclass(frozen=True, eq=False)
class Solution:
    """A solution for every sample of a batch, with its quality.

    Attributes:
        value: [B, ...] the solution; differentiable where an adjoint attached it.
        residual: [B] relative residual ||f(z) - z|| / (1e-5 + ||f(z)||) of the latest iterate z that f was applied
            to, at least float32; inf where a norm was not finite.
        steps: [B] int64, applications of f that each sample used.
        result: [B] int8, a `Result` each.
        trace: [K, B] residual after each step, or None when it was not recorded; a sample that has stopped keeps its
            last residual.
        slot: Filled by the backward pass; read it through `adjoint`.
    """

    value: Tensor
    residual: Tensor
    steps: Tensor
    result: Tensor
    trace: Tensor | None = None
    slot: AdjointSlot = field(default_factory=AdjointSlot, repr=False)

    @property
    def adjoint(self) -> AdjointRecord | None:
        """The record of the latest backward pass, None before it and for adjoints that solve no system."""
        return self.slot.record


class Solver(Protocol):
    """A fixed-point solver: finds v with f(v) = v for each sample, without recording gradients."""

    @property
    def max_steps(self) -> int:
        """Most applications of f."""

    @property
    def tolerance(self) -> float:
        """Relative residual at which a sample stops; 0 runs all steps."""

    def solve(self, f: Step, v0: Tensor) -> Solution:
        """Return the fixed point of f found from v0 [B, ...]."""


class Adjoint(Protocol):
    """How gradients pass through a solution."""

    def solve(self, f: Step, v0: Tensor, solver: Solver) -> Solution:
        """Return the solver's answer, differentiable in every tensor that f captures."""
