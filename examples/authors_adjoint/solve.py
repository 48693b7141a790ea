"""Anderson acceleration with a ridge on its weights, and an adjoint system that is left at its own scale.

Together they are what the authors' code does. A mean loss gives each sample an incoming gradient g whose square is far
below the ridge: then the weights are all alike, and what is called Anderson's method takes the mean of the last images.
Scaled to norm 1 (`Implicit`), the same solver minimises the residual.

Legend: z iterate, f(z) its image, B samples, N numbers of a sample, n iterates remembered, w adjoint vector, J = df/dv.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from planners.fixed_points import Implicit, Result, Solution
from planners.fixed_points.solution import AdjointRecord, AdjointSlot, Step
from planners.fixed_points.stopping import relative_residual


@dataclass(frozen=True)
class AndersonRidge:
    """Anderson acceleration: z_{k+1} = sum_i alpha_i f(z_i) over the last iterates.

    alpha, of sum 1, minimises ||sum_i alpha_i (f(z_i) - z_i)||^2 + ridge ||alpha||^2. The first two steps are forward
    iteration. A sample stops at its own step; its answer is its last iterate.

    Args:
        max_steps: Most applications of f, at least 1.
        tolerance: Relative residual at which a sample stops; 0 runs all steps.
        depth: Iterates remembered.
        ridge: In the units of f(z) - z squared, so that the weights depend on how large the numbers are.
        record: Keep the residual after each step.
    """

    max_steps: int = 30
    tolerance: float = 1e-4
    depth: int = 5
    ridge: float = 1e-4
    record: bool = False

    def solve(self, f: Step, v0: Tensor) -> Solution:
        """Return the last iterate from v0 [B, ...]."""
        z, batch = v0.clone(), len(v0)
        iterates, images, trace = list[Tensor](), list[Tensor](), list[Tensor]()
        steps = torch.zeros(batch, dtype=torch.int64, device=v0.device)
        running = torch.ones(batch, dtype=torch.bool, device=v0.device)
        residual = v0.new_full((batch,), torch.inf)
        for k in range(self.max_steps):
            if k:
                following = images[-1] if k == 1 else self._mixed(iterates, images)
                z = torch.where(running.view(-1, *[1] * (z.ndim - 1)), following, z)
            image = f(z)
            iterates, images = [*iterates, z][-self.depth :], [*images, image][-self.depth :]
            residual = torch.where(running, relative_residual(z, image), residual)
            steps += running
            trace.append(residual)
            running = running & torch.isfinite(residual) & ~((residual <= self.tolerance) & (self.tolerance > 0.0))
            if not bool(running.any()):
                break
        settled = (residual <= self.tolerance) & (self.tolerance > 0.0)
        result = torch.where(settled, int(Result.SETTLED), int(Result.MAX_STEPS))
        result = torch.where(torch.isfinite(residual), result, int(Result.DIVERGED)).to(torch.int8)
        return Solution(z, residual, steps, result, torch.stack(trace) if self.record else None)

    def _mixed(self, iterates: list[Tensor], images: list[Tensor]) -> Tensor:
        found = torch.stack([image.flatten(1) for image in images], 1)  # [B, n, N]
        defects = found - torch.stack([z.flatten(1) for z in iterates], 1)
        gram = (defects @ defects.transpose(1, 2)).double()
        gram.diagonal(dim1=1, dim2=2).add_(self.ridge)
        alpha, _ = torch.linalg.solve_ex(gram, gram.new_ones(*gram.shape[:2], 1))
        alpha = (alpha / alpha.sum(1, keepdim=True)).to(found.dtype)
        return (alpha.transpose(1, 2) @ found).view_as(images[0])


@dataclass(frozen=True)
class Unscaled(Implicit):
    """Implicit differentiation that solves w = J^T w + g (Eq. 6) for g as it is; `Implicit` does for ||g|| = 1."""

    def adjoin(self, transposed_jacobian: Step, g: Tensor, slot: AdjointSlot) -> Tensor:
        """Return w [B, ...] for the incoming gradient g [B, ...], and leave the record of the solve in the slot."""
        found = self.solver.solve(lambda w: transposed_jacobian(w) + g, g)
        slot.record = AdjointRecord(found.residual, found.steps, found.result, found.trace, found.value)
        return found.value
