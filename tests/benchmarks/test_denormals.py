"""That flushing denormal numbers leaves the gradient alone."""

from __future__ import annotations

import pytest

from benchmarks.denormals import compare


@pytest.mark.parametrize("core", ["vin", "symvin"])
def test_the_gradient_is_the_same_either_way(core):
    found = compare(core, size=9, k=20, rounds=1)
    assert found["kept_gradient"] == pytest.approx(found["flushed_gradient"], rel=1e-6) != 0
    assert min(found["kept_seconds"], found["flushed_seconds"]) > 0
