"""A training step's two passes as CUDA graphs: some thousand launches become two, and the host waits for none.

What goes into a graph is run again as it was: the same operations on the same memory, whatever the host would do by
then. So shapes must be fixed, and nothing may enter from the host: no draw, no look at whether samples have stopped.
Solves run all their steps then, each sample frozen at its own; the numbers are the same. The two
passes of ID-VIN (15x15, K = 30) take an H100 2.8 ms so, by its own clock, and 28 launched one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from planners.planner import Plan
from planners.specs import PlannerSpec, TrainingSpec
from planners.training.evaluation import Inputs
from planners.training.memory import phase

Compute = Callable[[Inputs], tuple[Plan, Tensor]]
"""Inputs -> the plan and its loss, with a graph for the backward pass."""


def refusal(device: torch.device, planner: PlannerSpec, training: TrainingSpec) -> str:
    """Return why training steps of this planner can't go into graphs, empty where they can."""
    if device.type != "cuda":
        return "there are graphs on CUDA devices only"
    if training.precision != "float32":
        return f"they are captured in float32, not {training.precision}"
    if training.discount_from is not None or training.jacobian_weight > 0:
        return "a step that draws (discount_from, jacobian_weight) is another one each time"
    if training.labels == "path":
        return "labels 'path' are followed from cell to cell, as far as each goes"
    if planner.adjoint == "implicit" and planner.solver_bwd == "gmres":
        return "solver_bwd 'gmres' looks at its residual at each step"
    return ""


class StepGraph:
    """The two passes of a training step, captured on copies of one batch and replayed on others.

    Attributes:
        inputs: What the graphs read.
        plan: What they write.
        loss: Its loss.
    """

    def __init__(self, compute: Compute, inputs: Inputs) -> None:
        """Capture; no gradient of a weight may exist, so that the graphs make them, and the first replay fills them."""
        copies: dict[str, Any] = {name: part.clone() for name, part in _tensors(inputs).items()}
        self.inputs = replace(inputs, **copies)
        pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(self._forward, pool=pool, stream=stream):
            self.plan, self.loss = compute(self.inputs)
        with phase("backward"), torch.cuda.graph(self._backward, pool=pool, stream=stream):
            self.loss.backward()

    def forward(self, inputs: Inputs) -> tuple[Plan, Tensor]:
        """Return the plan of a batch and its loss; the next call writes over both."""
        for name, part in _tensors(inputs).items():
            getattr(self.inputs, name).copy_(part)
        self._forward.replay()
        return self.plan, self.loss

    def backward(self) -> None:
        """Leave the gradients of the latest loss in those of the weights, in place of what was there."""
        self._backward.replay()


class GraphedSteps:
    """Which graph serves a step: one for inputs of one shape, in one stage of the training; the last is kept.

    Args:
        compute: The forward pass.
        forget: Takes the gradients of all weights away.
        capture: Makes a graph.
    """

    def __init__(
        self, compute: Compute, forget: Callable[[], None], capture: Callable[[Compute, Inputs], Any] = StepGraph
    ) -> None:
        self._compute, self._forget, self._capture = compute, forget, capture
        self._key: tuple[Any, ...] | None = None
        self._graph: Any = None

    def graph(self, inputs: Inputs, stage: tuple[Any, ...]) -> Any:
        """Return the graph for these inputs, captured now where they differ from those before.

        Args:
            inputs: The batch.
            stage: All that the step depends on beside inputs and weights.
        """
        shapes = ((name, part.shape, part.dtype) for name, part in _tensors(inputs).items())
        key = (stage, inputs.open_edge, *shapes)
        if key != self._key:
            self._graph = None  # its memory goes first
            self._forget()
            self._graph, self._key = self._capture(self._compute, inputs), key
        return self._graph


def _tensors(inputs: Inputs) -> dict[str, Tensor]:
    named = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
    return {name: part for name, part in named.items() if isinstance(part, Tensor)}
