"""Shapes in annotations, `Float[Tensor, "B 1 h w"]`, which are checked at run time where tests set IDP_CHECK_SHAPES.

Elsewhere `shaped` gives back what it is given, and what annotations name is imported for the type checker alone:
neither jaxtyping nor beartype is needed to use these packages.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, wraps
from inspect import signature
from typing import Any, TypeVar, cast

T = TypeVar("T", bound=Callable[..., Any])

_NAMES = ("Bool", "Float", "Float32", "Float64", "Int16", "Int32", "Int64", "Integer", "Shaped", "UInt8", "UInt64")
"""Those of jaxtyping that annotations here are made of; "n" in one is any number, and the same in all of a call."""
_SHAPED = re.compile(rf"\b({'|'.join(_NAMES)})\[")


def _asked() -> bool:
    return bool(os.environ.get("IDP_CHECK_SHAPES"))


def shaped(what: T) -> T:
    """Have the annotated shapes of a function, or of a dataclass's fields, be checked at each call.

    Args:
        what: The function or dataclass, which comes back itself unless IDP_CHECK_SHAPES is set. Annotations without a
            shape are for the type checker alone.
    """
    if not _asked():
        return what
    if not isinstance(what, type):
        return cast(T, _checked(what, vars(sys.modules[what.__module__])))
    fields: Any = what
    fields.__init__ = _checked(fields.__init__, vars(sys.modules[what.__module__]))
    return what


def shaped_last(what: T) -> T:
    """Do what `shaped` does for a function that refuses wrong shapes itself: in its own words, so it is asked first."""
    return cast(T, _checked(what, vars(sys.modules[what.__module__]), last=True)) if _asked() else what


_suspended = False


@contextmanager
def unchecked() -> Iterator[None]:
    """Let shapes be what they are for a while: sizes that have no number yet can't be compared."""
    global _suspended
    before, _suspended = _suspended, True
    try:
        yield
    finally:
        _suspended = before


def _checked(function: Callable[..., Any], names: dict[str, Any], last: bool = False) -> Callable[..., Any]:
    from jaxtyping import jaxtyped

    texts = {name: text for name, text in function.__annotations__.items() if _SHAPED.search(str(text))}
    if not texts:
        raise TypeError(f"{function.__qualname__}: no shape is annotated")
    given, hints = signature(function), _Hints(function.__qualname__, texts, names)

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if _suspended:
            return function(*args, **kwargs)
        with jaxtyped("context"):  # in which a letter is one number
            arguments = given.bind(*args, **kwargs).arguments
            if not last:
                hints.check(arguments)
                result = function(*args, **kwargs)
            else:
                result = function(*args, **kwargs)
                hints.check(arguments)
            hints.check({"return": result})
        return result

    return checked


class _Hints:
    """What the annotations of a function say, read at its first call, when all that they name is there."""

    def __init__(self, function: str, texts: dict[str, str], names: dict[str, Any]) -> None:
        self.function, self.texts, self.names = function, texts, names

    @cached_property
    def hints(self) -> dict[str, Any]:
        import jaxtyping

        known = self.names | {name: getattr(jaxtyping, name) for name in _NAMES}
        return {name: eval(text, known) for name, text in self.texts.items()}

    def check(self, values: Mapping[str, Any]) -> None:
        """Raise TypeError, naming it, where a value has another shape, or type of number."""
        from beartype.door import is_bearable

        for name in self.texts:
            if name in values and not is_bearable(values[name], self.hints[name]):
                got = _described(values[name])
                raise TypeError(f"{self.function}: {name}: expected {self.texts[name]}, got {got}")


def _described(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_described, value))})"
    if not hasattr(value, "shape"):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
