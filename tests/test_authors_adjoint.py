"""The plug-in that solves the adjoint system as the authors' code does, beside that solve written out."""

import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

from authors_adjoint.solve import AndersonRidge, Unscaled  # noqa: E402

from planners import ForwardIteration, Implicit, fixed_point  # noqa: E402

RIDGE, DEPTH = 1e-4, 5


def system(scale: float, batch: int = 3, size: int = 12):
    """A contraction J per sample, and incoming gradients of about the given norm."""
    random = torch.Generator().manual_seed(0)
    jacobian = torch.randn(batch, size, size, generator=random, dtype=torch.float64)
    jacobian *= 0.95 / torch.linalg.matrix_norm(jacobian, 2)[:, None, None]
    g = torch.randn(batch, size, generator=random, dtype=torch.float64) * scale / size**0.5
    return jacobian, g


def by_lagrange(jacobian, g, steps):
    """The weights of sum 1 by the bordered system of a Lagrange multiplier, sample by sample."""
    answers = []
    for matrix, start in zip(jacobian, g, strict=True):
        iterates, images = [start], [matrix @ start + start]
        for k in range(1, steps):
            n = len(images)
            if k == 1:
                z = images[0]
            else:
                defects = torch.stack([b - a for a, b in zip(iterates, images, strict=True)])
                bordered = torch.zeros(n + 1, n + 1, dtype=g.dtype)
                bordered[0, 1:] = bordered[1:, 0] = 1.0
                bordered[1:, 1:] = defects @ defects.T + RIDGE * torch.eye(n, dtype=g.dtype)
                right = torch.zeros(n + 1, dtype=g.dtype)
                right[0] = 1.0
                z = torch.linalg.solve(bordered, right)[1:] @ torch.stack(images)
            iterates, images = [*iterates, z][-DEPTH:], [*images, matrix @ z + start][-DEPTH:]
        answers.append(iterates[-1])
    return torch.stack(answers)


@pytest.mark.parametrize("scale", [1.0, 1e-1, 7e-4])
@pytest.mark.parametrize("steps", [1, 2, 3, 15])
def test_the_weights_are_those_of_the_bordered_system(scale, steps):
    jacobian, g = system(scale)
    found = AndersonRidge(steps, 0.0).solve(lambda w: torch.einsum("bij,bj->bi", jacobian, w) + g, g)
    torch.testing.assert_close(found.value, by_lagrange(jacobian, g, steps), rtol=1e-9, atol=0.0)
    assert (found.steps == steps).all()


def terms(scale: float) -> torch.Tensor:
    """Coefficients of g, J g, J^2 g, ... in what 15 products make of g, by a shift for J."""
    g = torch.zeros(1, 20, dtype=torch.float64)
    g[0, 0] = scale
    shifted = AndersonRidge(15, 0.0).solve(lambda w: torch.nn.functional.pad(w, (1, -1)) + g, g)
    return shifted.value[0] / scale


def test_of_a_small_gradient_15_products_make_a_neumann_series_of_six_terms():
    # ID-VIN's incoming gradients are of norm 7e-4 on mazes of 15x15 in batches of 32
    found = terms(7e-4)
    mean = torch.tensor([1, 1, 1, 1, 0.97, 0.78, 0.43, 0.16, 0.04, 0.01, 0], dtype=torch.float64)
    torch.testing.assert_close(found[:11], mean, rtol=0.0, atol=0.006)
    assert abs(float(found.sum()) - 6.4) < 0.05
    assert float(terms(1.0).sum()) > 9.0


def test_scaled_it_solves_and_unscaled_it_does_not():
    jacobian, g = system(7e-4)
    exact = torch.linalg.solve(torch.eye(12, dtype=g.dtype) - jacobian.transpose(1, 2), g)

    def error(adjoint):
        x = torch.ones_like(g, requires_grad=True)
        solver = ForwardIteration(200)
        found = fixed_point(lambda v: torch.einsum("bij,bj->bi", jacobian, v) + x, g, solver=solver, adjoint=adjoint)
        (found.value * g).sum().backward()
        assert x.grad is not None
        return float((x.grad - exact).norm() / exact.norm())

    solver = AndersonRidge(15, 0.0)
    assert error(Unscaled(solver, inexact=True)) > 10 * error(Implicit(solver, inexact=True))
