from __future__ import annotations

import pytest
import torch

from planners.memory import MemoryLimitExceeded, TensorMemory

UNIT = 1000 * 1000 * 4


def chain(x, steps):
    for _ in range(steps):
        x = torch.tanh(x)
    return x


@pytest.mark.parametrize("steps", [5, 10])
def test_what_autograd_keeps_counts(steps):
    x = torch.randn(1000, 1000, requires_grad=True)
    with TensorMemory([x]) as memory:
        chain(x, steps).sum().backward()
    # x, one output per step, and one gradient: the sum's is a broadcast scalar, and outputs go as gradients come.
    assert memory.peak_bytes == pytest.approx((1 + steps + 1) * UNIT, abs=100)


def test_what_is_freed_does_not_count():
    x = torch.randn(1000, 1000)
    with TensorMemory([x]) as memory:
        chain(x, 50)
    assert memory.peak_bytes == 3 * UNIT


def test_views_and_in_place_operations_cost_nothing():
    x = torch.randn(1000, 1000)
    with TensorMemory([x]) as memory:
        x.view(-1)[:10].mul_(2)
        x.t().add_(1)
    assert memory.peak_bytes == UNIT


def test_the_limit_stops_the_work_before_it_is_passed_by_much():
    x = torch.randn(1000, 1000, requires_grad=True)
    with pytest.raises(MemoryLimitExceeded, match=r"0\.02 GiB") as caught, TensorMemory([x], limit_bytes=5 * UNIT):
        chain(x, 100)
    assert caught.value.peak_bytes == 6 * UNIT
