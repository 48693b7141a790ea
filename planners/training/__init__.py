"""Training and testing of a planner: budgets, memory, roll-outs.

Begin with `trainer.Trainer`.

- A step: `losses.cross_entropy`, `paths.path_cross_entropy`, `precision.autocast`, `denormals.flushed_denormals`,
  `graphs.StepGraph`.
- What it did and cost: `records.EpochRecord`, `budget.Spent`, `memory.TensorMemory`.
- How good a planner is: `evaluation.evaluate`, `rollout.Evaluation`, `measures.measure`,
  `costs.cost_ratio`.
"""

from datagen.moved import attributes

__getattr__ = attributes("planners.training", "planners.training.trainer")
