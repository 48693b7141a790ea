"""An example of each field of a sweep, for its reference."""

from __future__ import annotations

from typing import Any

from datagen.spec import Spec
from datagen.tasks.registry import DatasetSpec
from orchestrator.sweep.limits import AtMost, Budget, ExecutionSpec, Resources
from orchestrator.sweep.search_space import SearchAxis, SearchSpec
from orchestrator.sweep.specs import PlannerEntry, SweepSpec
from planners.specs import PlannerSpec, TrainingSpec

EXAMPLES: dict[type[Spec], dict[str, Any]] = {
    SweepSpec: {
        "name": "mine",
        "description": "Does a wider ID-VIN do better on larger mazes?",
        "next": "sweeps/table1.yaml",
        "figures": ["success", "curves"],
        "tasks": [{"task": "navigation", "map_size": 15}, {"task": "navigation", "map_size": 27}],
        "data": {"train": 1000, "valid": 100, "test": 200},
        "planners": {"vin": {"core": "vin", "adjoint": "unrolled"}, "id-vin": {"core": "vin", "adjoint": "implicit"}},
        "grid": {"k": [30, 50], "seed": [0, 1, 2]},
        "training": {"epochs": 8},
        "budget": {"seconds": 600},
        "execution": {"threads": 2},
        "resources": {"exclusive": True},
        "test_on": [{"map_size": 27, "test": 200}, {"test": 100, "grid": {"map_size": [49, 99]}}],
        "measure": ["lengths"],
        "plugins": ["street_planning"],
        "search": {"space": {"training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}},
    },
    PlannerEntry: {"training": {"epochs": 8}, "grid": {"k": [80]}, "test_steps_per_row": 4},
    DatasetSpec: {
        "map_size": 27,
        "train": 1000,
        "valid": 100,
        "test": 200,
        "seed": 1,
        "options": {"kinds": "perfect"},
        "imported": "0" * 64,
    },
    PlannerSpec: {
        "options": {"q_channels": 50},
        "adjoint_options": {"steps": 5},
        "solver_options": {"depth": 5},
        "solver_bwd_options": {"depth": 5},
        "mapper_options": {},
        "k_fwd": 80,
        "k_bwd": 60,
        "tolerance": 1e-6,
        "tolerance_bwd": 1e-6,
    },
    TrainingSpec: {
        "epochs": 8,
        "batch_size": 16,
        "learning_rate": 0.01,
        "learning_rate_decay": 0.75,
        "discount_from": 0.97,
        "jacobian_weight": 0.1,
        "jacobian_frequency": 0.05,
        "mapper_learning_rate": 1e-3,
        "most_steps": 5000,
        "most_seconds": 600,
        "most_applications": 1e6,
    },
    Budget: {"epochs": 8, "steps": 5000, "seconds": 600, "applications": 1e6},
    ExecutionSpec: {"threads": 2, "memory_limit_gib": 11, "graphs": False},
    Resources: {
        "cpus": 2,
        "gpus": 0.5,
        "accelerator": "H100",
        "min_memory_gib": 20,
        "stall_seconds": 600,
        "at_most": {"gpus": 4},
    },
    AtMost: {"cpus": 32, "gpus": 4},
    SearchSpec: {
        "space": {"training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
        "trials": 50,
        "at_once": 2,
        "seed": 1,
    },
    SearchAxis: {"choices": [0.001, 0.003, 0.01], "low": 1e-4, "high": 1e-2},
}
"""Of fields whose default, or another choice, says too little."""


def example(model: type[Spec], name: str, default: Any, choices: list[Any]) -> Any:
    """Return an example of a field: one that was thought of, or a choice that is not the default, or the default.

    Args:
        model: The specification.
        name: Its field.
        default: What it is where nothing is said.
        choices: What it may be, where these are few.
    """
    if name in (own := EXAMPLES.get(model, {})):
        return own[name]
    return next((choice for choice in choices if choice != default), default)
