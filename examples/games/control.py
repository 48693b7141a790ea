"""Cars that look a few steps ahead, what they take the other to do, and races of two of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from games.equilibrium import Game, Value
from games.scene import Scene
from games.starts import at_rest, played

_TOUCH, _OFF = 0.9, 0.05
"""Plans keep cars 1 apart at their instants: nearer is a collision. And metres by which a car is off its track."""


@dataclass
class Controller:
    """Model predictive control of one car: the best answer to an other that keeps its speed.

    Attributes:
        scene: Where.
        seconds: Of a step.
        horizon: Steps of a plan.
        value: Of its end; None for how far the car has come.
        plans: That were made.
        unsolved: Of these.
        spent: Processor seconds.
    """

    scene: Scene
    seconds: float
    horizon: int
    value: Value | None = None
    plans: int = field(default=0, init=False)
    unsolved: int = field(default=0, init=False)
    spent: float = field(default=0.0, init=False)

    def act(self, own: Tensor, other: Tensor, top: Tensor, top_other: Tensor) -> Tensor:
        """Return what to do now [B, 2] in places and speeds [B, 2, 2]."""
        begun = time.process_time()
        ahead = self.seconds * torch.arange(1, self.horizon + 1, dtype=own.dtype)[:, None]
        place, speed = (part[:, None] for part in other.unbind(-1))
        place = place + ahead * speed
        place = torch.stack((place[..., 0], place[..., 1].clamp(-self.scene.room, self.scene.room)), -1)
        taken = at_rest(torch.stack((place, speed.expand_as(place)), -1))
        game = Game(
            self.scene,
            own[:, None],
            top[:, None],
            self.horizon,
            self.seconds,
            other=taken,
            value=self.value,
            top_other=top_other,
        )
        found = played(game)
        self.plans, self.unsolved = self.plans + len(own), self.unsolved + int((~found.converged).sum())
        self.spent += time.process_time() - begun
        return torch.where(found.converged[:, None], found.controls[:, :2], self._braked(own))

    def _braked(self, own: Tensor) -> Tensor:
        """Return what a car does that has no plan [B, 2]: it brakes on its line."""
        hardest = 0.6 * self.scene.grip
        return (-own[..., 1] / self.seconds).clamp(-hardest, hardest)


@dataclass(frozen=True)
class Met:
    """How cars met; [B] each.

    Attributes:
        lead: Of the first car at the end, metre.
        together: How far both have come.
        collided: Whether they have; what follows then is not told.
        off: Whether a car has left its track.
        places: Of cars after each step [steps + 1, B, 2, 2, 2].
    """

    lead: Tensor
    together: Tensor
    collided: Tensor
    off: Tensor
    places: Tensor


@torch.no_grad()
def met(
    first: Controller, second: Controller, start: Tensor, top: Tensor, steps: int, advance: Callable[[], None]
) -> Met:
    """Return how two controllers meet.

    Args:
        first: Of the first car.
        second: Of the second one.
        start: Places and speeds [B, 2, 2, 2].
        top: Top speeds [B, 2].
        steps: That they meet for.
        advance: Is told of progress.
    """
    scene, h, state = first.scene, first.seconds, start
    collided = off = torch.zeros(len(start), dtype=torch.bool)
    places = [state]
    for _ in range(steps):
        advance()
        one, other = state.unbind(1)
        act = torch.stack(
            (first.act(one, other, top[:, 0], top[:, 1]), second.act(other, one, top[:, 1], top[:, 0])), 1
        )
        place, speed = state.unbind(-1)
        state = torch.stack((place + h * speed + 0.5 * h * h * act, speed + h * act), -1)
        state = torch.where(collided[:, None, None, None], places[-1], state)
        collided = collided | (scene.apart(*at_rest(state).unbind(1)).norm(dim=-1) < _TOUCH)
        off = off | (state[..., 1, 0].abs() > scene.room + _OFF).any(1)
        places.append(state)
    come = state[..., 0, 0] - start[..., 0, 0]
    return Met(state[:, 0, 0, 0] - state[:, 1, 0, 0], come.sum(1), collided, off, torch.stack(places))
