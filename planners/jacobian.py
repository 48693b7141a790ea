"""The Jacobian df/dv at an equilibrium: a penalty on its size, and its spectral radius.

Legend: J = df/dv, d entries of v per sample, B samples.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from planners.solution import Step
from planners.solvers import flat, norm_per_sample


def squared_jacobian_norm(f: Step, v: Tensor, generator: torch.Generator | None = None, probes: int = 1) -> Tensor:
    """Return an unbiased estimate of ||df/dv||_F^2 per sample, differentiable in what f captures.

    E ||e^T J||^2 = ||J||_F^2 for e ~ N(0, I) (Hutchinson; C.2).

    Args:
        f: The step, [B, ...] -> [B, ...].
        v: [B, ...] where to linearise; no gradient flows into it, as in Bai et al. (2021).
        generator: Source of the probes; torch's global one when not given.
        probes: Probes averaged.

    Returns:
        [B].
    """
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # torch's fused attention has no second derivative
        v = v.detach().requires_grad_()
        fv = f(v)
    device = generator.device if generator is not None else v.device
    total = torch.zeros(v.shape[0], dtype=v.dtype, device=v.device)
    for _ in range(probes):
        probe = torch.randn(fv.shape, generator=generator, dtype=fv.dtype, device=device).to(v.device)
        (product,) = torch.autograd.grad(fv, v, probe, retain_graph=True, create_graph=torch.is_grad_enabled())
        total = total + flat(product).square().sum(dim=1)
    return total / probes


def jacobian_penalty(f: Step, v: Tensor, generator: torch.Generator | None = None, probes: int = 1) -> Tensor:
    """Return the mean over the batch of ||df/dv||_F^2 / d, estimated, for use as a loss (C.2).

    Args:
        f: The step, [B, ...] -> [B, ...].
        v: [B, ...] the equilibrium.
        generator: Source of the probes; torch's global one when not given.
        probes: Probes averaged.

    Returns:
        A scalar.
    """
    # UNSPECIFIED: C.2 gives weights (2, 4, 8) but no normalisation; Bai et al. (2021) divide by the number of entries.
    return squared_jacobian_norm(f, v, generator, probes).mean() / v[0].numel()


def spectral_radius(f: Step, v: Tensor, steps: int = 50, generator: torch.Generator | None = None) -> Tensor:
    """Return the largest |eigenvalue| of df/dv at v per sample, by power iteration on J^T.

    The estimate is the geometric mean of the growth over the second half of the steps: a complex pair of
    eigenvalues makes the growth of single steps oscillate, not its mean.

    Args:
        f: The step, [B, ...] -> [B, ...].
        v: [B, ...] where to linearise.
        steps: Products with J^T, at least 2; the error falls as 1 / steps.
        generator: Source of the start vector; torch's global one when not given.

    Returns:
        [B]; below one means that forward iteration converges from nearby.
    """
    if steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}")
    with torch.enable_grad():
        v = v.detach().requires_grad_()
        fv = f(v)
    device = generator.device if generator is not None else v.device
    w = torch.randn(fv.shape, generator=generator, dtype=fv.dtype, device=device).to(v.device)
    growth: list[Tensor] = []
    for _ in range(steps):
        size = norm_per_sample(w)
        unit = torch.where(size > 0.0, size, 1.0).to(w.dtype).reshape(-1, *[1] * (w.ndim - 1))
        (w,) = torch.autograd.grad(fv, v, w / unit, retain_graph=True)
        growth.append(norm_per_sample(w))
    return torch.stack(growth[steps // 2 :]).log().mean(dim=0).exp()
