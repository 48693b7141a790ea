"""What training has cost so far, and whether a budget that all planners share is used up."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from planners.fixed_points import Solution
from planners.specs import TrainingSpec


@dataclass(frozen=True)
class Spent:
    """What a trial has spent on training steps.

    Attributes:
        steps: Training steps.
        seconds: Their wall time; a resumed trial keeps what it had spent, and loses what an interruption undid.
        applications: Applications of f per sample, forward and backward; see `applications`.
    """

    steps: int = 0
    seconds: float = 0.0
    applications: float = 0.0

    def after(self, steps: int, seconds: float, applications: float) -> Spent:
        """Return what is spent after so much more."""
        return Spent(self.steps + steps, self.seconds + seconds, self.applications + applications)

    def exhausts(self, training: TrainingSpec) -> bool:
        """True where one of the spec's limits is reached."""
        limits = (
            (self.steps, training.most_steps),
            (self.seconds, training.most_seconds),
            (self.applications, training.most_applications),
        )
        return any(most is not None and spent >= most for spent, most in limits)


def applications(solution: Solution, adjoint: str) -> Tensor:
    """Return what one step spent on f, per sample, a scalar: applications forward, vector-Jacobian products backward.

    The two cost about the same, which makes this the measure by which planners of different K and adjoint compare.

    Args:
        solution: The step's forward solution, after its backward pass.
        adjoint: Name of the adjoint: the unrolled one pulls back through every application; all others through the
            last, on top of the products that their system took.
    """
    forward = solution.steps.float().mean().double()
    if adjoint == "unrolled":
        return 2.0 * forward
    if solution.adjoint is None:
        return forward + 1.0
    return forward + solution.adjoint.steps.float().mean().double() + 1.0
