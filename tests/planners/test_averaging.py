"""The mean of the latest images: what Anderson's method of the authors' code makes of small gradients."""

from __future__ import annotations

import pytest
import torch

from benchmarks.adjoint_solves import with_a_ridge
from planners.fixed_points.averaging import MovingAverage

PRODUCTS = 15


def system(scale: float, radius: float = 0.6) -> tuple[torch.Tensor, torch.Tensor]:
    """J per sample, [3, 12, 12], of the given spectral radius, and incoming gradients of the given length, [3, 12]."""
    random = torch.Generator().manual_seed(0)
    jacobian = torch.randn(3, 12, 12, generator=random, dtype=torch.float64)
    jacobian *= radius / torch.linalg.eigvals(jacobian).abs().amax(1)[:, None, None]
    g = torch.randn(3, 12, generator=random, dtype=torch.float64)
    return jacobian, g * scale / g.norm(dim=1, keepdim=True)


def apart(scale: float, radius: float = 0.6) -> float:
    """Return how far the answer is from the authors', relative to theirs."""
    jacobian, g = system(scale, radius)

    def product(w: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bij,bj->bi", jacobian, w)

    theirs = with_a_ridge(product, g, PRODUCTS)
    ours = MovingAverage(PRODUCTS, 0.0).solve(lambda w: product(w) + g, g).value
    return float((ours - theirs).norm() / theirs.norm())


def test_it_is_the_authors_solve_of_small_gradients() -> None:
    # Norms that trained planners have (docs/results/adjoint_solves.json).
    assert apart(1e-4) < 1e-6 and apart(1e-3) < 1e-4 and apart(1e-2) < 1e-2
    assert apart(1.0) > 0.01


@pytest.mark.parametrize("radius", [1.5, 2.0])
def test_where_the_system_expands_it_keeps_its_best_iterate_and_the_authors_the_last(radius: float) -> None:
    assert apart(1e-4, radius) > 0.2


def test_the_authors_weights_are_those_of_a_lagrange_multiplier() -> None:
    jacobian, g = system(1.0)
    iterates, images = [g], [torch.einsum("bij,bj->bi", jacobian, g) + g]
    for k in range(1, 4):
        w = torch.empty_like(g)
        for sample in range(len(g)):
            defects = torch.stack([b[sample] - a[sample] for a, b in zip(iterates, images, strict=True)])
            bordered = torch.zeros(k + 1, k + 1, dtype=g.dtype)
            bordered[0, 1:] = bordered[1:, 0] = 1.0
            bordered[1:, 1:] = defects @ defects.T + 1e-4 * torch.eye(k, dtype=g.dtype)
            weights = torch.linalg.solve(bordered, torch.eye(k + 1, dtype=g.dtype)[0])[1:]
            w[sample] = weights @ torch.stack([image[sample] for image in images])
        iterates, images = [*iterates, w], [*images, torch.einsum("bij,bj->bi", jacobian, w) + g]
    found = with_a_ridge(lambda w: torch.einsum("bij,bj->bi", jacobian, w), g, 4)
    torch.testing.assert_close(found, iterates[-1], rtol=1e-8, atol=0.0)


def test_15_products_make_some_six_terms_of_the_neumann_series() -> None:
    g = torch.zeros(1, 20, dtype=torch.float64)
    g[0, 0] = 1.0
    terms = MovingAverage(PRODUCTS, 0.0).solve(lambda w: torch.nn.functional.pad(w, (1, -1)) + g, g).value[0]
    expected = torch.tensor([1, 1, 1, 1, 0.97, 0.78, 0.43, 0.16, 0.04, 0.01, 0], dtype=torch.float64)
    torch.testing.assert_close(terms[:11], expected, rtol=0.0, atol=0.005)
    assert abs(float(terms.sum()) - 6.39) < 0.005


def test_each_iterate_is_the_mean_of_the_latest_images() -> None:
    jacobian, g = system(1.0)
    z, images = g, list[torch.Tensor]()
    for _ in range(9):
        images = [*images, torch.einsum("bij,bj->bi", jacobian, z) + g][-3:]
        z = torch.stack(images).mean(0)
    found = MovingAverage(10, 0.0, depth=3).solve(lambda w: torch.einsum("bij,bj->bi", jacobian, w) + g, g)
    torch.testing.assert_close(found.value, z)


def test_it_finds_the_fixed_point_of_what_swings() -> None:
    """Forward iteration leaves f(v) = 1 - 1.2 v; the mean of five images does not."""
    found = MovingAverage(200, 1e-10).solve(lambda v: 1.0 - 1.2 * v, torch.zeros(1, 1, dtype=torch.float64))
    torch.testing.assert_close(found.value, torch.full((1, 1), 1 / 2.2, dtype=torch.float64))
