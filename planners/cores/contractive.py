"""Value iteration whose step is a contraction by construction, so that it has one fixed point and finds it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from planners.cores import Injected
from planners.cores.bellman import convolve, maximum, same_conv
from planners.specs import ContractiveOptions

# v value, r reward per action, Q action values, P transition probabilities, gamma discount


class Contractive(nn.Module):
    """Discounted value iteration with learned rewards per action and learned transition probabilities.

    Q_a = r_a + gamma P_a * v,  v' = max_a Q_a,  P_a = softmax over the F x F taps.

    This keeps Eq. 1 and restores what learning W^V takes from it (App. B.2): each filter gamma P_a has L1 norm
    gamma, so |f(v) - f(v')| <= gamma |v - v'| in the max norm, whatever the parameters (zero padding only loses
    mass). By Banach's theorem the fixed point is unique, the forward iteration cannot diverge, and

        |v_{K+1} - v_K| <= gamma^K |v_1 - v_0|,   |v_K - v*| <= gamma^K / (1 - gamma) |v_1 - v_0|.

    The policy reads the advantages Q - max Q, which do not change when a constant is added to v: near and far from the
    goal look alike, so the head need not know how large values are.

    Args:
        options: Sizes, discount and temperature.
        wrap: True pads circularly.
        actions: Number of logits per cell.
        in_channels: Channels of the input: map and goal.
    """

    def __init__(self, options: ContractiveOptions, *, wrap: bool, actions: int = 4, in_channels: int = 2) -> None:
        super().__init__()
        self.wrap = wrap
        self.discount = options.discount
        self.temperature = options.temperature
        self.advantage_scale = options.advantage_scale
        size = options.kernel_size
        self.hidden = same_conv(in_channels, options.hidden_channels, 3, wrap=wrap)
        self.reward = nn.Conv2d(options.hidden_channels, options.q_channels, 1)
        self.transition_logits = nn.Parameter(torch.randn(options.q_channels, size * size))
        # no bias: the greedy action then depends on the ratios of the advantages alone, which stay when their size
        # falls with the distance from the goal
        self.head = nn.Conv2d(options.q_channels, actions, 1, bias=False)

    def transitions(self) -> Tensor:
        """Return gamma P, [q_channels, 1, F, F]: non-negative, every filter summing to gamma."""
        size = round(self.transition_logits.shape[1] ** 0.5)
        return self.discount * self.transition_logits.softmax(dim=1).unflatten(1, (1, size, size))

    def rewards(self, x: Tensor) -> Tensor:
        """Return r, one channel per action, [B, q_channels, h, w]: the reward's part of Q as it is."""
        return self.reward(self.hidden(x).relu())

    def filters(self) -> tuple[None, Tensor]:
        """Return no filter of the reward, and that of the value."""
        return None, self.transitions()

    def encode(self, x: Tensor) -> Injected:
        """Return the reward per action [B, q_channels, h, w] and the transition filters, which all samples share."""
        return Injected((self.rewards(x),), (self.transitions(),))

    def initial_value(self, r: Injected) -> Tensor:
        """Return zeros, [B, 1, h, w]."""
        return torch.zeros_like(r.per_sample[0][:, :1])

    def action_values(self, v: Tensor, r: Injected) -> Tensor:
        """Return Q, [B, q_channels, h, w]."""
        return r.per_sample[0] + convolve(v, r.shared[0], wrap=self.wrap)

    def step(self, v: Tensor, r: Injected) -> Tensor:
        """Return v' = max_a Q_a, [B, 1, h, w]."""
        return maximum(self.action_values(v, r), 1, self.temperature)

    def policy(self, v: Tensor, r: Injected) -> Tensor:
        """Return logits from the advantages at v, [B, actions, h, w]."""
        q = self.action_values(v, r)
        return self.head(self.advantage_scale * (q - maximum(q, 1)))
