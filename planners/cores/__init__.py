"""One Bellman-like step per file, and what every one of them offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from planners.compiled.conv_gru.autograd import GRUIteration
    from planners.compiled.value_iteration.autograd import ValueIteration


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
class Core(Protocol):
    """A planner core: one step v' = f(v, r; theta), and what goes before and after it. The solver owns the loop.

    Constructed as `Core(options, wrap=..., actions=4, in_channels=2)`, where options is the core's own `Spec`. It must
    accept maps of any size, and a sample's result must not depend on the rest of its batch.
    """

    def encode(self, x: Tensor) -> Injected:
        """Return what every step is given, from x [B, in_channels, h, w] (map and goal channels)."""

    def initial_value(self, r: Injected) -> Tensor:
        """Return v_0, [B, channels, h, w]."""

    def step(self, v: Tensor, r: Injected) -> Tensor:
        """Return v' = f(v, r; theta), of the shape of v."""

    def policy(self, v: Tensor, r: Injected) -> Tensor:
        """Return action logits [B, actions, h, w] at the value v."""


@runtime_checkable
class ValueIterationCore(Core, Protocol):
    """A core whose step is a maximum over linear action values, which compiled kernels can iterate.

    It may have `injected(step)` too, which returns what `encode` returns from the step that is encoded already; without
    it, a step that the compiled loop turns out not to take is encoded again.
    """

    def value_iteration(self, x: Tensor) -> ValueIteration:
        """Return the step for x [B, in_channels, h, w] as data."""

    def read_out(self, step: ValueIteration, v: Tensor) -> Tensor:
        """Return what `policy` returns, from the step and the value v."""


@runtime_checkable
class DiscountedCore(Core, Protocol):
    """A core that weighs what is a step away by a discount, which training may vary (`TrainingSpec.discount_from`)."""

    discount: float


@runtime_checkable
class RegularisedCore(Core, Protocol):
    """A core that has a say in its training: it changes as training goes on, and adds to the loss."""

    def set_progress(self, fraction: float) -> None:
        """Be told, before each epoch, which share of the epochs will be done after it."""

    def penalty(self, r: Injected, v: Tensor, arriving: Tensor) -> Tensor:
        """Return what is added to the loss of a batch.

        Args:
            r: What the step was given.
            v: [B, channels, h, w], the fixed point.
            arriving: bool [B, h, w], cells from which there is a way to the goal.
        """

    def finish(self) -> None:
        """Be told that the last epoch is over; may change the parameters."""


@runtime_checkable
class GRUCore(Core, Protocol):
    """A core whose step is a convolutional GRU on the reward, which a compiled kernel can iterate.

    It may have `injected(step)` too, as a `ValueIterationCore` may.
    """

    def gru_iteration(self, x: Tensor) -> GRUIteration:
        """Return the step for x [B, in_channels, h, w] as data."""

    def policy(self, v: Tensor, r: Injected | None = None) -> Tensor:
        """Return action logits, which depend on the state alone."""
