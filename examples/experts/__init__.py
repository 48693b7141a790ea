"""A system: a neural solver that satisfies its PDE by least squares, the domain parted among experts."""

from typing import Literal, Self

from pydantic import Field, model_validator

from datagen.spec import Spec
from datagen.tasks.samples import Column, Samples
from orchestrator.sweep.systems import Metric, System


class DiffusionOptions(Spec):
    """Which equation, on which mesh.

    Attributes:
        dimensions: Of the domain: a line, or a square.
        cells: Cells of the mesh along a side.
        reaction: sigma, the weight of the cubic term.
        roughness: Standard deviation of the conductivity's logarithm.
    """

    dimensions: Literal[1, 2] = 1
    cells: int = Field(128, ge=16, le=4096)
    reaction: float = Field(20.0, ge=0.0)
    roughness: float = Field(0.5, ge=0.0)


class MapOptions(Spec):
    """A large map of terrain.

    Attributes:
        cells: Along a side.
        hills: How many there are along a side.
        roughness: Standard deviation of the logarithm of what entering a cell costs.
        walls: Share of cells that are walls.
    """

    cells: int = Field(129, ge=4, le=4097)
    hills: float = Field(4.0, gt=0.0)
    roughness: float = Field(1.0, ge=0.0)
    walls: float = Field(0.2, ge=0.0, lt=1.0)


class PartOptions(Spec):
    """How a map is parted.

    Attributes:
        parts: Of each side.
        workers: "ray": parts are tasks of Ray's, where the trial is in a cluster; "none": they are solved one by one.
    """

    parts: int = Field(4, ge=1)
    workers: Literal["none", "ray"] = "none"


class SolverOptions(Spec):
    """What the network's output has to satisfy, and how it is made to.

    Attributes:
        constraint: "hard": weights of basis functions by least squares of the PDE's residual; "soft": its mean square
            is added to the loss.
        experts: Parts that each side of the domain is in, each part solved and differentiated on its own.
        bases: Basis functions of an expert.
        coarse: Let one constraint over the whole domain, of as many basis functions more, give the values on edges.
        penalty: Weight of the mean square where the constraint is soft.
        channels: Of the network.
        workers: "ray": experts are tasks of Ray's, where the trial is in a cluster; "none": a batch in its process.
    """

    constraint: Literal["hard", "soft"] = "hard"
    experts: int = Field(1, ge=1)
    bases: int = Field(8, ge=1)
    coarse: bool = False
    penalty: float = Field(0.01, ge=0.0)
    channels: int = Field(24, ge=1)
    workers: Literal["none", "ray"] = "none"

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.constraint == "soft" and (self.experts, self.bases, self.coarse) != (1, 8, False):
            raise ValueError("experts, bases, coarse: a soft constraint has none; leave them out")
        return self


def _columns(options: DiffusionOptions) -> dict[str, Column]:
    nodes, cells = ((count,) * options.dimensions for count in (options.cells + 1, options.cells))
    return {
        "conductivity": Column("kappa in the middle of each cell", cells, "float64"),
        "source": Column("f at each node", nodes, "float64"),
        "solution": Column("u at each node", nodes, "float64"),
    }


def _map(options: MapOptions) -> dict[str, Column]:
    shape = (options.cells, options.cells)
    return {
        "costs": Column("of entering each cell", shape, "float32"),
        "wall": Column("whether it is one", shape, "uint8"),
        "goal": Column("row and column", (2,), "int64"),
    }


TASKS = {
    "diffusion": Samples("experts.diffusion:sample", options=DiffusionOptions, columns=_columns),
    "large_maps": Samples("experts.maps:terrain", options=MapOptions, columns=_map, per_file=1),
}
SYSTEMS = {
    "experts": System(
        "experts.training:Training",
        tasks=("diffusion",),
        options=SolverOptions,
        training=("batch_size", "learning_rate"),
        metrics={
            "loss": Metric("squared error of u in training, and the penalty"),
            "error": Metric("error of u", "%", "lower", scale=100, form=".2f"),
            "residual": Metric("residual of the PDE over the source", "%", "lower", scale=100, form=".2f"),
            "processor": Metric(
                "processor time of layer and gradient, per sample", "ms", "lower", scale=1e3, measured=True
            ),
            "kept": Metric(
                "kept by the layer for the backward pass, per sample", "KiB", "lower", scale=2.0**-10, measured=True
            ),
        },
    ),
    "parted": System(
        "experts.maps:Parted",
        tasks=("large_maps",),
        options=PartOptions,
        metrics={
            "differing": Metric("cells whose value is not the whole map's", "cells", "lower", form=".0f"),
            "rounds": Metric("rounds", "", form=".0f"),
            "solves": Metric("solves of a part", "", form=".2f"),
            "whole": Metric("processor time of the whole map", "s", measured=True, form=".2f"),
            "total": Metric("of all parts", "s", measured=True, form=".2f"),
            "chain": Metric("of each round's slowest part", "s", "lower", measured=True, form=".2f"),
        },
    ),
}
