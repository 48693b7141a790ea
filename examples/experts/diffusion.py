"""Nonlinear diffusion on a line, its residual on a mesh, and its solution by Newton's method.

-(kappa u')' + sigma u^3 = f on (0, 1),    u(0) = u(1) = 0

by finite differences of second order, kappa in the middle of each cell. kappa and f are random smooth functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from experts import DiffusionOptions

Numbers = NDArray[np.float64]
_MODES, _STRENGTH, _NEWTON, _TOLERANCE = 8, 30.0, 50, 1e-10


def sample(options: DiffusionOptions, generator: np.random.Generator) -> Mapping[str, Any]:
    """Return one problem and its solution."""
    middles, nodes = (np.arange(options.cells) + 0.5) / options.cells, np.linspace(0.0, 1.0, options.cells + 1)
    conductivity = np.exp(options.roughness * _smooth(middles, generator))
    source = _STRENGTH * _smooth(nodes, generator)
    return {
        "conductivity": conductivity,
        "source": source,
        "solution": solved(conductivity, source, options.reaction),
    }


def _smooth(places: Numbers, generator: np.random.Generator) -> Numbers:
    """Return a random function of variance 1 at some places: cosines, whose weights fall with their frequency."""
    frequency = np.arange(_MODES)
    weights = generator.normal(size=_MODES) / (1.0 + frequency)
    variance = (np.where(frequency == 0, 1.0, 0.5) / (1.0 + frequency) ** 2).sum()
    found: Numbers = np.cos(np.pi * np.outer(places, frequency)) @ weights / np.sqrt(variance)
    return found


def solved(conductivity: Numbers, source: Numbers, reaction: float) -> Numbers:
    """Return u at the nodes [cells + 1]; the equation is monotone, and has one solution."""
    squared = float(len(conductivity)) ** 2
    stiffness = squared * (
        np.diag(conductivity[:-1] + conductivity[1:]) - np.diag(conductivity[1:-1], 1) - np.diag(conductivity[1:-1], -1)
    )
    u = np.zeros(len(source) - 2)
    for _ in range(_NEWTON):
        left = stiffness @ u + reaction * u**3 - source[1:-1]
        move = np.linalg.solve(stiffness + np.diag(3.0 * reaction * u**2), -left)
        u += move
        if np.abs(move).max() <= _TOLERANCE:
            return np.pad(u, 1)
    raise ArithmeticError(f"Newton's method has not found u in {_NEWTON} steps")
