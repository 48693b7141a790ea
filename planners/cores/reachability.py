"""The largest probability of arriving at the goal, when each move survives with a learned probability."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from planners.cores.layers import convolve, maximum
from planners.cores.symmetry import symmetry

if TYPE_CHECKING:
    from planners.specs import ReachabilityOptions

# u = log v, v probability of arriving, m survival of a latent action, P where it leads, gamma discount, Q action values

NEIGHBOURS = {4: (4, 1, 3, 7, 5), 8: (4, 0, 1, 2, 3, 5, 6, 7, 8)}
"""Of the nine cells around one, row by row, those that a move of a task reaches, the cell itself first. By the number
of moves: north, west, south, east; or all eight."""

MARGIN = 0.25
"""How far the survival's sigmoid reaches beyond [0, 1] before it is cut, so that 0 and 1 are reached exactly."""
SLACK = 1e-3
"""How far beyond the cut a survival lies that counts as 0 or 1 for good: no order of summation brings it back."""
_CUTS = (0.05, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""By eighths of the training: taps below this share of the largest are cut. In the last eighth it alone is left."""
LEAST_LOG_ADVANTAGE = -5.0
"""What the policy reads of an action that is e^5 times less likely to arrive than the best, or has no way at all."""
_LOOKED_UP_FROM = 4096
"""Cells from which a table of all local patterns is cheaper than the convolutions it is made by."""


class _Cut(torch.autograd.Function):
    """Cut to [0, 1]; a gradient passes where it points inwards, or what is shut could never open."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,), (g,) = ctx.saved_tensors, grads
        return torch.where(((x >= 1) & (g < 0)) | ((x <= 0) & (g > 0)), torch.zeros_like(g), g)


class LookedUp(NamedTuple):
    """log(gamma m) of a batch, by the local pattern of each cell.

    Attributes:
        table: [patterns, q_channels].
        pattern: int16 [B, h, w], the row of each cell.
    """

    table: Tensor
    pattern: Tensor


@dataclass(frozen=True, eq=False)
class ReachabilityStep:
    """The step of `Reachability` in u = log v, on one batch.

    Attributes:
        given: log(gamma m), [B, q_channels, h, w], or where it is looked up.
        goal: The goal's log v, 0, and the floor elsewhere, [B, 1, h, w].
        taps: log P, [q_channels, neighbours].
        neighbours: Of the nine cells around one, those that P is over.
        wrap: Whether the maps are toruses.
        sharp: Whether each latent action leads to one neighbour.
        head: What a logit takes of `scale` (log Q_a - max log Q), [actions, q_channels].
        scale: See head.
    """

    given: Tensor | LookedUp
    goal: Tensor
    taps: Tensor
    neighbours: tuple[int, ...]
    wrap: bool
    sharp: bool
    head: Tensor
    scale: float

    @cached_property
    def moves(self) -> Tensor:
        """log(gamma m), [B, q_channels, h, w]."""
        if isinstance(self.given, Tensor):
            return self.given
        return self.given.table[self.given.pattern.long()].permute(0, 3, 1, 2)

    def initial_value(self) -> Tensor:
        """Return u_0: 0 at the goal, the floor elsewhere, [B, 1, h, w]."""
        return self.goal

    def action_values(self, u: Tensor) -> Tensor:
        """Return log Q, [B, q_channels, h, w], at least the floor."""
        floor = floor_of(u)
        near = _neighbours(u, self.neighbours, self.wrap, floor)
        if self.sharp:
            arriving = near[:, self.taps.argmax(1)]
        else:
            arriving = torch.logsumexp(near.unsqueeze(1) + self.taps[None, :, :, None, None], dim=2)
        return (self.moves + arriving).clamp(min=floor)

    def __call__(self, u: Tensor) -> Tensor:
        """Return u' = max(goal, max_a log Q_a), [B, 1, h, w]."""
        return torch.where(self.goal == 0, self.goal, maximum(self.action_values(u), 1))

    def policy(self, u: Tensor) -> Tensor:
        """Return logits at u, [B, actions, h, w]."""
        q = self.action_values(u)
        advantage = (q - maximum(q, 1)).clamp(min=LEAST_LOG_ADVANTAGE).to(self.head.dtype)
        return functional.conv2d(self.scale * advantage, self.head[:, :, None, None])

    def take(self, rows: Tensor) -> ReachabilityStep:
        """Return the same step for those samples."""
        looked = self.given if isinstance(self.given, LookedUp) else None
        given = self.moves[rows] if looked is None else LookedUp(looked.table, looked.pattern[rows])
        return replace(self, given=given, goal=self.goal[rows])


class Reachability(nn.Module):
    """Maximum-probability planning with learned survival of moves.

    Q_a(x) = gamma m_a(x) sum_t P_a,t v(x + t),   v'(x) = max_a Q_a(x),   v(goal) = 1,

    where the latent action a survives at x with probability m_a(x), read off the 3x3 cells around x, and then leads to
    the neighbour x + t with probability P_a,t. v*(x) is the largest probability of arriving. This keeps the maximum
    over actions of Eq. 1, with the goal as a boundary condition instead of a reward, and a transition that depends on
    the cell. A blocked move is m = 0: it has no price, there is no way through.

    Theorem. f is a contraction of modulus gamma in the max norm (each Q_a is gamma m_a times a mean of values, m_a <=
    1), so v* is unique (Banach); f is monotone and v_0 = [x is the goal] <= f(v_0), so v_k rises to v*. f is positively
    homogeneous away from the goal: far from it looks like near it, for the policy reads log Q_a - max_a log Q_a.

    The value is kept as u = log v >= floor = -log(4) (cells + 1): a path of any length underflows nowhere, and what is
    below the floor (less than a quarter a step on the longest simple path) has no way. In u, f is non-expansive; v* is
    found in as many steps as the longest best path has, or at once by `best_first`.

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
        self.wrap, self.options, self.discount, self.in_channels = wrap, options, options.discount, in_channels
        self.symmetry = symmetry(options.group, 3, actions)
        order = self.symmetry.order
        hidden, families = options.hidden_channels // order, options.q_channels // order
        self.neighbours = NEIGHBOURS[4 if actions == 4 else 8]
        self.hidden_weight = _uniform(hidden, in_channels, 9, fan_in=in_channels * 9)
        self.hidden_bias = _uniform(hidden, fan_in=in_channels * 9)
        self.survival_weight = _uniform(families, hidden, order, fan_in=options.hidden_channels)
        self.survival_bias = nn.Parameter(torch.full((families,), 0.5))
        self.tap_logits = nn.Parameter(torch.empty(families, len(self.neighbours)).uniform_(-0.5, 0.5))
        self.head_weight = nn.Parameter(torch.zeros(families, actions))
        # Each family starts with a neighbour of its own (with a group, any will do), the policy with its word.
        with torch.no_grad():
            for family in range(families):
                self.tap_logits[family, 1 + family % (len(self.neighbours) - 1)] += 2.0
                self.head_weight[family, family % actions] = 1 / families
        self.register_buffer("progress", torch.zeros(()))
        self._table: tuple[tuple[object, ...], Tensor] | None = None

    @property
    def sharp(self) -> bool:
        """Whether each latent action leads to one neighbour: in the last eighth of the training, and ever after."""
        return bool(self.progress > 7 / 8)

    def taps(self) -> Tensor:
        """Return P, [q_channels, neighbours]: what is below a growing share of the largest is cut, in the end all."""
        p = self.tap_logits.softmax(1)
        top = p.amax(1, keepdim=True)
        if self.sharp:
            p = functional.one_hot(p.argmax(1), len(self.neighbours)).to(p.dtype)
        else:
            p = (p - _CUTS[max(0, math.ceil(8 * float(self.progress)) - 1)] * top).relu()
        cells = torch.tensor(self.neighbours, device=p.device)
        nine = p.new_zeros(len(p), 9).index_copy(1, cells, p / p.sum(1, keepdim=True))
        return self.symmetry.images(nine.unsqueeze(1)).squeeze(1)[:, cells]

    def uncut_survival(self, x: Tensor) -> Tensor:
        """Return what m is cut from, [B, q_channels, h, w]."""
        order = self.symmetry.order
        filters = self.symmetry.images(self.hidden_weight).unflatten(2, (3, 3))
        hidden = convolve(x, filters, self.hidden_bias.repeat(order), wrap=self.wrap).relu()
        mixing = self.symmetry.mixed(self.survival_weight)[:, :, None, None]
        logits = functional.conv2d(hidden, mixing, self.survival_bias.repeat(order))
        return (1 + 2 * MARGIN) * torch.sigmoid(logits) - MARGIN

    def survival(self, x: Tensor) -> Tensor:
        """Return m, [B, q_channels, h, w], in [0, 1] with both ends reached."""
        m: Tensor = _Cut.apply(self.uncut_survival(x))
        return m

    def _given(self, x: Tensor) -> Tensor | LookedUp:
        """Return log(gamma m); where that is exact, pays and needs no gradient, from a table of all patterns."""
        worth = self._table is not None or x[0, 0].numel() >= _LOOKED_UP_FROM
        if torch.is_grad_enabled() or not worth or not _one_goal_on_zeros_and_ones(x):
            return _log(self.discount * self.survival(x))
        return LookedUp(self._looked_up_table(), _patterns(x, self.wrap))

    def _looked_up_table(self) -> Tensor:
        """Return log(gamma m) of every pattern, made anew where the encoder's weights have changed."""
        encoder = (self.hidden_weight, self.hidden_bias, self.survival_weight, self.survival_bias)
        state = tuple((p.data_ptr(), p._version, p.dtype, p.device) for p in encoder if not p.is_inference())
        if self._table is None or self._table[0] != state or len(state) < len(encoder):
            self._table = (state, _log(self.discount * self.patterns_survival().clamp(0, 1)))
        return self._table[1]

    def patterns_survival(self) -> Tensor:
        """Return what m is cut from in every 3x3 pattern, [10 * 512, q_channels].

        Row 512 g + n has the free cells that n's bits tell, row by row from the lowest, and the goal at cell g - 1;
        nowhere with g = 0.
        """
        weight = self.hidden_weight
        bits = (torch.arange(512, device=weight.device)[:, None] >> torch.arange(9, device=weight.device)) & 1
        goal = torch.cat([weight.new_zeros(1, 9), torch.eye(9, device=weight.device, dtype=weight.dtype)])
        shape = (10, 512, 9)
        x = torch.stack([bits.to(weight)[None].expand(shape), goal[:, None].expand(shape)], 2).view(-1, 2, 3, 3)
        filters = self.symmetry.images(weight)
        hidden = functional.linear(x.flatten(1), filters.flatten(1), self.hidden_bias.repeat(self.symmetry.order))
        mixing, bias = self.symmetry.mixed(self.survival_weight), self.survival_bias.repeat(self.symmetry.order)
        return (1 + 2 * MARGIN) * torch.sigmoid(functional.linear(hidden.relu(), mixing, bias)) - MARGIN

    def encode(self, x: Tensor) -> ReachabilityStep:
        """Return the step."""
        goal = torch.where(x[:, 1:2] > 0.5, 0.0, floor_of(x)).to(x.dtype)
        head, scale = self.symmetry.acting(self.head_weight), self.options.advantage_scale
        taps = _log(self.taps())
        return ReachabilityStep(self._given(x), goal, taps, self.neighbours, self.wrap, self.sharp, head, scale)

    def set_progress(self, fraction: float) -> None:
        """Sharpen the taps as training goes on.

        Args:
            fraction: Of the epochs, the one that begins included.
        """
        self.progress.fill_(fraction)

    def penalty(self, r: ReachabilityStep, u: Tensor, arriving: Tensor) -> Tensor:
        """Return what training adds to the loss: short ways, no move that nobody needs, and moves survive or not.

        Args:
            r: The step.
            u: [B, 1, h, w], the fixed point.
            arriving: bool [B, h, w], cells from which there is a way.
        """
        options, late = self.options, max(0.0, 2 * float(self.progress) - 1)
        ways = (u.squeeze(1) * arriving).sum() / arriving.sum().clamp(min=1)
        survival = r.moves.exp().mean() / self.discount
        loss = -options.short_ways * ways + options.few_moves * (1 - late) * survival
        if late > 0 and self._enumerable:
            loss = loss + options.decided_moves * late**2 * _undecided(self.patterns_survival())
        return loss

    @property
    def _enumerable(self) -> bool:
        return self.in_channels == 2

    def finish(self, most_steps: int = 1000) -> None:
        """Go on with the encoder alone until each move in each pattern survives for certain or not at all.

        Needs no map: all patterns are enumerated. Does nothing with taps that are not sharp, or further channels.
        """
        if not (self.sharp and self._enumerable and self.options.decided_moves > 0):
            return
        encoder = [self.hidden_weight, self.hidden_bias, self.survival_weight, self.survival_bias]
        adam = torch.optim.Adam(encoder, 0.003)
        for _ in range(most_steps):
            loss = _undecided((self.patterns_survival() + SLACK) / (1 + 2 * SLACK))
            if float(loss.detach()) == 0:
                break
            gradients = torch.autograd.grad(loss, encoder)
            for parameter, gradient in zip(encoder, gradients, strict=True):
                parameter.grad = gradient
            adam.step()
        adam.zero_grad()


def _undecided(uncut: Tensor) -> Tensor:
    """Return the sum of m (1 - m): 0 where each m is 0 or 1."""
    m: Tensor = _Cut.apply(uncut)
    return (m * (1 - m)).sum()


def _one_goal_on_zeros_and_ones(x: Tensor) -> bool:
    if x.shape[1] != 2 or not bool(((x == 0) | (x == 1)).all()):
        return False
    return bool((x[:, 1].flatten(1).sum(1) <= 1).all())


def _patterns(x: Tensor, wrap: bool) -> Tensor:
    """Return the number of each cell's pattern, a row of `Reachability.patterns_survival`, int16 [B, h, w]."""
    h, w = x.shape[-2:]
    ring = (1, 1, 1, 1)
    padded = (functional.pad(x, ring, mode="circular") if wrap else functional.pad(x, ring)).short()
    found = torch.zeros(len(x), h, w, dtype=torch.int16, device=x.device)
    for place in range(9):
        free, goal = padded[:, :, place // 3 : place // 3 + h, place % 3 : place % 3 + w].unbind(1)
        found.add_(free, alpha=2**place).add_(goal, alpha=512 * (place + 1))
    return found


def _log(p: Tensor) -> Tensor:
    return torch.where(p > 0, p.clamp(min=torch.finfo(p.dtype).tiny).log(), -math.inf)


def floor_of(x: Tensor) -> float:
    """Return the log value of what has no way on a map of this size."""
    return -math.log(4) * (x.shape[-2] * x.shape[-1] + 1)


def _neighbours(u: Tensor, cells: tuple[int, ...], wrap: bool, floor: float) -> Tensor:
    """Return the values around each cell, [B, len(cells), h, w]; beyond the edge lies the floor."""
    h, w = u.shape[-2:]
    ring = (1, 1, 1, 1)
    padded = functional.pad(u, ring, mode="circular") if wrap else functional.pad(u, ring, value=floor)
    return torch.cat([padded[:, :, n // 3 : n // 3 + h, n % 3 : n % 3 + w] for n in cells], dim=1)


def _uniform(*shape: int, fan_in: int) -> nn.Parameter:
    """Return weights drawn as torch draws those of a convolution: uniform within 1 / sqrt(fan in)."""
    return nn.Parameter(torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5))
