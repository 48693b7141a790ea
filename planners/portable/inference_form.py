"""Map and goal to logits, actions and steps: a planner as one module whose loop a graph can hold."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop
from torch.nn import functional

from datagen.problem import Moves
from planners.compiled.solvers import BestFirst
from planners.cores import CompactStep, CoreStep, encoded
from planners.cores.reachability import ReachabilityStep, floor_of
from planners.fixed_points import ForwardIteration, Unrolled
from planners.fixed_points.stopping import ResidualRule, relative_residual, rows
from planners.mappers import Identity
from planners.planner import Planner
from planners.trial_files import PlannerError

INPUTS = ("map", "goal", "max_steps")
OUTPUTS = ("logits", "actions", "steps", "residual")
FEWEST_CELLS = 3
"""Rows and columns of a map at least: on the torus a filter may reach round it once and no more."""

_FINER = 100.0
"""Where the planner's own solver is another, the loop stops at so much less than the planner's tolerance: two solvers
are each off by some of it, in directions of their own."""


@dataclass(frozen=True)
class StepRule:
    """How many steps the loop takes.

    Attributes:
        own: Most steps, on maps as in training.
        per_row: Most steps per row of the map, or column if there are more, where that is more; None for no such rule.
        tolerance: Relative residual at which a sample stops; None never stops, as an unrolled planner does in training.
        cells: As many steps as the map has cells are allowed, whatever the rest says: a solver other than forward
            iteration reaches far in a step.
    """

    own: int
    per_row: float | None
    tolerance: float | None
    cells: bool

    @classmethod
    def of(cls, planner: Planner, per_row: float | None) -> StepRule:
        """Return the rule by which the loop does what the planner's own solver does."""
        own = int(planner.solver.max_steps)
        if isinstance(planner.adjoint, Unrolled):
            return cls(own, per_row, None, False)
        if isinstance(planner.solver, ForwardIteration):
            return cls(own, per_row, planner.solver.tolerance or None, False)
        exact = isinstance(planner.solver, BestFirst)
        return cls(own, per_row, 0.0 if exact else planner.solver.tolerance / _FINER, True)

    def __str__(self) -> str:
        most = f"at most {self.own}"
        if self.per_row is not None:
            most += f", or {self.per_row:g} per row (or column, if there are more) on larger maps"
        if self.cells:
            most += ", or as many as the map has cells"
        if self.tolerance is None:
            return most.replace("at most", "exactly", 1)
        return f"{most}; a map stops where ||f(v) - v|| / (1e-5 + ||f(v)||) <= {self.tolerance:g}"


class InferenceForm(nn.Module):
    """A planner that takes a batch of maps and goals and follows the rules of `RoutePlanner.solve` by itself.

    Its loop is forward iteration, v' = f(v), each sample until it stops, and ends when all have. A map with free cells
    at its edge has the whole batch planned inside a ring of obstacles, as `planners.edge.plan_walled` does it. The core
    `reachability` iterates in float64, as its own solver does.

    Args:
        planner: The planner, on the CPU; it stays as it is.
        moves: What its actions do.
        steps_per_row: Most forward steps per row; None for no such rule.
        rings: False leaves the ring to who calls, so that sizes follow from the map's alone.

    Raises:
        PlannerError: It needs more than a map and a goal.
    """

    def __init__(self, planner: Planner, moves: Moves, steps_per_row: float | None, *, rings: bool = True) -> None:
        super().__init__()
        if planner.channels or moves.links or not isinstance(planner.mapper, Identity):
            raise PlannerError(
                "a graph is written of planners that are given map and goal; this one reads "
                + (f"{planner.channels} further channels" if planner.channels else "observations")
            )
        self.core = _settled(planner.core)
        self.walled = rings and not moves.wrap
        self.rule = StepRule.of(planner, steps_per_row)

    def forward(self, map: Tensor, goal: Tensor, max_steps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Plan.

        Args:
            map: float32 [B, 1, h, w], 1 = free and 0 = obstacle.
            goal: float32 [B, 1, h, w], 1 at the goal and 0 elsewhere.
            max_steps: int64 [], most steps; 0 takes the planner's own rule.

        Returns:
            Logits float32 [B, actions, h, w], actions int64 [B, h, w], steps int64 [B], residual float32 [B].
        """
        height, width = map.shape[-2:]
        bound, ring = self._bound(map, max_steps), 0
        if self.walled:
            ring = ring_of(map)
            map, goal = (functional.pad(x, (ring, ring, ring, ring)) for x in (map, goal))
        step = _prepared(self.core, torch.cat([map, goal], 1))
        value, steps, residual = self._iterated(step, bound)
        logits = step.policy(value)
        if self.walled:
            logits = logits.narrow(2, ring, height).narrow(3, ring, width)
        return logits, logits.argmax(1), steps, residual

    def _bound(self, map: Tensor, max_steps: Tensor) -> Tensor:
        """Return the most steps, int64 []."""
        # Sizes as tensors: what a loop compares may be no plain number of an unknown size. There may be no map.
        height, width = (map.new_ones(size).sum().double() for size in map.shape[-2:])
        most = torch.full_like(max_steps, self.rule.own)
        if self.rule.per_row is not None:
            each = self.rule.per_row * torch.maximum(height, width)
            # `trial_files.most_steps` rounds to six digits first, so that 60 / 15 * 15 is 60 and not one more.
            most = torch.maximum(most, (each - 5e-7).ceil().to(torch.int64))
        if self.rule.cells:
            most = torch.maximum(most, (height * width).to(torch.int64))
        return torch.where(max_steps > 0, max_steps, most)

    def _iterated(self, step: CoreStep, bound: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return value, steps [B] and residual [B]; the last step is for all, as `Implicit.solve` takes it."""
        start = step.initial_value().clone(memory_format=torch.contiguous_format)
        rule = ResidualRule(self.rule.tolerance or 0.0)
        first = rule.judge(start, step(start))  # from here on it knows above which size a sample has diverged

        def going(k: Tensor, v: Tensor, steps: Tensor, live: Tensor) -> Tensor:
            return (k < bound - 1) & live.any()

        def body(k: Tensor, v: Tensor, steps: Tensor, live: Tensor) -> tuple[Tensor, ...]:
            for size in v.shape[2:]:
                torch._check(size >= 1)  # of a map in a ring that is not known yet; its product is asked for by itself
            torch._check(v.shape[-2] * v.shape[-1] != 0)
            image = step(v).contiguous()
            after = steps + live
            if self.rule.tolerance is None:
                return k + 1, torch.where(rows(live, v), image, v), after, live.clone()
            verdict = rule.judge(v, image)
            moving = live & ~verdict.diverged
            # A tolerance of 0, which that rule never meets, is met here where a step changes nothing.
            done = verdict.residual <= self.rule.tolerance
            return k + 1, torch.where(rows(moving, v), image, v), after, moving & ~done

        steps = torch.zeros_like(first.residual, dtype=torch.int64)
        live = torch.ones_like(steps, dtype=torch.bool)
        state: tuple[Tensor, ...] = (torch.zeros_like(bound), start, steps, live)
        if torch.compiler.is_exporting():
            state = while_loop(going, body, state)
        else:
            while going(*state):
                state = body(*state)
        value, steps = state[1:3]
        last = step(value)
        return last, steps + 1, relative_residual(value, last).float()


def _settled(core: Any) -> nn.Module:
    """Return a copy whose buffers of one number are plain numbers: settings, by which a graph can't choose its way."""
    own: nn.Module = copy.deepcopy(core)
    for part in own.modules():
        for name, buffer in list(part.named_buffers(recurse=False)):
            if buffer.ndim == 0:
                delattr(part, name)
                setattr(part, name, buffer.item())
    return own.requires_grad_(False)


def ring_of(map: Tensor) -> Any:
    """Return 1 where a map has a free cell at its edge, else 0: how wide a ring of obstacles goes round the batch."""
    edge = torch.cat([map[:, :, [0, -1], :].flatten(1), map[:, :, :, [0, -1]].flatten(1)], 1)
    ring = (edge > 0).any().to(torch.int64).item()
    torch._check(ring >= 0)
    torch._check(ring <= 1)
    return ring


def _prepared(core: Any, x: Tensor) -> CoreStep:
    """Return the step in the form that a loop in torch's own operations takes."""
    step = encoded(core, x)
    if isinstance(step, ReachabilityStep):
        floor = x.new_full((1, 1, 1, 1), floor_of(x), dtype=torch.float64)
        goal = torch.where(step.goal == 0, torch.zeros_like(floor), floor)
        return replace(step, given=step.moves.double(), goal=goal, taps=step.taps.double(), floor=floor)
    return step.prepared() if isinstance(step, CompactStep) else step
