"""The outcome of games, learnt from equilibria, as the value of a plan's end; and races against plans without it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from games.control import Controller, Met, met
from games.scene import SCENES, Scene
from orchestrator.tables.statistics import wilson
from orchestrator.trial.system import Setting

_FEATURES = 12


class Outcome(nn.Module):
    """How far a car comes in the game, from place, speed and top speed of both [..., 5].

    Args:
        scene: Where.
        time: That the game takes.
        width: Of two hidden layers.
        alone: Whether it does not look at the other.
    """

    def __init__(self, scene: Scene, time: float, width: int, alone: bool) -> None:
        super().__init__()
        self.scene, self.time, self.alone = scene, time, alone
        layers = nn.Linear(_FEATURES, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
        self.layers = nn.Sequential(*layers).double()

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """Return the metres [...]."""
        phase, usual = 4.0 * torch.pi / self.scene.lap * own[..., :1], own.new_tensor([3.0, 0.0, 0.0, 4.0])
        where = (torch.cos(phase), torch.sin(phase), own[..., :1] * (0.2 if self.scene.crosses else 0.0))
        of_other = torch.cat((0.5 * (own[..., :1] - other[..., :1]), other[..., 1:] - usual), -1)
        features = torch.cat((*where, own[..., 1:] - usual, of_other * (0.0 if self.alone else 1.0)), -1)
        return self.time * own[..., 4] + self.layers(features)[..., 0]


class Controllers:
    """Trains the network on equilibria by Adam, and tests the controller that has it against one that does not."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.options, data = setting, setting.options, setting.data_options
        self.scene, alone = SCENES[data.scene], self.options.value == "alone"
        self.network = Outcome(self.scene, data.steps * data.seconds, self.options.width, alone)
        self.optimizer = torch.optim.Adam(self.network.parameters(), setting.training.learning_rate)
        self.targets = ("alone", "alone_slope") if alone else ("progress", "slope")

    def run_epoch(self, epoch: int) -> Mapping[str, float]:
        """Fit to each batch of games once, from either car's side."""
        losses = []
        for batch in self.setting.batches(epoch):
            value, slope = self._errors(batch)
            loss = value.square().mean() + self.options.slopes * slope.square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(float(loss.detach()))
            self.setting.advance()
        return {"loss": sum(losses) / len(losses), "error": self._error(self.setting.valid)}

    def test(self) -> Mapping[str, float]:
        """Meet the other from the starts of the test's games, as the one car and as the other."""
        start, top = (torch.as_tensor(self.setting.test[name]).flatten(0, 1) for name in ("start", "top"))
        start, top = torch.cat((start, start.flip(1))), torch.cat((top, top.flip(1)))
        own, other = self.controller(), Controller(self.scene, self.setting.data_options.seconds, self.options.against)
        found = met(own, other, start, top, self.options.run, self.setting.advance)
        error = {} if self.options.value == "none" else {"error": self._error(self.setting.test)}
        gain = float(self.setting.test["gain"].max())
        return {
            **error,
            **judged(found),
            "unsolved": own.unsolved / own.plans,
            "plan": own.spent / own.plans,
            "gain": gain,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return network and optimiser."""
        return {"network": dict(self.network.state_dict()), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])

    def controller(self) -> Controller:
        """Return the controller as it has learnt so far."""
        value = None if self.options.value == "none" else self._value
        return Controller(self.scene, self.setting.data_options.seconds, self.options.horizon, value)

    def _value(self, own: Tensor, other: Tensor) -> Tensor:
        """Return how far a car will have come, less how far the other in a race, more than that where roads cross."""
        if self.options.value == "alone":
            return own[..., 0] + self.network(own, other)
        sign = 1.0 if self.scene.crosses else -1.0
        return own[..., 0] + self.network(own, other) + sign * self.network(other, own)

    def _errors(self, samples: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return errors of outcomes [n, 2], and of their derivatives [n, 2, GIVEN]."""
        start, top, progress, slope = (
            torch.as_tensor(samples[name]).flatten(0, 1) for name in ("start", "top", *self.targets)
        )
        cars = torch.cat((start.flatten(2), top[..., None]), 2).requires_grad_()
        with torch.enable_grad():
            found = self.network(cars, cars.flip(1))
            rows = [torch.autograd.grad(found[:, car].sum(), cars, create_graph=True)[0] for car in range(2)]
        return found - progress, torch.stack(rows, 1).flatten(2) - slope

    def _error(self, samples: Mapping[str, Any]) -> float:
        return float(self._errors(samples)[0].square().mean().sqrt().detach())


def judged(found: Met) -> dict[str, float]:
    """Return the shares of meetings that the first car has won, lost, and that ended in a collision."""
    whole = ~found.collided
    wins = float((whole & (found.lead > 0.0)).double().mean())
    low, high = wilson(wins, len(whole))
    return {
        "wins": wins,
        "low": low,
        "high": high,
        "losses": float((whole & (found.lead < 0.0)).double().mean()),
        "collisions": float(found.collided.double().mean()),
        "lead": float(found.lead[whole].mean()),
        "together": float(found.together[whole].mean()),
        "off_track": float(found.off.double().mean()),
    }
