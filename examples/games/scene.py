"""What cars may do: a point mass along a curve, its grip, its track, and the room that two cars leave each other.

With s along a curve of curvature kappa(s) and n to its left, a car of acceleration (s'', n'') has exactly

    speed = s' b,    a_t = s'' b - 2 s' n' kappa - s'^2 n kappa',    a_n = n'' + s'^2 kappa b,    b = 1 - n kappa

so that motion is linear in the controls (s'', n''), and physics is in the constraints.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LIMITS = 6
"""Constraints of one car in one step."""

FIELDS = 6
"""Numbers of a car at an instant: s, s', s'', n, n', n''."""

S, N = 0, 3
"""Where its places are among them."""


@dataclass(frozen=True)
class Scene:
    """Where cars meet, and what they are capable of.

    Attributes:
        lap: Length of the oval, metre; infinite for a straight road.
        room: Most |n| of a car's centre.
        length: Distance that centres keep along the curve, where they are on one line.
        width: Distance that they keep across it.
        crosses: Whether the other car is on a road across, at right angles, where both have s = 0.
        grip: Most acceleration, of both components together.
        power: Most acceleration along the curve.
    """

    lap: float
    room: float
    length: float
    width: float
    crosses: bool
    grip: float = 5.0
    power: float = 2.0

    def curvature(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return kappa and three derivatives: two bends to a lap, 2 pi in all."""
        turn, wave = 2.0 * torch.pi / self.lap, 4.0 * torch.pi / self.lap
        cos, sin = turn * torch.cos(wave * s), turn * torch.sin(wave * s)
        return turn - cos, wave * sin, wave**2 * cos, -(wave**3) * sin

    def limits(self, car: Tensor, top: Tensor) -> Tensor:
        """Return what must not be below 0 of cars [..., 6] whose top speeds are given [...], [..., LIMITS]."""
        s, v, a, n, w, m = car.unbind(-1)
        kappa, slope, *_ = self.curvature(s)
        b = 1.0 - n * kappa
        tangential, normal = a * b - 2.0 * v * w * kappa - v**2 * n * slope, m + v**2 * kappa * b
        force = (tangential**2 + normal**2) / self.grip**2
        limits = (self.room - n, self.room + n, v * b, top - v * b, self.power - tangential, 1.0 - force)
        return torch.stack(limits, -1)

    def slopes(self, car: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the Jacobian [..., LIMITS, 6] of `limits`, and the Hessian [..., 6, 6] of their weighted sum."""
        s, v, a, n, w, m = car.unbind(-1)
        k, k1, k2, k3 = self.curvature(s)
        zero, one, b = torch.zeros_like(s), torch.ones_like(s), 1.0 - n * k
        bend, bend_s, bend_ss = k * b, k1 - 2.0 * n * k * k1, k2 - 2.0 * n * (k1**2 + k * k2)
        tangential, normal = a * b - 2.0 * v * w * k - v**2 * n * k1, m + v**2 * bend
        of_speed = torch.stack((-v * n * k1, b, zero, -v * k, zero, zero), -1)
        of_t = (-a * n * k1 - 2.0 * v * w * k1 - v**2 * n * k2, -2.0 * (w * k + v * n * k1), b)
        of_tangential = torch.stack((*of_t, -a * k - v**2 * k1, -2.0 * v * k, zero), -1)
        of_normal = torch.stack((v**2 * bend_s, 2.0 * v * bend, zero, -((v * k) ** 2), zero, one), -1)
        of_force = (tangential[..., None] * of_tangential + normal[..., None] * of_normal) * (2.0 / self.grip**2)
        of_n = torch.stack((zero, zero, zero, one, zero, zero), -1)
        jacobian = torch.stack((-of_n, of_n, of_speed, -of_speed, -of_tangential, -of_force), -2)
        up, down, power, grip = weights[..., 2], weights[..., 3], weights[..., 4], weights[..., 5] * 2.0 / self.grip**2
        p, q, r = up - down, -power - grip * tangential, -grip * normal  # weights of speed, of both accelerations
        hessian = torch.zeros(*car.shape, FIELDS, dtype=car.dtype)
        upper = {
            (0, 0): -p * v * n * k2 - q * (a * n * k2 + 2.0 * v * w * k2 + v**2 * n * k3) + r * v**2 * bend_ss,
            (0, 1): -p * n * k1 - q * 2.0 * (w * k1 + v * n * k2) + r * 2.0 * v * bend_s,
            (0, 2): -q * n * k1,
            (0, 3): -p * v * k1 - q * (a * k1 + v**2 * k2) - r * 2.0 * v**2 * k * k1,
            (0, 4): -q * 2.0 * v * k1,
            (1, 1): -q * 2.0 * n * k1 + r * 2.0 * bend,
            (1, 3): -p * k - q * 2.0 * v * k1 - r * 2.0 * v * k**2,
            (1, 4): -q * 2.0 * k,
            (2, 3): -q * k,
        }
        for (i, j), value in upper.items():
            hessian[..., i, j] = hessian[..., j, i] = value
        squares = of_tangential[..., :, None] * of_tangential[..., None, :]
        squares = squares + of_normal[..., :, None] * of_normal[..., None, :]
        return jacobian, hessian - grip[..., None, None] * squares

    def apart(self, car: Tensor, other: Tensor) -> Tensor:
        """Return how far two cars [..., 6] are from each other [..., 2]; they collide where it is shorter than 1."""
        along, across = (other[..., N], other[..., S]) if self.crosses else (other[..., S], other[..., N])
        return torch.stack(((car[..., S] - along) / self.length, (car[..., N] - across) / self.width), -1)


SCENES = {
    "race": Scene(lap=60.0, room=0.5, length=1.0, width=0.9, crosses=False),
    "crossing": Scene(lap=torch.inf, room=0.2, length=1.2, width=1.2, crosses=True),
}
