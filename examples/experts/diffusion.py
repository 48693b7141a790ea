"""Nonlinear diffusion on a line or a square, its residual on a mesh, and its solution by Newton's method.

-div(kappa grad u) + sigma u^3 = f on (0, 1) or (0, 1)^2,    u = 0 on the boundary

by finite differences of second order, kappa in the middle of each cell. kappa and f are random smooth functions. With
sigma = 0 it is Darcy's flow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array, kron
from scipy.sparse.linalg import spsolve

if TYPE_CHECKING:
    from experts import DiffusionOptions

Numbers = NDArray[np.float64]
_MODES, _STRENGTH, _NEWTON, _TOLERANCE = 8, 30.0, 50, 1e-10


def sample(options: DiffusionOptions, generator: np.random.Generator) -> Mapping[str, Any]:
    """Return one problem and its solution."""
    middles, nodes = (np.arange(options.cells) + 0.5) / options.cells, np.linspace(0.0, 1.0, options.cells + 1)
    conductivity = np.exp(options.roughness * _smooth(middles, options.dimensions, generator))
    source = _STRENGTH * _smooth(nodes, options.dimensions, generator)
    return {
        "conductivity": conductivity,
        "source": source,
        "solution": solved(conductivity, source, options.reaction),
    }


def _smooth(places: Numbers, dimensions: int, generator: np.random.Generator) -> Numbers:
    """Return a random function of variance 1 at places or pairs: cosines, whose weights fall with their frequency."""
    frequency = np.arange(_MODES)
    falls, variance = 1.0 / (1.0 + frequency), np.where(frequency == 0, 1.0, 0.5)
    falls, variance = ((part, np.multiply.outer(part, part))[dimensions - 1] for part in (falls, variance))
    found: Numbers = generator.normal(size=falls.shape) * falls / np.sqrt((variance * falls**2).sum())
    for _ in range(dimensions):
        found = np.tensordot(found, np.cos(np.pi * np.outer(frequency, places)), (0, 0))
    return found


def solved(conductivity: Numbers, source: Numbers, reaction: float) -> Numbers:
    """Return u at the nodes [cells + 1] or [cells + 1, cells + 1]; the equation is monotone, and has one solution."""
    stiffness, inside = _stiffness(conductivity), (slice(1, -1),) * source.ndim
    f = source[inside].ravel()
    u = np.zeros_like(f)
    for _ in range(_NEWTON):
        move = spsolve(stiffness + diags_array(3.0 * reaction * u**2), f - stiffness @ u - reaction * u**3)
        u += move
        if np.abs(move).max() <= _TOLERANCE:
            return np.pad(u.reshape(source[inside].shape), 1)
    raise ArithmeticError(f"Newton's method has not found u in {_NEWTON} steps")


def _stiffness(conductivity: Numbers) -> csr_array:
    """Return -div(kappa grad .) over inner nodes."""
    cells = len(conductivity)
    ones, same = np.ones(cells), diags_array(np.ones(cells - 1))
    slopes = cells * diags_array([ones[1:], -ones[1:]], offsets=[0, -1], shape=(cells, cells - 1))
    if conductivity.ndim == 1:
        return csr_array(slopes.T @ diags_array(conductivity) @ slopes)
    down, across = (0.5 * (side[:, 1:] + side[:, :-1]) for side in (conductivity, conductivity.T))
    tall, wide = kron(slopes, same), kron(same, slopes)
    return csr_array(tall.T @ diags_array(down.ravel()) @ tall + wide.T @ diags_array(across.T.ravel()) @ wide)
