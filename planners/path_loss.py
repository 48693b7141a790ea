"""The loss of learned terrain and its gradient in one pass.

Legend: u = log v, minus the cost of the cheapest way; a moves, whose own cost is small beside those of cells.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from planners.compiled.layout import compiled
from planners.compiled.reachability.kernel import Leads, settle_batch
from planners.cores.reachability import LEAST_LOG_ADVANTAGE
from planners.cores.shortest_path import ShortestPath


def path_loss(core: ShortestPath, costs: Tensor, goal: Tensor, label: Tensor, cells: Tensor) -> Tensor:
    """Return the cross-entropy of the moves that given ways make, as training by `labels: path` has it.

    Every operation from costs to loss is in one compiled loop, its gradient too, which flows down the tree of cheapest
    ways: half the time of the planner's own, for maps without walls, not on the torus, on the CPU. It can be
    differentiated once.

    Args:
        core: Whose moves and sharpness it takes.
        costs: [B, h, w], positive: what entering each cell costs.
        goal: [B, 1, h, w], 1 at the goal.
        label: int64 [B, h, w], the move that the way makes in its cells.
        cells: bool [B, h, w], the cells that ways leave.

    Returns:
        The mean over all those cells.

    Raises:
        ValueError: What is given is none of that; the compiled loop itself checks nothing.
    """
    if core.wrap or costs.device.type != "cpu":
        raise ValueError("path_loss: expected a map that is no torus, on the CPU")
    _check(core, costs, goal, label, cells)
    loss: Tensor = _PathLoss.apply(costs, core.log_costs.exp(), goal[:, 0] > 0.5, label, cells, core)
    return loss


def _check(core: ShortestPath, costs: Tensor, goal: Tensor, label: Tensor, cells: Tensor) -> None:
    if costs.ndim != 3 or not costs.is_floating_point() or not bool(((costs > 0) & costs.isfinite()).all()):
        raise ValueError(f"costs: expected finite ones above 0, [B, h, w], got {costs.dtype} {list(costs.shape)}")
    batch, height, width = costs.shape
    if goal.shape != (batch, 1, height, width) or not bool(((goal > 0.5).sum((1, 2, 3)) == 1).all()):
        raise ValueError(f"goal: expected {[batch, 1, height, width]} with one goal each, got {list(goal.shape)}")
    moves = len(core.log_costs)
    if label.shape != costs.shape or label.dtype != torch.int64:
        raise ValueError(f"label: expected int64 {list(costs.shape)}, got {label.dtype} {list(label.shape)}")
    if cells.shape != costs.shape or cells.dtype != torch.bool:
        raise ValueError(f"cells: expected bool {list(costs.shape)}, got {cells.dtype} {list(cells.shape)}")
    if bool(((label < 0) | (label >= moves))[cells].any()):
        raise ValueError(f"label: expected moves from 0 to {moves - 1} in the cells of ways")


class _PathLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, costs: Tensor, own: Tensor, goal: Tensor, label: Tensor, cells: Tensor, core: Any) -> Tensor:
        places = np.array(core.neighbours)
        moves = np.eye(len(own), 1 + len(own), 1)
        leads = Leads(moves, places // 3 - 1, places % 3 - 1, False)
        entering, paid = costs.detach().double().contiguous().numpy(), own.detach().double().numpy()
        u, taken = np.empty(entering.shape), np.empty(entering.shape, np.int64)
        changes, sweeps = np.empty(len(u)), np.empty(len(u), np.int64)
        row, floor = np.zeros((1, *u.shape[1:]), np.int32), np.full(len(u), -np.inf)
        out = (u, taken, changes, sweeps)
        settle_batch(0, len(u), row, -paid[None, :, None], entering, leads, goal.numpy(), floor, out)
        of_costs, of_moves = np.zeros(u.shape), np.zeros(len(paid))
        rule = (core.scale, LEAST_LOG_ADVANTAGE)
        loss = _differentiated(u, taken, entering, paid, leads, label.numpy(), cells.numpy(), rule, of_costs, of_moves)
        ctx.of_costs, ctx.of_moves = torch.from_numpy(of_costs).to(costs), torch.from_numpy(of_moves).to(own)
        return costs.new_tensor(loss)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("path_loss can't be differentiated again (create_graph=True)")
        return grads[0] * ctx.of_costs, grads[0] * ctx.of_moves, None, None, None, None


@compiled
def _differentiated(
    u: Any, taken: Any, costs: Any, own: Any, leads: Any, label: Any, cells: Any, rule: Any, of_costs: Any, of_own: Any
) -> float:
    """Return the loss and add its gradient to `of_costs` [B, h, w] and `of_own` [moves]."""
    scale, least = rule
    _, rows, columns, _ = leads
    batch, height, breadth = u.shape
    share, loss = 1.0 / max(1, cells.sum()), 0.0
    worth, odds = np.empty(len(own)), np.empty(len(own))
    for b in range(batch):
        of_u = np.zeros((height, breadth))
        for y in range(height):
            for x in range(breadth):
                if not cells[b, y, x]:
                    continue
                for a in range(len(own)):
                    i, j = y + rows[a + 1], x + columns[a + 1]
                    inside = 0 <= i < height and 0 <= j < breadth
                    worth[a] = u[b, i, j] - costs[b, i, j] - own[a] - u[b, y, x] if inside else -np.inf
                    odds[a] = np.exp(scale * max(least, worth[a]))
                total = odds.sum()
                loss += share * (np.log(total) - scale * max(least, worth[label[b, y, x]]))
                for a in range(len(own)):
                    if worth[a] <= least:
                        continue
                    pull = share * scale * (odds[a] / total - (1.0 if a == label[b, y, x] else 0.0))
                    i, j = y + rows[a + 1], x + columns[a + 1]
                    of_u[i, j] += pull
                    of_u[y, x] -= pull
                    of_costs[b, i, j] -= pull
                    of_own[a] -= pull
        for cell in np.argsort(u[b].ravel()):  # farthest first: what a cell is worth, its way's cells are
            y, x = cell // breadth, cell % breadth
            a = taken[b, y, x]
            if a >= 0 and of_u[y, x] != 0.0:
                i, j = y + rows[a + 1], x + columns[a + 1]
                of_u[i, j] += of_u[y, x]
                of_costs[b, i, j] -= of_u[y, x]
                of_own[a] -= of_u[y, x]
    return loss
