"""What moves: a box on the ground, a puck between walls, a box that is pushed, a hopper."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from contact.dynamics import Contacts

GRAVITY = 9.81


def numbers(*values: object) -> Tensor:
    """Return float64."""
    return torch.tensor(values, dtype=torch.float64)


CORNERS = numbers([1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0])
WALLS = numbers([0.0, 1.0], [-1.0, 0.0], [0.0, -1.0], [1.0, 0.0])
"""Normals of a room's: they point inwards."""


def _rows(*entries: Tensor | float) -> Tensor:
    """Return the entries, broadcast, side by side."""
    like = next(entry for entry in entries if isinstance(entry, Tensor))
    tensors = [entry if isinstance(entry, Tensor) else like.new_tensor(entry) for entry in entries]
    return torch.stack(torch.broadcast_tensors(*tensors), -1)


@dataclass(frozen=True, eq=False)
class Box:
    """A box of density 1 per square metre over the ground; q is right, up and angle.

    Attributes:
        half: Half its width and height, metre [2].
        friction: Coulomb's coefficient with the ground [].
    """

    half: Tensor
    friction: Tensor

    @property
    def inertia(self) -> Tensor:
        """Mass, mass, moment."""
        mass = 4.0 * self.half.prod()
        return torch.stack((mass, mass, mass * self.half.square().sum() / 3.0))

    @cached_property
    def gravity(self) -> Tensor:
        """Down."""
        return numbers(0.0, -GRAVITY, 0.0)

    def corners(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return each corner's place from the centre in the world, [..., 4], right and up."""
        right, up = (CORNERS * self.half).unbind(-1)
        cosine, sine = torch.cos(q[..., 2:3]), torch.sin(q[..., 2:3])
        return cosine * right - sine * up, sine * right + cosine * up

    def contacts(self, q: Tensor) -> Contacts:
        """Corners and the ground."""
        right, up = self.corners(q)
        return Contacts(q[..., 1:2] + up, _rows(0.0, 1.0, right), _rows(1.0, 0.0, -up))


@dataclass(frozen=True, eq=False)
class Puck:
    """A disc of mass 1 on a table without friction, in a square room with walls that have it; q is x, y and angle.

    Attributes:
        radius: Of the disc.
        room: Half the room's width.
        friction: Coulomb's coefficient with the walls [].
    """

    radius: Tensor
    room: float
    friction: Tensor

    @property
    def inertia(self) -> Tensor:
        """Mass, mass, moment."""
        one = torch.ones_like(self.radius)
        return torch.stack((one, one, 0.5 * self.radius.square()))

    @cached_property
    def gravity(self) -> Tensor:
        """None."""
        return numbers(0.0, 0.0, 0.0)

    def contacts(self, q: Tensor) -> Contacts:
        """The rim and each wall."""
        gap = q[..., :2] @ WALLS.mT + self.room - self.radius
        still = torch.zeros_like(gap)
        across, along = WALLS.unbind(-1)
        normal = _rows(across + still, along, 0.0)
        return Contacts(gap, normal, _rows(along + still, -across, self.radius))


@dataclass(frozen=True, eq=False)
class Push:
    """A box, and a pusher of mass 1 on a rail to its left; q is the box's right, up and angle, and the pusher's right.

    Attributes:
        box: What is pushed.
        rail: How high the pusher is.
    """

    box: Box
    rail: float

    @property
    def inertia(self) -> Tensor:
        """The box's, and the pusher's."""
        return torch.cat((self.box.inertia, numbers(1.0)))

    @cached_property
    def gravity(self) -> Tensor:
        """Down; the rail carries the pusher."""
        return numbers(0.0, -GRAVITY, 0.0, 0.0)

    @property
    def friction(self) -> Tensor:
        """Of all contacts; the pusher's has no tangent, and rubs not."""
        return self.box.friction

    def contacts(self, q: Tensor) -> Contacts:
        """Corners and the ground, then the pusher and the box's left face."""
        ground = self.box.contacts(q)
        cosine, sine = torch.cos(q[..., 2:3]), torch.sin(q[..., 2:3])
        right, up = q[..., 3:] - q[..., :1], self.rail - q[..., 1:2]
        gap = -cosine * right - sine * up - self.box.half[0]
        normal = _rows(cosine, sine, sine * right - cosine * up, -cosine)
        still = torch.zeros_like(right)
        return Contacts(
            torch.cat((ground.gap, gap), -1),
            torch.cat((_rows(*ground.normal.unbind(-1), 0.0), normal), -2),
            torch.cat((_rows(*ground.tangent.unbind(-1), 0.0), _rows(still, 0.0, 0.0, 0.0)), -2),
        )


@dataclass(frozen=True, eq=False)
class Hopper:
    """A body of mass 1 and a foot of a tenth that a leg pushes apart; q is the body's right and up, then the foot's.

    Attributes:
        friction: Coulomb's coefficient of the ground [].
        longest: Of the leg; the body is above the ground by a foot's breadth at least.
    """

    friction: Tensor
    longest: float = 0.8

    @cached_property
    def inertia(self) -> Tensor:
        """Body, body, foot, foot."""
        return numbers(1.0, 1.0, 0.1, 0.1)

    @cached_property
    def gravity(self) -> Tensor:
        """Down."""
        return numbers(0.0, -GRAVITY, 0.0, -GRAVITY)

    def contacts(self, q: Tensor) -> Contacts:
        """Foot and ground, body and ground, and the leg at its longest."""
        leg = q[..., :2] - q[..., 2:]
        length = leg.square().sum(-1, keepdim=True).sqrt()
        right, up = (leg / length).unbind(-1)
        still = torch.zeros_like(right)
        foot, body = _rows(still, 0.0, 0.0, 1.0), _rows(still, 1.0, 0.0, 0.0)
        gap = torch.cat((q[..., 3:], q[..., 1:2] - 0.1, self.longest - length), -1)
        normal = torch.stack((foot, body, _rows(-right, -up, right, up)), -2)
        nothing = _rows(still, 0.0, 0.0, 0.0)
        tangent = torch.stack((_rows(still, 0.0, 1.0, 0.0), _rows(still + 1.0, 0.0, 0.0, 0.0), nothing), -2)
        return Contacts(gap, normal, tangent)
