"""What a solver returns: the answer, and how good it is, sample by sample; and what each verdict promises.

The stopping rules. With g = f(z) - z, J = df/dv and eps the dtype's distance from 1 to the next number, a sample stops

- by the *error rule* (`rule="error"`, the default of every solver) once, three looks in a row and for every number i of
  the sample, A |g_i| <= tolerance |f(z)_i|. The error of z is (I - J)^{-1} g to first order, and A = ||dz|| / ||dg||
  estimates how much the inverse amplifies, from what f did to the latest changes of z; a plain residual knows nothing
  of it (at a rate of 0.9999 it is 10,000). Where 8 looks bring no gain, eps times the largest number of f(z) is allowed
  on top, which is what rounding leaves of a small number beside large ones, or 2^-52 times that of the start, so that a
  solution of zero is reachable. By this rule no tolerance is below 4 eps. In half precision, besides, no number may
  have moved by more than that since half the looks ago: a drift below rounding shows in no two looks. Nothing depends
  on units, of v or of F. A sample that has no error left to see (g = 0) stops at once.
- by the *residual rule* (`rule="residual"`) once ||g|| / (1e-5 + ||f(z)||) <= tolerance, in one norm over the sample:
  the paper's rule, by which planners train and the compiled loops stop. It is small too where f hardly moves z (slow
  maps), where the sample is mostly something else (mixed magnitudes), and where all is below 1e-5. Its tolerance is
  taken as it is: one below eps, which of bfloat16 is 0.008, may never be met. That of `StridedIteration`, and of a
  solver from elsewhere that has no `rule`, is taken for 4 eps where it is less. Its norms are plain ones: a sample
  whose squares leave the range of the dtype (in single precision, numbers from 1e19 on) counts as diverged.

What a verdict promises:

- CONVERGED: stopped by the error rule; by the estimate every number is within the tolerance of the solution's. The
  estimate is first-order and sees only directions in which z has moved: an error hidden below the tolerance in a
  direction along which f contracts 10,000 times slower than in all others can escape it, and in half precision so can
  one along which a step moves less than half an eps. `GMRES` says it of a linear
  system whose residual and error, by the singular values known, are both within bounds.
- SETTLED: stopped by the residual rule. f changes z little, relative to z; how far the solution is was not judged.
- MAX_STEPS: neither, when the steps ran out. The value is the best known.
- DIVERGED: an iterate was not finite; or, by the error rule, ||g|| had grown a million times over when the steps ran
  out; by the residual rule, ||f(z)|| exceeded a million times max(1, ||v0||, ||f(v0)||). The value is the last finite.

A solver from elsewhere may call SETTLED what it has not judged, and must not call CONVERGED what is wrong;
`planners.conformance.solvers` tries it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

from torch import Tensor

Step = Callable[[Tensor], Tensor]
"""One application of f: [B, ...] -> [B, ...]. Dimension 0 is the batch; samples do not see each other. f gives a new
tensor and leaves its argument as it is."""


class Result(IntEnum):
    """How the solve of one sample ended; the module's docstring says what each promises.

    Inside torch.compile a tensor is to be compared with int(Result.CONVERGED): torch 2.13 takes its comparison with a
    member of an enumeration for False there.
    """

    CONVERGED = 0
    """Within the tolerance of the solution, by an estimate of the error."""
    MAX_STEPS = 1
    """The steps ran out first."""
    DIVERGED = 2
    """An iterate was not finite, or grew out of bounds."""
    SETTLED = 3
    """The relative residual is at most the tolerance; the error was not judged."""


class NotSolved(RuntimeError):
    """A solution, or the linear system of a gradient, was not found, and `throw=True` asked for an error.

    Attributes:
        found: The `Solution` or `AdjointRecord` as far as it came.
    """

    def __init__(self, message: str, found: Any) -> None:
        super().__init__(message)
        self.found = found


@dataclass(frozen=True, eq=False)
class AdjointRecord:
    """How the adjoint system (Eq. 6) was solved in the latest backward pass.

    Attributes:
        residual: [B] relative residual of w.
        steps: [B] vector-Jacobian products spent.
        result: [B] int8, a `Result` each; what is not CONVERGED gave an approximate gradient (SETTLED: one whose
            error was not judged).
        trace: [K_bwd, B] residual after each product, or None when the adjoint's solver recorded none.
        value: [B, ...] w itself, where a later solve may start.
    """

    residual: Tensor
    steps: Tensor
    result: Tensor
    trace: Tensor | None = None
    value: Tensor | None = field(default=None, repr=False)


@dataclass(eq=False)
class AdjointSlot:
    """Where the backward pass leaves its record; a solution exists before its backward pass has run."""

    record: AdjointRecord | None = None


@dataclass(frozen=True, eq=False)
class Solution:
    """A solution for every sample of a batch, with its quality.

    Attributes:
        value: [B, ...] the solution; differentiable where an adjoint attached it.
        residual: [B] relative residual, at least float32, inf where it is not finite: ||f(z) - z|| / ||f(z)||, with
            1e-5 added below by the residual rule. Of a solver's own solution z is the latest iterate that f was applied
            to, of an accelerated one the best; of `fixed_point` it is the one whose image is the value.
        steps: [B] int64, applications of f that each sample used.
        result: [B] int8, a `Result` each.
        trace: [K, B] residual after each step, or None when it was not recorded; a sample that has stopped keeps its
            last residual.
        slot: Filled by the backward pass; read it through `adjoint`.
        states: [B, ...] each, differentiable like the value: the images of the applications of f that were asked for.
    """

    value: Tensor
    residual: Tensor
    steps: Tensor
    result: Tensor
    trace: Tensor | None = None
    slot: AdjointSlot = field(default_factory=AdjointSlot, repr=False)
    states: tuple[Any, ...] = ()

    @property
    def adjoint(self) -> AdjointRecord | None:
        """The record of the latest backward pass, None before it and for adjoints that solve no system."""
        return self.slot.record


class Solver(Protocol):
    """A fixed-point solver: a dataclass that finds v with f(v) = v for each sample, without recording gradients.

    `fixed_point` and planners change its fields by `dataclasses.replace`: its steps (one is kept back for the adjoint),
    its tolerance, and its record. It may have `rule` ("error" or "residual"); planners set it to "residual".
    `planners.conformance.solvers` checks all this, and `idp check` runs that on a plug-in.
    """

    @property
    def max_steps(self) -> int:
        """Most applications of f."""

    @property
    def tolerance(self) -> float:
        """At which a sample stops; 0 runs all steps."""

    @property
    def record(self) -> bool:
        """Whether the solution has a trace."""

    def solve(self, f: Step, v0: Tensor) -> Solution:
        """Return the fixed point of f found from v0 [B, ...], in memory of its own; v0 stays as it is."""


class Adjoint(Protocol):
    """How gradients pass through a solution."""

    def solve(self, f: Step, v0: Tensor, solver: Solver) -> Solution:
        """Return the solver's answer, differentiable in every tensor that f captures."""
