"""A plug-in: a task with eight moves on crops of a town's map, and a planner core of its own.

The registries below are all that a sweep looks at. Targets are named, not imported, so planning a sweep needs no torch.
"""

from datagen.tasks.registry import Task
from planners.specs import Entry
from street_planning.options import MOORE as MOORE
from street_planning.options import ResidualOptions, StreetOptions, crop_shape

CORES = {"residual_vin": Entry("street_planning.core:ResidualVIN", ResidualOptions)}
TASKS = {"streets": Task("street_planning.task:draw", moves=MOORE, options=StreetOptions, map_shape=crop_shape)}
