"""A trial that seeks the personas with which a crowd behaves as the expert's.

Behaviour is a function of the person and the environment (Lewin); the environment is given, so that persons are sought
whose behaviours' distribution is the benchmark's. Each epoch a proposer rewrites the best crowds so far, all are
simulated where the benchmark was, with the same starts and the same chance, and the nearest are kept.
Wang et al., Implicit behavioral alignment of language agents in high-stakes crowd simulations, 2025. DEVIATION: members
plan by search and not by a language model, personas are four words, and a rewriter without a model is the default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crowds import CONDUCTS
from crowds.evacuation import THAW, Behaviour, Traits, evacuate
from crowds.expert import divergence, people, shares
from crowds.personas import LEVELS, PROPOSERS, UNSTEERED, VALUES, Crowd, traits
from datagen.plugins import PluginError
from datagen.tasks.samples import SampleColumns
from orchestrator.trial.system import Setting

_TEST = 10**6
"""Of the generator whose chance the test is judged by: no epoch's number."""


class PersonaSearch:
    """Seeks personas, or takes those that its steering says."""

    def __init__(self, setting: Setting) -> None:
        self.setting, options = setting, setting.options
        self.home = _where(setting.train, 0)
        if not len(self.home["start"]):
            raise PluginError("crowds: no training sample is of building 0: raise data.train or lower elsewhere")
        crowd = np.tile(UNSTEERED, (options.personas, 1))
        if options.steering == "instructed":
            crowd = instructed(self.home, options.personas)
        self.kept: list[Crowd] = [crowd]

    def run_epoch(self, epoch: int) -> Mapping[str, float]:
        """Propose crowds, and keep the nearest of them and of the kept."""
        options, generator = self.setting.options, np.random.default_rng([self.setting.seed, epoch])
        if options.steering != "evolved":
            return {"sought": self._judged([self.kept[0]], self.home, epoch)[0][0]}
        reports = [self._report(crowd, epoch) for crowd in self.kept] if options.proposer == "endpoint" else []
        proposed = PROPOSERS[options.proposer](self.kept, reports, options.candidates, generator)
        crowds = [*self.kept, *proposed]
        judged = [leaving + conduct for leaving, conduct in self._judged(crowds, self.home, epoch)]
        order = np.argsort(judged, kind="stable")
        self.kept = [crowds[number] for number in order[: options.kept]]
        found = {"sought": 0.5 * judged[order[0]]}
        valid = _where(self.setting.valid, 0)
        if len(valid["start"]):
            found["divergence"] = 0.5 * sum(self._judged(self.kept[:1], valid, epoch)[0])
        return found

    def test(self) -> Mapping[str, float]:
        """Judge the best crowd where it was sought, from other starts, and in the other building."""
        found = {}
        home, elsewhere = (_where(self.setting.test, number) for number in (0, 1))
        if len(home["start"]):
            found["leaving"], found["conduct"] = self._judged(self.kept[:1], home, _TEST)[0]
            found["divergence"] = 0.5 * (found["leaving"] + found["conduct"])
        if len(elsewhere["start"]):
            found["elsewhere"] = 0.5 * sum(self._judged(self.kept[:1], elsewhere, _TEST)[0])
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the best crowds so far."""
        return {"kept": torch.as_tensor(np.stack(self.kept))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self.kept = list(state["kept"].numpy())

    def _judged(self, crowds: Sequence[Crowd], samples: SampleColumns, stream: int) -> list[tuple[float, float]]:
        """Return the divergences of each crowd's leaving and conduct from the benchmark's."""
        steps, expected = self.setting.data_options.steps, shares(samples, self.setting.data_options.steps)
        found = []
        for crowd in crowds:
            did = self._behaviour(crowd, samples, np.random.default_rng([self.setting.seed, stream, 1]))
            ours = shares(vars(did), steps)
            found.append((divergence(ours[0], expected[0]), divergence(ours[1], expected[1])))
            self.setting.advance()
        return found

    def _behaviour(self, crowd: Crowd, samples: SampleColumns, generator: np.random.Generator) -> Behaviour:
        count, members = samples["start"].shape[:2]
        if self.setting.options.steering == "expert":
            like = people((count, members), generator)
        else:
            each = traits([crowd], members)
            like = Traits(*(np.repeat(values, count, 0) for values in vars(each).values()))
        number = int(samples["building"][0])
        return evacuate(number, samples["start"], like, self.setting.data_options.steps, generator)

    def _report(self, crowd: Crowd, stream: int) -> str:
        """Say how a crowd differs from the benchmark, for whoever reads it."""
        steps = self.setting.data_options.steps
        did = self._behaviour(crowd, self.home, np.random.default_rng([self.setting.seed, stream, 1]))
        said = []
        for name, found in (("benchmark", self.home), ("crowd", vars(did))):
            conduct = shares(found, steps)[1]
            doors = np.bincount(np.asarray(found["door"], np.int64).ravel(), minlength=4) / found["door"].size
            parts = [f"{100 * share:.0f} % of steps {what}" for what, share in zip(CONDUCTS, conduct, strict=True)]
            parts += [f"{100 * share:.0f} % leave by door {door}" for door, share in enumerate(doors) if door]
            said.append(f"{name}: {', '.join(parts)}, after {float(found['time'].mean()):.0f} steps on average")
        return "; ".join(said)


def instructed(samples: SampleColumns, personas: int) -> Crowd:
    """Return personas that say outright what was observed, part by part: no simulation judges them.

    Fear is what freezes as large a share of steps; following is the share of moves that follow; speeds are quantiles of
    how often members move; as many personas know a door as members leave by it.

    Args:
        samples: The benchmark.
        personas: How many.
    """
    goes, follows, freezes, waits = samples["conduct"].astype(np.float64).transpose(2, 0, 1)
    frozen = freezes.sum() / samples["conduct"].sum()
    fear = THAW * frozen / max(1.0 - frozen, 1e-9)  # what begins is what ends: fear (1 - frozen) = THAW frozen
    told = follows.sum() / (goes + follows).sum()
    moving = (goes + follows) / np.maximum(goes + follows + waits, 1.0)
    middles = (np.arange(personas) + 0.5) / personas
    left = samples["door"][samples["door"] > 0]
    crowd = np.empty((personas, len(LEVELS)), np.int64)
    crowd[:, 0] = [_nearest(VALUES[0], speed) for speed in np.quantile(moving, middles)]
    crowd[:, 1], crowd[:, 2] = _nearest(VALUES[1], fear), _nearest(VALUES[2], told)
    spread = np.random.default_rng(0).permutation(personas)  # whom a door falls to has nothing to do with speed
    crowd[spread, 3] = np.quantile(left, middles, method="inverted_cdf") - 1 if len(left) else UNSTEERED[3]
    return crowd


def _nearest(values: NDArray[np.float64], value: float) -> int:
    return int(np.abs(values - value).argmin())


def _where(samples: SampleColumns, number: int) -> SampleColumns:
    chosen = samples["building"] == number
    return {name: values[chosen] for name, values in samples.items()}
