"""Rules for the next iterate: Anderson's and Broyden's, with the history that each keeps.

Legend: z iterate, g = f(z) - z, dz and dg their differences, B samples, N numbers of a sample, m history depth.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .stopping import flat, norm_per_sample, safe_norm_per_sample

GROWTH_OF_A_STEP = 2.0
"""Broyden's steps may make ||g|| this many times larger before a step counts as too long."""


class Acceleration(Protocol):
    """A rule for the next iterate, with the memory it needs."""

    def propose(self, z: Tensor, g: Tensor) -> Tensor:
        """Return the next iterate after z [B, ...] whose fixed-point residual is g = f(z) - z."""

    def take(self, rows: Tensor) -> None:
        """Keep only these rows of the batch."""


def _inner(history: Tensor, vectors: Tensor) -> Tensor:
    """Return inner products [B, m, n] of history [B, m, N] and vectors [B, n, N], in float64."""
    # In pieces that fit the cache: a float64 copy of the whole history made this twice as slow on a CPU.
    piece = 2048 if history.device.type == "cpu" else max(history.shape[2], 1)
    total = history.new_zeros(*history.shape[:2], vectors.shape[1], dtype=torch.float64)
    for start in range(0, history.shape[2], piece):
        part = slice(start, start + piece)
        total += torch.bmm(history[:, :, part].double(), vectors[:, :, part].double().transpose(1, 2))
    return total


class AndersonMemory:
    """The last moves dz + mixing dg and residual differences dg, and the Gram matrix of these in float64."""

    def __init__(self, depth: int, mixing: float, regularisation: float) -> None:
        self.depth, self.mixing = depth, mixing
        # Squared because the Gram matrix holds squared lengths; the floor keeps a singular system solvable.
        self.weight = max(regularisation**2, 1e-15)
        self.count = 0
        self.state: tuple[Tensor, ...] | None = None

    def propose(self, z: Tensor, g: Tensor) -> Tensor:  # noqa: D102
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

    def take(self, rows: Tensor) -> None:  # noqa: D102
        if self.state is not None:
            self.state = tuple(part[rows] for part in self.state)


class BroydenMemory:
    """The inverse Jacobian of g as -alpha I + sum_i u_i v_i^T, and the point that steps start from.

    alpha is 1 until a step makes ||g|| larger. Then it is the step that the last secant asks for, and the next step
    starts at the best point again, half as long (and twice as long after each success, up to the full step): without
    that, f(v) = v - c (A v - b) with c = 10 runs away before the updates know A.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.count = 0
        self.state: tuple[Tensor, ...] | None = None

    def propose(self, z: Tensor, g: Tensor) -> Tensor:  # noqa: D102
        z_flat, g_flat = flat(z), flat(g)
        size = safe_norm_per_sample(g)
        if self.state is None:
            batch, n = z_flat.shape
            u = z_flat.new_zeros(batch, min(16, self.depth), n)
            one = torch.ones_like(size)
            self.state = (z_flat, g_flat, size, one, one, u, torch.zeros_like(u))
            return z + g
        z_old, g_old, least, alpha, length, u, v = self.state
        dz, dg = z_flat - z_old, g_flat - g_old
        worse = ~(size <= GROWTH_OF_A_STEP * least)
        if self.count == self.depth:
            self.count = 0
        elif self.count == u.shape[1]:
            u, v = (torch.cat((part, torch.zeros_like(part)), dim=1) for part in (u, v))
        alpha, started = self._rescaled(worse & (alpha == 1.0), dz, dg, alpha)
        for updates in (u, v):
            updates.masked_fill_(started[:, None, None], 0.0)  # by a mask, a GPU would have to be waited for
        dz_inverse = self._times(v, u, dz) - alpha[:, None].to(z.dtype) * dz
        denominator = _dot(dz_inverse, dg)
        bound = 1e-12 * norm_per_sample(dz_inverse).double() * norm_per_sample(dg).double()
        inverse = torch.where(denominator.abs() > bound, 1.0 / denominator, 0.0).to(z.dtype)
        u[:, self.count] = inverse[:, None] * (dz - (self._times(u, v, dg) - alpha[:, None].to(z.dtype) * dg))
        v[:, self.count] = dz_inverse
        self.count += 1
        length = torch.where(worse, 0.5 * length, (2.0 * length).clamp(max=1.0))
        z_flat, g_flat = (torch.where(worse[:, None], old, new) for old, new in ((z_old, z_flat), (g_old, g_flat)))
        self.state = (z_flat, g_flat, torch.where(worse, least, size), alpha, length, u, v)
        step = alpha[:, None].to(z.dtype) * g_flat - self._times(u, v, g_flat)
        return (z_flat + length[:, None].to(z.dtype) * step).view_as(z)

    def _rescaled(self, at: Tensor, dz: Tensor, dg: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha with the secant's own in the rows `at`, and those rows."""
        square = _dot(dg, dg)
        wanted = (_dot(dz, dg).abs() / square).to(alpha.dtype)
        at = at & torch.isfinite(wanted) & (wanted > 0.0)
        return torch.where(at, wanted, alpha), at

    def _times(self, left: Tensor, right: Tensor, x: Tensor) -> Tensor:
        """Return sum_i left_i (right_i . x), [B, N], over the updates stored."""
        weights = _inner(right[:, : self.count], x[:, None]).to(x.dtype)
        return torch.bmm(left[:, : self.count].transpose(1, 2), weights)[:, :, 0]

    def take(self, rows: Tensor) -> None:  # noqa: D102
        if self.state is not None:
            self.state = tuple(part[rows] for part in self.state)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each row, [B] in float64."""
    return (a.double() * b.double()).sum(dim=1)
