"""The first divergence of a trial's forward iteration (App. B.2): kept when it happens, shown again later."""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from datagen.problem import Problems
from datagen.tasks.registry import TASKS
from orchestrator.storage.code import code_hash
from orchestrator.storage.results import ResultError, write_bytes
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.sweep.specs import TrialSpec
from orchestrator.trial.trained import solve
from planners.fixed_points import Result
from planners.planner import Plan, build_planner
from planners.training.evaluation import ProblemSource, evaluate
from planners.training.rollout import Evaluation
from planners.training.trainer import EpochRecord, Trainer
from planners.trial_files import PlannerError, read_checkpoint


class WatchedTrainer(Trainer):
    """A trainer that tells of its progress, and hands over the state in which the forward iteration first diverged.

    Attributes:
        keep: Is given the state, ready to be saved; None once that has happened.
        advance: Is called in each training step and after each batch of a test; None for nobody to tell.
    """

    keep: Callable[[bytes], None] | None = None
    advance: Callable[..., None] | None = None
    _first: _First | None = None
    _random_states: list[dict[str, Tensor]] = []

    def on_step(self, plan: Plan, random_state: dict[str, Tensor]) -> None:
        """Tell of the step; hand over the state if this is the first one whose forward iteration diverged.

        On a device other than the CPU that is at the end of the epoch: nothing is waited for before.
        """
        if self.advance is not None:
            self.advance()
        if self.keep is None:
            return
        diverged = (plan.solution.result == Result.DIVERGED).any()
        if self.device.type != "cpu":
            self._first = _First.of(self, plan, diverged, self._first)
            self._random_states.append(random_state)
        elif bool(diverged):
            self._hand_over(self._tensors(plan), self.epoch, self.step, random_state)

    def forget_graphs(self) -> None:
        """Give back the memory of the step's graphs."""
        if self._graphs is not None:
            self._graphs = None
            gc.collect()  # a graph holds its trainer, which holds it

    def run_epoch(self) -> EpochRecord:
        """Train for one epoch; see `Trainer`."""
        epoch, self._first, self._random_states = self.epoch, None, []
        record = super().run_epoch()
        if self._first is not None and bool(self._first.found):
            step = int(self._first.step)
            self._hand_over(self._first.tensors, epoch, step, self._random_states[step])
        return record

    def _tensors(self, plan: Plan) -> dict[str, Any]:
        solution = plan.solution
        return {
            "weights": self.planner.state_dict(),
            "residual": solution.residual.detach(),
            "result": solution.result.detach(),
            "steps": solution.steps.detach(),
        }

    def _evaluate(self, problems: ProblemSource) -> Evaluation:
        size = self.training.batch_size
        return evaluate(self.planner, problems, moves=self.moves, batch_size=size, progress=self.advance)

    def _hand_over(self, tensors: dict[str, Any], epoch: int, step: int, random_state: dict[str, Tensor]) -> None:
        assert self.keep is not None
        content = BytesIO()
        state = {
            "code": code_hash(),
            "epoch": epoch,
            "step": step,
            "indices": self._indices(epoch, step),
            "random_state": random_state,
        }
        torch.save(state | tree_map(lambda part: part.cpu() if isinstance(part, Tensor) else part, tensors), content)
        self.keep(content.getvalue())
        self.keep = None

    def _indices(self, epoch: int, step: int) -> list[int] | None:
        """Return the numbers of the batch's problems; of a stream None, whose batches follow from seed and epoch."""
        if not isinstance(self.train, Problems):
            return None
        size = self.training.batch_size
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.train))
        chosen: list[int] = order[step * size : (step + 1) * size].tolist()
        return chosen


@dataclass(frozen=True, eq=False)
class _First:
    """The first step of an epoch whose forward iteration diverged, as the device knows it.

    Attributes:
        found: Whether there is one, bool.
        step: Its number, int64.
        tensors: What there was before its update; of the first step of the epoch where none was found.
    """

    found: Tensor
    step: Tensor
    tensors: dict[str, Any]

    @classmethod
    def of(cls, trainer: WatchedTrainer, plan: Plan, diverged: Tensor, before: _First | None) -> _First:
        """Return the first one up to this step, given the first before it."""
        tensors, step = trainer._tensors(plan), torch.full_like(diverged, trainer.step, dtype=torch.int64)
        if before is None:
            return cls(diverged, step, tree_map(Tensor.clone, tensors))

        def chosen(new: Tensor, old: Tensor) -> Tensor:
            return (
                torch.where(now, new, old) if new.device == now.device else old
            )  # what is the host's is alike in all of them

        now = diverged & ~before.found
        kept = tree_map(chosen, tensors, before.tensors)
        return cls(before.found | diverged, chosen(step, before.step), kept)


@dataclass(frozen=True)
class Replay:
    """The first divergence of a trial, run again.

    Attributes:
        epoch: Epoch in which it happened, from 1.
        step: Step of that epoch, from 1.
        indices: Problems of the training set in the batch; None of a streamed set.
        diverged: Samples of the batch that diverged then.
        again: Samples that diverge now.
        residual: Relative residual [K][B] after each forward step; None where it is not finite.
    """

    epoch: int
    step: int
    indices: list[int] | None
    diverged: list[int]
    again: list[int]
    residual: list[list[float | None]]


def keep_divergence(trial: TrialDirectory, content: bytes) -> None:
    """Write the state of the first divergence, unless there is one from before an interruption."""
    if not trial.divergence.exists():
        write_bytes(trial.divergence, content)


def replay(trial: TrialDirectory, spec: TrialSpec, train: ProblemSource) -> Replay:
    """Run the forward iteration again that was the first of the trial to diverge.

    Args:
        trial: Its directory.
        spec: The trial.
        train: Its training problems.

    Raises:
        ResultError: No divergence was kept, or it was of other code.
    """
    path = trial.divergence
    try:
        state = read_checkpoint(path)
    except FileNotFoundError:
        raise ResultError(f"{path}: no such file: the trial's forward iteration has not diverged") from None
    except PlannerError as error:
        raise ResultError(str(error)) from error
    if state.get("code") != code_hash():
        raise ResultError(f"{path}: kept by other code ({state.get('code')}); this code would iterate something else")
    batches = train.batches(spec.training.batch_size, spec.seed, state["epoch"])
    batch = next(itertools.islice(batches, state["step"], None))
    if state["epoch"] < spec.training.mapper_pretrain_epochs:
        batch = replace(batch, observation=None)  # the planner saw the true map
    moves = TASKS[spec.data.task].moves
    planner = build_planner(spec.planner, actions=len(moves.names))
    planner.load_state_dict(state["weights"])
    torch.set_rng_state(state["random_state"]["torch"])
    found = solve(planner, batch, moves=moves).solution
    assert found.trace is not None
    return Replay(
        epoch=state["epoch"] + 1,
        step=state["step"] + 1,
        indices=state["indices"],
        diverged=_diverged(state["result"]),
        again=_diverged(found.result),
        residual=[[value if math.isfinite(value) else None for value in row] for row in found.trace.tolist()],
    )


def _diverged(result: Tensor) -> list[int]:
    return torch.nonzero(result == Result.DIVERGED).flatten().tolist()
