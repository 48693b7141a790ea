"""The Jacobian penalty and the spectral radius on maps whose Jacobian is known."""

import math

import pytest
import torch
from iterations import randn
from torch import Tensor

from planners.fixed_points.jacobian import jacobian_penalty, spectral_radius, squared_jacobian_norm


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def exact_norm(weight: Tensor, v: Tensor) -> Tensor:
    """||J||_F^2 per sample of v -> tanh(v W^T)."""
    slope = 1.0 - torch.tanh(v @ weight.T) ** 2
    return (slope[:, :, None] * weight).square().sum(dim=(1, 2))


def test_estimate_is_unbiased() -> None:
    weight, v = randn(5, 5), randn(3, 5, seed=1)
    estimate = squared_jacobian_norm(lambda v: torch.tanh(v @ weight.T), v, seeded(), probes=2000)
    # Relative standard deviation of one probe is below sqrt(2): three of them are 0.095 over 2000 probes.
    torch.testing.assert_close(estimate, exact_norm(weight, v), rtol=0.095, atol=0.0)


def test_penalty_is_per_entry_of_v() -> None:
    v = randn(3, 2, 4, 4)
    found = jacobian_penalty(lambda v: 0.7 * v, v, seeded(), probes=200)
    torch.testing.assert_close(found, torch.tensor(0.49, dtype=torch.float64), rtol=0.05, atol=0.0)
    assert found.ndim == 0


def test_penalty_depends_on_its_generator_alone() -> None:
    weight, v = randn(5, 5), randn(3, 5, seed=1)
    step = lambda v: torch.tanh(v @ weight.T)  # noqa: E731
    first = jacobian_penalty(step, v, seeded(3))
    torch.manual_seed(1)
    assert torch.equal(jacobian_penalty(step, v, seeded(3)), first)
    assert not torch.equal(jacobian_penalty(step, v, seeded(4)), first)


def test_penalty_trains_what_the_step_captures_but_not_the_equilibrium() -> None:
    v = randn(3, 4, seed=1).requires_grad_()

    def penalty(weight: Tensor) -> Tensor:
        return jacobian_penalty(lambda v: torch.tanh(v @ weight.T), v, seeded(5))

    weight = randn(4, 4).requires_grad_()
    assert torch.autograd.gradcheck(penalty, weight)
    penalty(weight).backward()
    assert weight.grad is not None and weight.grad.abs().max() > 0 and v.grad is None
    with torch.no_grad():
        assert not penalty(weight).requires_grad


def test_training_on_the_penalty_shrinks_the_jacobian() -> None:
    weight, v = randn(4, 4).requires_grad_(), randn(8, 4, seed=1)
    before = exact_norm(weight.detach(), v).mean()
    generator = seeded()
    step = lambda v: torch.tanh(v @ weight.T)  # noqa: E731
    for _ in range(100):
        (gradient,) = torch.autograd.grad(jacobian_penalty(step, v, generator), weight)
        with torch.no_grad():
            weight -= 0.2 * gradient
    assert exact_norm(weight.detach(), v).mean() < 0.5 * before


def test_spectral_radius_per_sample() -> None:
    """Real, negative, complex and non-normal leading eigenvalues, one sample each, and no eigenvalue but zero."""
    turn = 0.9 * torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    matrices = torch.stack(
        [
            torch.block_diag(torch.diag(torch.tensor([1.3, 0.2], dtype=torch.float64)), torch.eye(1)),
            torch.diag(torch.tensor([-0.7, 0.3, 0.1], dtype=torch.float64)),
            torch.block_diag(turn, torch.tensor([[0.2]], dtype=torch.float64)),
            torch.tensor([[0.5, 40.0, 0.0], [0.0, 0.8, 30.0], [0.0, 0.0, -0.2]], dtype=torch.float64),
            torch.tensor([[0.0, 5.0, 1.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]], dtype=torch.float64),
        ]
    )
    found = spectral_radius(lambda v: torch.einsum("bij,bj->bi", matrices, v), randn(5, 3), 200, seeded())
    expected = torch.linalg.eigvals(matrices).abs().amax(dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-12)


@pytest.mark.parametrize("steps", [20, 50, 51, 200])
def test_the_spectral_radius_of_eigenvalues_in_a_ring(steps: int) -> None:
    rings = ([100.0, -0.0121], [10.0, 0.1331, 1.0], [100.0, 0.01, 1.0, 1.0, 1.1**5], [1e3, 1e-3, 1e3, 1e-3, 1.0, 1.0])
    for weights in (*rings, [100.0, 0.01, 1.0, 100.0, 0.01, 1.0, 1.1**7]):
        n = len(weights)
        matrix = torch.zeros(n, n, dtype=torch.float64)
        matrix[torch.arange(n), (torch.arange(n) + 1) % n] = torch.tensor(weights, dtype=torch.float64)
        expected = math.prod(abs(weight) for weight in weights) ** (1 / n)
        found = spectral_radius(lambda z, m=matrix: z @ m.T, torch.zeros(1, n, dtype=torch.float64), steps)
        assert float(found) == pytest.approx(expected, rel=1e-5), weights


def test_the_spectral_radius_of_slow_turns() -> None:
    scale = torch.diag(torch.tensor([1.0, 1000.0], dtype=torch.float64))
    turn = torch.tensor([[math.cos(0.05), -math.sin(0.05)], [math.sin(0.05), math.cos(0.05)]], dtype=torch.float64)
    matrix = torch.block_diag(1.02 * scale @ turn @ scale.inverse(), 0.5 * torch.eye(30, dtype=torch.float64))
    for m in (matrix, matrix.float()):
        found = spectral_radius(lambda z, m=m: z @ m.T, torch.zeros(1, 32, dtype=m.dtype))
        assert float(found) == pytest.approx(1.02, rel=1e-3)


def test_measures_of_nothing_are_zero() -> None:
    for shape in ((0, 2), (2, 0)):
        assert jacobian_penalty(lambda v: 0.5 * v, torch.ones(shape)) == 0.0
        assert torch.equal(spectral_radius(lambda v: 0.5 * v, torch.ones(shape)), torch.zeros(shape[0]))


def test_spectral_radius_is_taken_at_v() -> None:
    v = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    found = spectral_radius(lambda v: torch.tanh(0.8 * v), v, 10, seeded())
    torch.testing.assert_close(found, 0.8 * (1.0 - torch.tanh(0.8 * v[:, 0]) ** 2))
    assert not found.requires_grad


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="steps must be at least 2, got 1"):
        spectral_radius(lambda v: v, torch.ones(1, 1), 1)
