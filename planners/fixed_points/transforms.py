"""What torch.func's levels hold, seen from below: solvers get plain tensors, whatever transformations are above.

Under vmap, grad, jvp and what is made of them a tensor is a wrapper around a wrapper. A solver branches on residuals
and writes into histories, which a wrapper of vmap forbids; so it runs below all levels, with what vmap spreads out as
part of the batch, and only f is applied above. That needs `torch._functorch.pyfunctorch`, which torch.func is made of.
Legend: K size of a level of vmap, B samples, N = K ... K B plain samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch as functorch
from torch.autograd import forward_ad

from .solution import Solution, Step

_VMAP, _GRAD, _JVP = (getattr(functorch.TransformType, name) for name in ("Vmap", "Grad", "Jvp"))


def active() -> bool:
    """Return whether a transformation of torch.func is running."""
    return functorch.peek_interpreter_stack() is not None


def vmap_levels() -> list[Any]:
    """Return the interpreters of vmap that are running, the outermost first."""
    return [level for level in _levels() if level.key() == _VMAP]


def _levels() -> list[Any]:
    from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

    return retrieve_all_functorch_interpreters()


@contextmanager
def constants() -> Iterator[None]:
    """Compute without gradients in either mode."""
    with torch.no_grad(), forward_ad._set_fwd_grad_enabled(False):
        yield


@contextmanager
def below() -> Iterator[list[Any]]:
    """Leave all levels for the block; gives what `_above` returns to."""
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    with temporarily_clear_interpreter_stack() as stack:
        yield stack


@contextmanager
def _above(stack: list[Any]) -> Iterator[None]:
    from torch._functorch.pyfunctorch import temporarily_restore_interpreter_stack

    with temporarily_restore_interpreter_stack(stack):
        yield


class Lowered:
    """A step and its start [N, ...] in plain tensors, and the way back up.

    Attributes:
        start: [N, ...] where to start.
        spread: For each running vmap, the outermost first, whether it is part of the N.
    """

    def __init__(self, f: Step, v0: Tensor) -> None:
        self._f, self._levels = f, _levels()
        unknown = [level.key().name for level in self._levels if level.key() not in (_VMAP, _GRAD, _JVP)]
        if unknown:
            raise RuntimeError(f"a solution can't be found under torch.func's {unknown[0].lower()}")
        seen, maps = [v0], vmap_levels()
        if maps:
            with constants():
                seen.append(f(v0))
        self.spread = tuple(any(_holds(x, level.level()) for x in seen) for level in maps)
        self._maps = [(level.level(), level.batch_size()) for level, on in zip(maps, self.spread, strict=True) if on]
        self._samples = len(v0)
        with constants():
            self.start = self.plain(v0).detach()

    def plain(self, x: Tensor) -> Tensor:
        """Return the numbers of a tensor [B, ...] of the levels as [N, ...], without gradients."""
        sizes = dict(self._maps)
        with below():
            for level in reversed(self._levels):
                if level.key() != _VMAP:
                    x = functorch._unwrap_for_grad(x, level.level())
                elif level.level() in sizes:
                    x = functorch._remove_batch_dim(x, level.level(), sizes[level.level()], 0)
            if functorch.is_functorch_wrapped_tensor(x):
                raise RuntimeError("f depends on what vmap spreads out at some arguments, but not at v0")
            return x.flatten(0, len(sizes))

    def lift(self, x: Tensor) -> Tensor:
        """Return plain numbers [N, ...] as a tensor [B, ...] of the levels, constant for all derivatives."""
        with below():
            if self._maps:
                sizes = [size for _, size in self._maps]
                x = x.unflatten(0, (*sizes, self._samples))
            for level, _ in self._maps:
                x = functorch._add_batch_dim(x, 0, level)
            return x

    @contextmanager
    def entered(self) -> Iterator[Step]:
        """Leave all levels for the block; gives the step on plain tensors."""
        with constants(), below() as stack:

            def step(z: Tensor) -> Tensor:
                z = self.lift(z)
                with _above(stack):
                    image = self._f(z)
                return self.plain(image) if isinstance(image, Tensor) else image

            yield step

    def lifted(self, found: Solution) -> Solution:
        """Return a solution found below as one of the levels, but for its value."""
        trace = None if found.trace is None else self.lift(found.trace.T).T
        residual, steps, result = (self.lift(part) for part in (found.residual, found.steps, found.result))
        return replace(found, residual=residual, steps=steps, result=result, trace=trace)

    def orders(self, x: Tensor) -> int:
        """Return how many of the levels differentiate x."""
        forward = sum(level.key() == _JVP for level in self._levels)
        count = forward or int(forward_ad._current_level >= 0)
        for level in reversed(self._levels):
            if not _is_at(x, level.level()):
                continue
            if level.key() == _GRAD and x.requires_grad:
                count += 1
                if not level.prev_grad_mode():
                    raise RuntimeError(
                        "torch.func differentiates a solution inside torch.no_grad() or torch.inference_mode(), where "
                        "the last application of f leaves no graph: put torch.enable_grad() around the transformation"
                    )
            x = functorch.get_unwrapped(x)
        return count

    def reaches_ground(self, x: Tensor) -> bool:
        """Return whether x requires a gradient below all levels, of torch.autograd."""
        return bare(x).requires_grad


def bare(x: Tensor) -> Tensor:
    """Return the numbers of a tensor without its levels, in whatever order."""
    while functorch.is_functorch_wrapped_tensor(x):
        x = functorch.get_unwrapped(x)
    return x


def _is_at(x: Tensor, level: int) -> bool:
    return functorch.is_functorch_wrapped_tensor(x) and functorch.maybe_get_level(x) == level


def _holds(x: Tensor, level: int) -> bool:
    """Return whether x is spread out by the vmap of this level."""
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x) and functorch.maybe_get_level(x) == level:
            return True
        x = functorch.get_unwrapped(x)
    return False
