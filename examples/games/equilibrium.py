"""Generalised Nash equilibria of two cars, and plans of one, by an interior-point method; gradients by `planners.root`.

Car i chooses its controls u_i so as to maximise its own reward, under its own limits and the clearance that both share:

    max_{u_i} r_i(x_i(T)) - rho/2 ||u_i||^2    s.t.    limits(x_i(t)) >= 0,    ||apart(x_1(t), x_2(t))||^2 >= 1

Both bear the same multiplier of what they share (Rosen's normalised equilibrium). With g all constraints and kappa the
central path's parameter, its conditions are

    r_i' - rho u_i + sum_c lambda_c dg_c/du_i = 0,    lambda_c g_c = kappa

in which g stays above 0: no constraint is a penalty that gives way, and kappa goes to 1e-5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from games.scene import FIELDS, LIMITS, Scene
from planners.fixed_points import GMRES, Implicit, Result, root

CENTRAL_PATH = 1e-5
_EFFORT, _FIRST, _TO_BOUNDARY, _TOLERANCE, _ITERATIONS, _LOST = 1e-2, 0.1, 0.99, 1e-8, 50, 1e6

_STATE = [0, 1, 3, 4]  # places and speeds among the numbers of a car
_SHIFT = 10.0
"""Controls are near 0, where no share of a number is small: roots are judged of what is this much above them."""

Value = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Game:
    """B games of two cars, or plans of one beside what the other is taken to do.

    Attributes:
        scene: Where.
        start: Places and speeds [B, cars, 2, 2]: along and across, each place and speed.
        top: Top speeds [B, cars].
        steps: Of the plan.
        seconds: Of a step.
        other: What the other car does [B, steps, 6], where one plans.
        way: How much right of way who is ahead has: up to exp(way) times the other's weight.
        value: Of the end of a plan, from places, speeds and top speed of who plans and of the other [B, 5] each to a
            number [B]; None for how far a car has come.
        top_other: The other's top speed [B], where there is such a value.
    """

    scene: Scene
    start: Tensor
    top: Tensor
    steps: int
    seconds: float
    other: Tensor | None = None
    way: float = 0.0
    value: Value | None = None
    top_other: Tensor | None = None

    @property
    def cars(self) -> int:
        """How many choose."""
        return self.start.shape[1]

    @property
    def weights(self) -> Tensor:
        """How much each counts where it and the other can't both go on, [B, cars]."""
        if self.cars == 1 or not self.way:
            return torch.ones_like(self.top)
        ahead = torch.tanh(self.start[:, :, 0, 0] - self.start[:, :, 0, 0].flip(1))
        return torch.exp(0.5 * self.way * ahead)

    @cached_property
    def motion(self) -> Tensor:
        """What controls do to a car, [steps, 6, 2 steps]."""
        after, h = torch.arange(self.steps)[:, None] - torch.arange(self.steps), self.seconds
        acts = (after >= 0).double()
        one = torch.stack((acts * (after + 0.5) * h * h, acts * h, (after == 0).double()), 1)
        both = torch.zeros(self.steps, 2, 3, self.steps, 2, dtype=torch.float64)
        both[:, 0, :, :, 0], both[:, 1, :, :, 1] = one, one
        return both.reshape(self.steps, FIELDS, 2 * self.steps)

    @cached_property
    def parting(self) -> Tensor:
        """What controls do to how far cars are apart, [steps, 2, cars * 2 steps]."""
        none, first = torch.zeros_like(self.motion), self.motion
        one = self.scene.apart(first.mT, none.mT).mT
        return one if self.cars == 1 else torch.cat((one, self.scene.apart(none.mT, first.mT).mT), -1)

    def driven(self, u: Tensor) -> Tensor:
        """Return the cars [B, cars, steps, 6] under controls [B, cars * steps * 2]."""
        time = self.seconds * torch.arange(1, self.steps + 1, dtype=u.dtype)
        place, speed = (part[:, :, None] for part in self.start.unbind(-1))
        free = torch.stack((place + speed * time[:, None], speed.expand(-1, -1, self.steps, -1)), -1)
        free = torch.nn.functional.pad(free, (0, 1)).flatten(-2)
        return free + torch.einsum("kfj,bcj->bckf", self.motion, u.unflatten(1, (self.cars, -1)))

    def cost(self, u: Tensor, cars: Tensor) -> Tensor:
        """Return the costs of all cars [B]."""
        last = cars[:, :, -1]
        effort = 0.5 * _EFFORT * u.square().unflatten(1, (self.cars, -1)).sum(2)
        return (self.weights * (effort - self._reward(last))).sum(1)

    def constraints(self, cars: Tensor) -> Tensor:
        """Return what must stay above 0 [B, m]: limits of each car in each step, and then clearances."""
        clear = self._apart(cars).square().sum(-1) - 1.0
        return torch.cat((self.scene.limits(cars, self.top[..., None]).flatten(1), clear), 1)

    def _apart(self, cars: Tensor) -> Tensor:
        return self.scene.apart(cars[:, 0], cars[:, 1] if self.other is None else self.other)

    def linearised(self, u: Tensor, cars: Tensor, multipliers: Tensor) -> Linearised:
        """Return derivatives under controls, and with multipliers [B, m] of the constraints."""
        own, shared = self._parts(multipliers)
        local, curve = self.scene.slopes(cars, own)
        slope, end_curve = self._end(cars[:, :, -1])
        curve = -curve
        curve[:, :, -1] += end_curve
        effort = (_EFFORT * self.weights[..., None]).expand(-1, -1, 2 * self.steps).flatten(1)
        gradient = (slope @ self.motion[-1]).flatten(1) + effort * u
        return Linearised(self, gradient, local, 2.0 * self._apart(cars), curve, shared, effort)

    def _parts(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return numbers of constraints [B, m] as those of limits [B, cars, steps, LIMITS], and of clearances."""
        own, shared = values.split([self.cars * self.steps * LIMITS, self.steps], 1)
        return own.unflatten(1, (self.cars, self.steps, LIMITS)), shared

    def _reward(self, last: Tensor) -> Tensor:
        """Return what ends [B, cars, 6] are worth to each car [B, cars]."""
        if self.value is None:
            return last[..., 0]
        assert self.other is not None and self.top_other is not None
        own, other = (
            torch.cat((car[:, _STATE], top[:, None]), 1)
            for car, top in ((last[:, 0], self.top[:, 0]), (self.other[:, -1], self.top_other))
        )
        return self.value(own, other)[:, None]

    def take(self, rows: Tensor) -> Game:
        """Return some of the games."""
        parts = {name: getattr(self, name) for name in ("start", "top", "other", "top_other")}
        return replace(self, **{name: part[rows] for name, part in parts.items() if part is not None})

    def _end(self, last: Tensor) -> tuple[Tensor, Tensor]:
        """Return gradient and Hessian of the cost of each car's end, [B, cars, 6] and [B, cars, 6, 6]."""
        if self.value is None:
            slope = torch.zeros_like(last)
            slope[..., 0] = -self.weights
            return slope, torch.zeros(*last.shape, FIELDS, dtype=last.dtype)
        with torch.enable_grad():
            at = last.detach().requires_grad_()
            (slope,) = torch.autograd.grad(-self._reward(at).sum(), at, create_graph=True)
            rows = [torch.autograd.grad(slope[..., f].sum(), at, retain_graph=True)[0] for f in range(FIELDS)]
        return slope.detach(), torch.stack(rows, -2)


@dataclass(frozen=True)
class Linearised:
    """Derivatives of games at some controls, as those of each step; `motion` and `parting` make them those of controls.

    Attributes:
        game: Of which.
        gradient: Of the cost [B, n].
        local: Of limits in each car [B, cars, steps, LIMITS, 6].
        clear: Of clearances in how far apart cars are [B, steps, 2].
        curve: Of the Lagrangian twice in each car, clearances left out [B, cars, steps, 6, 6].
        shared: Multipliers of clearances [B, steps].
        effort: Of the cost twice in the controls alone [B, n].
    """

    game: Game
    gradient: Tensor
    local: Tensor
    clear: Tensor
    curve: Tensor
    shared: Tensor
    effort: Tensor

    def take(self, rows: Tensor) -> Linearised:
        """Return those of some of the games."""
        names = ("gradient", "local", "clear", "curve", "shared", "effort")
        return Linearised(self.game.take(rows), *(getattr(self, name)[rows] for name in names))

    def pulled(self, values: Tensor) -> Tensor:
        """Return J^T y [B, n] of values y [B, m], J the constraints' Jacobian."""
        own, shared = self.game._parts(values)
        by_car = ((self.local.mT @ own[..., None])[..., 0].flatten(2)) @ self.game.motion.flatten(0, 1)
        return by_car.flatten(1) + (self.clear * shared[..., None]).flatten(1) @ self.game.parting.flatten(0, 1)

    def pushed(self, du: Tensor) -> Tensor:
        """Return J du [B, m] of changes of controls [B, n]."""
        moved = torch.einsum("kfj,bcj->bckf", self.game.motion, du.unflatten(1, (self.game.cars, -1)))
        apart = torch.einsum("kaj,bj->bka", self.game.parting, du)
        return torch.cat(((self.local @ moved[..., None]).flatten(1), (self.clear * apart).sum(-1)), 1)

    def matrix(self, weights: Tensor) -> Tensor:
        """Return H + J^T D J [B, n, n], H the Lagrangian's Hessian, D of weights [B, m]."""
        own, shared = self.game._parts(weights)
        motion, parting, n = self.game.motion, self.game.parting, 2 * self.game.steps
        within = self.curve + self.local.mT @ (own[..., None] * self.local)
        by_car = motion.flatten(0, 1).mT @ (within @ motion).flatten(2, 3)
        between = shared[..., None, None] * self.clear[..., :, None] * self.clear[..., None, :]
        between = between - 2.0 * self.shared[..., None, None] * torch.eye(2, dtype=between.dtype)
        whole = parting.flatten(0, 1).mT @ (between @ parting).flatten(1, 2) + torch.diag_embed(self.effort)
        for car in range(self.game.cars):
            whole[:, car * n : (car + 1) * n, car * n : (car + 1) * n] += by_car[:, car]
        return whole


@dataclass(frozen=True)
class Found:
    """Where the interior-point method has ended.

    Attributes:
        controls: [B, cars * steps * 2].
        multipliers: [B, m].
        converged: [B].
    """

    controls: Tensor
    multipliers: Tensor
    converged: Tensor

    def some(self, rows: Tensor) -> Found:
        """Return some of them."""
        return Found(self.controls[rows], self.multipliers[rows], self.converged[rows])

    def take(self, rows: Tensor, controls: Tensor, multipliers: Tensor, converged: Tensor) -> None:
        """Take what has been found of some games."""
        self.controls[rows], self.multipliers[rows], self.converged[rows] = controls, multipliers, converged


@torch.no_grad()
def solve(game: Game, guess: Tensor) -> Found:
    """Return the equilibrium, or the plan, that a guess [B, cars * steps * 2] leads to."""
    u, cars = guess, game.driven(guess)
    g = game.constraints(cars)
    kappa = torch.full_like(g[:, :1], _FIRST)
    s = g.clamp(min=_FIRST)
    lam, rows, found = (
        kappa / s,
        torch.arange(len(u)),
        Found(u.clone(), torch.zeros_like(s), torch.zeros(len(u)).bool()),
    )
    for _ in range(_ITERATIONS):
        at = game.linearised(u, cars, lam)
        pull = at.gradient - at.pulled(lam)
        left = torch.cat((pull, g - s, s * lam - kappa), 1).abs().amax(1, keepdim=True)
        kept = ~((left <= _TOLERANCE) & (kappa <= CENTRAL_PATH) | ~(left < _LOST))[:, 0]
        if not bool(kept.all()):
            found.take(rows[~kept], u[~kept], lam[~kept], left[~kept, 0] < _LOST)
            game, rows, at = game.take(kept), rows[kept], at.take(kept)
            u, g, s, lam, kappa, left, pull = (part[kept] for part in (u, g, s, lam, kappa, left, pull))
        if not len(rows):
            break
        near = left <= 10.0 * kappa
        kappa = torch.where(near, torch.minimum(0.2 * kappa, kappa**1.5).clamp(min=CENTRAL_PATH), kappa)
        weight = lam / s
        du = _descent(at.matrix(weight), -pull - at.pulled(lam - kappa / s + weight * (g - s)))
        ds = at.pushed(du) + g - s
        dlam = (kappa - s * lam - lam * ds) / s
        share = _within(s, ds)
        u, s, lam = u + share * du, s + share * ds, lam + _within(lam, dlam) * dlam
        cars = game.driven(u)
        g = game.constraints(cars)
        s = torch.maximum(s, g)  # what there is of room need not be approached from within
    found.take(rows, u, lam, torch.zeros_like(rows).bool())
    return found


def _descent(matrix: Tensor, wanted: Tensor) -> Tensor:
    """Return M^-1 w, M made positive definite by as much of the identity as it needs."""
    shift, one = torch.zeros(len(matrix), dtype=matrix.dtype), torch.eye(matrix.shape[1], dtype=matrix.dtype)
    for _ in range(20):
        factor, info = torch.linalg.cholesky_ex(matrix + shift[:, None, None] * one)
        if not bool(info.any()):
            break
        shift = torch.where(info > 0, (5.0 * shift).clamp(min=1e-2), shift)
    return torch.cholesky_solve(wanted[..., None], factor)[..., 0]


def _within(x: Tensor, dx: Tensor) -> Tensor:
    """Return the share of a step [B, 1] that keeps x above 0."""
    return (_TO_BOUNDARY * torch.where(dx < 0, -x / dx, torch.inf).amin(1, keepdim=True)).clamp(max=1.0)


def differentiable(game: Game, found: Found) -> tuple[Tensor, Tensor]:
    """Return the controls, differentiable in start, top speeds and whatever the reward captures, and which are roots.

    lambda = kappa / g leaves dJ/du - kappa sum_c dg_c/du / g_c = 0, of which `root` is handed Newton's step with the
    matrix of the solution: the same root, and an adjoint system that is nearly the identity.
    """
    u = found.controls.detach()
    with torch.no_grad():
        cars = game.driven(u)
        at = game.linearised(u, cars, found.multipliers)
        inverse = torch.linalg.inv(at.matrix(found.multipliers / game.constraints(cars)))

    def barrier(u: Tensor) -> Tensor:
        cars = game.driven(u)
        return (game.cost(u, cars) - CENTRAL_PATH * game.constraints(cars).log().sum(1)).sum()

    def condition(shifted: Tensor) -> Tensor:
        return torch.einsum("bij,bj->bi", inverse, torch.func.grad(barrier)(shifted - _SHIFT))

    u = u - condition(u + _SHIFT).detach()  # one more of Newton's steps: roots are judged to the last digits
    adjoint = Implicit(GMRES(max_steps=30, tolerance=1e-6), order=1)
    solution = root(condition, solution=u + _SHIFT, adjoint=adjoint)
    return solution.value - _SHIFT, solution.result == Result.CONVERGED
