"""The edge of a map is a wall: a map with free cells at its edge is planned inside one more ring of obstacles.

Cores pad with zeros. In mazes that are walled all round, a border cell is an obstacle and what it takes from over the
edge never matters; where it is free, value leaks over the edge, the more the larger values grow, and the policy follows
it (docs/decisions/0071). On the torus there is no edge, and the slots of a graph are not cells.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from datagen.problem import Moves
from datagen.shapes import shaped, shaped_last
from planners.planner import Plan, Planner

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Shaped


@shaped
def enclosed(
    planner: Planner, map: Float[Tensor, "B 1 h w"], observation: Shaped[Tensor, "B ..."] | None, moves: Moves
) -> Bool[Tensor, " B"]:
    """Return which maps of a batch are planned inside a ring: those with a free cell at the edge, bool [B].

    None on the torus or a graph; and none that a mapper makes of observations, which are taken as they are: where the
    walls are is for the mapper to say.
    """
    if not _edged(planner, observation, moves):
        return map.new_zeros(len(map), dtype=torch.bool)
    edge = torch.cat((map[:, 0, 0], map[:, 0, -1], map[:, 0, :, 0], map[:, 0, :, -1]), 1)
    return (edge > 0).any(1)


def _edged(planner: Planner, observation: Tensor | None, moves: Moves) -> bool:
    drawn_by_mapper = observation is not None and not planner.channels
    return not (moves.wrap or moves.links or drawn_by_mapper)


@shaped_last
def plan_walled(
    planner: Planner,
    map: Float[Tensor, "B 1 h w"],
    goal: Float[Tensor, "B 1 h w"],
    observation: Shaped[Tensor, "B ..."] | None = None,
    *,
    moves: Moves,
    k_fwd: int | None = None,
    costs: Tensor | None = None,
    open_edge: bool | None = None,
) -> Plan:
    """Return what the planner makes of maps whose edge is a wall; one `enclosed` map encloses the whole batch.

    Args:
        planner: The planner.
        map: [B, 1, h, w], as `Planner.plan` takes it.
        goal: The same.
        observation: What the mapper sees, or further channels; a ring has zeros there.
        moves: What the actions do.
        k_fwd: Most forward steps; None is the planner's own number.
        costs: What entering each cell costs, as `Planner.plan` takes it.
        open_edge: Whether any map has a free cell at its edge, where that is known; else the maps are looked at, for
            which a device would be waited for.

    Returns:
        The plan; logits are of the map's own cells, the solution is of all that was planned (see `on_map`).
    """
    given: dict[str, Any] = {} if k_fwd is None else {"k_fwd": k_fwd}
    if costs is not None:
        given["costs"] = costs
    if open_edge is None:
        open_edge = bool(enclosed(planner, map, observation, moves).any())
    if not (open_edge and _edged(planner, observation, moves)):
        return planner.plan(map, goal, observation, **given)
    around = partial(functional.pad, pad=(1, 1, 1, 1))
    if costs is not None:
        given["costs"] = around(costs)
    plan = planner.plan(around(map), around(goal), None if observation is None else around(observation), **given)
    return replace(plan, logits=plan.logits[..., 1:-1, 1:-1])


@shaped
def on_map(plan: Plan) -> Float[Tensor, "B channels h w"]:
    """Return the plan's value on the map's own cells, [B, channels, h, w]."""
    value = plan.solution.value
    return value if value.shape[2:] == plan.logits.shape[2:] else value[..., 1:-1, 1:-1]
