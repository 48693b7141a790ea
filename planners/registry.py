"""What planners can be put together of, by name; needs the standard library alone, so a trained planner does too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, get_args

from datagen.plugins import extend


@dataclass(frozen=True)
class Entry:
    """One line of a registry.

    Attributes:
        target: Where the class is, "module:Class"; imported when used.
        options: What it can be told: a pydantic model, or where one is, "module:Class".
        ignores: Fields of `PlannerSpec` that mean nothing with it, and so must be left alone.
        cores: Names of the cores that a solver works with; empty for all.
        adjoint_cores: Of those, the ones whose adjoint system it solves too.
        adjoint_after: Names of the forward solvers after which it does; empty for all.
        compiled_only: Whether a solver has no form in torch's own operations, so that it works on a CPU alone, with
            kernel "auto", and on steps that the compiled loops take.
        linear_only: Whether a solver takes linear systems only, and so no core's step but every adjoint.
    """

    target: str
    options: Any = "planners.options:NoOptions"
    ignores: tuple[str, ...] = ()
    cores: tuple[str, ...] = ()
    adjoint_cores: tuple[str, ...] = ()
    adjoint_after: tuple[str, ...] = ()
    compiled_only: bool = False
    linear_only: bool = False

    @property
    def options_type(self) -> Any:
        """The pydantic model of its options."""
        return _found(self.options) if isinstance(self.options, str) else self.options


def named(entry: Entry) -> Any:
    """Return the class that a line of a registry names."""
    return _found(entry.target)


def _found(place: str) -> Any:
    module, name = place.split(":")
    return getattr(import_module(module), name)


CORES: dict[str, Entry] = {
    "vin": Entry("planners.cores.vin:VIN", "planners.options:VINOptions"),
    "symvin": Entry("planners.cores.symvin:SymVIN", "planners.options:SymVINOptions"),
    "conv_gppn": Entry("planners.cores.conv_gppn:ConvGPPN", "planners.options:ConvGPPNOptions"),
    "spt": Entry("planners.cores.spt:SPT", "planners.options:SPTOptions"),
    "contractive": Entry("planners.cores.contractive:Contractive", "planners.options:ContractiveOptions"),
    "reachability": Entry("planners.cores.reachability:Reachability", "planners.options:ReachabilityOptions"),
    "shortest_path": Entry("planners.cores.shortest_path:ShortestPath", "planners.options:ShortestPathOptions"),
}
SOLVERS: dict[str, Entry] = {
    "forward": Entry("planners.fixed_points:ForwardIteration"),
    "anderson": Entry("planners.fixed_points:Anderson", "planners.options:AndersonOptions"),
    "moving_average": Entry("planners.fixed_points.averaging:MovingAverage", "planners.options:MovingAverageOptions"),
    "broyden": Entry("planners.fixed_points:Broyden", "planners.options:BroydenOptions"),
    "gmres": Entry("planners.fixed_points:GMRES", linear_only=True),
    "gauss_seidel": Entry(
        "planners.compiled.solvers:GaussSeidel",
        cores=("vin", "symvin", "contractive", "conv_gppn"),
        adjoint_cores=("conv_gppn",),
        adjoint_after=("forward", "anderson", "gauss_seidel"),
        compiled_only=True,
    ),
    "best_first": Entry(
        "planners.compiled.solvers:BestFirst",
        cores=("reachability", "shortest_path"),
        adjoint_cores=("reachability", "shortest_path"),
        adjoint_after=("best_first",),
        compiled_only=True,
    ),
}
_NO_ADJOINT_SOLVE = ("solver_bwd", "k_bwd", "tolerance_bwd")
ADJOINTS: dict[str, Entry] = {
    "unrolled": Entry("planners.fixed_points:Unrolled", ignores=("solver_bwd", "k_bwd", "tolerance", "tolerance_bwd")),
    "implicit": Entry("planners.fixed_points:Implicit"),
    "phantom": Entry("planners.fixed_points:Phantom", "planners.options:PhantomOptions", ignores=_NO_ADJOINT_SOLVE),
    "one_step": Entry("planners.fixed_points:OneStep", ignores=_NO_ADJOINT_SOLVE),
}
MAPPERS: dict[str, Entry] = {
    "identity": Entry("planners.mappers:Identity"),
    "panorama": Entry("planners.mappers:Panorama", "planners.options:PanoramaOptions"),
    "unet": Entry("planners.mappers:UNet", "planners.options:UNetOptions"),
    "tiles": Entry("planners.mappers:Tiles", "planners.options:TilesOptions"),
}


OPTIONS: dict[str, tuple[dict[str, Entry], str]] = {
    "core": (CORES, "options"),
    "adjoint": (ADJOINTS, "adjoint_options"),
    "solver": (SOLVERS, "solver_options"),
    "solver_bwd": (SOLVERS, "solver_bwd_options"),
    "mapper": (MAPPERS, "mapper_options"),
}
"""Fields of `PlannerSpec` that name a part: where it is registered, and the field of what it is told."""


def load_parts(plugins: Iterable[str]) -> None:
    """Add the cores, mappers, solvers and adjoints of plug-ins to their registries.

    Raises:
        PluginError: A plug-in can't be used.
    """
    plugins = tuple(plugins)
    for attribute, registry in {"CORES": CORES, "MAPPERS": MAPPERS, "SOLVERS": SOLVERS, "ADJOINTS": ADJOINTS}.items():
        extend(registry, attribute, Entry, plugins)


Measure = Literal["lengths", "detours", "path_independence", "residual_auroc", "cost_ratio", "cost_rank"]
"""What tests can measure beside success; see `planners.training.measures`."""
MEASURES: tuple[Measure, ...] = get_args(Measure)
