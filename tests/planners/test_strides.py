"""Forward iteration that looks at its residual every few steps alone."""

from dataclasses import dataclass

import pytest
import torch

from planners.conformance import solvers
from planners.fixed_points import ForwardIteration, Implicit, Result, fixed_point
from planners.fixed_points.strides import StridedIteration
from planners.registry import SOLVERS, Entry

LONG = (solvers.check_solver_under_transformations, solvers.check_adjoint_solver_under_transformations)


@dataclass(frozen=True)
class Windowed(StridedIteration):
    """With a default that the checks of solvers take."""

    window: int = 6


@dataclass(frozen=True, eq=False)
class Thinning:
    """v -> rates v + 1, which can be asked for some of its samples."""

    rates: torch.Tensor
    asked: list[int]

    def __call__(self, v):
        self.asked.append(len(v))
        return self.rates * v + 1.0

    def take(self, rows):
        return Thinning(self.rates[rows], self.asked)


@pytest.mark.parametrize(
    "check",
    [pytest.param(check, marks=[pytest.mark.slow] * (check in LONG)) for check in solvers.EVERY_SOLVER],
    ids=lambda check: check.__name__,
)
def test_it_does_what_every_solver_must(check, monkeypatch):
    monkeypatch.setitem(SOLVERS, "strided", Entry("planners.fixed_points.strides:StridedIteration"))
    check("strided")
    if check not in LONG:
        monkeypatch.setitem(SOLVERS, "strided", Entry(f"{__name__}:Windowed"))
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


def fast_slow_and_growing():
    """Rates of samples that settle at several looks, never, and not at all."""
    return torch.tensor([[0.1], [0.2], [0.5], [0.6], [0.9], [0.999], [-0.7], [30.0], [-1.5]], dtype=torch.float64)


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_a_brief_look_tells_what_a_whole_one_does(window, shape):
    rates = fast_slow_and_growing().view(9, *[1] * len(shape))
    start = torch.zeros(9, *shape, dtype=torch.float64)
    step = lambda v: rates * v + 1.0  # noqa: E731
    for steps, tolerance in ((60, 1e-6), (61, 0.0), (1, 1e-6)):
        brief, whole = (
            StridedIteration(steps, tolerance, record=record, window=window).solve(step, start)
            for record in (False, True)
        )
        for part in ("value", "residual", "steps", "result"):
            assert getattr(brief, part).equal(getattr(whole, part))
    found = StridedIteration(60, 1e-6, window=window).solve(step, start)
    assert {Result.SETTLED, Result.DIVERGED, *[Result.MAX_STEPS] * (window == 0)} == {*found.result.tolist()}


@pytest.mark.parametrize("window", [0, 4])
def test_samples_that_have_stopped_are_left_out_where_f_can(window):
    rates = fast_slow_and_growing()
    thinning, start = Thinning(rates, []), torch.zeros(9, 3, dtype=torch.float64)
    for record in (False, True):
        thinning.asked.clear()
        solver = StridedIteration(60, 1e-6, window=window, record=record)
        found, whole = solver.solve(thinning, start), solver.solve(lambda v: rates * v + 1.0, start)
        for part in ("value", "residual", "steps", "result", *["trace"] * record):
            torch.testing.assert_close(getattr(found, part), getattr(whole, part), rtol=1e-12, atol=1e-12)
        assert thinning.asked == sorted(thinning.asked)[::-1]
        assert window or (thinning.asked[0] == 9 and thinning.asked[-1] == 2)


def test_a_window_finds_what_contracts_slowly_in_few_directions():
    rates = torch.tensor([0.999, 0.99, 0.5, 0.4, -0.3, 0.2, 0.1, 0.0], dtype=torch.float64)
    start, exact = torch.zeros(1, 8, dtype=torch.float64), 1.0 / (1.0 - rates[None])
    found = StridedIteration(100, 1e-10, window=8).solve(lambda v: rates * v + 1.0, start)
    assert found.result.tolist() == [Result.SETTLED]
    torch.testing.assert_close(found.value, exact, rtol=1e-6, atol=0.0)
    plain = StridedIteration(100, 1e-10).solve(lambda v: rates * v + 1.0, start)
    assert plain.result.tolist() == [Result.MAX_STEPS]


def test_gradients_are_those_of_the_solution():
    b = torch.full((2, 3), 0.5, dtype=torch.float64, requires_grad=True)

    def solved(b, window=0):
        solver = StridedIteration(200, 1e-12, window=window)
        return fixed_point(
            lambda v: torch.tanh(v) / 2 + b, torch.zeros_like(b), solver=solver, adjoint=Implicit(solver)
        ).value

    assert torch.autograd.gradcheck(solved, b)
    assert torch.autograd.gradgradcheck(solved, b)
    plain, windowed = (torch.autograd.grad(solved(b, window).sum(), b)[0] for window in (0, 8))
    torch.testing.assert_close(plain, windowed, rtol=1e-10, atol=0.0)


def test_what_it_can_t_be_told_is_refused():
    for stride in (0, 2.0, True):
        with pytest.raises(ValueError, match="stride must be at least 1 and whole"):
            StridedIteration(stride=stride)
    for window in (-1, 2.0, True):
        with pytest.raises(ValueError, match="window must be at least 0 and whole"):
            StridedIteration(window=window)


OPTIONS = [{}, {"window": 4}, {"record": True}, {"norm": "rms"}, {"absolute": 1e-9}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_tolerance_below_rounding_is_taken_for_what_rounding_allows(options):
    start = torch.zeros(1, 3, dtype=torch.bfloat16)  # where cos goes to and fro between two neighbours
    for tolerance in (1e-3, 1e-9):
        solver = StridedIteration(300, tolerance, **options)
        for found in (solver.solve(halved_cosine, start), fixed_point(halved_cosine, start, solver=solver)):
            assert found.result.tolist() == [Result.SETTLED] and found.steps < 30
    wanted = StridedIteration(20, 0.0).solve(halved_cosine, start)
    assert wanted.result.tolist() == [Result.MAX_STEPS] and wanted.steps.tolist() == [20]


def halved_cosine(v):
    return torch.cos(0.5 * v)
