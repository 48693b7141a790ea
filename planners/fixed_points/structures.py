"""Several tensors as one state: a tuple, list or dict of tensors [B, ...] as one tensor [B, N], and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from .solution import Step

Structure = Any
"""A tensor, or a tuple, list or dict of structures."""


class Joined:
    """The layout of a structure as one tensor [B, N], whose dtype holds the numbers of all."""

    def __init__(self, name: str, state: Structure) -> None:
        leaves, self._spec = tree_flatten(state)
        if not leaves:
            raise ValueError(f"{name}: expected at least one tensor [B, ...], got none")
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                raise TypeError(f"{name}: expected a tensor, or a tuple, list or dict of tensors, got {_kind(leaf)}")
            if leaf.ndim < 1 or not leaf.is_floating_point() or len(leaf) != len(leaves[0]):
                raise ValueError(
                    f"{name}: expected floating point tensors [B, ...] of one batch size B, got "
                    f"{leaf.dtype} {tuple(leaf.shape)} beside {tuple(leaves[0].shape)}"
                )
        self._shapes, self._dtypes = [leaf.shape[1:] for leaf in leaves], [leaf.dtype for leaf in leaves]
        self._sizes = [shape.numel() for shape in self._shapes]
        self._places = tree_unflatten(range(len(leaves)), self._spec)

    def join(self, state: Structure) -> Tensor:
        """Return the structure as one tensor [B, N]."""
        leaves, spec = tree_flatten(state)
        if spec != self._spec:
            leaves, spec = tree_flatten(_ordered(state, self._places))
        if spec != self._spec:
            raise ValueError(f"f must keep the structure of v, got {self._spec} -> {spec}")
        parts = []
        for leaf, shape in zip(leaves, self._shapes, strict=True):
            if not isinstance(leaf, Tensor) or leaf.shape[1:] != shape:
                got = tuple(leaf.shape) if isinstance(leaf, Tensor) else _kind(leaf)
                raise ValueError(f"f must keep the shapes of v, got {('B', *shape)} -> {got}")
            parts.append(leaf.reshape(len(leaf), -1) if leaf.numel() else leaf.new_zeros(len(leaf), 0))
        return torch.cat(parts, dim=1)

    def split(self, joined: Tensor) -> Structure:
        """Return one tensor [B, N] as the structure."""
        parts = joined.split(self._sizes, dim=1)
        leaves = [
            part.reshape(len(part), *shape).to(dtype)
            for part, shape, dtype in zip(parts, self._shapes, self._dtypes, strict=True)
        ]
        return tree_unflatten(leaves, self._spec)

    def step(self, f: Callable[[Structure], Structure]) -> Step:
        """Return f as a step on one tensor; it has `take` where f has."""
        take = getattr(f, "take", None)
        step = _JoinedStep(self, f)
        if take is not None:
            step.take = lambda rows: self.step(take(rows))
        return step


def _ordered(state: Structure, like: Structure) -> Structure:
    """Return the structure with the keys of its dicts in the order of the other's, as far as they are the same."""
    if type(state) is not type(like):
        return state
    if type(state) is dict and state.keys() == like.keys():
        return {key: _ordered(state[key], part) for key, part in like.items()}
    if type(state) in (tuple, list) and len(state) == len(like):
        return type(state)(map(_ordered, state, like))
    return state


class _JoinedStep:
    take: Callable[[Tensor], Step]

    def __init__(self, layout: Joined, f: Callable[[Structure], Structure]) -> None:
        self.layout, self.f = layout, f

    def __call__(self, joined: Tensor) -> Tensor:
        return self.layout.join(self.f(self.layout.split(joined)))


def _kind(thing: Any) -> str:
    return f"the class {thing.__name__}, not an object of it" if isinstance(thing, type) else type(thing).__name__
