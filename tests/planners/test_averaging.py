"""The mean of the latest images: what Anderson's method of the authors' code makes of small gradients."""

from __future__ import annotations

import torch

from planners.fixed_points.averaging import MovingAverage

RIDGE, DEPTH, PRODUCTS = 1e-4, 5, 15


def system(scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A contraction J per sample, [3, 12, 12], and incoming gradients of the given length, [3, 12]."""
    random = torch.Generator().manual_seed(0)
    jacobian = torch.randn(3, 12, 12, generator=random, dtype=torch.float64)
    jacobian *= 0.95 / torch.linalg.matrix_norm(jacobian, 2)[:, None, None]
    g = torch.randn(3, 12, generator=random, dtype=torch.float64)
    return jacobian, g * scale / g.norm(dim=1, keepdim=True)


def with_a_ridge(jacobian: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """The authors' solve of w = J^T w + g: weights of sum 1, by a bordered system with a ridge, sample by sample."""
    answers = []
    for matrix, start in zip(jacobian, g, strict=True):
        iterates = [start]
        images = [matrix @ start + start]
        for k in range(1, PRODUCTS):
            z = images[0]
            if k > 1:
                n = len(images)
                defects = torch.stack(images) - torch.stack(iterates)
                bordered = torch.zeros(n + 1, n + 1, dtype=g.dtype)
                bordered[0, 1:] = bordered[1:, 0] = 1.0
                bordered[1:, 1:] = defects @ defects.T + RIDGE * torch.eye(n, dtype=g.dtype)
                weights = torch.linalg.solve(bordered, torch.eye(n + 1, dtype=g.dtype)[0])[1:]
                z = weights @ torch.stack(images)
            iterates, images = [*iterates, z][-DEPTH:], [*images, matrix @ z + start][-DEPTH:]
        answers.append(iterates[-1])
    return torch.stack(answers)


def averaged(jacobian: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return MovingAverage(PRODUCTS, 0.0).solve(lambda w: torch.einsum("bij,bj->bi", jacobian, w) + g, g).value


def apart(scale: float) -> float:
    jacobian, g = system(scale)
    theirs = with_a_ridge(jacobian, g)
    return float((averaged(jacobian, g) - theirs).norm() / theirs.norm())


def test_it_is_the_authors_solve_of_small_gradients() -> None:
    # 7e-4 is the length of ID-VIN's incoming gradients, mazes of 15x15 in batches of 32 (REPRODUCTION.md)
    assert apart(7e-4) < 1e-5
    assert apart(1.0) > 0.01


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
        z = sum(images) / len(images)
    found = MovingAverage(10, 0.0, depth=3).solve(lambda w: torch.einsum("bij,bj->bi", jacobian, w) + g, g)
    torch.testing.assert_close(found.value, z)


def test_it_finds_the_fixed_point_of_what_swings() -> None:
    """Forward iteration leaves f(v) = 1 - 1.2 v; the mean of five images does not."""
    found = MovingAverage(200, 1e-10).solve(lambda v: 1.0 - 1.2 * v, torch.zeros(1, 1, dtype=torch.float64))
    torch.testing.assert_close(found.value, torch.full((1, 1), 1 / 2.2, dtype=torch.float64))
