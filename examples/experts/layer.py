"""The layer that satisfies the PDE: weights of basis functions by least squares, expert by expert.

On its part of the domain, an interval or a square, an expert writes u = l + sum_i w_i phi_i, where l is made of the
values on the part's edge alone (a line, or Coons' patch) and phi_i is 0 there, and chooses

    w* = argmin_w 1/2 ||R(w)||^2,    R = -div(kappa grad u) + sigma u^3 - f at the nodes inside of the part

so that J^T R = 0, J = dR/dw: the root that `planners.fixed_points.root` differentiates. An expert is a sample of that
root, and its system has as many unknowns as it has basis functions, however many experts there are.
Chalapathi et al., Scaling physics-informed hard constraints with mixture-of-experts, 2024. DEVIATION: the values on the
edges are the network's, so that each part is a boundary value problem of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from experts.workers import each
from planners.fixed_points import GMRES, Implicit, Result, root

_STEPS, _TOLERANCE, _HALVINGS = 100, 1e-9, 8


def within(values: Tensor, dimensions: int, but: int = 0) -> Tensor:
    """Return values without the first and the last along each of the last axes, one axis (negative) left as it is."""
    for axis in range(-dimensions, 0):
        if axis != but:
            values = values.narrow(axis, 1, values.shape[axis] - 2)
    return values


def diffusion(u: Tensor, conductivity: Tensor, cells: int, dimensions: int = 1) -> Tensor:
    """Return -div(kappa grad u) at inner nodes, [..., m + 1] -> [..., m - 1], or so along both of two axes.

    Args:
        u: At nodes.
        conductivity: In the middle of the cells between them, [..., m] or [..., m, m].
        cells: Along a side of the whole mesh, on which the domain has length 1.
        dimensions: Of the domain.
    """
    left = torch.zeros(())
    for axis in range(-dimensions, 0):
        faces = conductivity
        for other in set(range(-dimensions, 0)) - {axis}:
            count = faces.shape[other] - 1
            faces = 0.5 * (faces.narrow(other, 0, count) + faces.narrow(other, 1, count))
        left = left + (faces * within(u, dimensions, axis).diff(dim=axis)).diff(dim=axis)
    return -(float(cells) ** 2) * left


def parts(values: Tensor, experts: int, dimensions: int, shared: int = 1) -> Tensor:
    """Return values [B, c, n...] by expert, [B, all experts, c, m + shared...]: nodes on edges belong to both sides."""
    for axis in range(2, 2 + dimensions):
        width = (values.shape[axis] - shared) // experts
        values = values.unfold(axis, width + shared, width)  # a window's nodes are a last axis
    return values.movedim(1, 1 + dimensions).flatten(1, dimensions)


def glued(values: Tensor, experts: int, dimensions: int) -> Tensor:
    """Return values at nodes [B, all experts, m + 1...] at the nodes of the whole mesh, [B, experts * m + 1...]."""
    values = values.unflatten(1, (experts,) * dimensions)
    for _ in range(dimensions):
        values = values.movedim(1, dimensions)
        count = values.shape[dimensions + 1] - 1
        last = values.select(dimensions, experts - 1).narrow(dimensions, count, 1)
        first = values.narrow(dimensions + 1, 0, count).flatten(dimensions, dimensions + 1)
        values = torch.cat((first, last), dimensions)
    return values


def satisfied(
    guess: Tensor,
    bases: Tensor,
    conductivity: Tensor,
    source: Tensor,
    *,
    experts: int,
    reaction: float,
    away: bool = False,
) -> tuple[Tensor, bool]:
    """Return u [B, n + 1...], differentiable in guess and bases, and whether each least-squares problem was solved.

    Args:
        guess: The network's u [B, n + 1] or [B, n + 1, n + 1], of which the edges of parts are taken.
        bases: Its functions [B, bases, n + 1...].
        conductivity: kappa [B, n...].
        source: f [B, n + 1...].
        experts: Parts that each side of the domain is in.
        reaction: sigma.
        away: Solve and differentiate each expert in a task of Ray's, where there is a cluster.
    """
    dimensions, batch = guess.ndim - 1, len(guess)
    equation = _Equation(conductivity.shape[1], dimensions, reaction)
    nodes = [parts(values, experts, dimensions) for values in (guess[:, None], bases, source[:, None])]
    kappa = parts(conductivity[:, None], experts, dimensions, shared=0)
    given = (nodes[0][:, :, 0], nodes[1], kappa[:, :, 0], nodes[2][:, :, 0])
    if away:
        u, found = _Away.apply(equation, *given)
    else:
        u, _, found = solved(equation, *(values.flatten(0, 1) for values in given))
        u = u.unflatten(0, (batch, -1))
    return glued(u, experts, dimensions), bool(found.all())


@dataclass(frozen=True)
class _Equation:
    """What all experts have in common.

    Attributes:
        cells: Along a side of the whole mesh.
        dimensions: Of the domain.
        reaction: sigma.
    """

    cells: int
    dimensions: int
    reaction: float


def solved(
    equation: _Equation, guess: Tensor, bases: Tensor, kappa: Tensor, source: Tensor, start: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return u of parts [n, m + 1...], the weights [n, bases] of a basis of its own, and whether each was found.

    Args:
        equation: What all have in common.
        guess: At nodes [n, m + 1...].
        bases: The same [n, bases, m + 1...].
        kappa: In the cells' middles [n, m...].
        source: At nodes.
        start: Weights to begin with.
    """
    cells, dimensions, reaction = vars(equation).values()
    lift, bubble = _from_edges(guess, dimensions)
    functions = bases * bubble
    diffused = diffusion(functions, kappa[:, None], cells, dimensions).flatten(2)
    with torch.no_grad():  # u* depends on what the functions span alone: any constant change of basis will do
        change = torch.linalg.inv(torch.linalg.qr(diffused.mT).R)
    diffused = change.mT @ diffused
    functions = (change.mT @ functions.flatten(2)).view_as(bases)
    inner, of_lift = within(functions, dimensions).flatten(2), within(lift, dimensions).flatten(1)
    rest = (diffusion(lift, kappa, cells, dimensions) - within(source, dimensions)).flatten(1)

    def balance(w: Tensor) -> tuple[Tensor, Tensor]:
        u = of_lift + torch.einsum("bi,bix->bx", w, inner)
        left = rest + torch.einsum("bi,bix->bx", w, diffused) + reaction * u**3
        return left, diffused + 3.0 * reaction * u[:, None].square() * inner

    def gradient(w: Tensor) -> Tensor:
        left, slopes = balance(w)
        return torch.einsum("bix,bx->bi", slopes, left)

    with torch.no_grad():
        start = _gauss_newton(balance, functions.new_zeros(functions.shape[:2]) if start is None else start)
    found = root(gradient, solution=start, adjoint=Implicit(GMRES(max_steps=60, tolerance=1e-10), order=1))
    u = lift + torch.einsum("bi,bi...->b...", found.value, functions)
    return u, start, found.result == Result.CONVERGED


def _from_edges(values: Tensor, dimensions: int) -> tuple[Tensor, Tensor]:
    """Return what is made of values on a part's edge [n, m + 1...], and a function [m + 1...] that is 0 on the edge."""
    inside, bubble = values, torch.ones((), dtype=values.dtype)
    for axis in range(-dimensions, 0):
        shape = [-1 if other == axis else 1 for other in range(-dimensions, 0)]
        place = torch.linspace(0.0, 1.0, values.shape[axis], dtype=values.dtype).view(shape)
        first, last = (inside.narrow(axis, end, 1) for end in (0, inside.shape[axis] - 1))
        inside, bubble = inside - (1.0 - place) * first - place * last, bubble * place * (1.0 - place)
    return values - inside, bubble


def _gauss_newton(balance: Callable[[Tensor], tuple[Tensor, Tensor]], w: Tensor) -> Tensor:
    """Return the weights [n, bases] of least squares; a step that is too long is halved."""
    left, slopes = balance(w)
    for _ in range(_STEPS):
        pull = torch.einsum("bix,bx->bi", slopes, left)
        move = -torch.linalg.solve(slopes @ slopes.mT, pull[..., None])[..., 0]
        share, size = torch.ones_like(w[:, :1]), left.square().sum(1, keepdim=True)
        for _ in range(_HALVINGS):
            worse = balance(w + share * move)[0].square().sum(1, keepdim=True) > size
            if not bool(worse.any()):
                break
            share = torch.where(worse, 0.5 * share, share)
        w = w + share * move
        left, slopes = balance(w)
        if bool((move.norm(dim=1) <= _TOLERANCE * w.norm(dim=1)).all()):
            break
    return w


class _Away(torch.autograd.Function):
    """Experts as tasks: a task solves, and another, which begins with the weights that were found, differentiates."""

    @staticmethod
    def forward(ctx: Any, equation: _Equation, *given: Tensor) -> tuple[Tensor, Tensor]:
        by_expert = zip(*(part.unbind(1) for part in given), strict=True)
        shares = [tuple(part.detach().numpy() for part in share) for share in by_expert]
        found = each(_forth, [(equation, *share) for share in shares], away=True)
        ctx.equation, ctx.shares, ctx.weights = equation, shares, [weights for _, weights, _ in found]
        u, all_solved = (torch.stack([torch.from_numpy(one[k]) for one in found], 1) for k in (0, 2))
        ctx.mark_non_differentiable(all_solved)
        return u, all_solved

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pulls = [part.numpy() for part in grads[0].unbind(1)]
        work = [
            (ctx.equation, *share, weights, pull)
            for share, weights, pull in zip(ctx.shares, ctx.weights, pulls, strict=True)
        ]
        found = each(_back, work, away=True)
        guess, bases = (torch.stack([torch.from_numpy(one[k]) for one in found], 1) for k in (0, 1))
        return None, guess, bases, None, None


def _forth(equation: _Equation, *given: Any) -> tuple[Any, ...]:
    with torch.no_grad():
        return tuple(part.numpy() for part in solved(equation, *_tensors(given)))


def _back(equation: _Equation, *given: Any) -> tuple[Any, ...]:
    guess, bases, kappa, source, weights, pull = _tensors(given)
    leaves = guess.requires_grad_(), bases.requires_grad_()
    with torch.enable_grad():  # which is off where a task of this process is called for a gradient
        u, _, _ = solved(equation, *leaves, kappa, source, weights)
    return tuple(part.numpy() for part in torch.autograd.grad(u, leaves, pull))


def _tensors(arrays: Any) -> list[Tensor]:
    """Return copies: what Ray sends can not be written to."""
    return [torch.tensor(array) for array in arrays]
