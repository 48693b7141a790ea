"""Cheapest ways over cells, each of which the map says how likely it is to be survived: no model but the costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from planners.cores.reachability import LEAST_LOG_ADVANTAGE, NEIGHBOURS, ReachabilityStep, floor_of

if TYPE_CHECKING:
    from planners.options import ShortestPathOptions

_LOG_COST, _SPREAD = -6.0, 0.01
"""What a move costs at first, as a logarithm: little beside cells, and the ways of two seeds differ in ties alone."""


@dataclass(frozen=True, eq=False)
class ShortestPathStep(ReachabilityStep):
    """The step of `Reachability` where latent action a is move a."""

    def policy(self, u: Tensor) -> Tensor:
        """Return the scaled log advantages of the moves, [B, actions, h, w], over what the cell itself is worth.

        At the fixed point that is the best move's, where there is one; differences are taken in u's own precision.
        """
        worth = (self.moves + (self._near(u)[:, 1:] - u)).to(self.head.dtype)
        return self.scale * worth.clamp(min=LEAST_LOG_ADVANTAGE)


class ShortestPath(nn.Module):
    """Shortest paths over the costs of cells, which a mapper learns through them.

    u'(x) = max_a u(x + a) - c(x + a) - w_a,    u(goal) = 0,    c = -log p

    p(x) is the map, the probability that cell x is free, and exp(-w_a) that of surviving move a anywhere, learned:
    the step is that of `Reachability` where a latent action is a move of the task, and -u is the cost of the cheapest
    way. What is 0 in the map is a wall. The policy is the moves' own advantage in u.

    The value rises to u* from u_0 = [x is the goal] in as many steps as the longest cheapest way has; `best_first`
    settles each cell once (Dijkstra's algorithm), and the adjoint is the flow of the gradient down the tree of cheapest
    ways, exact in one pass.

    Training sharpens the policy (`progress`): its scale grows from `first_scale` to `advantage_scale`. A soft policy's
    cross-entropy begins anywhere, but is least at costs whose ratios are too small; a sharp one's asks that the
    expert's ways be the cheapest, and no more.

    Limits: a cell costs the same whichever way it is entered, up to w_a.

    Args:
        options: Scale of the policy.
        wrap: True on the torus.
        actions: Number of moves: 4 (north, west, south, east), or 8, row by row.
        in_channels: Channels of the input: map and goal.
    """

    progress: Tensor

    def __init__(self, options: ShortestPathOptions, *, wrap: bool, actions: int = 4, in_channels: int = 2) -> None:
        super().__init__()
        if actions not in NEIGHBOURS or in_channels != 2:
            raise ValueError(
                f"core 'shortest_path' plans by 4 or 8 moves over map and goal, got {actions} moves and "
                f"{in_channels} channels"
            )
        self.wrap, self.options, self.neighbours = wrap, options, NEIGHBOURS[actions]
        self.log_costs = nn.Parameter(torch.empty(actions).uniform_(_LOG_COST - _SPREAD, _LOG_COST + _SPREAD))
        self.register_buffer("progress", torch.zeros(()))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ShortestPath:
        """Move all but `progress`, which every step asks for: on a device, the host would have to wait for it."""
        progress = self.progress
        super()._apply(fn, recurse)
        self.progress = progress
        return self

    @property
    def scale(self) -> float:
        """The factor on the log advantages by now."""
        first, last = self.options.first_scale, self.options.advantage_scale
        return first * (last / first) ** float(self.progress)

    def set_progress(self, fraction: float) -> None:
        """Sharpen the policy as training goes on."""
        self.progress.fill_(fraction)

    def penalty(self, r: Any, v: Tensor, arriving: Tensor) -> Tensor:
        """Return what training adds to the loss: nothing."""
        return v.new_zeros(())

    def finish(self) -> None:
        """Stay as sharp as at last."""
        self.set_progress(1.0)

    def encode(self, x: Tensor) -> ShortestPathStep:
        """Return the step."""
        free = x[:, :1]
        return self._step(x, -free.clamp(min=torch.finfo(x.dtype).tiny).log())

    def encode_with_costs(self, x: Tensor, costs: Tensor) -> ShortestPathStep:
        """Return the step where the costs of cells are given; of the map, walls alone count.

        Args:
            x: As `encode` takes it.
            costs: [B, 1, h, w], at least 0; differentiable.
        """
        return self._step(x, costs.to(x.dtype))

    def _step(self, x: Tensor, costs: Tensor) -> ShortestPathStep:
        actions, own = len(self.log_costs), self.log_costs.exp()
        dearest = costs.detach().sum((1, 2, 3), keepdim=True) - own.detach().sum() * floor_of(x)
        floor = floor_of(x) - dearest
        leads = torch.cat([x.new_zeros(actions, 1), torch.eye(actions, dtype=x.dtype, device=x.device)], 1)
        return ShortestPathStep(
            given=self._moves(x, -own[:, None, None]),
            goal=torch.where(x[:, 1:2] > 0.5, x.new_zeros(()), floor),
            taps=leads.log(),
            neighbours=self.neighbours,
            wrap=self.wrap,
            sharp=True,
            head=leads[:, 1:],
            scale=self.scale,
            discount=1.0,
            costs=costs,
            floor=floor,
        )

    def _moves(self, x: Tensor, worth: Tensor) -> Tensor:
        """Return what each move is worth, [B, actions, h, w]: -inf where it leaves a wall or leads into one."""
        free, (h, w) = (x[:, :1] > 0).to(x.dtype), x.shape[-2:]
        if x.device.type == "cpu" and not torch.compiler.is_exporting() and bool(free.all()):
            return worth.expand(len(x), -1, h, w)  # as of most maps that a mapper makes
        if self.wrap:
            tall = torch.cat([free[:, :, -1:], free, free[:, :, :1]], dim=2)
            around = torch.cat([tall[..., -1:], tall, tall[..., :1]], dim=3)
        else:
            around = functional.pad(free, (1, 1, 1, 1))
        entered = [around.narrow(2, n // 3, h).narrow(3, n % 3, w) for n in self.neighbours[1:]]
        return torch.where(torch.cat(entered, dim=1) * free > 0, worth, -math.inf)
