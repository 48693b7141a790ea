"""When a sample stops, and what it may then be called: the two rules of `planners.solution`, in code.

Legend: z iterate, g = f(z) - z, dz and dg their change since the last look, A = ||dz|| / ||dg|| amplification, eps
the dtype's distance from 1 to the next number, B samples, N numbers of a sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from planners.solution import Result

RESIDUAL_OFFSET = 1e-5
"""Added to ||f(z)|| in the residual rule, as in the authors' solver, so that a solution of zero is reachable."""

GROWTH = 1e6
"""By the residual rule a sample has diverged once ||f(z)|| exceeds this many times max(1, ||v0||, ||f(v0)||); by the
error rule, once g is not finite or has grown by this factor when the steps run out."""

LOOKS = 3
"""Looks in a row at which the error rule must be met: a slow part of the error hides behind a fast one at first."""

STALLED = 8
"""Looks without gain after which a small number beside large ones is taken to be as good as rounding lets it be."""

NOISE = 4.0
"""Changes below this many eps of the iterate tell of rounding, not of f."""


def flat(z: Tensor) -> Tensor:
    """Return z [B, ...] as [B, N]."""
    return z[..., None].flatten(1)


def at_least_single(z: Tensor) -> Tensor:
    """Return z in float32 where it is in half precision."""
    return z.to(torch.promote_types(z.dtype, torch.float32))


def rows(scalar: Tensor, like: Tensor) -> Tensor:
    """Return scalars [B] in the shape [B, 1, ...] that multiplies `like`."""
    return scalar.reshape(-1, *[1] * (like.ndim - 1))


def norm_per_sample(z: Tensor) -> Tensor:
    """Return the 2-norm of each sample, [B], in at least float32; squares may leave the dtype's range."""
    dtype = torch.promote_types(z.dtype, torch.float32)
    return torch.linalg.vector_norm(flat(z), dim=1, dtype=dtype)


def scale_per_sample(z: Tensor) -> Tensor:
    """Return a power of two near the largest |z| of each sample, [B], at least float32; 1 for zeros and no numbers.

    Dividing by it is exact, and the squares of what is left neither under- nor overflow.
    """
    z = at_least_single(flat(z))
    if z.shape[1] == 0:
        return z.new_ones(len(z))
    largest = z.abs().amax(dim=1)
    usual = torch.isfinite(largest) & (largest > 0.0)
    limits = torch.finfo(z.dtype)
    exponent = torch.frexp(torch.where(usual, largest, 1.0)).exponent - 1
    return torch.ldexp(torch.ones_like(largest), exponent).clamp(min=limits.tiny)


def safe_norm_per_sample(z: Tensor) -> Tensor:
    """Return the 2-norm of each sample, [B], finite and not zero wherever the dtype can say it."""
    scale = scale_per_sample(z)
    return norm_per_sample(at_least_single(z) / rows(scale, z)) * scale


def relative_residual(z: Tensor, fz: Tensor) -> Tensor:
    """Return ||f(z) - z|| / (1e-5 + ||f(z)||) per sample, inf where either norm is not finite.

    A norm that overflows makes the plain ratio finite / inf = 0, which would pass for convergence.

    Args:
        z: [B, ...] iterate.
        fz: [B, ...] its image f(z).

    Returns:
        [B], at least float32.
    """
    change, size = norm_per_sample(fz - z), norm_per_sample(fz)
    finite = torch.isfinite(change) & torch.isfinite(size)
    return torch.where(finite, change / (RESIDUAL_OFFSET + size), torch.inf)


def growth_limit(v0: Tensor, fv0: Tensor) -> Tensor:
    """Return the size of ||f(z)|| above which a sample has diverged by the residual rule, [B]."""
    return GROWTH * torch.maximum(norm_per_sample(v0), norm_per_sample(fv0)).clamp(min=1.0)


def has_diverged(fz: Tensor, residual: Tensor, limit: Tensor) -> Tensor:
    """Return [B] bool: the residual is not finite, or f(z) is larger than the limit."""
    return ~torch.isfinite(residual) | (norm_per_sample(fz) > limit)


class Look(NamedTuple):
    """What a rule sees at one iterate: the residual [B], and which samples are done and which have diverged, [B]."""

    residual: Tensor
    done: Tensor
    diverged: Tensor


class Rule(Protocol):
    """Judges the iterates of one solve, in their order."""

    success: Result
    """What a sample that is done is called."""

    def look(self, z: Tensor, fz: Tensor) -> Look:
        """Return what is so at the next iterate z [B, ...] with image f(z)."""

    def grown(self) -> Tensor:
        """Return [B] bool: samples that must be called diverged if their steps end now."""

    def take(self, rows: Tensor) -> None:
        """Keep only these rows of the batch."""


@dataclass
class ResidualRule:
    """||f(z) - z|| / (1e-5 + ||f(z)||) <= tolerance: the paper's, by which planners train."""

    tolerance: float
    success: Result = Result.SETTLED
    limit: Tensor | None = None

    def look(self, z: Tensor, fz: Tensor) -> Look:  # noqa: D102
        if self.limit is None:
            self.limit = growth_limit(z, fz)
        residual = relative_residual(z, fz)
        diverged = has_diverged(fz, residual, self.limit)
        done = residual <= self.tolerance if self.tolerance > 0.0 else torch.zeros_like(diverged)
        return Look(residual, done, diverged)

    def grown(self) -> Tensor:  # noqa: D102
        assert self.limit is not None
        return torch.zeros_like(self.limit, dtype=torch.bool)

    def take(self, rows: Tensor) -> None:  # noqa: D102
        if self.limit is not None:
            self.limit = self.limit[rows]


class _Memory(NamedTuple):
    """What the error rule remembers: the last iterate and g [B, N], and per sample [B] the rest."""

    z: Tensor
    g: Tensor
    start: Tensor
    """Largest number of v0 and f(v0)."""
    first: Tensor
    """||g|| at the first look, in float64 like `last`."""
    last: Tensor
    amplification: Tensor
    """[B, W] the latest estimates of A, 0 where there is none yet."""
    best: Tensor
    """The least strict measure so far."""
    since: Tensor
    """Looks since it was gained upon."""
    streak: Tensor


class ErrorRule:
    """Every number of a sample within `tolerance` of the solution's, by an estimate: A |g_i| <= tolerance |f(z)_i|.

    To first order the error of z is (I - J)^{-1} g, and what f just did to the last change, dg = (J - I) dz, tells how
    much the inverse amplifies. See `planners.solution` for what that promises, and what it can't see.

    Args:
        tolerance: Relative error; 0 is never met.
        window: Latest estimates of A, of which the largest counts: 1 where iterates follow f's own slowest direction,
            more where a solver chooses its directions.
    """

    success = Result.CONVERGED

    def __init__(self, tolerance: float, window: int = 1) -> None:
        self.tolerance, self.window = tolerance, window
        self.memory: _Memory | None = None

    def look(self, z: Tensor, fz: Tensor) -> Look:  # noqa: D102
        eps = torch.finfo(z.dtype).eps
        tolerance = max(self.tolerance, NOISE * eps)
        z, f = at_least_single(flat(z)), at_least_single(flat(fz))
        scale = torch.maximum(scale_per_sample(z), scale_per_sample(f))
        g = f - z
        finite = torch.isfinite(g).all(dim=1)
        before = self.memory or self._opened(z, f, g)
        unit_f, unit_g = (torch.where(finite[:, None], part / scale[:, None], 0.0) for part in (f, g))
        size = unit_f.abs()
        largest = size.amax(dim=1) if size.shape[1] else size.new_zeros(len(size))
        # Beside much larger numbers, of this iterate or of the start, a number is only as good as their rounding.
        floor = eps * torch.maximum(largest, before.start / scale)[:, None]
        strict, lenient = tolerance * size, tolerance * size + floor

        weight = torch.where(lenient > 0.0, 1.0 / lenient, 0.0)
        dz, dg = (
            norm_per_sample(torch.where(finite[:, None], weight * ((new - old) / scale[:, None]), 0.0))
            for new, old in ((z, before.z), (g, before.g))
        )
        noise = eps * norm_per_sample(weight * unit_f)
        tells = (dz > NOISE * noise) & finite & (before.last >= 0.0)
        latest = (dz / (dg + noise)).clamp(min=1.0)
        moved = torch.cat((before.amplification[:, 1:], latest[:, None]), dim=1)
        amplification = torch.where(tells[:, None], moved, before.amplification)
        known = amplification.amax(dim=1)

        measure = _largest(known[:, None].clamp(min=1.0) * unit_g.abs(), strict)
        gained = measure < 0.99 * before.best
        best, since = torch.where(gained, measure, before.best), torch.where(gained, 0, before.since + 1)
        within = _largest(known[:, None].clamp(min=1.0) * unit_g.abs(), lenient) <= 1.0
        met = (measure <= 1.0) | (within & (since >= STALLED))
        # Without an estimate of A only a change that is rounding passes.
        still = _largest(unit_g.abs(), NOISE * eps * size + floor) <= 1.0
        met = torch.where(known > 0.0, met & (0.5 * eps * known <= tolerance), still) & finite
        streak = torch.where(met, before.streak + 1, 0)
        change = norm_per_sample(unit_g)
        exact = met & ((change == 0.0) | (known == 0.0))
        last = torch.where(finite, change.double() * scale.double(), torch.inf)
        first = torch.where(before.last < 0.0, last, before.first)
        self.memory = _Memory(z, g, before.start, first, last, amplification, best, since, streak)
        length = norm_per_sample(unit_f)
        residual = torch.where(finite, torch.where(change > 0.0, change / length, 0.0), torch.inf)
        done = ((streak >= LOOKS) | exact) & (self.tolerance > 0.0)
        return Look(residual, done, ~finite)

    def _opened(self, z: Tensor, f: Tensor, g: Tensor) -> _Memory:
        start = torch.maximum(z.abs(), f.abs()).amax(dim=1) if z.shape[1] else z.new_zeros(len(z))
        start = torch.where(torch.isfinite(start), start, 0.0)
        zeros = torch.zeros_like(start, dtype=torch.float64)
        estimates, count = start.new_zeros(len(z), self.window), torch.zeros_like(start, dtype=torch.int64)
        return _Memory(z, g, start, zeros, zeros - 1.0, estimates, torch.full_like(start, torch.inf), count, count)

    def grown(self) -> Tensor:  # noqa: D102
        assert self.memory is not None
        return self.memory.last > GROWTH * self.memory.first

    def take(self, rows: Tensor) -> None:  # noqa: D102
        if self.memory is not None:
            self.memory = _Memory(*(part[rows] for part in self.memory))


def _largest(numbers: Tensor, allowed: Tensor) -> Tensor:
    """Return the largest of numbers / allowed in each row, [B]; 0 / 0 is 0."""
    if numbers.shape[1] == 0:
        return numbers.new_zeros(len(numbers))
    return torch.where(numbers > 0.0, numbers / allowed, 0.0).amax(dim=1)


def close(z: Tensor, fz: Tensor, tolerance: float) -> Tensor:
    """Return [B] bool: f changes every number of z by at most twice the tolerance, or by rounding of the largest."""
    eps = torch.finfo(z.dtype).eps
    z, f = at_least_single(flat(z)), at_least_single(flat(fz))
    size = f.abs()
    largest = size.amax(dim=1, keepdim=True) if size.shape[1] else size.new_zeros(len(size), 1)
    return ((f - z).abs() <= 2.0 * max(tolerance, NOISE * eps) * size + eps * largest).all(dim=1)
