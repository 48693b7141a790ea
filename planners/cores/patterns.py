"""The 3x3 cells around each cell as one number: where those are zeros and ones, all that an encoder says is a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

PATTERNS = 512
"""Which of nine cells are free."""


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

    Pattern n has the free cells that n's bits tell, row by row from the lowest.

    Args:
        x: Map and goal, [B, 2, h, w], on the CPU; the map 0 or 1.
        wrap: Whether the maps are toruses.
    """
    height, width = x.shape[-2:]
    if x.shape[1] != 2 or x.device.type != "cpu":
        return None
    map = x.detach()[:, 0].numpy()
    if not ((map == 0) | (map == 1)).all():
        return None
    free = np.zeros((len(map), height + 2, width + 2), np.int16)
    free[:, 1:-1, 1:-1] = map
    if wrap:
        free[:, [0, -1], 1:-1] = free[:, [-2, 1], 1:-1]
        free[:, :, [0, -1]] = free[:, :, [-2, 1]]
    column = free[:, :-2] + 8 * free[:, 1:-1] + 64 * free[:, 2:]
    return torch.from_numpy(column[:, :, :-2] + 2 * column[:, :, 1:-1] + 4 * column[:, :, 2:])
