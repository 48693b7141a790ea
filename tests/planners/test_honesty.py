"""What is said of a solution is so: cases that were once called CONVERGED though wrong, or failed without a word."""

import math
import warnings
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.autograd.forward_ad as fwd
from iterations import randn
from scipy.sparse.linalg import gmres
from torch import Tensor

from planners import (
    GMRES,
    Anderson,
    Broyden,
    ForwardIteration,
    Implicit,
    OneStep,
    Phantom,
    PlannerSpec,
    Result,
    Unrolled,
    build_planner,
    fixed_point,
    jacobian_penalty,
    root,
    spectral_radius,
)
from planners.fixed_points import Solution
from planners.fixed_points.stopping import ErrorRule

D = torch.float64


def of_radius(n: int, radius: float) -> Tensor:
    matrix = randn(n, n)
    return torch.eye(n, dtype=D) - matrix * radius / torch.linalg.eigvals(matrix).abs().max()


def hilbert(n: int) -> Tensor:
    return torch.tensor([[1.0 / (i + j + 1) for j in range(n)] for i in range(n)], dtype=D)


SYSTEMS = {
    "radius 0.28": of_radius(200, 0.28),
    "radius 0.92": of_radius(200, 0.92),
    "I + rank 3": torch.eye(200, dtype=D) + randn(200, 3) @ randn(200, 3).T / 30,
    "skew": torch.eye(40, dtype=D) + randn(40, 40).triu(1) / 6 - (randn(40, 40).triu(1) / 6).T,
    "shift": torch.eye(30, dtype=D).roll(1, 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("name", SYSTEMS)
def test_gmres_is_as_exact_as_scipy(name: str, dtype: torch.dtype) -> None:
    matrix = SYSTEMS[name].to(dtype)
    b = randn(2, len(matrix), seed=1).to(dtype)
    for tolerance in (1e-5, 0.0):
        found = GMRES(210, tolerance).solve_linear(lambda x: x @ matrix.T, b)
        assert (found.steps <= len(matrix)).all() or tolerance == 0.0
        for i in range(2):
            theirs, _ = gmres(matrix.numpy(), b[i].numpy(), rtol=max(tolerance, 1e-12), restart=210, maxiter=1)
            left = np.linalg.norm(b[i].double().numpy() - matrix.double().numpy() @ theirs.astype(np.float64))
            true = float(torch.linalg.vector_norm(b[i].double() - matrix.double() @ found.value[i].double()))
            size = float(torch.linalg.vector_norm(b[i].double()))
            assert true <= max(2.0 * left, 1e-5 * size * (tolerance > 0.0), 16 * torch.finfo(dtype).eps * size)
            assert abs(float(found.residual[i]) - true / size) <= 0.01 * true / size + 4 * torch.finfo(dtype).eps
        if tolerance:
            assert (found.result == Result.CONVERGED).all()


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_gmres_never_makes_it_worse_and_calls_no_singular_system_solved(dtype: torch.dtype) -> None:
    u, values, v = torch.linalg.svd(of_radius(20, 0.9))
    values[-1] = 0.0
    singular = (u @ torch.diag(values) @ v).to(dtype)
    for matrix, b in (
        (hilbert(8).to(dtype), randn(1, 8).to(dtype)),
        (singular, randn(1, 20).to(dtype)),
        (singular, randn(1, 20).to(dtype) @ singular.T),  # consistent: one of many solutions
    ):
        found = GMRES().solve_linear(lambda x, m=matrix: x @ m.T, b)
        assert float(found.residual) <= 1.0
        exact = torch.linalg.lstsq(matrix.double(), b[0].double()).solution
        error = float((found.value[0].double() - exact).norm() / exact.norm())
        assert found.result != Result.CONVERGED or error < 1e-3


def test_gmres_takes_right_sides_of_any_size_and_no_nonlinear_step() -> None:
    matrix = of_radius(10, 0.5).float()
    for size in (1e-30, 1e-36, 1e30):
        b = torch.full((1, 10), size)
        found = GMRES().solve_linear(lambda x: x @ matrix.T, b)
        ratio = found.value / b
        torch.testing.assert_close(ratio, torch.linalg.solve(matrix, torch.ones(10))[None], rtol=1e-2, atol=0.0)
        assert found.result == Result.CONVERGED
    found = GMRES(record=True).solve(lambda v: torch.cos(v), torch.zeros(1, 3))
    assert found.result != Result.CONVERGED and found.trace is not None and found.trace.shape == (100, 1)


def test_a_sweep_may_name_gmres_for_the_adjoint_alone() -> None:
    planner = build_planner(PlannerSpec(solver_bwd="gmres", k_bwd=20))
    assert planner.adjoint == Implicit(GMRES(20, 1e-4), inexact=True)
    assert planner.recording().adjoint.solver.record
    with pytest.raises(ValueError, match=r"solver 'gmres' solves linear systems.*solver_bwd"):
        PlannerSpec(solver="gmres")


@pytest.mark.slow
def test_slow_parts_that_alternate_do_not_hide_each_other() -> None:
    a = torch.tensor([0.99, -0.99], dtype=D)
    for solver in (ForwardIteration(2_000), Anderson(200), Broyden(200)):
        found = solver.solve(lambda v: a * v + (1.0 - a), torch.zeros(1, 2, dtype=D))
        assert found.result == Result.CONVERGED
        torch.testing.assert_close(found.value, torch.ones(1, 2, dtype=D), rtol=3e-4, atol=0.0)


def test_a_solution_of_zero_is_reached() -> None:
    for solver in (ForwardIteration(100), Anderson(100), Broyden(100)):
        for dtype in (torch.float32, D):
            found = solver.solve(lambda v: 0.5 * v, torch.ones(1, 3, dtype=dtype))
            assert found.result == Result.CONVERGED and float(found.value.abs().max()) < 1e-14


def test_paths_that_creep_and_then_end_are_solved() -> None:
    """Values that grow by one a step until they are exact, as costs without a discount do."""
    length = torch.arange(20.0, dtype=D)
    found = ForwardIteration(60).solve(lambda v: torch.minimum(v + 1.0, length), torch.zeros(1, 20, dtype=D))
    assert found.result == Result.CONVERGED and torch.equal(found.value[0], length)


def test_the_rule_looks_at_empty_samples_and_batches() -> None:
    for shape in ((0, 3), (2, 0), (0,), (2, 0, 3)):
        verdict = ErrorRule(1e-4).judge(torch.zeros(shape), torch.zeros(shape))
        assert verdict.residual.shape == (shape[0],) and not verdict.diverged.any()


@pytest.mark.parametrize("scale", [1e-12, 1.0, 10.0, 1e8])
def test_root_does_not_depend_on_units(scale: float) -> None:
    matrix, x = torch.eye(20, dtype=D) + 0.04 * randn(20, 20), randn(1, 20, seed=1)
    found = root(lambda v: scale * ((v - x) @ matrix.T), torch.zeros(1, 20, dtype=D))
    assert found.result == Result.CONVERGED
    torch.testing.assert_close(found.value, x, rtol=1e-4, atol=1e-6)
    assert root(lambda v: scale * ((v - x) @ matrix.T), solution=x).result == Result.CONVERGED
    with pytest.warns(RuntimeWarning, match="the given solution is no root of F for 1 of 1"):
        assert root(lambda v: scale * ((v - x) @ matrix.T), solution=1.01 * x).result == Result.MAX_STEPS
    far = root(lambda v: scale * (v - 3e-12), torch.zeros(1, 1, dtype=D))
    assert far.result == Result.CONVERGED and abs(float(far.value) - 3e-12) < 1e-17


def test_broyden_keeps_its_steps_in_check() -> None:
    matrix, x = torch.eye(20, dtype=D) + 0.04 * randn(20, 20), randn(3, 20, seed=1)
    for scale in (0.1, 5.0, 10.0, 1e3):
        found = Broyden(200, 1e-8, depth=30).solve(lambda v, s=scale: v - s * ((v - x) @ matrix.T), torch.zeros_like(x))
        assert (found.result == Result.CONVERGED).all()
        torch.testing.assert_close(found.value, x, rtol=1e-6, atol=1e-8)


def test_a_root_that_is_not_found_warns() -> None:
    with pytest.warns(RuntimeWarning, match="root: no root was found for 2 of 2 samples"):
        root(lambda v: v.square() + 1.0, torch.ones(2, 1))


def test_an_ill_conditioned_solution_is_judged_by_its_error() -> None:
    matrix = hilbert(8)
    b = matrix @ torch.ones(8, dtype=D)
    with pytest.warns(RuntimeWarning, match="no root of F"):  # F is 1e-9 there, and the error 1
        _, _, v = torch.linalg.svd(matrix)
        root(lambda v: v @ matrix.T - b, solution=(torch.ones(8, dtype=D) + v[-1])[None])
    singular = torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=D)
    c = torch.tensor([[1.0, 0.0]], dtype=D, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = root(lambda v: v @ singular.T - c, torch.zeros(1, 2, dtype=D))
    with pytest.warns(RuntimeWarning, match="singular or ill-conditioned"):
        found.value.sum().backward()


def test_a_gradient_that_is_not_solved_warns_unless_it_is_wanted() -> None:
    b = torch.ones(1, 3, dtype=D, requires_grad=True)
    step = lambda v: torch.tensor([0.9, 0.99, 0.999]) * v + b  # noqa: E731
    start, solver = torch.zeros(1, 3, dtype=D), Anderson(200, 1e-8)
    with pytest.warns(RuntimeWarning, match=r"fixed_point: .* 1 of 1 samples.*inexact=True"):
        fixed_point(step, start, solver=solver, adjoint=Implicit(ForwardIteration(15))).value.sum().backward()
    for adjoint in (Implicit(ForwardIteration(15), inexact=True), Implicit(ForwardIteration(15, 0.0)), Implicit()):
        found = fixed_point(step, start, solver=solver, adjoint=adjoint)
        found.value.sum().backward()
    assert found.adjoint is not None and found.adjoint.result == Result.CONVERGED


@pytest.mark.parametrize("size", [1e-20, 1e-30, 1e30])
def test_gradients_keep_their_size_in_single_precision(size: float) -> None:
    g = torch.full((1, 3), size)
    b, c = torch.ones(1, 3, requires_grad=True), torch.ones(1, 3, requires_grad=True)
    fixed_point(lambda v: 0.9 * v + b, torch.zeros(1, 3), solver=ForwardIteration(300)).value.backward(g)
    root(lambda v: 0.1 * v - c, torch.zeros(1, 3)).value.backward(g)
    for gradient in (b.grad, c.grad):
        torch.testing.assert_close(gradient / g, torch.full((1, 3), 10.0), rtol=1e-3, atol=0.0)


def test_what_is_not_finite_reaches_the_gradient_of_a_root() -> None:
    b = torch.ones(3, requires_grad=True)
    value = root(lambda v: 0.5 * v - b, torch.zeros(2, 3)).value
    with pytest.warns(RuntimeWarning, match="incoming gradient is not finite"):
        value.backward(torch.tensor([[torch.inf, 1.0, 1.0], [1.0, 1.0, 1.0]]))
    assert b.grad is not None and not torch.isfinite(b.grad).any()


def test_coupled_samples_are_noticed() -> None:
    x = torch.arange(1.0, 5.0, dtype=D)[:, None].requires_grad_()
    weights = torch.tensor([1.0, 0.0, 0.0, 5.0], dtype=D)[:, None]
    found = fixed_point(
        lambda v: 0.5 * v.mean(0, keepdim=True) + 0.3 * v + x,
        torch.zeros(4, 1, dtype=D),
        solver=ForwardIteration(300, 1e-12),
        adjoint=Implicit(ForwardIteration(300, 1e-12)),
    )
    with pytest.warns(RuntimeWarning, match="couple the samples"):
        (found.value * weights).sum().backward()
    assert found.adjoint is not None and (found.adjoint.result == Result.MAX_STEPS).all()


def test_a_vector_of_coupled_unknowns_is_refused() -> None:
    matrix, b = 0.1 * randn(6, 6), randn(6, seed=1)
    for call in (
        lambda: fixed_point(lambda v: matrix @ v + b, torch.zeros(6, dtype=D)),
        lambda: root(lambda v: v - matrix @ v - b, torch.zeros(6, dtype=D)),
        lambda: root(lambda v: v - matrix @ v - b, solution=torch.zeros(6, dtype=D)),
    ):
        with pytest.raises(ValueError, match=r"couples the 6 entries .* shape \[1, 6\]"):
            call()
    alone = fixed_point(lambda v: 0.5 * v + b, torch.zeros(6, dtype=D))
    torch.testing.assert_close(alone.value, 2.0 * b, rtol=1e-3, atol=1e-6)
    whole = fixed_point(lambda v: v @ matrix.T + b, torch.zeros(1, 6, dtype=D), solver=Anderson(60, 1e-10))
    torch.testing.assert_close(whole.value[0], torch.linalg.solve(torch.eye(6, dtype=D) - matrix, b))


@pytest.mark.parametrize("solver", [ForwardIteration(100), Anderson(100), Broyden(100)], ids=lambda s: type(s).__name__)
def test_a_step_in_place_is_refused_and_the_start_kept(solver: ForwardIteration) -> None:
    start = torch.zeros(1, 3)
    with torch.no_grad(), pytest.raises(ValueError, match="must not change its argument in place"):
        fixed_point(lambda v: v.mul_(0.5).add_(1.0), start, solver=solver)
    assert torch.equal(start, torch.zeros(1, 3))
    with torch.inference_mode():  # where no tensor counts its changes, each application has an argument of its own
        found = fixed_point(lambda v: v.mul_(0.5).add_(1.0), torch.zeros(1, 3), solver=solver)
        torch.testing.assert_close(found.value, torch.full((1, 3), 2.0), rtol=1e-3, atol=0.0)
    buffer = torch.zeros(1, 3)
    if isinstance(solver, ForwardIteration):  # whose iterate a buffer for every answer would be
        with torch.no_grad(), pytest.raises(ValueError, match="in place"):
            solver.solve(lambda v: torch.add(0.5 * v, 1.0, out=buffer), torch.zeros(1, 3))
    else:
        found = solver.solve(lambda v: torch.add(0.5 * v, 1.0, out=buffer), torch.zeros(1, 3))
        torch.testing.assert_close(found.value, torch.full((1, 3), 2.0), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("given", [False, True])
def test_a_root_has_memory_of_its_own(given: bool) -> None:
    x = torch.tensor([[4.0, 9.0]], dtype=D, requires_grad=True)
    buffer = np.array([[2.0, 3.0]])
    start = torch.from_numpy(buffer)
    found = root(lambda v: v**2 - x, solution=start) if given else root(lambda v: v**2 - x, start)
    buffer[:] = 7.0
    found.value.sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([[1 / 4, 1 / 6]], dtype=D), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("adjoint", [Unrolled(), Implicit(), Phantom(), OneStep()], ids=lambda a: type(a).__name__)
def test_a_value_shares_no_memory(adjoint: Implicit) -> None:
    constant = torch.ones(2, 3)
    for f in (lambda v: v, lambda v: constant):
        for enabled in (False, True):
            start = torch.ones(2, 3)
            with torch.set_grad_enabled(enabled):
                fixed_point(f, start, solver=ForwardIteration(3), adjoint=adjoint).value.detach().add_(1.0)
            assert torch.equal(start, torch.ones(2, 3)) and torch.equal(constant, torch.ones(2, 3))


@pytest.mark.parametrize("adjoint", [Unrolled(), Implicit(), Phantom(), OneStep()], ids=lambda a: type(a).__name__)
def test_constants_require_no_gradient(adjoint: Implicit) -> None:
    b = torch.ones(2)
    assert not fixed_point(lambda v: 0.5 * v + b, torch.zeros(1, 2), adjoint=adjoint).value.requires_grad
    assert not root(lambda v: 0.5 * v - b, torch.zeros(1, 2)).value.requires_grad
    b = b.requires_grad_()
    assert fixed_point(lambda v: 0.5 * v + b.exp(), torch.zeros(1, 2), adjoint=adjoint).value.requires_grad


@pytest.mark.slow
def test_forward_mode_is_right_with_and_without_gradients() -> None:
    one = torch.ones(1, 1, dtype=D)
    with warnings.catch_warnings(), fwd.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of its decompositions
        b = fwd.make_dual(one, one)
        for enabled in (False, True):
            for call, tangent in (
                (lambda: root(lambda v: 0.5 * v - b, solution=2 * one), 2.0),
                (lambda: root(lambda v: 0.5 * v - b, 0 * one), 2.0),
                (lambda: fixed_point(lambda v: 0.5 * v + b, 0 * one, adjoint=OneStep()), 1.0),
                (lambda: fixed_point(lambda v: 0.5 * v + b, 0 * one), 2.0),
            ):
                with torch.set_grad_enabled(enabled):
                    value = call().value
                assert fwd.unpack_dual(value).tangent.item() == pytest.approx(tangent, rel=1e-4)
                assert not value.requires_grad
        with pytest.raises(NotImplementedError, match="forward-mode"):  # a solver alone gives no derivative
            ForwardIteration().solve(lambda v: 0.5 * v + b, 0 * one)
        solver = ForwardIteration(60, 0.0)
        unrolled = fixed_point(lambda v: 0.5 * v + b, 0 * one, solver=solver, adjoint=Unrolled())
        assert fwd.unpack_dual(unrolled.value).tangent.item() == pytest.approx(2.0)


@dataclass
class NoSteps:
    tolerance: float = 0.0

    def solve(self, f: object, v0: Tensor) -> Solution:
        raise AssertionError


class Plain:
    max_steps, tolerance = 5, 1e-4

    def solve(self, f: object, v0: Tensor) -> Solution:
        raise AssertionError


B = torch.ones(2, requires_grad=True)
Z = torch.zeros(1, 2)


def half(v: Tensor) -> Tensor:
    return 0.5 * v + 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: root(lambda v: v - B, Z, adjoint=Phantom()), r"adjoint: expected Implicit\(solver\).*got Phantom"),
        (lambda: root(lambda v: v - B, Z, adjoint=GMRES()), r"adjoint: expected Implicit\(solver\).*got GMRES"),
        (lambda: root(lambda v: v - B, Z, solver=Implicit()), "solver: expected a solver.*got Implicit"),
        (lambda: fixed_point(half, Z, adjoint=Anderson()), r"adjoint: .* got Anderson; .*Implicit\(Anderson"),
        (lambda: fixed_point(half, Z, adjoint=Implicit), "adjoint: .* the class Implicit, not an object"),
        (lambda: fixed_point(half, Z, adjoint=Implicit(Phantom())), "adjoint.solver: .* got Phantom"),
        (lambda: fixed_point(half, Z, solver=Anderson), "solver: .* the class Anderson, not an object"),
        (lambda: fixed_point(half, Z, solver=Implicit()), "solver: expected a solver.*got Implicit"),
        (lambda: fixed_point(half, Z, solver="anderson"), "solver: expected a solver.*got str"),
        (lambda: fixed_point(half, Z, solver=NoSteps()), "solver: expected a solver.*got NoSteps"),
        (lambda: fixed_point(half, Z, solver=Plain()), "solver: expected a dataclass.*Plain is none"),
        (lambda: fixed_point(half, [0.0]), "v0: expected a tensor.*got float"),
        (lambda: fixed_point(half, Z + 0j), "v0: expected a floating point tensor.*complex64"),
        (lambda: fixed_point(lambda v: (v, v), Z), r"f must return a tensor .*\(1, 2\), got tuple"),
        (lambda: fixed_point(lambda v: v.numpy(), Z), "f must return a tensor .*got ndarray"),
        (lambda: fixed_point(lambda v: v + 1j, Z), "real numbers, got torch.complex64"),
        (lambda: fixed_point(half, Z, solver=ForwardIteration(max_steps=2.5)), "max_steps must be a whole number"),
        (lambda: Anderson(rule="absolute"), "rule must be 'error' or 'residual', got 'absolute'"),
        (lambda: ForwardIteration(tolerance="small"), "tolerance must be at least 0, got 'small'"),
        (
            lambda: fixed_point(lambda v: v - torch.autograd.grad(v.square().sum(), v)[0], Z),
            r"torch.func.grad in f",
        ),
    ],
)
def test_mistakes_are_named(call: object, message: str) -> None:
    with pytest.raises((TypeError, ValueError, RuntimeError), match=message):
        call()


@pytest.mark.parametrize(
    ("scale", "dtype"), [(1e-200, D), (1e200, D), (1e-30, torch.float32), (1e-40, torch.float32), (1e37, torch.float32)]
)
def test_root_does_not_depend_on_units_whose_squares_are_no_numbers(scale: float, dtype: torch.dtype) -> None:
    start = torch.full((1, 1), 5.0, dtype=dtype)
    for F in (lambda v: scale * (v - 1.0), lambda v: scale * (v - 1.0) * (v + 2.0)):
        found = root(F, start)
        assert found.result == Result.CONVERGED and float(found.value) == pytest.approx(1.0, rel=1e-4)
    if scale > 1e-38:
        assert root(lambda v: scale * (v - 1.0), solution=torch.ones(1, 1, dtype=dtype)).result == Result.CONVERGED
        nearly = torch.full((1, 1), 1.0 + 4e-7, dtype=dtype)
        assert root(lambda v: scale * (v - 1.0), solution=nearly).result == Result.CONVERGED
    with pytest.warns(RuntimeWarning, match="no root"):
        assert root(lambda v: scale * (v - 1.0), solution=2.0 * start).result == Result.MAX_STEPS


def test_root_finds_its_way_through_any_rotation() -> None:
    for seed in range(3):
        matrix, x = torch.linalg.qr(randn(20, 20, seed=seed))[0], randn(2, 20, seed=9)
        found = root(lambda v, m=matrix, x=x: (v - x) @ m.T, torch.zeros_like(x))
        assert (found.result == Result.CONVERGED).all()
        torch.testing.assert_close(found.value, x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", [Anderson(30), Broyden(30)])
def test_the_best_iterate_is_not_the_largest(solver: object) -> None:
    """What f changes relative to an iterate that runs away falls for ever."""
    matrix, x = torch.linalg.qr(randn(20, 20, seed=1))[0], randn(1, 20, seed=9)

    def f(v: torch.Tensor) -> torch.Tensor:
        return v - (v - x) @ matrix.T

    start = torch.zeros_like(x)
    found = solver.solve(f, start)
    assert float((f(found.value) - found.value).norm()) <= float((f(start) - start).norm())


def test_jacobians_of_constants_and_in_inference_mode() -> None:
    constant = torch.ones(2, 3)
    for measure in (spectral_radius, jacobian_penalty):
        assert not measure(lambda v: constant.clone(), torch.zeros(2, 3)).any()
        with torch.inference_mode():
            assert math.isfinite(float(measure(half, torch.zeros(2, 3)).sum()))
        with pytest.raises(TypeError, match="got tuple"):
            measure(lambda v: (v, v), torch.zeros(2, 3))


def test_planners_say_settled_and_do_not_warn() -> None:
    planner = build_planner(PlannerSpec(core="contractive", hidden_channels=8, q_channels=8, k_fwd=60, k_bwd=2))
    for kernel in ("reference", "auto"):
        planner.kernel = kernel
        plan = planner.plan(torch.ones(2, 1, 5, 5), torch.eye(5)[None, None].repeat(2, 1, 1, 1))
        assert Result.CONVERGED not in plan.solution.result
        plan.logits.sum().backward()
    assert replace(planner.solver, max_steps=2).rule == "residual"


def test_numbers_whose_squares_overflow_are_judged_by_the_error_rule_alone() -> None:
    f = lambda v: 0.5 * v + 1e25  # noqa: E731
    start = torch.zeros(1, 3)
    assert ForwardIteration(60, rule="error").solve(f, start).result.tolist() == [Result.CONVERGED]
    assert ForwardIteration(60, rule="residual").solve(f, start).result.tolist() == [Result.DIVERGED]
