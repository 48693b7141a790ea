"""Pictures of terrain: tiles of a few kinds of ground, in pairs of one colour that differ in their grain alone."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datagen.shapes import shaped

if TYPE_CHECKING:
    from jaxtyping import UInt8

COSTS = (0.8, 1.2, 3.4, 5.3, 7.7, 9.2)
"""What entering a tile of each kind costs; the range is that of the literature's Warcraft maps."""

_COLOURS = ((0.76, 0.66, 0.42), (0.42, 0.62, 0.26), (0.30, 0.46, 0.70))
"""Sand, meadow, water: kind k has colour k % 3, so that of each pair one is cheap and one is dear."""
_VARIANTS = 4
"""Pictures of each kind; which one a tile has means nothing."""
_CONTRAST = 0.12


@cache
def textures(pixels: int) -> NDArray[np.float32]:
    """Return the pictures of all kinds, float32 [kinds, variants, pixels, pixels, 3], 0..1.

    Grain is what tells two kinds of one colour apart: blots in the cheap one, a fine check in the dear one, each
    variant drawn anew.
    """
    generator = np.random.default_rng(7)
    found = np.empty((len(COSTS), _VARIANTS, pixels, pixels, 3))
    rows, columns = np.mgrid[:pixels, :pixels]
    for kind in range(len(COSTS)):
        for variant in range(_VARIANTS):
            grain = generator.standard_normal((pixels, pixels))
            if kind < len(_COLOURS):
                grain = np.sum([np.roll(grain, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)], axis=0) / 3
            else:
                grain = np.abs(grain) * np.where((rows + columns + variant) % 2, 1.0, -1.0)
            grain = _CONTRAST * (grain - grain.mean())
            found[kind, variant] = np.array(_COLOURS[kind % len(_COLOURS)]) + grain[:, :, None]
    result = found.clip(0, 1).astype(np.float32)
    result.flags.writeable = False
    return result


@shaped
def picture(
    kinds: UInt8[NDArray[np.uint8], "h w"], pixels: int, noise: float, generator: np.random.Generator
) -> UInt8[NDArray[np.uint8], "3 height width"]:
    """Return the picture of a terrain, uint8 [3, h * pixels, w * pixels].

    Args:
        kinds: Which kind of ground each tile is.
        pixels: Rows and columns of a tile.
        noise: Standard deviation of what is added to each pixel, of a range of 1.
        generator: What variants and noise are drawn from.
    """
    height, width = kinds.shape
    variants = generator.integers(_VARIANTS, size=kinds.shape)
    tiles = textures(pixels)[kinds, variants]
    image = tiles.transpose(4, 0, 2, 1, 3).reshape(3, height * pixels, width * pixels)
    image = image + noise * generator.standard_normal(image.shape, np.float32)
    return np.rint(255 * image.clip(0, 1)).astype(np.uint8)
