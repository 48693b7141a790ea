"""The tables of fields of docs/reading-results.md, from the code's docstrings: `python docs/reading_tables.py`."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from archive import row_of, with_tables

from orchestrator.storage.provenance import Provenance
from orchestrator.storage.results import TrialResult
from planners.training.records import EpochRecord

PAGE = Path(__file__).parent / "reading-results.md"
_ENTRY = re.compile(r"^    (\w+): (.*(?:\n     .*)*)", re.MULTILINE)
OTHERWISE = {"trial_id", "status", "provenance", "metrics"}
"""What the page says in words: these are no columns of their own, or stand before the others."""


def fields(model: type, prefix: str = "") -> list[str]:
    """Return a row for each field that a class's docstring lists."""
    listed = inspect.cleandoc(model.__doc__ or "").partition("\nAttributes:\n")[2]
    found = {name: " ".join(meaning.split()) for name, meaning in _ENTRY.findall(listed)}
    rows = [row_of(f"`{prefix}{name}`", meaning) for name, meaning in found.items() if name not in OTHERWISE]
    return [row_of("column", "what it is"), "|---|---|", *rows]


TABLES = {
    "results": lambda: fields(TrialResult),
    "provenance": lambda: fields(Provenance, "provenance_"),
    "curves": lambda: fields(EpochRecord),
}

if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), TABLES, "reading_tables"), encoding="utf-8")
