"""Trajectories through contact: forces under which a box is pushed to a place, or a hopper strides to one."""

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

_CONTROLS = {"push": numbers([0.0, 0.0, 0.0, 1.0]), "stride": numbers([1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 0.0, -1.0])}
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
    """Finds the forces of each test problem, an epoch an iteration; nothing is learnt from other problems.

    An iteration is one of Levenberg and Marquardt on what is left, r: F - J^T (J J^T + damping)^-1 r, no force changed
    by more than the trust. Where J is 0 it changes nothing.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting, self.options, self.problem = setting, setting.options, setting.data_options
        self.scene, self.controls = scene(self.problem), _CONTROLS[self.problem.scene]
        self.start, self.target = (torch.as_tensor(setting.test[name]) for name in ("start", "target"))
        idle = numbers(0.0) if self.problem.scene == "push" else numbers(0.0, GRAVITY)
        self.forces = idle.repeat(len(self.start), self.problem.steps, 1)

    def run_epoch(self, epoch: int) -> Mapping[str, float]:
        """Roll out by the hard simulator, and follow the derivatives of the softer one."""
        self.forces.requires_grad_()
        made = self.steps()
        left = self._left(made[-1])
        slopes = [torch.autograd.grad(part.sum(), self.forces, retain_graph=True)[0] for part in left.unbind(1)]
        J, r = torch.stack(slopes, 1).flatten(2), left.detach()
        damped = J @ J.mT + self.options.damping * torch.eye(r.shape[1], dtype=r.dtype)
        change = -(J.mT @ torch.linalg.solve(damped, r[..., None])).view_as(self.forces)
        most = change.abs().amax((1, 2), keepdim=True)
        self.forces = self.forces.detach() + change * (self.options.trust / most.clamp(min=self.options.trust))
        return {
            "slope": float(J.flatten(1).norm(dim=1).mean()),
            "forward_diverged": not all(bool(one.converged.all()) for one in made),
            **self._judged(r),
        }

    @torch.no_grad()
    def test(self) -> Mapping[str, float]:
        """Judge the forces that were found, by the hard simulator."""
        return self._judged(self._left(self.steps()[-1]))

    def state_dict(self) -> dict[str, Any]:
        """Return the forces so far."""
        return {"forces": self.forces}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self.forces = state["forces"]

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

    def _left(self, reached: Stepped) -> Tensor:
        """Return what is left: of the box's way; of the body's and the foot's, and of standing [B, 1 or 3]."""
        q, target = reached.q, self.target[:, None]
        if self.problem.scene == "push":
            return q[:, :1] - target
        return torch.cat((q[:, :1] - target, q[:, 2:3] - target, q[:, 1:2] - _STANDING), 1)

    def _judged(self, left: Tensor) -> dict[str, float]:
        distance = left[:, :2].abs().amax(1)
        return {"distance": float(distance.mean()), "solved": float((distance <= _NEAR).double().mean())}
