"""The spectral radius that `benchmarks.stability` tells, against matrices whose eigenvalues are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from benchmarks.stability import spectral_radius


@pytest.mark.parametrize("matrix, radius", [
    ([[0.5, 3.0], [0.0, -0.9]], 0.9),
    ([[0.6, -1.2], [1.2, 0.6]], math.hypot(0.6, 1.2)),  # a pair of complex eigenvalues
])  # fmt: skip
def test_spectral_radius_is_the_largest_eigenvalue(matrix: list[list[float]], radius: float):
    a = torch.tensor(matrix, dtype=torch.float64)

    def step(v: Tensor) -> Tensor:
        return (v + v**2) @ a.T

    zero = torch.zeros(3, 2, dtype=torch.float64)
    torch.testing.assert_close(
        spectral_radius(step, zero, 400, 400), torch.full((3,), radius, dtype=torch.float64), rtol=2e-3, atol=0
    )
