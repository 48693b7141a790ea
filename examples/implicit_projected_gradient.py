"""Implicit differentiation of a constrained problem through its projected-gradient condition.

x* = argmin_{x >= 0} x^T Q x / 2 - c^T x is the fixed point of x = max(0, x - step (Q x - c)), whatever solver found it.
Run: python examples/implicit_projected_gradient.py
"""

from __future__ import annotations

import torch
from torch import Tensor

from planners.fixed_points import Anderson, ForwardIteration, Implicit, fixed_point


def main() -> tuple[Tensor, Tensor]:
    """Print and return the Jacobian dx*/dc, implicit and in closed form on the active set, [5, 5] each."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    q = a @ a.T + 0.5 * torch.eye(5, dtype=torch.float64)
    c = torch.randn(1, 5, generator=generator, dtype=torch.float64).requires_grad_()
    step = 1.0 / float(torch.linalg.eigvalsh(q).max())

    def project(x: Tensor) -> Tensor:
        return (x - step * (x @ q - c)).clamp(min=0.0)

    solution = fixed_point(
        project,
        torch.zeros(1, 5, dtype=torch.float64),
        solver=ForwardIteration(max_steps=5000, tolerance=1e-13),
        adjoint=Implicit(Anderson(max_steps=100, tolerance=1e-12)),
    )
    rows = [torch.autograd.grad(solution.value[0, i], c, retain_graph=True)[0][0] for i in range(5)]
    implicit = torch.stack(rows)

    free = solution.value[0] > 0.0
    closed_form = torch.zeros_like(q)
    closed_form[free.nonzero(), free.nonzero().T] = torch.linalg.inv(q[free][:, free])
    print(f"x* = {[round(x, 4) for x in solution.value[0].tolist()]} after {int(solution.steps)} steps")
    print(f"dx*/dc, implicit:\n{implicit}\nclosed form on the free variables:\n{closed_form}")
    print(f"largest difference {float((implicit - closed_form).abs().max()):.1e}")
    return implicit, closed_form


if __name__ == "__main__":
    main()
