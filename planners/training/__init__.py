"""Training and testing of a planner: budgets, memory, roll-outs."""

from datagen.moved import attributes

__getattr__ = attributes("planners.training", "planners.training.trainer")
