"""A sweep's summary as text, Markdown, LaTeX, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json

from orchestrator.sweep.systems import METRIC
from orchestrator.tables.columns import metric_columns
from orchestrator.tables.latex import fragment, macros
from orchestrator.tables.rows import DISTANCE_BIN_NAMES, Row
from orchestrator.tables.summary import Summary
from orchestrator.tables.table import FORMATS as FORMATS
from orchestrator.tables.table import Format, markdown, text
from orchestrator.terminal import printable


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
    for table in summary.tables():
        parts += ["", text(table) if format == "text" else markdown(table)]
    return "\n".join(parts) + "\n"


def _csv(summary: Summary) -> str:
    """Return one line per row with unrounded numbers."""
    axes = list(dict.fromkeys(name for row in summary.rows for name in row.axes))
    apart = ("axes", "outcomes", "success_by_distance", "exact_interval", "parameters", "system", "metrics")
    numbers = [name for name in Row.__dataclass_fields__ if name not in apart]
    statuses = ("COMPLETED", "OUT_OF_MEMORY", "FAILED", "CANCELLED", "MISSING")
    bins = [f"success_at_{name.replace('≤ ', 'most_').replace('> ', 'over_')}" for name in DISTANCE_BIN_NAMES]
    wide = ["parameters", *bins] if summary.wide else []
    metrics = [column.name for column in metric_columns(summary.rows).values()]
    both = [f"{METRIC}{name}{end}" for name in metrics for end in ("", "_std")]
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    ends = ["exact_low", "exact_high"]
    writer.writerow([*axes, *numbers, *ends, *(status.lower() for status in statuses), *wide, *both])
    for row in summary.rows:
        line = [*(row.axes.get(name) for name in axes), *(getattr(row, name) for name in numbers)]
        line += row.exact_interval or (None, None)
        line += [row.outcomes.get(status, 0) for status in statuses]
        if summary.wide:
            line += [row.parameters, *(row.success_by_distance or [None] * len(bins))]
        for found in (row.metrics.get(name) for name in metrics):
            line += [None, None] if found is None else [found.mean, found.deviation]
        writer.writerow([_cell(value) for value in line])
    return lines.getvalue()


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
