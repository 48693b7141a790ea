"""Symmetric value iteration network (Zhao et al. 2022; section 4.2 (ii)): VIN with steerable convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from datagen.shapes import shaped
from planners.cores.layers import convolve, maximum, merged
from planners.cores.steerable import SteerableFilter, group_order
from planners.cores.steps import ValueIteration

if TYPE_CHECKING:
    from jaxtyping import Float

    from planners.options import SymVINOptions

# v value, r reward, q action values, w_v the part of Q's filter that reads v; |G| the order of the group

GROWTH_AT_START = 0.45
"""Factor per step by which the value changes at the start, reward left out.

Below 1 the iteration settles; e2cnn's default lies between 1.1 and 2.4. Mean loss over training steps 121 to 160 at
15x15, 40 fields, one seed: 0.50 from a factor of 0.2, 0.48 from 0.45, 0.56 from 0.7.
"""


class SymVIN(nn.Module):
    """Value iteration that commutes with turning and flipping the map: f(V, R) = max_a R_a + SteerableConv(V).

    Reward and value are one regular field each (|G| channels), Q is q_channels regular fields, and the maximum over
    these fields is taken group channel by group channel, which commutes with the group's permutation of channels.
    The filter is expanded from its coefficients once per call of `encode`; a step is a plain convolution and a maximum.
    Where fields tie, the gradient goes to one of them (see `planners.cores.layers.maximum`).

    Args:
        options: Group, sizes, head, initialisation and temperature.
        wrap: True pads circularly.
        actions: Number of logits per cell; 4 with the equivariant head.
        in_channels: Channels of the input: map and goal.

    Raises:
        ValueError: If the equivariant head is asked for other than four actions.
    """

    def __init__(self, options: SymVINOptions, *, wrap: bool, actions: int = 4, in_channels: int = 2) -> None:
        super().__init__()
        if options.equivariant_policy and actions != 4:
            raise ValueError(f"equivariant_policy: expected 4 actions (north, west, south, east), got {actions}")
        self.wrap = wrap
        self.temperature = options.temperature
        group, self.order = options.group, group_order(options.group)
        fields = options.q_channels // self.order if options.fields_divided_by_group else options.q_channels
        hidden, size = options.hidden_channels, options.kernel_size
        # UNSPECIFIED: biases, and the encoder's layers, 3x3 and 1x1 without an activation between them; as VIN's.
        self.hidden = SteerableFilter(group, "trivial", in_channels, "trivial", hidden, 3)
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        # A 1x1 filter from trivial fields to a regular field can but copy its result into all |G| channels. The scale
        # is e2cnn's default for that layer, whose basis vector is |G| entries of 1 / sqrt(|G|).
        self.reward = nn.Parameter(torch.randn(1, hidden, 1, 1) / (hidden * self.order) ** 0.5)
        self.action_filter = SteerableFilter(group, "regular", 2, "regular", fields, size)
        # DEVIATION(5.2): the paper lets SymVIN diverge from "bad initialization"; "library" reproduces that.
        if options.initialisation == "stable":
            self._start_settled()
        self.head: SteerableFilter | nn.Conv2d
        # DEVIATION(authors): the head turns with the map; the authors' code has the plain one by default.
        if options.equivariant_policy:
            self.head = SteerableFilter(group, "regular", fields, "actions", 1, 1)
        else:
            self.head = nn.Conv2d(self.order * fields, actions, 1, bias=False)

    @torch.no_grad()
    def _start_settled(self) -> None:
        """Scale the coefficients that read v so that the value iteration starts out settling."""
        self.action_filter.coefficients[:, 1] *= GROWTH_AT_START / growth_rate(self.filters()[1])

    @shaped
    def rewards(self, x: Float[Tensor, "B in_channels h w"]) -> Float[Tensor, "B 1 h w"]:
        """Return one channel of r, [B, 1, h, w]; the |G| channels of the regular field are equal."""
        return convolve(x, *merged(self.hidden(), self.hidden_bias, self.reward), wrap=self.wrap)

    def filters(self) -> tuple[Tensor, Tensor]:
        """Return the filters of the reward's one channel [q_fields |G|, 1, F, F] and of the value [.., |G|, F, F]."""
        w_r, w_v = self.action_filter().split(self.order, dim=1)
        return w_r.sum(1, keepdim=True), w_v  # the sum stands for the reward's equal channels

    @shaped
    def encode(self, x: Float[Tensor, "B in_channels h w"]) -> ValueIteration:
        """Return the step: a maximum over the fields of Q within each group channel, and a head linear in Q."""
        rewards = self.rewards(x)
        return ValueIteration(rewards, *self.filters(), self.wrap, self.temperature, self.head_filter())

    def head_filter(self) -> Tensor:
        """Return the head's plain filter, [actions, q_fields |G|, 1, 1]."""
        return self.head() if isinstance(self.head, SteerableFilter) else self.head.weight


@torch.no_grad()
def growth_rate(w_v: Tensor) -> float:
    """Return by what factor per step v' = max_a W_v,a * v grows on a torus, once its shape has settled.

    The map is positively homogeneous, so this is power iteration.

    Args:
        w_v: [fields |G|, |G|, F, F].
    """
    order, side = w_v.shape[1], 2 * w_v.shape[2]
    v = torch.rand(4, order, side, side, dtype=w_v.dtype, device=w_v.device)
    rates = []
    for _ in range(30):
        image = maximum(convolve(v, w_v, wrap=True).unflatten(1, (-1, order)), 1).squeeze(1)
        rates.append(float(image.abs().max() / v.abs().max()))
        v = image / image.abs().max()
    return max(rates[10:])
