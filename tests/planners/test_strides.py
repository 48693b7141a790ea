"""Forward iteration that looks at its residual every few steps alone."""

import pytest
import torch

from planners.conformance import solvers
from planners.fixed_points import ForwardIteration, Implicit, Result, fixed_point
from planners.fixed_points.strides import StridedIteration
from planners.registry import SOLVERS, Entry

LONG = (solvers.check_solver_under_transformations, solvers.check_adjoint_solver_under_transformations)


@pytest.mark.parametrize(
    "check",
    [pytest.param(check, marks=[pytest.mark.slow] * (check in LONG)) for check in solvers.EVERY_SOLVER],
    ids=lambda check: check.__name__,
)
def test_it_does_what_every_solver_must(check, monkeypatch):
    monkeypatch.setitem(SOLVERS, "strided", Entry("planners.fixed_points.strides:StridedIteration"))
    check("strided")


def test_it_stops_at_the_first_look_that_forward_iteration_has_passed():
    rates, start = torch.tensor([[0.1], [0.7], [0.9]], dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64)
    step = lambda v: rates * v + 1.0  # noqa: E731
    each = ForwardIteration(200, 1e-6, rule="residual", record=True).solve(step, start)
    found = StridedIteration(200, 1e-6, stride=5, record=True).solve(step, start)
    looks = [1, *range(6, 201, 5)]
    assert found.steps.tolist() == [next(k for k in looks if k >= n) for n in each.steps.tolist()]
    assert (found.result == Result.SETTLED).all() and len(found.trace) == 200
    for sample, taken in enumerate(found.steps.tolist()):
        exactly = ForwardIteration(taken, 0.0, record=True).solve(step, start)
        assert found.value[sample].equal(exactly.value[sample])
        assert found.residual[sample] == found.trace[-1, sample] <= 1e-6
        torch.testing.assert_close(found.trace[taken - 1, sample], found.residual[sample])


def test_gradients_are_those_of_the_solution():
    b = torch.full((2, 3), 0.5, dtype=torch.float64, requires_grad=True)
    solver = StridedIteration(200, 1e-12)

    def solved(b):
        return fixed_point(
            lambda v: torch.tanh(v) / 2 + b, torch.zeros_like(b), solver=solver, adjoint=Implicit(solver)
        ).value

    assert torch.autograd.gradcheck(solved, b)
    assert torch.autograd.gradgradcheck(solved, b)


def test_what_it_can_t_be_told_is_refused():
    for stride in (0, 2.0, True):
        with pytest.raises(ValueError, match="stride must be at least 1 and whole"):
            StridedIteration(stride=stride)
