"""The layer that satisfies the PDE: weights of basis functions by least squares, expert by expert.

On its part of the domain an expert writes u = l + sum_i w_i phi_i, where l is the line between the values at the part's
two ends and phi_i is 0 at both, and chooses

    w* = argmin_w 1/2 ||R(w)||^2,    R = -(kappa u')' + sigma u^3 - f at the nodes inside of the part

so that J^T R = 0, J = dR/dw: the root that `planners.fixed_points.root` differentiates. An expert is a sample of that
root, and its system has as many unknowns as it has basis functions, however many experts there are.
Chalapathi et al., Scaling physics-informed hard constraints with mixture-of-experts, 2024. DEVIATION: the values at the
ends are the network's, so that each part is a boundary value problem of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from planners.fixed_points import GMRES, Implicit, Result, root

_STEPS, _TOLERANCE, _HALVINGS = 100, 1e-9, 8


def diffusion(u: Tensor, conductivity: Tensor, cells: int) -> Tensor:
    """Return -(kappa u')' at inner nodes, [..., m + 1] -> [..., m - 1].

    Args:
        u: At nodes.
        conductivity: In the middle of the cells between them, [..., m].
        cells: Of the whole mesh, on which the domain has length 1.
    """
    return -(float(cells) ** 2) * (conductivity * u.diff(dim=-1)).diff(dim=-1)


def parts(values: Tensor, experts: int) -> Tensor:
    """Return values at nodes [B, c, cells + 1] by expert, [B, experts, c, cells / experts + 1]: ends belong to both."""
    width = (values.shape[-1] - 1) // experts
    return values.unfold(-1, width + 1, width).transpose(1, 2)


def glued(values: Tensor) -> Tensor:
    """Return values [B, experts, cells / experts + 1] at the nodes of the whole mesh, [B, cells + 1]."""
    return torch.cat((values[..., :-1].flatten(1), values[:, -1, -1:]), 1)


def satisfied(
    guess: Tensor, bases: Tensor, conductivity: Tensor, source: Tensor, *, experts: int, reaction: float
) -> tuple[Tensor, bool]:
    """Return u [B, cells + 1], differentiable in guess and bases, and whether each least-squares problem was solved.

    Args:
        guess: The network's u [B, cells + 1], of which the ends of parts are taken.
        bases: Its functions [B, bases, cells + 1].
        conductivity: kappa [B, cells].
        source: f [B, cells + 1].
        experts: Parts of the domain.
        reaction: sigma.
    """
    cells = conductivity.shape[1]
    width = cells // experts
    place = torch.linspace(0.0, 1.0, width + 1, dtype=guess.dtype)
    ends = guess[:, ::width]
    line = (ends[:, :-1, None] * (1.0 - place) + ends[:, 1:, None] * place).flatten(0, 1)
    functions = (parts(bases, experts) * place * (1.0 - place)).flatten(0, 1)
    kappa = conductivity.unflatten(1, (experts, width)).flatten(0, 1)
    inner = parts(source[:, None], experts)[:, :, 0, 1:-1].flatten(0, 1)
    diffused = diffusion(functions, kappa[:, None], cells)
    with torch.no_grad():  # u* depends on what the functions span alone: any constant change of basis will do
        change = torch.linalg.inv(torch.linalg.qr(diffused.mT).R)
    functions, diffused = change.mT @ functions, change.mT @ diffused
    of_line = diffusion(line, kappa, cells) - inner

    def balance(w: Tensor) -> tuple[Tensor, Tensor]:
        u = line[:, 1:-1] + torch.einsum("bi,bix->bx", w, functions[..., 1:-1])
        left = of_line + torch.einsum("bi,bix->bx", w, diffused) + reaction * u**3
        return left, diffused + 3.0 * reaction * u[:, None].square() * functions[..., 1:-1]

    def gradient(w: Tensor) -> Tensor:
        left, slopes = balance(w)
        return torch.einsum("bix,bx->bi", slopes, left)

    with torch.no_grad():
        start = _gauss_newton(balance, torch.zeros_like(functions[..., 0]))
    found = root(gradient, solution=start, adjoint=Implicit(GMRES(max_steps=60, tolerance=1e-10), order=1))
    u = line + torch.einsum("bi,bix->bx", found.value, functions)
    return glued(u.unflatten(0, (-1, experts))), bool((found.result == Result.CONVERGED).all())


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
