"""When a sample stops, and what it may then be called: the two rules of `planners.fixed_points.solution`, in code.

Legend: z iterate, g = f(z) - z, dz and dg their change since the last look, A = ||dz|| / ||dg|| amplification, eps
the dtype's distance from 1 to the next number, B samples, N numbers of a sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from .solution import Result

RESIDUAL_OFFSET = 1e-5
"""Added to ||f(z)|| in the residual rule, as in the authors' solver, so that a solution of zero is reachable."""

GROWTH = 1e6
"""By the residual rule a sample has diverged once ||f(z)|| exceeds this many times max(1, ||v0||, ||f(v0)||); by the
error rule, once g is not finite or has grown by this factor when the steps run out."""

LOOKS = 3
"""Looks in a row at which the error rule must be met: a slow part of the error hides behind a fast one at first."""

STALLED = 8
"""Looks without gain after which a small number beside large ones is taken to be as good as rounding lets it be."""

FAR = 2.0**-52
"""A number that falls from the start by this factor without settling is taken for zero."""

HALF = 1e-4
"""eps above which a dtype counts as half precision."""

NOISE = 4.0
"""Changes below this many eps of the iterate tell of rounding, not of f."""


Norm = Literal["max", "rms", "l2"] | Callable[[Tensor], Tensor]
"""A size of each sample: the largest number, the root of the mean square, the length, or a function [B, N] -> [B] with
norm(c x) = |c| norm(x)."""


def floored(tolerance: float, dtype: torch.dtype) -> float:
    """Return a tolerance that rounding lets a solver reach; 0, which asks for all steps, stays."""
    return max(tolerance, NOISE * torch.finfo(dtype).eps) if tolerance > 0.0 else tolerance


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


def measured(x: Tensor, norm: Norm | None) -> Tensor:
    """Return the numbers that a rule compares: |x| [B, N] without a norm, else the norm [B, 1]; x is [B, N]."""
    if norm is None:
        return x.abs()
    if callable(norm):
        size = norm(x)
        if not isinstance(size, Tensor) or size.shape != x.shape[:1]:
            got = tuple(size.shape) if isinstance(size, Tensor) else type(size).__name__
            raise ValueError(f"norm: expected a size of each sample, {tuple(x.shape)} -> ({len(x)},), got {got}")
        return size[:, None]
    if x.shape[1] == 0:
        return x.new_zeros(len(x), 1)
    if norm == "max":
        return x.abs().amax(dim=1, keepdim=True)
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return length / x.shape[1] ** 0.5 if norm == "rms" else length


def scale_per_sample(*parts: Tensor) -> Tensor:
    """Return a power of two near the largest |number| of each sample, [B], at least float32; 1 for zeros and nan.

    Dividing by it is exact, and the squares of what is left neither under- nor overflow.
    """
    sizes = [at_least_single(flat(part)).abs() for part in parts]
    if sizes[0].shape[1] == 0:
        return sizes[0].new_ones(len(sizes[0]))
    largest = torch.stack([size.amax(dim=1) for size in sizes]).amax(dim=0)
    usual = torch.isfinite(largest) & (largest > 0.0)
    exponent = torch.frexp(torch.where(usual, largest, 1.0)).exponent - 1
    return torch.ldexp(torch.ones_like(largest), exponent).clamp(min=torch.finfo(largest.dtype).tiny)


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
    return _ratio(norm_per_sample(fz - z), norm_per_sample(fz))


def _ratio(change: Tensor, size: Tensor) -> Tensor:
    finite = torch.maximum(change, size) < torch.inf  # a norm that is no number is less than nothing
    return torch.where(finite, change / (RESIDUAL_OFFSET + size), torch.inf)


class Verdict(NamedTuple):
    """What a rule sees at one iterate, [B] each: the residual, which samples are done and which have diverged."""

    residual: Tensor
    done: Tensor
    diverged: Tensor
    merit: Tensor
    """Least at the best iterate."""


class Rule(Protocol):
    """Judges the iterates of one solve, in their order."""

    success: Result
    """What a sample that is done is called."""

    def judge(self, z: Tensor, fz: Tensor) -> Verdict:
        """Return what is so at the next iterate z [B, ...] with image f(z)."""

    def grown(self) -> Tensor:
        """Return [B] bool: samples that must be called diverged if their steps end now."""

    def take(self, rows: Tensor) -> None:
        """Keep only these rows of the batch."""


@dataclass
class ResidualRule:
    """||f(z) - z|| / (1e-5 + ||f(z)||) <= tolerance: the paper's, by which planners train; or the change in bounds."""

    # DEVIATION(authors): their solver takes one residual of the whole batch, which so waits for its worst sample.

    tolerance: float
    absolute: float = 0.0
    norm: Norm | None = None
    success: Result = Result.SETTLED
    limit: Tensor | None = None

    def judge(self, z: Tensor, fz: Tensor) -> Verdict:  # noqa: D102
        change, size = norm_per_sample(fz - z), norm_per_sample(fz)
        if self.limit is None:
            self.limit = GROWTH * torch.maximum(norm_per_sample(z), size).clamp(min=1.0)
        if self.norm is None and self.absolute == 0.0:
            residual = _ratio(change, size)
            done = residual <= self.tolerance if self.tolerance > 0.0 else torch.zeros_like(residual, dtype=torch.bool)
        else:
            residual, done = self.measure(z, fz)
        diverged = ~torch.isfinite(residual) | (size > self.limit)
        return Verdict(residual, done, diverged, residual)

    def measure(self, z: Tensor, fz: Tensor) -> tuple[Tensor, Tensor]:
        """Return the relative residual, and which samples are done, [B] each."""
        if self.norm is None and self.absolute == 0.0:
            residual = relative_residual(z, fz)
            return residual, (residual <= self.tolerance) & (self.tolerance > 0.0)
        change, size = (measured(at_least_single(flat(x)), self.norm or "l2")[:, 0] for x in (fz - z, fz))
        finite = torch.isfinite(change) & torch.isfinite(size)
        residual = torch.where(finite, change / (RESIDUAL_OFFSET + size), torch.inf)
        within = (change <= self.absolute + self.tolerance * size) & finite & (self.absolute > 0.0)
        return residual, within | ((residual <= self.tolerance) & (self.tolerance > 0.0))

    def grown(self) -> Tensor:  # noqa: D102
        assert self.limit is not None
        return torch.zeros_like(self.limit, dtype=torch.bool)

    def take(self, rows: Tensor) -> None:  # noqa: D102
        if self.limit is not None:
            self.limit = self.limit[rows]


class _Memory(NamedTuple):
    """What the error rule remembers: iterates and differences [B, N] or [B, W, N], and per sample [B] the rest."""

    z: Tensor
    g: Tensor
    moves: Tensor
    """The latest dz that told something, W of them, in the order of a ring."""
    changes: Tensor
    """Their dg."""
    halfway: Tensor
    """z at the latest power of two of looks, and"""
    before_halfway: Tensor
    """at the one before that."""
    start: Tensor
    """Largest number of v0 and f(v0)."""
    first: Tensor
    """||g|| at the first look, in float64 like `last`."""
    last: Tensor
    latest: Tensor
    """||dz|| / ||dg|| of the latest move that told something, 0 where there was none."""
    best: Tensor
    """The least strict measure so far."""
    since: Tensor
    """Looks since it was gained upon."""
    streak: Tensor


class ErrorRule:
    """Every number of a sample within `tolerance` of the solution's, by an estimate: A |g_i| <= tolerance |f(z)_i|.

    To first order the error of z is (I - J)^{-1} g, and what f did to the latest moves, dg = (J - I) dz, tells how much
    the inverse amplifies: A is the largest ||dz|| / ||dg|| over all combinations of them. The latest move alone would
    not do: where f has eigenvalues r and -r the part that alternates hides the part that creeps. See
    `planners.fixed_points.solution` for what the rule promises, and what it can't see.

    Args:
        tolerance: Relative error; 0 is never met, but with an absolute one.
        window: Moves that are combined.
        absolute: Error that is allowed on top, in the units of the numbers.
        norm: Compares A norm(g) with absolute + tolerance norm(f(z)), in place of number with number.
    """

    success = Result.CONVERGED

    def __init__(self, tolerance: float, window: int = 4, absolute: float = 0.0, norm: Norm | None = None) -> None:
        self.tolerance, self.window, self.count, self.absolute, self.norm = tolerance, window, 0, absolute, norm
        self.memory: _Memory | None = None

    def judge(self, z: Tensor, fz: Tensor) -> Verdict:  # noqa: D102
        eps = torch.finfo(z.dtype).eps
        tolerance = max(self.tolerance, NOISE * eps)
        z, f = at_least_single(flat(z)), at_least_single(flat(fz))
        scale = scale_per_sample(z, f)[:, None]
        g = f - z
        finite = torch.isfinite(g).all(dim=1)
        before = self._opened(z, f, g) if self.memory is None else self.memory
        unit_f, unit_g = (torch.where(finite[:, None], part / scale, 0.0) for part in (f, g))
        size, off, change = measured(unit_f, self.norm), measured(unit_g, self.norm), norm_per_sample(unit_g)
        largest = size.amax(dim=1) if size.shape[1] else size.new_zeros(len(size))
        # Beside much larger numbers a number is only as good as their rounding; and zero is reached as near as this.
        floor = torch.maximum(eps * largest, FAR * before.start / scale[:, 0])[:, None]
        strict = tolerance * size
        if self.absolute > 0.0:
            strict = strict + self.absolute / scale
        lenient = strict + floor
        weight = torch.where(lenient > 0.0, 1.0 / lenient, 0.0)
        noise = eps * norm_per_sample(weight * unit_f)

        dz, dg = (torch.where(finite[:, None], new - old, 0.0) for new, old in ((z, before.z), (g, before.g)))
        length, response = (norm_per_sample(weight * (part / scale)) for part in (dz, dg))
        tells = finite & (length > NOISE * noise)
        ratio = (length / (response + noise)).clamp(min=1.0)
        # A response lost in rounding says only that A is at least so large, and takes back nothing known before.
        ratio = torch.where(response > 2.0 * noise, ratio, torch.maximum(ratio, before.latest))
        latest = torch.where(tells, ratio, before.latest)
        moves, changes = (_kept(*part, self.count, tells) for part in ((before.moves, dz), (before.changes, dg)))
        self.count += 1

        measure = _largest(latest[:, None].clamp(min=1.0) * off, strict)
        gained = measure < 0.99 * before.best
        best, since = torch.where(gained, measure, before.best), torch.where(gained, 0, before.since + 1)
        allowed = torch.where((since >= STALLED)[:, None], lenient, strict)
        ready = _largest(latest[:, None].clamp(min=1.0) * off, allowed) <= 1.0
        if z.device.type != "cpu" or bool(ready.any()):
            amplification = torch.maximum(latest, _amplification(moves, changes, weight / scale, noise))
            met = _largest(amplification[:, None] * off, allowed) <= 1.0
        else:
            met = ready
        # Without any move that told something, only a change that is rounding passes.
        still = _largest(off, NOISE * eps * size + floor) <= 1.0
        halfway, before_halfway = before.halfway, before.before_halfway
        if self.count & (self.count - 1) == 0:
            halfway, before_halfway = z, halfway
        if eps > HALF and self.count > 1:
            # A drift below rounding hides from every difference of two looks, but adds up over many.
            met = met & _within(measured(z - before_halfway, self.norm), strict * scale)
        known = 0.5 * eps * latest <= tolerance  # else rounding alone is more than is allowed
        if self.absolute > 0.0:
            known = known | (0.5 * eps * latest * largest <= self.absolute / scale[:, 0])
        met = torch.where(latest > 0.0, met & known, still) & finite
        streak = torch.where(met, before.streak + 1, 0)
        exact = met & ((change == 0.0) | (latest == 0.0))
        last = torch.where(finite, change.double() * scale[:, 0].double(), torch.inf)
        first = torch.where(before.last < 0.0, last, before.first)
        snapshots = (halfway, before_halfway)
        self.memory = _Memory(z, g, moves, changes, *snapshots, before.start, first, last, latest, best, since, streak)
        residual = torch.where(finite, torch.where(change > 0.0, change / norm_per_sample(unit_f), 0.0), torch.inf)
        done = ((streak >= LOOKS) | exact) & (self.tolerance > 0.0 or self.absolute > 0.0)
        # The change itself: relative to an iterate that runs away the worst would be the best.
        return Verdict(residual, done, ~finite, last)

    def _opened(self, z: Tensor, f: Tensor, g: Tensor) -> _Memory:
        start = torch.maximum(z.abs(), f.abs()).amax(dim=1) if z.shape[1] else z.new_zeros(len(z))
        start = torch.where(torch.isfinite(start), start, 0.0)
        zeros, count = torch.zeros_like(start), torch.zeros_like(start, dtype=torch.int64)
        moves, wide = z.new_zeros(len(z), self.window, z.shape[1]), zeros.double()
        return _Memory(z, g, moves, moves, z, z, start, wide, wide - 1.0, zeros, zeros + torch.inf, count, count)

    def grown(self) -> Tensor:  # noqa: D102
        assert self.memory is not None
        return self.memory.last > GROWTH * self.memory.first

    def take(self, rows: Tensor) -> None:  # noqa: D102
        if self.memory is not None:
            self.memory = _Memory(*(part[rows] for part in self.memory))


def _kept(ring: Tensor, new: Tensor, count: int, tells: Tensor) -> Tensor:
    """Return the ring [B, W, N] with a new row where it tells something."""
    ring = ring.clone()
    slot = count % ring.shape[1]
    ring[:, slot] = torch.where(tells[:, None], new, ring[:, slot])
    return ring


def _amplification(moves: Tensor, changes: Tensor, weight: Tensor, noise: Tensor) -> Tensor:
    """Return the largest weighted ||dz|| / ||dg|| over the combinations of moves, [B], at least 1."""
    moves, changes = ((part * weight[:, None]).double() for part in (moves, changes))
    length = torch.linalg.vector_norm(moves, dim=2)
    used = torch.isfinite(length) & (length > 0.0)
    moves, changes = (
        torch.where(used[:, :, None], part / torch.where(used, length, 1.0)[:, :, None], 0.0)
        for part in (moves, changes)
    )
    of_moves, of_changes = (torch.bmm(part, part.transpose(1, 2)) for part in (moves, changes))
    # What rounding may have added to each change; and what keeps moves that repeat each other from a ratio of noises.
    ridge = (noise[:, None].double() / torch.where(used, length, 1.0)).square() + 1e-14
    of_changes = of_changes + torch.diag_embed(torch.where(used, ridge, 1.0))
    lower, failed = torch.linalg.cholesky_ex(of_changes)
    half = torch.linalg.solve_triangular(lower, of_moves, upper=False)
    ratios = torch.linalg.solve_triangular(lower, half.transpose(1, 2), upper=False)
    ratios = torch.where((failed == 0)[:, None, None] & torch.isfinite(ratios), ratios, 0.0)
    return torch.linalg.eigvalsh(ratios).amax(dim=1).clamp(min=1.0).sqrt().to(noise.dtype)


def _within(numbers: Tensor, allowed: Tensor) -> Tensor:
    return (numbers <= allowed).all(dim=1)


def _largest(numbers: Tensor, allowed: Tensor) -> Tensor:
    """Return the largest of numbers / allowed in each row, [B]; 0 / 0 is 0."""
    if numbers.shape[1] == 0:
        return numbers.new_zeros(len(numbers))
    return torch.where(numbers > 0.0, numbers / allowed, 0.0).amax(dim=1)


def close(z: Tensor, fz: Tensor, tolerance: float, absolute: float = 0.0, norm: Norm | None = None) -> Tensor:
    """Return [B] bool: f changes every number of z by at most twice the tolerance, or by rounding of the largest."""
    eps = torch.finfo(z.dtype).eps
    z, f = at_least_single(flat(z)), at_least_single(flat(fz))
    size = measured(f, norm)
    largest = size.amax(dim=1, keepdim=True) if size.shape[1] else size.new_zeros(len(size), 1)
    allowed = 2.0 * (max(tolerance, NOISE * eps) * size + absolute) + eps * largest
    return (measured(f - z, norm) <= allowed).all(dim=1)
