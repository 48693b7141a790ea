"""The method: planner cores, fixed-point solvers, adjoints.

The names below are imported on first use, so `import planners` (to plan a sweep, say) needs no torch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from datagen.moved import install

if TYPE_CHECKING:
    from datagen.problem import Moves
    from planners.compiled.solvers import BestFirst, GaussSeidel
    from planners.cores import Core, CoreStep, Injected
    from planners.cores.steps import GRUIteration, ValueIteration
    from planners.fixed_points import (
        GMRES,
        Anderson,
        Broyden,
        ForwardIteration,
        Implicit,
        OneStep,
        Phantom,
        Result,
        Solution,
        Unrolled,
        fixed_point,
        jacobian_penalty,
        root,
        spectral_radius,
    )
    from planners.greedy import GreedyPolicy
    from planners.inference import Route, RoutePlanner, load_planner, plot
    from planners.planner import Plan, Planner, build_planner
    from planners.search import SearchPlanner
    from planners.specs import PlannerSpec, TrainingSpec
    from planners.training.evaluation import evaluate
    from planners.training.trainer import Trainer

# Torch's OpenMP threads wait for each other by spinning, for a millisecond and more: beside other work on the machine
# they so take from each other the processor that the one waited for needs. Read once, when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

install()

_HOME = {
    "Anderson": "planners.fixed_points",
    "BestFirst": "planners.compiled.solvers",
    "Broyden": "planners.fixed_points",
    "Core": "planners.cores",
    "CoreStep": "planners.cores",
    "ForwardIteration": "planners.fixed_points",
    "GMRES": "planners.fixed_points",
    "GRUIteration": "planners.cores.steps",
    "GaussSeidel": "planners.compiled.solvers",
    "GreedyPolicy": "planners.greedy",
    "Implicit": "planners.fixed_points",
    "Injected": "planners.cores",
    "Moves": "datagen.problem",
    "OneStep": "planners.fixed_points",
    "Phantom": "planners.fixed_points",
    "Plan": "planners.planner",
    "Planner": "planners.planner",
    "PlannerSpec": "planners.specs",
    "Result": "planners.fixed_points",
    "Route": "planners.inference",
    "RoutePlanner": "planners.inference",
    "SearchPlanner": "planners.search",
    "Solution": "planners.fixed_points",
    "Trainer": "planners.training.trainer",
    "TrainingSpec": "planners.specs",
    "Unrolled": "planners.fixed_points",
    "ValueIteration": "planners.cores.steps",
    "build_planner": "planners.planner",
    "evaluate": "planners.training.evaluation",
    "fixed_point": "planners.fixed_points",
    "jacobian_penalty": "planners.fixed_points",
    "load_planner": "planners.inference",
    "plot": "planners.inference",
    "root": "planners.fixed_points",
    "spectral_radius": "planners.fixed_points",
}

__all__ = [
    "GMRES",
    "Anderson",
    "BestFirst",
    "Broyden",
    "Core",
    "CoreStep",
    "ForwardIteration",
    "GRUIteration",
    "GaussSeidel",
    "GreedyPolicy",
    "Implicit",
    "Injected",
    "Moves",
    "OneStep",
    "Phantom",
    "Plan",
    "Planner",
    "PlannerSpec",
    "Result",
    "Route",
    "RoutePlanner",
    "SearchPlanner",
    "Solution",
    "Trainer",
    "TrainingSpec",
    "Unrolled",
    "ValueIteration",
    "build_planner",
    "evaluate",
    "fixed_point",
    "jacobian_penalty",
    "load_planner",
    "plot",
    "root",
    "spectral_radius",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
