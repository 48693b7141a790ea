"""Spatial Planning Transformer (Chaplot et al. 2021) and its implicit version (C.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datagen.shapes import shaped
from planners.cores import Injected

if TYPE_CHECKING:
    from jaxtyping import Float

    from planners.options import SPTOptions

# v value: one embedding per cell


class SelfAttention(nn.Module):
    """One transformer layer over all cells: v <- LN(v + Attention(v)), then v <- LN(v + FF(v))."""

    def __init__(self, embedding: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(embedding, 3 * embedding)
        self.merge = nn.Linear(embedding, embedding)
        self.feedforward = nn.Sequential(
            nn.Linear(embedding, feedforward), nn.ReLU(), nn.Linear(feedforward, embedding)
        )
        self.after_attention = nn.LayerNorm(embedding)
        self.after_feedforward = nn.LayerNorm(embedding)

    @shaped
    def forward(self, tokens: Float[Tensor, "B cells embedding"]) -> Float[Tensor, "B cells embedding"]:
        """Return the layer's output, [B, cells, embedding] -> [B, cells, embedding]."""
        query, key, value = self.project(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = self.after_attention(tokens + self.merge(mixed))
        return self.after_feedforward(tokens + self.feedforward(tokens))


class SPT(nn.Module):
    """A step of self-attention over all cells: f(V) = SelfAtt(V; theta) (C.1).

    The paper injects no reward: the map enters through the initial value alone. A fixed point does not depend on
    where its iteration starts, so an implicit adjoint gives the encoder no gradient: this is the paper's planner
    and, we think, why it found that it does not work. `inject_map` adds the encoded map at every step.

    Args:
        options: Sizes, number of layers in a step, and whether the map is injected.
        wrap: Accepted for the sake of the interface. Attention has no borders, but positions are absolute: unlike the
            convolutional cores, this one is not equivariant to shifts of the torus.
        actions: Number of logits per cell.
        in_channels: Channels of the input: map and goal.
    """

    def __init__(self, options: SPTOptions, *, wrap: bool, actions: int = 4, in_channels: int = 2) -> None:
        super().__init__()
        self.wrap = wrap
        self.inject_map = options.inject_map
        # UNSPECIFIED: sizes, the place of the normalisation, and the encoder; ours are the transformer's usual ones
        # (post-norm, ReLU, no dropout, so that a step is a function) over a 1x1 encoder with sinusoidal positions.
        self.encoder = nn.Sequential(
            nn.Conv2d(in_channels, options.embedding, 1), nn.ReLU(), nn.Conv2d(options.embedding, options.embedding, 1)
        )
        self.layers = nn.ModuleList(
            SelfAttention(options.embedding, options.heads, options.feedforward) for _ in range(options.layers)
        )
        self.head = nn.Conv2d(options.embedding, actions, 1)

    @shaped
    def encode(self, x: Float[Tensor, "B in_channels h w"]) -> Injected:
        """Return the encoded map with its positions, [B, embedding, h, w]."""
        encoded = self.encoder(x)
        return Injected((encoded + positions(encoded),))

    @shaped
    def initial_value(self, r: Injected) -> Float[Tensor, "B embedding h w"]:
        """Return the encoded map, [B, embedding, h, w]."""
        return r.per_sample[0]

    @shaped
    def step(self, v: Float[Tensor, "B embedding h w"], r: Injected) -> Float[Tensor, "B embedding h w"]:
        """Return the value after all layers, [B, embedding, h, w]."""
        if self.inject_map:
            v = v + r.per_sample[0]
        tokens = v.flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens.transpose(1, 2).unflatten(2, v.shape[2:])

    @shaped
    def policy(self, v: Float[Tensor, "B embedding h w"], r: Injected) -> Float[Tensor, "B actions h w"]:
        """Return logits, a linear map of each cell's embedding, [B, actions, h, w]."""
        return self.head(v)


@shaped
def positions(like: Float[Tensor, "B channels h w"]) -> Float[Tensor, "channels h w"]:
    """Return sinusoidal encodings of row and column, [channels, h, w], for `like` [B, channels, h, w].

    Half of the channels encode the row and half the column: sin and cos of the index times 10000^(-i / n), i < n.
    """
    channels, height, width = like.shape[1:]
    count = channels // 4
    exponents = torch.arange(count, dtype=like.dtype, device=like.device) / count
    rates = torch.pow(torch.full_like(exponents, 10000.0), -exponents)  # a tensor of the host's would be waited for

    def waves(length: int) -> Tensor:
        angles = rates[:, None] * torch.arange(length, dtype=like.dtype, device=like.device)
        return torch.cat([angles.sin(), angles.cos()])

    rows = waves(height)[:, :, None].expand(-1, -1, width)
    columns = waves(width)[:, None, :].expand(-1, height, -1)
    return torch.cat([rows, columns])
