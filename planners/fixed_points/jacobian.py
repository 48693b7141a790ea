"""The Jacobian df/dv at an equilibrium: a penalty on its size, and its spectral radius.

Legend: J = df/dv, d entries of v per sample, B samples.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .solution import Step
from .solvers import apply
from .stopping import at_least_single, flat, rows, safe_norm_per_sample
from .transfers import sent

_KRYLOV = 12
"""Dimensions of the space in which eigenvalues of one size are told apart."""


def squared_jacobian_norm(f: Step, v: Tensor, generator: torch.Generator | None = None, probes: int = 1) -> Tensor:
    """Return an unbiased estimate of ||df/dv||_F^2 per sample, differentiable in what f captures.

    E ||e^T J||^2 = ||J||_F^2 for e ~ N(0, I) (Hutchinson; E.5).

    Args:
        f: The step, [B, ...] -> [B, ...].
        v: [B, ...] where to linearise; no gradient flows into it, as in Bai et al. (2021).
        generator: Source of the probes; torch's global one when not given.
        probes: Probes averaged.

    Returns:
        [B].
    """
    with sdpa_kernel(SDPBackend.MATH):  # torch's fused attention has no second derivative
        v, fv = _linearised(f, v)
    device = generator.device if generator is not None else v.device
    total = torch.zeros(v.shape[0], dtype=v.dtype, device=v.device)
    for _ in range(probes):
        probe = sent(torch.randn(fv.shape, generator=generator, dtype=fv.dtype, device=device), v.device)
        product = _transposed(fv, v, probe, create_graph=torch.is_grad_enabled())
        total = total + flat(product).square().sum(dim=1)
    return total / probes


def jacobian_penalty(f: Step, v: Tensor, generator: torch.Generator | None = None, probes: int = 1) -> Tensor:
    """Return the mean over the batch of ||df/dv||_F^2 / d, estimated, for use as a loss (C.2, E.5).

    Args:
        f: The step, [B, ...] -> [B, ...].
        v: [B, ...] the equilibrium.
        generator: Source of the probes; torch's global one when not given.
        probes: Probes averaged.

    Returns:
        A scalar.
    """
    # UNSPECIFIED: E.5 gives weights (2, 4, 8) but no normalisation; Bai et al. (2021) divide by the number of entries.
    squares = squared_jacobian_norm(f, v, generator, probes)
    return squares.mean() / math.prod(v.shape[1:]) if v.numel() else squares.sum()


def spectral_radius(f: Step, v: Tensor, steps: int = 50, generator: torch.Generator | None = None) -> Tensor:
    """Return the largest |eigenvalue| of df/dv at v per sample, by power iteration on J^T and Arnoldi at its end.

    Power iteration alone has no limit where several eigenvalues are of one size (complex pairs, rings): its growth goes
    round, and no mean over steps fits every period. So the last twelve products span a Krylov space, whose largest
    Ritz value it is; up to twelve unknowns that is exact.

    Args:
        f: The step, [B, ...] -> [B, ...].
        v: [B, ...] where to linearise.
        steps: Products with J^T, at least 2.
        generator: Source of the start vector; torch's global one when not given.

    Returns:
        [B]; below one means that forward iteration converges from nearby. 0 for a step that does not read v.
    """
    if steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}")
    v, fv = _linearised(f, v)
    device = generator.device if generator is not None else v.device
    w = _unit(torch.randn(fv.shape, generator=generator, dtype=fv.dtype, device=device).to(v.device))
    size = min(_KRYLOV, steps, flat(v).shape[1])
    for _ in range(steps - size):
        w = _unit(_transposed(fv, v, w))
    hessenberg = _hessenberg(lambda x: _transposed(fv, v, x), w, size)
    finite = torch.isfinite(hessenberg).flatten(1).all(dim=1)
    values = torch.linalg.eigvals(torch.where(finite[:, None, None], hessenberg, 0.0)).abs()
    radius = values.amax(dim=1) if size else values.sum(dim=1)
    return torch.where(finite, radius, torch.nan).to(torch.promote_types(v.dtype, torch.float32))


def _hessenberg(product: Step, w: Tensor, size: int) -> Tensor:
    """Return the matrix [B, size, size], in float64, that J^T is in the Krylov space of unit vectors w, by Arnoldi."""
    eps = torch.finfo(w.dtype).eps
    basis = [at_least_single(flat(w))]
    matrix = torch.zeros(len(w), size, size, dtype=torch.float64, device=w.device)
    for k in range(size):
        rest = at_least_single(flat(product(basis[k].view_as(w).to(w.dtype))))
        length, known = safe_norm_per_sample(rest), torch.stack(basis, dim=1)
        for _again in range(2):
            along = torch.bmm(known, rest[:, :, None])
            rest = rest - torch.bmm(known.transpose(1, 2), along)[:, :, 0]
            matrix[:, : k + 1, k] += along[:, :, 0].double()
        if k + 1 < size:
            new = ~(safe_norm_per_sample(rest) <= 10.0 * eps * length)  # what is shorter is rounding
            rest = torch.where(new[:, None], rest, 0.0)
            matrix[:, k + 1, k] = safe_norm_per_sample(rest).double()
            basis.append(_unit(rest))
    return matrix


def _unit(w: Tensor) -> Tensor:
    """Return w with length 1 per sample; zeros stay."""
    size = safe_norm_per_sample(w)
    return w / rows(torch.where(size > 0.0, size, 1.0), w).to(w.dtype)


def _linearised(f: Step, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return a leaf at v and f of it, with the graph between, in inference mode too."""
    with torch.inference_mode(False), torch.enable_grad():
        v = v.detach().clone().requires_grad_()
        return v, apply(f, v, forward_mode=True)


def _transposed(fv: Tensor, v: Tensor, w: Tensor, create_graph: bool = False) -> Tensor:
    """Return J^T w, zero where f does not read v."""
    if not fv.requires_grad:
        return torch.zeros_like(v)
    with torch.inference_mode(False), torch.set_grad_enabled(create_graph):
        w = w.clone() if w.is_inference() else w
        (product,) = torch.autograd.grad(
            fv, v, w, retain_graph=True, create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
    return product
