"""A network of convolutions that proposes u and basis functions, trained on solutions through the layer or without."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from experts.layer import diffusion, satisfied, within
from orchestrator.trial.system import Setting

_CONVOLUTIONS = {1: (nn.Conv1d, 5, (1, 2, 4, 8, 16)), 2: (nn.Conv2d, 3, (1, 2, 4, 8))}
"""By dimension: what convolves, taps along a side, and dilations by layer."""


class Network(nn.Module):
    """From conductivity and source to u and basis functions, at each node.

    Args:
        channels: Of each layer within.
        bases: Basis functions.
        dimensions: Of the domain.
    """

    def __init__(self, channels: int, bases: int, dimensions: int) -> None:
        super().__init__()
        convolution, size, dilations = _CONVOLUTIONS[dimensions]
        layers: list[nn.Module] = []
        for dilation in dilations:
            within, padding = channels if layers else 2 + dimensions, size // 2 * dilation
            layers += [convolution(within, channels, size, padding=padding, dilation=dilation), nn.GELU()]
        self.layers = nn.Sequential(*layers, convolution(channels, 1 + bases, 1)).double()

    def forward(self, conductivity: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """Return u [B, n...], 0 on the boundary, and basis functions [B, bases, n...]."""
        side = torch.linspace(0.0, 1.0, source.shape[1], dtype=source.dtype)
        places = torch.meshgrid(*[side] * (source.ndim - 1), indexing="ij")
        logarithm = functional.pad(conductivity.log()[:, None], (0, 1) * len(places), mode="replicate")[:, 0]
        found = self.layers(torch.stack((logarithm, source / 30.0, *(p.expand_as(source) for p in places)), 1))
        bubble = torch.stack([4.0 * place * (1.0 - place) for place in places]).prod(0)
        return bubble * found[:, 0], found[:, 1:]


class Training:
    """Trains the network by Adam on squared errors of u, with the PDE as layer or as penalty."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.options = setting, setting.options
        cells, experts = setting.data_options.cells, self.options.experts
        self.dimensions = setting.data_options.dimensions
        if cells % experts or (cells // experts - 1) ** self.dimensions < self.options.bases:
            raise ValueError(
                f"experts, bases: {experts} experts share {cells} cells, of which each needs a whole number, "
                f"and nodes inside for its {self.options.bases} basis functions"
            )
        self.network = Network(self.options.channels, (1 + self.options.coarse) * self.options.bases, self.dimensions)
        self.optimizer = torch.optim.Adam(self.network.parameters(), setting.training.learning_rate)
        self.measured: dict[str, float] = {}
        self.scale = float(torch.as_tensor(setting.train["solution"]).square().mean())

    def run_epoch(self, epoch: int) -> Mapping[str, float]:
        """Fit to each batch once."""
        losses, spent, kept, count, all_solved = [], 0.0, 0, 0, True
        for batch in self.setting.batches(epoch):
            problems = tensors(batch)
            guess, bases = self.network(problems["conductivity"], problems["source"])
            cut = [part.detach().requires_grad_() for part in (guess, bases)]
            begun, watch = time.process_time(), Kept()
            with watch:
                u, solved = self._solved(*cut, problems)
                loss = self._loss(u, problems)
            gradients = torch.autograd.grad(loss, cut, allow_unused=True)
            spent += time.process_time() - begun
            self.optimizer.zero_grad()
            used = [(part, slope) for part, slope in zip((guess, bases), gradients, strict=True) if slope is not None]
            torch.autograd.backward(*zip(*used, strict=True))
            self.optimizer.step()
            losses.append(float(loss.detach()))
            kept, count, all_solved = watch.bytes, count + len(u), all_solved and solved
            self.setting.advance()
        self.measured = {"processor": spent / count, "kept": kept / len(u)}
        judged = self._judged(self.setting.valid)
        return {"loss": sum(losses) / len(losses), "forward_diverged": not all_solved, **judged}

    def test(self) -> Mapping[str, float]:
        """Judge the network, with what the layer took in the last epoch."""
        return {**self._judged(self.setting.test), **self.measured}

    def state_dict(self) -> dict[str, Any]:
        """Return network and optimiser, and what the last epoch took."""
        network, optimizer = self.network.state_dict(), self.optimizer.state_dict()
        return {"network": dict(network), "optimizer": optimizer, "measured": self.measured}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.measured = state["measured"]

    def _solved(self, guess: Tensor, bases: Tensor, problems: Mapping[str, Tensor]) -> tuple[Tensor, bool]:
        if self.options.constraint == "soft":
            return guess, True
        reaction = self.setting.data_options.reaction
        given = (problems["conductivity"], problems["source"])
        count, whole_solved = self.options.bases, True
        if self.options.coarse:
            guess, whole_solved = satisfied(guess, bases[:, count:], *given, experts=1, reaction=reaction)
        away = self.options.workers == "ray"
        u, solved = satisfied(
            guess, bases[:, :count], *given, experts=self.options.experts, reaction=reaction, away=away
        )
        return u, solved and whole_solved

    def _loss(self, u: Tensor, problems: Mapping[str, Tensor]) -> Tensor:
        loss = (u - problems["solution"]).square().mean() / self.scale
        if self.options.constraint == "soft":
            loss = loss + self.options.penalty * self.residual(u, problems).square().mean()
        return loss

    def residual(self, u: Tensor, problems: Mapping[str, Tensor]) -> Tensor:
        """Return the PDE's residual at inner nodes over the source's root mean square, [B, nodes]."""
        source, options = problems["source"], self.setting.data_options
        diffused = diffusion(u, problems["conductivity"], options.cells, self.dimensions)
        left = diffused + options.reaction * within(u, self.dimensions) ** 3 - within(source, self.dimensions)
        return left.flatten(1) / source.flatten(1).square().mean(1, keepdim=True).sqrt()

    @torch.no_grad()
    def solved(self, problems: Mapping[str, Tensor]) -> Tensor:
        """Return u at the nodes [B, cells + 1...]."""
        return self._solved(*self.network(problems["conductivity"], problems["source"]), problems)[0]

    def _judged(self, samples: Mapping[str, Any]) -> dict[str, float]:
        problems = tensors(samples)
        u = self.solved(problems)
        error = (u - problems["solution"]).flatten(1).norm(dim=1) / problems["solution"].flatten(1).norm(dim=1)
        residual = self.residual(u, problems).square().mean(1).sqrt()
        return {"error": float(error.mean()), "residual": float(residual.mean())}


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that are kept for the backward pass while it is entered, each tensor's memory once.

    What a solve within keeps for its own derivatives, and lets go, is counted too: a bound from above.
    """

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}
        super().__init__(self._keep, lambda tensor: tensor)

    def _keep(self, tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        self.seen[memory.data_ptr()] = memory.nbytes()
        return tensor

    @property
    def bytes(self) -> int:
        """All of them."""
        return sum(self.seen.values())


def tensors(samples: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return samples as tensors."""
    return {name: torch.as_tensor(values) for name, values in samples.items()}
