"""How the field of learned costs measures: what ways cost over the least, and the order of the recovered costs.

- *Cost ratio*: what the policy's way from a problem's one start costs (as `exact` judges it: its own start, or else the
  farthest cell), over the cheapest way's; the mean over the maps where it arrives. Where one starts costs nothing.
- *Cost rank*: Spearman's correlation of what a mapper says that a cell costs with what it does, over all cells of all
  maps together, ties at their mean rank: costs are recovered up to scale, so their order is what there is to compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from planners.training.rollout import follow


def cost_ratio(parts: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean ratio, at least 1; None where no way arrives.

    Args:
        parts: By name what `planners.training.measures.Facts` has.
    """
    found = []
    for part in parts:
        distance = part["distance"].flatten(1)
        arrived, cost = follow(part["actions"], part["free"].bool(), part["goal"].long(), part["moves"])
        if part["start"] is None:
            here = torch.where(torch.isfinite(distance), distance, -1.0).argmax(1, keepdim=True)
        else:
            here = (part["start"][:, :1].long() * cost.shape[2] + part["start"][:, 1:].long()).to(distance.device)
        least, taken = (of.flatten(1).gather(1, here).squeeze(1).double() for of in (distance, cost))
        counts = arrived.flatten(1).gather(1, here).squeeze(1) & (least > 0)
        found.append((taken / least)[counts])
    ratios = torch.cat(found)
    return float(ratios.mean().clamp(min=1.0)) if len(ratios) else None


def rank_correlation(found: Tensor, true: Tensor) -> float | None:
    """Return Spearman's rank correlation of two sets of numbers; None where either is all the same, or has a nan."""
    if found.isnan().any():
        return None
    x, y = (_ranks(part.flatten()) for part in (found, true))
    x, y = x - x.mean(), y - y.mean()
    size = x.square().sum().sqrt() * y.square().sum().sqrt()
    return float((x * y).sum() / size) if size > 0 else None


def _ranks(numbers: Tensor) -> Tensor:
    """Return the place of each number in their order, equal ones at the mean of their places, in float64."""
    _, number, count = torch.unique(numbers, return_inverse=True, return_counts=True)
    return (count.cumsum(0) - (count - 1) / 2.0).double()[number]
