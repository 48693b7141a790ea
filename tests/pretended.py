"""A device that is none: an accelerator for torch, its numbers kept on the CPU, which tells who waits for it.

Within `pretended_device()` tensors can be made on and moved to `DEVICE`. Operations run there as on a GPU, whose rules
are checked at each: no tensor of the host's beside the device's, and within `no_waiting()` nothing that a GPU would
have to be waited for: reading a number, indexing by a mask, copies from or to memory that is not pinned.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

_WAITING = (
    "_local_scalar_dense",
    "bincount",
    "equal",
    "linalg_cholesky",
    "_linalg_eigh",
    "_linalg_svd",
    "masked_select",
    "nonzero",
    "_unique2",
)


class Waited(RuntimeError):
    """The host would have waited for the device."""


class Event:
    """A mark in the device's queue; `query` says no at first, as where the device is behind."""

    def __init__(self, enable_timing: bool = False) -> None:
        self._asked, self._at = 0, 0.0

    def record(self) -> None:
        self._at = time.perf_counter()

    def query(self) -> bool:
        self._asked += 1
        return self._asked > 2

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end._at - self._at)


class _Module(_DummyBackendModule):
    Event = Event

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Return what autocast may compute in; torch asks of any device before it checkpoints."""
        return [torch.bfloat16]

    def is_current_stream_capturing(self) -> bool:
        return _Device.capturing

    def synchronize(self, device: Any = None) -> None:
        if _Device.waiting_forbidden:
            raise Waited("synchronize")

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        pass

    def max_memory_allocated(self, device: Any = None) -> int:
        return 12345


_setup_privateuseone_for_python_backend("pretended", backend_module=_Module())
DEVICE = torch.device("pretended:0")


class OnDevice(Tensor):
    """A tensor on the device; `raw` has its numbers."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> OnDevice:
        made = Tensor._make_wrapper_subclass(
            cls, raw.shape, strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype, device=DEVICE
        )
        made.raw = raw
        return made

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.raw})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Device(TorchDispatchMode):
    waiting_forbidden = False
    capturing = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def pretended_device() -> Iterator[torch.device]:
    """Have `DEVICE` in the block."""
    before, tensor = torch.__future__.get_swap_module_params_on_conversion(), torch.tensor

    def made_there(data: Any, *, device: Any = None, **kwargs: Any) -> Tensor:
        return tensor(data, **kwargs).to(device)

    torch.__future__.set_swap_module_params_on_conversion(True)  # `data = ...` would leave `raw` what it was
    torch.tensor = made_there  # which asks the device for memory without a word to `_Device`
    try:
        with _Device():
            yield DEVICE
    finally:
        torch.tensor = tensor
        torch.__future__.set_swap_module_params_on_conversion(before)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raise `Waited` where the host would wait for the device."""
    before, _Device.waiting_forbidden = _Device.waiting_forbidden, True
    try:
        yield
    finally:
        _Device.waiting_forbidden = before


@contextmanager
def capture() -> Iterator[None]:
    """Refuse what no graph could hold: waiting, and anything that comes from the host or goes there."""
    _Device.capturing = True
    try:
        with no_waiting():
            yield
    finally:
        _Device.capturing = False


def _raw(leaf: Any) -> Any:
    return leaf.raw if isinstance(leaf, OnDevice) else leaf


def _check(func: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> None:
    name = func._schema.name.removeprefix("aten::")
    ours = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    if name in ("_to_copy", "copy_"):
        to = OnDevice if str(kwargs.get("device", DEVICE if ours else "cpu")).startswith("pretended") else Tensor
        ends = tensors if name == "copy_" else [*tensors, to]
        kinds = {end is OnDevice or isinstance(end, OnDevice) for end in ends}
        host = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
        queued = kwargs.get("non_blocking", len(args) > 2 and args[2]) and all(hasattr(one, "pinned") for one in host)
        queued = queued and not _Device.capturing
        if len(kinds) == 2 and not (queued and host) and _Device.waiting_forbidden:
            raise Waited(f"{func}: a copy between host and device that is waited for")
        return
    masks = name.startswith("index") and any(tensor.dtype == torch.bool for tensor in ours[1:])
    if _Device.waiting_forbidden and ours and (name in _WAITING or masks):
        raise Waited(f"{func}: the number is not known before the device has come so far")
    if ours and name != "_local_scalar_dense":
        for tensor in tensors:
            if not isinstance(tensor, OnDevice) and (tensor.ndim or name.startswith("index")):
                raise RuntimeError(f"{func}: a tensor [{tuple(tensor.shape)}] of the host's beside one of the device's")


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    wanted = kwargs.get("device")
    ours = any(isinstance(tensor, OnDevice) for tensor in tensors)
    there = ours if wanted is None else torch.device(wanted).type == DEVICE.type
    if ours or there:
        _check(func, args, kwargs, tensors)
    own = {id(_raw(tensor)): tensor for tensor in tensors if isinstance(tensor, OnDevice)}
    given = tree_map(_raw, kwargs)
    if there and wanted is not None:
        given["device"] = "cpu"
    name = func._schema.name.removeprefix("aten::")
    if name == "is_pinned":
        return hasattr(args[0], "pinned")
    pinned = given.pop("pin_memory", False) or name == "_pin_memory"
    found = args[0].clone() if name == "_pin_memory" else func(*tree_map(_raw, args), **given)
    if pinned:
        found.pinned = True
    if ours and args and found is _raw(args[0]):
        return args[0]  # changed in place
    if not there:
        return found

    def on_device(leaf: Any) -> Any:
        return own.get(id(leaf), OnDevice(leaf)) if isinstance(leaf, Tensor) else leaf

    return tree_map(on_device, found)
