"""The method: planner cores, fixed-point solvers, adjoints.

The names below are imported on first use, so `import planners` (to plan a sweep, say) needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from datagen.moved import install

if TYPE_CHECKING:
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
    from planners.inference import Route, RoutePlanner, load_planner, plot
    from planners.planner import Plan, Planner, build_planner
    from planners.specs import PlannerSpec, TrainingSpec

install()

_HOME = {
    "Anderson": "planners.fixed_points",
    "Broyden": "planners.fixed_points",
    "ForwardIteration": "planners.fixed_points",
    "GMRES": "planners.fixed_points",
    "Implicit": "planners.fixed_points",
    "OneStep": "planners.fixed_points",
    "Phantom": "planners.fixed_points",
    "Plan": "planners.planner",
    "Planner": "planners.planner",
    "PlannerSpec": "planners.specs",
    "Result": "planners.fixed_points",
    "Route": "planners.inference",
    "RoutePlanner": "planners.inference",
    "Solution": "planners.fixed_points",
    "TrainingSpec": "planners.specs",
    "Unrolled": "planners.fixed_points",
    "build_planner": "planners.planner",
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
    "Broyden",
    "ForwardIteration",
    "Implicit",
    "OneStep",
    "Phantom",
    "Plan",
    "Planner",
    "PlannerSpec",
    "Result",
    "Route",
    "RoutePlanner",
    "Solution",
    "TrainingSpec",
    "Unrolled",
    "build_planner",
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
