"""Rigid bodies in the plane that meet: hard contact and friction in one time step, and its derivatives.

In a step of h seconds the velocity v0 becomes the v of

    M (v - v0) - h (M g + F) - sum_i (N_i^T gamma_i + T_i^T beta_i) = 0     N, T: of contact i at q = q0 + h v
    s_i = phi_i(q),  s_i gamma_i = kappa                                     gap of contact i, its impulse
    eta_i = T_i v,   (mu_i gamma_i, beta_i) o (psi_i, eta_i) = (kappa, 0)    friction: least power within its cone

with s, gamma > 0, mu gamma_i > |beta_i|, psi_i > |eta_i|. At kappa = 0 these are complementarity, Coulomb's cone and
maximal dissipation: hard contact. A larger kappa, the central path's, is softer, and has derivatives that say more.
Howell et al., Dojo: a differentiable physics engine for robotics, 2022. DEVIATION: the plane has no second direction of
friction, so that a second-order cone is two inequalities; there is no bounce, and coordinates are minimal.

On the central path gamma = kappa / s, and psi and beta follow from gamma and eta too, so that v alone solves the
equations: a few of them, whose root is differentiated by the implicit function theorem (`planners.fixed_points.root`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from planners.fixed_points import GMRES, Implicit, Result, root

HARD = 1e-6
"""The central path's parameter that counts as hard contact."""
_ITERATIONS, _TOLERANCE, _TO_BOUNDARY, _SHIFT = 60, 1e-10, 0.95, 1e-7


@dataclass(frozen=True, eq=False)
class Contacts:
    """Where bodies may meet.

    Attributes:
        gap: phi, how far each contact is from touching [B, c].
        normal: N, its derivative [B, c, n].
        tangent: T, which takes velocities to those of sliding [B, c, n]; 0 where nothing rubs.
    """

    gap: Tensor
    normal: Tensor
    tangent: Tensor


class Scene(Protocol):
    """Bodies, and what they may meet."""

    @property
    def inertia(self) -> Tensor:
        """The diagonal of M [n]."""

    @property
    def gravity(self) -> Tensor:
        """g, an acceleration of each coordinate [n]."""

    @property
    def friction(self) -> Tensor:
        """mu, above 0: of all contacts [], or of each [c]."""

    def contacts(self, q: Tensor) -> Contacts:
        """Return them at places [B, n]."""


@dataclass(frozen=True, eq=False)
class Stepped:
    """A time step.

    Attributes:
        q: Places and angles after it [B, n].
        v: Velocities after it [B, n].
        converged: Whether the interior-point method has found them [B].
    """

    q: Tensor
    v: Tensor
    converged: Tensor


@dataclass(frozen=True, eq=False)
class _Step:
    """What one step begins with."""

    scene: Scene
    q: Tensor
    v: Tensor
    impulse: Tensor
    seconds: float

    @classmethod
    def of(cls, scene: Scene, q: Tensor, v: Tensor, seconds: float, force: Tensor | None) -> _Step:
        impulse = (seconds * scene.inertia * scene.gravity).expand_as(v)
        return cls(scene, q, v, impulse if force is None else impulse + seconds * force, seconds)

    def momenta(self, after: Tensor, at: Contacts, gamma: Tensor, beta: Tensor) -> Tensor:
        """Return what is left of the balance of momenta [B, n]."""
        return self.scene.inertia * (after - self.v) - self.impulse - _pushed(at, gamma, beta)

    def balance(self, after: Tensor, kappa: float) -> Tensor:
        """Return the same with the impulses of the central path, which follow from the velocities."""
        at = self.scene.contacts(self.q + self.seconds * after)
        gamma, eta = kappa / at.gap, _along(at.tangent, after)
        limit = self.scene.friction * gamma
        ratio = kappa / limit
        psi = 0.5 * (ratio + torch.sqrt(ratio.square() + 4.0 * eta.square()))  # limit psi + beta eta = kappa
        return self.momenta(after, at, gamma, -limit * eta / psi)


@dataclass(frozen=True, eq=False)
class _Point:
    """An iterate, or a move of one, of the interior-point method: v, and what there is of each contact."""

    v: Tensor
    gamma: Tensor
    s: Tensor
    psi: Tensor
    beta: Tensor
    eta: Tensor

    def moved(self, share: Tensor, by: _Point) -> _Point:
        return _Point(*(mine + share * its for mine, its in zip(vars(self).values(), vars(by).values(), strict=True)))

    def positive(self, mu: Tensor) -> Tensor:
        """Return what must stay above 0, linear in the point."""
        limit = mu * self.gamma
        cones = (self.gamma, self.s, limit - self.beta, limit + self.beta, self.psi - self.eta, self.psi + self.eta)
        return torch.cat(cones, 1)

    def products(self, mu: Tensor, kappa: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is left of the complementarity of gap and impulse, and of friction's cones."""
        limit = mu * self.gamma
        friction = limit * self.psi + self.beta * self.eta - kappa
        return self.s * self.gamma - kappa, friction, limit * self.eta + self.psi * self.beta


def step(
    scene: Scene, q: Tensor, v: Tensor, *, seconds: float, central_path: float, force: Tensor | None = None
) -> Stepped:
    """Return places and velocities [B, n] after a time step, differentiable in the scene, in q, v and force.

    Args:
        scene: What moves.
        q: Places and angles, float64 [B, n]; no gap below 0.
        v: Their velocities.
        seconds: Length of the step.
        central_path: kappa, above 0: 1e-6 is hard, 1e-2 is soft.
        force: On each coordinate, all through the step [B, n].
    """
    given = _Step.of(scene, q, v, seconds, force)
    with torch.no_grad():
        point, converged = _interior_point(given, central_path)
    return _differentiable(given, point.v, converged, central_path)


def relaxed_step(
    scene: Scene, q: Tensor, v: Tensor, *, seconds: float, central_path: float, force: Tensor | None = None
) -> Stepped:
    """Return the hard step of `step` with the derivatives of a softer one, which the central path has passed by."""
    given = _Step.of(scene, q, v, seconds, force)
    with torch.no_grad():
        point, converged = _interior_point(given, central_path)
        hard, reached = _interior_point(given, HARD, point)
    soft = _differentiable(given, point.v, converged & reached, central_path)
    further = hard.v - soft.v.detach()
    return replace(soft, q=soft.q + seconds * further, v=soft.v + further)


def _differentiable(given: _Step, found: Tensor, converged: Tensor, kappa: float) -> Stepped:
    """Return a step whose velocities were found, with their derivatives."""
    # A root's numbers are judged each by its own size, and a body at rest has numbers near 0: metres above 1 are found.
    ahead = root(
        lambda moved: given.balance((moved - 1.0) / given.seconds, kappa),
        solution=1.0 + given.seconds * found,
        adjoint=Implicit(GMRES(max_steps=6, tolerance=1e-10)),
    )
    moved = ahead.value - 1.0
    return Stepped(given.q + moved, moved / given.seconds, converged & (ahead.result == Result.CONVERGED))


def _along(directions: Tensor, velocities: Tensor) -> Tensor:
    return (directions @ velocities[..., None])[..., 0]


def _pushed(at: Contacts, gamma: Tensor, beta: Tensor) -> Tensor:
    return (at.normal * gamma[..., None] + at.tangent * beta[..., None]).sum(-2)


def _interior_point(given: _Step, kappa: float, point: _Point | None = None) -> tuple[_Point, Tensor]:
    """Return the point at kappa, and where it is found [B], by Newton's steps that stay inside of all cones."""
    mu = given.scene.friction
    if point is None:
        one = torch.ones_like(given.scene.contacts(given.q).gap)
        point = _Point(given.v, one, one, one, 0.0 * one, 0.0 * one)
    for _ in range(_ITERATIONS):
        products = point.products(mu, 0.0)
        target = (0.05 * (products[0] + products[1]).mean(1, keepdim=True)).clamp(min=kappa)
        move, left = _newton(given, point, mu, target, kappa)
        if bool((left <= _TOLERANCE).all()):
            break
        here, there = point.positive(mu), move.positive(mu)
        most = torch.where(there < 0, -here / there, torch.inf).amin(1, keepdim=True)
        point = point.moved((_TO_BOUNDARY * most).clamp(max=1.0), move)
    return point, left <= _TOLERANCE


def _newton(given: _Step, point: _Point, mu: Tensor, target: Tensor, kappa: float) -> tuple[_Point, Tensor]:
    """Return Newton's move towards the central path at `target`, and what is left at kappa, the largest [B].

    What belongs to contacts is eliminated by hand, so that velocities alone are left to solve for.
    """
    v, gamma, s, psi, beta, eta = vars(point).values()
    at, gaps, slips, pushes = _linearised(given, point)
    r0 = given.momenta(v, at, gamma, beta)
    r1, r2 = s - at.gap, eta - _along(at.tangent, v)
    left = torch.cat((r0, r1, r2, *point.products(mu, kappa)), 1).abs().amax(1)
    r3, r4, r5 = point.products(mu, target)
    limit = mu * gamma
    # dgamma = a + A dv, dbeta = b + B dv
    a, A = (gamma * r1 - r3) / s, -(gamma / s)[..., None] * gaps
    divisor = psi - beta * eta / limit
    by_slip, by_gamma = (beta.square() / limit - limit) / divisor, mu * (beta * psi / limit - eta) / divisor
    b = (beta * r4 / limit - r5) / divisor - by_slip * r2 + by_gamma * a
    B = by_slip[..., None] * slips + by_gamma[..., None] * A
    matrix = torch.diag(given.scene.inertia) - pushes - at.normal.mT @ A - at.tangent.mT @ B
    dv = torch.linalg.solve(matrix, _pushed(at, a, b) - r0)
    ds, deta, dgamma, dbeta = _along(gaps, dv) - r1, _along(slips, dv) - r2, a + _along(A, dv), b + _along(B, dv)
    dpsi = (-r4 - beta * deta - mu * psi * dgamma - eta * dbeta) / limit
    return _Point(dv, dgamma, ds, dpsi, dbeta, deta), left


def _linearised(given: _Step, point: _Point) -> tuple[Contacts, Tensor, Tensor, Tensor]:
    """Return the contacts, and the derivatives by v of gaps and slips [B, c, n] and of the push on bodies [B, n, n].

    How contacts turn with their bodies is taken by differences: Newton's method is as fast, and exact in the end.
    """
    (batch, n), h = point.v.shape, given.seconds
    each = torch.cat((point.v.new_zeros(1, n), torch.eye(n, dtype=point.v.dtype)))
    shifts = _SHIFT * each.repeat_interleave(batch, 0)
    v, q, gamma, beta = (part.repeat(n + 1, 1) for part in (point.v, given.q, point.gamma, point.beta))
    around = given.scene.contacts(q + h * (v + shifts))
    at = Contacts(around.gap[:batch], around.normal[:batch], around.tangent[:batch])
    slips, pushes = (
        (found.unflatten(0, (n + 1, batch))[1:] - found[:batch]).permute(1, 2, 0) / _SHIFT
        for found in (_along(around.tangent, v + shifts), _pushed(around, gamma, beta))
    )
    return at, h * at.normal, slips, pushes
