"""Learning from single ways: of each problem, what its expert did between the start and the goal, and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from datagen.problem import Moves
from datagen.shapes import shaped
from planners.training.evaluation import Inputs

if TYPE_CHECKING:
    from jaxtyping import Bool, Int64, Integer


@shaped
def path_cells(
    label: Int64[Tensor, "B h w"], start: Integer[Tensor, "B 2"], goal: Integer[Tensor, "B 2"], moves: Moves
) -> Bool[Tensor, "B h w"]:
    """Return the cells of each problem's way, the goal left out.

    Args:
        label: One optimal action of each cell.
        start: Row and column, from which a way leads to the goal.
        goal: Row and column.
        moves: What the actions do.
    """
    on, row = torch.zeros_like(label, dtype=torch.bool), torch.arange(len(label), device=label.device)
    offsets = torch.tensor(moves.offsets, device=label.device)
    shape = torch.tensor(label.shape[1:], device=label.device)
    at = start
    for _ in range(label[0].numel()):
        away = (at != goal).any(1)
        if not bool(away.any()):
            break
        here = (row, at[:, 0], at[:, 1])
        on[here] |= away
        at = torch.where(away[:, None], (at + offsets[label[here]]) % shape, at)
    return on


def path_cross_entropy(logits: Tensor, inputs: Inputs, moves: Moves) -> Tensor:
    """Return the mean cross-entropy of the actions on the cells of one way of each problem, a scalar.

    Raises:
        ValueError: Problems name no start, or bring roads of their own.
    """
    if inputs.start is None or moves.links:
        raise ValueError("labels: 'path' follows the expert from each problem's start; these name none on a grid")
    goal = inputs.goal[:, 0].flatten(1).argmax(1)
    goal = torch.stack([goal // logits.shape[3], goal % logits.shape[3]], 1)
    on = path_cells(inputs.label, inputs.start, goal, moves)
    return functional.cross_entropy(logits.permute(0, 2, 3, 1)[on], inputs.label[on])
