"""A sweep's summary as text, Markdown, LaTeX, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from typing import Literal

from orchestrator.tables.latex import fragment, macros
from orchestrator.tables.rows import DISTANCE_BIN_NAMES, Row
from orchestrator.tables.summary import Grid, Summary
from orchestrator.terminal import printable

Format = Literal["text", "md", "tex", "macros", "csv", "json"]
FORMATS: tuple[Format, ...] = ("text", "md", "tex", "macros", "csv", "json")


def render(summary: Summary, format: Format) -> str:
    """Return the summary in a format, ending in a newline.

    Args:
        summary: What there is to say.
        format: "text" and "md" for people; "tex" is a fragment to \\input, "macros" one macro for every number; "csv"
            has the cells alone, and "json" everything, both unrounded. Entries with a diverged trial are in italics,
            as in the paper, where there are italics.
    """
    if format == "json":
        return json.dumps(summary.document(), indent=2, allow_nan=False) + "\n"
    if format == "csv":
        return _csv(summary)
    if format == "tex":
        return fragment(summary)
    if format == "macros":
        return macros(summary)
    parts = [summary.title, *summary.warnings()] if format == "text" else [f"## {summary.title}"]
    if format == "md":
        parts += [line for warning in summary.warnings() for line in ("", warning)]
    for grid in summary.grids():
        parts += ["", _text(grid) if format == "text" else _markdown(grid)]
    return "\n".join(parts) + "\n"


def _text(grid: Grid) -> str:
    lines = [[" ".join(printable(word).split()) for word in line] for line in (grid.header, *grid.cells)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(grid.header))]

    def line(words: list[str]) -> str:
        padded = (w.ljust(widths[i]) if grid.is_text(i) else w.rjust(widths[i]) for i, w in enumerate(words))
        return "  ".join(padded).rstrip()

    rule = "  ".join("─" * width for width in widths)
    return "\n".join([grid.title, line(lines[0]), rule, *map(line, lines[1:])])


def _markdown(grid: Grid) -> str:
    def line(words: Iterable[str]) -> str:
        # A line break would end the row, and a pipe the cell.
        return "| " + " | ".join(" ".join(printable(word).split()).replace("|", r"\|") for word in words) + " |"

    rule = ["---" if grid.is_text(column) else "---:" for column in range(len(grid.header))]
    cells = [
        [f"*{word}*" if (number, column) in grid.italics else word for column, word in enumerate(words)]
        for number, words in enumerate(grid.cells)
    ]
    return "\n".join([f"### {grid.title}", "", line(grid.header), line(rule), *map(line, cells)])


def _csv(summary: Summary) -> str:
    """Return one line per row with unrounded numbers."""
    table = summary.rows
    axes = list(dict.fromkeys(name for row in table for name in row.axes))
    apart = ("axes", "outcomes", "success_by_distance")
    numbers = [name for name in Row.__dataclass_fields__ if name not in apart]
    statuses = ("COMPLETED", "OUT_OF_MEMORY", "FAILED", "CANCELLED", "MISSING")
    bins = [f"success_at_{name.replace('≤ ', 'most_').replace('> ', 'over_')}" for name in DISTANCE_BIN_NAMES]
    wide = [*(["parameters"] if summary.parameters is not None else []), *bins] if summary.wide else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*axes, *numbers, *(status.lower() for status in statuses), *wide])
    for number, row in enumerate(table):
        values = [getattr(row, name) for name in numbers]
        counts = [row.outcomes.get(status, 0) for status in statuses]
        line = [*(row.axes.get(name) for name in axes), *values, *counts]
        if summary.wide:
            line += [] if summary.parameters is None else [summary.parameters[number]]
            line += row.success_by_distance or [None] * len(bins)
        writer.writerow([_cell(value) for value in line])
    return text.getvalue()


def _cell(value: object) -> object:
    """Return a cell that no spreadsheet takes for a formula: text from files may begin as one does."""
    if not isinstance(value, str):
        return value
    plain = printable(value).replace("\n", " ")
    return f"'{plain}" if plain.lstrip()[:1] in ("=", "+", "-", "@") and not _is_number(plain) else plain


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
