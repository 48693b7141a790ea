"""One agent that walks to the goal, as a `gymnasium.Env`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from datagen.environments.episodes import Episodes, State, picture
from datagen.problem import Moves


class PlanningEnv(gymnasium.Env):
    """An agent that walks to the goal of a problem; each episode is in a problem drawn anew.

    The reward is minus the cost of the move, 1 each on a grid; a bump stays and costs its move. So the return of an
    episode that arrives is minus the length of its way, and the best one `-info["optimal_cost"]`. It terminates at the
    goal, and is truncated after `max_steps`.

    Observations are what planners get: "goal" and "position" (row, column), and "map" (1 = free) or, where a planner
    reads the map off images, "observation" in its place; on graphs and in tasks with further channels both.

    Infos: "problem", "start", "cost" (so far), "optimal_cost" (of a shortest way from the start), "distance" (of one
    from here), "optimal_actions" (1 for each move that begins one), "is_success", and "spl" (optimal cost over cost on
    arrival, else 0). `reset(options={"problem": 3, "start": (1, 1)})` asks for a problem and a start.

    Args:
        episodes: The problems.
        max_steps: Steps after which an episode is cut off; None is the number of cells, which no policy that
            arrives exceeds.
        render_mode: "rgb_array", or None.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}

    def __init__(self, episodes: Episodes, *, max_steps: int | None = None, render_mode: str | None = None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode: expected 'rgb_array' or None, got {render_mode!r:.40}")
        self.episodes, self.render_mode = episodes, render_mode
        self.max_steps = episodes.limit(max_steps)
        self.observation_space, self.action_space = episodes.observation_space, episodes.action_space
        self._state: State | None = None
        self._cost: NDArray[np.float32] = np.zeros(1, np.float32)
        self._steps = 0

    @property
    def moves(self) -> Moves:
        """What the actions do."""
        return self.episodes.moves

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Begin an episode, in a problem and from a start that are drawn or that `options` name."""
        super().reset(seed=seed)
        number, start = self.episodes.asked(options or {}, self.np_random)
        self._state = np.array([number]), np.array([start]), np.array([start])
        self._cost, self._steps = np.zeros(1, np.float32), 0
        return self._seen(), self._told()

    def step(self, action: int) -> tuple[dict[str, NDArray[Any]], float, bool, bool, dict[str, Any]]:
        """Take an action, a number of `action_space`."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("step: call reset before the first step")
        if not self.action_space.contains(np.asarray(action)):
            raise ValueError(f"action: expected 0 to {self.action_space.n - 1}, got {action!r:.40}")
        number, start, position = self._state
        position, cost = self.episodes.entered(number, position, np.array([action], np.int64))
        self._state = number, start, position
        self._cost, self._steps = (self._cost + cost).astype(np.float32), self._steps + 1
        told = self._told()
        done = told["is_success"]
        return self._seen(), -float(cost[0]), done, not done and self._steps >= self.max_steps, told

    def render(self) -> NDArray[np.uint8] | None:
        """Return the map with goal and agent as an image, uint8 [8 h, 8 w, 3]; None without a render mode."""
        if self.render_mode is None or self._state is None:
            return None
        number, _, position = (int(self._state[0][0]), *self._state[1:])
        return picture(self.episodes.problems.map[number], self.episodes.problems.goal[number], position[0])

    def _seen(self) -> dict[str, NDArray[Any]]:
        assert self._state is not None
        return {name: part[0] for name, part in self.episodes.seen(self._state).items()}

    def _told(self) -> dict[str, Any]:
        assert self._state is not None
        told = self.episodes.told(self._state, self._cost)
        return {name: part[0] if part.ndim > 1 else part[0].item() for name, part in told.items()}
