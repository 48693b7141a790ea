"""Friction and size of a box, learnt from tosses through the simulator's step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from contact.dynamics import Stepped, step
from contact.scenes import Box
from orchestrator.trial.system import Setting

_STEP = 1e-4
"""Of central differences, of a parameter's logarithm."""


class Identification:
    """Fits the logarithms of width, height and friction to velocities one step ahead, by Adam."""

    def __init__(self, setting: Setting) -> None:
        self.setting, options = setting, setting.options
        begun = torch.tensor([options.width, options.height, options.friction], dtype=torch.float64)
        self.logarithms = begun.log().requires_grad_()
        self.optimizer = torch.optim.Adam([self.logarithms], setting.training.learning_rate)

    def run_epoch(self, epoch: int) -> Mapping[str, float]:
        """Fit to each batch of tosses once."""
        losses, solved = [], True
        for batch in self.setting.batches(epoch):
            self.optimizer.zero_grad()
            loss, all_solved = self._loss(self.logarithms, batch)
            if self.setting.options.gradient == "implicit":
                loss.backward()
            else:
                self.logarithms.grad = self._differences(batch)
            losses.append(float(loss.detach()))
            solved &= all_solved
            self.optimizer.step()
            self.setting.advance()
        return {
            "loss": sum(losses) / len(losses),
            "forward_diverged": not solved,
            **self._judged(self.setting.valid),
        }

    def test(self) -> Mapping[str, float]:
        """Judge the box that was found."""
        return self._judged(self.setting.test)

    def state_dict(self) -> dict[str, Any]:
        """Return the box so far, and the optimiser."""
        return {"logarithms": self.logarithms.detach(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self.logarithms.data = state["logarithms"]
        self.optimizer.load_state_dict(state["optimizer"])

    def _ahead(self, logarithms: Tensor, samples: Mapping[str, Any]) -> tuple[Stepped, Tensor, Tensor]:
        """Return what the simulator makes of each place but the last of each toss, and what was seen next."""
        place, velocity = (torch.as_tensor(samples[name]) for name in ("place", "velocity"))
        box = Box(logarithms[:2].exp(), logarithms[2].exp())
        seconds, kappa = self.setting.data_options.seconds, self.setting.options.central_path
        q, v = _above_ground(box, place[:, :-1].reshape(-1, 3)), velocity[:, :-1].reshape(-1, 3)
        found = step(box, q, v, seconds=seconds, central_path=kappa)
        return found, place[:, 1:].reshape(-1, 3), velocity[:, 1:].reshape(-1, 3)

    def _loss(self, logarithms: Tensor, samples: Mapping[str, Any]) -> tuple[Tensor, bool]:
        found, _, velocity = self._ahead(logarithms, samples)
        return (found.v - velocity).square().mean(), bool(found.converged.all())

    @torch.no_grad()
    def _differences(self, samples: Mapping[str, Any]) -> Tensor:
        slopes = []
        for number in range(len(self.logarithms)):
            shift = torch.zeros_like(self.logarithms)
            shift[number] = _STEP
            above, below = (self._loss(self.logarithms + sign * shift, samples)[0] for sign in (1.0, -1.0))
            slopes.append((above - below) / (2.0 * _STEP))
        return torch.stack(slopes)

    @torch.no_grad()
    def _judged(self, samples: Mapping[str, Any]) -> dict[str, float]:
        found, place, _ = self._ahead(self.logarithms, samples)
        told, options = self.logarithms.exp(), self.setting.data_options
        true = torch.tensor([options.width, options.height, options.friction], dtype=torch.float64)
        wrong = (told / true - 1.0).abs()
        error = (found.q - place)[:, :2].norm(dim=1).mean()
        return {"prediction": float(error), "friction": float(wrong[2]), "size": float(wrong[:2].mean())}


def _above_ground(box: Box, q: Tensor) -> Tensor:
    """Return places lifted so far that no corner of the believed box is below the ground, which no step begins with."""
    _, up = box.corners(q)
    lift = (-(q[:, 1:2] + up).amin(1)).clamp(min=0.0)
    return torch.cat((q[:, :1], (q[:, 1] + lift)[:, None], q[:, 2:]), 1)
