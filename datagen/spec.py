"""Frozen specifications, their content-addressed identity, and one clear message for a bad one."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator, model_validator


class Spec(BaseModel):
    """A frozen piece of a specification: unknown fields are refused, values are checked when it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_fields(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            for key in data:
                if key not in cls.model_fields:
                    raise ValueError(f"unknown field {key!r:.80}; {nearest(str(key), cls.model_fields)}")
        return data

    @field_validator("*", mode="before")
    @classmethod
    def _only_numbers_are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic would take true for 1 and "010" for 10: what was meant is not known.
        if isinstance(value, (bool, str, list, tuple)) and (
            kind := _misread(cls.model_fields[str(info.field_name)].annotation, value)
        ):
            raise ValueError(f"expected {kind}, got {value!r:.80}")
        return value


def _misread(annotation: Any, value: Any) -> str:
    """Return "a whole number" or "a number" where pydantic would read a truth value or a text as one, else nothing."""
    kinds = _kinds(annotation)
    if isinstance(value, (list, tuple)):
        inside = [get_args(kind)[0] for kind in kinds if get_origin(kind) in (list, tuple) and get_args(kind)]
        return next((found for kind in inside for part in value if (found := _misread(kind, part))), "")
    if not isinstance(value, (bool, str)) or type(value) in kinds or Any in kinds:
        return ""
    if any(value in get_args(kind) for kind in kinds if get_origin(kind) is Literal):
        return ""
    return "a number" if float in kinds else "a whole number" if int in kinds else ""


@cache
def _kinds(annotation: Any) -> frozenset[Any]:
    """Return what a field may be: the parts of its union, without what is only noted about them."""
    if get_origin(annotation) in (Union, UnionType):
        return frozenset().union(*(_kinds(part) for part in get_args(annotation)))
    return _kinds(get_args(annotation)[0]) if get_origin(annotation) is Annotated else frozenset({annotation})


def canonical_json(spec: Spec) -> str:
    """Return the spec as JSON with sorted keys and every field at its default left out, empty parts too.

    Leaving defaults out keeps identities stable when a later version adds a field with a default.
    """
    fields = _without_empty(spec.model_dump(mode="json", exclude_defaults=True))
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def _without_empty(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    parts = {key: _without_empty(part) for key, part in value.items()}
    return {key: part for key, part in parts.items() if part != {}}


def digest(spec: Spec, length: int = 16) -> str:
    """Return the first `length` hexadecimal digits of the sha256 of the spec's canonical JSON."""
    return hashlib.sha256(canonical_json(spec).encode()).hexdigest()[:length]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint: the known name closest to `name`, or all of them where none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "a text",
    "string_pattern_mismatch": "a text that matches {pattern}",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "model": "a mapping",
    "literal": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "too_short": "{min_length} or more parts",
    "too_long": "{max_length} parts or fewer",
}
"""What pydantic's kinds of error ask for, by their names or the first words of them."""


def first_problem(error: ValidationError) -> str:
    """Return the first problem of a failed validation as `field: what was expected, got value` on one line."""
    problem = error.errors(include_url=False)[0]
    field, kind, context = ".".join(str(part) for part in problem["loc"]), problem["type"], problem.get("ctx", {})
    expected = _EXPECTED.get(kind) or _EXPECTED.get(kind.partition("_")[0])
    if kind == "value_error":
        text = str(context["error"])
    elif kind == "missing":
        text = "is missing"
    elif expected is not None:
        text = f"expected {expected.format(**context)}, got {_shown(problem['input'])}"
    else:
        text = f"{problem['msg'][:1].lower()}{problem['msg'][1:]}, got {_shown(problem['input'])}"
    return f"{field}: {text}" if field else text


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.80}"
    except ValueError:  # Python writes no whole number of more than some 4,300 digits
        return f"{type(value).__name__} of more digits than can be written"
