"""What the compiled loops compute with vectors: norms, Anderson's weights, the residual rule and its verdict.

They stop by the residual rule of `planners.fixed_points.stopping`, with its constants. Planes have zero borders, so
flat inner products are those of maps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from planners.compiled.layout import Floats, compiled, fastmath
from planners.fixed_points.solution import Result
from planners.fixed_points.stopping import GROWTH, RESIDUAL_OFFSET

MAX_STEPS, DIVERGED, SETTLED = int(Result.MAX_STEPS), int(Result.DIVERGED), int(Result.SETTLED)
_GROWTH, _OFFSET = np.float32(GROWTH), np.float32(RESIDUAL_OFFSET)


class Options(NamedTuple):
    """A solver: at most max_steps applications, to a relative residual (0 for none).

    Depth 0 is forward iteration, which answers with the last image; more is Anderson's, with its best iterate.
    """

    max_steps: int
    tolerance: float
    depth: int
    mixing: float
    weight: float


@fastmath
def norm(x: Floats):  # type: ignore[no-untyped-def]
    """Return the 2-norm."""
    total = np.float32(0)
    for value in x:
        total += value * value
    return np.sqrt(total)


@fastmath
def inner(x: Floats, y: Floats) -> float:
    """Return the inner product, summed in double precision."""
    total = 0.0
    for i in range(len(x)):
        total += np.float64(x[i]) * np.float64(y[i])
    return total


@compiled
def anderson_weights(gram, against, weight):  # type: ignore[no-untyped-def]
    """Return gamma of the regularised least squares whose Gram matrix is scaled to a unit diagonal, by Cholesky."""
    m = len(gram)
    scale = np.zeros(m)
    for i in range(m):
        scale[i] = 1.0 / np.sqrt(gram[i, i]) if gram[i, i] > 0.0 else 0.0
    lower = np.zeros((m, m))
    gamma = scale * against
    for i in range(m):
        for j in range(i + 1):
            entry = scale[i] * gram[i, j] * scale[j] + (weight if i == j else 0.0)
            for k in range(j):
                entry -= lower[i, k] * lower[j, k]
            lower[i, j] = np.sqrt(entry) if i == j else entry / lower[j, j]
        for k in range(i):
            gamma[i] -= lower[i, k] * gamma[k]
        gamma[i] /= lower[i, i]
    for i in range(m - 1, -1, -1):
        for k in range(i + 1, m):
            gamma[i] -= lower[k, i] * gamma[k]
        gamma[i] /= lower[i, i]
    gamma *= scale
    return gamma if np.isfinite(gamma).all() else np.zeros(m)


@fastmath
def compare(z: Floats, fz: Floats, change: Floats):  # type: ignore[no-untyped-def]
    """Write f(z) - z and return its norm and that of f(z)."""
    difference = size = np.float32(0)
    for i in range(len(change)):
        change[i] = fz[i] - z[i]
        difference += change[i] * change[i]
        size += fz[i] * fz[i]
    return np.sqrt(difference), np.sqrt(size)


@compiled
def relative(change, size):  # type: ignore[no-untyped-def]
    """Return ||f(z) - z|| / (1e-5 + ||f(z)||), inf where a norm is not finite."""
    return change / (_OFFSET + size) if np.isfinite(change) and np.isfinite(size) else np.float32(np.inf)


@compiled
def growth_limit(before, after):  # type: ignore[no-untyped-def]
    """Return the size of f(z) above which a sample has diverged, from those of z and f(z) at its first step."""
    return _GROWTH * max(np.float32(1), before, after)


@compiled
def verdict(residual, size, limit, tolerance):  # type: ignore[no-untyped-def]
    """Return what a sample is by the residual rule: DIVERGED, SETTLED, or MAX_STEPS where neither is so yet."""
    if not np.isfinite(residual) or size > limit:
        return DIVERGED
    return SETTLED if tolerance > 0 and residual <= tolerance else MAX_STEPS
