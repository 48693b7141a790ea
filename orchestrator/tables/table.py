"""A table as data, and how it looks on a terminal and in Markdown; for LaTeX see `latex`, for HTML the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.sweep.specs import Scalar
from orchestrator.terminal import aligned, printable

MISSING = "—"
Format = Literal["text", "md", "tex", "macros", "csv", "json"]
FORMATS: tuple[Format, ...] = ("text", "md", "tex", "macros", "csv", "json")
Look = Literal["", "italic", "bold", "bold italic", "better", "worse", "code"]
_LEFT = ("planner", "against", "task", "notes", "what")
_ALWAYS = ("planner", "k")


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table.

    Attributes:
        text: As people read it.
        look: "italic" where a trial diverged, "bold" for the best of a column, "better" or "worse" where a difference
            is significant, "code" for an id.
    """

    text: str
    look: Look = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: What it is of, in one word.
        title: Stands above it.
        header: Headings of the columns.
        lines: Its cells.
    """

    name: str
    title: str
    header: list[str]
    lines: list[list[Cell]]

    @classmethod
    def of(cls, name: str, title: str, header: Sequence[str], lines: Iterable[Iterable[Cell | str]]) -> Table:
        """Return a table; cells may be plain text."""
        cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in line] for line in lines]
        return cls(name, title, list(header), cells)

    def is_text(self, column: int) -> bool:
        """True where the column holds words, which start at the left; numbers end at the right."""
        return self.header[column] in _LEFT


def text(table: Table) -> str:
    """Return the table for a terminal."""
    lines = [table.header, *([cell.text for cell in line] for line in table.lines)]
    words = [[" ".join(printable(word).split()) for word in line] for line in lines]
    right = [column for column in range(len(table.header)) if not table.is_text(column)]
    return "\n".join([table.title, *aligned(words, right, rule="─")])


def markdown(table: Table) -> str:
    """Return the table in Markdown."""

    def line(words: Iterable[str]) -> str:
        # A line break would end the row, and a pipe the cell.
        return "| " + " | ".join(" ".join(printable(word).split()).replace("|", r"\|") for word in words) + " |"

    rule = ["---" if table.is_text(column) else "---:" for column in range(len(table.header))]
    cells = [[f"*{cell.text}*" if cell.look == "italic" else cell.text for cell in line] for line in table.lines]
    return "\n".join([f"### {table.title}", "", line(table.header), line(rule), *map(line, cells)])


def varying(cells: Sequence[Mapping[str, Scalar]]) -> list[str]:
    """Return the axes that tell cells of a sweep apart, in its order; the planner and K always count as such."""
    axes = dict.fromkeys(axis for cell in cells for axis in cell)
    return [axis for axis in axes if axis in _ALWAYS or len({str(cell.get(axis, MISSING)) for cell in cells}) > 1]


def headings(axes: Iterable[str]) -> list[str]:
    """Return what axes are called above a column: without their section, unless two would have one name."""
    every = list(axes)
    short = [{"k": "K", "map_size": "size"}.get(axis, axis.rpartition(".")[2]) for axis in every]
    return [name if short.count(name) == 1 else axis for axis, name in zip(every, short, strict=True)]
