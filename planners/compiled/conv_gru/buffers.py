"""Memory for what the unrolled ConvGRU keeps, whose pages one training step leaves to the next.

Fresh pages from the system took a tenth to a seventh of a training step (1.5 us for each 4 KiB of some hundred MiB).
"""

from __future__ import annotations

import weakref

import numpy as np
import torch
from torch import Tensor

from planners.compiled.layout import Floats, compiled

_spare: list[Floats] = []


@compiled
def _fresh(count: int) -> Floats:
    """Return memory of the C library: a memory meter would count torch's twice, numpy's waits for large pages."""
    return np.empty(count, np.float32)


def take_pages(*shape: int) -> Tensor:
    """Return an uninitialised float32 tensor; the pages of the last one that died are used again if they fit exactly.

    At most one tensor's memory is held for that. The result is a view made by an operation of torch's, over a storage
    of its own, so that memory meters see it come and go.
    """
    count = 1
    for n in shape:
        count *= n
    try:
        pages = _spare.pop()
    except IndexError:  # none, or another thread has just taken them
        pages = _fresh(count)
    if pages.size != count:
        pages = _fresh(count)
    lent = pages.view()  # held by the storage made of it, and so by every tensor and array that shares that
    weakref.finalize(lent, _put_back, pages).atexit = False
    return torch.from_numpy(lent).view(shape)


def release_pages() -> None:
    """Give the held memory back to the system, where training is over and the process goes on."""
    _spare.clear()


def _put_back(pages: Floats) -> None:
    _spare[:] = [pages]
