"""Steerable convolutions whose filter is expanded on request: the only file that imports e2cnn."""

from __future__ import annotations

import threading
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import e2cnn.kernels.utils
import numpy as np
import torch
from e2cnn import gspaces
from e2cnn.nn import FieldType, R2Conv
from e2cnn.nn.modules.r2_conv import basisexpansion_singleblock
from torch import Tensor, nn

Group = Literal["C4", "D4", "C8"]
Field = Literal["trivial", "regular", "actions"]


@cache
def space(group: Group) -> Any:
    """Return e2cnn's G-space of a group of rotations (C) or of rotations and flips (D) by its name."""
    order = int(group[1:])
    return gspaces.FlipRot2dOnR2(order) if group[0] == "D" else gspaces.Rot2dOnR2(order)


def group_order(group: Group) -> int:
    """Return the number of elements of a group."""
    return int(space(group).fibergroup.order())


@dataclass(frozen=True, eq=False)
class SteerableBasis:
    """The equivariant filters between two fields of a group.

    Attributes:
        filters: float64 [basis, out, in, F, F], a basis of them.
        he_deviation: float64 [basis], standard deviation of each coefficient in e2cnn's default initialisation
            (`generalized_he_init`) of a layer with one input field; n input fields divide it by sqrt(n).
    """

    filters: Tensor
    he_deviation: Tensor


@cache
def steerable_basis(group: Group, in_field: Field, out_field: Field, size: int) -> SteerableBasis:
    """Return e2cnn's basis of the equivariant filters of a size, sampled in double precision."""
    with e2cnn_conditions():
        in_type, out_type = (FieldType(space(group), [_representation(group, f)]) for f in (in_field, out_field))
        layer = R2Conv(in_type, out_type, size, bias=False, initialize=False)
        expansion = layer.basisexpansion
        unit_coefficients = torch.eye(expansion.dimension())
        filters = torch.stack([expansion(coefficients) for coefficients in unit_coefficients])
    attributes = list(expansion.get_basis_info())
    in_irreps = defaultdict(set)
    counts: Counter[tuple[Any, int]] = Counter()
    for each in attributes:
        in_irreps[each["out_irreps_position"]].add(each["in_irrep"])
        counts[each["in_irrep"], each["out_irreps_position"]] += 1
    variances = [
        1 / (len(in_irreps[each["out_irreps_position"]]) * counts[each["in_irrep"], each["out_irreps_position"]])
        for each in attributes
    ]
    return SteerableBasis(
        filters.detach().unflatten(-1, (size, size)), torch.tensor(variances, dtype=torch.float64).sqrt()
    )


def _representation(group: Group, field: Field) -> Any:
    if field == "trivial":
        return space(group).trivial_repr
    if field == "regular":
        return space(group).regular_repr
    if group == "C4":
        return space(group).regular_repr
    if group == "D4":
        # The flip about the vertical axis leaves north (and south) in place: the four directions are the cosets of
        # the subgroup that it generates. Coset r^k H is north turned k times counter-clockwise.
        return space(group).quotient_repr((0, 1))
    raise ValueError(f"group {group!r} has no representation on four actions")


_building = threading.RLock()


@contextmanager
def e2cnn_conditions() -> Iterator[None]:
    """Give e2cnn 0.2.3 what it was written for while it builds filters, and sample them in double precision.

    `np.array(x, copy=False)` means again what it meant in numpy 1, copy only where needed; numpy 2 raises instead,
    which breaks every filter between regular fields of a group with flips. Two calls that torch and numpy deprecate
    stay silent. Tensors are float64, which e2cnn takes from torch's default type. Layers share no sampled basis with
    layers made before: e2cnn keeps one module for all, which casting any one layer would cast under the others.
    """

    class Numpy1:
        def __getattr__(self, name: str) -> Any:
            return getattr(np, name)

        def array(self, x: Any, copy: bool = True) -> Any:
            return np.array(x, copy=True if copy else None)

    with _building:
        default = torch.get_default_dtype()
        shared, basisexpansion_singleblock._stored_filters = basisexpansion_singleblock._stored_filters, {}
        e2cnn.kernels.utils.np = Numpy1()
        torch.set_default_dtype(torch.float64)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "indexing with dtype torch.uint8", UserWarning)
                warnings.filterwarnings("ignore", r"tostring\(\) is deprecated", DeprecationWarning)
                yield
        finally:
            e2cnn.kernels.utils.np = np
            basisexpansion_singleblock._stored_filters = shared
            torch.set_default_dtype(default)


class SteerableFilter(nn.Module):
    """A filter between fields of a group: learned coefficients, expanded in e2cnn's basis on request.

    e2cnn's own layer expands its filter again at every call in training; a planner applies one filter at every step of
    its iteration, so here the expansion is a method that is called once per solve. The parameters are the coefficients
    alone, and a checkpoint holds nothing else.

    Args:
        group: Name of the group.
        in_field: Kind of all input fields.
        in_fields: Number of input fields.
        out_field: Kind of all output fields.
        out_fields: Number of output fields.
        size: Height and width of the filter, odd.
    """

    basis: Tensor

    def __init__(
        self, group: Group, in_field: Field, in_fields: int, out_field: Field, out_fields: int, size: int
    ) -> None:
        super().__init__()
        self._exact = steerable_basis(group, in_field, out_field, size)
        deviation = self._exact.he_deviation.to(torch.get_default_dtype()) / in_fields**0.5
        self.coefficients = nn.Parameter(torch.randn(out_fields, in_fields, len(deviation)) * deviation)
        self.register_buffer("basis", self._exact.filters.to(self.coefficients), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SteerableFilter:
        """Follow the coefficients to their device and dtype; the basis is rounded anew, from double precision."""
        super()._apply(fn, recurse)
        self.basis = self._exact.filters.to(self.coefficients)
        return self

    def forward(self) -> Tensor:
        """Return the plain filter, [out_fields * out, in_fields * in, F, F], differentiable in the coefficients."""
        blocks = torch.einsum("yxb,boihw->yoxihw", self.coefficients, self.basis)
        return blocks.flatten(2, 3).flatten(0, 1)
