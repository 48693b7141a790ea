"""YAML as sweeps use it: numbers and truth values as YAML 1.2 has them, bounded in size, from regular files only."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any, ClassVar

import yaml

MOST_BYTES = 2**20
"""The largest sweep of this project has 4 kB."""

MOST_NODES = 150_000
"""Of a file with its aliases followed: 700 bytes can stand for a billion."""

MOST_DEPTH = 40
_TAG = "tag:yaml.org,2002:"
_MOST_LETTERS = 300


class BadYaml(ValueError):
    """Not a text that a sweep can be read from; the message, one line of bounded length, says why."""


def read_yaml(path: Path) -> Any:
    """Return what a YAML file says.

    Args:
        path: The file; a folder, a device or a pipe is refused and not opened, since reading it might never end.

    Raises:
        OSError: The file can't be read.
        BadYaml: It is no regular file, too large, or no such YAML.
    """
    if "\0" in str(path):
        raise BadYaml("a file's name has no NUL")
    _refuse_irregular(os.stat(path).st_mode)
    # Not to wait where the file has become a pipe since.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        _refuse_irregular(os.fstat(file.fileno()).st_mode)
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise BadYaml(f"more than {MOST_BYTES:,} bytes: expected a sweep")
    try:
        return parse_yaml(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadYaml(f"not valid YAML: {error}") from None


def _refuse_irregular(mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    raise BadYaml(f"expected a file, got {kinds.get(stat.S_IFMT(mode), 'a device')}")


def parse_yaml(text: str) -> Any:
    """Return what a YAML text says: mappings with text as keys, lists, text, numbers, truth values and None.

    Raises:
        BadYaml: It says nothing that can be read so.
    """
    if len(text) > MOST_BYTES:
        raise BadYaml(f"more than {MOST_BYTES:,} letters")
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()).replace('in "<unicode string>", ', "in ")
        if len(reason) > _MOST_LETTERS:
            reason = f"{reason[: _MOST_LETTERS // 2]} ... {reason[-_MOST_LETTERS // 2 :]}"
        raise BadYaml(f"not valid YAML: {reason}") from None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without YAML 1.1's surprises.

    There `no` is false, `010` eight, `1:30` ninety, `1_000` a thousand and `2026-11-22` a date; here they are text,
    which no number field takes. `1e-3`, text there, is a number here. A key given twice is an error, not a choice.
    """

    yaml_implicit_resolvers = {}
    yaml_constructors: ClassVar[dict[str | None, Any]] = {}
    _depth = _count = 0

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _size(node, {}, ())
        return node

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self._depth > MOST_DEPTH or self._count > MOST_NODES:
            what = "nested too deeply" if self._depth > MOST_DEPTH else f"more than {MOST_NODES:,} values"
            raise yaml.composer.ComposerError(None, None, what, self.peek_event().start_mark)
        self._depth, self._count = self._depth + 1, self._count + 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(None, None, "expected a mapping", node.start_mark)
        seen = set()
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                continue  # `<<: *base` lays base below the mapping's own keys, which may repeat base's
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r:.80} must be text", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r:.80} is given twice", key_node.start_mark
                )
            if ":" in key and value_node.value == "" and key_node.end_mark.index == value_node.start_mark.index:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r:.80}: a colon needs a space behind it", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        text = super().construct_scalar(node)
        if _HALF.search(text):  # an escape can name what no file and no terminal takes
            raise yaml.constructor.ConstructorError(
                None, None, f"{text!r:.80} has half a letter in it", node.start_mark
            )
        return text

    def number(self, node: yaml.ScalarNode) -> int | float:
        """Construct a number, also where a tag asks for one."""
        text = self.construct_scalar(node)
        for kind, pattern in (("int", _INT), ("float", _FLOAT)):
            if pattern.fullmatch(text):
                return int(text) if kind == "int" else float(_without_dot(text))
        raise yaml.constructor.ConstructorError(None, None, f"{text!r:.80} is no number", node.start_mark)

    def truth(self, node: yaml.ScalarNode) -> bool:
        """Construct a truth value, also where a tag asks for one."""
        text = self.construct_scalar(node)
        if not _BOOL.fullmatch(text):
            raise yaml.constructor.ConstructorError(None, None, f"{text!r:.80} is not true or false", node.start_mark)
        return text.lower() == "true"


def _without_dot(text: str) -> str:
    return text.replace(".", "") if text[-1] in "fFnN" else text  # .inf and .nan, which validation refuses by name


def _size(node: yaml.Node, known: dict[int, tuple[int, int]], above: tuple[int, ...]) -> tuple[int, int]:
    """Return how many nodes a node stands for, its aliases followed, and how deep they go; each is looked at once."""
    if id(node) in above:
        raise yaml.composer.ComposerError(None, None, "an alias that contains itself", node.start_mark)
    if id(node) not in known:
        inside: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inside = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inside = node.value
        sizes = [_size(part, known, (*above, id(node))) for part in inside]
        count, depth = 1 + sum(size[0] for size in sizes), 1 + max((size[1] for size in sizes), default=0)
        if count > MOST_NODES:
            what = f"more than {MOST_NODES:,} values with its aliases"
            raise yaml.composer.ComposerError(None, None, what, node.start_mark)
        if depth > MOST_DEPTH:
            raise yaml.composer.ComposerError(None, None, "nested too deeply", node.start_mark)
        known[id(node)] = count, depth
    return known[id(node)]


_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_HALF = re.compile("[\ud800-\udfff]")
_NULL = re.compile(r"~|null|Null|NULL|")
# No number of a sweep has more digits, and a zero in front has been read as octal: such are text.
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,29})")
_FLOAT = re.compile(
    r"[-+]?((0|[1-9][0-9]{0,29})(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][-+]?[0-9]{1,6})?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
for _name, _pattern, _first in (
    ("bool", _BOOL, "tTfF"),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("merge", re.compile("<<"), "<"),
    ("null", _NULL, ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(f"(?:{_pattern.pattern})\\Z"), list(_first))
_CONSTRUCTORS: dict[str | None, Any] = {
    f"{_TAG}null": yaml.SafeLoader.construct_yaml_null,
    f"{_TAG}bool": _Loader.truth,
    f"{_TAG}int": _Loader.number,
    f"{_TAG}float": _Loader.number,
    f"{_TAG}str": yaml.SafeLoader.construct_yaml_str,
    f"{_TAG}seq": yaml.SafeLoader.construct_yaml_seq,
    f"{_TAG}map": yaml.SafeLoader.construct_yaml_map,
    None: yaml.SafeLoader.construct_undefined,  # any other tag
}
_Loader.yaml_constructors.update(_CONSTRUCTORS)
