"""Value iteration whose parts are VIN's or those of a contraction, each chosen by itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from planners.cores.layers import convolve, maximum, same_conv
from planners.cores.steps import ValueIteration
from vin_parts import PartsOptions

# v value, r reward, Q action values

DISCOUNT, ADVANTAGE_SCALE = 0.99, 10.0


class VINParts(nn.Module):
    """v' = max_a Q_a, Q_a = (W_r,a * r or r_a) + (W_v,a or gamma P_a) * v, Eqs. 1-2.

    Args:
        options: Which parts.
        wrap: True pads circularly.
        actions: Number of logits per cell.
        in_channels: Channels of the input: map and goal.
    """

    def __init__(self, options: PartsOptions, *, wrap: bool, actions: int = 4, in_channels: int = 2) -> None:
        super().__init__()
        self.wrap, self.options = wrap, options
        width = options.q_channels
        self.hidden = same_conv(in_channels, options.hidden_channels, 3, wrap=wrap)
        self.reward = nn.Conv2d(options.hidden_channels, 1 if options.rewards == "one" else width, 1, bias=False)
        if options.rewards == "one":
            self.w_r = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(width, 1, 3, 3), a=5**0.5))
        free = options.transitions == "free"
        self.w_v = nn.Parameter(torch.zeros(width, 1, 3, 3) if free else torch.randn(width, 1, 3, 3))
        self.head = nn.Conv2d(width, actions, 1, bias=False)

    def rewards(self, x: Tensor) -> Tensor:
        """Return the reward's part of Q, [B, q_channels, h, w]."""
        hidden = self.hidden(x)
        r = self.reward(hidden.relu() if self.options.encoder == "relu" else hidden)
        return convolve(r, self.w_r, wrap=self.wrap) if self.options.rewards == "one" else r

    def transitions(self) -> Tensor:
        """Return the filters of the value, [q_channels, 1, 3, 3]."""
        if self.options.transitions == "free":
            return self.w_v
        return DISCOUNT * self.w_v.flatten(1).softmax(dim=1).view_as(self.w_v)

    def encode(self, x: Tensor) -> ValueIteration:
        """Return the step, whose head reads Q."""
        return ValueIteration(self.rewards(x), None, self.transitions(), self.wrap, head=self._read)

    def _read(self, q: Tensor) -> Tensor:
        return self.head(ADVANTAGE_SCALE * (q - maximum(q, 1)) if self.options.policy == "advantages" else q)
