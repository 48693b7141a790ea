"""Numbers below 1.2e-38, which processors are many times slower with: counted as zero while a planner trains."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_ENVIRONMENT_BYTES = 256
"""Room for C's `fenv_t`: 32 bytes on x86-64, 8 on ARM."""


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Count numbers below 1.2e-38 as zero until the end of the block, in this thread and in those that work for it.

    Gradients of an unrolled planner may shrink from iteration to iteration down to there. GPUs are not slower there,
    and are left alone.
    """
    smallest = torch.tensor(torch.finfo(torch.float32).tiny)
    before = bool(smallest / 2 == 0)
    _set(True)
    try:
        yield
    finally:
        _set(before)


def _set(flush: bool) -> None:
    """Set this thread's mode and that of torch's OpenMP threads; threads that are started later inherit it.

    The mode is part of a thread's floating-point environment, and OpenMP's threads may have been there for long: each
    takes over this one's. Where torch was built with another pool of threads, that pool keeps its mode.
    """
    torch.set_flush_denormal(flush)
    process = ctypes.CDLL(None)
    threads = torch.get_num_threads()
    if threads > 1 and hasattr(process, "GOMP_parallel") and hasattr(process, "fesetenv"):
        environment = ctypes.create_string_buffer(_ENVIRONMENT_BYTES)
        process.fegetenv(environment)
        process.GOMP_parallel(process.fesetenv, environment, ctypes.c_uint(threads), ctypes.c_uint(0))
