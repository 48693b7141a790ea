"""Whether a graph plans as the planner does that it was made of: on random maps, by what will run it elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from datagen.problem import Moves
from planners.edge import plan_walled
from planners.fixed_points import ForwardIteration
from planners.planner import Planner
from planners.portable.formats import Run
from planners.trial_files import PlannerError

BATCHES = ((1, 6, 9), (5, 9, 7), (1, 16, 16), (8, 13, 17))
"""Maps, rows and columns, of what both plan; once with free cells at the edge, once walled all round."""

TOLERANCE = 1e-3
"""How far logits may lie apart, relative to the largest of their map.

Two runtimes sum in another order, so that each step rounds otherwise, by some 1e-7 of the value; a contraction of 0.99
makes 100 times that of it in the value, and the policy reads differences of values, some ten times smaller. What is
wrong in the graph (a size that was taken for a constant, a wall that leaks) is off by a share of the logits.
"""


VERIFIED = (
    f"{2 * sum(maps for maps, _, _ in BATCHES)} random maps of "
    + ", ".join(f"{height}x{width}" for _, height, width in BATCHES)
    + f", alone and in batches: logits within {TOLERANCE:g} of the largest of their map, and the same actions where no "
    "such difference decides"
)
"""What a graph that is written has been through."""


def check(run: Run, planner: Planner, moves: Moves, most_steps: Callable[[int], int], name: str) -> None:
    """Compare logits, actions and numbers of steps.

    Args:
        run: What was written, opened again.
        planner: What it was made of.
        moves: What its actions do.
        most_steps: From the rows of a map to the planner's forward steps there.
        name: What messages call the graph.

    Raises:
        PlannerError: They differ; names where and by how much.
    """
    for number, (count, height, width) in enumerate(BATCHES * 2):
        map, goal = random_problems(count, height, width, walled=number >= len(BATCHES), seed=number)
        with torch.no_grad():
            expected = plan_walled(planner, map, goal, moves=moves, k_fwd=most_steps(max(height, width)))
        found, where = run(map, goal), f"{name}: {count} maps of {height}x{width}"
        difference = _difference(found["logits"], expected.logits)
        if not difference <= TOLERANCE:
            raise PlannerError(
                f"{where}: its logits differ from the planner's by {difference:.1e} of the largest, more than "
                f"{TOLERANCE:g}: nothing is written"
            )
        if bool((_decided(expected.logits) & (found["actions"] != expected.logits.argmax(1))).any()):
            raise PlannerError(f"{where}: it takes other actions than the planner: nothing is written")
        apart = int((found["steps"] - expected.solution.steps).abs().max())
        if isinstance(planner.solver, ForwardIteration) and apart > 1:  # a residual may round to either side
            raise PlannerError(f"{where}: it takes {apart} steps more or fewer than the planner: nothing is written")


def random_problems(count: int, height: int, width: int, *, walled: bool, seed: int) -> tuple[Tensor, Tensor]:
    """Return maps of which a third are obstacles, and goals on free cells, float32 [count, 1, height, width] each."""
    draw = torch.Generator().manual_seed(seed)
    map = (torch.rand(count, 1, height, width, generator=draw) > 1 / 3).float()
    if walled:
        map[:, :, [0, -1]], map[:, :, :, [0, -1]] = 0.0, 0.0
    goal = torch.zeros_like(map)
    rows = torch.randint(1, height - 1, (count,), generator=draw)
    columns = torch.randint(1, width - 1, (count,), generator=draw)
    at = (torch.arange(count), 0, rows, columns)
    map[at], goal[at] = 1.0, 1.0
    return map, goal


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference of logits [B, actions, h, w], relative to the largest of each map."""
    size = expected.abs().amax((1, 2, 3), keepdim=True).clamp(min=torch.finfo(expected.dtype).tiny)
    return float(((found - expected).abs() / size).max())


def _decided(logits: Tensor) -> Tensor:
    """Return bool [B, h, w]: cells where no difference within the tolerance changes the action."""
    best = logits.topk(2, dim=1).values
    return best[:, 0] - best[:, 1] > 2 * TOLERANCE * logits.abs().amax((1, 2, 3))[:, None, None]
