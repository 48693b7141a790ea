"""The two operations that Bellman-like steps share: a convolution that keeps the map's size, and the maximum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datagen.shapes import shaped

if TYPE_CHECKING:
    from jaxtyping import Float


@shaped
def convolve(
    x: Float[Tensor, "B in h w"],
    weight: Float[Tensor, "out in F F"],
    bias: Float[Tensor, " out"] | None = None,
    *,
    wrap: bool,
) -> Float[Tensor, "B out h w"]:
    """Correlate x with a filter of odd size, keeping height and width.

    Args:
        x: [B, in, h, w].
        weight: [out, in, F, F], F odd.
        bias: [out] or None.
        wrap: True pads circularly (the torus), False with zeros.

    Returns:
        [B, out, h, w].
    """
    padding = weight.shape[-1] // 2
    if not (wrap and padding):
        return F.conv2d(x, weight, bias, padding=padding)
    if padding <= min(x.shape[2:]):
        return F.conv2d(F.pad(x, (padding,) * 4, mode="circular"), weight, bias)
    # torch pads once around at most; a filter larger than the torus sees its cells again and again
    rows, columns = (torch.arange(-padding, length + padding, device=x.device) % length for length in x.shape[2:])
    return F.conv2d(x[:, :, rows[:, None], columns], weight, bias)


class SameConv(nn.Conv2d):
    """A convolution layer that keeps height and width, padded as `convolve` is."""

    def __init__(self, in_channels: int, out_channels: int, size: int, *, wrap: bool, bias: bool = True) -> None:
        super().__init__(
            in_channels, out_channels, size, padding=size // 2, bias=bias, padding_mode="circular" if wrap else "zeros"
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, out_channels, h, w]."""
        return convolve(x, self.weight, self.bias, wrap=self.padding_mode == "circular")


def same_conv(in_channels: int, out_channels: int, size: int, *, wrap: bool, bias: bool = True) -> nn.Conv2d:
    """Return a convolution layer that keeps height and width, padded as `convolve` is."""
    return SameConv(in_channels, out_channels, size, wrap=wrap, bias=bias)


@shaped
def merged(
    weight: Float[Tensor, "hidden in F F"],
    bias: Float[Tensor, " hidden"] | None,
    after: Float[Tensor, "out hidden 1 1"],
) -> tuple[Float[Tensor, "out in F F"], Float[Tensor, " out"] | None]:
    """Return filter and bias of a convolution followed by a 1x1 convolution, as the one convolution that they are.

    The encoders of VIN, SymVIN and ConvGPPN have no activation between their two layers: merging the layers gives
    their reward without the hidden channels ever standing in memory.

    Args:
        weight: [hidden, in, F, F].
        bias: [hidden] or None.
        after: [out, hidden, 1, 1].

    Returns:
        Filter [out, in, F, F] and bias [out] (None without one).
    """
    after = after.flatten(1)
    return torch.einsum("oh,hixy->oixy", after, weight), None if bias is None else after @ bias


def maximum(q: Tensor, dim: int, temperature: float = 0.0) -> Tensor:
    """Return max over `dim` (kept with size 1), or its smoothing T * logsumexp(q / T).

    Both are non-expansive in the max norm, so a contraction stays one at every temperature, and T -> 0 recovers the
    maximum: max <= T logsumexp(q / T) <= max + T log n.

    Where several entries tie, the gradient of the maximum goes to the one index that `torch.max` reports, and to that
    one alone; it is an element of the subdifferential, as the average over the ties would be.
    """
    if temperature > 0:
        if torch.compiler.is_compiling():
            torch._check(q.numel() != 0)  # torch asks, and in a graph for any size can't know
        return temperature * torch.logsumexp(q / temperature, dim, keepdim=True)
    if torch.is_grad_enabled() and q.requires_grad:
        return q.max(dim, keepdim=True).values
    return q.amax(dim, keepdim=True)  # the same values; no index to find, because nothing is differentiated
