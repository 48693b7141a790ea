"""Threads that are given no processor, as on a busy machine, are not waited for."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from planners.compiled.threads import run_in_threads


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_a_thread_that_does_not_begin_is_not_waited_for(three_threads, monkeypatch):
    monkeypatch.setattr(ThreadPoolExecutor, "_adjust_thread_count", lambda pool: None)
    done = []
    run_in_threads(lambda first, last: done.extend(range(first, last)), 20)
    assert done == list(range(20))


def test_every_sample_is_done_once_and_an_error_is_told(three_threads):
    done = []
    run_in_threads(lambda first, last: done.extend(range(first, last)), 50)
    assert sorted(done) == list(range(50))
    with pytest.raises(ZeroDivisionError):
        run_in_threads(lambda first, last: 1 // 0, 50)


@pytest.mark.parametrize(("set_before", "expected"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_torchs_threads_wait_asleep(set_before, expected):
    """As its library of threads says when it is loaded: a spin of a thousand rounds, then the processor is let go."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment = {**kept, **set_before, "OMP_DISPLAY_ENV": "VERBOSE"}
    command = [sys.executable, "-c", "import planners; import torch"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr
    if "GOMP_SPINCOUNT" not in said:
        pytest.skip("torch has other threads here")
    assert f"GOMP_SPINCOUNT = '{expected}'" in said
