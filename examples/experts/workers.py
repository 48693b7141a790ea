"""Experts on Ray's workers, where there are any: the same function, the same numbers, in this process or another."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any


def each(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], *, away: bool) -> list[Any]:
    """Return the function's values in order.

    Args:
        function: Of a module; what it takes and returns can be sent.
        arguments: Of each call.
        away: Call it in tasks of Ray's, if this process is in a cluster.
    """
    ray: Any = sys.modules.get("ray")
    if not away or ray is None or not ray.is_initialized():
        return [function(*values) for values in arguments]
    # The trial that waits has a processor of its own and lends it to none: tasks that ask for one might wait forever.
    task = ray.remote(num_cpus=0, max_retries=2, scheduling_strategy="SPREAD")(function)
    found: list[Any] = ray.get([task.remote(*values) for values in arguments])
    return found
