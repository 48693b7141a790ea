"""Every adjoint against closed forms, finite differences and each other; its cost; and how it fails."""

import gc
from dataclasses import replace

import pytest
import torch
from iterations import non_normal, randn
from torch import Tensor, nn

from planners.fixed_points import (
    GMRES,
    Adjoint,
    Anderson,
    Broyden,
    ForwardIteration,
    Implicit,
    OneStep,
    Phantom,
    Result,
    Solver,
    Unrolled,
    fixed_point,
)

EXACT_SOLVERS = (ForwardIteration(3000, 1e-14), Anderson(400, 1e-13), Broyden(400, 1e-13))
ADJOINT_SOLVERS = (*EXACT_SOLVERS, GMRES(40, 1e-13))

by_name = {"ids": lambda s: type(s).__name__}


class Problem:
    """The affine step A v + b, and the gradients of <c, v*>."""

    def __init__(self, radius: float = 0.8, n: int = 5, batch: int = 3) -> None:
        self.matrix = non_normal(n, radius).requires_grad_()
        self.b = randn(batch, n, seed=1).requires_grad_()
        self.c = randn(batch, n, seed=2)
        self.start = torch.zeros(batch, n, dtype=torch.float64)

    def __call__(self, v: Tensor) -> Tensor:
        return v @ self.matrix.T + self.b

    def exact(self) -> tuple[Tensor, ...]:
        eye = torch.eye(len(self.matrix), dtype=torch.float64)
        value = torch.linalg.solve(eye - self.matrix, self.b.T).T
        return torch.autograd.grad((self.c * value).sum(), (self.matrix, self.b))

    def found(self, solver: Solver, adjoint: Adjoint) -> tuple[Tensor, ...]:
        value = fixed_point(self, self.start, solver=solver, adjoint=adjoint).value
        return torch.autograd.grad((self.c * value).sum(), (self.matrix, self.b))


@pytest.mark.slow
@pytest.mark.parametrize("forward", EXACT_SOLVERS, **by_name)
@pytest.mark.parametrize("backward", ADJOINT_SOLVERS, **by_name)
def test_implicit_gradient_is_the_closed_form(forward: Solver, backward: Solver) -> None:
    problem = Problem()
    for found, exact in zip(problem.found(forward, Implicit(backward)), problem.exact(), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 5])
def test_gradcheck_unrolled(steps: int) -> None:
    """Finite differences of the whole solve, in every entry of every captured tensor, far from the fixed point."""

    def solve(weight: Tensor, inject: Tensor, x: Tensor) -> Tensor:
        f = lambda v: torch.tanh(v @ weight.T + x @ inject.T)  # noqa: E731
        start = torch.zeros(2, 3, dtype=torch.float64)
        return fixed_point(f, start, solver=ForwardIteration(steps), adjoint=Unrolled()).value

    inputs = (0.6 * non_normal(3), randn(3, 1, seed=5), randn(2, 1, seed=6))
    assert torch.autograd.gradcheck(solve, [x.requires_grad_() for x in inputs], rtol=1e-6, atol=1e-8)


def test_products_from_the_left_and_from_the_right_agree() -> None:
    """<w, (dv*/dx) u> by hand and a dense solve is <(dv*/dx)^T w, u> by the adjoint."""
    weight, x, u, w = 0.6 * non_normal(4), randn(3, 4, seed=1), randn(3, 4, seed=2), randn(3, 4, seed=3)
    step = lambda v, x: torch.tanh(v @ weight.T + x)  # noqa: E731
    leaf = x.clone().requires_grad_()
    value = fixed_point(
        lambda v: step(v, leaf),
        torch.zeros_like(x),
        solver=ForwardIteration(2000, 1e-15),
        adjoint=Implicit(Anderson(200, 1e-14)),
    ).value
    (transposed,) = torch.autograd.grad(value, leaf, w)
    slope = 1.0 - step(value.detach(), x) ** 2
    tangent = torch.linalg.solve(torch.eye(4, dtype=torch.float64) - slope[:, :, None] * weight, slope * u)
    torch.testing.assert_close((w * tangent).sum(), (transposed * u).sum(), rtol=1e-11, atol=1e-11)


def test_unrolled_gradient_approaches_the_implicit_one() -> None:
    problem = Problem(radius=0.5)
    exact = problem.exact()
    errors = []
    for steps in (10, 20, 40, 80):
        found = problem.found(ForwardIteration(steps), Unrolled())
        errors.append(max(float((a - b).abs().max()) for a, b in zip(found, exact, strict=True)))
    # 0.5^10 is about 1e-3; a Jordan-like block slows it by a power of K
    assert errors[1] < 1e-1 * errors[0] and errors[2] < 1e-3 * errors[1] and errors[3] < 1e-11


@pytest.mark.parametrize("damping", [1.0, 0.6])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_phantom_is_the_damped_truncated_series(steps: int, damping: float) -> None:
    problem = Problem()
    with torch.no_grad():
        eye = torch.eye(5, dtype=torch.float64)
        moved = damping * problem.matrix.T + (1.0 - damping) * eye
        series = damping * sum(torch.linalg.matrix_power(moved, i) for i in range(steps))
        w = problem.c @ series.T
        value = torch.linalg.solve(eye - problem.matrix, problem.b.T).T
    found = problem.found(Anderson(400, 1e-14), Phantom(steps, damping))
    torch.testing.assert_close(found[1], w, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found[0], w.T @ value, rtol=1e-8, atol=1e-8)


def test_one_step_is_the_shortest_phantom_and_a_long_phantom_is_exact() -> None:
    problem = Problem()
    one = problem.found(Anderson(400, 1e-14), OneStep())
    for a, b in zip(one, problem.found(Anderson(400, 1e-14), Phantom(1)), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(one[1], problem.c)
    for found, exact in zip(problem.found(Anderson(400, 1e-14), Phantom(300, 0.9)), problem.exact(), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-8)


ADJOINTS_OF_ONE_APPLICATION = (Implicit(), Implicit(ForwardIteration(5), inexact=True), Phantom(), OneStep())
ALL_ADJOINTS = (Unrolled(), *ADJOINTS_OF_ONE_APPLICATION)


@pytest.mark.parametrize("adjoint", ALL_ADJOINTS, **by_name)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_value_is_that_of_exactly_k_applications(adjoint: Adjoint, steps: int) -> None:
    problem, calls = Problem(), 0

    def counted(v: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return problem(v)

    solver = ForwardIteration(steps, 0.0, record=True)
    found = fixed_point(counted, problem.start, solver=solver, adjoint=adjoint)
    expected = steps + (adjoint.orders - 1 if isinstance(adjoint, Implicit) else 0)
    assert calls == expected and found.steps.tolist() == [steps] * 3
    plain = solver.solve(problem, problem.start)
    torch.testing.assert_close(found.value, plain.value, rtol=0.0, atol=0.0)
    assert found.trace is not None and found.trace.shape == (steps, 3)
    torch.testing.assert_close(found.trace, plain.trace)
    torch.testing.assert_close(found.residual, plain.residual)
    (found.value * problem.c).sum().backward()
    assert calls == expected, "the graph at v* is built before the backward pass"


@pytest.mark.parametrize("adjoint", ALL_ADJOINTS, **by_name)
def test_without_gradients(adjoint: Adjoint) -> None:
    problem = Problem()
    solver = ForwardIteration(6, 0.0)
    with_graph = fixed_point(problem, problem.start, solver=solver, adjoint=adjoint)
    with torch.no_grad():
        without = fixed_point(problem, problem.start, solver=solver, adjoint=adjoint)
    assert with_graph.value.requires_grad and not without.value.requires_grad
    assert torch.equal(with_graph.value, without.value) and torch.equal(with_graph.residual, without.residual)
    for part in (with_graph.residual, with_graph.steps, with_graph.result):
        assert not part.requires_grad


class Layer(nn.Module):
    """A step with parameters, an input, and an encoder in front."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.hidden = nn.Linear(3, 4).double(), nn.Linear(4, 4).double()
        with torch.no_grad():
            self.hidden.weight *= 0.5

    def forward(self, x: Tensor, start: Tensor, solver: Solver, adjoint: Adjoint) -> Tensor:
        r = self.encode(x)
        return fixed_point(lambda v: torch.tanh(self.hidden(v) + r), start, solver=solver, adjoint=adjoint).value


@pytest.mark.parametrize("adjoint", ALL_ADJOINTS, **by_name)
def test_gradients_reach_all_that_f_captures_and_the_start_only_when_unrolled(adjoint: Adjoint) -> None:
    torch.manual_seed(0)
    layer, x = Layer(), randn(2, 3).requires_grad_()
    start = randn(2, 4, seed=1).requires_grad_()
    layer(x, start, ForwardIteration(4, 0.0), adjoint).square().sum().backward()
    for tensor in (*layer.parameters(), x):
        assert tensor.grad is not None and tensor.grad.abs().max() > 0
    assert (start.grad is not None) == isinstance(adjoint, Unrolled)


def saved(problem: Problem, solver: Solver, adjoint: Adjoint) -> int:
    """Tensors that the forward pass keeps for the backward pass."""
    count = 0

    def pack(x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        fixed_point(problem, problem.start, solver=solver, adjoint=adjoint)
    return count


@pytest.mark.slow
def test_saved_memory_grows_with_k_when_unrolled_and_not_at_all_otherwise() -> None:
    problem = Problem()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        one = saved(problem, ForwardIteration(1), Unrolled())
    counts = [saved(problem, ForwardIteration(k, 0.0), Unrolled()) for k in (5, 10, 20)]
    assert counts[2] - counts[1] == 2 * (counts[1] - counts[0]) > 0
    for adjoint in ADJOINTS_OF_ONE_APPLICATION:
        for solver in (ForwardIteration(5, 0.0), Anderson(10, 0.0), Broyden(10, 0.0)):
            # one more at most: v itself is saved too, being a variable here and a constant there
            applications = adjoint.orders if isinstance(adjoint, Implicit) else 1
            count = saved(problem, solver, adjoint)
            assert count <= applications * (one + 1)
            assert count == saved(problem, replace(solver, max_steps=20), adjoint)


@pytest.mark.slow
def test_no_iterate_outlives_the_forward_pass() -> None:
    """What the process holds, not only what autograd counts: the solver's own memory does not undo the claim."""
    weight = torch.full((1, 1213), 0.5, requires_grad=True)

    def held(solver: Solver, adjoint: Adjoint) -> int:
        found = fixed_point(
            lambda v: torch.tanh(weight * v + 1.0), torch.zeros(3, 1213), solver=solver, adjoint=adjoint
        )
        gc.collect()
        storages = {
            x.untyped_storage().data_ptr()
            for x in gc.get_objects()
            if type(x) is Tensor and x.ndim > 0 and x.shape[-1] == 1213
        }
        assert found.value.requires_grad
        return len(storages)

    implicit = [held(Anderson(k, 0.0), Implicit()) for k in (3, 30)]
    assert implicit[0] == implicit[1] <= 5  # weight, v*, f(v*) and the value


def test_record_of_the_backward_solve() -> None:
    problem = Problem()
    solution = fixed_point(problem, problem.start, solver=Anderson(400, 1e-13), adjoint=Implicit(Anderson(200, 1e-10)))
    assert solution.adjoint is None
    (solution.value * problem.c).sum().backward()
    record = solution.adjoint
    assert record is not None and record.residual.shape == record.steps.shape == record.result.shape == (3,)
    assert (record.result == Result.CONVERGED).all() and (record.residual <= 1e-10).all()
    assert (record.steps > 1).all() and (record.steps < 30).all()


def test_failed_backward_solve_is_flagged_and_gives_no_zeros() -> None:
    # Around v* the step doubles what it is given: no iteration of w converges, though Anderson's answer does.
    problem = Problem()
    with torch.no_grad():
        problem.matrix.copy_(2.0 * torch.eye(5) + 0.1 * randn(5, 5, seed=9))
    forward = Anderson(400, 1e-12)
    solution = fixed_point(problem, problem.start, solver=forward, adjoint=Implicit(ForwardIteration(100, 1e-10)))
    with pytest.warns(RuntimeWarning, match="fixed_point: the linear system of the gradient was not solved for 3 of 3"):
        gradient = torch.autograd.grad((solution.value * problem.c).sum(), problem.b)[0]
    assert solution.adjoint is not None and (solution.adjoint.result == Result.DIVERGED).all()
    assert torch.isfinite(gradient).all() and (gradient.abs().amax(dim=1) > 0).all()

    solution = fixed_point(problem, problem.start, solver=forward, adjoint=Implicit(Anderson(1), inexact=True))
    gradient = torch.autograd.grad((solution.value * problem.c).sum(), problem.b)[0]
    assert solution.adjoint is not None and (solution.adjoint.result == Result.MAX_STEPS).all()
    torch.testing.assert_close(gradient, problem.c)

    for found, exact in zip(problem.found(forward, Implicit(Anderson(100, 1e-12))), problem.exact(), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-8)


def test_not_finite_gradient_stays_not_finite() -> None:
    problem = Problem()
    solution = fixed_point(problem, problem.start, solver=Anderson(50))
    with pytest.warns(RuntimeWarning, match="incoming gradient is not finite"):
        (gradient,) = torch.autograd.grad(solution.value, problem.b, torch.full_like(problem.b, torch.nan))
    assert gradient.isnan().all()
    assert solution.adjoint is not None and (solution.adjoint.result == Result.DIVERGED).all()


@pytest.mark.parametrize("backward", ADJOINT_SOLVERS, **by_name)
def test_samples_without_gradient(backward: Solver) -> None:
    problem = Problem()
    problem.c[1] = 0.0
    solution = fixed_point(problem, problem.start, solver=Anderson(400, 1e-13), adjoint=Implicit(backward))
    gradient = torch.autograd.grad((solution.value * problem.c).sum(), problem.b)[0]
    assert torch.equal(gradient[1], torch.zeros(5, dtype=torch.float64))
    assert solution.adjoint is not None and (solution.adjoint.result == Result.CONVERGED).all()
    torch.testing.assert_close(gradient, problem.exact()[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("adjoint", [Implicit(order=1), Implicit(inexact=True), Phantom(3)], **by_name)
def test_derivatives_beyond_the_order_are_refused(adjoint: Adjoint) -> None:
    problem = Problem()
    value = fixed_point(problem, problem.start, solver=Anderson(50), adjoint=adjoint).value
    # For a linear loss g carries no graph, and the error is easy to miss.
    for loss in (value.sum(), value.square().sum()):
        with pytest.raises(RuntimeError, match=r"cannot be differentiated again.*order=2.*Unrolled"):
            torch.autograd.grad(loss, problem.matrix, create_graph=True)


def test_third_derivatives_for_who_asks() -> None:
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def cubed(order: int) -> Tensor:  # v = w v^2 / 2 + 1/4: v = (1 - sqrt(1 - w / 2)) / w
        f = lambda v: 0.5 * weight * v.square() + 0.25  # noqa: E731
        adjoint = Implicit(GMRES(5, 1e-13), order=order)
        found = fixed_point(f, torch.zeros(1, 1).double(), solver=Anderson(60, 1e-14), adjoint=adjoint).value.sum()
        for _ in range(2):
            (found,) = torch.autograd.grad(found, weight, create_graph=True)
        return torch.autograd.grad(found, weight)[0]

    closed = (1.0 - (1.0 - weight / 2.0).sqrt()) / weight
    for _ in range(3):
        (closed,) = torch.autograd.grad(closed, weight, create_graph=True)
    torch.testing.assert_close(cubed(3), closed.detach(), rtol=1e-8, atol=0.0)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        cubed(2)


def test_backward_twice() -> None:
    problem = Problem()
    solution = fixed_point(problem, problem.start, solver=Anderson(50, 1e-12))
    loss = (solution.value * problem.c).sum()
    first = torch.autograd.grad(loss, problem.b, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(loss, problem.b, retain_graph=True)[0], first)
    loss.backward()
    assert problem.b.grad is not None and torch.equal(problem.b.grad, first)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_unrolled_refuses_other_solvers() -> None:
    problem = Problem()
    with pytest.raises(ValueError, match="ForwardIteration, got Anderson"):
        fixed_point(problem, problem.start, solver=Anderson(), adjoint=Unrolled())


def test_unrolled_flags_divergence_and_convergence() -> None:
    def run(factor: float) -> int:
        f = lambda v: factor * v + 1.0  # noqa: E731
        found = fixed_point(f, torch.zeros(1, 1), solver=ForwardIteration(60, 1e-4), adjoint=Unrolled())
        return int(found.result)

    assert run(0.5) == Result.CONVERGED and run(0.99) == Result.MAX_STEPS
    for factor in (2.0, 1e3):
        with pytest.warns(RuntimeWarning, match="no fixed point was found for 1 of 1 samples"):
            assert run(factor) == Result.DIVERGED


def test_forward_divergence_is_kept_by_implicit() -> None:
    factor = torch.tensor([[0.5], [2.0]])
    with pytest.warns(RuntimeWarning, match="no fixed point was found for 1 of 2 samples"):
        found = fixed_point(lambda v: factor * v + 1.0, torch.zeros(2, 1), solver=ForwardIteration(60, 1e-4))
    assert found.result.tolist() == [Result.CONVERGED, Result.DIVERGED]
    assert torch.isfinite(found.value).all()


@pytest.mark.parametrize("adjoint", ALL_ADJOINTS, **by_name)
def test_autocast_inside_f(adjoint: Adjoint) -> None:
    torch.manual_seed(0)
    layer, x = Layer().float(), randn(2, 3).float()
    results = []
    for enabled in (False, True):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = layer(x, torch.zeros(2, 4), ForwardIteration(20, 0.0), adjoint)
        assert value.dtype == torch.float32
        value.square().sum().backward()
        results.append(layer.hidden.weight.grad.clone())
    torch.testing.assert_close(results[1], results[0], rtol=0.05, atol=0.05 * float(results[0].abs().max()))


def test_a_step_that_ignores_v_or_captures_nothing() -> None:
    b = randn(2, 3).requires_grad_()
    solution = fixed_point(lambda v: b.tanh(), torch.zeros(2, 3, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(solution.value.sum(), b)
    torch.testing.assert_close(gradient, 1.0 - b.detach().tanh() ** 2)
    still = fixed_point(lambda v: torch.ones_like(v), torch.zeros(2, 3))
    assert torch.equal(still.value, torch.ones(2, 3))


@pytest.mark.parametrize("options", [{"steps": 0}, {"damping": 0.0}, {"damping": 1.5}])
def test_bad_phantom_options_are_named(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Phantom(**options)
