"""A trained planner as a policy for environments: from an observation to an action."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from planners import trial_files
from planners.edge import plan_walled
from planners.inference import RoutePlanner, checked_cell, checked_grid
from planners.trial_files import PlannerError

_REMEMBERED = 4096
"""Plans that are kept: an agent asks for that of its problem again and again."""


class GreedyPolicy:
    """What a planner does in the environments of `datagen.environments`: the action of highest logit.

    A problem is planned when it is first seen, as tests plan it, so that roll-outs in an environment give the very
    numbers of `planners.evaluate`.

    Args:
        planner: From `load_planner`.
        k: Most forward steps; None is as many as `RoutePlanner.solve` takes.
        shape: Rows and columns of the map, where observations have neither it nor a view of each cell (an arm's
            workspace from above): `environment.observation_space["goal"].nvec`.
    """

    def __init__(self, planner: RoutePlanner, *, k: int | None = None, shape: Sequence[int] | None = None) -> None:
        if not isinstance(planner, RoutePlanner):
            raise PlannerError(f"planner: expected one from load_planner, got {type(planner).__name__}")
        if k is not None and (not isinstance(k, int) or k < 1):
            raise PlannerError(f"k: expected a whole number from 1 on, or None, got {k!r:.40}")
        self.planner, self.k, self.shape = planner, k, shape
        self._plans: OrderedDict[bytes, NDArray[np.int64]] = OrderedDict()

    def __call__(self, observation: Mapping[str, NDArray[Any]]) -> Any:
        """Return the action for an observation; an array [n] for a batch of them.

        Raises:
            PlannerError: The observation is none of an environment, or the planner needs what it does not show.
        """
        if not isinstance(observation, Mapping):
            raise PlannerError(f"observation: expected a mapping of arrays, got {type(observation).__name__}")
        if missing := {"goal", "position"} - set(observation):
            raise PlannerError(f"observation: expected goal and position, {', '.join(sorted(missing))} missing")
        if np.ndim(observation["goal"]) == 1:
            return int(self._action(observation))
        count = len(observation["goal"])
        return np.array([self._action({name: part[i] for name, part in observation.items()}) for i in range(count)])

    def _action(self, observation: Mapping[str, NDArray[Any]]) -> int:
        actions = self._planned(observation)
        return int(actions[checked_cell("position", observation["position"], _all_free(actions.shape))])

    def _planned(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        """Return the action of each cell, int64 [h, w]."""
        key = hashlib.blake2b(digest_size=16)
        for name in ("goal", "map", "observation"):
            if name in observation:
                part = np.ascontiguousarray(observation[name])
                key.update(f"{name}{part.shape}".encode() + part.data)
        if key.digest() not in self._plans:
            self._plans[key.digest()] = self._plan(observation)
            if len(self._plans) > _REMEMBERED:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key.digest())
        return self._plans[key.digest()]

    @torch.no_grad()
    def _plan(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        own, seen = self.planner.planner, observation.get("observation")
        if seen is None and (own.channels or "map" not in observation):
            raise PlannerError("observation: this planner reads more than a map, and there is no such part")
        if "map" in observation:
            map_ = torch.from_numpy(_map(observation["map"]))
        else:
            map_ = torch.zeros(self._shape(observation["observation"]))
        goal = torch.zeros(map_.shape)
        goal[checked_cell("goal", observation["goal"], _all_free(map_.shape))] = 1
        steps = self.k or trial_files.most_steps(own.solver.max_steps, self.planner.steps_per_row, max(map_.shape))
        tensor = next(own.parameters())
        x = (map_[None, None].to(tensor), goal[None, None].to(tensor))
        given = None if seen is None else torch.from_numpy(np.ascontiguousarray(seen))[None].to(tensor.device)
        plan = plan_walled(own, x[0], x[1], given, moves=self.planner.moves, k_fwd=steps)
        actions: NDArray[np.int64] = plan.logits[0].max(0).indices.cpu().numpy()
        return actions

    def _shape(self, seen: NDArray[Any]) -> tuple[int, int]:
        """Return rows and columns of a map that is not shown."""
        if self.shape is None and seen.ndim < 5:
            raise PlannerError("shape: expected rows and columns of the map, which this observation does not tell")
        rows, columns = seen.shape[:2] if self.shape is None else self.shape
        return int(rows), int(columns)


def _map(given: NDArray[Any]) -> NDArray[np.float32]:
    try:
        return checked_grid(given).astype(np.float32)
    except PlannerError as error:
        raise PlannerError(f"observation: map{str(error).removeprefix('grid')}") from None


def _all_free(shape: Sequence[int]) -> NDArray[np.uint8]:
    """Return a map on which every cell is free, in one byte: an agent may stand anywhere, but beside the map."""
    return np.broadcast_to(np.uint8(1), tuple(shape))
