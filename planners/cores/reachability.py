"""The largest probability of arriving at the goal, when each move survives with a learned probability."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from datagen.problem import ACTIONS
from planners.cores.layers import convolve, maximum
from planners.cores.patterns import PATTERNS, LookedUp, patterns
from planners.cores.symmetry import symmetry

if TYPE_CHECKING:
    from planners.options import ReachabilityOptions

# u = log v, v probability of arriving, m survival of a latent action, P where it leads, gamma discount, Q action values

NEIGHBOURS = {4: (4, 1, 3, 7, 5), 8: (4, 0, 1, 2, 3, 5, 6, 7, 8)}
"""Of the nine cells around one, row by row, those that a move of a task reaches, the cell itself first. By the number
of moves: north, west, south, east; or all eight."""

MARGIN = 0.25
"""How far the survival's sigmoid reaches beyond [0, 1] before it is cut, so that 0 and 1 are reached exactly."""
_LEAST_SURVIVAL = 0.8
"""A survival below this counts as none towards the end of the training: between needed moves and blocked ones."""
SLACK = 1e-3
"""How far beyond the cut a survival lies that counts as 0 or 1 for good: no order of summation brings it back."""
_CUTS = (0.05, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""By eighths of the training: taps below this share of the largest are cut. In the last eighth it alone is left."""
LEAST_LOG_ADVANTAGE = -5.0
"""What the policy reads of an action that is e^5 times less likely to arrive than the best, or has no way at all."""
_LEAST_COST = 1e-8
"""Share of the largest cost of a map that entering a cell costs at least: far above rounding, far below what counts."""
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


@dataclass(frozen=True, eq=False)
class ReachabilityStep:
    """The step of `Reachability` in u = log v, on one batch.

    Attributes:
        given: log(gamma m), [B, q_channels, h, w], or where it is looked up; log m where there are costs.
        goal: The goal's log v, 0, and the floor elsewhere, [B, 1, h, w].
        taps: log P, [q_channels, neighbours].
        neighbours: Of the nine cells around one, those that P is over.
        wrap: Whether the maps are toruses.
        sharp: Whether each latent action leads to one neighbour.
        head: What a logit takes of `scale` (log Q_a - max log Q), [actions, q_channels].
        scale: See head.
        discount: gamma; 1 where there are costs.
        costs: What entering each cell costs, [B, 1, h, w], positive; None where costs are not given.
        floor: Value of what has no way; [B, 1, 1, 1] where there are costs, which lower it. In a graph whose sizes are
            not known yet it is a tensor too.
    """

    given: Tensor | LookedUp
    goal: Tensor
    taps: Tensor
    neighbours: tuple[int, ...]
    wrap: bool
    sharp: bool
    head: Tensor
    scale: float
    discount: float
    costs: Tensor | None
    floor: float | Tensor

    @cached_property
    def moves(self) -> Tensor:
        """log(gamma m), [B, q_channels, h, w]; log m where there are costs."""
        if isinstance(self.given, Tensor):
            return self.given
        return self.given.table[self.given.pattern.long()].permute(0, 3, 1, 2)

    def initial_value(self) -> Tensor:
        """Return u_0: 0 at the goal, the floor elsewhere, [B, 1, h, w]."""
        return self.goal

    def _near(self, u: Tensor) -> Tensor:
        """Return what it is worth to enter each neighbour, [B, neighbours, h, w]; nothing lies beyond the edge."""
        entered, outside = (u, self.floor) if self.costs is None else (u - self.costs, -math.inf)
        ring, (h, w) = (1, 1, 1, 1), u.shape[-2:]
        if self.wrap:
            tall = torch.cat([entered[:, :, -1:], entered, entered[:, :, :1]], dim=2)
            padded = torch.cat([tall[..., -1:], tall, tall[..., :1]], dim=3)
        else:
            padded = functional.pad(entered, ring, value=-math.inf if isinstance(outside, Tensor) else outside)
        if self.costs is not None:
            padded = padded.clamp(min=2 * self.floor)  # a sum of nothing but infinities has no gradient
        elif isinstance(outside, Tensor):
            padded = padded.clamp(min=outside)
        return torch.cat([padded.narrow(2, n // 3, h).narrow(3, n % 3, w) for n in self.neighbours], dim=1)

    def action_values(self, u: Tensor) -> Tensor:
        """Return log Q, [B, q_channels, h, w], at least the floor."""
        near = self._near(u)
        if self.sharp:
            arriving = near[:, self.taps.argmax(1)]
        else:
            arriving = torch.logsumexp(near.unsqueeze(1) + self.taps[None, :, :, None, None], dim=2)
        return (self.moves + arriving).clamp(min=self.floor)

    def __call__(self, u: Tensor) -> Tensor:
        """Return u' = max(goal, max_a log Q_a), [B, 1, h, w]."""
        return torch.where(self.goal == 0, self.goal, maximum(self.action_values(u), 1))

    def policy(self, u: Tensor) -> Tensor:
        """Return logits at u, [B, actions, h, w]."""
        if self.costs is not None and len(self.head) == len(ACTIONS):
            return self._cheapest(u)
        q = self.action_values(u)
        advantage = (q - maximum(q, 1)).clamp(min=LEAST_LOG_ADVANTAGE).to(self.head.dtype)
        return functional.conv2d(self.scale * advantage, self.head[:, :, None, None])

    def _cheapest(self, u: Tensor) -> Tensor:
        """Return the scaled log advantages of the four moves themselves, [B, 4, h, w]: any costs compare rightly.

        What a trained head reads out of advantages holds for those of its training, where all moves cost the same.
        """
        leads = self.moves.unsqueeze(2) + self.taps[None, :, 1:, None, None]
        q = (maximum(leads, 1).squeeze(1) + self._near(u)[:, 1:]).clamp(min=self.floor)
        advantage = (q - maximum(q, 1)).clamp(min=LEAST_LOG_ADVANTAGE)
        return self.scale * advantage.to(self.head.dtype)

    def take(self, rows: Tensor) -> ReachabilityStep:
        """Return the same step for those samples."""
        given = self.given
        given = given[rows] if isinstance(given, Tensor) else replace(given, pattern=given.pattern[rows])
        costs = None if self.costs is None else self.costs[rows]
        floor = self.floor[rows] if isinstance(self.floor, Tensor) else self.floor
        return replace(self, given=given, goal=self.goal[rows], costs=costs, floor=floor)


class Reachability(nn.Module):
    """Maximum-probability planning with learned survival of moves.

    Q_a(x) = gamma m_a(x) sum_t P_a,t v(x + t),   v'(x) = max_a Q_a(x),   v(goal) = 1,

    where the latent action a survives at x with probability m_a(x), read off the 3x3 cells of the map around x,
    wherever the goal is, and then leads to the neighbour x + t with probability P_a,t. v*(x) is the largest
    probability of arriving. This keeps the maximum over actions of Eq. 1, with the goal as a boundary condition
    instead of a reward, and a transition that depends on the cell. A blocked move is m = 0: it has no price, there
    is no way through.

    Theorem. f is a contraction of modulus gamma in the max norm (each Q_a is gamma m_a times a mean of values, m_a <=
    1), so v* is unique (Banach); f is monotone and v_0 = [x is the goal] <= f(v_0), so v_k rises to v*. f is positively
    homogeneous away from the goal: far from it looks like near it, for the policy reads log Q_a - max_a log Q_a.

    The value is kept as u = log v >= floor = -log(4) (cells + 1): a path of any length underflows nowhere, and what is
    below the floor (less than a quarter a step on the longest simple path) has no way. In u, f is non-expansive; v* is
    found in as many steps as the longest best path has, or at once by `best_first`.

    Costs of cells may be given (`encode_with_costs`): a move then survives with m exp(-cost), and -u is a sum of costs.

    Training sharpens both (`progress`): P from a mixture to one neighbour, and m by counting for none what survives
    with less than a growing share, so that a wall, which is a price at first, is shut in the end. Smooth to learn
    by, exact in the end: with sharp taps and m in {0, 1} the plan can be proven shortest (`planners.certificate`).

    Limits: what blocks a move must show in the 3x3 cells around it; a map and costs that are known belong to a graph
    search.

    Attributes:
        discount: gamma.
        progress: How far training has come, 0..1, a buffer of the host's; sharpens taps and survivals.

    Args:
        options: Sizes, discount and group.
        wrap: True pads circularly.
        actions: Number of logits per cell.
        in_channels: Channels of the input: map and goal.
    """

    progress: Tensor
    cells: Tensor

    def __init__(self, options: ReachabilityOptions, *, wrap: bool, actions: int = 4, in_channels: int = 2) -> None:
        super().__init__()
        self.wrap, self.options, self.discount, self.in_channels = wrap, options, options.discount, in_channels
        self.symmetry = symmetry(options.group, 3, actions)
        order = self.symmetry.order
        hidden, families = options.hidden_channels // order, options.q_channels // order
        self.neighbours = NEIGHBOURS[4 if actions == 4 else 8]
        read = in_channels - 1  # what blocks a move does not depend on where the goal is
        self.hidden_weight = _uniform(hidden, read, 9, fan_in=read * 9)
        self.hidden_bias = _uniform(hidden, fan_in=read * 9)
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
        self.register_buffer("cells", torch.tensor(self.neighbours), persistent=False)
        self._table: tuple[tuple[object, ...], LookedUp] | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Reachability:
        """Move all but `progress`, which every step asks for: on a device, the host would have to wait for it."""
        progress = self.progress
        super()._apply(fn, recurse)
        self.progress = progress
        return self

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
        nine = p.new_zeros(len(p), 9).index_copy(1, self.cells, p / p.sum(1, keepdim=True))
        return self.symmetry.images(nine.unsqueeze(1)).squeeze(1)[:, self.cells]

    def uncut_survival(self, x: Tensor) -> Tensor:
        """Return what m is cut from, [B, q_channels, h, w]."""
        filters, bias, mixing, offset = self._layers(self._encoder)
        x = torch.cat([x[:, :1], x[:, 2:]], 1)
        hidden = convolve(x, filters.unflatten(2, (3, 3)), bias, wrap=self.wrap).relu()
        return self._ramp(functional.conv2d(hidden, mixing[:, :, None, None], offset))

    @property
    def _decides(self) -> bool:
        """Whether all moves are decided by now: patterns can be enumerated, and the last eighth has begun."""
        return self.sharp and self.in_channels == 2 and self.options.decided

    @property
    def _encoder(self) -> tuple[Tensor, ...]:
        """The encoder's weights; what is decided is learned no further."""
        weights = self.hidden_weight, self.hidden_bias, self.survival_weight, self.survival_bias
        return tuple(weight.detach() for weight in weights) if self._decides else weights

    def _layers(self, weights: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        hidden, bias, survival, offset = weights
        order, images = self.symmetry.order, self.symmetry.images(hidden)
        return images, bias.repeat(order), self.symmetry.mixed(survival), offset.repeat(order)

    @property
    def steepness(self) -> float:
        """By what the survival rises more steeply than at the beginning: 1 in the first quarter of the training."""
        late = min(1.0, max(0.0, (float(self.progress) - 1 / 4) / (7 / 8 - 1 / 4)))
        return 1 / (1 - _LEAST_SURVIVAL * late) if self.options.decided else 1.0

    def _ramp(self, logits: Tensor) -> Tensor:
        return 1 - self.steepness * (1 - ((1 + 2 * MARGIN) * torch.sigmoid(logits) - MARGIN))

    def survival(self, x: Tensor) -> Tensor:
        """Return m, [B, q_channels, h, w], in [0, 1] with both ends reached."""
        m: Tensor = _Cut.apply(self.uncut_survival(x))
        return m

    def _given(self, x: Tensor, discount: float) -> Tensor | LookedUp:
        """Return log(discount m); where that is exact, pays and needs no gradient, from a table of all patterns."""
        if torch.is_grad_enabled() or torch.compiler.is_exporting():
            return _log(discount * self.survival(x))
        worth = self._table is not None or x.shape[-2] * x.shape[-1] >= _LOOKED_UP_FROM
        found = patterns(x, self.wrap) if worth else None
        if found is None:
            return _log(discount * self.survival(x))
        if discount != self.discount:
            return LookedUp(_log(discount * self.patterns_survival().clamp(0, 1)), found)
        return replace(self._looked_up(), pattern=found)

    def _looked_up(self) -> LookedUp:
        """Return log(gamma m) of every pattern, made anew where weights have changed."""
        weights = tuple(self.parameters())
        known = tuple((p.data_ptr(), p._version, p.dtype) for p in weights if not p.is_inference())
        state = (*known, float(self.progress), self.discount)
        if self._table is None or self._table[0] != state or len(known) < len(weights):
            table = _log(self.discount * self.patterns_survival().clamp(0, 1))
            self._table = (state, LookedUp(table, torch.empty(0, dtype=torch.int16)))
        return self._table[1]

    def patterns_survival(self) -> Tensor:
        """Return what m is cut from in every 3x3 pattern, [PATTERNS, q_channels], in the order of `patterns`."""
        return self._of_patterns(self._encoder)

    def _of_patterns(self, weights: tuple[Tensor, ...]) -> Tensor:
        filters, bias, mixing, offset = self._layers(weights)
        bits = torch.arange(PATTERNS, device=filters.device)[:, None] >> torch.arange(9, device=filters.device) & 1
        hidden = functional.linear(bits.to(filters), filters.flatten(1), bias).relu()
        return self._ramp(functional.linear(hidden, mixing, offset))

    def encode(self, x: Tensor) -> ReachabilityStep:
        """Return the step."""
        return self._step(x, self.discount, None, floor_of(x))

    def encode_with_costs(self, x: Tensor, costs: Tensor) -> ReachabilityStep:
        """Return the step in which a move survives with m exp(-cost of the cell entered): costs take gamma's place.

        A hundred-millionth of the largest cost of a free cell is added to each, so that moves that cost nothing lead on
        nevertheless and the step still contracts; where all cost nothing, it counts steps.

        Args:
            x: As `encode` takes it.
            costs: [B, 1, h, w], at least 0; differentiable.
        """
        costs = costs.to(x.dtype)
        top = (costs * x[:, :1]).detach().amax((1, 2, 3), keepdim=True)
        costs = costs + torch.where(top > 0, _LEAST_COST * top, 1.0)
        return self._step(x, 1.0, costs, floor_of(x) - costs.detach().sum((1, 2, 3), keepdim=True))

    def _step(self, x: Tensor, discount: float, costs: Tensor | None, floor: float | Tensor) -> ReachabilityStep:
        least = floor.to(x) if isinstance(floor, Tensor) else x.new_full((), floor)
        goal = torch.where(x[:, 1:2] > 0.5, x.new_zeros(()), least)
        head, scale = self.symmetry.acting(self.head_weight), self.options.advantage_scale
        given, taps, sharp = self._given(x, discount), _log(self.taps()), self.sharp
        rule = (self.neighbours, self.wrap, sharp, head, scale)
        return ReachabilityStep(given, goal, taps, *rule, discount, costs, floor)

    def set_progress(self, fraction: float) -> None:
        """Sharpen taps and survivals as training goes on, and decide each move when the last eighth begins.

        Args:
            fraction: Of the epochs, the one that begins included.
        """
        begun, fresh = self._decides, float(self.progress) == 0
        self.progress.fill_(min(fraction, 7 / 8) if fresh else fraction)  # a single epoch is for learning
        if self._decides and not begun:
            self.decide()

    def penalty(self, r: ReachabilityStep, u: Tensor, arriving: Tensor) -> Tensor:
        """Return what training adds to the loss: short ways, and early on no move that nobody needs.

        Args:
            r: The step.
            u: [B, 1, h, w], the fixed point.
            arriving: bool [B, h, w], cells from which there is a way.
        """
        options, late = self.options, max(0.0, 2 * float(self.progress) - 1)
        ways = (u.squeeze(1) * arriving).sum() / arriving.sum().clamp(min=1)
        survival = r.moves.exp().mean() / r.discount
        return -options.short_ways * ways + options.few_moves * (1 - late) * survival

    def finish(self) -> None:
        """Sharpen at last what a training of a single epoch has left."""
        self.set_progress(1.0)

    def decide(self, most_steps: int = 1000) -> None:
        """Go on with the encoder alone until what survives with more than 1/2 does so for certain, the rest not at all.

        Needs no map: all patterns are enumerated. The policy learns in the last eighth what comes of it.
        """
        encoder = (self.hidden_weight, self.hidden_bias, self.survival_weight, self.survival_bias)
        adam = torch.optim.Adam(encoder, 0.003)
        survives = self._of_patterns(encoder).detach() > 0.5
        for _ in range(most_steps):
            uncut = self._of_patterns(encoder)
            loss = torch.where(survives, 1 + SLACK - uncut, uncut + SLACK).relu().sum()
            if float(loss.detach()) == 0:
                break
            gradients = torch.autograd.grad(loss, encoder)
            for parameter, gradient in zip(encoder, gradients, strict=True):
                parameter.grad = gradient
            adam.step()
        adam.zero_grad()


def _log(p: Tensor) -> Tensor:
    return torch.where(p > 0, p.clamp(min=torch.finfo(p.dtype).tiny).log(), -math.inf)


def floor_of(x: Tensor) -> float:
    """Return the log value of what has no way on a map of this size."""
    return -math.log(4) * (x.shape[-2] * x.shape[-1] + 1)


def _uniform(*shape: int, fan_in: int) -> nn.Parameter:
    """Return weights drawn as torch draws those of a convolution: uniform within 1 / sqrt(fan in)."""
    return nn.Parameter(torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5))
