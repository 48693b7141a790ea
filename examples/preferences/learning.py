"""Costs of cells from answers to pairs, by the likelihood of the answers; and ways that are planned with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from orchestrator.trial.system import Setting
from planners import PlannerSpec
from planners.planner import build_planner
from preferences.world import cheapest, divergence, neighbours, true_costs

_BEGUN, _APART = 0.0, -0.5
"""Costs at first, before the softplus; and the noisy annotator's rationality in the careful one's, as a logarithm."""
_FREE = -20.0
"""What the planner's moves cost beside the cells that they enter, as a logarithm: nothing."""


class Learning:
    """Fits costs [cells], and how rational the second annotator is beside the first, to answers by Adam.

    The first annotator's rationality is 1: costs are known up to scale, and so are in his unit.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting, options = setting, setting.data_options
        self.true = true_costs(options.size, options.world)
        self.raw = torch.full((options.size**2,), _BEGUN).requires_grad_()
        self.logarithm = torch.tensor(_APART).requires_grad_()
        self.optimizer = torch.optim.Adam([self.raw, self.logarithm], setting.training.learning_rate)
        planner = PlannerSpec(core="shortest_path", solver="best_first", solver_bwd="best_first")
        self.planner = build_planner(planner).requires_grad_(False)
        self.planner.core.log_costs.fill_(_FREE)

    def run_epoch(self, epoch: int) -> Mapping[str, float]:
        """Fit to each batch of pairs once."""
        losses = []
        for batch in self.setting.batches(epoch):
            loss = self._surprise(batch)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(float(loss.detach()))
            self.setting.advance()
        return {"loss": sum(losses) / len(losses), "agreement": self._agreement(self.setting.valid)}

    def test(self) -> Mapping[str, float]:
        """Judge the density, and the plans, by the truth."""
        options, test = self.setting.data_options, self.setting.test
        numbers = {"agreement": self._agreement(test), "excess": self._excess(test)}
        believed = torch.outer(self._rationalities(), self.costs()).detach().double().numpy()
        for name, costs in zip(("careful", "noisy"), believed, strict=True):
            found = divergence(getattr(options, name) * self.true, costs, options.horizon)
            numbers[f"from_{name}"] = float(found[test["start"][:, 0], test["goal"][:, 0]].mean())
        return numbers

    def state_dict(self) -> dict[str, Any]:
        """Return what is believed so far, and the optimiser."""
        believed = {"raw": self.raw.detach(), "logarithm": self.logarithm.detach()}
        return {**believed, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self.raw.data, self.logarithm.data = state["raw"], state["logarithm"]
        self.optimizer.load_state_dict(state["optimizer"])

    def costs(self) -> Tensor:
        """Return the costs that are believed, [cells], above 0."""
        return functional.softplus(self.raw)

    def _rationalities(self) -> Tensor:
        """Return the rationality of each annotator that answers are explained by, [2]."""
        one = torch.ones(())
        return torch.stack((one, one if self.setting.options.annotators == "one" else self.logarithm.exp()))

    def _surprise(self, pairs: Mapping[str, NDArray[Any]]) -> Tensor:
        """Return the negative log-likelihood of the answers."""
        options, costs = self.setting.options, self.costs()
        if options.compared == "ways":
            cost, answer = torch.from_numpy(pairs["visits"]).flatten(2) @ costs, pairs["first_way"]
        else:
            cost, answer = -self._values(costs, pairs["start"], pairs["goal"]), pairs["first_errand"]
        sign = 2.0 * torch.from_numpy(answer) - 1.0
        likelihoods = functional.logsigmoid(sign[:, None] * (cost[:, 1:] - cost[:, :1]) * self._rationalities())
        if options.annotators == "mixture":
            return np.log(2.0) - likelihoods.logsumexp(1).mean()
        return -likelihoods.gather(1, torch.from_numpy(pairs["annotator"])[:, None]).mean()

    def _values(self, costs: Tensor, start: NDArray[np.int64], goal: NDArray[np.int64]) -> Tensor:
        """Return what the planner's fixed point says of each errand [n, 2], differentiable in the costs."""
        plan = self._plan(costs, goal.ravel())
        found = plan.solution.value.flatten(1).gather(1, torch.from_numpy(start.reshape(-1, 1)))
        return found.view(start.shape)

    def _plan(self, costs: Tensor, goals: NDArray[np.int64]) -> Any:
        size = self.setting.data_options.size
        goal = functional.one_hot(torch.from_numpy(goals), size * size).to(costs.dtype).view(-1, 1, size, size)
        return self.planner.plan(torch.ones_like(goal), goal, costs=costs.view(1, 1, size, size).expand_as(goal))

    def _agreement(self, pairs: Mapping[str, NDArray[Any]]) -> float:
        """Return the share of pairs of ways whose order by true and by believed cost is the same."""
        visits, costs = pairs["visits"].reshape(len(pairs["visits"]), 2, -1), self.costs().detach().numpy()
        believed, true = (np.diff(visits @ each, axis=1) for each in (costs, self.true))
        differ = np.abs(true) > 1e-6
        return float((np.sign(believed) == np.sign(true))[differ].mean())

    @torch.no_grad()
    def _excess(self, pairs: Mapping[str, NDArray[Any]]) -> float:
        """Return the true cost of the planned ways over the cheapest, less 1; inf where one does not arrive."""
        options, start, goal = self.setting.data_options, pairs["start"][:, 0], pairs["goal"][:, 0]
        actions = self._plan(self.costs(), goal).logits.argmax(1).flatten(1).numpy()
        cell, spent = start.copy(), np.zeros(len(start))
        entered, near = np.append(self.true, np.inf), neighbours(options.size)
        for _ in range(options.size**2):
            cell = np.where(cell == goal, cell, near[cell, actions[np.arange(len(cell)), cell]])
            moving = cell != goal
            spent += np.where(moving, entered[cell], 0.0)
            if not moving.any():
                break
        spent += self.true[goal]
        return float((spent / cheapest(options.size, options.world)[start, goal]).mean() - 1.0)
