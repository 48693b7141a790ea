"""Gauss-Seidel sweeps: the plain double loop, the step's own fixed point, and refusal where they mean nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from iterations import PAPERS_ADJOINT, AndersonByResidual, Forward, value_iteration
from pydantic import ValidationError
from torch import Tensor

from planners import PlannerSpec, build_planner
from planners.compiled.solvers import GaussSeidel
from planners.compiled.value_iteration.autograd import fixed_point
from planners.cores.steps import ValueIteration
from planners.fixed_points import Implicit, OneStep, Result, Unrolled


def plain_sweep(step: ValueIteration, v: Tensor, number: int) -> Tensor:
    """One sweep cell by cell; on the torus, what lies across the edge is as it was before the sweep."""
    v, pad = v.clone(), step.w_v.shape[-1] // 2
    height, width = v.shape[-2:]
    part = step.action_values(torch.zeros_like(v))
    wide = torch.nn.functional.pad(v, (pad,) * 4, mode="circular" if step.wrap else "constant")
    for row in range(height):
        for column in range(width):
            i = height - 1 - row if number % 4 in (1, 3) else row
            j = width - 1 - column if number % 4 in (1, 2) else column
            for g in range(step.channels):
                around = wide[:, :, i : i + step.w_v.shape[-1], j : j + step.w_v.shape[-1]]
                q = part[:, g :: step.channels, i, j] + torch.einsum(
                    "bcxy,acxy->ba", around, step.w_v[g :: step.channels]
                )
                wide[:, g, i + pad, j + pad] = v[:, g, i, j] = q.amax(1)
    return v


@pytest.mark.slow
@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    batch=st.integers(1, 3),
    channels=st.sampled_from([1, 1, 3]),
    actions=st.integers(1, 20),
    size=st.sampled_from([1, 3, 5]),
    shape=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    wrap=st.booleans(),
    given_in_q=st.booleans(),
    sweeps=st.integers(1, 5),
    seed=st.integers(0, 3),
)
def test_equals_the_plain_double_loop(
    batch: int,
    channels: int,
    actions: int,
    size: int,
    shape: tuple[int, int],
    wrap: bool,
    given_in_q: bool,
    sweeps: int,
    seed: int,
) -> None:
    step, v, _ = value_iteration(batch, channels, actions, size, shape, wrap, given_in_q, seed)
    found = GaussSeidel(sweeps, 0.0, record=True).solve(step, v)
    before = v
    for number in range(sweeps):
        before, v = v, plain_sweep(step, v, number)
    torch.testing.assert_close(found.value, v, rtol=1e-4, atol=1e-5)
    change = torch.linalg.vector_norm((v - before).flatten(1), dim=1)
    expected = change / (1e-5 + torch.linalg.vector_norm(v.flatten(1), dim=1))
    torch.testing.assert_close(found.residual, expected, rtol=1e-2, atol=1e-5)
    assert found.trace is not None and torch.equal(found.trace[-1], found.residual)


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_fixed_point_and_its_gradients_are_those_of_the_step(channels: int, wrap: bool) -> None:
    step, v0, _ = value_iteration(3, channels, 7, 3, (6, 8), wrap, False, 0)
    found = []
    for solver in (GaussSeidel(200, 1e-6), Forward(400, 1e-7)):
        leaves = [x.clone().requires_grad_() for x in (step.reward, step.w_r, step.w_v) if x is not None]
        leaf = ValueIteration(leaves[0], leaves[1], leaves[2], wrap)
        solution = fixed_point(leaf, v0, solver=solver, adjoint=Implicit(AndersonByResidual(60, 1e-7), inexact=True))
        found.append((solution, torch.autograd.grad(solution.value.sin().sum(), leaves)))
    (swept, gradients), (iterated, expected) = found
    assert set(swept.result.tolist()) == {int(Result.SETTLED)}
    assert (swept.steps < iterated.steps).all()
    torch.testing.assert_close(swept.value, iterated.value, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def test_value_crosses_the_whole_map_in_one_sweep() -> None:
    """Forward iteration moves it one cell per step."""
    filters = torch.zeros(4, 1, 3, 3)
    for action, (i, j) in enumerate(((0, 1), (1, 0), (2, 1), (1, 2))):
        filters[action, 0, i, j] = 0.99
    reward = torch.zeros(1, 4, 20, 20)
    reward[0, :, 0, 0] = 1.0
    step, v0 = ValueIteration(reward, None, filters, False), torch.zeros(1, 1, 20, 20)
    swept = GaussSeidel(1, 0.0).solve(step, v0).value
    torch.testing.assert_close(swept[0, 0, -1, -1], torch.tensor(0.99**38))
    assert Forward(37, 0.0).solve(step, v0).value[0, 0, -1, -1] == 0.0


def test_samples_stop_on_their_own_and_count_the_last_step() -> None:
    step, v0, _ = value_iteration(6, 1, 7, 3, (6, 8), False, False, 1, scale=0.8)
    solution = fixed_point(step, v0, solver=GaussSeidel(100, 1e-3, record=True), adjoint=OneStep())
    assert len(set(solution.steps.tolist())) > 1
    assert solution.trace is not None and len(solution.trace) == 100
    alone = fixed_point(step.take(torch.tensor([2])), v0[2:3], solver=GaussSeidel(100, 1e-3), adjoint=OneStep())
    assert torch.equal(alone.value[0], solution.value[2]) and alone.steps[0] == solution.steps[2]


@pytest.mark.parametrize("where", ["reward", "w_r", "w_v", "v0"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_never_reported_as_converged(where: str, bad: float) -> None:
    step, v0, _ = value_iteration(2, 1, 7, 3, (5, 5), False, False, 0)
    (v0 if where == "v0" else getattr(step, where)).view(-1)[-1] = bad
    found = fixed_point(step, v0, solver=GaussSeidel(5, 0.5), adjoint=PAPERS_ADJOINT)
    assert found.result[-1] == Result.DIVERGED


def test_divergence_is_reported() -> None:
    step, v0, _ = value_iteration(2, 1, 7, 3, (6, 6), False, False, 0)
    step.w_v.mul_(40.0)
    assert set(GaussSeidel(40).solve(step, v0).result.tolist()) == {int(Result.DIVERGED)}


@pytest.mark.parametrize("core", ["vin", "symvin", "contractive"])
def test_a_planner_takes_it_by_name(core: str) -> None:
    planner = build_planner(PlannerSpec(core=core, solver="gauss_seidel", k_fwd=9, q_channels=8, hidden_channels=8))
    map, goal = torch.ones(2, 1, 6, 6), torch.zeros(2, 1, 6, 6)
    goal[:, 0, 3, 3] = 1.0
    plan = planner.plan(map, goal)
    plan.logits.square().mean().backward()
    assert plan.kernel == "compiled" and plan.solution.steps.max() <= 9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"core": "spt", "solver": "gauss_seidel"}, "works with the cores vin, symvin, contractive, conv_gppn"),
        ({"solver_bwd": "gauss_seidel"}, "not the linear system of the adjoint"),
        ({"adjoint": "unrolled", "solver": "gauss_seidel"}, "needs an implicit adjoint"),
        ({"core": "conv_gppn", "solver": "broyden", "solver_bwd": "gauss_seidel"}, "after the solvers forward, ander"),
    ],
)
def test_where_it_means_nothing_a_spec_is_refused(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PlannerSpec(**fields)  # type: ignore[arg-type]


def test_what_is_no_compiled_value_iteration_is_refused() -> None:
    step, v0, _ = value_iteration(2, 1, 7, 3, (5, 5), False, False, 0)
    with pytest.raises(ValueError, match="core vin, symvin or contractive"):
        GaussSeidel().solve(lambda v: step(v), v0)
    with pytest.raises(ValueError, match="no steps to unroll"):
        fixed_point(step, v0, solver=GaussSeidel(), adjoint=Unrolled())
    planner = build_planner(PlannerSpec(solver="gauss_seidel", temperature=0.5))
    with pytest.raises(ValueError, match="temperature 0"):
        planner(torch.ones(1, 1, 5, 5), torch.zeros(1, 1, 5, 5))
