"""What source files define, as a digest that does not ask in which module a definition stands.

Functions, classes and constants count, each with what the names in it stand for. Comments, docstrings, the names of
modules and the order of definitions do not: so a module may be moved, renamed or divided, and what its code has made
is still of the present code.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path

_DIGEST = re.compile("[0-9a-f]{64}")
_STRING = re.compile(r"'([A-Za-z_][\w.]*)(:[A-Za-z_]\w*)?'")
"""A string that may name a module, or something in it: "package.module:Name"."""


def digest(files: Mapping[str, bytes]) -> str:
    """Return 64 digits that change when what source files define does; kept beside this module for the same files.

    Args:
        files: Text of each file, by the full name of its module; of a package, "name.__init__".
    """
    key = hashlib.sha256()
    for name, text in sorted(files.items()):
        key.update(f"{name}\0{len(text)}\0".encode() + text)
    return kept(key.hexdigest(), lambda: _digest(files))


def kept(key: str, find: Callable[[], str]) -> str:
    """Return 64 digits that take long to find, from beside this module where they were found before.

    Args:
        key: What they follow from, beside this module and Python's version.
        find: Finds them.
    """
    whole = hashlib.sha256(f"{sys.version_info[:2]} {key} ".encode() + Path(__file__).read_bytes()).hexdigest()
    place = Path(__file__).parent / "__pycache__" / f"definitions-{whole[:32]}"
    try:
        if _DIGEST.fullmatch(found := place.read_text()):
            return found
    except (OSError, UnicodeDecodeError):
        pass  # not read before, or not by us
    found = find()
    with suppress(OSError):  # of a read-only installation it is found anew each time
        place.parent.mkdir(exist_ok=True)
        temporary = place.with_name(f"{place.name}.{os.getpid()}")
        temporary.write_text(found)
        temporary.replace(place)
    return found


def _digest(files: Mapping[str, bytes]) -> str:
    modules: dict[str, _Module] = {}
    for name, text in files.items():
        modules[name.removesuffix(".__init__")] = _Module(name, text, modules)
    found = sorted(line for module in modules.values() for line in module.lines())
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


class _Module:
    """One source file: its definitions by name, and what it imports under which name.

    Attributes:
        imports: What an imported name stands for: a module, and a name in it ("" for the module itself).
    """

    def __init__(self, name: str, text: bytes, modules: Mapping[str, _Module]) -> None:
        self._package = name.rpartition(".")[0]
        self._modules = modules
        self.imports: dict[str, set[tuple[str, str]]] = defaultdict(set)
        self._statements: dict[str, list[ast.stmt]] = defaultdict(list)
        # Where several statements bind one name their order counts, so they stay together.
        for number, statement in enumerate(self._stripped(ast.parse(text)).body):
            self._statements[_bound(statement) or f"{number}"].append(statement)
        self._statements.pop("__all__", None)

    def _stripped(self, tree: ast.Module) -> ast.Module:
        """Note what is imported anywhere, and take out imports, docstrings and blocks for the type checker."""
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    bound = alias.asname or alias.name.partition(".")[0]
                    self.imports[bound].add((alias.name if alias.asname else bound, ""))
            elif isinstance(node, ast.ImportFrom):
                above = self._package.split(".")[: self._package.count(".") + 2 - node.level] if node.level else []
                source = ".".join([*above, *([node.module] if node.module else [])])
                for alias in node.names:
                    self.imports[alias.asname or alias.name].add((source, alias.name))
        for node in ast.walk(tree):
            for field in ("body", "orelse", "finalbody"):
                if isinstance(lines := getattr(node, field, None), list):
                    setattr(node, field, [line for line in lines if not _counts_for_nothing(line)])
        return tree

    @cached_property
    def units(self) -> dict[str, str]:
        """Digest of each statement by itself."""
        return {
            name: _short("\n".join(_STRING.sub(self._without_place, _text(line)) for line in lines))
            for name, lines in self._statements.items()
        }

    def _without_place(self, text: re.Match[str]) -> str:
        return f"'{text[2] or ''}'" if text[1] in self._modules else text[0]

    def lines(self) -> Iterator[str]:
        """Yield a digest of each statement with what the names in it stand for."""
        for own, statements in self._statements.items():
            meant = set()
            for node in (node for statement in statements for node in ast.walk(statement)):
                if isinstance(node, ast.Name) and node.id != own:
                    meant.add(f"{node.id}={self._meaning(node.id)}")
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    place = _STRING.fullmatch(repr(node.value))
                    if place and place[1] in self._modules:
                        meant.add(self._found(place[1], (place[2] or "").removeprefix(":")))
            yield _short("\n".join([self.units[own], *sorted(meant)]))

    def _meaning(self, name: str, depth: int = 0) -> str:
        """Return what a name stands for: a definition of these files by its text, anything else by its place."""
        if name in self.units:
            return self.units[name]
        return " ".join(sorted(self._found(*place, depth) for place in self.imports.get(name, ())))

    def _found(self, source: str, name: str, depth: int = 0) -> str:
        if (inner := self._modules.get(f"{source}.{name}" if name else source)) is not None:
            return inner._whole
        if (module := self._modules.get(source)) is None:
            return f"{source}.{name}"
        return module._meaning(name, depth + 1) if depth < 10 else name  # names may be passed on in a circle

    @cached_property
    def _whole(self) -> str:
        return _short("\n".join(sorted(self.units.values())))


def _text(node: object) -> str:
    """Return what `ast.dump` of Python 3.11 returns, whatever Python this is: later ones have or omit other fields."""
    if isinstance(node, list):
        return f"[{', '.join(_text(part) for part in node)}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    given = []
    for name in node._fields:
        value = getattr(node, name, None)
        if isinstance(node, ast.JoinedStr):
            value = [part for part in node.values if not (isinstance(part, ast.Constant) and part.value == "")]
        left_out = value is None and getattr(type(node), name, ...) is None
        if not left_out and (name != "type_params" or value):
            given.append(f"{name}={_text(value)}")
    return f"{type(node).__name__}({', '.join(given)})"


def _bound(statement: ast.stmt) -> str | None:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return statement.name
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return targets[0].id if len(targets) == 1 and isinstance(targets[0], ast.Name) else None


def _counts_for_nothing(line: ast.stmt) -> bool:
    if isinstance(line, ast.If):
        return isinstance(line.test, ast.Name) and line.test.id == "TYPE_CHECKING"
    if isinstance(line, ast.Expr):
        return isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)
    return isinstance(line, (ast.Import, ast.ImportFrom))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
