"""`idp fields`: the reference of the sweep file on the terminal, and its schema for editors."""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import asdict

from orchestrator.sweep.plugins import add_plugin_option
from orchestrator.sweep.reference import Field, Section, find, sections
from orchestrator.sweep.schema import sweep_schema
from orchestrator.terminal import WIDTH, painted


def add_fields(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb `fields` to the command line's verbs."""
    about = "What a sweep file can say: every field, what it may be, its default and meaning."
    fields = verbs.add_parser("fields", help=about, description=about)
    fields.set_defaults(verb=_fields)
    fields.add_argument(
        "path", metavar="PATH", nargs="?", default="", help="e.g. training, training.labels, planners.NAME; none: all"
    )
    what = fields.add_mutually_exclusive_group()
    what.add_argument("--json", action="store_true", help="one JSON object on standard output")
    what.add_argument("--schema", action="store_true", help="the JSON schema that editors complete from")
    add_plugin_option(fields)


def _fields(options: argparse.Namespace) -> int:
    if options.schema:
        print(json.dumps(sweep_schema(), indent=1))
        return 0
    found = find(options.path)
    if options.json:
        print(json.dumps({"path": options.path, "found": [asdict(one) for one in found]}, indent=2))
        return 0
    for number, one in enumerate(found):
        lines = _section(one) if isinstance(one, Section) else _field(one)
        print("\n".join([*([""] if number else []), *lines]))
    if not options.path:
        places = dict.fromkeys(section.path for section in sections() if section.path and not section.of)
        print("\n".join(["", *_wrapped(f"More: idp fields with one of {', '.join(places)}, or with a field.", "")]))
    return 0


def _section(section: Section) -> Iterator[str]:
    title = " of ".join(filter(None, [section.path or "a sweep file", section.of]))
    yield from _wrapped(f"{title}: {section.meaning}", "")
    for field in section.fields:
        yield ""
        default = f"; default {field.default}" if field.default not in ("", "{}", "[]", "''") else ""
        yield from _wrapped(f"{field.kind}{default}", "  ", f"  {painted(field.name, 'bold')}  ")
        yield from _wrapped(_first_sentence(field.meaning), "      ")


def _first_sentence(text: str) -> str:
    """Return what stands before the first full stop that is no abbreviation's, "Eq. 6" say."""
    return re.split(r"(?<!\bEq)(?<!\be\.g)(?<!\bSec)\. ", text, maxsplit=1)[0].rstrip(".") + "."


def _field(field: Field) -> Iterator[str]:
    yield f"{painted(field.path, 'bold')}{f' of {field.of}' if field.of else ''}"
    yield from _wrapped(field.kind + (f"; default {field.default}" if field.default else ""), "  ")
    yield ""
    yield from _wrapped(field.meaning, "  ")
    if field.example:
        yield ""
        yield f"  e.g.  {field.name}: {field.example}"


def _wrapped(text: str, indent: str, first: str | None = None) -> list[str]:
    start, below = (indent, indent) if first is None else (first, indent + "    ")
    return textwrap.wrap(
        text, WIDTH, initial_indent=start, subsequent_indent=below, break_long_words=False, break_on_hyphens=False
    )
