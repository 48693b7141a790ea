"""A plug-in beyond the grid: towns and roads that differ from problem to problem, and value iteration along roads."""

from datagen.tasks.registry import Task
from planners.specs import Entry
from road_planning.options import ROADS as ROADS
from road_planning.options import GraphOptions, RoadOptions, road_channels

CORES = {"graph_contraction": Entry("road_planning.core:GraphContraction", GraphOptions)}
TASKS = {
    "roads": Task("road_planning.task:draw", moves=ROADS, options=RoadOptions, observation_shape=road_channels),
}
