"""What a planner and its training are, as data; needs no torch, so a sweep can be planned without it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, SerializeAsAny, ValidationError, model_validator

from datagen.moved import attributes
from datagen.problem import Moves
from datagen.spec import Spec, first_problem, nearest
from planners.options import LARGEST, MOST_CHANNELS, NoOptions
from planners.registry import ADJOINTS, OPTIONS, SOLVERS
from planners.registry import Entry as Entry

__getattr__ = attributes("planners.specs", "planners.options")


class PlannerSpec(Spec):
    """A planner: a core (one Bellman-like step), a forward solver, and an adjoint.

    The options of the core may stand beside the other fields: `PlannerSpec(core="vin", q_channels=50)` is
    `PlannerSpec(core="vin", options={"q_channels": 50})`.

    Attributes:
        core: The step v' = f(v, r; theta); a name in `CORES`.
        options: The core's own sizes and choices.
        adjoint: How gradients pass through the solution; a name in `ADJOINTS`.
        adjoint_options: The adjoint's own choices.
        solver: Forward solver; a name in `SOLVERS`. The unrolled adjoint differentiates forward iteration only.
        solver_options: The forward solver's own choices.
        solver_bwd: Solver of the adjoint system (Eq. 6), used by the implicit adjoint.
        solver_bwd_options: Its own choices.
        k_fwd: Most forward steps (K_layer when unrolled, which runs exactly as many).
        k_bwd: Most vector-Jacobian products of the adjoint solve (section 4.3).
        tolerance: Relative residual at which a sample's forward iteration stops; 0 runs exactly k_fwd steps.
        tolerance_bwd: The same for the adjoint system.
        mapper: What turns an observation into a map; a name in `MAPPERS`.
        mapper_options: The mapper's own sizes.
        wrap: True where the map is a torus.
        channels: Channels of the core's input beside map and goal: the observation of a task that has one per cell and
            no mapper.
    """

    core: str = "vin"
    options: SerializeAsAny[Spec] = NoOptions()
    adjoint: str = "implicit"
    adjoint_options: SerializeAsAny[Spec] = NoOptions()
    solver: str = "forward"
    solver_options: SerializeAsAny[Spec] = NoOptions()
    solver_bwd: str = "anderson"
    solver_bwd_options: SerializeAsAny[Spec] = NoOptions()
    k_fwd: int = Field(30, ge=1, lt=10**9)
    k_bwd: int = Field(15, ge=1, lt=10**9)
    tolerance: float = Field(1e-4, ge=0.0, le=LARGEST)
    tolerance_bwd: float = Field(1e-4, ge=0.0, le=LARGEST)
    mapper: str = "identity"
    mapper_options: SerializeAsAny[Spec] = NoOptions()
    wrap: bool = False
    channels: int = Field(0, ge=0, le=MOST_CHANNELS)

    @model_validator(mode="before")
    @classmethod
    def _resolve_options(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        data = dict(data)
        for field, (registry, options) in OPTIONS.items():
            name = data.get(field, cls.model_fields[field].default)
            if not isinstance(name, str) or name not in registry:
                raise ValueError(f"{field}: unknown name {name!r}; {nearest(str(name), registry)}")
            options_type = registry[name].options_type
            given = data.get(options, {})
            given = dict(given) if isinstance(given, Mapping) else given
            if isinstance(given, Spec) and not isinstance(given, options_type):
                given = given.model_dump(exclude_defaults=True)
            if field == "core" and isinstance(given, dict):
                beside = [key for key in data if key not in cls.model_fields and key in options_type.model_fields]
                given |= {key: data.pop(key) for key in beside}
                unknown = [key for key in data if key not in cls.model_fields]
                if unknown:
                    known = [*cls.model_fields, *options_type.model_fields]
                    raise ValueError(f"unknown field {unknown[0]!r} for core {name!r}; {nearest(unknown[0], known)}")
            try:
                data[options] = given if isinstance(given, Spec) else options_type.model_validate(given)
            except ValidationError as error:
                raise ValueError(f"{field} {name!r}: {first_problem(error)}") from None
        return data

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.adjoint == "unrolled" and self.solver != "forward":
            raise ValueError(
                f"adjoint 'unrolled' differentiates through forward iteration; solver {self.solver!r} needs "
                "an implicit adjoint"
            )
        if SOLVERS[self.solver].linear_only:
            raise ValueError(f"solver {self.solver!r} solves linear systems, as the adjoint's: name it in solver_bwd")
        cores = SOLVERS[self.solver].cores
        if cores and self.core not in cores:
            raise ValueError(f"solver {self.solver!r} works with the cores {', '.join(cores)}; got core {self.core!r}")
        backward = SOLVERS[self.solver_bwd]
        if backward.cores and self.core not in backward.adjoint_cores:
            raise ValueError(
                f"solver_bwd {self.solver_bwd!r} iterates values, not the linear system of the adjoint of {self.core!r}"
            )
        if backward.adjoint_after and self.solver not in backward.adjoint_after:
            raise ValueError(
                f"solver_bwd {self.solver_bwd!r} works after the solvers {', '.join(backward.adjoint_after)}; "
                f"got solver {self.solver!r}"
            )
        check = getattr(self.options, "check_mapper", None)
        if check is not None and self.mapper != "identity":
            check(self.mapper, self.adjoint)
        for field in ADJOINTS[self.adjoint].ignores:
            if getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"{field} means nothing with adjoint {self.adjoint!r}: leave it out")
        return self

    @property
    def compiled_solver(self) -> str:
        """Name of a solver that it uses and that works on a CPU alone, with kernel "auto"; empty where none does."""
        backward = () if "solver_bwd" in ADJOINTS[self.adjoint].ignores else (self.solver_bwd,)
        return next((name for name in (self.solver, *backward) if SOLVERS[name].compiled_only), "")

    def check_moves(self, moves: Moves) -> None:
        """Refuse moves that the core can't plan for, where its options have a `check_moves` that does.

        Raises:
            ValueError: The core can't plan for them; says what it can.
        """
        check = getattr(self.options, "check_moves", None)
        if check is not None:
            check(moves)


class TrainingSpec(Spec):
    """How a planner is trained and tested (section 5.1 and D.2).

    Attributes:
        epochs: Passes over the training maps.
        batch_size: Maps per step; the last partial batch is dropped.
        optimizer: "rmsprop" (the paper's) or "adam".
        learning_rate: Step size at the first epoch.
        learning_rate_decay: Factor on the step size after each epoch.
        epsilon: The optimiser's denominator offset.
        gradient_clip: Largest 2-norm of the whole gradient; 0 switches clipping off.
        labels: "one_hot" (one optimal action per cell, all cells), "all_optimal" (uniform over all optimal actions,
            cells that can reach the goal), or "path" (one optimal action per cell, the cells of one shortest way from
            the problem's start alone: for tasks whose problems name one).
        discount_from: A core with a discount gamma < 1 plans each training step with one drawn between this and gamma,
            1 - gamma log-uniform, and is tested with gamma. At distance d a goal's pull is gamma^d: less of it in
            training is like larger maps. None draws nothing.
        jacobian_weight: Weight of the squared Frobenius norm of df/dv at the equilibrium (C.2, E.5).
        jacobian_frequency: Share of the steps that add the penalty.
        mapper_pretrain_epochs: Epochs in which mapper and planner learn apart (D.1).
        mapper_weight: Weight of the map's cross-entropy in the loss once they learn jointly. With 0, the paper's, the
            mapper owes the map nothing from then on.
        mapper_learning_rate: The mapper's own step size at the first epoch; None is the planner's.
        tested_checkpoint: "last" epoch, or the "best" on validation.
        precision: "float32", or "bfloat16" for training steps that compute in half precision where torch's autocast
            allows; weights, validation and tests stay in float32. A solve then gets no nearer to its fixed point than
            the result's `residual_floor`.
        most_steps: Training steps after which training ends, in the middle of an epoch if need be; None for no such
            limit. Of several limits, `epochs` among them, the first that is reached ends training.
        most_seconds: The same for the wall time of training steps; what comes out then depends on the machine.
        most_applications: The same for applications of f per sample, forward and backward
            (`planners.training.budget.applications`).
    """

    # UNSPECIFIED: epsilon, the clip, and which optimal action is the label; as in the authors' code.
    epochs: int = Field(60, ge=0, lt=10**9)
    batch_size: int = Field(32, ge=1, lt=10**9)
    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    learning_rate: float = Field(1e-3, gt=0.0, le=LARGEST)
    learning_rate_decay: float = Field(1.0, gt=0.0, le=1.0)
    epsilon: float = Field(1e-6, gt=0.0, le=LARGEST)
    gradient_clip: float = Field(40.0, ge=0.0, le=LARGEST)
    labels: Literal["one_hot", "all_optimal", "path"] = "one_hot"
    discount_from: float | None = Field(None, gt=0.0, lt=1.0)
    jacobian_weight: float = Field(0.0, ge=0.0, le=LARGEST)
    jacobian_frequency: float = Field(0.0, ge=0.0, le=1.0)
    mapper_pretrain_epochs: int = Field(15, ge=0, lt=10**9)
    mapper_weight: float = Field(0.0, ge=0.0, le=LARGEST)
    mapper_learning_rate: float | None = Field(None, gt=0.0, le=LARGEST)
    tested_checkpoint: Literal["last", "best"] = "last"
    precision: Literal["float32", "bfloat16"] = "float32"
    most_steps: int | None = Field(None, ge=1, lt=10**18)
    most_seconds: float | None = Field(None, gt=0.0, le=LARGEST)
    most_applications: float | None = Field(None, gt=0.0, le=LARGEST)

    @model_validator(mode="after")
    def _penalised_at_times(self) -> Self:
        if (self.jacobian_weight > 0) != (self.jacobian_frequency > 0):
            raise ValueError(
                "expected jacobian_weight and jacobian_frequency both above 0 or neither: one alone adds no penalty, "
                f"got {self.jacobian_weight:g} and {self.jacobian_frequency:g}"
            )
        return self
