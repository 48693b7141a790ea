"""The compiled value iteration equals the generic path: values, residuals, steps, results and all gradients."""

from __future__ import annotations

import multiprocessing
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from iterations import ADJOINTS, PAPERS_ADJOINT, AndersonByResidual, Forward, by_threads, close, value_iteration
from torch import Tensor

from planners.compiled.value_iteration import autograd as compiled
from planners.cores.steps import ValueIteration
from planners.fixed_points import (
    Adjoint,
    ForwardIteration,
    Implicit,
    OneStep,
    Result,
    Solution,
    Unrolled,
)
from planners.fixed_points.solve import fixed_point as generic

# Steps that diverge, and too few of those that do not, are the subject here: both paths give the same.
pytestmark = pytest.mark.filterwarnings("ignore:fixed_point. no fixed point was found")


def solve(
    which: object, step: ValueIteration, v0: Tensor, g: Tensor, solver: ForwardIteration, adjoint: Adjoint
) -> tuple[Solution, dict[str, Tensor | None]]:
    """The solution, and the gradients of <g, v*> in everything it depends on."""
    leaves = {"reward": step.reward, "w_r": step.w_r, "w_v": step.w_v, "v0": v0}
    leaves = {name: x.clone().requires_grad_() for name, x in leaves.items() if x is not None}
    leaf = replace(step, reward=leaves["reward"], w_r=leaves.get("w_r"), w_v=leaves["w_v"])
    solution = which(leaf, leaves["v0"], solver=solver, adjoint=adjoint)  # type: ignore[operator]
    gradients = torch.autograd.grad(solution.value, list(leaves.values()), g, allow_unused=True)
    return solution, dict(zip(leaves, gradients, strict=True))


@pytest.mark.slow
@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    adjoint=st.sampled_from(sorted(ADJOINTS)),
    batch=st.integers(1, 5),
    channels=st.sampled_from([1, 1, 2, 3]),
    actions=st.integers(1, 12),
    size=st.sampled_from([1, 3, 5]),
    shape=st.tuples(st.integers(2, 19), st.integers(2, 19)),
    wrap=st.booleans(),
    given_in_q=st.booleans(),
    steps=st.sampled_from([1, 2, 7, 8]),
    tolerance=st.sampled_from([0.0, 0.05]),
    seed=st.integers(0, 3),
)
def test_equals_the_generic_path(
    adjoint: str,
    batch: int,
    channels: int,
    actions: int,
    size: int,
    shape: tuple[int, int],
    wrap: bool,
    given_in_q: bool,
    steps: int,
    tolerance: float,
    seed: int,
) -> None:
    case = value_iteration(batch, channels, actions, size, shape, wrap, given_in_q, seed)
    solver = Forward(max_steps=steps, tolerance=tolerance, record=True)
    ours, our_gradients = solve(compiled.fixed_point, *case, solver, ADJOINTS[adjoint])
    reference, gradients = solve(generic, *case, solver, ADJOINTS[adjoint])

    close(ours.value, reference.value, 2e-6, "value")
    # Already relative to the value's size, so rounding the value moves it by a few 1e-7 however small it is.
    assert torch.allclose(ours.residual, reference.residual, rtol=1e-5, atol=1e-6)
    assert ours.steps.tolist() == reference.steps.tolist()
    assert ours.result.tolist() == reference.result.tolist()
    assert ours.trace is not None and reference.trace is not None
    assert torch.allclose(ours.trace, reference.trace, rtol=1e-5, atol=1e-6)
    for name, expected in gradients.items():
        actual = our_gradients[name]
        assert (actual is None) == (expected is None), name
        if actual is not None and expected is not None:
            close(actual, expected, 2e-5, f"gradient to {name}")
    if reference.adjoint is not None:
        assert ours.adjoint is not None
        assert ours.adjoint.steps.tolist() == reference.adjoint.steps.tolist()
        assert ours.adjoint.result.tolist() == reference.adjoint.result.tolist()


def test_many_steps_and_actions_stay_equal() -> None:
    case = value_iteration(batch=2, actions=100, shape=(15, 15))
    solver = Forward(max_steps=80, tolerance=0.0)
    for adjoint in (Unrolled(), Implicit(AndersonByResidual(max_steps=15, tolerance=0.0), inexact=True)):
        ours, our_gradients = solve(compiled.fixed_point, *case, solver, adjoint)
        reference, gradients = solve(generic, *case, solver, adjoint)
        close(ours.value, reference.value, 2e-6, "value")
        for name in ("reward", "w_r", "w_v"):
            actual, expected = our_gradients[name], gradients[name]
            assert actual is not None and expected is not None
            close(actual, expected, 1e-4, name)


@pytest.mark.parametrize("adjoint", [PAPERS_ADJOINT, Unrolled()], ids=["implicit", "unrolled"])
def test_without_gradients_the_value_is_the_same(adjoint: Adjoint) -> None:
    step, v0, _ = value_iteration()
    solver = Forward(max_steps=9, tolerance=0.0)
    with torch.no_grad():
        plain = compiled.fixed_point(step, v0, solver=solver, adjoint=adjoint)
    step.w_v.requires_grad_()
    recorded = compiled.fixed_point(step, v0, solver=solver, adjoint=adjoint)
    assert not plain.value.requires_grad and recorded.value.requires_grad
    assert torch.equal(plain.value, recorded.value)


@pytest.mark.parametrize("adjoint", [PAPERS_ADJOINT, Unrolled()], ids=["implicit", "unrolled"])
def test_the_result_does_not_depend_on_the_number_of_threads(adjoint: Adjoint) -> None:
    (first, first_gradients), *others = by_threads(
        lambda: solve(compiled.fixed_point, *value_iteration(batch=7), Forward(6, 0.0), adjoint)
    )
    for solution, gradients in others:
        assert torch.equal(solution.value, first.value)
        for name in ("reward", "w_r", "w_v"):
            ours, theirs = gradients[name], first_gradients[name]
            assert ours is not None and theirs is not None and torch.equal(ours, theirs)


@pytest.mark.parametrize("adjoint", [PAPERS_ADJOINT, Unrolled()], ids=["implicit", "unrolled"])
def test_divergence_is_reported_as_by_the_generic_path(adjoint: Adjoint) -> None:
    step, v0, _ = value_iteration(scale=40.0)
    solver = Forward(max_steps=40, tolerance=1e-4)
    ours = compiled.fixed_point(step, v0, solver=solver, adjoint=adjoint)
    reference = generic(step, v0, solver=solver, adjoint=adjoint)
    assert set(ours.result.tolist()) == {int(Result.DIVERGED)}
    assert ours.result.tolist() == reference.result.tolist()
    assert ours.steps.tolist() == reference.steps.tolist()


@pytest.mark.parametrize("where", ["reward", "w_r", "w_v", "v0"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_never_reported_as_converged(where: str, bad: float) -> None:
    step, v0, _ = value_iteration()
    tensors = {"reward": step.reward, "w_r": step.w_r, "w_v": step.w_v, "v0": v0}
    tensor = tensors[where]
    assert tensor is not None
    tensor.view(-1)[-1] = bad
    found = compiled.fixed_point(step, v0, solver=Forward(5, 0.5), adjoint=PAPERS_ADJOINT)
    assert found.result[-1] == Result.DIVERGED
    assert found.residual[-1] == torch.inf
    if where in ("reward", "v0"):
        assert set(found.result[:-1].tolist()) <= {int(Result.SETTLED), int(Result.MAX_STEPS)}


def test_ties_go_to_the_lowest_action() -> None:
    step, v0, g = value_iteration(actions=1, given_in_q=True)
    doubled = replace(step, reward=step.reward.repeat(1, 2, 1, 1), w_v=step.w_v.repeat(2, 1, 1, 1))
    _, gradients = solve(compiled.fixed_point, doubled, v0, g, Forward(3, 0.0), OneStep())
    assert gradients["reward"] is not None and gradients["w_v"] is not None
    assert torch.equal(gradients["reward"][:, :1], g)
    assert not gradients["reward"][:, 1].any() and not gradients["w_v"][1].any()


@pytest.mark.parametrize("given_in_q", [False, True])
@pytest.mark.parametrize("wrap", [False, True])
def test_the_policy_is_the_head_after_q(given_in_q: bool, wrap: bool) -> None:
    step, v, _ = value_iteration(channels=2, size=5, wrap=wrap, given_in_q=given_in_q)
    head = torch.randn(4, 14, 1, 1, generator=torch.Generator().manual_seed(0))
    step = replace(step, head=head)
    expected = torch.nn.functional.conv2d(step.action_values(v), head)
    close(step.policy(v), expected, 1e-6, "logits")
    close(step.prepared().policy(v), expected, 0.0, "logits with Q")


@pytest.mark.parametrize(
    ("change", "solver", "message"),
    [
        ({}, AndersonByResidual(), "forward iteration"),
        ({"w_v": torch.zeros(7, 1, 3, 3, dtype=torch.float64)}, Forward(), "float32"),
        ({"w_v": torch.zeros(7, 1, 15, 15), "wrap": True}, Forward(), "torus"),
    ],
    ids=["solver", "dtype", "torus"],
)
def test_what_is_not_supported_says_so(change: dict, solver: ForwardIteration, message: str) -> None:
    step, v0, _ = value_iteration()
    with pytest.raises(ValueError, match=message):
        compiled.fixed_point(replace(step, **change), v0, solver=solver, adjoint=PAPERS_ADJOINT)


def test_the_compiled_gradient_refuses_to_be_differentiated_again() -> None:
    step, v0, g = value_iteration()
    step.w_v.requires_grad_()
    found = compiled.fixed_point(step, v0, solver=Forward(3), adjoint=PAPERS_ADJOINT)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(found.value, step.w_v, g, create_graph=True)


def _forked(connection: object, case: tuple[ValueIteration, Tensor, Tensor]) -> None:
    found = compiled.fixed_point(case[0], case[1], solver=Forward(6, 0.0), adjoint=PAPERS_ADJOINT)
    connection.send(found.value.numpy())  # type: ignore[attr-defined]


def test_works_in_a_process_forked_after_use() -> None:
    case, before = value_iteration(batch=4), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = compiled.fixed_point(case[0], case[1], solver=Forward(6, 0.0), adjoint=PAPERS_ADJOINT)
        ours, theirs = multiprocessing.Pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads alive is what is tested
            child = multiprocessing.get_context("fork").Process(target=_forked, args=(theirs, case))
            child.start()
        assert ours.poll(60), "the forked process did not answer"
        assert torch.equal(torch.from_numpy(ours.recv()), expected.value)
        child.join(60)
        assert child.exitcode == 0
    finally:
        torch.set_num_threads(before)
