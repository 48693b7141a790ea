"""The 3x3 cells around each cell as one number: where those are zeros and ones, all that an encoder says is a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

PATTERNS = 10 * 512
"""Free cells as nine bits, times where among the nine the goal is: nowhere, or at one of them."""


@dataclass(frozen=True, eq=False)
class LookedUp:
    """Logarithms of the survival of latent actions in a batch, by the local pattern of each cell.

    Attributes:
        table: [PATTERNS, q_channels].
        pattern: int16 [B, h, w], the row of each cell.
        derived: What compiled loops have made of the table, by their own names; kept for as long as the table.
    """

    table: Tensor
    pattern: Tensor
    derived: dict[str, Any] = field(default_factory=dict)


def patterns(x: Tensor, wrap: bool) -> Tensor | None:
    """Return the number of each cell's pattern, int16 [B, h, w]; None where patterns do not say all of the input.

    Row 512 g + n has the free cells that n's bits tell, row by row from the lowest, and the goal at cell g - 1; nowhere
    with g = 0.

    Args:
        x: Map and goal, [B, 2, h, w], on the CPU; each 0 or 1, and at most one goal.
        wrap: Whether the maps are toruses.
    """
    height, width = x.shape[-2:]
    if x.shape[1] != 2 or x.device.type != "cpu" or (wrap and min(height, width) < 3):
        return None  # round a narrow torus, the same goal is seen twice
    given = x.detach().numpy()
    if not ((given == 0) | (given == 1)).all():
        return None
    bits = given.astype(np.uint8)
    goals = bits[:, 1].reshape(len(bits), -1)
    if (np.add.reduce(goals, 1, np.int64) > 1).any():
        return None
    free = np.zeros((len(bits), height + 2, width + 2), np.int16)
    free[:, 1:-1, 1:-1] = bits[:, 0]
    if wrap:
        free[:, [0, -1], 1:-1] = bits[:, 0, [-1, 0]]
        free[:, :, [0, -1]] = free[:, :, [-2, 1]]
    column = free[:, :-2] + 8 * free[:, 1:-1] + 64 * free[:, 2:]
    found = column[:, :, :-2] + 2 * column[:, :, 1:-1] + 4 * column[:, :, 2:]
    for sample, goal in enumerate(goals.argmax(1).tolist()):
        if goals[sample, goal]:
            for place in range(9):
                row, line = goal // width - (place // 3 - 1), goal % width - (place % 3 - 1)
                if wrap:
                    row, line = row % height, line % width
                if 0 <= row < height and 0 <= line < width:
                    found[sample, row, line] += 512 * (place + 1)
    return torch.from_numpy(found)
