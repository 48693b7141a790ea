"""Value iteration whose step is a contraction by construction, so that it has one fixed point and finds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datagen.shapes import shaped
from planners.cores.layers import convolve, maximum
from planners.cores.steps import ValueIteration
from planners.cores.symmetry import symmetry

if TYPE_CHECKING:
    from jaxtyping import Float

    from planners.options import ContractiveOptions

# v value, r reward per action, Q action values, P transition probabilities, gamma discount


class Contractive(nn.Module):
    """Discounted value iteration with learned rewards per action and learned transition probabilities.

    Q_a = r_a + gamma P_a * v,  v' = max_a Q_a,  P_a = softmax over the F x F taps.

    This is Eq. 1, with its reward per action, and restores what learning W^V takes from it (App. B.2): each filter
    gamma P_a has L1 norm gamma, so |f(v) - f(v')| <= gamma |v - v'| in the max norm, whatever the parameters (zero
    padding only loses mass). By Banach's theorem the fixed point is unique, the forward iteration cannot diverge, and

        |v_{K+1} - v_K| <= gamma^K |v_1 - v_0|,   |v_K - v*| <= gamma^K / (1 - gamma) |v_1 - v_0|.

    The policy reads the advantages Q - max Q, which do not change when a constant is added to v, but in cells at the
    edge of a map that is no torus, where zero padding loses mass: near and far from the goal look alike, so the head
    need not know how large values are.

    All filters are tied over the turns and flips of the grid (`group`): turning the map turns the policy, exactly, and
    one map teaches what eight would.

    Attributes:
        discount: gamma; training may lower it for a step (`TrainingSpec.discount_from`).

    Args:
        options: Sizes, discount, temperature and group.
        wrap: True pads circularly.
        actions: Number of logits per cell.
        in_channels: Channels of the input: map and goal.
    """

    def __init__(self, options: ContractiveOptions, *, wrap: bool, actions: int = 4, in_channels: int = 2) -> None:
        super().__init__()
        self.wrap = wrap
        self.options = options
        self.discount = options.discount
        self.symmetry = symmetry(options.group, options.kernel_size, actions)
        self.encoder_symmetry = symmetry(options.group, 3, actions)
        order = self.symmetry.order
        hidden, families = options.hidden_channels // order, options.q_channels // order
        self.hidden_weight = _uniform(hidden, in_channels, 9, fan_in=in_channels * 9)
        self.hidden_bias = _uniform(hidden, fan_in=in_channels * 9)
        self.reward_weight = _uniform(families, hidden, order, fan_in=options.hidden_channels)
        self.reward_bias = _uniform(families, fan_in=options.hidden_channels)
        self.transition_logits = nn.Parameter(torch.randn(families, options.kernel_size**2))
        self.head_weight = _uniform(families, actions, fan_in=options.q_channels)
        if options.group == "trivial":
            self.head_bias = nn.Parameter(torch.zeros(actions))
        else:  # the group turns the actions into each other, so a bias would be one constant that changes nothing
            self.register_buffer("head_bias", torch.zeros(actions), persistent=False)

    @shaped
    def transitions(self) -> Float[Tensor, "q_channels 1 F F"]:
        """Return gamma P, [q_channels, 1, F, F]: non-negative, every filter summing to gamma."""
        probabilities = self.symmetry.images(self.transition_logits.softmax(dim=1).unsqueeze(1))
        return self.discount * probabilities.unflatten(2, (self.options.kernel_size, -1))

    @shaped
    def rewards(self, x: Float[Tensor, "B in_channels h w"]) -> Float[Tensor, "B q_channels h w"]:
        """Return the reward per action, [B, q_channels, h, w]."""
        order = self.symmetry.order
        filters = self.encoder_symmetry.images(self.hidden_weight).unflatten(2, (3, 3))
        hidden = convolve(x, filters, self.hidden_bias.repeat(order), wrap=self.wrap).relu()
        mixing = self.symmetry.mixed(self.reward_weight)[:, :, None, None]
        return F.conv2d(hidden, mixing, self.reward_bias.repeat(order))

    @shaped
    def encode(self, x: Float[Tensor, "B in_channels h w"]) -> ValueIteration:
        """Return the step, whose reward is one per action and whose head reads the advantages."""
        rewards = self.rewards(x)
        return ValueIteration(
            rewards, None, self.transitions(), self.wrap, self.options.temperature, self._read_advantages
        )

    def _read_advantages(self, q: Tensor) -> Tensor:
        """Return logits from the advantages of Q, [B, actions, h, w]."""
        head = self.symmetry.acting(self.head_weight)[:, :, None, None]
        return F.conv2d(self.options.advantage_scale * (q - maximum(q, 1)), head, self.head_bias)


def _uniform(*shape: int, fan_in: int) -> nn.Parameter:
    """Return weights drawn as torch draws those of a convolution: uniform within 1 / sqrt(fan in)."""
    return nn.Parameter(torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5))
