"""Half precision for the solves of a training step, where a spec asks for it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Return the context in which a plan is made: as it is for "float32", torch's autocast for "bfloat16".

    Without autocast's cache of cast weights: what a solver casts without gradients would be found there, without a
    graph, by the one application of f that has one.
    """
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
