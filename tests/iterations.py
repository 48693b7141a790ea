"""What tests of iterations share: matrices, steps of compiled loops, and solvers by the rule that those loops keep."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from planners.cores.steps import GRUIteration, ValueIteration
from planners.fixed_points import Anderson, Broyden, ForwardIteration, Implicit, OneStep, Phantom, Unrolled

T = TypeVar("T")

# The compiled loops stop by the residual rule, as planners do.
Forward = partial(ForwardIteration, rule="residual")
AndersonByResidual = partial(Anderson, rule="residual")
PAPERS_ADJOINT = Implicit(AndersonByResidual(max_steps=15), inexact=True)
ADJOINTS = {
    "implicit": Implicit(AndersonByResidual(max_steps=8, tolerance=0.0), inexact=True),
    "implicit, to tolerance": Implicit(
        AndersonByResidual(max_steps=30, tolerance=1e-3, depth=3, mixing=0.9), inexact=True
    ),
    "implicit, forward": Implicit(Forward(max_steps=6, tolerance=1e-3), inexact=True),
    "implicit, broyden": Implicit(Broyden(max_steps=6, tolerance=0.0), inexact=True),
    "phantom": Phantom(steps=4, damping=0.7),
    "one step": OneStep(),
    "unrolled": Unrolled(),
}


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def non_normal(n: int = 5, radius: float = 0.8, seed: int = 0) -> Tensor:
    """A matrix of spectral radius below one whose norm is far above one: the first steps grow."""
    matrix = torch.triu(randn(n, n, seed=seed), diagonal=1)
    matrix.diagonal().copy_(torch.linspace(-radius, radius, n, dtype=torch.float64))
    assert torch.linalg.matrix_norm(matrix, 2) > 1.5
    return matrix


def value_iteration(
    batch: int = 3,
    channels: int = 1,
    actions: int = 7,
    size: int = 3,
    shape: tuple[int, int] = (6, 9),
    wrap: bool = False,
    given_in_q: bool = False,
    seed: int = 0,
    scale: float = 0.9,
) -> tuple[ValueIteration, Tensor, Tensor]:
    """Return a step whose value filters have L1 norm at most `scale`, a start, and an incoming gradient."""
    draw = torch.Generator().manual_seed(seed)
    w_v = torch.randn(actions * channels, channels, size, size, generator=draw)
    w_v *= scale / w_v.abs().sum((1, 2, 3)).max()
    w_r = None if given_in_q else torch.randn(actions * channels, 2, size, size, generator=draw)
    reward = torch.randn(batch, actions * channels if given_in_q else 2, *shape, generator=draw)
    v0, g = (torch.randn(batch, channels, *shape, generator=draw) for _ in range(2))
    return ValueIteration(reward, w_r, w_v, wrap), v0, g


def conv_gru(
    batch: int = 3, state: int = 4, size: int = 3, shape: tuple[int, int] = (6, 9), wrap: bool = False, seed: int = 0
) -> GRUIteration:
    """Return a step of ConvGPPN's that contracts."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=draw)

    width = 0.5 / (state * size * size) ** 0.5
    return GRUIteration(
        initial=normal(batch, state, *shape),
        reward=normal(batch, 1, *shape),
        gates=normal(2 * state, state, size, size, scale=width),
        candidate=normal(state, state, size, size, scale=width),
        from_reward=normal(3 * state, 1, size, size, scale=0.3),
        bias=normal(3 * state, scale=0.3),
        wrap=wrap,
    )


def close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Raise AssertionError where two tensors differ by more than a share of the larger numbers' size."""
    scale = expected.abs().max().item() or 1.0
    error = (actual - expected).abs().max().item() / scale
    assert error <= tolerance, f"{what}: off by {error:.1e} of its size"


def by_threads(work: Callable[[], T]) -> list[T]:
    """Return what is found on one thread, on two and on three."""
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(work())
    finally:
        torch.set_num_threads(before)
    return found
