"""The device that a trial computes on: which it is, whether it is as large as the spec says, and its limit."""

from __future__ import annotations

import ctypes
import gc
from functools import cache

from orchestrator.sweep.specs import TrialSpec
from orchestrator.sweep.systems import SYSTEMS
from orchestrator.words import first_line

LEAST_GPU_LIMIT_GIB = 0.25
"""No lower limit is enforced on a GPU: cuBLAS takes some 64 MiB there for itself, the allocator whole segments."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGEST_KEPT = 32 << 20
"""Bytes of the largest block that glibc can be asked to keep."""


class PlacementError(RuntimeError):
    """The trial was put on a device that is smaller than its memory limit: no outcome, to be tried on a larger one."""


def may_use_gpu(spec: TrialSpec) -> bool:
    """Return whether a trial computes on a GPU where it is lent one."""
    able = not spec.planner.compiled_solver if spec.system is None else SYSTEMS[spec.system.name].gpu
    return spec.execution.device != "cpu" and able


def device_of(spec: TrialSpec) -> str:
    """Return the torch device that a trial computes on here: "cpu" or "cuda"."""
    import torch

    if spec.execution.device != "auto":
        return spec.execution.device
    return "cuda" if torch.cuda.is_available() and may_use_gpu(spec) else "cpu"


def no_gpu() -> str:
    """Return why torch can't compute on the GPU that this process is lent, empty where it can."""
    import torch

    if not torch.cuda.is_available():
        if torch.version.cuda is None and torch.version.hip is None:
            return f"its torch {torch.__version__} is built for processors alone (TORCH_INDEX in .env chooses another)"
        return f"its torch {torch.__version__} finds none (nvidia-smi tells of the driver)"
    try:
        torch.zeros(1, device="cuda").item()
    except torch.OutOfMemoryError:
        return ""  # others that share it have all of its memory for now
    except RuntimeError as error:
        return f"it fails: {first_line(error)}"
    return ""


def use_processor(threads: int) -> None:
    """Compute with so many threads from here on, in memory that stays this process's."""
    import torch

    torch.set_num_threads(threads)
    keep_freed_memory()


@cache
def keep_freed_memory() -> bool:
    """Have the C library keep up to a GiB that tensors have freed, for the tensors of the next step.

    It gives such blocks back to the system else, which clears every page again before it lends it again: a third of the
    processor's time where a solver allocates its iterates anew. What was computed stays the same to the bit.

    Returns:
        Whether this C library can be asked to (glibc can).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(
        mallopt(name, size) for name, size in ((_M_MMAP_THRESHOLD, _LARGEST_KEPT), (_M_TRIM_THRESHOLD, 1 << 30))
    )


def no_graphs(spec: TrialSpec, device: str) -> str:
    """Return why a trial's training steps are not replayed as CUDA graphs there, empty where they are."""
    import torch

    from planners.training.graphs import refusal

    graphs = spec.execution.graphs
    if spec.system is not None:
        return "a system trains by itself"
    if graphs is False:
        return "execution.graphs is false"
    if spec.training.epochs == 0:
        return "nothing is trained"
    if graphs is None and spec.plugins:
        return "what a plug-in does may wait for the host; execution.graphs: true tries it"
    return refusal(torch.device(device), spec.planner, spec.training)


def check_device(total_bytes: int, name: str, limit_gib: float | None) -> None:
    """Raise PlacementError where a device could not hold what the trial's spec allows.

    Args:
        total_bytes: Memory of the device.
        name: Its model.
        limit_gib: The spec's memory limit, None for none.
    """
    if limit_gib is not None and total_bytes < limit_gib * 2**30:
        raise PlacementError(
            f"{name} has {total_bytes / 2**30:.1f} GiB, less than the trial's limit of {limit_gib:g}: it must run on a "
            f"larger device, e.g. by resources.min_memory_gib: {limit_gib:g}"
        )


def limit_bytes(device: str, limit_gib: float | None) -> int | None:
    """Return the bytes that a trial's tensors may take on a device, None for any; on a GPU not under a least."""
    if limit_gib is None:
        return None
    return int((limit_gib if device == "cpu" else max(limit_gib, LEAST_GPU_LIMIT_GIB)) * 2**30)


def limit_device(device: str, limit_gib: float | None) -> None:
    """Hold a GPU to the trial's memory limit, so that OUT_OF_MEMORY means the same on every model."""
    import torch

    if device != "cuda":
        return
    properties = torch.cuda.get_device_properties(device)
    check_device(properties.total_memory, properties.name, limit_gib)
    limit = limit_bytes(device, limit_gib)
    share = 1.0 if limit is None else limit / properties.total_memory
    gc.collect()  # a graph keeps its memory until its trainer is collected
    torch.cuda.empty_cache()  # of the trial before this one in the process
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_per_process_memory_fraction(min(1.0, share))


def peak_bytes(device: str) -> int | None:
    """Return the most memory that a GPU's tensors took since its limit was set; None for "cpu"."""
    import torch

    return torch.cuda.max_memory_allocated() if device == "cuda" else None
