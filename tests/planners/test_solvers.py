"""Every solver on maps with known fixed points, and what it does where there is none."""

import gc
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from iterations import non_normal, randn
from torch import Tensor
from torch.nn.functional import conv2d, pad

from planners.fixed_points import GMRES, Result, Solver, solvers
from planners.fixed_points.solvers import GROWTH, Anderson, Broyden, ForwardIteration, relative_residual

FIXED_POINT_SOLVERS = (ForwardIteration(2000, 1e-13), Anderson(400, 1e-13), Broyden(400, 1e-13))
SOLVERS = (*FIXED_POINT_SOLVERS, GMRES(40, 1e-13))
named = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
nonlinear = pytest.mark.parametrize("solver", FIXED_POINT_SOLVERS, ids=lambda s: type(s).__name__)


class Affine:
    """v -> s A v + b, a factor s per sample; counts the samples it was applied to."""

    def __init__(self, matrix: Tensor, b: Tensor, factor: Tensor, counts: list[int] | None = None) -> None:
        self.matrix, self.b, self.factor = matrix, b, factor
        self.counts: list[int] = [] if counts is None else counts

    def __call__(self, v: Tensor) -> Tensor:
        self.counts.append(len(v))
        return self.factor[:, None] * torch.einsum("ij,bj->bi", self.matrix, v) + self.b

    def fixed_point(self) -> Tensor:
        eye = torch.eye(len(self.matrix), dtype=self.matrix.dtype)
        return torch.linalg.solve(eye - self.factor[:, None, None] * self.matrix, self.b)


class AffineWithTake(Affine):
    def take(self, rows: Tensor) -> "AffineWithTake":
        return AffineWithTake(self.matrix, self.b[rows], self.factor[rows], self.counts)


def affine(batch: int = 5, n: int = 6, kind: type[Affine] = Affine) -> Affine:
    factor = torch.linspace(0.1, 1.0, batch, dtype=torch.float64).flip(0)
    return kind(non_normal(n), randn(batch, n, seed=1), factor)


@named
@pytest.mark.parametrize("kind", [Affine, AffineWithTake])
def test_finds_the_fixed_point_of_a_non_normal_affine_map(solver: Solver, kind: type[Affine]) -> None:
    f = affine(kind=kind)
    found = solver.solve(f, torch.zeros_like(f.b))
    torch.testing.assert_close(found.value, f.fixed_point(), rtol=1e-10, atol=1e-10)
    assert (found.result == Result.CONVERGED).all()
    assert (found.residual <= 1e-13).all() and (found.steps <= solver.max_steps).all()
    assert not found.value.requires_grad


@nonlinear
def test_finds_the_fixed_point_of_a_nonlinear_map(solver: Solver) -> None:
    weight, b = 0.9 * non_normal(7, 0.5), randn(3, 7, seed=4)
    found = solver.solve(lambda v: torch.tanh(v @ weight.T + b), torch.zeros(3, 7, dtype=torch.float64))
    torch.testing.assert_close(torch.tanh(found.value @ weight.T + b), found.value, rtol=1e-11, atol=1e-11)


def test_forward_iteration_of_a_batch_equals_its_samples_bit_for_bit() -> None:
    rate, b = torch.linspace(0.1, 0.99, 9), randn(9, 4, dtype=torch.float32)
    whole = ForwardIteration(50, 1e-4).solve(lambda v: rate[:, None] * torch.tanh(v) + b, torch.zeros(9, 4))
    assert len(set(whole.steps.tolist())) > 3
    for i in range(9):
        alone = ForwardIteration(50, 1e-4).solve(lambda v, i=i: rate[i] * torch.tanh(v) + b[i], torch.zeros(1, 4))
        assert torch.equal(alone.value[0], whole.value[i]) and alone.steps[0] == whole.steps[i]


@pytest.mark.parametrize("interval", [1, 8], ids=["cpu", "gpu"])
@pytest.mark.parametrize("kind", [Affine, AffineWithTake])
def test_sample_is_frozen_at_its_first_step_within_tolerance(
    kind: type[Affine], interval: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(solvers.CHECK_INTERVAL, "cpu", interval)
    f = affine(kind=kind)
    found = ForwardIteration(300, 1e-6, rule="residual").solve(f, torch.zeros_like(f.b))
    v, stopped = torch.zeros_like(f.b), torch.zeros(5, dtype=torch.bool)
    for k in range(1, int(found.steps.max()) + 1):
        fv = Affine(f.matrix, f.b, f.factor)(v)
        residual = relative_residual(v, fv)
        now = ~stopped & (residual <= 1e-6)
        for i in now.nonzero()[:, 0]:
            assert found.steps[i] == k
            torch.testing.assert_close(found.value[i], fv[i], rtol=1e-14, atol=1e-14)
            torch.testing.assert_close(found.residual[i], residual[i], rtol=1e-6, atol=0.0)
        stopped |= now
        v = fv
    assert stopped.all() and len(set(found.steps.tolist())) == 5


@nonlinear
def test_converged_samples_stop_costing_where_f_can_take(solver: Solver) -> None:
    f = affine(kind=AffineWithTake)
    found = replace(solver, tolerance=1e-5).solve(f, torch.zeros_like(f.b))
    assert sum(f.counts) == int(found.steps.sum())
    assert len(set(found.steps.tolist())) > 1


@nonlinear
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_zero_tolerance_runs_exactly_all_steps(solver: Solver, steps: int) -> None:
    f = affine()
    start = f.fixed_point()
    start[1:] = 0.0
    found = replace(solver, max_steps=steps, tolerance=0.0).solve(f, start)
    assert f.counts == [5] * steps and found.steps.tolist() == [steps] * 5
    assert (found.result == Result.MAX_STEPS).all()
    torch.testing.assert_close(found.value[0], start[0])


@nonlinear
def test_one_step(solver: Solver) -> None:
    f = affine()
    start = randn(5, 6, seed=9)
    found = replace(solver, max_steps=1, rule="residual").solve(f, start)
    expected = f(start) if isinstance(solver, ForwardIteration) else start
    assert torch.equal(found.value, expected)
    torch.testing.assert_close(found.residual, relative_residual(start, f(start)))


@named
def test_starting_at_the_solution_and_at_a_solution_of_zero(solver: Solver) -> None:
    f = affine()
    found = solver.solve(f, f.fixed_point())
    assert (found.result == Result.CONVERGED).all() and (found.steps <= 1).all()
    zero = solver.solve(lambda v: 0.5 * v, torch.zeros(2, 3, dtype=torch.float64))
    assert torch.equal(zero.value, torch.zeros(2, 3, dtype=torch.float64)) and (zero.residual == 0.0).all()


@pytest.mark.parametrize("radius", [1.0, 1.5])
def test_rotation_where_plain_iteration_fails(radius: float) -> None:
    turn = radius * torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    b = randn(3, 2, seed=2)
    f = Affine(turn, b, torch.ones(3, dtype=torch.float64))
    start = torch.zeros_like(b)
    plain = ForwardIteration(100, 1e-10).solve(f, start)
    expected = Result.MAX_STEPS if radius == 1.0 else Result.DIVERGED
    assert (plain.result == expected).all()
    for solver in (Anderson(50, 1e-10), Broyden(50, 1e-10), GMRES(10, 1e-10)):
        found = solver.solve(f, start)
        assert (found.result == Result.CONVERGED).all()
        torch.testing.assert_close(found.value, f.fixed_point(), rtol=1e-8, atol=1e-8)


def symmetric_step(r: Tensor) -> Callable[[Tensor], Tensor]:
    """A step that commutes with turning and reflecting the map: the kernel has all symmetries of the square."""
    kernel = torch.tensor([[0.5, -0.9, 0.5], [-0.9, 1.3, -0.9], [0.5, -0.9, 0.5]], dtype=r.dtype)[None, None] * 0.4
    return lambda v: torch.tanh(conv2d(pad(v, (1, 1, 1, 1)), kernel)) + r


@nonlinear
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_solution_turns_with_the_map(solver: Solver, dtype: torch.dtype, tolerance: float) -> None:
    r = randn(3, 1, 9, 9, dtype=dtype)
    # Few steps: this map has no attracting fixed point, and an accelerated iteration of such a map amplifies rounding.
    solver = replace(solver, max_steps=8, tolerance=0.0)
    found = solver.solve(symmetric_step(r), torch.zeros_like(r))
    assert found.residual.max() > 1e-6, "equivariance must not rest on having converged"
    for quarter in range(4):
        for flip in (False, True):

            def turn(x: Tensor, quarter: int = quarter, flip: bool = flip) -> Tensor:
                x = torch.rot90(x, quarter, (2, 3))
                return x.flip(3) if flip else x

            turned = solver.solve(symmetric_step(turn(r)), torch.zeros_like(r))
            scale = float(found.value.abs().max())
            torch.testing.assert_close(turned.value, turn(found.value), rtol=0.0, atol=tolerance * scale)


@nonlinear
def test_single_precision_solution_turns_with_the_map_after_many_steps(solver: Solver) -> None:
    """At a fixed point that exists, equivariance is as exact as rounding, however many steps it took."""
    r = randn(3, 1, 9, 9, dtype=torch.float32)
    solver = replace(solver, max_steps=60, tolerance=0.0)
    found, turned = (
        solver.solve(lambda v, r=x: symmetric_step(0 * r)(v / 3) + r, torch.zeros_like(x)).value
        for x in (r, torch.rot90(r, 1, (2, 3)))
    )
    torch.testing.assert_close(turned, torch.rot90(found, 1, (2, 3)), rtol=0.0, atol=2e-6)


@nonlinear
def test_solution_follows_any_orthogonal_change_of_coordinates(solver: Solver) -> None:
    f = affine()
    solver = replace(solver, max_steps=5, tolerance=0.0)
    q = torch.linalg.qr(randn(6, 6, seed=7)).Q
    turned = Affine(q @ f.matrix @ q.T, f.b @ q.T, f.factor)
    start = randn(5, 6, seed=8)
    expected = solver.solve(f, start).value @ q.T
    torch.testing.assert_close(solver.solve(turned, start @ q.T).value, expected, rtol=1e-8, atol=1e-8)


@nonlinear
def test_one_diverging_sample_is_flagged_and_leaves_the_others_alone(solver: Solver) -> None:
    b = randn(3, 4, seed=3)

    def f(v: Tensor) -> Tensor:
        image = 0.5 * torch.tanh(v) + b
        bad = torch.tensor([False, True, False])[:, None] & (v.abs().amax(dim=1, keepdim=True) > 0.0)
        return torch.where(bad, torch.nan, image)

    start = torch.zeros(3, 4, dtype=torch.float64)
    found = replace(solver, tolerance=1e-10).solve(f, start)
    assert found.result.tolist() == [Result.CONVERGED, Result.DIVERGED, Result.CONVERGED]
    assert torch.isfinite(found.value).all()
    assert found.steps[1] == 2
    good = found.value[[0, 2]]
    torch.testing.assert_close(0.5 * torch.tanh(good) + b[[0, 2]], good, rtol=1e-8, atol=1e-8)


@nonlinear
def test_not_finite_from_the_first_step(solver: Solver) -> None:
    start = randn(2, 3)
    for bad in (torch.nan, torch.inf, -torch.inf):
        found = solver.solve(lambda v, bad=bad: v * 0 + bad, start)
        assert (found.result == Result.DIVERGED).all() and torch.equal(found.value, start)
        assert torch.isinf(found.residual).all() and found.steps.tolist() == [1, 1]


def test_growth_is_divergence_and_stops_the_sample() -> None:
    found = ForwardIteration(200, 1e-6, rule="residual").solve(lambda v: 2.0 * v + 1.0, torch.zeros(1, 1))
    assert found.result[0] == Result.DIVERGED and found.steps[0] == 20  # 2^20 - 1 is the first above the limit of 1e6
    assert float(found.value) == 2**19 - 1 <= GROWTH


@nonlinear
def test_overflowing_norm_is_not_convergence(solver: Solver) -> None:
    # ||f(z) - z|| is 0 from the second step on and ||f(z)|| overflows float32: the plain ratio would be 0.
    found = replace(solver, rule="residual").solve(lambda v: torch.full_like(v, 1e30), torch.ones(2, 3))
    assert (found.result == Result.DIVERGED).all() and torch.isinf(
        relative_residual(found.value, found.value + 1e30)
    ).all()


@nonlinear
def test_large_numbers_and_long_ways_are_not_divergence(solver: Solver) -> None:
    for dtype, size in ((torch.float32, 1e30), (torch.float64, 1e200), (torch.float32, 1e-30), (torch.float64, 1e-250)):
        found = replace(solver, tolerance=1e-4).solve(
            lambda v, s=size: 0.5 * v + 0.5 * s, torch.zeros(2, 3, dtype=dtype)
        )
        assert (found.result == Result.CONVERGED).all()
        torch.testing.assert_close(found.value, torch.full((2, 3), size, dtype=dtype), rtol=2e-4, atol=0.0)


@nonlinear
def test_accelerated_answer_has_the_lowest_residual(solver: Solver) -> None:
    f = affine(n=12)
    found = replace(solver, max_steps=9, tolerance=0.0, record=True, rule="residual").solve(f, torch.zeros_like(f.b))
    assert found.trace is not None and found.trace.shape == (9, 5)
    if isinstance(solver, ForwardIteration):
        assert torch.equal(found.residual, found.trace[-1])
    else:
        assert torch.equal(found.residual, found.trace.amin(dim=0))
        torch.testing.assert_close(relative_residual(found.value, f(found.value)), found.residual, rtol=1e-9, atol=0.0)


@nonlinear
@pytest.mark.parametrize("kind", [Affine, AffineWithTake])
def test_trace_has_a_row_per_step_and_keeps_the_last_residual(solver: Solver, kind: type[Affine]) -> None:
    f = affine(kind=kind)
    found = replace(solver, max_steps=60, tolerance=1e-3, record=True, rule="residual").solve(f, torch.zeros_like(f.b))
    assert found.trace is not None and found.trace.shape == (60, 5)
    for i, steps in enumerate(found.steps.tolist()):
        assert (found.trace[: steps - 1, i] > 1e-3).all()
        assert (found.trace[steps - 1 :, i] == found.residual[i]).all()
    assert solver.solve(f, torch.zeros_like(f.b)).trace is None


def test_anderson_on_singular_systems() -> None:
    # All residuals are parallel, so all differences but one are redundant, and the last ones vanish.
    direction, b = randn(1, 5), randn(4, 1, seed=5)
    for weight in (0.0, 1e-4, 1.0):
        f = lambda v: 0.9 * v + b * direction  # noqa: E731
        found = Anderson(40, 1e-10, regularisation=weight).solve(f, torch.zeros(4, 5, dtype=torch.float64))
        assert torch.isfinite(found.value).all() and (found.result != Result.DIVERGED).all()
        if weight < 1.0:
            torch.testing.assert_close(found.value, 10.0 * b * direction, rtol=1e-8, atol=1e-8)
    still = Anderson(20, 0.0, regularisation=0.0).solve(lambda v: v, randn(2, 3))
    assert torch.equal(still.value, randn(2, 3)) and (still.residual == 0.0).all()


def test_depth_one_and_full_depth() -> None:
    f = affine()
    shallow = Anderson(400, 1e-12, depth=1).solve(f, torch.zeros_like(f.b))
    deep = Anderson(400, 1e-12, depth=8).solve(f, torch.zeros_like(f.b))
    torch.testing.assert_close(shallow.value, deep.value, rtol=1e-8, atol=1e-8)
    assert (deep.steps <= 12).all(), "n + 2 steps suffice for n unknowns, and two more looks for a verdict"
    damped = Anderson(400, 1e-12, mixing=0.5).solve(f, torch.zeros_like(f.b))
    torch.testing.assert_close(damped.value, deep.value, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("mixing", [1.0, 0.4])
def test_anderson_takes_the_textbook_steps(mixing: float) -> None:
    """Constrained form: weights alpha that sum to one and minimise ||sum_i alpha_i g_i||, by dense least squares."""
    f, depth = affine(batch=1), 3
    seen: list[Tensor] = []

    def recorded(v: Tensor) -> Tensor:
        seen.append(v[0].clone())
        return f(v)

    start = randn(1, 6, seed=3)
    Anderson(6, 0.0, depth, mixing, 0.0).solve(recorded, start)
    z, iterates = start[0], []
    for _ in range(6):
        iterates.append(z)
        window = torch.stack(iterates[-depth - 1 :], dim=1)
        g = torch.stack([f(column[None])[0] - column for column in window.T], dim=1)
        alpha = torch.linalg.lstsq(
            torch.cat((1e8 * torch.ones(1, g.shape[1]), g)), torch.eye(7)[0].double() * 1e8
        ).solution
        z = window @ alpha + mixing * g @ alpha
    torch.testing.assert_close(torch.stack(seen), torch.stack(iterates), rtol=1e-5, atol=1e-5)


def test_limit_of_growth_stays_with_its_sample() -> None:
    b, factor = torch.tensor([[1.0], [1e7]]), torch.tensor([0.0, 0.9])
    f = AffineWithTake(torch.ones(1, 1), b, factor)
    found = ForwardIteration(200, 1e-5).solve(f, torch.zeros(2, 1))
    assert found.result.tolist() == [Result.CONVERGED, Result.CONVERGED] and found.steps[0] < found.steps[1]


@nonlinear
def test_single_precision_agrees_with_double(solver: Solver) -> None:
    f = affine()
    single = Affine(f.matrix.float(), f.b.float(), f.factor.float())
    found = replace(solver, tolerance=1e-5).solve(single, torch.zeros(5, 6))
    assert found.value.dtype == found.residual.dtype == torch.float32
    assert (found.result == Result.CONVERGED).all()
    torch.testing.assert_close(found.value.double(), f.fixed_point(), rtol=1e-4, atol=1e-4)


@nonlinear
def test_half_precision_residuals_are_single(solver: Solver) -> None:
    found = replace(solver, max_steps=5).solve(lambda v: 0.5 * v + 1.0, torch.zeros(2, 3, dtype=torch.bfloat16))
    assert found.value.dtype == torch.bfloat16 and found.residual.dtype == torch.float32


def test_memory_of_the_acceleration_is_released() -> None:
    f = Affine(0.5 * torch.eye(317), randn(3, 317, dtype=torch.float32), torch.ones(3))
    for solver in (Anderson(9, 0.0, depth=4), Broyden(9, 0.0, depth=4)):
        found = solver.solve(f, torch.zeros(3, 317))
        left = [x for x in gc.get_objects() if type(x) is Tensor and x.shape == (3, 4, 317)]
        assert found.value.shape == (3, 317) and not left
        assert found.value.untyped_storage().nbytes() == 3 * 317 * 4


@nonlinear
def test_empty_batch(solver: Solver) -> None:
    found = solver.solve(lambda v: 0.5 * v, torch.zeros(0, 3))
    assert found.value.shape == (0, 3) and found.steps.shape == (0,)


@named
def test_a_sample_may_be_a_single_number(solver: Solver) -> None:
    found = solver.solve(lambda v: 0.5 * v + 1.0, torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(found.value, torch.full((2,), 2.0, dtype=torch.float64))


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), batch=st.integers(1, 6), n=st.integers(1, 5), steps=st.integers(1, 40))
def test_what_leaves_the_batch_comes_back_in_its_place(seed: int, batch: int, n: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.rand(batch, generator=generator, dtype=torch.float64) * 1.2
    matrix, b = torch.eye(n, dtype=torch.float64), randn(batch, n, seed=seed)
    for solver in (
        ForwardIteration(steps, 1e-3, True),
        Anderson(steps, 1e-3, record=True),
        Broyden(steps, 1e-3, record=True),
    ):
        start = torch.zeros_like(b)
        left = solver.solve(AffineWithTake(matrix, b, factor), start)
        stayed = solver.solve(Affine(matrix, b, factor), start)
        torch.testing.assert_close(left.value, stayed.value, rtol=1e-6, atol=1e-6)
        assert torch.equal(left.steps, stayed.steps) and torch.equal(left.result, stayed.result)
        torch.testing.assert_close(left.trace, stayed.trace, rtol=1e-4, atol=1e-10)


def test_gmres_solves_any_non_singular_system() -> None:
    matrix = randn(4, 8, 8)  # indefinite, not symmetric, not a contraction
    b = randn(4, 8, seed=1)
    found = GMRES(20, 1e-12).solve_linear(lambda x: torch.einsum("bij,bj->bi", matrix, x), b)
    torch.testing.assert_close(found.value, torch.linalg.solve(matrix, b), rtol=1e-9, atol=1e-9)
    assert (found.result == Result.CONVERGED).all() and (found.steps <= 9).all()


def test_gmres_never_raises_the_residual_and_flags_a_singular_system() -> None:
    matrix, b = randn(4, 8, 8), randn(4, 8, seed=1)
    residuals = [
        GMRES(k, 0.0).solve_linear(lambda x: torch.einsum("bij,bj->bi", matrix, x), b).residual for k in range(1, 8)
    ]
    assert all((after <= before * (1 + 1e-12)).all() for before, after in pairwise(residuals))
    singular = torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))
    found = GMRES(10, 1e-8).solve_linear(lambda x: x @ singular, torch.ones(2, 3, dtype=torch.float64))
    assert torch.isfinite(found.value).all() and (found.result == Result.MAX_STEPS).all()
    torch.testing.assert_close(found.residual, torch.full((2,), 3**-0.5, dtype=torch.float64))
    nothing = GMRES(10).solve_linear(lambda x: x, torch.zeros(1, 3))
    assert torch.equal(nothing.value, torch.zeros(1, 3)) and nothing.result[0] == Result.CONVERGED
    bad = GMRES(10).solve_linear(lambda x: x * torch.nan, torch.ones(1, 3))
    assert bad.result[0] == Result.DIVERGED


@pytest.mark.parametrize("kind", [ForwardIteration, Anderson, Broyden, GMRES])
def test_bad_options_are_named(kind: type) -> None:
    with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
        kind(max_steps=0)
    for tolerance in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="tolerance must be at least 0"):
            kind(tolerance=tolerance)


def test_bad_options_of_accelerated_solvers_are_named() -> None:
    for kind in (Anderson, Broyden):
        with pytest.raises(ValueError, match="depth"):
            kind(depth=0)
    with pytest.raises(ValueError, match="mixing"):
        Anderson(mixing=0.0)
    with pytest.raises(ValueError, match="regularisation"):
        Anderson(regularisation=-1.0)


@nonlinear
def test_change_of_shape_is_refused(solver: Solver) -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) -> \(2, 1\)"):
        solver.solve(lambda v: v[:, :1], torch.zeros(2, 3))
