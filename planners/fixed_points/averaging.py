"""Iteration that goes on from the mean of its latest images.

Anderson's method becomes this where a ridge on its weights is far larger than the squared residuals. So it is in the
authors' code, whose ridge is 1e-4, and whose residuals are those of a mean loss's gradients.

Legend: z iterate, J = df/dv, w adjoint vector, g incoming gradient (of `propose` f(z) - z), B samples, m window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .solution import Solution, Step
from .solvers import RuleName, _iterate, check_options
from .stopping import Norm


@dataclass(frozen=True)
class MovingAverage:
    """z_{k+1} = mean of f(z_k), f(z_{k-1}), ..., f(z_{k-m+1}), of as many as there are.

    For the adjoint system w = J^T w + g (Eq. 6), from w = g, K_bwd products make a truncated Neumann series with a soft
    end: with m = 5 and 15 products the terms count 1, 1, 1, 1, 0.97, 0.78, 0.43, 0.16, 0.04, ..., 6.4 in all. Where f
    contracts it comes to the same solution as forward iteration, up to three times as slowly. The answer is the iterate
    of lowest residual (the authors' is the last).

    Args:
        max_steps: Most applications of f, at least 1.
        tolerance: At which a sample stops, by the rule; 0 runs all steps.
        depth: m, images that are averaged.
        record: Keep the residual after each step.
        rule: "error" bounds the solution's error, "residual" is the paper's; see `planners.fixed_points.solution`.
        absolute: Allowed on top of the tolerance's share, in the units of v; with one, tolerance 0 runs on no longer.
        norm: "max", "rms", "l2" or a function [B, N] -> [B] that measures samples; when not given the error rule looks
            at each number by itself, and the residual rule at the length.
    """

    max_steps: int = 30
    tolerance: float = 1e-4
    depth: int = 5
    record: bool = False
    rule: RuleName = "error"
    absolute: float = 0.0
    norm: Norm | None = None

    def __post_init__(self) -> None:
        check_options(self)

    def solve(self, f: Step, v0: Tensor) -> Solution:
        """Return the best iterate found from v0 [B, ...]."""
        return _iterate(f, v0, self, _Images(self.depth))


class _Images:
    """The latest images, of which the mean is the next iterate."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.images: list[Tensor] = []

    def propose(self, z: Tensor, g: Tensor) -> Tensor:
        self.images = [*self.images, z + g][-self.depth :]
        return torch.stack(self.images).mean(0)

    def take(self, rows: Tensor) -> None:
        self.images = [image[rows] for image in self.images]
