"""A solver for linear systems A x = b that needs no contraction, each sample on its own.

Legend: A operator, r = b - A x, p search directions, q = A p orthonormal, B samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from planners.solution import Result, Solution, Step
from planners.solvers import flat, norm_per_sample

_BREAKDOWN = 1e-14
"""A new direction shorter than this share of A p is rounding: the Krylov space holds nothing more."""


@dataclass(frozen=True)
class GMRES:
    """Generalised minimal residuals: the x of least ||b - A x|| over a growing Krylov space.

    Works for every non-singular A, and in at most n steps (n unknowns) in exact arithmetic; keeps two vectors per step.
    Written with explicit directions (ORTHODIR), whose iterates are those of GMRES and never break down before the
    solution. Saad and Schultz, GMRES, 1986; Young and Jea, Generalized conjugate-gradient acceleration, 1980.

    As a fixed-point solver it takes only affine maps f(x) = (I - A) x + b, such as the adjoint system of Eq. 6.

    Args:
        max_steps: Most products with A in the Krylov space, at least 1; two more measure the residual at both ends.
        tolerance: Relative residual ||b - A x|| / ||b|| at which a sample stops; 0 runs until breakdown.
    """

    max_steps: int = 100
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}")
        if not self.tolerance >= 0.0:
            raise ValueError(f"tolerance must be at least 0, got {self.tolerance}")

    @torch.no_grad()
    def solve(self, f: Step, v0: Tensor) -> Solution:
        """Return x = f(x) for affine f, from v0 [B, ...]."""
        b = f(torch.zeros_like(v0))
        return self.solve_linear(lambda x: x - (f(x) - b), b, v0)

    @torch.no_grad()
    def solve_linear(self, operator: Step, b: Tensor, x0: Tensor | None = None) -> Solution:
        """Return x with A x = b.

        Args:
            operator: x [B, ...] -> A x, linear, the samples independent of each other.
            b: [B, ...] right-hand side.
            x0: [B, ...] where to start; zero when not given.

        Returns:
            The solution; its residual is ||b - A x|| / ||b||, measured on the x returned.
        """
        x = torch.zeros_like(b) if x0 is None else x0.detach().clone()
        size = norm_per_sample(b)
        size = torch.where(size > 0.0, size, 1.0)
        r = b if x0 is None else b - operator(x)
        residual = norm_per_sample(r) / size
        live = torch.isfinite(residual) & (residual > self.tolerance)
        steps = torch.zeros_like(residual, dtype=torch.int64)
        p = _divide(r, norm_per_sample(r), live)
        directions: list[Tensor] = []
        images: list[Tensor] = []
        for _ in range(self.max_steps):
            if not bool(live.any()):
                break
            q = operator(p)
            steps = steps + live
            length = norm_per_sample(q)
            for _again in range(2):  # once leaves rounding of the size that the next step would amplify
                for direction, image in zip(directions, images, strict=True):
                    along = _dot(image, q)
                    q, p = q - along * image, p - along * direction
            rest = norm_per_sample(q)
            live = live & torch.isfinite(rest) & (rest > _BREAKDOWN * length)
            p, q = _divide(p, rest, live), _divide(q, rest, live)
            along = _dot(q, r)
            x, r = x + along * p, r - along * q
            directions.append(p)
            images.append(q)
            live = live & (norm_per_sample(r) / size > self.tolerance)
            p = q
        residual = norm_per_sample(b - operator(x)) / size
        finite = torch.isfinite(residual)
        result = torch.where(residual <= self.tolerance, int(Result.CONVERGED), int(Result.MAX_STEPS))
        result = torch.where(finite, result, int(Result.DIVERGED)).to(torch.int8)
        return Solution(x, torch.where(finite, residual, torch.inf), steps, result)


def _rows(scalar: Tensor, like: Tensor) -> Tensor:
    return scalar.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return _rows((flat(a).double() * flat(b).double()).sum(dim=1), a)


def _divide(a: Tensor, length: Tensor, mask: Tensor) -> Tensor:
    """Return a / length in the rows of the mask, 0 elsewhere."""
    length = _rows(torch.where(mask, length, 1.0), a)
    return torch.where(_rows(mask, mask.new_empty(a.shape)), a / length, 0.0)
