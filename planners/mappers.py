"""What turns an observation into map logits (D.1). A mapper's output is the logit that a cell is free."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datagen.shapes import shaped, shaped_last
from planners.cores.layers import same_conv

if TYPE_CHECKING:
    from jaxtyping import Float, Int64, Shaped

    from planners.options import NoOptions, PanoramaOptions, TilesOptions, UNetOptions

WORKSPACE_PIXELS = 96


class Identity(nn.Module):
    """The map is given: there is nothing to observe."""

    def __init__(self, options: NoOptions, *, wrap: bool) -> None:
        super().__init__()

    def forward(self, observation: Shaped[Tensor, "B ..."], size: tuple[int, int]) -> Float[Tensor, "B 1 h w"]:
        """Refuse the observation.

        Raises:
            ValueError: Always; a planner that is given its map takes no observation.
        """
        raise ValueError("observation: expected None, because mapper 'identity' plans on the given map")


class Panorama(nn.Module):
    """From four views per cell to a map (D.1, visual navigation).

    Each view passes 8x8/4 convolutions (32), 4x4/2 (64) and a linear layer (256); the embeddings of a cell's four views
    stand side by side as its channels, and two 3x3 convolutions (64, then 1) make the map of them.
    """

    def __init__(self, options: PanoramaOptions, *, wrap: bool) -> None:
        super().__init__()
        self.observed = (options.views, options.resolution, options.resolution, 3)
        left = (options.resolution - 8) // 4 + 1
        left = (left - 4) // 2 + 1
        # UNSPECIFIED: activations; ReLU after every layer but the last.
        self.view = nn.Sequential(
            nn.Conv2d(3, 32, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * left**2, 256),
            nn.ReLU(),
        )
        self.map = nn.Sequential(
            same_conv(options.views * 256, 64, 3, wrap=wrap), nn.ReLU(), same_conv(64, 1, 3, wrap=wrap)
        )

    @shaped_last
    def forward(
        self, observation: Shaped[Tensor, "B h w views pixels pixels 3"], size: tuple[int, int]
    ) -> Float[Tensor, "B 1 h w"]:
        """Return map logits.

        Args:
            observation: [B, h, w, views, resolution, resolution, 3]; 0..255; views in the order of the actions.
            size: (h, w), the size of the map.

        Returns:
            [B, 1, h, w].

        Raises:
            ValueError: If the observation has another shape.
        """
        expected = (*size, *self.observed)
        if observation.shape[1:] != expected:
            raise ValueError(f"observation: expected [B, {str(expected)[1:-1]}], got {tuple(observation.shape)}")
        views, places = observation.flatten(0, 3), None
        if views.device.type == "cpu":  # on a device the number of different views would have to be waited for
            views, places = different(views)
        seen = self.view(views.permute(0, 3, 1, 2).to(next(self.parameters())).div(255))
        embeddings = seen if places is None else seen.index_select(0, places)
        return self.map(embeddings.unflatten(0, observation.shape[:4]).flatten(3).permute(0, 3, 1, 2))


def different(views: Shaped[Tensor, "N ..."]) -> tuple[Shaped[Tensor, "M ..."], Int64[Tensor, " N"]]:
    """Return the different ones of N views, and the place of each view among them.

    Of the views of mazes two thirds are there already: a wall right ahead looks the same everywhere.

    Args:
        views: [N, ...] on the CPU, any numbers.
    """
    rows = views.flatten(1).contiguous().view(torch.uint8).numpy()
    _, first, places = np.unique(rows.view(f"V{rows.shape[1]}")[:, 0], return_index=True, return_inverse=True)
    return views[torch.from_numpy(first)], torch.from_numpy(places)


class Residual(nn.Module):
    """x -> relu(shortcut(x) + conv(relu(conv(x)))), both convolutions 3x3."""

    def __init__(self, in_channels: int, out_channels: int, *, wrap: bool) -> None:
        super().__init__()
        self.first = same_conv(in_channels, out_channels, 3, wrap=wrap)
        self.second = same_conv(out_channels, out_channels, 3, wrap=wrap)
        self.shortcut = (
            nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1, bias=False)
        )

    @shaped
    def forward(self, x: Float[Tensor, "B in_channels h w"]) -> Float[Tensor, "B out_channels h w"]:
        """Return [B, out_channels, h, w]."""
        return (self.shortcut(x) + self.second(self.first(x).relu())).relu()


class UNet(nn.Module):
    """From an image of the workspace to a map of the configuration space (D.1, Figure 8): a residual U-net.

    UNSPECIFIED: Figure 8's sizes. Ours halves the 96 pixels at every level, mixes all places of the coarsest level by
    a linear layer, and doubles up to the map's own size, where the last level arrives exactly. Skip connections are
    averaged to the size of the level that they enter. The linear layer is there because a joint angle is not a place
    in the image, so no fixed neighbourhood holds what a cell needs; after 228 steps on discs as obstacles the
    cross-entropy on unseen workspaces was 0.19 with it and 0.22 without.
    """

    def __init__(self, options: UNetOptions, *, wrap: bool) -> None:
        super().__init__()
        channels = options.channels
        self.down = nn.ModuleList(
            Residual(before, after, wrap=False) for before, after in zip((1, *channels[:-1]), channels, strict=True)
        )
        coarsest = WORKSPACE_PIXELS >> (len(channels) - 1)
        self.mix = nn.Linear(coarsest**2, coarsest**2)
        self.up = nn.ModuleList(
            Residual(below + beside, beside, wrap=wrap)
            for below, beside in zip(channels[:0:-1], channels[-2::-1], strict=True)
        )
        self.last = nn.Conv2d(channels[0], 1, 1)

    @shaped_last
    def forward(
        self, observation: Shaped[Tensor, "B 1 96 96"] | Shaped[Tensor, "B 96 96"], size: tuple[int, int]
    ) -> Float[Tensor, "B 1 h w"]:
        """Return map logits.

        Args:
            observation: [B, 1, 96, 96] or [B, 96, 96], 1 = obstacle.
            size: (h, w), the size of the map.

        Returns:
            [B, 1, h, w].

        Raises:
            ValueError: If the observation has another shape.
        """
        pixels = (WORKSPACE_PIXELS, WORKSPACE_PIXELS)
        if observation.shape[1:] not in (pixels, (1, *pixels)):
            raise ValueError(f"observation: expected [B, 1, 96, 96], got {tuple(observation.shape)}")
        x = observation.reshape(-1, 1, *pixels).to(self.last.weight)
        skips = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        x = skips.pop()
        x = x + self.mix(x.flatten(2)).relu().unflatten(2, x.shape[2:])
        for block in self.up:
            level = len(skips) - 1
            at = (-(-size[0] >> level), -(-size[1] >> level))
            skip = F.adaptive_avg_pool2d(skips.pop(), at)
            x = block(torch.cat([F.interpolate(x, at, mode="nearest"), skip], dim=1))
        return self.last(x)


_FREE = -1.0
"""Logit that a tile is free before anything is learned: it costs 1.3, in a unit that learning chooses."""


class Tiles(nn.Module):
    """From a picture of tiles to a map of them: how likely each is survived, exp(-its cost).

    3x3 convolutions that halve rows and columns, the average over what is then a tile, and two layers on each tile.
    """

    def __init__(self, options: TilesOptions, *, wrap: bool) -> None:
        super().__init__()
        channels = options.channels
        layers: list[nn.Module] = []
        for before, after in zip((3, *channels[:-1]), channels, strict=True):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
        self.levels = nn.Sequential(*layers)
        self.tile = nn.Sequential(nn.Conv2d(channels[-1], channels[-1], 1), nn.ReLU(), nn.Conv2d(channels[-1], 1, 1))

    @shaped_last
    def forward(
        self, observation: Shaped[Tensor, "B 3 height width"], size: tuple[int, int]
    ) -> Float[Tensor, "B 1 h w"]:
        """Return map logits.

        Args:
            observation: [B, 3, height, width]; 0..255; the same number of pixels for each tile.
            size: (h, w), the size of the map.

        Returns:
            [B, 1, h, w].

        Raises:
            ValueError: If the observation has another shape.
        """
        shape, (h, w) = tuple(observation.shape), size
        if len(shape) != 4 or shape[1] != 3 or shape[2] % h or shape[3] % w or shape[2] // h != shape[3] // w:
            raise ValueError(f"observation: expected [B, 3, n * {h}, n * {w}], n pixels a tile, got {shape}")
        x = self.levels(observation.to(next(self.parameters())).div(255).sub(0.5))
        return _FREE + self.tile(x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size))
