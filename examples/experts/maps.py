"""One large map planned part by part: each solved on its own between the values around it, until none changes.

The cost of arriving, the fixed point of the core `shortest_path`,

    D(x) = min_a D(x + a) + c(x + a) + w_a,    D(goal) = 0

is found on a part of the map where D on the cells around the part is given. Parts whose surroundings have fallen are
solved again (Schwarz's iteration), from the goal's outwards. Values only fall, and each is the sum of a way's costs in
the order in which the whole map's solution adds them: at the end both are the same bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from experts.workers import each
from planners.compiled.solvers import BestFirst
from planners.cores.reachability import NEIGHBOURS, ReachabilityStep

if TYPE_CHECKING:
    from experts import MapOptions
    from orchestrator.trial.system import Setting

Numbers = NDArray[np.float64]
_MOVES = tuple((n // 3 - 1, n % 3 - 1) for n in NEIGHBOURS[8][1:])
_WAVES = 32


def terrain(options: MapOptions, generator: np.random.Generator) -> Mapping[str, Any]:
    """Return what entering each cell costs, inf where it is a wall, and a goal."""
    place = np.arange(options.cells) / options.cells
    waves = generator.normal(size=(_WAVES, 2)) * options.hills
    phases = 2.0 * np.pi * (generator.random((_WAVES, 2)) + np.multiply.outer(place, waves))
    height = np.einsum("xw,yw->xy", *np.cos(phases).transpose(2, 0, 1)) / math.sqrt(_WAVES / 4.0)
    walls = generator.random(height.shape) < options.walls
    goal = generator.integers(options.cells, size=2)
    walls[tuple(goal)] = False
    return {"costs": np.exp(options.roughness * height), "wall": walls, "goal": goal}


def arriving(costs: Numbers, around: Numbers, goal: tuple[int, int] | None) -> Numbers:
    """Return what the cheapest way from each cell of a part costs, [h, w]; inf where there is none.

    Args:
        costs: Of entering each cell of the part, and of those around it: [h + 2, w + 2], inf for walls.
        around: What the cheapest way costs from each cell around: of [h + 2, w + 2] the edge is read.
        goal: Row and column in the part, where it is there.
    """
    height, width = costs.shape
    lengths = np.array([math.hypot(*move) for move in _MOVES])
    goals, table = np.ones((height + 2, width + 2), bool), np.full((8, height + 2, width + 2), -np.inf)
    goals[1:-1, 1:-1] = False
    if goal is not None:
        goals[goal[0] + 2, goal[1] + 2] = True
    table[:, 2:-2, 2:-2] = -lengths[:, None, None]
    # A cell around leads out alone, onto a goal beyond it, at what its own way costs.
    north, west, east, south = (_MOVES.index(move) for move in ((-1, 0), (0, -1), (0, 1), (1, 0)))
    table[north, 1, 1:-1], table[south, -2, 1:-1] = -around[0], -around[-1]
    table[west, 1:-1, 1], table[east, 1:-1, -2] = -around[:, 0], -around[:, -1]
    return -_best_first(table, goals, np.pad(costs, 1))[2:-2, 2:-2]


@dataclass(frozen=True, eq=False)
class Planned:
    """A map that is planned in parts.

    Attributes:
        arriving: What the cheapest way from each cell costs [h, w].
        rounds: How often parts were solved side by side.
        solves: Parts that were solved in all.
        total: Processor time of all of them.
        chain: Of each round's slowest: what is left where each part has a processor of its own.
    """

    arriving: Numbers
    rounds: int
    solves: int
    total: float
    chain: float


def planned(costs: Numbers, goal: tuple[int, int], parts: int, *, away: bool = False, most: int = 10_000) -> Planned:
    """Return the plan of a map whose sides are in as many parts each.

    Args:
        costs: Of entering each cell, inf for walls [h, w].
        goal: Row and column.
        parts: Of each side.
        away: Solve each in a task of Ray's, where there is a cluster.
        most: Rounds.

    Raises:
        ArithmeticError: Values still fall after so many rounds.
    """
    whole, framed = np.full([side + 2 for side in costs.shape], np.inf), np.pad(costs, 1, constant_values=np.inf)
    rows, columns = (np.linspace(0, side, parts + 1).astype(int) for side in costs.shape)
    windows = {
        (i, j): (slice(rows[i], rows[i + 1] + 2), slice(columns[j], columns[j + 1] + 2))
        for i in range(parts)
        for j in range(parts)
    }
    home = (int(np.searchsorted(rows, goal[0], "right")) - 1, int(np.searchsorted(columns, goal[1], "right")) - 1)
    due, solves, total, chain = {home}, 0, 0.0, 0.0
    for number in range(1, most + 1):
        work = []
        for part in sorted(due):
            down, across = windows[part]
            inside = (goal[0] - down.start, goal[1] - across.start) if part == home else None
            work.append((framed[down, across], whole[down, across], inside))
        found = each(_timed, work, away=away)
        solves, spent = solves + len(work), [seconds for _, seconds in found]
        total, chain = total + sum(spent), chain + max(spent)
        before = {part: _edges(whole[windows[part]]) for part in windows}
        for part, (values, _) in zip(sorted(due), found, strict=True):
            down, across = windows[part]
            whole[down.start + 1 : down.stop - 1, across.start + 1 : across.stop - 1] = values
        due = {part for part in windows if not np.array_equal(before[part], _edges(whole[windows[part]]))}
        if not due:
            return Planned(whole[1:-1, 1:-1], number, solves, total, chain)
    raise ArithmeticError(f"values still fall after {most} rounds")


def _timed(*given: Any) -> tuple[Numbers, float]:
    begun = time.process_time()
    return arriving(*given), time.process_time() - begun


def _edges(values: Numbers) -> Numbers:
    return np.concatenate((values[0], values[-1], values[:, 0], values[:, -1]))


def _best_first(table: Numbers, goals: NDArray[np.bool_], costs: Numbers) -> Numbers:
    """Return u*, the solution that is compiled for the core."""
    given, taps = torch.from_numpy(np.ascontiguousarray(table))[None], torch.cat([torch.zeros(8, 1), torch.eye(8)], 1)
    nowhere = torch.full((1, 1, 1, 1), -math.inf, dtype=torch.float64)
    step = ReachabilityStep(
        given=given,
        goal=torch.where(torch.from_numpy(goals)[None, None], torch.zeros_like(nowhere), nowhere),
        taps=taps.log(),
        neighbours=NEIGHBOURS[8],
        wrap=False,
        sharp=True,
        head=taps[:, 1:],
        scale=1.0,
        discount=1.0,
        costs=torch.from_numpy(costs)[None, None],
        floor=nowhere,
    )
    found: Numbers = BestFirst().solve(step, step.goal).value[0, 0].numpy()
    return found


class Parted:
    """Plans each test map as a whole and in parts, and compares; there is nothing to learn."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def run_epoch(self, epoch: int) -> Mapping[str, float]:
        """Do nothing."""
        return {}

    def test(self) -> Mapping[str, float]:
        """Compare the plans."""
        found, maps = [], self.setting.test
        planned(np.ones((2, 2)), (0, 0), 1)  # kernels are read once, and not timed
        for costs, wall, goal in zip(maps["costs"], maps["wall"], maps["goal"], strict=True):
            priced, cell = np.where(wall, np.inf, costs.astype(np.float64)), (int(goal[0]), int(goal[1]))
            whole = planned(priced, cell, 1)
            self.setting.advance()
            parts = self.setting.options.parts
            parted = planned(priced, cell, parts, away=self.setting.options.workers == "ray")
            self.setting.advance()
            found.append(
                {
                    "differing": float((whole.arriving != parted.arriving).sum()),
                    "rounds": parted.rounds,
                    "solves": parted.solves / parts**2,
                    "whole": whole.total,
                    "total": parted.total,
                    "chain": parted.chain,
                }
            )
        return {name: float(np.mean([one[name] for one in found])) for name in found[0]}

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up nothing."""
