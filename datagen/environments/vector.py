"""Many agents side by side as one `gymnasium.vector.VectorEnv`, stepped as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from datagen.environments.episodes import Episodes, picture
from datagen.environments.single import PlanningEnv

Told = dict[str, Any]


class PlanningVectorEnv(VectorEnv):
    """What `gymnasium.vector.SyncVectorEnv` makes of as many `PlanningEnv`, number for number, in one array operation.

    An agent whose episode has ended is reset by the next step, whatever its action then (`AutoresetMode.NEXT_STEP`).
    `reset(options=...)` takes "problem" [n] and "start" [n, 2], one for each agent, and "reset_mask" [n].

    Args:
        episodes: The problems.
        num_envs: Agents.
        max_steps: See `PlanningEnv`.
        render_mode: See `PlanningEnv`.
    """

    metadata = {**PlanningEnv.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self, episodes: Episodes, num_envs: int, *, max_steps: int | None = None, render_mode: str | None = None
    ) -> None:
        if isinstance(num_envs, bool) or not isinstance(num_envs, (int, np.integer)) or num_envs < 1:
            raise ValueError(f"num_envs: expected a whole number from 1 on, got {num_envs!r:.40}")
        num_envs = int(num_envs)
        self.episodes, self.num_envs, self.render_mode = episodes, num_envs, render_mode
        self.max_steps = episodes.limit(max_steps)
        self.single_observation_space, self.single_action_space = episodes.observation_space, episodes.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._chances = [np_random(None)[0] for _ in range(num_envs)]
        self._number = np.zeros(num_envs, np.int64)
        self._start: NDArray[np.int64] = np.zeros((num_envs, 2), np.int64)
        self._position: NDArray[np.int64] = self._start.copy()
        self._cost: NDArray[np.float32] = np.zeros(num_envs, np.float32)
        self._steps: NDArray[np.int64] = np.zeros(num_envs, np.int64)
        self._ended = np.ones(num_envs, bool)
        self._begun = np.zeros(num_envs, bool)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], Told]:
        """Begin an episode of each agent, or of those that `options["reset_mask"]` names.

        Args:
            seed: One for each agent, or the first agent's, the others' one more each.
            options: See the class.
        """
        options = dict(options or {})
        mask = np.asarray(options.pop("reset_mask", np.ones(self.num_envs, bool)))
        if mask.shape != (self.num_envs,) or mask.dtype != bool or not mask.any():
            raise ValueError(
                f"options: reset_mask: expected bool [{self.num_envs}], one of them true, got {mask!r:.80}"
            )
        for name, part in options.items():
            if len(np.atleast_1d(part)) != self.num_envs or np.ndim(part) == 0:
                raise ValueError(f"options: {name}: expected {self.num_envs}, one for each agent, got {part!r:.40}")
        seeds = self._seeds(seed)
        for agent in np.flatnonzero(mask).tolist():
            if (own := seeds[agent]) is not None:
                self._chances[agent] = np_random(own)[0]
            self._begin(agent, {name: part[agent] for name, part in options.items()})
        return self.episodes.seen(self._state), self._told(mask)

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Told]:
        """Take an action for each agent, [n]; those whose episodes have ended begin others."""
        if not self._begun.all():
            first = int(self._begun.argmin())
            raise ResetNeeded(f"step: call reset before the first step; agent {first} has begun no episode")
        actions = np.asarray(actions)
        if actions not in self.action_space:
            raise ValueError(f"actions: expected {self.num_envs} of 0 to {self.single_action_space.n - 1}")
        began = self._ended
        position, cost = self.episodes.entered(self._number, self._position, actions)
        cost[began] = 0
        self._position = np.where(began[:, None], self._position, position)
        self._cost = (self._cost + cost).astype(np.float32)
        self._steps = self._steps + ~began
        for agent in np.flatnonzero(began).tolist():
            self._begin(agent, {})
        done = self.episodes.arrived(self._state) & ~began
        cut = ~done & ~began & (self._steps >= self.max_steps)
        self._ended = done | cut
        told = self._told(np.ones(self.num_envs, bool))
        return self.episodes.seen(self._state), -cost.astype(np.float64) + 0.0, done, cut, told

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Return an image of each agent's map; None without a render mode."""
        if self.render_mode is None:
            return None
        problems = self.episodes.problems
        every = zip(self._number.tolist(), self._position, strict=True)
        return tuple(picture(problems.map[number], problems.goal[number], position) for number, position in every)

    def _seeds(self, seed: Any) -> list[int | None]:
        """Return one seed for each agent, None where it draws on; raise ValueError for what is none."""
        one = seed is None or isinstance(seed, (int, np.integer))
        seeds = [None if seed is None else int(seed) + i for i in range(self.num_envs)] if one else seed
        if not isinstance(seeds, (Sequence, np.ndarray)) or any(
            own is not None and not (isinstance(own, (int, np.integer)) and own >= 0) for own in seeds
        ):
            raise ValueError(f"seed: expected whole numbers from 0 on, got {seed!r:.40}")
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed: expected {self.num_envs}, got {len(seeds)}")
        return [None if own is None else int(own) for own in seeds]

    @property
    def _state(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        return self._number, self._start, self._position

    def _begin(self, agent: int, options: dict[str, Any]) -> None:
        self._number[agent], self._start[agent] = self.episodes.asked(options, self._chances[agent])
        self._position[agent] = self._start[agent]
        self._cost[agent], self._steps[agent], self._ended[agent] = 0, 0, False
        self._begun[agent] = True

    def _told(self, whom: NDArray[np.bool_]) -> Told:
        """Return infos of those agents, with gymnasium's mask of whom each is of."""
        told: Told = {}
        for name, part in self.episodes.told(self._state, self._cost).items():
            part[~whom] = 0
            told[name], told[f"_{name}"] = part, whom.copy()
        return told
