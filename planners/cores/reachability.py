"""The largest probability of arriving at the goal, when each move survives with a learned probability."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planners.cores import Injected
from planners.cores.bellman import convolve
from planners.cores.symmetry import symmetry

if TYPE_CHECKING:
    from planners.specs import ReachabilityOptions

# u = log v, v probability of arriving, m survival of a latent action, P where it leads, gamma discount, Q action values

NEIGHBOURS = {4: (4, 1, 3, 7, 5), 8: (4, 0, 1, 2, 3, 5, 6, 7, 8)}
"""Of the nine cells around one, row by row, those that a move of a task reaches: the cell itself first. By the number of
moves: north, west, south, east; or all eight."""

_MARGIN = 0.25
"""How far the survival's sigmoid reaches beyond [0, 1] before it is cut, so that 0 and 1 are reached exactly."""
_LEAST_LOG_ADVANTAGE = -5.0
"""What the policy reads of an action that is e^5 times less likely to arrive than the best, or has no way at all."""


class Reachability(nn.Module):
    """Maximum-probability planning with learned survival of moves.

    Q_a(x) = gamma m_a(x) sum_t P_a,t v(x + t),   v'(x) = max_a Q_a(x),   v(goal) = 1,

    where the latent action a survives at x with probability m_a(x), read off the 3x3 cells around x, and then leads to
    the neighbour x + t with probability P_a,t. v*(x) is the largest probability of arriving. This keeps the maximum over
    actions of Eq. 1, with the goal as a boundary condition instead of a reward, and a transition that depends on the
    cell. A blocked move is m = 0: it has no price, there is no way through.

    Theorem. f is a contraction of modulus gamma in the max norm (each Q_a is gamma m_a times a mean of values, m_a <= 1),
    so v* is unique (Banach); f is monotone and v_0 = [x is the goal] <= f(v_0), so v_k rises to v*. f is positively
    homogeneous away from the goal: far from it looks like near it, for the policy reads log Q_a - max_a log Q_a.

    The value is kept as u = log v >= floor = -log(4) (cells + 1): a path of any length underflows nowhere, and what is
    below the floor (less than a quarter a step on the longest simple path) has no way. In u, f is non-expansive; v* is
    found in as many steps as the longest best path has, or at once by `best_first` (planners/cores/reachability_solver).

    Training sharpens P from a mixture to one neighbour (`progress`): smooth to learn by, and exact in the end. With
    sharp taps and m in {0, 1} the plan can be proven shortest (`planners.certificate`).

    Limits: what blocks a move must show in the 3x3 cells around it; a map and costs that are known belong to a graph
    search.

    Attributes:
        discount: gamma.
        progress: How far training has come, 0..1, a buffer; sharpens the taps.

    Args:
        options: Sizes, discount and group.
        wrap: True pads circularly.
        actions: Number of logits per cell.
        in_channels: Channels of the input: map and goal.
    """

    progress: Tensor

    def __init__(self, options: ReachabilityOptions, *, wrap: bool, actions: int = 4, in_channels: int = 2) -> None:
        super().__init__()
        self.wrap, self.options, self.discount = wrap, options, options.discount
        self.symmetry = symmetry(options.group, 3, actions)
        order = self.symmetry.order
        hidden, families = options.hidden_channels // order, options.q_channels // order
        self.neighbours = NEIGHBOURS[4 if actions == 4 else 8]
        self.hidden_weight = _uniform(hidden, in_channels, 9, fan_in=in_channels * 9)
        self.hidden_bias = _uniform(hidden, fan_in=in_channels * 9)
        self.survival_weight = _uniform(families, hidden, order, fan_in=options.hidden_channels)
        self.survival_bias = nn.Parameter(torch.full((families,), 0.5))
        self.tap_logits = nn.Parameter(torch.randn(families, len(self.neighbours)))
        self.head_weight = nn.Parameter(torch.zeros(families, actions))
        with torch.no_grad():  # each family starts with a neighbour of its own, and the policy with taking its word
            for family in range(families):
                self.tap_logits[family, 1 + family % (len(self.neighbours) - 1)] += 2.0
                self.head_weight[family, family % actions] = 1 / families
        self.register_buffer("progress", torch.zeros(()))

    def taps(self) -> Tensor:
        """Return P, [q_channels, neighbours]: what is below a growing share of the largest is cut, in the end all."""
        p = self.tap_logits.softmax(1)
        top = p.amax(1, keepdim=True)
        if self.progress >= 1:
            p = (p == top).to(p.dtype)
        else:
            p = F.relu(p - self.options.cut(float(self.progress)) * top)
        nine = p.new_zeros(len(p), 9).index_copy(1, torch.tensor(self.neighbours), p / p.sum(1, keepdim=True))
        return self.symmetry.images(nine.unsqueeze(1)).squeeze(1)[:, list(self.neighbours)]

    def survival(self, x: Tensor) -> Tensor:
        """Return m, [B, q_channels, h, w], in [0, 1] with both ends reached."""
        order = self.symmetry.order
        filters = self.symmetry.images(self.hidden_weight).unflatten(2, (3, 3))
        hidden = convolve(x, filters, self.hidden_bias.repeat(order), wrap=self.wrap).relu()
        mixing = self.symmetry.mixed(self.survival_weight)[:, :, None, None]
        m = torch.sigmoid(F.conv2d(hidden, mixing, self.survival_bias.repeat(order)))
        m = (1 + 2 * _MARGIN) * m - _MARGIN
        return m + (m.clamp(0, 1) - m).detach()  # the gradient passes the cut: what is shut for good could never open

    def encode(self, x: Tensor) -> Injected:
        """Return log(gamma m) [B, q_channels, h, w], the goal's log v [B, 1, h, w] and log P for all samples."""
        m = self.survival(x)
        floor = _floor(x)
        moves = torch.where(m > 0, (self.discount * m).clamp(min=torch.finfo(m.dtype).tiny).log(), -math.inf)
        goal = torch.where(x[:, 1:2] > 0.5, 0.0, floor).to(x.dtype)
        p = self.taps()
        return Injected((moves, goal), (torch.where(p > 0, p.clamp(min=torch.finfo(p.dtype).tiny).log(), -math.inf),))

    def initial_value(self, r: Injected) -> Tensor:
        """Return u_0: 0 at the goal, the floor elsewhere, [B, 1, h, w]."""
        return r.per_sample[1]

    def action_values(self, u: Tensor, r: Injected) -> Tensor:
        """Return log Q, [B, q_channels, h, w], at least the floor."""
        (moves, _), (taps,) = r.per_sample, r.shared
        floor = _floor(u)
        near = _neighbours(u, self.neighbours, self.wrap, floor)
        arriving = torch.logsumexp(near.unsqueeze(1) + taps[None, :, :, None, None], dim=2)
        return (moves + arriving).clamp(min=floor)

    def step(self, u: Tensor, r: Injected) -> Tensor:
        """Return u' = max(goal, max_a log Q_a), [B, 1, h, w]."""
        goal = r.per_sample[1]
        return torch.where(goal == 0, goal, self.action_values(u, r).amax(1, keepdim=True))

    def policy(self, u: Tensor, r: Injected) -> Tensor:
        """Return logits from log Q_a - max log Q, [B, actions, h, w]."""
        q = self.action_values(u, r)
        advantage = (q - q.amax(1, keepdim=True)).clamp(min=_LEAST_LOG_ADVANTAGE)
        head = self.symmetry.acting(self.head_weight)[:, :, None, None]
        return F.conv2d(self.options.advantage_scale * advantage, head)


def _floor(x: Tensor) -> float:
    return -math.log(4) * (x.shape[-2] * x.shape[-1] + 1)


def _neighbours(u: Tensor, cells: tuple[int, ...], wrap: bool, floor: float) -> Tensor:
    """Return the values around each cell, [B, len(cells), h, w]; beyond the edge lies the floor."""
    h, w = u.shape[-2:]
    padded = F.pad(u, (1, 1, 1, 1), mode="circular") if wrap else F.pad(u, (1, 1, 1, 1), value=floor)
    return torch.cat([padded[:, :, n // 3 : n // 3 + h, n % 3 : n % 3 + w] for n in cells], dim=1)


def _uniform(*shape: int, fan_in: int) -> nn.Parameter:
    """Return weights drawn as torch draws those of a convolution: uniform within 1 / sqrt(fan in)."""
    return nn.Parameter(torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5))
