"""Exact gradients of K damped steps in the memory of one: an iteration that can be run backwards.

With 0 < b < 1 and v_0 = w_0,

    v_{k+1} = (1 - b) v_k + b f(w_k),  w_{k+1} = (1 - b) w_k + b f(v_{k+1})

has the fixed points of f, and its steps can be undone, so the backward pass needs the last pair alone:

    w_k = (w_{k+1} - b f(v_{k+1})) / (1 - b),  v_k = (v_{k+1} - b f(w_k)) / (1 - b)

Each undone step makes rounding up to 1 / (1 - b) times larger, and what comes first in K steps that contract counts the
less; `main` measures what is left. It takes float64, or few steps, where `Unrolled(checkpoint=n)` has no such limit;
and a step costs two applications of f, and two more when it is undone. First derivatives alone.
Legend: b damping, K steps.
After McCallum, Arora and Foster, Reversible deep equilibrium models, 2025.
Run: python examples/reversible_iteration.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Step = Callable[..., Tensor]
"""f(v, *parameters), a new tensor of the shape of v."""


class _Reversible(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, f: Step, steps: int, damping: float, v0: Tensor, *parameters: Tensor) -> Tensor:
        v = w = v0
        for _ in range(steps):
            v = (1.0 - damping) * v + damping * f(w, *parameters)
            w = (1.0 - damping) * w + damping * f(v, *parameters)
        ctx.f, ctx.steps, ctx.damping = f, steps, damping
        ctx.save_for_backward(v, w, *parameters)
        return w.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        v, w, *parameters = ctx.saved_tensors
        b, (of_w,) = ctx.damping, gradients
        of_v = torch.zeros_like(of_w)
        totals = [torch.zeros_like(parameter) for parameter in parameters]
        for _ in range(ctx.steps):
            image, pulled = _pulled(ctx.f, v, parameters, b * of_w, totals)
            w, of_w, of_v = (w - b * image) / (1.0 - b), (1.0 - b) * of_w, of_v + pulled
            image, pulled = _pulled(ctx.f, w, parameters, b * of_v, totals)
            v, of_v, of_w = (v - b * image) / (1.0 - b), (1.0 - b) * of_v, of_w + pulled
        return None, None, None, of_v + of_w, *totals


def _pulled(f: Step, v: Tensor, parameters: list[Tensor], g: Tensor, totals: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return f(v) and g^T df/dv, and add g^T df/dp of each parameter to its total."""
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in (v, *parameters)]
        image = f(*inputs)
    pulled, *more = torch.autograd.grad(image, inputs, g, materialize_grads=True)
    for total, one in zip(totals, more, strict=True):
        total += one
    return image.detach(), pulled


def reversible(f: Step, v0: Tensor, parameters: tuple[Tensor, ...], steps: int = 20, damping: float = 0.5) -> Tensor:
    """Return w_K from v0 [B, ...], with the exact first derivatives of these steps by v0 and the parameters."""
    if not 0.0 < damping < 1.0:
        raise ValueError(f"damping must be between 0 and 1, got {damping}: otherwise no step can be undone")
    return _Reversible.apply(f, steps, damping, v0, *parameters)


def unrolled(f: Step, v0: Tensor, parameters: tuple[Tensor, ...], steps: int = 20, damping: float = 0.5) -> Tensor:
    """Return the same, every iterate kept."""
    v = w = v0
    for _ in range(steps):
        v = (1.0 - damping) * v + damping * f(w, *parameters)
        w = (1.0 - damping) * w + damping * f(v, *parameters)
    return w


def gradient_and_kept(
    solve: Callable[..., Tensor], steps: int, damping: float = 0.5, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, int]:
    """Return the gradient of a loss by a matrix, and how many numbers the forward pass kept for it."""
    generator, kept = torch.Generator().manual_seed(0), 0
    a = (0.1 * torch.randn(32, 32, dtype=torch.float64, generator=generator)).to(dtype).requires_grad_()

    def pack(x: Tensor) -> Tensor:
        nonlocal kept
        kept += x.numel()
        return x

    def step(v: Tensor, a: Tensor) -> Tensor:
        return torch.tanh(v @ a + 1.0)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        value = solve(step, torch.zeros(64, 32, dtype=dtype), (a,), steps, damping)
    return torch.autograd.grad(value.square().sum(), a)[0], kept


def main() -> None:
    """Print, by steps and damping, what is kept and how far the gradient is from that of all iterates kept."""
    print("damping  steps  numbers kept, unrolled  reversible  gradient off by, float64  float32")
    for damping in (0.5, 0.7, 0.9):
        for steps in (5, 10, 20, 40):
            exact, every = gradient_and_kept(unrolled, steps, damping)
            found, few = gradient_and_kept(reversible, steps, damping)
            single, _ = gradient_and_kept(reversible, steps, damping, torch.float32)
            off, off_single = (float((one - exact).norm() / exact.norm()) for one in (found, single.double()))
            print(f"{damping:7.1f}  {steps:5d}  {every:22,d}  {few:10,d}  {off:24.0e}  {off_single:7.0e}")


if __name__ == "__main__":
    main()
