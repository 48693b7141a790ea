"""Training and testing a planner (section 5.1, D.1 and D.2)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from datagen.problem import Moves, Problems
from planners.budget import Spent, applications
from planners.cores import DiscountedCore
from planners.edge import plan_walled
from planners.evaluation import Inputs, ProblemSource, evaluate
from planners.fixed_points import Result, Solution
from planners.memory import TensorMemory, state_tensors
from planners.planner import Plan, build_planner
from planners.rollout import Evaluation
from planners.specs import PlannerSpec, TrainingSpec

WARM_UP_STEPS = 3
"""Steps of a process whose times are not counted: caches fill, kernels are compiled, memory is metered."""


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch of training did.

    Attributes:
        epoch: Number of epochs completed, from 1.
        train_loss: Mean cross-entropy over the epoch's steps.
        valid_success_rate: Success rate on the validation maps after the epoch (0..1; nan without validation maps).
        valid_optimality: Share of optimal roll-outs there.
        valid_spl: Success weighted by path length there.
        forward_seconds: Median over the steps; nan where all were warm-up.
        backward_seconds: The same for back-propagation.
        forward_steps: Mean number of applications of f per sample.
        forward_residual: Mean relative residual that the forward solve ended with.
        backward_residual: The same of the adjoint solve; nan where there is none.
        forward_diverged: Whether any sample's forward iteration diverged (B.2).
        not_finite: Whether loss or gradient stopped being finite; training ends there, before the update.
        kernel: "compiled", or "reference" and why.
        peak_bytes: Most tensor memory a metered step needed; 0 where none was metered.
        train_seconds: Wall time of the epoch's training steps.
        steps: Training steps since the start.
        applications: Applications of f per sample since the start, forward and backward.
    """

    epoch: int
    train_loss: float
    valid_success_rate: float
    valid_optimality: float
    valid_spl: float
    forward_seconds: float
    backward_seconds: float
    forward_steps: float
    forward_residual: float
    backward_residual: float
    forward_diverged: bool
    not_finite: bool
    kernel: str
    peak_bytes: int
    train_seconds: float
    steps: int
    applications: float


@dataclass(frozen=True)
class _StepRecord:
    loss: float
    forward_seconds: float
    backward_seconds: float
    forward_steps: float
    forward_residual: float
    backward_residual: float
    forward_diverged: bool
    not_finite: bool
    kernel: str
    applications: float


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Count numbers below 1.2e-38 as zero until the end of the block, in this thread and in those that it starts.

    Gradients of an unrolled planner may shrink from iteration to iteration down to there, where processors are many
    times slower. GPUs are not, and are left alone.
    """
    smallest = torch.tensor(torch.finfo(torch.float32).tiny)
    before = bool(smallest / 2 == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


class Trainer:
    """Trains one planner; everything random follows from the seed, so the same arguments give the same numbers.

    Attributes:
        planner: The planner in training.
        epoch: Epochs completed.
        step: Steps completed of the epoch that is being trained.
        finished: True when all epochs are done, another limit is reached, or training is no longer finite.
        spent: What the training steps have cost.
    """

    def __init__(
        self,
        planner: PlannerSpec,
        training: TrainingSpec,
        train: ProblemSource,
        valid: ProblemSource,
        *,
        moves: Moves,
        seed: int,
        device: str = "cpu",
        kernel: str = "auto",
        memory_limit_bytes: int | None = None,
    ) -> None:
        """Build the planner and its optimiser.

        Args:
            planner: What to train.
            training: How.
            train: Training problems.
            valid: Validation problems; may be empty.
            moves: What the actions do.
            seed: Seed of the initial weights and of the order of the data.
            device: "cpu" or "cuda".
            kernel: "auto" or "reference"; see `Planner`.
            memory_limit_bytes: Tensor memory at which `MemoryLimitExceeded` is raised; None for no limit.
        """
        self.spec = planner
        self.training = training
        self.train = train
        self.valid = valid
        self.moves = moves
        self.seed = seed
        self.device = torch.device(device)
        self.memory_limit_bytes = memory_limit_bytes
        torch.manual_seed(seed)
        self.planner = build_planner(planner, actions=len(moves.names), kernel=kernel).to(self.device)
        self.optimizer = self._optimizer()
        self.epoch = self.step = 0
        self.finished = training.epochs == 0
        self.spent = Spent()
        self._best: dict[str, Any] | None = None
        self._steps_in_process = 0
        self._steps_metered = 0
        self._peak_bytes = 0

    def _optimizer(self) -> torch.optim.Optimizer:
        training, named = self.training, dict(self.planner.named_parameters())
        groups: list[dict[str, Any]] = [{"params": list(named.values())}]
        if training.mapper_learning_rate is not None:
            mapper = {name for name in named if name.startswith("mapper.")}
            groups = [{"params": [named[name] for name in named if name not in mapper]}]
            groups += [
                {"params": [named[name] for name in named if name in mapper], "lr": training.mapper_learning_rate}
            ]
        kind = torch.optim.Adam if training.optimizer == "adam" else torch.optim.RMSprop
        optimizer = kind(groups, lr=training.learning_rate, eps=training.epsilon)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer

    def run_epoch(self) -> EpochRecord:
        """Train for one epoch, or until the budget is used up, and validate.

        Returns:
            What happened.

        Raises:
            MemoryLimitExceeded: When a metered step needs more than the limit.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.training.learning_rate_decay**self.epoch
        # Restarting the generator at every epoch makes a resumed run equal to an undisturbed one.
        generator = torch.Generator(device=self.device).manual_seed(self.seed * 1_000_003 + self.epoch)
        started, before = time.perf_counter(), self.spent
        steps: list[_StepRecord] = []
        self.planner.train()
        for batch in self.train.batches(self.training.batch_size, self.seed, self.epoch):
            self.step = len(steps)
            steps.append(self._step(batch, generator))
            self.spent = Spent(
                self.spent.steps + 1,
                before.seconds + time.perf_counter() - started,
                self.spent.applications + steps[-1].applications,
            )
            if steps[-1].not_finite or self.spent.exhausts(self.training):
                break
        train_seconds = self.spent.seconds - before.seconds
        self.epoch += 1
        done = self.epoch >= self.training.epochs or self.spent.exhausts(self.training)
        self.finished = done or steps[-1].not_finite
        record = self._record(steps, train_seconds)
        if self.training.tested_checkpoint == "best" and (
            self._best is None or record.valid_success_rate > self._best["success_rate"]
        ):
            weights = {name: tensor.detach().clone() for name, tensor in self.planner.state_dict().items()}
            self._best = {"success_rate": record.valid_success_rate, "planner": weights}
        return record

    def _record(self, steps: list[_StepRecord], train_seconds: float) -> EpochRecord:
        valid = self._evaluate(self.valid) if len(self.valid) else None
        counted = steps[max(0, WARM_UP_STEPS - (self._steps_in_process - len(steps))) :]

        def mean(name: str) -> float:
            return statistics.fmean(getattr(step, name) for step in steps)

        def median(name: str) -> float:
            return statistics.median(getattr(step, name) for step in counted) if counted else float("nan")

        return EpochRecord(
            epoch=self.epoch,
            train_loss=mean("loss"),
            valid_success_rate=valid.success_rate if valid else float("nan"),
            valid_optimality=valid.optimality if valid else float("nan"),
            valid_spl=valid.spl if valid else float("nan"),
            forward_seconds=median("forward_seconds"),
            backward_seconds=median("backward_seconds"),
            forward_steps=mean("forward_steps"),
            forward_residual=mean("forward_residual"),
            backward_residual=mean("backward_residual"),
            forward_diverged=any(step.forward_diverged for step in steps),
            not_finite=any(step.not_finite for step in steps),
            kernel=steps[-1].kernel,
            peak_bytes=self._peak_bytes,
            train_seconds=train_seconds,
            steps=self.spent.steps,
            applications=self.spent.applications,
        )

    @flushed_denormals()
    def _step(self, batch: Problems, generator: torch.Generator) -> _StepRecord:
        metered = self._steps_metered < 2  # the second step sees the optimiser's state too
        self._steps_metered += metered
        self._steps_in_process += 1
        if metered and self.device.type == "cpu":
            held = state_tensors(self.planner, self.optimizer)
            with TensorMemory(held, self.memory_limit_bytes) as memory:
                record = self._update(batch, generator)
            self._peak_bytes = max(self._peak_bytes, memory.peak_bytes)
            return record
        record = self._update(batch, generator)
        if metered:
            self._peak_bytes = torch.cuda.max_memory_allocated(self.device)
        return record

    def _update(self, batch: Problems, generator: torch.Generator) -> _StepRecord:
        self.optimizer.zero_grad(set_to_none=True)
        started = self._clock()
        inputs = Inputs.of(batch, self.device)
        random_state = {"torch": torch.get_rng_state(), "penalty": generator.get_state()}
        with self._drawn_discount(generator):
            plan, loss = self._loss(inputs, generator)
        self.look(plan, random_state)
        solved = self._clock()
        loss.backward()
        done = self._clock()
        clip = self.training.gradient_clip or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.planner.parameters(), clip)
        finite = bool(torch.isfinite(norm) & torch.isfinite(loss.detach()))
        if finite:
            self.optimizer.step()
        solution = plan.solution
        return _StepRecord(
            loss=float(loss.detach()),
            forward_seconds=solved - started,
            backward_seconds=done - solved,
            forward_steps=float(solution.steps.float().mean()),
            forward_residual=float(solution.residual.mean()),
            backward_residual=_adjoint_residual(solution),
            forward_diverged=bool((solution.result == Result.DIVERGED).any()),
            not_finite=not finite,
            kernel=plan.kernel,
            applications=applications(solution, self.spec.adjoint),
        )

    def look(self, plan: Plan, random_state: dict[str, Tensor]) -> None:
        """See what a training step has planned, before the weights change; does nothing here.

        Args:
            plan: What was planned.
            random_state: States of the generators before the step: "torch", and "penalty" for the step's own draws.
        """

    @contextmanager
    def _drawn_discount(self, generator: torch.Generator) -> Iterator[None]:
        core, least = self.planner.core, self.training.discount_from
        if least is None:
            yield
            return
        assert isinstance(core, DiscountedCore)
        gamma = core.discount
        draw = float(torch.rand((), generator=generator, device=self.device))
        core.discount = 1 - (1 - gamma) * ((1 - least) / (1 - gamma)) ** draw
        yield
        core.discount = gamma

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _loss(self, inputs: Inputs, generator: torch.Generator) -> tuple[Plan, Tensor]:
        apart = self.epoch < self.training.mapper_pretrain_epochs
        if inputs.observation is None or self.spec.mapper == "identity":
            channels = inputs.observation if self.spec.channels else None
            plan = plan_walled(self.planner, inputs.map, inputs.goal, channels, moves=self.moves)
            loss = self._cross_entropy(plan.logits, inputs)
        elif apart:
            plan = plan_walled(self.planner, inputs.map, inputs.goal, moves=self.moves)
            map_logits = self.planner.mapper(inputs.observation, tuple(inputs.goal.shape[-2:]))
            loss = self._cross_entropy(plan.logits, inputs) + _map_loss(map_logits, inputs)
        else:
            plan = self.planner.plan(None, inputs.goal, inputs.observation)
            loss = self._cross_entropy(plan.logits, inputs)
            if self.training.mapper_weight > 0:
                loss = loss + self.training.mapper_weight * _map_loss(plan.map_logits, inputs)
        if self.training.jacobian_weight > 0 and self._draws_penalty(generator):
            from planners.jacobian import jacobian_penalty

            penalty = jacobian_penalty(plan.step, plan.solution.value, generator)
            loss = loss + self.training.jacobian_weight * penalty
        return plan, loss

    def _draws_penalty(self, generator: torch.Generator) -> bool:
        draw = torch.rand((), generator=generator, device=self.device)
        return bool(draw < self.training.jacobian_frequency)

    def _cross_entropy(self, logits: Tensor, inputs: Inputs) -> Tensor:
        if self.training.labels == "one_hot":
            return functional.cross_entropy(logits, inputs.label)
        bits = torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1, 1)
        optimal = ((inputs.optimal_actions.unsqueeze(1) >> bits) & 1).to(logits.dtype)
        count = optimal.sum(1, keepdim=True)
        loss = -(logits.log_softmax(1) * optimal / count.clamp(min=1)).sum()
        return loss / (count > 0).sum().clamp(min=1)

    def test(self, problems: ProblemSource) -> Evaluation:
        """Return how the checkpoint that `tested_checkpoint` names does on `problems`."""
        if self.training.tested_checkpoint == "best" and self._best is not None:
            last = {name: tensor.detach().clone() for name, tensor in self.planner.state_dict().items()}
            self.planner.load_state_dict(self._best["planner"])
            evaluation = self._evaluate(problems)
            self.planner.load_state_dict(last)
            return evaluation
        return self._evaluate(problems)

    def _evaluate(self, problems: ProblemSource) -> Evaluation:
        return evaluate(self.planner, problems, moves=self.moves, batch_size=self.training.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a new trainer needs to go on: plain data and tensors, loadable with `weights_only=True`."""
        return {
            "moves": asdict(self.moves),  # so that a checkpoint tells what its actions do
            "planner": self.planner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "finished": self.finished,
            "spent": asdict(self.spent),
            "best": self._best,
            "peak_bytes": self._peak_bytes,
            "steps_metered": self._steps_metered,
            "torch_random_state": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state that `state_dict` returned."""
        self.planner.load_state_dict(state["planner"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch = state["epoch"]
        self.finished = state["finished"]
        self.spent = Spent(**state["spent"])
        self._best = state["best"]
        self._peak_bytes = state["peak_bytes"]
        self._steps_metered = state["steps_metered"]
        torch.set_rng_state(state["torch_random_state"])


def _map_loss(map_logits: Tensor | None, inputs: Inputs) -> Tensor:
    assert map_logits is not None
    return functional.binary_cross_entropy_with_logits(map_logits, inputs.map)


def _adjoint_residual(solution: Solution) -> float:
    if solution.adjoint is None or solution.adjoint.residual is None:
        return float("nan")
    return float(solution.adjoint.residual.mean())
