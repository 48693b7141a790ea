"""A deep equilibrium classifier: one layer applied until nothing changes, trained through the fixed point.

z* = tanh(W z* + U x + b), with ||W|| held below 0.9 so that there is one z*, classifies points of two rings, made on
the spot; the backward pass keeps one application.
Run: python examples/implicit_equilibrium.py
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from planners.fixed_points import Adjoint, Anderson, ForwardIteration, Implicit, Solver, Unrolled, fixed_point

LOOSE, TIGHT = Anderson(max_steps=60, tolerance=1e-3), Anderson(max_steps=100, tolerance=1e-10)


def rings(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return points [count, 2] of two noisy rings and the ring of each."""
    generator = torch.Generator().manual_seed(seed)
    angle = 2.0 * math.pi * torch.rand(count, generator=generator, dtype=torch.float64)
    ring = torch.arange(count) % 2
    radius = 0.5 + 0.7 * ring + 0.08 * torch.randn(count, generator=generator, dtype=torch.float64)
    return torch.stack((radius * angle.cos(), radius * angle.sin()), dim=1), ring


class Equilibrium(nn.Module):
    """The layer and what reads its fixed point."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.enter, self.turn, self.read = nn.Linear(2, width), nn.Linear(width, width, bias=False), nn.Linear(width, 2)
        self.double()

    def forward(self, x: Tensor, solver: Solver = LOOSE, adjoint: Adjoint | None = None) -> Tensor:
        """Return logits [B, 2]; an adjoint of order 1 keeps one application and no more."""
        entered, weight = self.enter(x), self.turn.weight
        weight = 0.9 * weight / torch.linalg.matrix_norm(weight, 2).clamp(min=0.9)
        adjoint = Implicit(LOOSE, order=1) if adjoint is None else adjoint
        start = torch.zeros_like(entered)
        found = fixed_point(lambda z: torch.tanh(z @ weight.T + entered), start, solver=solver, adjoint=adjoint)
        return self.read(found.value)


def trained(steps: int = 25) -> Equilibrium:
    """Return a classifier of the rings after so many steps of Adam."""
    torch.manual_seed(0)
    model, (x, ring) = Equilibrium(), rings(100, seed=0)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        cross_entropy(model(x), ring).backward()
        optimiser.step()
    return model


def main() -> tuple[Tensor, Tensor]:
    """Print the accuracy on new points; print and return the gradient of W, implicit and through 250 steps."""
    model, (x, ring) = trained(), rings(400, seed=1)
    accuracy = float((model(x).argmax(dim=1) == ring).double().mean())
    gradients = []
    for solver, adjoint in ((TIGHT, Implicit(TIGHT)), (ForwardIteration(250), Unrolled())):
        loss = cross_entropy(model(x[:50], solver, adjoint), ring[:50])
        gradients.append(torch.autograd.grad(loss, model.turn.weight)[0])
    implicit, unrolled = gradients
    print(f"accuracy on 400 new points {accuracy:.3f}")
    print(f"dloss/dW, implicit and unrolled: largest difference {float((implicit - unrolled).abs().max()):.1e}")
    return implicit / implicit.norm(), unrolled / unrolled.norm()


if __name__ == "__main__":
    main()
