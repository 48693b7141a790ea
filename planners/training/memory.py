"""How much tensor memory a piece of work needs at its peak."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryLimitExceeded(RuntimeError):
    """The work needs more tensor memory than its limit; `peak_bytes` is what it had reached."""

    def __init__(self, peak_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"tensors take {peak_bytes / 2**30:.2f} GiB, the limit is {limit_bytes / 2**30:.2f} GiB")
        self.peak_bytes = peak_bytes


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Mark an error that leaves the block with what was being done, so that its reader can say where memory ran out.

    Args:
        name: "forward", "backward", "update", "validation" or "test"; of nested blocks, the innermost counts.
    """
    try:
        yield
    except Exception as error:
        if not hasattr(error, "phase"):
            error.phase = name  # type: ignore[attr-defined]
        raise


class TensorMemory(TorchDispatchMode):
    """Counts the bytes of all tensor storages alive inside a `with` block, on the CPU as CUDA counts its own.

    What autograd saves, temporaries and gradients are all storages, so the peak is what a card would need, without the
    allocator's rounding and cache. It costs microseconds per operation: meter a few steps, not all.

    Attributes:
        peak_bytes: Most bytes alive at once.
    """

    def __init__(self, held: Iterable[Tensor] = (), limit_bytes: int | None = None) -> None:
        """Start from the tensors `held` outside the block (parameters, optimiser state, the batch).

        Args:
            held: Tensors that count from the start.
            limit_bytes: Raise `MemoryLimitExceeded` as soon as more are alive; None for no limit.
        """
        super().__init__()
        self._live: dict[int, int] = {}
        self._live_bytes = 0
        self._limit_bytes = limit_bytes
        self.peak_bytes = 0
        for tensor in held:
            self._watch(tensor)

    @property
    def live_bytes(self) -> int:
        """Bytes alive now."""
        return self._live_bytes

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def _watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._live:
            return
        self._live[key] = storage.nbytes()
        self._live_bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self._live_bytes)
        weakref.finalize(storage, self._forget, key)
        if self._limit_bytes is not None and self._live_bytes > self._limit_bytes:
            raise MemoryLimitExceeded(self.peak_bytes, self._limit_bytes)

    def _forget(self, key: int) -> None:
        self._live_bytes -= self._live.pop(key)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and watch what it returns."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                self._watch(leaf)
        return result


def state_tensors(*holders: torch.nn.Module | torch.optim.Optimizer) -> list[Tensor]:
    """Return the parameters, gradients, buffers and optimiser state of `holders`."""
    tensors: list[Tensor] = []
    for holder in holders:
        if isinstance(holder, torch.optim.Optimizer):
            tensors += [leaf for leaf in tree_leaves(list(holder.state.values())) if isinstance(leaf, Tensor)]
        else:
            tensors += [*holder.parameters(), *holder.buffers()]
            tensors += [parameter.grad for parameter in holder.parameters() if parameter.grad is not None]
    return tensors
