"""Derivatives of a solution v* of r(v) = 0, of any order and in either mode, from the residual's own derivatives.

v_1 = v* + A^{-1} r(v*) and v_{k+1} = v_k + A^{-1} r(v_k), with A = -dr/dv held constant at v*, all have the value v*.
The first has the first derivative of the solution, each further one another order more: the error of v_k is shrunk by
I - A^{-1} A(v_k), which is of first order itself (chord method). Only A^{-1} needs a rule: a linear map with the
transpose A^{-T}, a solve each. Nothing has to be known of what r captures.
Legend: J = df/dv, A = I - J for fixed points, g incoming gradient, w adjoint vector, K size of a level of vmap, E size
of one that came after the solution, B samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch as functorch
from torch.autograd import forward_ad
from torch.autograd.graph import Node

from .solution import Step
from .solvers import apply
from .transforms import active, below, constants, vmap_levels

Solve = Callable[[Step, Tensor], Tensor]
"""(J or J^T, x) -> A^{-1} x or A^{-T} x; for roots J is A itself."""


@dataclass
class _Passes:
    """What the backward passes of one solution have done so far."""

    differentiated: bool = False


@dataclass(frozen=True, eq=False)
class Inverse:
    """x -> A^{-1} x at a solution.

    Args:
        output: [N, ...] the last application, with the graph that leads to `point`.
        point: [N, ...] where it was applied; None without `solve`.
        solve: Solves a system with A, given products with J; without it A is the identity.
        orders: Derivatives that may still be taken; None for any number, where no more than those of torch.func's
            levels, which have been counted, can reach A.
        spread: For each vmap below the derivative, the outermost first, whether it is part of the N.
        folded: Levels of vmap that have become dimensions K of x.
        extra: Levels of vmap, of what is solved for alone, that have become dimensions E of x.
        transposed: Whether it is A^{-T}.
        passes: What the solution's backward passes have done.
    """

    output: Tensor | None
    point: Tensor | None
    solve: Solve | None
    orders: int | None
    spread: tuple[bool, ...] = ()
    folded: int = 0
    extra: int = 0
    transposed: bool = False
    passes: _Passes = field(default_factory=_Passes)

    def __call__(self, x: Tensor) -> Tensor:
        """Return A^{-1} x for plain x [E, ..., K, ..., B, ...]."""
        if self.solve is None or self.point is None:
            return x.clone()
        with constants(), below():
            if x.shape == self.point.shape:  # no view: a gradient must not take over the memory of a record's w
                return self.solve(self._product(0), x)
            plain = x.reshape(math.prod(x.shape[: self.extra]), *self.point.shape)
            if not len(plain):
                return x.clone()  # a vmap over nothing
            if self.extra == 0:
                return self.solve(self._product(0), plain[0]).view_as(x)
            return self.solve(self._product(len(plain)), plain.flatten(0, 1)).view_as(x)

    def _product(self, count: int) -> Step:
        assert self.output is not None and self.point is not None
        if self.transposed:
            return _product(self.output, self.point, count)
        with torch.inference_mode(False), torch.enable_grad():
            u = torch.zeros_like(self.output, requires_grad=True)
            (pulled,) = torch.autograd.grad(self.output, self.point, u, create_graph=True, materialize_grads=True)
        return _product(pulled, u, count)

    def next(self, recorded: bool) -> Inverse:
        """Return A^{-1} of the next derivative, itself recorded or not; raise RuntimeError where there is none."""
        orders = math.inf if self.orders is None else self.orders
        if orders < 1 or (recorded and not active() and orders < 2):
            raise RuntimeError(
                "an implicit gradient cannot be differentiated again here (create_graph=True): as many derivatives "
                "can be taken as Implicit(..., order=2) says, 1 with inexact=True or Phantom; or use Unrolled"
            )
        if torch.is_grad_enabled() or active() or forward_ad._current_level >= 0:
            self.passes.differentiated = True
        return self if self.orders is None else replace(self, orders=self.orders - 1)


def transposed_jacobian(output: Tensor, v: Tensor) -> Step:
    """Return w -> w^T d(output)/dv from a graph that is kept for further products."""
    return _product(output, v, 0)


def _product(output: Tensor, v: Tensor, count: int) -> Step:
    """Return the product for w like the output, or, with a count, for so many of them in a row."""

    def one(w: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(output, v, w, retain_graph=True, allow_unused=True)
        return torch.zeros_like(v) if gradient is None else gradient

    def several(w: Tensor) -> Tensor:
        return torch.func.vmap(one)(w.unflatten(0, (count, len(w) // count))).flatten(0, 1)

    if not output.requires_grad:
        return torch.zeros_like
    return several if count else one


class Applied(torch.autograd.Function):
    """A^{-1} x; or a number in its place, for an x whose derivatives alone are known by it.

    Args (of `apply`): x; the inverse; what is given in its place, None for A^{-1} x itself, 0.0 for zeros.
    """

    @staticmethod
    def forward(x: Tensor, inverse: Inverse, value: Tensor | float | None) -> Tensor:  # noqa: D102
        if value is None:
            return inverse(x)
        if isinstance(value, Tensor):
            return value.detach().clone()  # memory of its own: f may have given what it captures
        return torch.zeros_like(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: D102
        ctx.inverse = inputs[1]
        ctx.set_materialize_grads(False)
        if active():  # the levels of vmap that an incoming gradient may lack
            ctx.save_for_backward(inputs[0])
            ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:  # noqa: D102
        (g,) = grads
        if g is None:
            return None, None, None
        if functorch.is_legacy_batchedtensor(g):
            raise RuntimeError(
                "is_grads_batched and vectorize=True can't solve for a batch of gradients: use torch.func"
            )
        after = ctx.inverse.next(torch.is_grad_enabled())
        after = replace(after, transposed=not after.transposed)
        if not (torch.is_grad_enabled() or active() or forward_ad._current_level >= 0):
            return after(g), None, None
        return Applied.apply(_spread(g, ctx, after), after, None), None, None

    @staticmethod
    def jvp(ctx: Any, x: Tensor, *_: Any) -> Tensor:  # noqa: D102
        after = ctx.inverse.next(False)
        return Applied.apply(_spread(x, ctx, after), after, None)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, inverse: Inverse, value: float | None) -> tuple[Tensor, int]:  # noqa: D102
        at, count = in_dims[0], len(vmap_levels()) + 1
        spread = inverse.spread[:count]
        if len(spread) == count and spread[-1]:
            place = inverse.extra
            x = x.movedim(at, place)
            inverse = replace(inverse, spread=spread[:-1], folded=inverse.folded + 1)
        else:
            place = 0
            x = x.movedim(at, place)
            inverse = replace(inverse, spread=spread[: count - 1], extra=inverse.extra + 1)
        return Applied.apply(x, inverse, value), place


def _spread(x: Tensor, ctx: Any, inverse: Inverse) -> Tensor:
    """Return x as one of all levels of vmap that A is spread out by."""
    if not (active() and any(inverse.spread)):
        return x
    return x + torch.zeros_like(ctx.saved_tensors[0])


class _Gate(torch.autograd.Function):
    """The identity, closed to the gradient in passes that none differentiates: the sum that arrives is zero then."""

    @staticmethod
    def forward(x: Tensor, passes: _Passes) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.passes = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return (grads[0] if ctx.passes.differentiated else None), None

    @staticmethod
    def jvp(ctx: Any, x: Tensor, *_: Any) -> Tensor:
        ctx.passes.differentiated = True
        return x.clone()


def follow(residual: Step, value: Tensor, inverse: Inverse, orders: int) -> Tensor:
    """Return the value after so many chord steps v + A^{-1} r(v), which change its derivatives alone."""
    for _ in range(orders):
        point = value if active() or not value.requires_grad else _Gate.apply(value, inverse.passes)
        value = point + Applied.apply(residual(point), inverse, 0.0)
    return value


def linearised(f: Step, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return v as a leaf that requires a gradient, and f of it, with the graph between."""
    with torch.enable_grad():
        v = v.detach().clone().requires_grad_()
        return v, apply(f, v, forward_mode=True)


def linearised_below(f: Step, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same below torch.func's levels; they leave inference mode, but what is below them stays in it."""
    with torch.inference_mode(False):
        return linearised(f, v)


def reaches_more_than(output: Tensor, v: Tensor | None) -> bool:
    """Return whether a gradient of the output has anywhere to go but to the leaf v."""
    if v is None or not output.requires_grad:
        return output.requires_grad
    if output.grad_fn is None:
        return output is not v
    seen, left = set[Node](), [output.grad_fn]
    while left:
        node = left.pop()
        if node in seen:
            continue
        seen.add(node)
        following = [after for after, _ in node.next_functions if after is not None]
        # A node without followers is a leaf's, or one that hides what it reaches: that must not lose its gradient.
        if not following and getattr(node, "variable", None) is not v:
            return True
        left += following
    return False
