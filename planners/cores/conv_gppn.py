"""Gated path planning network with convolutional gates (Lee et al. 2018, as modified in section 4.2 (iii))."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from datagen.shapes import shaped
from planners.cores.layers import convolve, merged, same_conv
from planners.cores.steps import GRUIteration

if TYPE_CHECKING:
    from jaxtyping import Float

    from planners.options import ConvGPPNOptions

# v value (the recurrent state), r reward, u update gate, s reset gate, n candidate


class ConvGPPN(nn.Module):
    """A ConvGRU whose state is the value and whose input is the reward: f(V, R) = ConvGRU(V, R; theta).

    u, s = sigmoid(W_us * [r, v]),  n = tanh(W_n * [r, s v]),  v' = (1 - u) v + u n.

    The reward's part of all three convolutions is the same at every step and is computed once.

    Args:
        options: Sizes.
        wrap: True pads circularly.
        actions: Number of logits per cell.
        in_channels: Channels of the input: map and goal.
    """

    def __init__(self, options: ConvGPPNOptions, *, wrap: bool, actions: int = 4, in_channels: int = 2) -> None:
        super().__init__()
        # DEVIATION(4.2): on the torus the cell pads circularly; the authors' cell pads with zeros even there.
        self.wrap = wrap
        state, size = options.q_channels, options.kernel_size
        self.hidden = same_conv(in_channels, options.hidden_channels, 3, wrap=wrap)
        self.reward = nn.Conv2d(options.hidden_channels, 1, 1, bias=False)
        # UNSPECIFIED: the initial value; as in the authors' code, a convolution of the reward.
        self.initial = same_conv(1, state, size, wrap=wrap, bias=False)
        self.from_reward = same_conv(1, 3 * state, size, wrap=wrap)
        # the bound of torch's own convolutions over all 1 + state input channels, of which these see all but one
        bound = ((1 + state) * size**2) ** -0.5
        self.gates = nn.Parameter(torch.empty(2 * state, state, size, size).uniform_(-bound, bound))
        self.candidate = nn.Parameter(torch.empty(state, state, size, size).uniform_(-bound, bound))
        for parameter in self.from_reward.parameters():
            nn.init.uniform_(parameter, -bound, bound)
        self.head = nn.Conv2d(state, actions, 1, bias=False)

    @shaped
    def rewards(self, x: Float[Tensor, "B in_channels h w"]) -> Float[Tensor, "B 1 h w"]:
        """Return r, [B, 1, h, w]."""
        return convolve(x, *merged(self.hidden.weight, self.hidden.bias, self.reward.weight), wrap=self.wrap)

    @shaped
    def encode(self, x: Float[Tensor, "B in_channels h w"]) -> GRUIteration:
        """Return the step, which starts from a convolution of the reward."""
        r, from_reward = self.rewards(x), self.from_reward
        assert from_reward.bias is not None
        weights = (self.gates, self.candidate, from_reward.weight, from_reward.bias)
        return GRUIteration(self.initial(r), r, *weights, self.wrap, self.head.weight)
