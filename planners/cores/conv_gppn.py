"""Gated path planning network with convolutional gates (Lee et al. 2018, as modified in section 4.2 (iii))."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from planners.cores import Injected
from planners.cores.layers import convolve, merged, same_conv

if TYPE_CHECKING:
    from planners.compiled.conv_gru.autograd import GRUIteration
    from planners.specs import ConvGPPNOptions

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

    def rewards(self, x: Tensor) -> Tensor:
        """Return r, [B, 1, h, w]."""
        return convolve(x, *merged(self.hidden.weight, self.hidden.bias, self.reward.weight), wrap=self.wrap)

    def gru_iteration(self, x: Tensor) -> GRUIteration:
        """Return the step as data, for the compiled path."""
        from planners.compiled.conv_gru.autograd import GRUIteration

        r, from_reward = self.rewards(x), self.from_reward
        assert from_reward.bias is not None
        return GRUIteration(
            self.initial(r), r, self.gates, self.candidate, from_reward.weight, from_reward.bias, self.wrap
        )

    def encode(self, x: Tensor) -> Injected:
        """Return the initial value [B, state, h, w], and the reward's part of gates and candidate."""
        r = self.rewards(x)
        state = self.candidate.shape[0]
        gates, candidate = self.from_reward(r).split((2 * state, state), dim=1)
        return Injected((self.initial(r), gates, candidate))

    def injected(self, step: GRUIteration) -> Injected:
        """Return what `encode` returns, from the step."""
        return step.injected()

    def initial_value(self, r: Injected) -> Tensor:
        """Return a convolution of the reward, [B, state, h, w]."""
        return r.per_sample[0]

    def step(self, v: Tensor, r: Injected) -> Tensor:
        """Return v', [B, state, h, w]."""
        _, gates, candidate = r.per_sample
        u, s = torch.sigmoid(gates + convolve(v, self.gates, wrap=self.wrap)).chunk(2, dim=1)
        n = torch.tanh(candidate + convolve(s * v, self.candidate, wrap=self.wrap))
        return torch.lerp(v, n, u)

    def policy(self, v: Tensor, r: Injected | None = None) -> Tensor:
        """Return logits, a linear map of each cell's state, [B, actions, h, w]."""
        return self.head(v)
