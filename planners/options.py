"""What can be chosen about each core, solver, adjoint and mapper, as data."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from datagen.problem import EIGHT, FOUR, Moves
from datagen.spec import Spec

LARGEST = 1e30
"""What float32 still holds, as any number of a spec."""
MOST_CHANNELS, MOST_CELLS = 2**16, 2001
"""More than fits any machine, so that a slip of the pen is refused and not tried."""
LARGEST_DISCOUNT = 1 - 1e-6
"""Nearer to one float32 would make it one: nothing would contract, and a move would cost nothing."""


class NoOptions(Spec):
    """Nothing to choose."""


def _check_odd(kernel_size: int) -> None:
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd so that the map keeps its size, got {kernel_size}")


def _check_tied(group: str, options: Spec) -> None:
    order = {"trivial": 1, "C4": 4, "D4": 8}[group]
    for field in ("hidden_channels", "q_channels"):
        if getattr(options, field) % order:
            raise ValueError(f"{field} must be a multiple of {order}, the order of group {group!r}")


class VINOptions(Spec):
    """Value Iteration Network (Eqs. 1-2); sizes from D.2.

    Attributes:
        hidden_channels: Channels of the layer that reads map and goal.
        q_channels: Latent actions, over which the maximum is taken: channels of Q.
        kernel_size: Cells that a latent action may look over, F x F; odd.
        temperature: 0 is the maximum over actions; T > 0 is T * logsumexp(Q / T).
    """

    hidden_channels: int = Field(150, ge=1, le=MOST_CHANNELS)
    q_channels: int = Field(100, ge=1, le=MOST_CHANNELS)
    kernel_size: int = Field(3, ge=1, le=MOST_CELLS)
    temperature: float = Field(0.0, ge=0.0, le=LARGEST)

    @model_validator(mode="after")
    def _odd_kernel(self) -> Self:
        _check_odd(self.kernel_size)
        return self


class SymVINOptions(VINOptions):
    """VIN with steerable convolutions; `q_channels` counts regular fields of the group (D.2)."""

    group: Literal["C4", "D4", "C8"] = "D4"
    """Quarter turns; quarter turns and flips; eighth turns (which the square grid has only approximately)."""
    equivariant_policy: bool = True
    """True: the head maps into the group's action on {north, west, south, east}. False: a plain 1x1 convolution, as in
    the authors' code, which breaks the equivariance of the whole."""
    fields_divided_by_group: bool = False
    """True: q_channels // (order of the group) fields, as an option of the authors' code has it (100 // 8 = 12)."""
    initialisation: Literal["stable", "library"] = "stable"
    """"stable": the value's filter starts as a contraction. "library": the steerable library's default, with which the
    value iteration starts out divergent."""

    @model_validator(mode="after")
    def _carries_actions(self) -> Self:
        if self.equivariant_policy and self.group == "C8":
            raise ValueError(
                "equivariant_policy: expected false for group 'C8', which has no representation on four actions (a "
                "quarter turn permutes them in a 4-cycle, and a 4-cycle has no real square root); use group 'C4' or "
                "'D4', or equivariant_policy=false"
            )
        if self.fields_divided_by_group and self.q_channels < int(self.group[1]) * (1 + (self.group[0] == "D")):
            raise ValueError(
                f"fields_divided_by_group: q_channels = {self.q_channels} is below the order of group {self.group!r}, "
                "which leaves no field"
            )
        return self

    def check_moves(self, moves: Moves) -> None:
        """Refuse other than four moves, which alone the equivariant head turns into each other."""
        if self.equivariant_policy and len(moves.names) != 4:
            raise ValueError(
                f"equivariant_policy: core 'symvin' turns four moves into each other, and the task has "
                f"{len(moves.names)}; give it equivariant_policy: false, or leave it out of this task"
            )


class ConvGPPNOptions(Spec):
    """Gated path planning network made of ConvGRU cells (section 4.2); sizes from D.2.

    Attributes:
        hidden_channels: Channels of the layer that reads map and goal.
        q_channels: Channels of the recurrent state. The authors' code has 150 here (its state is as wide as its hidden
            layer).
        kernel_size: Cells that a step may look over, F x F; odd.
    """

    hidden_channels: int = Field(150, ge=1, le=MOST_CHANNELS)
    q_channels: int = Field(40, ge=1, le=MOST_CHANNELS)
    kernel_size: int = Field(3, ge=1, le=MOST_CELLS)

    @model_validator(mode="after")
    def _odd_kernel(self) -> Self:
        _check_odd(self.kernel_size)
        return self


class SPTOptions(Spec):
    """Spatial planning transformer (C.1); `layers` = 1 is ID-SPT's tied step.

    The original SPT is `layers=5` with `k_fwd=1` and the unrolled adjoint: one step, a stack of five untied layers.

    Attributes:
        embedding: Numbers per cell that attention works on; a multiple of 4.
        heads: Attention heads, which divide the embedding.
        feedforward: Width of the layer between two attentions.
        layers: Untied layers in one step.
        inject_map: False: the map enters through the initial value alone (the paper). True: its encoding is added at
            every step.
    """

    embedding: int = Field(64, ge=4, le=MOST_CHANNELS, multiple_of=4)
    heads: int = Field(8, ge=1, le=MOST_CHANNELS)
    feedforward: int = Field(512, ge=1, le=MOST_CHANNELS)
    layers: int = Field(1, ge=1, le=MOST_CELLS)
    inject_map: bool = False

    def check_mapper(self, mapper: str, adjoint: str) -> None:
        """Refuse a mapper that no gradient would reach: a fixed point does not depend on where its iteration starts."""
        if not self.inject_map and adjoint != "unrolled":
            raise ValueError(
                f"mapper {mapper!r}: with adjoint {adjoint!r} no gradient would reach it through core 'spt', whose map "
                "enters through the initial value alone; give it inject_map: true, or the adjoint unrolled"
            )

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.embedding % self.heads:
            raise ValueError(f"heads must divide embedding = {self.embedding}, got {self.heads}")
        return self


class ContractiveOptions(Spec):
    """Value iteration that cannot diverge: transition probabilities times a discount below one.

    Attributes:
        hidden_channels: Channels of the encoder.
        q_channels: Latent actions.
        kernel_size: Cells that a latent action may move over, F x F.
        discount: gamma, the contraction factor.
        temperature: 0 is the maximum over actions; T > 0 is T * logsumexp(Q / T).
        advantage_scale: Factor on the advantages that the policy head reads.
        group: Turns and flips over which all filters are tied; "trivial" ties none.
    """

    hidden_channels: int = Field(152, ge=1, le=MOST_CHANNELS)
    q_channels: int = Field(40, ge=1, le=MOST_CHANNELS)
    kernel_size: int = Field(3, ge=1, le=MOST_CELLS)
    discount: float = Field(0.99, gt=0.0, le=LARGEST_DISCOUNT)
    temperature: float = Field(0.0, ge=0.0, le=LARGEST)
    advantage_scale: float = Field(10.0, gt=0.0, le=LARGEST)
    group: Literal["trivial", "C4", "D4"] = "D4"

    @model_validator(mode="after")
    def _possible(self) -> Self:
        _check_odd(self.kernel_size)
        _check_tied(self.group, self)
        return self

    def check_moves(self, moves: Moves) -> None:
        """Refuse other than four moves where they are tied."""
        if self.group != "trivial" and len(moves.names) != 4:
            raise ValueError(
                f"group: core 'contractive' with group {self.group!r} turns four moves into each other, and the task "
                f"has {len(moves.names)}; give it group: trivial"
            )


class ReachabilityOptions(Spec):
    """The largest probability of arriving, when each move survives with a learned probability.

    Attributes:
        hidden_channels: Channels of the encoder.
        q_channels: Latent actions.
        discount: gamma, the survival of a move that nothing hinders.
        advantage_scale: Factor on the log advantages that the policy head reads.
        group: Turns and flips over which all weights are tied; "trivial" ties none. With "C4" and four latent actions
            there is one for each move.
        short_ways: Weight in the loss of mean -log v over the cells that can arrive.
        few_moves: Weight of the mean survival, early in training.
        decided: In the end each move survives for certain or not at all, in each local pattern; False leaves them as
            they are learned, for maps that a mapper makes.
    """

    hidden_channels: int = Field(64, ge=1, le=MOST_CHANNELS)
    q_channels: int = Field(4, ge=1, le=MOST_CHANNELS)
    discount: float = Field(0.99, gt=0.0, le=LARGEST_DISCOUNT)
    advantage_scale: float = Field(30.0, gt=0.0, le=LARGEST)
    group: Literal["trivial", "C4", "D4"] = "C4"
    short_ways: float = Field(0.02, ge=0.0, le=LARGEST)
    few_moves: float = Field(0.1, ge=0.0, le=LARGEST)
    decided: bool = True

    @model_validator(mode="after")
    def _possible(self) -> Self:
        _check_tied(self.group, self)
        return self

    def check_moves(self, moves: Moves) -> None:
        """Refuse moves that no latent action could lead along, and other than four where they are tied."""
        if moves.links or any(max(abs(row), abs(column)) > 1 for row, column in moves.offsets):
            raise ValueError("core 'reachability' moves to neighbouring cells; leave it out of this task")
        if self.group != "trivial" and len(moves.names) != 4:
            raise ValueError(
                f"group: core 'reachability' with group {self.group!r} turns four moves into each other, and the task "
                f"has {len(moves.names)}; give it group: trivial"
            )


class ShortestPathOptions(Spec):
    """Cheapest ways over what the map's cells cost.

    Attributes:
        advantage_scale: Factor on the log advantages that the policy reads, at the end of the training.
        first_scale: The same at its beginning; it grows by equal factors.
    """

    advantage_scale: float = Field(100.0, gt=0.0, le=LARGEST)
    first_scale: float = Field(3.0, gt=0.0, le=LARGEST)

    def check_moves(self, moves: Moves) -> None:
        """Refuse other moves than the four or eight that lead to neighbouring cells, in the order of their rows."""
        if moves.links or moves.offsets not in (FOUR.offsets, EIGHT.offsets):
            raise ValueError(
                "core 'shortest_path' moves to the 4 neighbours of a cell (north, west, south, east) or to all 8, row "
                "by row (datagen.problem.EIGHT); leave it out of this task"
            )


class PanoramaOptions(Spec):
    """Convolutional network from views per cell to a map (D.1); sizes of the observation."""

    views: int = Field(4, ge=1, le=MOST_CELLS)
    """Views per cell."""
    resolution: int = Field(32, ge=20, le=MOST_CELLS)
    """Rows and columns of a view; below 20 nothing is left of it after the two convolutions."""


class UNetOptions(Spec):
    """Residual U-net from a workspace image to a map (D.1)."""

    channels: tuple[int, ...] = (16, 32, 64, 128)
    """Channels per level, finest first; each level below the first halves height and width."""

    @model_validator(mode="after")
    def _levels(self) -> Self:
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"channels: expected at least one positive number, got {self.channels}")
        return self


class TilesOptions(Spec):
    """Convolutional network from a picture of tiles to a map of them."""

    channels: tuple[int, ...] = (16, 32, 32)
    """Channels of the levels, each of which halves rows and columns; what is left is averaged over a tile."""

    @model_validator(mode="after")
    def _levels(self) -> Self:
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"channels: expected at least one positive number, got {self.channels}")
        return self


class AndersonOptions(Spec):
    """Anderson acceleration.

    Attributes:
        depth: Earlier steps that the next one is put together of.
        mixing: Share of the new values in it; 1 takes them whole.
        regularisation: Added to the diagonal of the least squares.
    """

    depth: int = Field(5, ge=1, le=MOST_CELLS)
    mixing: float = Field(1.0, gt=0.0, le=1.0)
    regularisation: float = Field(1e-4, ge=0.0, le=LARGEST)


class MovingAverageOptions(Spec):
    """Iteration from the mean of the latest images.

    Attributes:
        depth: Images that are averaged.
    """

    depth: int = Field(5, ge=1, le=MOST_CELLS)


class BroydenOptions(Spec):
    """Broyden's method.

    Attributes:
        depth: Rank-one updates that are remembered before it starts again.
    """

    depth: int = Field(10, ge=1, le=MOST_CELLS)


class PhantomOptions(Spec):
    """Phantom gradient.

    Attributes:
        steps: Terms of the Neumann series.
        damping: Damping of each term; 1 damps nothing.
    """

    steps: int = Field(5, ge=1, lt=10**9)
    damping: float = Field(1.0, gt=0.0, le=1.0)
