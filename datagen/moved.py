"""What version 0.1 had elsewhere or otherwise: it goes on working for a version, with a warning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

MODULES = {
    "datagen.arm": "datagen.tasks.arm",
    "datagen.columns": "datagen.storage.schema",
    "datagen.links": "datagen.expert.graph",
    "datagen.manifest": "datagen.storage.manifest",
    "datagen.manipulation": "datagen.tasks.manipulation",
    "datagen.navigation": "datagen.tasks.navigation",
    "datagen.npz": "datagen.storage.npz",
    "datagen.parquet": "datagen.storage.dataset",
    "datagen.proposals": "datagen.tasks.proposed",
    "datagen.splitmix": "datagen.sampling.splitmix",
    "datagen.splits": "datagen.sampling.unique_maps",
    "datagen.staging": "datagen.storage.staging",
    "datagen.stream": "datagen.storage.stream",
    "datagen.task": "datagen.tasks.registry",
    "datagen.visual": "datagen.tasks.visual_navigation",
    "orchestrator.progress": "orchestrator.campaign.progress",
    "orchestrator.results": "orchestrator.storage.results",
    "orchestrator.selection": "orchestrator.sweep.selection",
    "orchestrator.specs": "orchestrator.sweep.specs",
    "orchestrator.submission": "orchestrator.cluster.ray_submit",
    "orchestrator.sweep_files": "orchestrator.sweep.files",
    "orchestrator.trained": "orchestrator.trial.trained",
    "planners.adjoints": "planners.fixed_points.adjoints",
    "planners.budget": "planners.training.budget",
    "planners.cores.bellman": "planners.cores.layers",
    "planners.cores.gauss_seidel": "planners.compiled.solvers",
    "planners.cores.value_iteration": "planners.cores.steps",
    "planners.evaluation": "planners.training.evaluation",
    "planners.jacobian": "planners.fixed_points.jacobian",
    "planners.linear": "planners.fixed_points.gmres",
    "planners.memory": "planners.training.memory",
    "planners.rollout": "planners.training.rollout",
    "planners.routes": "planners.inference",
    "planners.solution": "planners.fixed_points.solution",
    "planners.solvers": "planners.fixed_points.solvers",
}
"""Old names and new ones."""


class _Forwarder(MetaPathFinder, Loader):
    """Finds a module under its old name."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        _warn(name, MODULES[name])
        sys.modules[name] = import_module(MODULES[name])


def install() -> None:
    """Have modules be found under their old names, after all that is there by that name."""
    if not any(isinstance(finder, _Forwarder) for finder in sys.meta_path):
        sys.meta_path.append(_Forwarder())


def attributes(package: str, module: str) -> Callable[[str], Any]:
    """Return a package's `__getattr__` that finds what was in the module that had the package's name.

    Args:
        package: The package.
        module: The module where it is now.
    """

    def __getattr__(name: str) -> Any:
        if name.startswith("__") or not hasattr(import_module(module), name):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        _warn(f"{package}.{name}", f"{module}.{name}")
        return getattr(import_module(module), name)

    return __getattr__


def by_name(*names: str, after: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator by which arguments that are given by name now may still be given by place.

    Args:
        names: The arguments, in the order they had.
        after: How many arguments stand before them.
    """

    def decorated(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            given = dict(zip(names, args[after:], strict=False))
            if not given or len(args) > after + len(names) or given.keys() & kwargs.keys():
                return function(*args, **kwargs)  # which says what is wrong, if anything is
            told, to_write = " and ".join(given), ", ".join(f"{name}=..." for name in given)
            warnings.warn(
                f"{function.__qualname__}: give {told} by name, {to_write}; by place goes with version 0.3",
                DeprecationWarning,
                stacklevel=2,
            )
            return function(*args[:after], **kwargs, **given)  # type: ignore[arg-type]

        return wrapper

    return decorated


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}; the old name will go with version 0.3", DeprecationWarning, stacklevel=3)
