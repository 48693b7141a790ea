"""Trained planners, taken up again from their trial directories: to test elsewhere, to look inside, to draw."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from datagen.problem import FOUR, Moves, Problems
from datagen.tasks.registry import TASKS
from orchestrator.storage.code import code_hash
from orchestrator.storage.results import ResultError
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.sweep.specs import TrialSpec
from planners import trial_files
from planners.edge import on_map, plan_walled
from planners.fixed_points.stopping import relative_residual
from planners.planner import Plan, Planner, build_planner
from planners.published import read_state
from planners.training.evaluation import Inputs
from planners.training.precision import autocast
from planners.trial_files import PlannerError


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained planner.

    Attributes:
        spec: The trial it comes from.
        planner: The planner, on the CPU, ready to plan.
        epoch: Epochs it was trained for.
        steps_per_row: Most forward steps per row of the map, where that is more than in training; None for no rule.
    """

    spec: TrialSpec
    planner: Planner
    epoch: int
    steps_per_row: float | None

    @property
    def moves(self) -> Moves:
        """What its actions do."""
        return TASKS[self.spec.data.task].moves

    def steps(self, map_size: int) -> int:
        """Return the most forward steps on maps of so many rows, where nobody asks for another number."""
        return trial_files.most_steps(self.spec.planner.k_fwd, self.steps_per_row, map_size)


def load_trained(directory: Path) -> Trained:
    """Return the planner that a trial has trained: the checkpoint that its `training.tested_checkpoint` names.

    Args:
        directory: The trial directory; a running trial's latest epoch will do.

    Raises:
        ResultError: There is no checkpoint, it is damaged, or it does not fit the spec or the result.
    """
    trial = TrialDirectory(directory)
    spec = trial.read_spec()
    if spec.system is not None:
        raise ResultError(f"{directory}: a trial of system {spec.system.name!r}; expected one of a planner")
    try:
        path, state = read_state(trial.path)
        trial_files.agreed_spec(spec.model_dump(mode="json"), state, path)
        _check_ended(trial, state, path)
        trainer = trial_files.trainer_of(state, path)
        moves = trial_files.moves_of(trainer, path)
        weights = trial_files.tested_weights(trainer, path, spec.training.tested_checkpoint)
        unrolled = spec.planner.adjoint == "unrolled"
        own_rule = trial_files.trained_steps_per_row(spec.planner.k_fwd, spec.data.map_size, unrolled=unrolled)
        rule = trial_files.read_steps_per_row(trial.path) or own_rule
    except FileNotFoundError as error:
        raise ResultError(
            f"{error.filename}: no such file: no epoch of it was finished, or its result came without weights"
        ) from None
    except PlannerError as error:
        raise ResultError(str(error)) from error
    if moves != TASKS[spec.data.task].moves:
        raise ResultError(f"{path}: was trained for other moves than those of {spec.data.task!r}")
    epoch = trainer.get("epoch", 0)
    if not isinstance(epoch, int) or epoch < 0:
        raise ResultError(f"{path}: trainer.epoch: expected a whole number from 0 on, got {epoch!r:.40}")
    try:
        planner = build_planner(spec.planner, actions=len(moves.names))
        trial_files.give_weights(planner, weights, path)
    except PlannerError as error:
        raise ResultError(str(error)) from error
    except (MemoryError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ResultError(f"{directory}: its planner can't be built here ({reason:.300})") from error
    planner.eval()
    return Trained(spec, planner, epoch, rule)


def _check_ended(trial: TrialDirectory, state: Mapping[str, Any], path: Path) -> None:
    """Raise ResultError where the trial's result is of other weights: it is, or was until it broke off, trained again.

    The time that its epochs took tells one training from another.
    """
    result, records = trial.whole_result(), state.get("records")
    if result is None or result.status != "COMPLETED" or not isinstance(records, list):
        return
    taken = [record.get("train_seconds") for record in records if isinstance(record, Mapping)]
    seconds = [one for one in taken if isinstance(one, float)]
    if (len(seconds), sum(seconds)) != (result.epochs, result.train_seconds):
        of_present = result.provenance.made_by(code_hash())
        how = f"remove {trial.result_file}, then `idp run SWEEP`" if of_present else "`idp run SWEEP --rerun stale`"
        raise ResultError(
            f"{path}: is of a training that has not ended, after {len(records)} of {trial.read_spec().training.epochs} "
            f"epochs; the trial's result is of other weights. To end it: {how}"
        )


@dataclass(frozen=True)
class Convergence:
    """How the two fixed-point solves of a planner go, step by step.

    Attributes:
        forward: Median over problems of the relative residual after each forward step; None where it is not finite.
        backward: The same for the adjoint system (Eq. 6); empty where the adjoint solves none.
    """

    forward: list[float | None]
    backward: list[float | None]


@torch.no_grad()
def residual_floor(planner: Planner, problems: Problems, precision: str, moves: Moves = FOUR) -> float | None:
    """Return the relative residual, in float32, of what a solve in this precision ends with; the median over problems.

    In its own precision a solve may end with a residual of exactly 0, which says nothing: rounding hides what f would
    still change. Twice the planner's own steps, for rounding is to end the descent, not their number.

    Returns:
        None for "float32", and where it is not finite.
    """
    if precision == "float32":
        return None
    planner = planner.recording(tolerance=0.0, max_steps=2 * planner.solver.max_steps)
    with autocast(precision, _device(planner)):
        value = _plan(planner, problems, moves).solution.value.float()
    exact = _plan(planner, problems, moves).step(value)
    return _median(relative_residual(value, exact)[None])[0]


def convergence(planner: Planner, problems: Problems, moves: Moves = FOUR) -> Convergence:
    """Return how the forward and the backward solve converge, each run to its last step.

    Args:
        planner: The planner, with its own solvers and numbers of steps.
        problems: A batch of problems; their labels make the loss whose gradient starts the backward solve.
        moves: What its actions do.
    """
    # Without a tolerance, or the curves of easy problems would end where the solver stopped.
    planner = planner.recording(tolerance=0.0)
    if not hasattr(planner.adjoint, "solver"):
        return Convergence(_median(solve(planner, problems, moves=moves).solution.trace), [])
    with torch.enable_grad():
        plan = _plan(planner, problems, moves)
        label = torch.from_numpy(problems.label).long().to(_device(planner))
        loss = functional.cross_entropy(plan.logits, label)
        torch.autograd.grad(loss, list(planner.parameters()), allow_unused=True)
    backward = plan.solution.adjoint  # none where no weight that may still change has a say in the value
    return Convergence(_median(plan.solution.trace), [] if backward is None else _median(backward.trace))


@torch.no_grad()
def solve(planner: Planner, problems: Problems, k: int | None = None, moves: Moves = FOUR) -> Plan:
    """Return what the planner makes of these problems on the cells of their maps, the residual of each step recorded.

    Args:
        planner: The planner.
        problems: What to plan.
        k: Most forward steps; None is the planner's own number.
        moves: What its actions do.
    """
    plan = _plan(planner.recording(), problems, moves, k)
    return replace(plan, solution=replace(plan.solution, value=on_map(plan)))


def _plan(planner: Planner, problems: Problems, moves: Moves, k: int | None = None) -> Plan:
    inputs = Inputs.of(problems, _device(planner))
    return plan_walled(planner, inputs.map, inputs.goal, inputs.observation, moves=moves, k_fwd=k)


def _device(planner: Planner) -> torch.device:
    return next(planner.parameters()).device


def _median(trace: Tensor | None) -> list[float | None]:
    assert trace is not None, "the solver was told to record"
    return [value if math.isfinite(value) else None for value in trace.median(dim=1).values.tolist()]
