"""Between the host and a device's tensors without waiting: what is sent there, and what is known of it here."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor


def sent(host: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on the device; where that is an accelerator, the copy is only queued there.

    From pinned memory, which the allocator gives to nobody else before the copy is done.
    """
    if device.type == host.device.type:
        return host
    if device.type == "cpu":
        return host.cpu()
    return host.pin_memory().to(device, non_blocking=True)


def capturing(device: torch.device) -> bool:
    """Return whether what is queued on the device now goes into a graph, to be run later."""
    asked = getattr(torch.get_device_module(device), "is_current_stream_capturing", None)
    return False if asked is None else bool(asked())


class Watch:
    """What the host knows of the live samples of a batch: on the CPU all, of an accelerator what has arrived by now.

    A look at an accelerator's numbers would wait until all is done that was queued before it, and leave it idle then.
    So the flags are sent home at each look, and read at a later one, once they have arrived. The host can be
    behind by as much as the device's queue holds, about a thousand launches; a solver that stops its samples on the
    device, as ours do, returns the same all the same.
    """

    def __init__(self) -> None:
        self._under_way: deque[tuple[Tensor, Any]] = deque()

    def seen(self, live: Tensor) -> Tensor | None:
        """Return, on the host, which samples [n] were live at the latest look that is known; None for nothing new.

        Args:
            live: [n] bool, which samples are live now. Who has stopped must not start again.
        """
        if live.device.type == "cpu":
            return live
        if capturing(live.device):
            return None
        home = torch.empty(live.shape, dtype=live.dtype, pin_memory=True)
        home.copy_(live, non_blocking=True)
        arrived = torch.get_device_module(live.device).Event()
        arrived.record()
        self._under_way.append((home, arrived))
        latest = None
        while self._under_way and self._under_way[0][1].query():
            latest = self._under_way.popleft()[0]
        return latest

    def restart(self) -> None:
        """Forget what is under way: from now on `live` has other rows."""
        self._under_way.clear()
