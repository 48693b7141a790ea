"""The Jacobian df/dv at an equilibrium: a penalty on its size, and its spectral radius.

Legend: J = df/dv, d entries of v per sample, B samples.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from planners.solution import Step
from planners.solvers import apply
from planners.stopping import flat, rows, safe_norm_per_sample


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
        probe = torch.randn(fv.shape, generator=generator, dtype=fv.dtype, device=device).to(v.device)
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
    return squared_jacobian_norm(f, v, generator, probes).mean() / v[0].numel()


def spectral_radius(f: Step, v: Tensor, steps: int = 50, generator: torch.Generator | None = None) -> Tensor:
    """Return the largest |eigenvalue| of df/dv at v per sample, by power iteration on J^T.

    The estimate is the geometric mean of the growth over the second half of the steps: several eigenvalues of one
    size make the growth of single steps go round (in twos for a pair r, -r, in threes for cube roots), not its mean
    over whole rounds. So twelve steps are averaged, or a multiple of that, where there are enough.

    Args:
        f: The step, [B, ...] -> [B, ...].
        v: [B, ...] where to linearise.
        steps: Products with J^T, at least 2; the error falls as 1 / steps.
        generator: Source of the start vector; torch's global one when not given.

    Returns:
        [B]; below one means that forward iteration converges from nearby. 0 for a step that does not read v.
    """
    if steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}")
    v, fv = _linearised(f, v)
    device = generator.device if generator is not None else v.device
    w = torch.randn(fv.shape, generator=generator, dtype=fv.dtype, device=device).to(v.device)
    growth: list[Tensor] = []
    for _ in range(steps):
        size = safe_norm_per_sample(w)
        unit = rows(torch.where(size > 0.0, size, 1.0), w).to(w.dtype)
        w = _transposed(fv, v, w / unit)
        growth.append(safe_norm_per_sample(w))
    half = max(2, (steps + 1) // 2)
    averaged = half - half % (12 if half >= 12 else 2)
    return torch.stack(growth[-averaged:]).log().mean(dim=0).exp()


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
