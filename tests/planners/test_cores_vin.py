from __future__ import annotations

import math

import pytest
import torch

from planners.cores.layers import convolve, maximum, same_conv
from planners.cores.vin import VIN
from planners.options import VINOptions
from planners.specs import PlannerSpec


def core(wrap=False, **options):
    torch.manual_seed(0)
    made = VIN(VINOptions(hidden_channels=4, q_channels=3, **options), wrap=wrap).double()
    torch.nn.init.normal_(made.w_v)
    return made


@pytest.mark.parametrize("wrap", [False, True])
@torch.no_grad()
def test_a_step_is_the_papers_double_sum(wrap):
    made, (h, w) = core(wrap), (4, 5)
    x = torch.rand(1, 2, h, w, dtype=torch.float64)
    v = torch.rand(1, 1, h, w, dtype=torch.float64)
    reward = made.reward(made.hidden(x))

    def at(plane, i, j):
        if wrap:
            return float(plane[0, 0, i % h, j % w])
        return float(plane[0, 0, i, j]) if 0 <= i < h and 0 <= j < w else 0.0

    expected = torch.empty(h, w, dtype=torch.float64)
    for i in range(h):
        for j in range(w):
            q = [
                sum(
                    float(weight[a, 0, k, m]) * at(plane, i + k - 1, j + m - 1)
                    for weight, plane in ((made.w_r, reward), (made.w_v, v))
                    for k in range(3)
                    for m in range(3)
                )
                for a in range(3)
            ]
            expected[i, j] = max(q)
    torch.testing.assert_close(made.encode(x)(v)[0, 0], expected)


def test_the_value_filter_starts_at_zero():
    assert not VIN(VINOptions(), wrap=False).w_v.any()


def test_the_papers_size():
    made = VIN(VINOptions(), wrap=False)
    assert made.w_v.shape == (100, 1, 3, 3)
    assert sum(p.numel() for p in made.parameters()) == (2 * 150 * 9 + 150) + 150 + 900 + 900 + 400


def test_the_gradient_of_a_tie_goes_to_one_action():
    q = torch.zeros(1, 4, 2, 2, requires_grad=True)
    maximum(q, 1).sum().backward()
    assert q.grad is not None
    assert (q.grad.count_nonzero(dim=1) == 1).all() and (q.grad.sum(dim=1) == 1).all()
    assert torch.equal(q.grad.argmax(dim=1), q.max(dim=1).indices)


def test_the_smoothed_maximum_recovers_the_maximum_within_temperature_times_log_n():
    q = torch.randn(2, 7, 3, 3, dtype=torch.float64)
    sharp = maximum(q, 1)
    for temperature in (1.0, 0.1, 1e-3):
        excess = maximum(q, 1, temperature) - sharp
        assert (excess >= 0).all() and (excess <= temperature * math.log(7) + 1e-12).all()


def test_the_smoothed_maximum_does_not_expand_distances():
    generator = torch.Generator().manual_seed(3)
    p, q = torch.randn(2, 50, 7, 3, 3, dtype=torch.float64, generator=generator)
    for temperature in (0.0, 0.1, 10.0):
        apart = (maximum(p, 1, temperature) - maximum(q, 1, temperature)).abs()
        assert (apart <= (p - q).abs().amax(dim=1, keepdim=True) + 1e-12).all()


def test_without_gradients_the_maximum_is_the_same():
    q = torch.randn(2, 7, 3, 3, requires_grad=True)
    with torch.no_grad():
        assert torch.equal(maximum(q, 1), q.max(dim=1, keepdim=True).values)


def test_convolution_on_the_torus_reaches_over_the_edge():
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 0, 0] = 1
    weight = torch.ones(1, 1, 3, 3)
    assert int(convolve(x, weight, wrap=False).sum()) == 4
    assert int(convolve(x, weight, wrap=True).sum()) == 9


def test_an_even_kernel_is_refused():
    for name in ("vin", "symvin", "conv_gppn", "contractive"):
        with pytest.raises(ValueError, match="kernel_size must be odd"):
            PlannerSpec(core=name, kernel_size=4)


@pytest.mark.parametrize(("height", "width", "size"), [(1, 4, 5), (1, 1, 7), (2, 3, 9), (4, 5, 5)])
def test_a_filter_larger_than_the_torus_wraps_as_often_as_need_be(height, width, size):
    x = torch.rand(2, 3, height, width, dtype=torch.float64)
    weight, reach = torch.rand(4, 3, size, size, dtype=torch.float64), size // 2
    expected = torch.zeros(2, 4, height, width, dtype=torch.float64)
    for i in range(size):
        for j in range(size):
            moved = x.roll((reach - i, reach - j), (2, 3))
            expected += torch.einsum("bchw,oc->bohw", moved, weight[:, :, i, j])
    torch.testing.assert_close(convolve(x, weight, wrap=True), expected)
    layer = same_conv(3, 4, size, wrap=True, bias=False).double()
    torch.testing.assert_close(layer(x), convolve(x, layer.weight, wrap=True))
