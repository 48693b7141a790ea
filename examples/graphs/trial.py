"""A trial of a network on graphs: trained on the small ones, judged on these and on larger ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from datagen.plugins import PluginError
from datagen.tasks.samples import SampleColumns
from graphs import CLASSES
from graphs.networks import NETWORKS, Graphs, Settled
from orchestrator.trial.system import Setting

_AT_ONCE = 32
"""Graphs that are judged together."""


class GraphSolver:
    """Fits a network to what graphs settle at, or to their families, by Adam."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.classes = CLASSES if setting.train["answer"].ndim == 1 else 0
        self.small = _sized(setting.train, setting.data_options.most, larger=False)
        if not len(self.small["size"]):
            raise PluginError("graphs: no small graph among the training samples: raise data.train or lower share")
        self.mean, self.spread = (0.0, 1.0) if self.classes else _scale(self.small)
        self.network = NETWORKS[setting.options.network](setting.options, self.classes)
        self.optimizer = torch.optim.Adam(self.network.parameters(), setting.training.learning_rate)

    def run_epoch(self, epoch: int) -> Mapping[str, float]:
        """Fit to each batch once, but for its larger graphs."""
        losses, solved = [], True
        for batch in self.setting.batches(epoch):
            small = _sized(batch, self.setting.data_options.most, larger=False)
            if not len(small["size"]):
                continue
            loss, found = self._loss(small)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
            solved &= found.converged
            self.setting.advance()
        judged = self._judged(self.setting.valid)
        return {"loss": float(np.mean(losses)), "forward_diverged": not solved, **judged}

    def test(self) -> Mapping[str, float]:
        """Judge the network."""
        numbers = sum(parameter.numel() for parameter in self.network.parameters())
        return {**self._judged(self.setting.test), "parameters": numbers}

    def state_dict(self) -> dict[str, Any]:
        """Return the network so far, and the optimiser."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])

    @torch.no_grad()
    def answers(self, samples: SampleColumns) -> tuple[Tensor, Tensor]:
        """Return what the network says of each node [n, N] or graph [n, classes], and the steps of each graph [n]."""
        graphs = Graphs.of(samples)
        found: Settled = self.network(graphs)
        return self.mean + self.spread * found.answer, found.steps

    def _loss(self, samples: SampleColumns) -> tuple[Tensor, Settled]:
        graphs = Graphs.of(samples)
        found: Settled = self.network(graphs)
        if self.classes:
            return functional.cross_entropy(found.answer, torch.as_tensor(samples["answer"]).long()), found
        answer = torch.as_tensor(samples["answer"][:, : graphs.present.shape[1]])
        wrong = found.answer - (answer - self.mean) / self.spread
        return wrong[graphs.present].square().mean(), found

    def _judged(self, samples: SampleColumns) -> dict[str, float]:
        most, said = self.setting.data_options.most, {}
        for name, larger in (("", False), ("_larger", True)):
            chosen = _sized(samples, most, larger=larger)
            if not len(chosen["size"]):
                continue
            parts = [(part, *self.answers(part)) for part in _parts(chosen)]
            if self.classes:
                right = [np.asarray(answer.argmax(1)) == part["answer"] for part, answer, _ in parts]
                said[f"accuracy{name}"] = float(np.concatenate(right).mean())
            else:
                pairs = [(_real(part), answer[Graphs.of(part).present].numpy()) for part, answer, _ in parts]
                true, told = (np.concatenate(values) for values in zip(*pairs, strict=True))
                said[f"error{name}"] = float(np.abs(told - true).mean() / np.abs(true - true.mean()).mean())
            said["steps"] = float(torch.cat([steps for *_, steps in parts]).float().mean())
            self.setting.advance()
        if self.setting.options.network == "message_passing":
            said.pop("steps", None)
        return said


def _sized(samples: SampleColumns, most: int, *, larger: bool) -> SampleColumns:
    chosen = (samples["size"][:, 0] > most) == larger
    return {name: values[chosen] for name, values in samples.items()}


def _parts(samples: SampleColumns) -> Iterator[SampleColumns]:
    for start in range(0, len(samples["size"]), _AT_ONCE):
        yield {name: values[start : start + _AT_ONCE] for name, values in samples.items()}


def _real(samples: SampleColumns) -> np.ndarray:
    """Return the answers of all nodes that are no padding."""
    answers = samples["answer"]
    found: np.ndarray = answers[np.arange(answers.shape[1]) < samples["size"][:, :1]]
    return found


def _scale(samples: SampleColumns) -> tuple[float, float]:
    real = _real(samples)
    return float(real.mean()), float(real.std())
