"""What happens in an episode: where an action leads, what it costs, what is seen and what is told of it.

Legend: n agents, each in a problem of its own, h x w cells of a map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from datagen.expert.graph import Links, read_links
from datagen.problem import Moves, Problems

State = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""Problems [n], starts [n, 2] and positions [n, 2] of n agents."""


@dataclass(frozen=True, eq=False)
class Episodes:
    """Problems to walk in; every method is a function of its arguments.

    Attributes:
        problems: The problems.
        moves: What the actions do.
        map_is_seen: Whether observations have the map. A task whose planner reads it off images must not show it.
    """

    problems: Problems
    moves: Moves
    map_is_seen: bool = True

    def __post_init__(self) -> None:
        if not len(self.playable):
            raise ValueError("problems: in none of them is there a cell with a way to the goal to start from")

    @cached_property
    def playable(self) -> NDArray[np.int64]:
        """Numbers of the problems that have a cell to start from."""
        starts = self._has_way
        if self.problems.start is not None:
            row, column = self.problems.start.T
            return np.flatnonzero(starts[np.arange(len(starts)), row, column])
        return np.flatnonzero(starts.any((1, 2)))

    @cached_property
    def _has_way(self) -> NDArray[np.bool_]:
        return np.isfinite(self.problems.distance) & (self.problems.distance > 0)

    @cached_property
    def _links(self) -> Links:
        return read_links(self.moves, self.problems.observation)

    @property
    def longest(self) -> int:
        """Most steps that an episode needs: a policy that arrives visits no cell twice."""
        return int(np.prod(self.problems.map.shape[1:]))

    def limit(self, max_steps: int | None) -> int:
        """Return after how many steps an episode is cut off, `longest` where nobody says."""
        if max_steps is None:
            return self.longest
        if isinstance(max_steps, bool) or not isinstance(max_steps, (int, np.integer)) or max_steps < 1:
            raise ValueError(f"max_steps: expected a whole number from 1 on, or None, got {max_steps!r:.40}")
        return int(max_steps)

    def drawn(self, chance: np.random.Generator) -> tuple[int, tuple[int, int]]:
        """Return a problem and a start: the problem's own where it names one, else any cell with a way to the goal."""
        number = int(chance.choice(self.playable))
        return number, self.start_of(number, chance)

    def start_of(self, number: int, chance: np.random.Generator) -> tuple[int, int]:
        """Return where an episode of a playable problem begins."""
        if self.problems.start is not None:
            row, column = self.problems.start[number].tolist()
        else:
            row, column = chance.choice(np.argwhere(self._has_way[number])).tolist()
        return row, column

    def asked(self, options: Mapping[str, Any], chance: np.random.Generator) -> tuple[int, tuple[int, int]]:
        """Return the problem and start that the options of a reset ask for, and draw what they leave open.

        Args:
            options: "problem", its number, and "start", row and column; nothing, or the first, or both.
            chance: What is drawn from.

        Raises:
            ValueError: There is no such problem, or no way from there to its goal.
        """
        if unknown := set(options) - {"problem", "start"}:
            raise ValueError(f"options: expected problem and start, got {', '.join(sorted(map(str, unknown)))}")
        if "problem" not in options:
            if "start" in options:
                raise ValueError("options: a start needs its problem")
            return self.drawn(chance)
        number = options["problem"]
        if not isinstance(number, (int, np.integer)) or number not in self.playable:
            every = f"one of {len(self.problems)} with a way to go"
            raise ValueError(f"options: problem: expected {every}, got {number!r:.40}")
        number = int(number)
        if "start" not in options:
            return number, self.start_of(number, chance)
        start = np.asarray(options["start"])
        if start.shape != (2,) or start.dtype.kind not in "iu":
            raise ValueError(f"options: start: expected row and column, got {options['start']!r:.40}")
        row, column = start.tolist()
        height, width = self.problems.map.shape[1:]
        if not (0 <= row < height and 0 <= column < width and self._has_way[number, row, column]):
            raise ValueError(f"options: start: expected a cell from which a way leads to the goal, got {(row, column)}")
        return number, (row, column)

    def entered(
        self, number: NDArray[np.int64], position: NDArray[np.int64], action: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return where actions lead, int64 [n, 2], and what they cost, float32 [n].

        A bump stays and costs its move; a road that is not there stays and costs what the graph's dearest road does.
        Where cells have costs, a move costs as often its price as the cell says that it enters, or the one it stays in.
        """
        height, width = self.problems.map.shape[1:]
        if self.moves.links:
            slot = position[:, 0] * width + position[:, 1]
            to = self._links.target[number, slot, action].astype(np.int64)
            cost = self._links.cost[number, slot, action]
            every = self._links.cost[number].reshape(len(number), -1)
            dearest = np.where(np.isfinite(every), every, 0).max(1)
            return np.stack([to // width, to % width], 1), np.where(np.isfinite(cost), cost, dearest)
        to = position + np.array(self.moves.offsets)[action]
        if self.moves.wrap:
            to = to % (height, width)
        inside = ((to >= 0) & (to < (height, width))).all(1)
        row, column = np.where(inside[:, None], to, position).T
        enters = inside & (self.problems.map[number, row, column] == 1)
        cost = np.array(self.moves.costs, np.float32)[action]
        to = np.where(enters[:, None], to, position)
        if self.problems.costs is not None:
            cost = cost * self.problems.costs[number, to[:, 0], to[:, 1]]
        return to, cost

    def arrived(self, state: State) -> NDArray[np.bool_]:
        """Return who is at the goal, bool [n]."""
        number, _, position = state
        there: NDArray[np.bool_] = (position == self.problems.goal[number]).all(1)
        return there

    def seen(self, state: State) -> dict[str, NDArray[Any]]:
        """Return what is observed, arrays [n, ...] of `observation_space`."""
        number, _, position = state
        parts: dict[str, NDArray[Any]] = {
            "goal": self.problems.goal[number].astype(np.int64),
            "position": position.copy(),
        }
        if self.map_is_seen:
            parts["map"] = self.problems.map[number]
        if self.problems.observation is not None:
            parts["observation"] = self.problems.observation[number]
        return parts

    def told(self, state: State, cost: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Return what the infos say, arrays [n, ...].

        Args:
            state: Where the agents are.
            cost: What each has spent so far, float32 [n].
        """
        number, start, position = state
        best = self.problems.distance[number, start[:, 0], start[:, 1]]
        there = self.arrived(state)
        bits = self.problems.optimal_actions[number, position[:, 0], position[:, 1]]
        spl = np.where(there, best / np.maximum(cost, np.float32(1e-9)), np.float32(0))
        return {
            "problem": number.copy(),
            "start": start.copy(),
            "cost": cost.astype(np.float64),
            "optimal_cost": best.astype(np.float64),
            "distance": self.problems.distance[number, position[:, 0], position[:, 1]].astype(np.float64),
            "optimal_actions": (bits[:, None] >> np.arange(len(self.moves.names))) & 1,
            "is_success": there,
            "spl": spl.astype(np.float64),
        }

    @cached_property
    def observation_space(self) -> spaces.Dict:
        """What one agent sees: goal and position, the map or what shows it."""
        shape = self.problems.map.shape[1:]
        parts: dict[str, Any] = {"goal": spaces.MultiDiscrete(shape), "position": spaces.MultiDiscrete(shape)}
        if self.map_is_seen:
            parts["map"] = spaces.Box(0, 1, shape, np.uint8)
        if self.problems.observation is not None:
            parts["observation"] = spaces.Box(0, 255, self.problems.observation.shape[1:], np.uint8)
        return spaces.Dict(parts)

    @cached_property
    def action_space(self) -> spaces.Discrete:
        """One number for each move."""
        return spaces.Discrete(len(self.moves.names))


_FREE, _OBSTACLE, _GOAL, _AGENT = (245, 245, 245), (40, 40, 40), (46, 160, 67), (213, 94, 0)
_PIXELS = 8


def picture(map_: NDArray[np.uint8], goal: NDArray[np.int16], position: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return a map with its goal and an agent as an image, uint8 [8 h, 8 w, 3]."""
    image = np.where(map_[:, :, None] == 1, np.array(_FREE, np.uint8), np.array(_OBSTACLE, np.uint8))
    image[*goal], image[*position] = _GOAL, _AGENT
    return image.repeat(_PIXELS, 0).repeat(_PIXELS, 1)
