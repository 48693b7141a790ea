"""What turns an observation into map logits (D.1)."""

from __future__ import annotations

from torch import Tensor, nn

from planners.specs import NoOptions


class Identity(nn.Module):
    """The map is given: there is nothing to observe."""

    def __init__(self, options: NoOptions, *, wrap: bool) -> None:
        super().__init__()

    def forward(self, observation: Tensor, size: tuple[int, int]) -> Tensor:
        """Refuse the observation.

        Raises:
            ValueError: Always; a planner that is given its map takes no observation.
        """
        raise ValueError("observation: expected None, because mapper 'identity' plans on the given map")
