"""Value Iteration Network (Tamar et al. 2016; section 3 of the paper)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from datagen.shapes import shaped
from planners.cores.layers import convolve, merged, same_conv
from planners.cores.steps import ValueIteration

if TYPE_CHECKING:
    from jaxtyping import Float

    from planners.options import VINOptions

# v value, r reward, q action values, w_r and w_v the filters of the reward and of the value in Q


class VIN(nn.Module):
    """Value iteration with learned rewards and learned transition filters, shared by all cells.

    Q_a = W_r,a * r + W_v,a * v,  v' = max_a Q_a (both halves of Eq. 1; v' = f(v, r) is Eq. 2).

    A solver's K steps are K applications of this step (the authors' explicit VIN applies it K - 1 times). The reward's
    part of Q is the same at every step and is computed once. Where actions tie, the gradient of the
    maximum goes to one of them (see `planners.cores.layers.maximum`).

    Args:
        options: Sizes and temperature.
        wrap: True pads circularly.
        actions: Number of logits per cell.
        in_channels: Channels of the input: map and goal.
    """

    def __init__(self, options: VINOptions, *, wrap: bool, actions: int = 4, in_channels: int = 2) -> None:
        super().__init__()
        self.wrap = wrap
        self.temperature = options.temperature
        size = options.kernel_size
        # DEVIATION(authors): K is the applications of this step; the authors' explicit planners make K - 1.
        # UNSPECIFIED: Eq. 1 has a reward per action, R_a, and no filter of it. As in the authors' code, one reward map
        # is spread over the actions by a filter, R_a = W_r,a * r.
        # UNSPECIFIED: biases and the encoder's kernel size; as in the literature's VIN, 3x3 and the first layer alone
        # has a bias, and no activation stands between the two layers of the encoder.
        self.hidden = same_conv(in_channels, options.hidden_channels, 3, wrap=wrap)
        self.reward = nn.Conv2d(options.hidden_channels, 1, 1, bias=False)
        self.w_r = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(options.q_channels, 1, size, size), a=5**0.5))
        self.w_v = nn.Parameter(torch.zeros(options.q_channels, 1, size, size))
        self.head = nn.Conv2d(options.q_channels, actions, 1, bias=False)

    @shaped
    def rewards(self, x: Float[Tensor, "B in_channels h w"]) -> Float[Tensor, "B 1 h w"]:
        """Return r, [B, 1, h, w]."""
        return convolve(x, *merged(self.hidden.weight, self.hidden.bias, self.reward.weight), wrap=self.wrap)

    @shaped
    def encode(self, x: Float[Tensor, "B in_channels h w"]) -> ValueIteration:
        """Return the step, whose head is linear in Q."""
        return ValueIteration(self.rewards(x), self.w_r, self.w_v, self.wrap, self.temperature, self.head.weight)
