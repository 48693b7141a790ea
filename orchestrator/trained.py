"""Trained planners, taken up again from their trial directories: to test elsewhere, to look inside, to draw."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from datagen.problem import Problems
from datagen.spec import first_problem
from datagen.task import TASKS
from orchestrator.results import ResultError
from orchestrator.specs import TrialSpec
from planners.planner import Plan, Planner, build_planner


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained planner.

    Attributes:
        spec: The trial it comes from.
        planner: The planner, on the CPU, ready to plan.
        epoch: Epochs it was trained for.
    """

    spec: TrialSpec
    planner: Planner
    epoch: int


def read_spec(directory: Path) -> TrialSpec:
    """Return the spec of the trial in `directory`.

    Raises:
        ResultError: There is none, or this version does not understand it.
    """
    path = Path(directory) / "spec.json"
    try:
        return TrialSpec.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ResultError(f"{path}: no such file: {directory} is not a trial directory") from None
    except ValidationError as error:
        raise ResultError(f"{path}: {first_problem(error)}") from error


def load_trained(directory: Path) -> Trained:
    """Return the planner that a trial has trained: the checkpoint that its `training.tested_checkpoint` names.

    Args:
        directory: The trial directory; a running trial's latest epoch will do.

    Raises:
        ResultError: There is no checkpoint, or it does not fit the spec.
    """
    spec = read_spec(directory)
    path = Path(directory) / "checkpoint.pt"
    try:
        trainer: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")["trainer"]
    except FileNotFoundError:
        raise ResultError(f"{path}: no such file: the trial has not finished an epoch") from None
    best = trainer.get("best")
    weights = best["planner"] if spec.training.tested_checkpoint == "best" and best else trainer["planner"]
    planner = build_planner(spec.planner, actions=len(TASKS[spec.data.task].moves.names))
    try:
        planner.load_state_dict(weights)
    except RuntimeError as error:
        raise ResultError(f"{path}: made by other code, its weights do not fit the planner: {error}") from error
    planner.eval()
    return Trained(spec, planner, int(trainer["epoch"]))


@dataclass(frozen=True, eq=False)
class Inputs:
    """Problems as the planner takes them.

    Attributes:
        map: float [n, 1, h, w].
        goal: float [n, 1, h, w].
        observation: What the mapper sees, or None.
    """

    map: Tensor
    goal: Tensor
    observation: Tensor | None

    @classmethod
    def of(cls, problems: Problems, device: torch.device | str = "cpu") -> Inputs:
        """Return the inputs of a batch of problems."""
        goal = torch.zeros(len(problems), 1, *problems.map.shape[1:])
        rows, columns = (torch.from_numpy(problems.goal[:, axis].astype("int64")) for axis in (0, 1))
        goal[torch.arange(len(problems)), 0, rows, columns] = 1.0
        observation = None if problems.observation is None else torch.from_numpy(problems.observation)
        map_ = torch.from_numpy(problems.map).float().unsqueeze(1)
        return cls(map_.to(device), goal.to(device), None if observation is None else observation.to(device))


@dataclass(frozen=True)
class Convergence:
    """How the two fixed-point solves of a planner go, step by step.

    Attributes:
        forward: Median over problems of the relative residual after each forward step; None where it is not finite.
        backward: The same for the adjoint system (Eq. 6); empty where the adjoint solves none.
    """

    forward: list[float | None]
    backward: list[float | None]


def convergence(planner: Planner, problems: Problems) -> Convergence:
    """Return how the forward and the backward solve converge, each run to its last step.

    Args:
        planner: The planner, with its own solvers and numbers of steps.
        problems: A batch of problems; their labels make the loss whose gradient starts the backward solve.
    """
    # Without a tolerance, or the curves of easy problems would end where the solver stopped.
    planner = planner.recording(tolerance=0.0)
    if not hasattr(planner.adjoint, "solver"):
        return Convergence(_median(solve(planner, problems).solution.trace), [])
    with torch.enable_grad():
        plan = _plan(planner, problems)
        label = torch.from_numpy(problems.label).long().to(_device(planner))
        loss = functional.cross_entropy(plan.logits, label)
        torch.autograd.grad(loss, list(planner.parameters()), allow_unused=True)
    backward = plan.solution.adjoint
    return Convergence(_median(plan.solution.trace), _median(backward.trace if backward else None))


@torch.no_grad()
def solve(planner: Planner, problems: Problems, k: int | None = None) -> Plan:
    """Return what the planner makes of these problems, the residual of each step recorded.

    Args:
        planner: The planner.
        problems: What to plan.
        k: Most forward steps; None is the planner's own number.
    """
    return _plan(planner.recording(), problems, k)


def _plan(planner: Planner, problems: Problems, k: int | None = None) -> Plan:
    inputs = Inputs.of(problems, _device(planner))
    return planner.plan(inputs.map, inputs.goal, inputs.observation, k_fwd=k)


def _device(planner: Planner) -> torch.device:
    return next(planner.parameters()).device


def _median(trace: Tensor | None) -> list[float | None]:
    assert trace is not None, "the solver was told to record"
    return [value if math.isfinite(value) else None for value in trace.median(dim=1).values.tolist()]
