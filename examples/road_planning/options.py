"""What the plug-in's parts can be told, as data, and how a graph is written into bytes."""

from __future__ import annotations

from pydantic import Field

from datagen.problem import Moves
from datagen.spec import Spec
from datagen.tasks.registry import DatasetSpec

MOST_ROADS = 8
"""Most roads that leave a town."""

BYTES = 4
"""Per road: the slot it leads to (high byte, low byte), its length, its slowness; a road to its own slot is none."""

ROADS = Moves(
    names=tuple(f"road {number}" for number in range(MOST_ROADS)),
    offsets=((0, 0),) * MOST_ROADS,
    costs=(1.0,) * MOST_ROADS,
    links="road_planning.task:read_roads",
)
"""Taking one of a town's roads; where they lead and what they cost is in each problem's observation."""


class RoadOptions(Spec):
    """How towns lie and what roads are like.

    Attributes:
        towns: Share of the slots that hold a town.
        one_way: Share of the roads that can be driven in one direction only.
        motorways: Roads between towns far apart, as a share of the towns.
    """

    towns: float = Field(0.6, ge=0.2, le=0.9)
    one_way: float = Field(0.15, ge=0.0, le=1.0)
    motorways: float = Field(0.1, ge=0.0, le=1.0)


def road_channels(spec: DatasetSpec) -> tuple[int, ...]:
    """Return the shape of a problem's observation: the bytes of its roads, per slot."""
    return (MOST_ROADS * BYTES, spec.map_size, spec.map_size)


class GraphOptions(Spec):
    """Choices of the graph core.

    Attributes:
        values: Values per node.
        hidden_channels: Units of the layer that makes rewards of what a road is like.
        largest_discount: Every learned discount is below it.
    """

    values: int = Field(2, ge=1)
    hidden_channels: int = Field(32, ge=1)
    largest_discount: float = Field(0.99, gt=0.0, lt=1.0)
