"""What the fields of a specification mean, in the words of its docstring."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap

from datagen.spec import Spec

_ENTRY = re.compile(r"^    (\w+): (.*(?:\n(?:     .*)?)*)", re.MULTILINE)


@functools.cache
def meanings(model: type[Spec]) -> dict[str, str]:
    """Return the meaning of each field that is told: under "Attributes:" or by a string below it, a parent's too."""
    found: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if issubclass(owner, Spec) and owner is not Spec:
            found |= _listed(owner) | _below(owner)
    return {name: text for name, text in found.items() if name in model.model_fields}


def summary(model: type[Spec]) -> str:
    """Return the first sentence of a specification's docstring."""
    return _one_line(inspect.cleandoc(model.__doc__ or "").partition("\n\n")[0])


def _listed(owner: type[Spec]) -> dict[str, str]:
    """Return what the docstring lists under "Attributes:"."""
    attributes = inspect.cleandoc(owner.__dict__.get("__doc__") or "").partition("\nAttributes:\n")[2]
    return {name: _one_line(text) for name, text in _ENTRY.findall(attributes)}


def _below(owner: type[Spec]) -> dict[str, str]:
    """Return the strings that stand below a field."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, line in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(line, ast.Expr):
            value = line.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                found[field.target.id] = _one_line(value.value)
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split())
