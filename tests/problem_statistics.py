"""What a set of problems is like, in the figures that the literature's sets are described by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datagen.expert.grid import tied_actions
from datagen.problem import Moves, Problems

_HORIZONS = (30, 50, 80, 120)


@dataclass(frozen=True)
class Statistics:
    """Figures of one set; shares are fractions of 1.

    Attributes:
        problems: Number of problems.
        free_share: Free cells among all cells.
        optimal_action_shares: Reachable non-goal cells with 1, 2, ... optimal actions.
        longest_path_mean: Longest shortest path per map, mean over maps.
        longest_path_p95: Its 95th percentile.
        longest_path_max: The longest of all.
        unreachable_map_share: Maps with a free cell that cannot reach the goal.
        beyond: Cells farther from the goal than so many steps, among those that reach it.
        tie_entropy: Least cross-entropy, nats, that a policy can have against one-hot labels with random ties, mean
            over all cells, obstacles and goal included.
    """

    problems: int
    free_share: float
    optimal_action_shares: tuple[float, ...]
    longest_path_mean: float
    longest_path_p95: float
    longest_path_max: float
    unreachable_map_share: float
    beyond: dict[int, float]
    tie_entropy: float


def statistics_of(problems: Problems, moves: Moves) -> Statistics:
    """Return the statistics of a set.

    Args:
        problems: At least one problem.
        moves: The task's moves.
    """
    tied = tied_actions(problems.map, problems.distance, moves)
    reached = np.isfinite(problems.distance)
    longest = np.where(reached, problems.distance, 0.0).max(axis=(1, 2))
    ties = np.bitwise_count(problems.optimal_actions[problems.optimal_actions != 0])
    shares = np.bincount(ties, minlength=len(moves.names) + 1)[1:] / len(ties)
    distances = problems.distance[reached]
    unreachable = ((problems.map == 1) & ~reached).any(axis=(1, 2))
    return Statistics(
        problems=len(problems),
        free_share=float(problems.map.mean()),
        optimal_action_shares=tuple(float(share) for share in shares),
        longest_path_mean=float(longest.mean()),
        longest_path_p95=float(np.percentile(longest, 95)),
        longest_path_max=float(longest.max()),
        unreachable_map_share=float(unreachable.mean()),
        beyond={steps: float((distances > steps).mean()) for steps in _HORIZONS},
        tie_entropy=float(np.log(np.bitwise_count(tied), dtype=np.float64).mean()),
    )
