"""A planner: mapper, core, solver and adjoint put together."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, backends, cat, is_autocast_enabled, nn, where

from datagen.problem import ACTIONS
from datagen.shapes import shaped, shaped_last
from planners.compiled.loops import fixed_point as solve_compiled
from planners.compiled.loops import policy, unsupported
from planners.compiled.on_chip.solver import on_chip
from planners.compiled.solvers import GaussSeidel
from planners.cores import CompactStep, Core, CoreStep, encoded
from planners.fixed_points import Solution
from planners.registry import ADJOINTS, CORES, MAPPERS, SOLVERS, named

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

    from planners.specs import PlannerSpec


KERNELS = ("auto", "reference")
DEAREST = 1e30
"""The most that entering a cell may cost: sums of more have no place in float32."""


@shaped
@dataclass(frozen=True, eq=False)
class Plan:
    """What a planner finds for a batch of problems.

    Attributes:
        logits: [B, actions, h, w] action logits per cell.
        solution: The fixed point: its value, residuals and step counts per sample.
        step: The function whose fixed point it is, v -> f(v, r; theta), in torch's own operations.
        kernel: "compiled", "triton", or "reference" and why.
        map_logits: [B, 1, h, w] logit that a cell is free, where a mapper made the map; None where it was given.
    """

    logits: Float[Tensor, "B actions h w"]
    solution: Solution
    step: CoreStep
    kernel: str
    map_logits: Float[Tensor, "B 1 h w"] | None = None


class Planner(nn.Module):
    """Plans on a grid by solving v* = f(v*, r; theta) and reading a policy off v* (section 4.2, Figure 3).

    Runs on maps of any size, on the device and in the dtype of its parameters.

    Args:
        core: The step and its encoder and head.
        mapper: Makes map logits from an observation.
        solver: Forward solver.
        adjoint: How gradients pass through the solution.
        kernel: "auto" takes a compiled loop where there is one for core, solver, adjoint and device; "reference" never.
        channels: Further channels of the core's input, which the observation is then; see `inputs`.

    Raises:
        ValueError: If there is no such kernel.
    """

    def __init__(
        self, core: Core, mapper: nn.Module, solver: Any, adjoint: Any, kernel: str = "auto", channels: int = 0
    ) -> None:
        super().__init__()
        if kernel not in KERNELS:
            raise ValueError(f"kernel: expected {' or '.join(map(repr, KERNELS))}, got {kernel!r}")
        self.core = core
        self.mapper = mapper
        self.solver = solver
        self.adjoint = adjoint
        self.kernel = kernel
        self.channels = channels

    @shaped_last
    def inputs(
        self,
        map: Float[Tensor, "B 1 h w"] | None,
        goal: Float[Tensor, "B 1 h w"],
        observation: Shaped[Tensor, "B ..."] | None,
    ) -> tuple[Float[Tensor, "B channels h w"], Float[Tensor, "B 1 h w"] | None]:
        """Return what the core encodes, and the map's logits where the mapper made it of the observation.

        Args:
            map: As `plan` takes it.
            goal: As `plan` takes it.
            observation: As `plan` takes it.

        Returns:
            [B, 2 + channels, h, w], map, goal and further channels, 0..1; and [B, 1, h, w] or None.

        Raises:
            ValueError: If shapes do not fit, or something is missing.
        """
        _check("goal", goal)
        map_logits = None
        if observation is not None and not self.channels:
            map_logits = self.mapper(observation, (goal.shape[-2], goal.shape[-1]))
            map = map_logits.sigmoid()
        if map is None:
            raise ValueError("map: expected a tensor [B, 1, h, w] or an observation for the mapper, got neither")
        _check("map", map)
        if map.shape != goal.shape:
            raise ValueError(f"map and goal must have one shape, got {tuple(map.shape)} and {tuple(goal.shape)}")
        if not self.channels:
            return cat([map, goal], dim=1), map_logits
        expected = (len(map), self.channels, *map.shape[2:])
        if observation is None or observation.shape != expected:
            found = None if observation is None else tuple(observation.shape)
            raise ValueError(f"observation: expected uint8 {expected}, the channels beside map and goal, got {found}")
        return cat([map, goal, observation.to(goal) / 255], dim=1), None

    @shaped_last
    def plan(
        self,
        map: Float[Tensor, "B 1 h w"] | None,
        goal: Float[Tensor, "B 1 h w"],
        observation: Shaped[Tensor, "B ..."] | None = None,
        *,
        k_fwd: int | None = None,
        costs: Tensor | None = None,
    ) -> Plan:
        """Return the action logits with the fixed point they came from.

        Args:
            map: [B, 1, h, w] floats, 1 = free and 0 = obstacle (or the probability that a cell is free). Not looked at
                when there is an observation.
            goal: [B, 1, h, w] floats, 1 at the goal.
            observation: What the mapper sees instead of the map, [B, ...]; None plans on the map itself. Of a planner
                with further channels: those, [B, channels, h, w], 0..255.
            k_fwd: Most forward steps, this time; None is the planner's own number.
            costs: [B, 1, h, w] floats, what entering each cell costs, at least 0; those of obstacles do not count.
                Gradients flow to them. For cores that plan over given costs.

        Returns:
            Logits, solution and, with an observation, the map's logits.

        Raises:
            ValueError: If shapes do not fit, neither map nor observation is given, the core takes no costs, or a free
                cell's is none that can be.
        """
        x, map_logits = self.inputs(map, goal, observation)
        solver = self.solver if k_fwd is None else replace(self.solver, max_steps=k_fwd)
        if costs is not None:
            _check("costs", costs)
            if costs.shape != goal.shape:
                raise ValueError(
                    f"costs and goal must have one shape, got {tuple(costs.shape)} and {tuple(goal.shape)}"
                )
            costs = _entering(costs, x[:, :1] > 0)
        step = encoded(self.core, x, costs)
        reason = self._refused(x) or unsupported(step, solver, self.adjoint)
        if reason is None:
            value, solution = solve_compiled(step, solver=solver, adjoint=self.adjoint)
            return Plan(policy(step, value), solution, step, "compiled", map_logits)
        if isinstance(solver, GaussSeidel):
            raise ValueError(solver.refusal(reason))
        if isinstance(step, CompactStep):
            step = step.prepared()
        kernel = f"reference: {reason}"
        if not self._refused(x) and (on_a_chip := on_chip(step, solver, self.adjoint)) is not None:
            solver, kernel = on_a_chip, "triton"
        # Not `fixed_point`, which warns where K steps do not reach the tolerance: here they are the plan.
        solution = self.adjoint.solve(step, step.initial_value(), solver)
        return Plan(step.policy(solution.value), solution, step, kernel, map_logits)

    def _refused(self, x: Tensor) -> str:
        """Return why no kernel is to be tried, empty where one is."""
        if self.kernel == "reference":
            return "asked for"
        return "autocast computes in half precision" if is_autocast_enabled(x.device.type) else ""

    def recording(self, **changes: Any) -> Planner:
        """Return this planner, its weights shared, with solvers that keep the residual of each step.

        Args:
            changes: Fields of both solvers to change besides, say `tolerance=0.0` to run all their steps.
        """
        twin = copy(self)
        twin.solver = replace(self.solver, record=True, **changes)
        if hasattr(self.adjoint, "solver"):
            twin.adjoint = replace(self.adjoint, solver=replace(self.adjoint.solver, record=True, **changes))
        return twin

    @shaped_last
    def forward(
        self,
        map: Float[Tensor, "B 1 h w"] | None,
        goal: Float[Tensor, "B 1 h w"],
        observation: Shaped[Tensor, "B ..."] | None = None,
    ) -> Float[Tensor, "B actions h w"]:
        """Return action logits [B, actions, h, w]; see `plan`."""
        return self.plan(map, goal, observation).logits


def _check(name: str, x: Tensor) -> None:
    if x.ndim != 4 or x.shape[1] != 1 or not x.is_floating_point():
        raise ValueError(f"{name}: expected a float tensor [B, 1, h, w], got {x.dtype} {tuple(x.shape)}")


def _entering(costs: Tensor, free: Tensor) -> Tensor:
    """Return costs, 0 on obstacles: one below 0 could be saved again and again, and a solve would have no end."""
    wrong = (free & ~((costs >= 0) & (costs <= DEAREST))).nonzero()
    if len(wrong):
        sample, _, row, column = wrong[0].tolist()
        cost = float(costs[sample, 0, row, column])
        raise ValueError(
            f"costs: expected finite ones from 0 to {DEAREST:g} on free cells, got {cost:g} at {(row, column)} of map "
            f"{sample}"
        )
    return where(free, costs, 0)


def ieee_float32() -> None:
    """Have GPUs multiply float32 as float32, in this process: torch lets convolutions round to TF32 by default.

    TF32 keeps 10 of the 23 bits. Steps that differ by less than that are then equal: an iteration "converges" early,
    with a residual of exactly 0 and a value that is a percent off, and says nothing.
    """
    backends.cudnn.allow_tf32 = False
    backends.cuda.matmul.allow_tf32 = False


def build_planner(spec: PlannerSpec, *, actions: int = len(ACTIONS), kernel: str = "auto") -> Planner:
    """Return a freshly initialised planner (from torch's global random state); see `ieee_float32` for what that sets.

    Args:
        spec: What to build.
        actions: Number of logits per cell.
        kernel: "auto" or "reference"; see `Planner`.

    Returns:
        A planner in float32 on the CPU; move and cast it as any module.
    """
    ieee_float32()
    core = named(CORES[spec.core])(spec.options, wrap=spec.wrap, actions=actions, in_channels=2 + spec.channels)
    mapper = named(MAPPERS[spec.mapper])(spec.mapper_options, wrap=spec.wrap)
    solver = _solver(spec.solver, spec.k_fwd, spec.tolerance, vars(spec.solver_options))
    adjoint_type = named(ADJOINTS[spec.adjoint])
    options = dict(vars(spec.adjoint_options))
    known = {field.name for field in fields(adjoint_type)}
    if "solver" in known:
        options["solver"] = _solver(spec.solver_bwd, spec.k_bwd, spec.tolerance_bwd, vars(spec.solver_bwd_options))
    if "inexact" in known:
        options["inexact"] = True  # K_bwd steps and no more, solved or not, are what is trained by (section 4.3)
    return Planner(core, mapper, solver, adjoint_type(**options), kernel, spec.channels)


def _solver(name: str, max_steps: int, tolerance: float, options: dict[str, Any]) -> Any:
    """Return a solver that stops by the residual rule, the paper's, where it has a choice."""
    kind = named(SOLVERS[name])
    if "rule" in {field.name for field in fields(kind)}:
        options = options | {"rule": "residual"}
    return kind(max_steps=max_steps, tolerance=tolerance, **options)
