"""A planar box that meets the ground: hard contact and friction in one time step, and its derivatives.

In a step of h seconds the velocity v = (x', y', a') becomes the v of

    M (v - v0) - h M g - sum_i (N_i^T gamma_i + T_i^T beta_i) = 0        N, T: of corner i at q = q0 + h v
    s_i = phi_i(q),  s_i gamma_i = kappa                                  height of corner i, impulse of the ground
    eta_i = T_i v,   (mu gamma_i, beta_i) o (psi_i, eta_i) = (kappa, 0)   friction: least power within its cone

with s, gamma > 0, mu gamma_i > |beta_i|, psi_i > |eta_i|. At kappa = 0 these are complementarity, Coulomb's cone and
maximal dissipation: hard contact. A larger kappa, the central path's, is softer, and has derivatives that say more.
Howell et al., Dojo: a differentiable physics engine for robotics, 2022. DEVIATION: the plane has no second direction of
friction, so that a second-order cone is two inequalities; there is no bounce, and no joint.

On the central path gamma = kappa / s, and psi and beta follow from gamma and eta too, so that v alone solves the
equations: three of them, whose root is differentiated by the implicit function theorem (`planners.fixed_points.root`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from planners.fixed_points import GMRES, Implicit, Result, root

GRAVITY = 9.81
CORNERS = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]], dtype=torch.float64)
_ITERATIONS, _TOLERANCE, _TO_BOUNDARY = 60, 1e-10, 0.95


@dataclass(frozen=True, eq=False)
class Box:
    """What moves: a box of density 1 per square metre.

    Attributes:
        half: Half its width and height, metre [2].
        friction: Coulomb's coefficient with the ground [].
    """

    half: Tensor
    friction: Tensor

    @property
    def inertia(self) -> Tensor:
        """The diagonal of M: mass, mass, moment [3]."""
        mass = 4.0 * self.half.prod()
        return torch.stack((mass, mass, mass * self.half.square().sum() / 3.0))

    def corners(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return each corner's place from the centre in the world, [..., 4], right and up."""
        right, up = (CORNERS * self.half).unbind(-1)
        cosine, sine = torch.cos(q[..., 2:]), torch.sin(q[..., 2:])
        return cosine * right - sine * up, sine * right + cosine * up


@dataclass(frozen=True, eq=False)
class Stepped:
    """A time step.

    Attributes:
        q: Place and angle after it [B, 3].
        v: Velocities after it [B, 3].
        converged: Whether the interior-point method has found them [B].
    """

    q: Tensor
    v: Tensor
    converged: Tensor


def step(box: Box, q: Tensor, v: Tensor, *, seconds: float, central_path: float) -> Stepped:
    """Return place and velocity [B, 3] after a time step, differentiable in the box, in q and in v.

    Args:
        box: What moves.
        q: Place of its centre and angle, float64 [B, 3]; no corner below the ground.
        v: Their velocities.
        seconds: Length of the step.
        central_path: kappa, above 0: 1e-6 is hard, 1e-2 is soft.
    """

    def balance(after: Tensor) -> Tensor:
        return _balance(box, q, v, after, seconds, central_path)

    with torch.no_grad():
        found, converged = _interior_point(box, q, v, seconds, central_path)
    # A box at rest has numbers near 0, of which no share is small: places are found, and velocities read off them.
    ahead = root(
        lambda place: balance((place - q) / seconds),
        solution=q + seconds * found,
        adjoint=Implicit(GMRES(max_steps=6, tolerance=1e-10)),
    )
    return Stepped(ahead.value, (ahead.value - q) / seconds, converged & (ahead.result == Result.CONVERGED))


def _balance(box: Box, q: Tensor, v: Tensor, after: Tensor, seconds: float, central_path: float) -> Tensor:
    """Return what is left of the balance of momenta [B, 3] for a velocity, with the impulses of the central path."""
    right, up = box.corners(q + seconds * after)
    gamma = central_path / (q[:, 1:2] + seconds * after[:, 1:2] + up)
    limit, eta = box.friction * gamma, after[:, :1] - up * after[:, 2:]
    ratio = central_path / limit
    psi = 0.5 * (ratio + torch.sqrt(ratio.square() + 4.0 * eta.square()))  # limit psi + beta eta = kappa
    return _momenta(box, v, after, seconds, right, up, gamma, -limit * eta / psi)


def _momenta(
    box: Box, v: Tensor, after: Tensor, seconds: float, right: Tensor, up: Tensor, gamma: Tensor, beta: Tensor
) -> Tensor:
    weight = torch.tensor([0.0, -GRAVITY, 0.0], dtype=v.dtype)
    impulse = torch.stack((beta.sum(1), gamma.sum(1), (right * gamma - up * beta).sum(1)), 1)
    return box.inertia * (after - v - seconds * weight) - impulse


def _interior_point(box: Box, q: Tensor, v: Tensor, seconds: float, central_path: float) -> tuple[Tensor, Tensor]:
    """Return the velocities [B, 3] and which of them are found, by Newton's steps that stay inside of all cones."""

    def conditions(z: Tensor, target: Tensor, q: Tensor, v: Tensor) -> Tensor:
        after, gamma, s, psi, beta, eta = (part[None] for part in z.split([3, 4, 4, 4, 4, 4]))
        place = q[None] + seconds * after
        right, up = box.corners(place)
        limit = box.friction * gamma
        return torch.cat(
            (
                _momenta(box, v[None], after, seconds, right, up, gamma, beta)[0],
                (s - place[:, 1:2] - up)[0],
                (eta - after[:, :1] + up * after[:, 2:])[0],
                (s * gamma - target)[0],
                (limit * psi + beta * eta - target)[0],
                (limit * eta + psi * beta)[0],
            )
        )

    residual, jacobian = torch.vmap(conditions), torch.vmap(torch.func.jacfwd(conditions))
    one, none = torch.ones(len(q), 4, dtype=q.dtype), torch.zeros(len(q), 4, dtype=q.dtype)
    z, kappa = torch.cat((v, one, one, one, none, none), 1), torch.full((len(q),), central_path, dtype=q.dtype)
    for _ in range(_ITERATIONS):
        left = residual(z, kappa, q, v)
        if bool((left.abs().amax(1) <= _TOLERANCE).all()):
            break
        target = torch.maximum(kappa, _centring(z, box.friction) * 0.1)
        move = torch.linalg.solve(jacobian(z, target, q, v), -residual(z, target, q, v))
        z = z + _within(z, move, box.friction)[:, None] * move
    return z[:, :3], residual(z, kappa, q, v).abs().amax(1) <= _TOLERANCE


def _positive(z: Tensor, friction: Tensor) -> Tensor:
    """Return what must stay above 0, linear in z."""
    _, gamma, s, psi, beta, eta = z.split([3, 4, 4, 4, 4, 4], 1)
    return torch.cat((gamma, s, friction * gamma - beta, friction * gamma + beta, psi - eta, psi + eta), 1)


def _centring(z: Tensor, friction: Tensor) -> Tensor:
    """Return the mean of the products that the central path holds at kappa [B]."""
    _, gamma, s, psi, beta, eta = z.split([3, 4, 4, 4, 4, 4], 1)
    return 0.5 * ((s * gamma).mean(1) + (friction * gamma * psi + beta * eta).mean(1))


def _within(z: Tensor, move: Tensor, friction: Tensor) -> Tensor:
    """Return the share of a move [B] that keeps what must be positive so."""
    here, there = _positive(z, friction), _positive(move, friction)
    most = torch.where(there < 0, -here / there, torch.inf).amin(1)
    return (_TO_BOUNDARY * most).clamp(max=1.0)
