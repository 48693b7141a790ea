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


class SolverOptions(Spec):
    """What the network's output has to satisfy, and how it is made to.

    Attributes:
        constraint: "hard": weights of basis functions by least squares of the PDE's residual; "soft": its mean square
            is added to the loss.
        experts: Parts that each side of the domain is in, each part solved and differentiated on its own.
        bases: Basis functions of an expert.
        penalty: Weight of the mean square where the constraint is soft.
        channels: Of the network.
        workers: "ray": experts are tasks of Ray's, where the trial is in a cluster; "none": a batch in the trial's process.
    """

    constraint: Literal["hard", "soft"] = "hard"
    experts: int = Field(1, ge=1)
    bases: int = Field(8, ge=1)
    penalty: float = Field(0.01, ge=0.0)
    channels: int = Field(24, ge=1)
    workers: Literal["none", "ray"] = "none"

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.constraint == "soft" and (self.experts, self.bases) != (1, 8):
            raise ValueError("experts, bases: a soft constraint has none; leave them out")
        return self


def _columns(options: DiffusionOptions) -> dict[str, Column]:
    nodes, cells = ((count,) * options.dimensions for count in (options.cells + 1, options.cells))
    return {
        "conductivity": Column("kappa in the middle of each cell", cells, "float64"),
        "source": Column("f at each node", nodes, "float64"),
        "solution": Column("u at each node", nodes, "float64"),
    }


TASKS = {"diffusion": Samples("experts.diffusion:sample", options=DiffusionOptions, columns=_columns)}
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
    )
}
