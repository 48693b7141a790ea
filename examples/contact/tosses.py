"""Tosses of a box onto the ground, by the hard simulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from contact import TossOptions
from contact.dynamics import HARD, step
from contact.scenes import Box
from datagen.plugins import PluginError


def toss(options: TossOptions, generator: np.random.Generator) -> dict[str, Any]:
    """Return the places and velocities of a box that is thrown low over the ground."""
    reach = float(np.hypot(options.width, options.height))
    place = [0.0, generator.uniform(1.05, 1.6) * reach, generator.uniform(-np.pi, np.pi)]
    velocity = [generator.uniform(-3.0, 3.0), generator.uniform(-2.0, 0.0), generator.uniform(-3.0, 3.0)]
    size = torch.tensor([options.width, options.height], dtype=torch.float64)
    box = Box(size, torch.tensor(options.friction, dtype=torch.float64))
    q, v = (torch.tensor([numbers], dtype=torch.float64) for numbers in (place, velocity))
    places, velocities = [q], [v]
    for number in range(options.steps):
        after = step(box, places[-1], velocities[-1], seconds=options.seconds, central_path=HARD)
        if not bool(after.converged):
            raise PluginError(f"contact: step {number} of a toss is not solved")
        places.append(after.q)
        velocities.append(after.v)
    seen = torch.cat(velocities).numpy()
    return {"place": torch.cat(places).numpy(), "velocity": seen + options.noise * generator.normal(size=seen.shape)}
