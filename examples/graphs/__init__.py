"""A system: what a graph settles at, by linear maps that contract and that are learnt, and by passing messages."""

from typing import Literal, Self

from pydantic import Field, model_validator

from datagen.spec import Spec
from datagen.tasks.samples import Column, Samples
from orchestrator.sweep.systems import Metric, System

EDGES_PER_NODE = 4
"""Most directed edges of a graph, for each of its nodes."""

CLASSES = 4
"""Families of graphs that are told apart."""


class GraphOptions(Spec):
    """How large the graphs are: small ones, which are trained on, and larger ones, which are tested on alone.

    Attributes:
        fewest: Nodes of the smallest.
        most: Nodes of the largest that are trained on.
        larger: Nodes of the larger ones.
        share: Share of the samples that are larger.
    """

    fewest: int = Field(10, ge=6)
    most: int = Field(20, ge=6, le=200)
    larger: int = Field(60, ge=6, le=200)
    share: float = Field(0.25, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.fewest <= self.most < self.larger:
            raise ValueError(
                f"expected fewest <= most < larger, got fewest {self.fewest}, most {self.most}, larger {self.larger}"
            )
        return self


class SolverOptions(Spec):
    """Which network, and how large.

    Attributes:
        network: Fixed points of contracting maps, decoded; or a fixed number of layers that pass messages.
        width: Of hidden layers.
        heads: Maps of the convergent one, half of them averages of what comes in, half shares of what goes out.
        features: Numbers that each map has at each node.
        contraction: Of each map, at most.
        rounds: Of maps, each made from what the one before has settled at.
        layers: Of the one that passes messages.
    """

    network: Literal["convergent", "message_passing"] = "convergent"
    width: int = Field(48, ge=1)
    heads: int = Field(8, ge=2, multiple_of=2)
    features: int = Field(4, ge=1)
    contraction: float = Field(0.95, gt=0.0, lt=1.0)
    rounds: int = Field(1, ge=1, le=8)
    layers: int = Field(4, ge=1)


def _graph(options: GraphOptions) -> dict[str, Column]:
    edges = EDGES_PER_NODE * options.larger
    return {
        "node": Column("two numbers of each node; rows beyond the graph's are 0", (options.larger, 2)),
        "edge": Column("two numbers of each directed edge; the same", (edges, 2)),
        "ends": Column("the nodes that it leaves and enters", (edges, 2), "int16"),
        "size": Column("nodes and directed edges", (2,), "int16"),
    }


def _of_nodes(options: GraphOptions) -> dict[str, Column]:
    return {**_graph(options), "answer": Column("what each node settles at", (options.larger,))}


def _of_graph(options: GraphOptions) -> dict[str, Column]:
    return {**_graph(options), "answer": Column("number of the graph's family", (), "int16")}


TASKS = {
    "walks": Samples("graphs.problems:walks", options=GraphOptions, columns=_of_nodes, per_file=200),
    "traffic": Samples("graphs.problems:traffic", options=GraphOptions, columns=_of_nodes, per_file=200),
    "families": Samples("graphs.problems:families", options=GraphOptions, columns=_of_graph, per_file=200),
}
SYSTEMS = {
    "graph_solver": System(
        "graphs.trial:GraphSolver",
        tasks=tuple(TASKS),
        options=SolverOptions,
        training=("batch_size", "learning_rate"),
        metrics={
            "loss": Metric("mean loss of the epoch"),
            "error": Metric("mean error, in mean distances of the answers from their mean", "%", "lower", 100, ".1f"),
            "error_larger": Metric("the same on larger graphs than trained on", "%", "lower", 100, ".1f"),
            "accuracy": Metric("graphs whose family is told", "%", "higher", 100, ".1f"),
            "accuracy_larger": Metric("the same of larger graphs than trained on", "%", "higher", 100, ".1f"),
            "steps": Metric("applications of the maps until they settle", form=".0f"),
            "parameters": Metric("numbers that are trained", form=".0f"),
        },
    )
}
