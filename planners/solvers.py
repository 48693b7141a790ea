"""Solvers for v = f(v), each sample on its own: forward iteration, Anderson, Broyden.

Legend: z iterate, g = f(z) - z, K steps, B samples, m history depth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from planners.solution import Result, Solution, Step

RESIDUAL_OFFSET = 1e-5
"""Added to ||f(z)|| in the relative residual, as in the authors' solver, so that a solution of zero is reachable."""

GROWTH = 1e6
"""A sample has diverged once ||f(z)|| exceeds this many times max(1, ||v0||, ||f(v0)||)."""

CHECK_INTERVAL = {"cpu": 1}
"""Steps between looks at the residuals; on a GPU, where a look waits for the device, 8. Stopping is exact all the same:
a sample is frozen on the device at its own step, and only stops costing at the next look."""


def apply(f: Step, z: Tensor) -> Tensor:
    """Return f(z) in the dtype of z, which autocast may have changed; raise ValueError if its shape is another."""
    fz = f(z)
    if fz.shape != z.shape:
        raise ValueError(f"f must keep the shape of v, got {tuple(z.shape)} -> {tuple(fz.shape)}")
    return fz.to(z.dtype)


def flat(z: Tensor) -> Tensor:
    """Return z [B, ...] as [B, N]."""
    return z[..., None].flatten(1)


def norm_per_sample(z: Tensor) -> Tensor:
    """Return the 2-norm of each sample, [B], in at least float32."""
    dtype = torch.promote_types(z.dtype, torch.float32)
    return torch.linalg.vector_norm(flat(z), dim=1, dtype=dtype)


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
    """Return the size of ||f(z)|| above which a sample has diverged, [B]."""
    return GROWTH * torch.maximum(norm_per_sample(v0), norm_per_sample(fv0)).clamp(min=1.0)


def has_diverged(fz: Tensor, residual: Tensor, limit: Tensor) -> Tensor:
    """Return [B] bool: the residual is not finite, or f(z) is larger than the limit."""
    return ~torch.isfinite(residual) | (norm_per_sample(fz) > limit)


class Acceleration(Protocol):
    """A rule for the next iterate, with the memory it needs."""

    def propose(self, z: Tensor, g: Tensor) -> Tensor:
        """Return the next iterate after z [B, ...] whose fixed-point residual is g = f(z) - z."""

    def take(self, rows: Tensor) -> None:
        """Keep only these rows of the batch."""


@dataclass(frozen=True)
class ForwardIteration:
    """Forward iteration v_{k+1} = f(v_k), Eq. 2.

    The answer is f of the last iterate. A sample stops at its first step whose residual is at most the tolerance, and
    costs nothing more when f has `take`; a sample that diverges keeps its last iterate within bounds.

    Args:
        max_steps: K, most applications of f, at least 1.
        tolerance: Relative residual at which a sample stops; 0 runs exactly K steps.
        record: Keep the residual after each step.
    """

    max_steps: int = 30
    tolerance: float = 1e-4
    record: bool = False

    def __post_init__(self) -> None:
        _check_steps(self)

    def solve(self, f: Step, v0: Tensor) -> Solution:
        """Return f applied K times to v0 [B, ...], or fewer times for samples that converged or diverged."""
        return _iterate(f, v0, self.max_steps, self.tolerance, self.record, None)


@dataclass(frozen=True)
class Anderson:
    """Anderson acceleration (type II), one least-squares problem per sample.

    z_{k+1} = z + mixing g - sum_i gamma_i (dz_i + mixing dg_i), where gamma minimises ||g - sum_i gamma_i dg_i|| over
    the last m differences. The weights come from inner products alone, so for f equivariant under an orthogonal group
    action the iterates are equivariant too. The answer is the iterate of lowest residual.
    Walker and Ni, Anderson acceleration for fixed-point iterations, 2011.

    Args:
        max_steps: Most applications of f, at least 1.
        tolerance: Relative residual at which a sample stops; 0 runs all steps.
        depth: m, differences remembered.
        mixing: Damping of the step in (0, 1].
        regularisation: Weight that holds the gammas back, relative to the length of each dg; combinations of
            differences shorter than this share of their length are taken for noise.
        record: Keep the residual after each step.
    """

    max_steps: int = 30
    tolerance: float = 1e-4
    depth: int = 5
    mixing: float = 1.0
    regularisation: float = 1e-4
    record: bool = False

    def __post_init__(self) -> None:
        _check_steps(self)
        if self.depth < 1:
            raise ValueError(f"depth must be at least 1, got {self.depth}")
        if not 0.0 < self.mixing <= 1.0:
            raise ValueError(f"mixing must be in (0, 1], got {self.mixing}")
        if not self.regularisation >= 0.0:
            raise ValueError(f"regularisation must be at least 0, got {self.regularisation}")

    def solve(self, f: Step, v0: Tensor) -> Solution:
        """Return the iterate of lowest residual found from v0 [B, ...]."""
        memory = _AndersonMemory(self.depth, self.mixing, self.regularisation)
        return _iterate(f, v0, self.max_steps, self.tolerance, self.record, memory)


@dataclass(frozen=True)
class Broyden:
    """Broyden's (good) method on g(z) = f(z) - z with a limited memory of rank-one updates per sample.

    The inverse Jacobian starts at -I, so the first step is a forward iteration; when `depth` updates are stored the
    approximation starts again from -I. The answer is the iterate of lowest residual.
    Broyden, A class of methods for solving nonlinear simultaneous equations, 1965; Bai et al., 2019.

    Args:
        max_steps: Most applications of f, at least 1.
        tolerance: Relative residual at which a sample stops; 0 runs all steps.
        depth: Rank-one updates remembered.
        record: Keep the residual after each step.
    """

    max_steps: int = 30
    tolerance: float = 1e-4
    depth: int = 10
    record: bool = False

    def __post_init__(self) -> None:
        _check_steps(self)
        if self.depth < 1:
            raise ValueError(f"depth must be at least 1, got {self.depth}")

    def solve(self, f: Step, v0: Tensor) -> Solution:
        """Return the iterate of lowest residual found from v0 [B, ...]."""
        return _iterate(f, v0, self.max_steps, self.tolerance, self.record, _BroydenMemory(self.depth))


def _check_steps(solver: ForwardIteration | Anderson | Broyden) -> None:
    if solver.max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {solver.max_steps}")
    if not solver.tolerance >= 0.0:
        raise ValueError(f"tolerance must be at least 0, got {solver.tolerance}")


def _choose(mask: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    """Return `chosen` in the rows where mask [B] is true, else `other`; free on the CPU when all or none are."""
    if mask.device.type == "cpu":
        if bool(mask.all()):
            return chosen
        if not bool(mask.any()):
            return other
    return torch.where(mask.reshape(-1, *[1] * (chosen.ndim - 1)), chosen, other)


@torch.no_grad()
def _iterate(
    f: Step, v0: Tensor, max_steps: int, tolerance: float, record: bool, memory: Acceleration | None
) -> Solution:
    """Run plain iteration (keeping the last iterate) or an accelerated one (keeping the best)."""
    take: Callable[[Tensor], Step] | None = getattr(f, "take", None)
    interval = CHECK_INTERVAL.get(v0.device.type, 8)
    z = v0.detach()
    batch, device = z.shape[0], z.device
    dtype = torch.promote_types(z.dtype, torch.float32)
    value = z
    residual = torch.full((batch,), torch.inf, dtype=dtype, device=device)
    steps = torch.zeros(batch, dtype=torch.int64, device=device)
    result = torch.full((batch,), int(Result.MAX_STEPS), dtype=torch.int8, device=device)
    live = torch.ones(batch, dtype=torch.bool, device=device)
    limit = residual
    rows: Tensor | None = None  # rows of the batch still iterated, once some have left it
    stopped: tuple[Tensor, ...] = ()
    trace: list[Tensor] = []

    for k in range(1, max_steps + 1):
        fz = apply(f, z)
        if k == 1:
            limit = growth_limit(z, fz)
        now = relative_residual(z, fz)
        diverged = live & has_diverged(fz, now, limit)
        moving = live & ~diverged
        if memory is None:
            value = _choose(moving, fz, value)
            residual = torch.where(live, now, residual)
        else:
            better = moving & (now < residual)
            value = _choose(better, z, value)
            residual = torch.where(better, now, residual)
        steps = steps + live
        converged = moving & (now <= tolerance) if tolerance > 0.0 else torch.zeros_like(moving)
        result = torch.where(diverged, int(Result.DIVERGED), result)
        result = torch.where(converged, int(Result.CONVERGED), result)
        if record:
            row = trace[-1].clone() if trace else torch.full((batch,), torch.inf, dtype=dtype, device=device)
            at = slice(None) if rows is None else rows
            row[at] = torch.where(live, now, row[at])
            trace.append(row)
        live = moving & ~converged
        if k == max_steps:
            break
        z = value if memory is None else _choose(live, memory.propose(z, fz - z), z)
        if k % interval == 0:
            count = int(live.sum())
            if count == 0:
                break
            if take is not None and count < live.shape[0]:
                left = live.nonzero()[:, 0]
                state = (value, residual, steps, result)
                if rows is None:
                    stopped, rows = state, left
                else:
                    stopped = _put(stopped, rows, state)
                    rows = rows[left]
                z, live, limit = z[left], live[left], limit[left]
                value, residual, steps, result = (part[left] for part in state)
                if memory is not None:
                    memory.take(left)
                f = take(rows)

    if rows is not None:
        value, residual, steps, result = _put(stopped, rows, (value, residual, steps, result))
    trace += trace[-1:] * (max_steps - len(trace)) if record else []
    return Solution(value, residual, steps, result, torch.stack(trace) if record else None)


def _put(whole: tuple[Tensor, ...], rows: Tensor, part: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(w.index_copy(0, rows, p.to(w.dtype)) for w, p in zip(whole, part, strict=True))


def _inner(history: Tensor, vectors: Tensor) -> Tensor:
    """Return inner products [B, m, n] of history [B, m, N] and vectors [B, n, N], in float64."""
    # In pieces that fit the cache: a float64 copy of the whole history made this twice as slow on a CPU.
    piece = 2048 if history.device.type == "cpu" else max(history.shape[2], 1)
    total = history.new_zeros(*history.shape[:2], vectors.shape[1], dtype=torch.float64)
    for start in range(0, history.shape[2], piece):
        part = slice(start, start + piece)
        total += torch.bmm(history[:, :, part].double(), vectors[:, :, part].double().transpose(1, 2))
    return total


class _AndersonMemory:
    """The last moves dz + mixing dg and residual differences dg, and the Gram matrix of these in float64."""

    def __init__(self, depth: int, mixing: float, regularisation: float) -> None:
        self.depth, self.mixing = depth, mixing
        # Squared because the Gram matrix holds squared lengths; the floor keeps a singular system solvable.
        self.weight = max(regularisation**2, 1e-15)
        self.count = 0
        self.state: tuple[Tensor, ...] | None = None

    def propose(self, z: Tensor, g: Tensor) -> Tensor:
        z_flat, g_flat = flat(z), flat(g)
        if self.state is None:
            batch, size = z_flat.shape
            history = z_flat.new_zeros(batch, self.depth, size)
            gram = torch.zeros(batch, self.depth, self.depth, dtype=torch.float64, device=z.device)
            self.state = (z_flat, g_flat, history, torch.zeros_like(history), gram)
            return z + self.mixing * g
        z_old, g_old, moves, dg, gram = self.state
        slot = self.count % self.depth
        self.count += 1
        dg[:, slot] = g_flat - g_old
        moves[:, slot] = z_flat - z_old + self.mixing * dg[:, slot]
        products = _inner(dg, torch.stack((dg[:, slot], g_flat), dim=1))
        gram[:, slot, :] = gram[:, :, slot] = products[:, :, 0]
        self.state = (z_flat, g_flat, moves, dg, gram)

        length = gram.diagonal(dim1=1, dim2=2).sqrt()
        scale = torch.where(length > 0.0, 1.0 / length, 0.0)
        system = scale[:, :, None] * gram * scale[:, None, :]
        system.diagonal(dim1=1, dim2=2).add_(self.weight)
        gamma, _ = torch.linalg.solve_ex(system, (scale * products[:, :, 1])[:, :, None])
        gamma = scale[:, :, None] * gamma
        # A plain step where the weights are no numbers: the sample's history, not its iterate, is at fault.
        gamma = torch.where(torch.isfinite(gamma).all(dim=1, keepdim=True), gamma, 0.0).to(z.dtype)
        correction = torch.bmm(moves.transpose(1, 2), gamma)[:, :, 0]
        return z + self.mixing * g - correction.view_as(z)

    def take(self, rows: Tensor) -> None:
        if self.state is not None:
            self.state = tuple(part[rows] for part in self.state)


class _BroydenMemory:
    """The inverse Jacobian of g as -I + sum_i u_i v_i^T."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.count = 0
        self.state: tuple[Tensor, ...] | None = None

    def propose(self, z: Tensor, g: Tensor) -> Tensor:
        z_flat, g_flat = flat(z), flat(g)
        if self.state is None:
            batch, size = z_flat.shape
            u = z_flat.new_zeros(batch, self.depth, size)
            self.state = (z_flat, g_flat, u, torch.zeros_like(u))
            return z + g
        z_old, g_old, u, v = self.state
        if self.count == self.depth:
            self.count = 0
        dz, dg = z_flat - z_old, g_flat - g_old
        dz_inverse = self._times(v, u, dz) - dz
        denominator = (dz_inverse * dg).sum(dim=1, dtype=torch.float64)
        least = 1e-12 * norm_per_sample(dz_inverse).double() * norm_per_sample(dg).double()
        inverse = torch.where(denominator.abs() > least, 1.0 / denominator, 0.0).to(z.dtype)
        u[:, self.count] = inverse[:, None] * (dz - (self._times(u, v, dg) - dg))
        v[:, self.count] = dz_inverse
        self.count += 1
        self.state = (z_flat, g_flat, u, v)
        return z + g - self._times(u, v, g_flat).view_as(z)

    def _times(self, left: Tensor, right: Tensor, x: Tensor) -> Tensor:
        """Return sum_i left_i (right_i . x), [B, N], over the updates stored."""
        weights = _inner(right[:, : self.count], x[:, None]).to(x.dtype)
        return torch.bmm(left[:, : self.count].transpose(1, 2), weights)[:, :, 0]

    def take(self, rows: Tensor) -> None:
        if self.state is not None:
            self.state = tuple(part[rows] for part in self.state)
