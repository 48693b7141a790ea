"""Frozen specifications and their content-addressed identity."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """A frozen piece of a specification: unknown fields are refused, values are checked when it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def canonical_json(spec: Spec) -> str:
    """Return the spec as JSON with sorted keys and every field at its default left out.

    Leaving defaults out keeps identities stable when a later version adds a field with a default.
    """
    return json.dumps(spec.model_dump(mode="json", exclude_defaults=True), sort_keys=True, separators=(",", ":"))


def digest(spec: Spec, length: int = 16) -> str:
    """Return the first `length` hexadecimal digits of the sha256 of the spec's canonical JSON."""
    return hashlib.sha256(canonical_json(spec).encode()).hexdigest()[:length]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint naming the known names, the one closest to `name` first."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(known)}"
