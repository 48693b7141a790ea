"""Which results may stand together: those of the present code, plug-ins included, or of one older version."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from orchestrator.storage.code import code_hash
from orchestrator.storage.provenance import Provenance

T = TypeVar("T")


def is_present(provenance: Provenance) -> bool:
    """Return whether the present code, the project's and that of the plug-ins, made it."""
    return provenance.made_by(code_hash())


def version(provenance: Provenance) -> str:
    """Return what tells one version of the code, the project's and that of the plug-ins, from another."""
    if not provenance.plugins:
        return provenance.code
    plugins = hashlib.sha256(repr(sorted(provenance.plugins.items())).encode()).hexdigest()[:12]
    return f"{provenance.code}+{plugins}"


def of_one_version(items: Iterable[T], provenance_of: Callable[[T], Provenance]) -> list[T]:
    """Return the items of the present code, or, where there is none, of the one version with most of them.

    The one rule of tables, figures, reports and MLflow: numbers of different code are never averaged.

    Args:
        items: Results, or what holds one.
        provenance_of: From an item to what produced it.
    """
    every = list(items)
    fresh = [item for item in every if is_present(provenance_of(item))]
    return fresh or of_commonest(every, lambda item: version(provenance_of(item)))


def of_commonest(items: Sequence[T], kind: Callable[[T], Hashable]) -> list[T]:
    """Return the items of the kind that most are of, the first of those that are equally common."""
    kinds = [kind(item) for item in items]
    if not kinds:
        return []
    ((most, _),) = Counter(kinds).most_common(1)
    return [item for item, each in zip(items, kinds, strict=True) if each == most]
