"""Filters tied over the turns and flips of the square grid, exactly and by indexing alone.

An element g of the group moves the map. A bank that holds all images of its filters under the group turns a moved map
into moved channels in permuted order; `images` and `mixed` build such banks from one filter per family.

Legend: G order of the group, T taps of a filter, g and k elements of the group.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

GroupName = Literal["trivial", "C4", "D4"]


class Symmetry(nn.Module):
    """A group of turns and flips as index tables, which move to the device that its owner is moved to.

    Attributes:
        taps: int64 [G, T], where tap t of the image of a filter under g comes from.
        relative: int64 [G, G], the place of g^-1 k.
        undone: int64 [G, actions], g^-1 applied to an action.
    """

    taps: Tensor
    relative: Tensor
    undone: Tensor

    def __init__(self, taps: Tensor, relative: Tensor, undone: Tensor) -> None:
        super().__init__()
        for name, table in (("taps", taps), ("relative", relative), ("undone", undone)):
            self.register_buffer(name, table, persistent=False)

    @property
    def order(self) -> int:
        """G."""
        return len(self.taps)

    def images(self, filters: Tensor) -> Tensor:
        """Return all images of filters [families, in, T] under the group, [G x families, in, T], group first."""
        return filters[:, :, self.taps].permute(2, 0, 1, 3).flatten(0, 1)

    def mixed(self, weights: Tensor) -> Tensor:
        """Return a 1x1 layer between two banks, [G x out, G x in], from weights [out, in, G].

        Channel (g, out) takes channel (k, in) with the weight of g^-1 k, so that moving the input permutes the output.
        """
        order, (out, within, _) = self.order, weights.shape
        return weights[:, :, self.relative].permute(2, 0, 3, 1).reshape(order * out, order * within)

    def acting(self, weights: Tensor) -> Tensor:
        """Return a 1x1 layer from a bank to actions, [actions, G x in], from weights [in, actions]."""
        actions = weights.shape[1]
        return weights[:, self.undone].permute(2, 1, 0).reshape(actions, self.order * weights.shape[0])


def symmetry(name: GroupName, size: int, actions: int) -> Symmetry:
    """Return the tables of a group for filters of `size` x `size` taps and for the four moves.

    Args:
        name: "trivial", "C4" (quarter turns) or "D4" (and flips).
        size: Rows and columns of the filters, odd.
        actions: Number of actions; the moves north, west, south, east where the group is not trivial.

    Raises:
        ValueError: When the group does not act on that many actions.
    """
    if name == "trivial":
        return Symmetry(
            torch.arange(size * size)[None], torch.zeros(1, 1, dtype=torch.long), torch.arange(actions)[None]
        )
    if actions != 4:
        raise ValueError(f"group {name!r} turns the four moves into each other; {actions} actions need group 'trivial'")
    elements = [(flip, turn) for flip in ((False,) if name == "C4" else (False, True)) for turn in range(4)]
    cells = torch.arange(9).view(3, 3)
    places = [_moved(cells, *element).flatten() for element in elements]
    known = {tuple(place.tolist()): number for number, place in enumerate(places)}
    # places[g][i] is the cell whose content g brings to i; following k with g^-1 composes the two in that order.
    relative = [[known[tuple(k[torch.argsort(g)].tolist())] for k in places] for g in places]
    four = torch.tensor([1, 3, 7, 5])  # north, west, south, east of the centre
    undone = [[four.tolist().index(g[move]) for move in four] for g in places]
    taps = [_moved(torch.arange(size * size).view(size, size), *element).flatten() for element in elements]
    return Symmetry(torch.stack(taps), torch.tensor(relative), torch.tensor(undone))


def _moved(x: Tensor, flip: bool, turn: int) -> Tensor:
    return torch.rot90(x.flip(-1) if flip else x, turn, (-2, -1))
