"""The method: planner cores, fixed-point solvers, adjoints.

The names below are imported on first use, so `import planners` (to plan a sweep, say) needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planners.adjoints import Implicit, OneStep, Phantom, Unrolled
    from planners.fixed_points import Result, Solution, fixed_point, root
    from planners.jacobian import jacobian_penalty, spectral_radius
    from planners.linear import GMRES
    from planners.planner import Plan, Planner, build_planner
    from planners.routes import Route, RoutePlanner, load_planner, plot
    from planners.solvers import Anderson, Broyden, ForwardIteration
    from planners.specs import PlannerSpec, TrainingSpec

_HOME = {
    "Anderson": "planners.solvers",
    "Broyden": "planners.solvers",
    "ForwardIteration": "planners.solvers",
    "GMRES": "planners.linear",
    "Implicit": "planners.adjoints",
    "OneStep": "planners.adjoints",
    "Phantom": "planners.adjoints",
    "Plan": "planners.planner",
    "Planner": "planners.planner",
    "PlannerSpec": "planners.specs",
    "Result": "planners.fixed_points",
    "Route": "planners.routes",
    "RoutePlanner": "planners.routes",
    "Solution": "planners.fixed_points",
    "TrainingSpec": "planners.specs",
    "Unrolled": "planners.adjoints",
    "build_planner": "planners.planner",
    "fixed_point": "planners.fixed_points",
    "jacobian_penalty": "planners.jacobian",
    "load_planner": "planners.routes",
    "plot": "planners.routes",
    "root": "planners.fixed_points",
    "spectral_radius": "planners.jacobian",
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
