"""Value iteration on a graph, a contraction by construction, as in Convergent Graph Solvers (Park et al., 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from planners.cores import Injected
from road_planning.options import BYTES, MOST_ROADS, GraphOptions

GRID = ((-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1), (0, 1), (-1, 1))
"""Where the roads of a plain map lead, counter-clockwise from north; four moves are every other one."""

NO_ROAD = -1e3
"""Reward of a road that is not there: below any value that is learned here, and finite."""

LOWEST = -50.0
"""Advantages below it are cut off: the logit of a road that is not there, whose softmax is zero."""


class GraphContraction(nn.Module):
    """v'_c(s) = max_d r_c(s, d) + g_c v_c(n(s, d)) over the roads d of node s, every discount g_c below one.

    For all values u and v, |f(u) - f(v)| <= max_c g_c |u - v| in the max norm: on any graph and with any weights there
    is one fixed point, which forward iteration finds. Rewards are learned from what a road is like (its length and
    slowness, whether a goal is at either end), and shared by all roads, so one planner is for graphs of any size
    and shape. Where roads are numbered otherwise, logits are numbered so: nothing depends on their order.

    On a plain map (no channels beside map and goal) the roads are those of the grid, with the map at both ends as what
    they are like: a grid is a graph.

    Args:
        options: Sizes, and the largest discount.
        wrap: On a plain map, True is the torus.
        actions: Roads per node, on a plain map 4 or 8.
        in_channels: Map, goal, and `BYTES` channels per road as `road_planning.task` writes them, scaled to 0..1.
    """

    def __init__(self, options: GraphOptions, *, wrap: bool, actions: int = 4, in_channels: int = 2) -> None:
        super().__init__()
        if in_channels == 2 and actions not in (4, 8):
            raise ValueError(f"graph_contraction: on a plain map there are 4 or 8 moves, got {actions}")
        if in_channels > 2 and (in_channels != 2 + BYTES * actions or actions > MOST_ROADS):
            raise ValueError(f"graph_contraction: expected {BYTES} channels per road, got {in_channels - 2} in all")
        self.wrap, self.actions, self.largest = wrap, actions, options.largest_discount
        # A constant added to all rewards would change no policy, so the last layer has no bias.
        self.reward = nn.Sequential(
            nn.Linear(4, options.hidden_channels),
            nn.ReLU(),
            nn.Linear(options.hidden_channels, options.values, bias=False),
        )
        self.discount_logit = nn.Parameter(torch.linspace(3.0, 2.0, options.values))
        self.head = nn.Parameter(torch.ones(options.values))

    def encode(self, x: Tensor) -> Injected:
        """Return rewards [B, values, h, w, actions] and int64 targets [B, h * w, actions]; shared, the discounts."""
        node, goal = (part.flatten(1) for part in x[:, :2].unbind(1))
        if x.shape[1] == 2:
            target, exists = self._grid(x)
            likes = [node[:, :, None].expand_as(target), _at(node, target)]
        else:
            roads = x[:, 2:].unflatten(1, (self.actions, BYTES)).flatten(3).permute(2, 0, 3, 1)
            target = 256 * (255 * roads[0]).round().long() + (255 * roads[1]).round().long()
            exists = target != torch.arange(target.shape[1], device=x.device)[:, None]
            likes = [roads[2], roads[3]]
        seen = torch.stack([*likes, goal[:, :, None].expand_as(target), _at(goal, target)], 3)
        reward = self.reward(seen).permute(0, 3, 1, 2)
        # An empty slot keeps the value zero; where there are roads, one that is not there is never the best.
        lost = torch.where(exists.any(2, keepdim=True), NO_ROAD, 0.0).to(x.dtype)
        reward = torch.where(exists.unsqueeze(1), reward, lost.unsqueeze(1)).unflatten(2, tuple(x.shape[2:]))
        return Injected((reward, target), (self.largest * self.discount_logit.sigmoid(),))

    def _grid(self, x: Tensor) -> tuple[Tensor, Tensor]:
        height, width = x.shape[2:]
        offsets = torch.tensor(GRID[:: len(GRID) // self.actions], device=x.device)
        row = torch.arange(height, device=x.device)[:, None, None] + offsets[:, 0]
        column = torch.arange(width, device=x.device)[None, :, None] + offsets[:, 1]
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width) | self.wrap
        here = torch.arange(height * width, device=x.device).view(height, width, 1)
        target = torch.where(inside, row % height * width + column % width, here).flatten(0, 1)
        return target.expand(len(x), -1, -1), inside.flatten(0, 1).expand(len(x), -1, -1)

    def initial_value(self, r: Injected) -> Tensor:
        """Return zeros, [B, values, h, w]."""
        return torch.zeros_like(r.per_sample[0][..., 0])

    def action_values(self, v: Tensor, r: Injected) -> Tensor:
        """Return Q, [B, values, h, w, actions]."""
        reward, target = r.per_sample
        ahead = v.flatten(2).gather(2, target.flatten(1).unsqueeze(1).expand(-1, v.shape[1], -1))
        return reward + r.shared[0].view(-1, 1, 1, 1) * ahead.view(reward.shape)

    def step(self, v: Tensor, r: Injected) -> Tensor:
        """Return v', [B, values, h, w]."""
        return self.action_values(v, r).amax(4)

    def policy(self, v: Tensor, r: Injected) -> Tensor:
        """Return logits from the advantages, a road each, [B, actions, h, w]."""
        q = self.action_values(v, r)
        advantage = (10 * (q - q.amax(4, keepdim=True))).clamp(min=LOWEST)
        return torch.einsum("bchwa,c->bahw", advantage, self.head)


def _at(values: Tensor, target: Tensor) -> Tensor:
    """Return values [B, n] of the slots that roads lead to, [B, n, actions]."""
    return values.gather(1, target.flatten(1)).view(target.shape)
