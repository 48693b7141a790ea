"""A residual VIN: several values per cell, each moving a learned part of the way to its Bellman update."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from planners.cores import Injected
from planners.cores.layers import convolve, same_conv
from street_planning.options import ResidualOptions


class ResidualVIN(nn.Module):
    """v' = v + b (max_a Q_a - v), Q = R(x) + g W * v, with b in (0, 1) learned per channel of v and g below 1.

    The fixed points are those of v = max_a Q_a, whatever b is. Each filter of W has an L1 norm of at most 1, so the
    step is a contraction.
    """

    def __init__(self, options: ResidualOptions, *, wrap: bool, actions: int = 4, in_channels: int = 2) -> None:
        super().__init__()
        self.wrap, self.discount, self.channels = wrap, options.discount, options.value_channels
        per_cell = options.value_channels * options.q_channels
        self.hidden = same_conv(in_channels, 64, options.kernel_size, wrap=wrap)
        self.reward = nn.Conv2d(64, per_cell, 1)
        self.w = nn.Parameter(torch.rand(per_cell, self.channels, options.kernel_size, options.kernel_size))
        self.rate = nn.Parameter(torch.full((1, self.channels, 1, 1), 2.0))
        self.head = nn.Conv2d(per_cell, actions, 1)

    def encode(self, x: Tensor) -> Injected:
        """Return the rewards [B, value_channels * q_channels, h, w], and g W, which all samples share."""
        norm = self.w.abs().sum(dim=(1, 2, 3), keepdim=True)
        return Injected((self.reward(self.hidden(x).relu()),), (self.discount * self.w / norm.clamp(min=1.0),))

    def initial_value(self, r: Injected) -> Tensor:
        """Return zeros, [B, value_channels, h, w]."""
        return torch.zeros_like(r.per_sample[0][:, : self.channels])

    def action_values(self, v: Tensor, r: Injected) -> Tensor:
        """Return Q, [B, value_channels * q_channels, h, w]."""
        return r.per_sample[0] + convolve(v, r.shared[0], wrap=self.wrap)

    def step(self, v: Tensor, r: Injected) -> Tensor:
        """Return v', [B, value_channels, h, w]."""
        best = self.action_values(v, r).unflatten(1, (self.channels, -1)).amax(2)
        return v + self.rate.sigmoid() * (best - v)

    def policy(self, v: Tensor, r: Injected) -> Tensor:
        """Return action logits, [B, actions, h, w]."""
        q = self.action_values(v, r)
        best = q.unflatten(1, (self.channels, -1)).amax(2, keepdim=True)
        return self.head(10 * (q.unflatten(1, (self.channels, -1)) - best).flatten(1, 2))
