"""One Bellman-like step per file, and what every core offers.

A core encodes a batch of problems, and what it returns is the step itself: v -> f(v, r; theta). The solver owns the
loop. There are two ways to write one:

- `encode` returns a `CoreStep`, an object that is called. Where that is a `ValueIteration` or a `GRUIteration`
  (`planners.cores.steps`), compiled loops solve it if they can take it.
- `encode` returns `Injected`, and `initial_value`, `step` and `policy` are methods of the core (`MethodCore`): less to
  write where there is nothing to compile.

The function "encoded" gives the step of either.

Begin with `vin.VIN`.

- The paper's: `vin.VIN`, `symvin.SymVIN`, `conv_gppn.ConvGPPN`, `spt.SPT`. Ours: `contractive.Contractive`,
  `reachability.Reachability`, `shortest_path.ShortestPath`.
- Their steps: `steps.ValueIteration`, `steps.GRUIteration`.
- What they are made of: `layers.convolve`, `symmetry.Symmetry`, `steerable.SteerableBasis`, `patterns.LookedUp`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from datagen.shapes import shaped

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


@runtime_checkable
class CoreStep(Protocol):
    """The step v -> f(v, r; theta) of one core on one batch of problems, and what goes before and after it.

    A sample's result must not depend on the rest of its batch.
    """

    def __call__(self, v: Float[Tensor, "B channels h w"]) -> Float[Tensor, "B channels h w"]:
        """Return v' = f(v, r; theta), of the shape of v, in torch's own operations."""

    def take(self, rows: Tensor) -> CoreStep:
        """Return the same step for those samples alone, rows [n]."""

    def initial_value(self) -> Float[Tensor, "B channels h w"]:
        """Return v_0, [B, channels, h, w]."""

    def policy(self, v: Float[Tensor, "B channels h w"]) -> Float[Tensor, "B actions h w"]:
        """Return action logits [B, actions, h, w] at the value v."""


@runtime_checkable
class CompactStep(CoreStep, Protocol):
    """A step in the form in which a compiled loop takes it, with less computed ahead than torch's operations want."""

    def prepared(self) -> CoreStep:
        """Return the same step with all that its applications share computed once, differentiably."""


@runtime_checkable
class Core(Protocol):
    """A planner core, constructed as `Core(options, wrap=..., actions=4, in_channels=2)`; options is its own `Spec`.

    It must accept maps of any size.
    """

    def encode(self, x: Float[Tensor, "B in_channels h w"]) -> Any:
        """Return the `CoreStep` for x [B, in_channels, h, w] (map and goal channels); of a `MethodCore`, `Injected`."""


@dataclass(frozen=True, eq=False)
class Injected:
    """What every step is given beside the value: the reward r of the paper, in the form the step uses it.

    Attributes:
        per_sample: Tensors with one row per sample, [B, ...].
        shared: Tensors that all samples share, such as a filter that is expanded once and used at every step.
    """

    per_sample: tuple[Tensor, ...]
    shared: tuple[Tensor, ...] = ()

    def take(self, indices: Tensor) -> Injected:
        """Return the same for the samples `indices` alone."""
        return Injected(tuple(part.index_select(0, indices) for part in self.per_sample), self.shared)


@runtime_checkable
class MethodCore(Core, Protocol):
    """A core whose `encode` returns `Injected`, and whose step is one of its methods."""

    def initial_value(self, r: Injected) -> Float[Tensor, "B channels h w"]:
        """Return v_0, [B, channels, h, w]."""

    def step(self, v: Float[Tensor, "B channels h w"], r: Injected) -> Float[Tensor, "B channels h w"]:
        """Return v' = f(v, r; theta), of the shape of v."""

    def policy(self, v: Float[Tensor, "B channels h w"], r: Injected) -> Float[Tensor, "B actions h w"]:
        """Return action logits [B, actions, h, w] at the value v."""


@dataclass(frozen=True, eq=False)
class BoundStep:
    """The step of a `MethodCore` on one batch of problems."""

    core: MethodCore
    injected: Injected

    @shaped
    def __call__(self, v: Float[Tensor, "B channels h w"]) -> Float[Tensor, "B channels h w"]:
        """Return f(v, r; theta)."""
        return self.core.step(v, self.injected)

    def take(self, rows: Tensor) -> BoundStep:
        """Return the same step for those samples alone."""
        return BoundStep(self.core, self.injected.take(rows))

    @shaped
    def initial_value(self) -> Float[Tensor, "B channels h w"]:
        """Return v_0."""
        return self.core.initial_value(self.injected)

    @shaped
    def policy(self, v: Float[Tensor, "B channels h w"]) -> Float[Tensor, "B actions h w"]:
        """Return action logits at v."""
        return self.core.policy(v, self.injected)


@runtime_checkable
class CostCore(Core, Protocol):
    """A core that plans over costs of cells, given or of a network's making."""

    def encode_with_costs(self, x: Tensor, costs: Tensor) -> CoreStep:
        """Return the step for x, as `encode` takes it, and what entering each cell costs, [B, 1, h, w], at least 0."""


@shaped
def encoded(
    core: Any, x: Float[Tensor, "B in_channels h w"], costs: Float[Tensor, "B 1 h w"] | None = None
) -> CoreStep:
    """Return the step of a core, written in either way, for x [B, in_channels, h, w].

    Raises:
        ValueError: There are costs, and the core has no place for them.
    """
    if costs is not None:
        if not isinstance(core, CostCore):
            raise ValueError(
                f"costs: core {type(core).__name__} learns what moves cost and takes no costs of cells; "
                "core 'reachability' does"
            )
        return core.encode_with_costs(x, costs)
    found = core.encode(x)
    if isinstance(found, CoreStep):
        return found
    if hasattr(core, "read_out"):
        warnings.warn(
            f"core {type(core).__name__}: value_iteration() and read_out() are no longer called, and the step runs in "
            "torch's own operations; return the ValueIteration from encode(), with its head, to have it compiled",
            DeprecationWarning,
            stacklevel=2,
        )
    return BoundStep(core, found)


@runtime_checkable
class DiscountedCore(Core, Protocol):
    """A core that weighs what is a step away by a discount, which training may vary (`TrainingSpec.discount_from`)."""

    discount: float


@runtime_checkable
class RegularisedCore(Core, Protocol):
    """A core that has a say in its training: it changes as training goes on, and adds to the loss."""

    def set_progress(self, fraction: float) -> None:
        """Be told, before each epoch, which share of the epochs will be done after it."""

    def penalty(self, r: Any, v: Float[Tensor, "B channels h w"], arriving: Bool[Tensor, "B h w"]) -> Float[Tensor, ""]:
        """Return what is added to the loss of a batch.

        Args:
            r: What `encode` returned.
            v: [B, channels, h, w], the fixed point.
            arriving: bool [B, h, w], cells from which there is a way to the goal.
        """

    def finish(self) -> None:
        """Be told that the last epoch is over; may change the parameters."""
