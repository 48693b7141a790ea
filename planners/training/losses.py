"""What training minimises."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from planners.training.evaluation import Inputs


def cross_entropy(logits: Tensor, inputs: Inputs, *, one_hot: bool) -> Tensor:
    """Return the mean cross-entropy of the actions, a scalar.

    Args:
        logits: [B, actions, h, w].
        inputs: The batch.
        one_hot: Whether one optimal action is right, in all cells; else all are alike, in cells that reach the goal.
    """
    if one_hot:
        return functional.cross_entropy(logits, inputs.label)
    bits = torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1, 1)
    optimal = ((inputs.optimal_actions.unsqueeze(1) >> bits) & 1).to(logits.dtype)
    count = optimal.sum(1, keepdim=True)
    loss = -(logits.log_softmax(1) * optimal / count.clamp(min=1)).sum()
    return loss / (count > 0).sum().clamp(min=1)


def map_loss(map_logits: Tensor | None, inputs: Inputs) -> Tensor:
    """Return the mean cross-entropy of the map that a mapper made, a scalar."""
    assert map_logits is not None
    return functional.binary_cross_entropy_with_logits(map_logits, inputs.map)
