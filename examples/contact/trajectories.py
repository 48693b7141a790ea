"""Trajectories through contact: forces under which a box is pushed to a place, or a hopper hops to one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from contact.dynamics import Scene, Stepped, relaxed_step
from contact.scenes import GRAVITY, Box, Hopper, Push, numbers
from orchestrator.trial.system import Setting

if TYPE_CHECKING:
    from contact import MotionOptions

_CONTROLS = {"push": numbers([0.0, 0.0, 0.0, 1.0]), "hop": numbers([1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 0.0, -1.0])}
"""What each force acts on: the pusher; the body, and against it the foot."""
_ABOVE, _STANDING, _NEAR = 1e-4, 0.5, 0.02


def scene(options: MotionOptions) -> Scene:
    """Return what moves."""
    friction = numbers(options.friction).squeeze()
    return Push(Box(numbers(0.3, 0.2), friction), 0.2) if options.scene == "push" else Hopper(friction)


def motion(options: MotionOptions, generator: np.random.Generator) -> dict[str, Any]:
    """Return where a motion begins, at rest, and how far it is to lead."""
    if options.scene == "push":
        return {
            "start": [0.0, 0.2 + _ABOVE, 0.0, -0.3 - generator.uniform(0.1, 0.3)],
            "target": generator.uniform(0.3, 0.8),
        }
    return {"start": [0.0, _STANDING, 0.0, _ABOVE], "target": generator.uniform(0.2, 0.5)}


class Trajectories:
    """Finds the forces of each test problem by Adam, an epoch an iteration; nothing is learnt from other problems."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.options, self.problem = setting, setting.options, setting.data_options
        self.scene, self.controls = scene(self.problem), _CONTROLS[self.problem.scene]
        self.start, self.target = (torch.as_tensor(setting.test[name]) for name in ("start", "target"))
        idle = numbers(0.0) if self.problem.scene == "push" else numbers(0.0, GRAVITY)
        self.forces = idle.repeat(len(self.start), self.problem.steps, 1).requires_grad_()
        self.optimizer = torch.optim.Adam([self.forces], setting.training.learning_rate)

    def run_epoch(self, epoch: int) -> Mapping[str, float]:
        """Roll out by the hard simulator, and follow the gradient of the softer one."""
        reached, solved = self._rolled_out()
        left = self._left(reached)
        effort = (self.forces.diff(dim=1)).square().mean((1, 2))
        loss = left.square().sum(1) + self.options.effort * effort
        self.optimizer.zero_grad()
        loss.sum().backward()
        slope = self.forces.grad.flatten(1).norm(dim=1).mean()
        self.optimizer.step()
        return {
            "loss": float(loss.mean()),
            "slope": float(slope),
            "forward_diverged": not solved,
            **self._judged(left),
        }

    @torch.no_grad()
    def test(self) -> Mapping[str, float]:
        """Judge the forces that were found, by the hard simulator."""
        return self._judged(self._left(self._rolled_out()[0]))

    def state_dict(self) -> dict[str, Any]:
        """Return the forces so far, and the optimiser."""
        return {"forces": self.forces.detach(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self.forces.data = state["forces"]
        self.optimizer.load_state_dict(state["optimizer"])

    def steps(self) -> list[Stepped]:
        """Return all steps under the forces so far."""
        q, v, made = self.start, torch.zeros_like(self.start), []
        for force in self.forces.unbind(1):
            made.append(
                relaxed_step(
                    self.scene,
                    q,
                    v,
                    seconds=self.problem.seconds,
                    central_path=self.options.central_path,
                    force=force @ self.controls,
                )
            )
            q, v = made[-1].q, made[-1].v
            self.setting.advance()
        return made

    def _rolled_out(self) -> tuple[Stepped, bool]:
        made = self.steps()
        return made[-1], all(bool(one.converged.all()) for one in made)

    def _left(self, reached: Stepped) -> Tensor:
        """Return what is left: of the box's way; of the body's and the foot's, and of standing [B, 1 or 4]."""
        q, target = reached.q, self.target[:, None]
        if self.problem.scene == "push":
            return q[:, :1] - target
        return torch.cat((q[:, :1] - target, q[:, 2:3] - target, q[:, 1:2] - _STANDING, 0.1 * reached.v[:, 1:2]), 1)

    def _judged(self, left: Tensor) -> dict[str, float]:
        distance = left.detach()[:, : 1 if self.problem.scene == "push" else 2].abs().amax(1)
        return {"distance": float(distance.mean()), "solved": float((distance <= _NEAR).double().mean())}
