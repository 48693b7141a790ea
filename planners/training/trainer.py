"""Training and testing a planner (section 5.1, D.1 and D.2)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from datagen.problem import Moves, Problems
from planners.cores import BoundStep, DiscountedCore, RegularisedCore
from planners.edge import on_map, plan_walled
from planners.planner import Plan, build_planner
from planners.specs import PlannerSpec, TrainingSpec
from planners.training.budget import Spent
from planners.training.denormals import flushed_denormals
from planners.training.evaluation import Inputs, ProblemSource, evaluate
from planners.training.graphs import GraphedSteps, refusal
from planners.training.losses import cross_entropy, map_loss
from planners.training.memory import MemoryLimitExceeded, TensorMemory, phase, state_tensors
from planners.training.paths import path_cross_entropy
from planners.training.precision import autocast
from planners.training.records import EpochRecord as EpochRecord
from planners.training.records import Step, StepLog, StepRecord, epoch_record, mark, step_numbers
from planners.training.rollout import Evaluation

WARM_UP_STEPS = 3
"""Steps of a process whose times are not counted: caches fill, kernels are compiled, memory is metered."""


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
        graphs: bool = False,
    ) -> None:
        """Build the planner and its optimiser.

        Raises:
            ValueError: There is training to do, and less than one batch of problems to do it on; or its steps can't go
                into graphs.

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
            graphs: Whether training steps are replayed as CUDA graphs; see `planners.training.graphs`.
        """
        if training.epochs > 0 and len(train) < training.batch_size:
            raise ValueError(
                f"train: expected at least one batch of {training.batch_size} problems (batch_size), got {len(train)}"
            )
        if graphs and (reason := refusal(torch.device(device), planner, training)):
            raise ValueError(f"graphs: {reason}")
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
        self._sound: Tensor | None = None
        self._graphs = GraphedSteps(self._captured, self.optimizer.zero_grad) if graphs else None

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
        if not self._steps_in_process:
            self._warm_up()
        # Restarting the generator at every epoch makes a resumed run equal to an undisturbed one. It is the CPU's
        # whatever the device, so that all devices draw the same.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        started, before = time.perf_counter(), self.spent
        # A limit of applications must be looked at after each step, whatever a look costs.
        log = StepLog(at_once=self.device.type == "cpu" or self.training.most_applications is not None)
        core = self.planner.core
        if isinstance(core, RegularisedCore):
            core.set_progress((self.epoch + 1) / self.training.epochs)
        self.planner.train()
        for batch in self.train.batches(self.training.batch_size, self.seed, self.epoch):
            self.step = len(log)
            log.add(self._step(batch, generator))
            self.spent = before.after(len(log), time.perf_counter() - started, log.applications)
            if log.not_finite or self.spent.exhausts(self.training):
                break
        steps = log.records()
        self.spent = before.after(len(steps), time.perf_counter() - started, log.applications)
        train_seconds = self.spent.seconds - before.seconds
        self.epoch += 1
        done = self.epoch >= self.training.epochs or self.spent.exhausts(self.training)
        self.finished = done or steps[-1].not_finite
        if isinstance(core, RegularisedCore) and self.epoch >= self.training.epochs and not steps[-1].not_finite:
            core.finish()
        record = self._record(steps, train_seconds)
        if self.training.tested_checkpoint == "best" and (
            self._best is None or record.valid_success_rate > self._best["success_rate"]
        ):
            weights = {name: tensor.detach().clone() for name, tensor in self.planner.state_dict().items()}
            self._best = {"success_rate": record.valid_success_rate, "planner": weights}
        return record

    def _warm_up(self) -> None:
        """Train and test a twin on one problem, so that all is compiled before a clock starts; changes nothing here.

        A planner of its own, so that weights, optimiser and random state stay what they are to the bit.
        """
        (problem,) = (batch for batch in islice(self.train.in_order(1), 1))
        own = {"batch_size": 1, "most_steps": None, "most_seconds": None, "most_applications": None}
        training = self.training.model_copy(update=own)
        with torch.random.fork_rng([]):  # nothing is drawn on a device
            twin = Trainer(
                self.spec,
                training,
                problem,
                problem,
                moves=self.moves,
                seed=self.seed,
                device=str(self.device),
                kernel=self.planner.kernel,
            )
            if self.spec.mapper != "identity":  # as in the epoch in which the planner's loss has to reach the mapper
                twin.epoch = max(self.epoch, min(training.mapper_pretrain_epochs, training.epochs - 1))
            with flushed_denormals():
                twin._update(problem, torch.Generator())
            with phase("validation"):
                twin._evaluate(problem)

    def _record(self, steps: list[StepRecord], train_seconds: float) -> EpochRecord:
        with phase("validation"):
            valid = self._evaluate(self.valid) if len(self.valid) else None
        counted = steps[max(0, WARM_UP_STEPS - (self._steps_in_process - len(steps))) :]
        return epoch_record(
            steps,
            counted,
            valid,
            epoch=self.epoch,
            peak_bytes=self._peak_bytes,
            train_seconds=train_seconds,
            spent=self.spent,
        )

    @flushed_denormals()
    def _step(self, batch: Problems, generator: torch.Generator) -> Step:
        metered = self._steps_metered < 2  # the second step sees the optimiser's state too
        self._steps_metered += metered
        self._steps_in_process += 1
        if not metered:
            return self._update(batch, generator)
        if self.device.type == "cpu":
            held = state_tensors(self.planner, self.optimizer)
            with phase("update"), TensorMemory(held, self.memory_limit_bytes) as memory:
                record = self._update(batch, generator)
            peak = memory.peak_bytes
        else:
            allocator = torch.get_device_module(self.device)
            allocator.reset_peak_memory_stats(self.device)
            record = self._update(batch, generator)
            peak = allocator.max_memory_allocated(self.device)
            if self.memory_limit_bytes is not None and peak > self.memory_limit_bytes:
                with phase("update"):
                    raise MemoryLimitExceeded(peak, self.memory_limit_bytes)
        self._peak_bytes = max(self._peak_bytes, peak)
        return record

    def _update(self, batch: Problems, generator: torch.Generator) -> Step:
        with phase("forward"):
            inputs = Inputs.of(batch, self.device)
            graph = self._graph(inputs)
            if graph is None:  # a graph writes over the gradients that it made
                self.optimizer.zero_grad(set_to_none=True)
            random_state = {"torch": torch.get_rng_state(), "penalty": generator.get_state()}
            before_forward = mark(self.device)
            with self._drawn_discount(generator), self._precision():
                plan, loss = self._loss(inputs, generator) if graph is None else graph.forward(inputs)
            after_forward = mark(self.device)
        self.on_step(plan, random_state)
        with phase("backward"):
            before_backward = mark(self.device)
            loss.backward() if graph is None else graph.backward()
            after_backward = mark(self.device)
        self._check_mapper(inputs)
        with phase("update"):
            clip = self.training.gradient_clip or float("inf")
            norm = torch.nn.utils.clip_grad_norm_(self.planner.parameters(), clip)
            finite = torch.isfinite(norm) & torch.isfinite(loss.detach())
            self._move_weights(finite)
        marks = (before_forward, after_forward, before_backward, after_backward)
        return Step(marks, step_numbers(loss, plan.solution, self.spec.adjoint, finite), plan.kernel)

    def _graph(self, inputs: Inputs) -> Any:
        """Return the graph of the step on these inputs, or None where it runs operation by operation."""
        if self._graphs is None or self._steps_in_process <= WARM_UP_STEPS:
            return None
        # A core that changes as training goes on is another one in each epoch.
        changing = self.epoch if isinstance(self.planner.core, RegularisedCore) else -1
        return self._graphs.graph(inputs, (changing, self.epoch < self.training.mapper_pretrain_epochs))

    def _captured(self, inputs: Inputs) -> tuple[Plan, Tensor]:
        return self._loss(inputs, torch.Generator())  # of which nothing is drawn, see `refusal`

    @torch.no_grad()
    def _move_weights(self, finite: Tensor) -> None:
        """Update the weights, unless loss or gradient is not finite or was not in an earlier step of the epoch."""
        if self.device.type == "cpu":
            if bool(finite):
                self.optimizer.step()
            return
        # Whether it is the host learns only at the end of the epoch; by then nothing must have changed.
        self._sound = finite if self._sound is None else finite & self._sound
        weights = list(self.planner.parameters())
        before = [part.detach().clone() for part in weights]
        self.optimizer.step()
        for part, kept in zip(weights, before, strict=True):
            part.copy_(torch.where(self._sound, part, kept))

    def _precision(self) -> AbstractContextManager[None]:
        """Return the context in which a training step plans: autocast where the spec asks for half precision."""
        return autocast(self.training.precision, self.device)

    def on_step(self, plan: Plan, random_state: dict[str, Tensor]) -> None:
        """See what a training step has planned, before the weights change; does nothing here.

        Args:
            plan: What was planned.
            random_state: States of the generators before the step: "torch", and "penalty" for the step's own draws.
        """

    def _check_mapper(self, inputs: Inputs) -> None:
        """Refuse to train a mapper that nothing teaches: a loss that doesn't reach it would go unnoticed."""
        mapper = list(self.planner.mapper.parameters())
        if mapper and inputs.observation is not None and all(weights.grad is None for weights in mapper):
            raise ValueError(
                f"no gradient reaches the mapper {self.spec.mapper!r} through core {self.spec.core!r} with adjoint "
                f"{self.spec.adjoint!r}: what the core makes of the map doesn't enter its fixed point; use the adjoint "
                "unrolled, or give the mapper a loss of its own by training.mapper_weight"
            )

    @contextmanager
    def _drawn_discount(self, generator: torch.Generator) -> Iterator[None]:
        core, least = self.planner.core, self.training.discount_from
        if least is None:
            yield
            return
        assert isinstance(core, DiscountedCore)
        gamma = core.discount
        draw = float(torch.rand((), generator=generator))
        core.discount = 1 - (1 - gamma) * ((1 - least) / (1 - gamma)) ** draw
        try:
            yield
        finally:
            core.discount = gamma

    def _loss(self, inputs: Inputs, generator: torch.Generator) -> tuple[Plan, Tensor]:
        apart = self.epoch < self.training.mapper_pretrain_epochs
        if inputs.observation is None or self.spec.mapper == "identity":
            channels = inputs.observation if self.spec.channels else None
            plan = plan_walled(
                self.planner, inputs.map, inputs.goal, channels, moves=self.moves, open_edge=inputs.open_edge
            )
            loss = self._cross_entropy(plan.logits, inputs)
        elif apart:
            plan = plan_walled(self.planner, inputs.map, inputs.goal, moves=self.moves, open_edge=inputs.open_edge)
            map_logits = self.planner.mapper(inputs.observation, tuple(inputs.goal.shape[-2:]))
            loss = self._cross_entropy(plan.logits, inputs) + map_loss(map_logits, inputs)
        else:
            plan = self.planner.plan(None, inputs.goal, inputs.observation)
            loss = self._cross_entropy(plan.logits, inputs)
            if self.training.mapper_weight > 0:
                loss = loss + self.training.mapper_weight * map_loss(plan.map_logits, inputs)
        if isinstance(self.planner.core, RegularisedCore):
            given = plan.step.injected if isinstance(plan.step, BoundStep) else plan.step
            arriving = inputs.optimal_actions > 0
            loss = loss + self.planner.core.penalty(given, on_map(plan), arriving)
        if self.training.jacobian_weight > 0 and self._draws_penalty(generator):
            from planners.fixed_points import jacobian_penalty

            penalty = jacobian_penalty(plan.step, plan.solution.value, generator)
            loss = loss + self.training.jacobian_weight * penalty
        return plan, loss

    def _draws_penalty(self, generator: torch.Generator) -> bool:
        return bool(torch.rand((), generator=generator) < self.training.jacobian_frequency)

    def _cross_entropy(self, logits: Tensor, inputs: Inputs) -> Tensor:
        if self.training.labels == "path":
            return path_cross_entropy(logits, inputs, self.moves)
        return cross_entropy(logits, inputs, one_hot=self.training.labels == "one_hot")

    def test(self, problems: ProblemSource) -> Evaluation:
        """Return how the checkpoint that `tested_checkpoint` names does on `problems`."""
        with phase("test"):
            if self.training.tested_checkpoint == "last" or self._best is None:
                return self._evaluate(problems)
            last = {name: tensor.detach().clone() for name, tensor in self.planner.state_dict().items()}
            self.planner.load_state_dict(self._best["planner"])
            try:
                return self._evaluate(problems)
            finally:
                self.planner.load_state_dict(last)

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
