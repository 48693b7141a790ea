"""The public functions, with no planner: fixed_point and root, and the examples that show them."""

import dataclasses
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from iterations import randn
from torch import Tensor

from planners.fixed_points import (
    GMRES,
    Anderson,
    Broyden,
    ForwardIteration,
    Implicit,
    OneStep,
    Result,
    Solver,
    Unrolled,
    fixed_point,
    root,
)
from planners.planner import build_planner
from planners.specs import PlannerSpec

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("implicit_*.py"))


def test_defaults_are_forward_iteration_and_implicit() -> None:
    b = randn(2, 3).requires_grad_()
    found = fixed_point(lambda v: 0.5 * v + b, torch.zeros(2, 3, dtype=torch.float64))
    assert (found.result == Result.CONVERGED).all() and (found.residual <= ForwardIteration().tolerance).all()
    found.value.sum().backward()
    torch.testing.assert_close(b.grad, torch.full_like(b, 2.0), rtol=1e-4, atol=0.0)
    assert found.adjoint is not None


@pytest.mark.parametrize("v0", [torch.tensor(1.0), torch.ones(2, 3, dtype=torch.int64)])
def test_bad_start_is_refused(v0: Tensor) -> None:
    with pytest.raises(ValueError, match="v0: expected a floating point tensor"):
        fixed_point(lambda v: v, v0)


MATRIX, B, C = randn(4, 4, seed=1), randn(3, 4, seed=2), randn(3, 4, seed=3)
"""Indefinite and not symmetric: v - F(v) is no contraction."""


def condition(matrix: Tensor, b: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda v: 3.0 * v @ matrix.T + 0.3 * torch.tanh(v) - b


def solved_elsewhere(matrix: Tensor, b: Tensor) -> Tensor:
    """Newton's method with dense Jacobians written by hand."""
    v = torch.zeros_like(b)
    for _ in range(50):
        slope = torch.diag_embed(0.3 * (1.0 - torch.tanh(v) ** 2))
        v = v - torch.linalg.solve(3.0 * matrix + slope, condition(matrix, b)(v))
    return v


def exact_gradient(matrix: Tensor, v: Tensor, c: Tensor) -> Tensor:
    """d<c, v*>/db for each sample."""
    jacobian = 3.0 * matrix + torch.diag_embed(0.3 * (1.0 - torch.tanh(v) ** 2))
    return torch.linalg.solve(jacobian.transpose(1, 2), c)


ADJOINTS = (
    None,
    Implicit(GMRES(10, 1e-13)),
    Implicit(Broyden(200, 1e-12, depth=40)),
    Implicit(Anderson(200, 1e-12, depth=8)),
)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=["default", "gmres", "broyden", "anderson"])
def test_root_differentiates_a_solution_found_elsewhere(adjoint: Implicit | None) -> None:
    matrix, b = MATRIX.clone().requires_grad_(), B.clone().requires_grad_()
    value = solved_elsewhere(MATRIX, B)
    found = root(condition(matrix, b), solution=value, adjoint=adjoint)
    assert torch.equal(found.value, value) and (found.result == Result.CONVERGED).all()
    gradients = torch.autograd.grad((C * found.value).sum(), (matrix, b))
    w = exact_gradient(MATRIX, value, C)
    rtol = 1e-4 if adjoint is None else 1e-8
    torch.testing.assert_close(gradients[1], w, rtol=rtol, atol=rtol)
    torch.testing.assert_close(gradients[0], -3.0 * w.T @ value, rtol=rtol, atol=10 * rtol)
    assert found.adjoint is not None and (found.adjoint.result == Result.CONVERGED).all()


@pytest.mark.parametrize("solver", [None, Broyden(200, 1e-10, depth=30), Anderson(300, 1e-10, depth=8)])
def test_root_solves_by_itself(solver: Solver | None) -> None:
    b = B.clone().requires_grad_()
    found = root(condition(MATRIX, b), torch.zeros_like(B), solver=solver)
    assert (found.result == Result.CONVERGED).all()
    torch.testing.assert_close(found.value, solved_elsewhere(MATRIX, B), rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad((C * found.value).sum(), b)
    torch.testing.assert_close(gradient, exact_gradient(MATRIX, found.value.detach(), C), rtol=1e-4, atol=1e-4)


def test_root_of_a_badly_scaled_condition() -> None:
    """The scale of F is free; w - F^T w + g would lose the small one in rounding and blow up on the large one."""
    for scale in (1e-8, 1e8):
        b = B.clone().requires_grad_()
        F = condition(MATRIX, b)
        found = root(
            lambda v, F=F, scale=scale: scale * F(v),
            solution=solved_elsewhere(MATRIX, B),
            adjoint=Implicit(GMRES(10, 1e-12)),
        )
        (gradient,) = torch.autograd.grad((C * found.value).sum(), b)
        torch.testing.assert_close(gradient, exact_gradient(MATRIX, found.value.detach(), C), rtol=1e-9, atol=1e-9)


def test_singular_condition_warns_instead_of_giving_zeros_silently() -> None:
    b = B.clone().requires_grad_()
    singular = torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64))
    found = root(
        lambda v: v @ singular - b * torch.tensor([1.0, 1.0, 1.0, 0.0]), solution=B * torch.tensor([1.0, 1.0, 1.0, 7.0])
    )
    with pytest.warns(RuntimeWarning, match="not solved for 3 of 3 samples.*singular"):
        found.value.sum().backward()
    assert found.adjoint is not None and (found.adjoint.result != Result.CONVERGED).all()


def test_root_judges_a_wrong_solution() -> None:
    given = solved_elsewhere(MATRIX, B) + torch.tensor([[0.0], [1.0], [torch.nan]])
    with pytest.warns(RuntimeWarning, match="the given solution is no root of F for 2 of 3 samples"):
        found = root(condition(MATRIX, B), solution=given)
    assert found.result.tolist() == [Result.CONVERGED, Result.MAX_STEPS, Result.DIVERGED]
    assert found.residual[0] < 1e-12 and found.residual[1] > 0.1


def test_root_without_gradients() -> None:
    b = B.clone().requires_grad_()
    with torch.no_grad():
        assert not root(condition(MATRIX, b), solution=solved_elsewhere(MATRIX, B)).value.requires_grad
    assert root(condition(MATRIX, b), solution=solved_elsewhere(MATRIX, B)).value.requires_grad


def test_root_takes_as_many_derivatives_as_it_says() -> None:
    b = B.clone().requires_grad_()

    def solve(b: Tensor, **options: object) -> Tensor:
        adjoint = Implicit(GMRES(10, 1e-13), **options)
        return root(condition(MATRIX, b), solution=solved_elsewhere(MATRIX, b.detach()), adjoint=adjoint).value

    assert torch.autograd.gradgradcheck(solve, b)
    with pytest.raises(RuntimeError, match=r"cannot be differentiated again.*order=2"):
        torch.autograd.grad(solve(b, order=1).sum(), b, create_graph=True)


def test_root_names_what_is_wrong() -> None:
    F = condition(MATRIX, B)
    with pytest.raises(ValueError, match="either v0"):
        root(F)
    with pytest.raises(ValueError, match="either v0"):
        root(F, B, solution=B)
    with pytest.raises(ValueError, match="solver: expected none"):
        root(F, solution=B, solver=Anderson())
    with pytest.raises(ValueError, match="solution: expected a floating point tensor"):
        root(F, solution=torch.ones(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="must keep the shape"):
        root(lambda v: v[:, :1], solution=B)


def test_there_are_five_examples() -> None:
    assert len(EXAMPLES) == 5


def test_the_equilibrium_classifier_learns() -> None:
    example = runpy.run_path(str(next(path for path in EXAMPLES if path.stem == "implicit_equilibrium")))
    model, (x, ring) = example["trained"](), example["rings"](200, seed=2)
    assert (model(x).argmax(dim=1) == ring).double().mean() > 0.95


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_prints_a_gradient_that_agrees(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    implicit, reference = runpy.run_path(str(example))["main"]()
    torch.testing.assert_close(torch.as_tensor(implicit), torch.as_tensor(reference), rtol=1e-6, atol=1e-6)
    assert torch.as_tensor(reference).abs().max() > 0.01
    assert "implicit" in capsys.readouterr().out


@pytest.mark.parametrize("adjoint", [Implicit(), OneStep()], ids=lambda adjoint: type(adjoint).__name__)
@pytest.mark.parametrize("rule", ["error", "residual"])
def test_a_tolerance_that_was_not_reached_warns_unless_the_steps_are_wanted(adjoint, rule):
    def slow(v):
        return 0.9 * v + 1.0

    zeros, solver = torch.zeros(3, 2), ForwardIteration(5, 1e-4, rule=rule)
    with pytest.warns(RuntimeWarning, match="fixed_point: no fixed point was found for 3 of 3 samples") as told:
        assert set(fixed_point(slow, zeros, solver=solver, adjoint=adjoint).result.tolist()) == {Result.MAX_STEPS}
    assert len(told) == 1 and told[0].filename == __file__
    wanted = dataclasses.replace(solver, tolerance=0.0)
    assert set(fixed_point(slow, zeros, solver=wanted, adjoint=adjoint).result.tolist()) == {Result.MAX_STEPS}
    assert set(fixed_point(slow, zeros, solver=solver, adjoint=Unrolled()).result.tolist()) == {Result.MAX_STEPS}


@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_a_planner_whose_steps_are_its_plan_does_not_warn(kernel):
    planner = build_planner(
        PlannerSpec(core="conv_gppn", hidden_channels=4, k_fwd=2, k_bwd=2), actions=4, kernel=kernel
    )
    goal = torch.zeros(2, 1, 9, 9)
    goal[:, 0, 4, 4] = 1.0
    plan = planner.plan(torch.ones(2, 1, 9, 9), goal)
    assert (plan.solution.result == Result.MAX_STEPS).all()
    plan.logits.sum().backward()


def test_a_small_number_of_a_given_root_is_judged_by_itself():
    target = torch.tensor([[1e6, 1e-3]], dtype=torch.float64, requires_grad=True)
    assert root(lambda v: v - target, solution=target.detach()).result.tolist() == [Result.CONVERGED]
    wrong = target.detach() + torch.tensor([[0.0, 1e-3]], dtype=torch.float64)  # twice what it should be
    with pytest.warns(RuntimeWarning, match="the given solution is no root of F for 1 of 1 samples"):
        assert root(lambda v: v - target, solution=wrong).result.tolist() == [Result.MAX_STEPS]
