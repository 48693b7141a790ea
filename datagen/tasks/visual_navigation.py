"""Visual navigation: the mazes of `navigation`, seen as egocentric views from every free cell (section 5.4, D.1)."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from datagen.options import VisualOptions
from datagen.problem import Problems
from datagen.tasks import navigation
from datagen.tasks.registry import TASKS, DatasetSpec, Split


@cache
def _renderer(size: int, options: VisualOptions) -> Any:
    # Imported here, for importing it opens OpenGL.
    from datagen.rendering.panorama import PanoramaRenderer

    return PanoramaRenderer(size, options)


def draw(spec: DatasetSpec, split: Split, start: int, stop: int) -> Problems:
    """Make the visual navigation problems `start` to `stop` of a split.

    Args:
        spec: Maps, goals and labels are those of `navigation` with this size and seed.
        split: Which split.
        start: First problem.
        stop: One past the last problem.

    Returns:
        The problems; observation uint8 [n, h, w, views, resolution, resolution, 3], 0 on obstacles.

    Raises:
        RendererError: OpenGL cannot be used on this machine; the message says what to install.
        ValueError: MiniWorld has no such texture.
    """
    assert isinstance(spec.options, VisualOptions)
    problems = navigation.draw(spec, split, start, stop)
    renderer = _renderer(spec.map_size, spec.options)
    shape = TASKS[spec.task].observation_shape(spec)
    assert shape is not None
    observation = np.empty((len(problems), *shape), np.uint8)
    for i, map_ in enumerate(problems.map):
        observation[i] = renderer.render(map_)
    return replace(problems, observation=observation)
