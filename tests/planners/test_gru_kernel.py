"""The compiled ConvGRU equals the generic path: values, residuals, steps, results and all gradients.

On vector registers, as on processors without tile registers; `test_tiles` compares those with these.
"""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from iterations import ADJOINTS, PAPERS_ADJOINT, AndersonByResidual, Forward, by_threads, close, conv_gru
from torch import Tensor

from planners.compiled.conv_gru import autograd as compiled
from planners.compiled.conv_gru import buffers as gru_pages
from planners.compiled.conv_gru.buffers import release_pages, take_pages
from planners.compiled.conv_gru.step import tanh
from planners.cores.steps import GRUIteration
from planners.fixed_points import (
    Adjoint,
    Anderson,
    Broyden,
    ForwardIteration,
    Result,
    Solution,
    Unrolled,
    fixed_point,
)


@pytest.fixture(autouse=True, scope="module")
def vector_registers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "tiles_available", lambda: False)
        yield


def solve(fast: bool, step: GRUIteration, solver: object, adjoint: Adjoint) -> tuple[Solution, dict[str, Tensor]]:
    """The solution, and the gradients in everything it depends on."""
    names = [field.name for field in fields(step) if isinstance(getattr(step, field.name), Tensor)]
    leaves = {name: getattr(step, name).clone().requires_grad_() for name in names}
    leaf = replace(step, **leaves)
    if fast:
        solution = compiled.fixed_point(leaf, solver=solver, adjoint=adjoint)
    else:
        solution = fixed_point(leaf, leaf.initial, solver=solver, adjoint=adjoint)
    gradients = torch.autograd.grad(solution.value.sin().sum(), list(leaves.values()), allow_unused=True)
    gradients = [torch.zeros(1) if gradient is None else gradient for gradient in gradients]
    return solution, dict(zip(names, gradients, strict=True))


@pytest.mark.slow
@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    adjoint=st.sampled_from(sorted(ADJOINTS)),
    batch=st.integers(1, 4),
    state=st.integers(1, 11),
    size=st.sampled_from([1, 3, 5]),
    shape=st.tuples(st.integers(2, 17), st.integers(2, 17)),
    wrap=st.booleans(),
    solver=st.sampled_from(
        [Forward(7, 0.0, True), Forward(30, 1e-2, True), AndersonByResidual(6, 0.0), Forward(1, 0.0)]
    ),
    seed=st.integers(0, 3),
)
def test_equals_the_generic_path(
    adjoint: str,
    batch: int,
    state: int,
    size: int,
    shape: tuple[int, int],
    wrap: bool,
    solver: ForwardIteration | Anderson,
    seed: int,
) -> None:
    if adjoint == "unrolled" and isinstance(solver, Anderson):
        return
    step = conv_gru(batch, state, size, shape, wrap, seed)
    ours, our_gradients = solve(True, step, solver, ADJOINTS[adjoint])
    reference, gradients = solve(False, step, solver, ADJOINTS[adjoint])
    close(ours.value, reference.value, 2e-5 if isinstance(solver, Anderson) else 2e-6, "value")
    assert torch.allclose(ours.residual, reference.residual, rtol=1e-3, atol=1e-5)
    assert ours.steps.tolist() == reference.steps.tolist()
    assert ours.result.tolist() == reference.result.tolist()
    assert (ours.trace is None) == (reference.trace is None)
    if ours.trace is not None and reference.trace is not None:
        assert torch.allclose(ours.trace, reference.trace, rtol=1e-4, atol=1e-6)
    for name, expected in gradients.items():
        close(our_gradients[name], expected, 2e-4, f"gradient to {name}")
    if ours.adjoint is not None and reference.adjoint is not None:
        assert torch.allclose(ours.adjoint.residual, reference.adjoint.residual, rtol=1e-2, atol=1e-4)


def test_samples_stop_at_their_own_step_whatever_the_number_of_threads() -> None:
    step = conv_gru(batch=7)
    found = by_threads(lambda: solve(True, step, Forward(60, 1e-3), PAPERS_ADJOINT))
    assert len(set(found[0][0].steps.tolist())) > 1
    for solution, _ in found[1:]:
        assert torch.equal(solution.value, found[0][0].value)


def test_the_compiled_tanh_is_the_hyperbolic_tangent() -> None:
    x = np.linspace(-12, 12, 4001).astype(np.float32)
    assert max(abs(float(tanh(each)) - np.tanh(np.float64(each))) for each in x) < 4e-7


@pytest.mark.parametrize("where", ["initial", "reward", "gates", "candidate", "from_reward", "bias"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_never_reported_as_converged(where: str, bad: float) -> None:
    step = conv_gru()
    getattr(step, where).view(-1)[-1] = bad
    for solver in (Forward(5, 0.5), AndersonByResidual(5, 0.5)):
        found = compiled.fixed_point(step, solver=solver, adjoint=PAPERS_ADJOINT)
        assert found.result[-1] == Result.DIVERGED
    found = compiled.fixed_point(step, solver=Forward(5, 0.5), adjoint=Unrolled())
    assert found.result[-1] == Result.DIVERGED and not torch.isfinite(found.value[-1]).any()


def test_unrolled_without_gradients_the_value_is_the_same() -> None:
    step, solver = conv_gru(), Forward(9, 1e-2, record=True)
    with torch.no_grad():
        plain = compiled.fixed_point(step, solver=solver, adjoint=Unrolled())
    kept = compiled.fixed_point(step, solver=solver, adjoint=Unrolled())
    assert torch.equal(plain.value, kept.value) and torch.equal(plain.result, kept.result)
    assert plain.trace is not None and kept.trace is not None and torch.allclose(plain.trace, kept.trace)


def test_the_compiled_gradient_refuses_to_be_differentiated_again() -> None:
    step = conv_gru()
    step.gates.requires_grad_()
    found = compiled.fixed_point(step, solver=Forward(3), adjoint=Unrolled())
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(found.value.sum(), step.gates, create_graph=True)


def test_pages_are_used_again_only_once_nobody_needs_them() -> None:
    first = take_pages(2, 5)
    first.fill_(1.0)
    address, second = first.data_ptr(), take_pages(2, 5)
    assert second.data_ptr() != address
    alias = first.numpy()
    del first
    assert take_pages(2, 5).data_ptr() != address and alias.sum() == 10.0
    del alias
    assert take_pages(5, 2).data_ptr() == address
    assert take_pages(3).shape == (3,) and second.shape == (2, 5)
    release_pages()
    assert not gru_pages._spare


WIDER_THAN_THE_TORUS = {
    "gates": torch.zeros(8, 4, 15, 15),
    "candidate": torch.zeros(4, 4, 15, 15),
    "from_reward": torch.zeros(12, 1, 15, 15),
    "wrap": True,
}


@pytest.mark.parametrize(
    ("change", "solver", "adjoint", "message"),
    [
        ({}, Broyden(), PAPERS_ADJOINT, "no solver Broyden"),
        ({}, AndersonByResidual(), Unrolled(), "only forward iteration can be unrolled"),
        ({"bias": torch.zeros(12, dtype=torch.float64)}, Forward(), PAPERS_ADJOINT, "float32"),
        (WIDER_THAN_THE_TORUS, Forward(), PAPERS_ADJOINT, "torus"),
    ],
    ids=["solver", "adjoint", "dtype", "torus"],
)
def test_what_is_not_supported_says_so(change: dict, solver: object, adjoint: Adjoint, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compiled.fixed_point(replace(conv_gru(), **change), solver=solver, adjoint=adjoint)
