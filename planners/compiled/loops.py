"""Which compiled loop takes a step, and why none does."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from torch import Tensor, is_grad_enabled

from planners.cores.reachability import ReachabilityStep
from planners.cores.steps import GRUIteration, ValueIteration
from planners.fixed_points import Solution


def unsupported(step: Any, solver: Any, adjoint: Any) -> str | None:
    """Return why no compiled loop solves this step with this solver and adjoint, or None where one does."""
    if find_spec("numba") is None:
        return "numba is not installed"
    if isinstance(step, ValueIteration):
        from planners.compiled.value_iteration import autograd as value_iteration

        return value_iteration.unsupported(step, solver, adjoint)
    if isinstance(step, GRUIteration):
        from planners.compiled.conv_gru import autograd as conv_gru

        return conv_gru.unsupported(step, solver, adjoint)
    if isinstance(step, ReachabilityStep):
        from planners.compiled.reachability import best_first

        return best_first.unsupported(step, solver, adjoint)
    return f"{type(getattr(step, 'core', step)).__name__} has no compiled loop"


def policy(step: Any, value: Tensor) -> Tensor:
    """Return what `step.policy(value)` returns, by a loop where there is one, [B, actions, h, w]."""
    if isinstance(step, ReachabilityStep) and not is_grad_enabled():
        from planners.compiled.reachability import best_first

        return best_first.policy(step, value)
    logits: Tensor = step.policy(value)
    return logits


def fixed_point(step: Any, *, solver: Any, adjoint: Any) -> tuple[Tensor, Solution]:
    """Return what `planners.fixed_points.fixed_point` returns for a step that is supported, from its initial value.

    Returns:
        The value as the policy reads it, in float64 where a loop keeps it so; and the solution.
    """
    if isinstance(step, ReachabilityStep):
        from planners.compiled.reachability import best_first

        return best_first.fixed_point(step, solver, adjoint)
    if isinstance(step, GRUIteration):
        from planners.compiled.conv_gru import autograd as conv_gru

        solution = conv_gru.fixed_point(step, solver=solver, adjoint=adjoint)
    else:
        from planners.compiled.value_iteration import autograd as value_iteration

        solution = value_iteration.fixed_point(step, step.initial_value(), solver=solver, adjoint=adjoint)
    return solution.value, solution
