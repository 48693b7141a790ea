"""Threads over the samples of a batch, for kernels that work on the samples first..last-1."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import torch

CHUNKS_PER_THREAD = 4


def run_in_threads(loop: Callable[..., None], batch: int, *args: Any) -> None:
    """Run loop(first, last, *args) over the batch on `torch.get_num_threads()` threads.

    Threads of our own, for this call alone, rather than a compiler's thread pool: those break after a fork (OpenMP)
    or when two Python threads use them at once (numba's work queue), and know nothing of torch's number of threads.
    Nobody waits at a barrier: on a busy machine a thread may not be given a processor for long, and one that has not
    begun by the time all is done is not waited for.
    """
    threads = min(torch.get_num_threads(), batch)
    if threads <= 1:
        return loop(0, batch, *args)
    chunks = min(batch, threads * CHUNKS_PER_THREAD)
    parts = iter(list(pairwise(batch * i // chunks for i in range(chunks + 1))))

    def work() -> None:
        for first, last in parts:  # the iterator is shared: who is done first takes the next part
            loop(first, last, *args)

    pool = ThreadPoolExecutor(threads - 1)
    try:
        others = [pool.submit(work) for _ in range(threads - 1)]
        work()
        for other in others:
            if not other.cancel():  # it has begun, and may have a part that is not done
                other.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
