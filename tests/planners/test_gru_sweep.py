"""Gauss-Seidel sweeps of the ConvGRU: the plain loop over blocks, the step's own fixed point, and its gradients."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from iterations import PAPERS_ADJOINT, AndersonByResidual, by_threads, conv_gru
from torch import Tensor

from planners import PlannerSpec, build_planner
from planners.compiled.conv_gru import autograd as compiled
from planners.compiled.layout import BLOCK, grid_of
from planners.compiled.solvers import GaussSeidel
from planners.cores.layers import convolve
from planners.cores.steps import GRUIteration
from planners.fixed_points import Adjoint, Implicit, OneStep, Result, Solution, Solver, fixed_point


def blocks_of(step: GRUIteration) -> list[Tensor]:
    """Return the cells of each block that a sweep updates at once, [h, w] bool."""
    height, width = step.initial.shape[-2:]
    grid = grid_of(height, width, step.gates.shape[-1] // 2, step.wrap)
    place = torch.arange(height)[:, None] * grid.stride + torch.arange(width)
    return [place // BLOCK == block for block in range(grid.blocks)]


def plain_sweep(step: GRUIteration, v: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """One sweep, whole maps for each block; on the torus, what lies across the edge is as it was before the sweep."""
    pad, state = step.gates.shape[-1] // 2, v.shape[1]
    padding = ((pad,) * 4, "circular" if step.wrap else "constant")
    on_map = (..., slice(pad, pad + v.shape[-2]), slice(pad, pad + v.shape[-1]))
    part = convolve(step.reward, step.from_reward, step.bias, wrap=step.wrap)[:, state:]
    wide_v, wide_p = (torch.nn.functional.pad(x, *padding) for x in (v, s * v))
    for cells in blocks_of(step):
        pre = part[:, :state] + torch.conv2d(wide_v, step.gates[state:])
        s = torch.where(cells, torch.sigmoid(pre), s)
        wide_p[on_map] = s * wide_v[on_map]
        n = torch.tanh(part[:, state:] + torch.conv2d(wide_p, step.candidate))
        wide_v[on_map] = torch.where(cells, n, wide_v[on_map])
        wide_p[on_map] = s * wide_v[on_map]
    return wide_v[on_map].clone(), s


def reset_gate(step: GRUIteration, v: Tensor) -> Tensor:
    state = v.shape[1]
    part = convolve(step.reward, step.from_reward, step.bias, wrap=step.wrap)[:, state : 2 * state]
    return torch.sigmoid(part + convolve(v, step.gates[state:], wrap=step.wrap))


def gradients_of(
    step: GRUIteration, solver: Solver, adjoint: Adjoint, dtype: torch.dtype = torch.float32
) -> tuple[Solution, list[Tensor]]:
    """The solution and the gradients in what it depends on; by the generic path in float64."""
    names = [f.name for f in fields(step) if f.name != "initial" and isinstance(getattr(step, f.name), Tensor)]
    leaves = {name: getattr(step, name).to(dtype, copy=True).requires_grad_() for name in names}
    leaf = replace(step, **leaves)
    if dtype == torch.float32:
        solution = compiled.fixed_point(leaf, solver=solver, adjoint=adjoint)
    else:
        solution = fixed_point(leaf, step.initial.to(dtype), solver=solver, adjoint=adjoint)
    return solution, list(torch.autograd.grad(solution.value.sin().sum(), list(leaves.values())))


@pytest.mark.slow
@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    batch=st.integers(1, 3),
    state=st.integers(1, 11),
    size=st.sampled_from([1, 3, 5]),
    shape=st.tuples(st.integers(2, 17), st.integers(2, 17)),
    wrap=st.booleans(),
    sweeps=st.integers(1, 5),
    seed=st.integers(0, 3),
)
def test_equals_the_plain_loop_over_blocks(
    batch: int, state: int, size: int, shape: tuple[int, int], wrap: bool, sweeps: int, seed: int
) -> None:
    step = conv_gru(batch, state, size, shape, wrap, seed)
    found = GaussSeidel(sweeps, 0.0, record=True).solve(step, step.initial)
    before = v = step.initial
    s = reset_gate(step, v)
    for _ in range(sweeps):
        before, (v, s) = v, plain_sweep(step, v, s)
    torch.testing.assert_close(found.value, v, rtol=1e-4, atol=1e-5)
    change = torch.linalg.vector_norm((v - before).flatten(1), dim=1)
    expected = change / (1e-5 + torch.linalg.vector_norm(v.flatten(1), dim=1))
    torch.testing.assert_close(found.residual, expected, rtol=1e-2, atol=1e-5)
    assert found.trace is not None and torch.equal(found.trace[-1], found.residual)


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize(("state", "size"), [(4, 3), (10, 1), (3, 5)])
def test_the_fixed_point_and_its_gradients_are_those_of_the_step(state: int, size: int, wrap: bool) -> None:
    step = conv_gru(3, state, size, (9, 13), wrap)
    swept, gradients = gradients_of(step, GaussSeidel(100, 1e-6), Implicit(GaussSeidel(100, 1e-6), inexact=True))
    exact = (AndersonByResidual(400, 1e-9), Implicit(AndersonByResidual(400, 1e-8), inexact=True))
    iterated, expected = gradients_of(step, *exact, torch.float64)
    assert swept.adjoint is not None and iterated.adjoint is not None
    for result in (swept.result, swept.adjoint.result, iterated.result, iterated.adjoint.result):
        assert set(result.tolist()) == {int(Result.SETTLED)}
    torch.testing.assert_close(swept.value.double(), iterated.value, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=2e-5 * float(theirs.abs().max()))


def test_the_answer_is_one_step_past_the_sweeps_and_the_residual_is_that_step_s() -> None:
    step = conv_gru()
    found = compiled.fixed_point(step, solver=GaussSeidel(4, 0.0, record=True), adjoint=OneStep())
    v = GaussSeidel(3, 0.0).solve(step, step.initial).value
    torch.testing.assert_close(found.value, step(v), rtol=1e-5, atol=1e-6)
    change = torch.linalg.vector_norm((step(v) - v).flatten(1), dim=1)
    torch.testing.assert_close(
        found.residual, change / torch.linalg.vector_norm(step(v).flatten(1), dim=1), rtol=1e-3, atol=0.0
    )
    assert found.steps.tolist() == [4] * 3 and found.trace is not None and len(found.trace) == 4


def test_an_adjoint_far_from_the_fixed_point_is_not_called_solved() -> None:
    """The sweeps leave out what is zero at the fixed point alone, and the system's own residual counts it."""
    solution, _ = gradients_of(conv_gru(), GaussSeidel(2, 0.0), Implicit(GaussSeidel(100, 1e-6), inexact=True))
    assert solution.adjoint is not None
    assert set(solution.adjoint.result.tolist()) == {int(Result.MAX_STEPS)}
    assert (solution.adjoint.residual > 1e-4).all()


def test_samples_stop_on_their_own_whatever_the_batch_and_the_number_of_threads() -> None:
    step = conv_gru(batch=7)
    method, adjoint = GaussSeidel(60, 1e-3), Implicit(GaussSeidel(30, 1e-3), inexact=True)
    found = by_threads(lambda: gradients_of(step, method, adjoint))
    for solution, gradients in found[1:]:
        assert torch.equal(solution.value, found[0][0].value)
        for ours, theirs in zip(gradients, found[0][1], strict=True):  # torch's own sums depend on the threads
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
    alone = compiled.fixed_point(step.take(torch.tensor([2])), solver=method, adjoint=adjoint)
    assert torch.equal(alone.value[0], found[0][0].value[2]) and alone.steps[0] == found[0][0].steps[2]


@pytest.mark.parametrize("where", ["initial", "reward", "gates", "candidate", "from_reward", "bias"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_never_reported_as_converged(where: str, bad: float) -> None:
    step = conv_gru()
    getattr(step, where).view(-1)[-1] = bad
    found = compiled.fixed_point(step, solver=GaussSeidel(5, 0.5), adjoint=PAPERS_ADJOINT)
    assert found.result[-1] == Result.DIVERGED


def test_a_planner_takes_it_by_name_and_the_reference_refuses_it() -> None:
    options = {"core": "conv_gppn", "solver": "gauss_seidel", "solver_bwd": "gauss_seidel", "k_fwd": 9, "q_channels": 8}
    spec = PlannerSpec(**options)
    map, goal = torch.ones(2, 1, 6, 6), torch.zeros(2, 1, 6, 6)
    goal[:, 0, 3, 3] = 1.0
    planner = build_planner(spec)
    plan = planner.plan(map, goal)
    plan.logits.square().mean().backward()
    assert plan.kernel == "compiled" and plan.solution.steps.max() <= 9
    assert plan.solution.adjoint is not None and plan.solution.adjoint.steps.max() <= spec.k_bwd
    with pytest.raises(ValueError, match="or conv_gppn, in float32 on the CPU"):
        build_planner(spec, kernel="reference")(map, goal)
    with pytest.raises(ValueError, match="float32"):
        GaussSeidel().solve(replace(conv_gru(), bias=torch.zeros(12, dtype=torch.float64)), conv_gru().initial)
