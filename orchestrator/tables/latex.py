r"""Results for a paper in LaTeX: tables as a fragment to \input, and a macro for every number."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from orchestrator.sweep.specs import Scalar
from orchestrator.tables.columns import metric_columns, quantities
from orchestrator.tables.rows import Row, success
from orchestrator.tables.statistics import Difference
from orchestrator.tables.summary import Summary
from orchestrator.tables.table import MISSING, Table
from orchestrator.terminal import printable

_CHARACTERS = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "≤": r"$\leq$",
        "<": r"$<$",
        ">": r"$>$",
        "|": r"\textbar{}",
        '"': r"\textquotedbl{}",
        MISSING: "---",
    }
)
_LOOKS = {"italic": r"\textit{{{}}}", "bold": r"\textbf{{{}}}", "bold italic": r"\textbf{{\textit{{{}}}}}"}
_NAMED = ("task", "map_size", "planner", "k")
_DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")


def escaped(text: str) -> str:
    """Return text that LaTeX prints as it is, with a plus or minus sign set as mathematics."""
    written = re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", text).translate(_CHARACTERS)
    return re.sub(r"(?<![\w$])([+-]\d+(?:\.\d+)?)", r"$\1$", written)


def fragment(summary: Summary) -> str:
    r"""Return the summary's tables, each a float with a caption and a label; rules are booktabs' where it is loaded.

    What the paper must not hide stands below each: the scale, and what italics mean.
    """
    label = _letters(summary.title, "-").strip("-").lower()
    parts = [f"% {line}" for line in _comment(summary)]
    layout = [summary.layout] if summary.layout is not None else []
    for table in (*layout, *summary.tables()):
        parts += _float(table, " ".join(summary.warnings()), f"tab:{label}-{table.name}")
    return "\n".join(parts) + "\n"


def _comment(summary: Summary) -> list[str]:
    return [
        f"The results of the sweep {_plain(summary.title)}, by `idp table --format tex`, to \\input.",
        "Needs no package; with booktabs its rules are nicer, with graphicx what is too wide is made to fit a column.",
    ]


def _float(table: Table, warnings: str, label: str) -> list[str]:
    align = "".join("l" if table.is_text(column) else "r" for column in range(len(table.header)))
    lines = []
    for cells in table.lines:
        words = [escaped(cell.text) for cell in cells]
        written = [_LOOKS.get(c.look, "{}").format(w) for c, w in zip(cells, words, strict=True)]
        # A line that starts with [ or * would be read as an argument of the \\ before it.
        guard = "{}" if written[0][:1] in ("[", "*") else ""
        lines.append("    " + guard + " & ".join(written) + r" \\")
    return [
        r"\begin{table}",
        r"  \centering\small\setlength{\tabcolsep}{3pt}",
        # Inside the float, so that they end with it.
        r"  \providecommand{\toprule}{\hline}\providecommand{\midrule}{\hline}\providecommand{\bottomrule}{\hline}",
        r"  \providecommand{\resizebox}[3]{#3}",
        rf"  \caption{{{escaped(table.title)}.}}",
        rf"  \label{{{label}}}",
        r"  \vspace{3pt}",
        r"  \resizebox{\ifdim\width>\columnwidth\columnwidth\else\width\fi}{!}"
        rf"{{\begin{{tabular}}{{{align}}}",
        r"    \toprule",
        "    " + " & ".join(_heading(name) for name in table.header) + r" \\",
        r"    \midrule",
        *lines,
        r"    \bottomrule",
        r"  \end{tabular}}",
        *([rf"  \par\smallskip{{\footnotesize\raggedright {escaped(warnings)}\par}}"] if warnings else []),
        r"\end{table}",
    ]


def _heading(name: str) -> str:
    """Return a heading; the problem of a column stands below its size, "18x18 Mani."."""
    written = re.sub(r"(?<=\d)x(?=\d)", lambda _: r"$\times$", escaped(name))
    first, _, rest = written.partition(" ")
    return rf"\shortstack[r]{{{first}\\ {rest}}}" if rest and re.match(r"\d+x\d+ ", name) else written


def macros(summary: Summary) -> str:
    r"""Return a \newcommand for every number, to \input in the preamble; a number that is missing prints a dash.

    The name of a macro is the sweep's, then what tells its row apart, then the quantity, digits as words:
    \TableOneIdVinSizeOneFiveKThreeZeroSuccess. Rates are in percent, times in milliseconds (training in seconds).
    """
    lines = [f"% Every number of the sweep {_plain(summary.title)}, by `idp table --format macros`."]
    lines += [f"% {_plain(warning)}" for warning in summary.warnings()]
    taken: dict[str, int] = {}
    for name, value in _numbers(summary):
        taken[name] = taken.get(name, 0) + 1
        # Names that differ in signs alone, such as id-vin and id_vin, are counted.
        again = "" if taken[name] == 1 else f"No{_letters(str(taken[name]))}"
        lines.append(rf"\newcommand{{\{name}{again}}}{{{value}}}")
    return "\n".join(lines) + "\n"


def _numbers(summary: Summary) -> Iterator[tuple[str, str]]:
    start = _letters(summary.title)
    # A macro's name stands in papers: it keeps the order of axes that the first version had.
    axes = sorted(summary.row_axes(), key=lambda axis: _NAMED.index(axis) if axis in _NAMED else len(_NAMED))
    for row in summary.rows:
        place = start + _place({axis: row.axes.get(axis) for axis in axes})
        if row.system:
            yield from _metrics(place, row)
        else:
            yield f"{place}Success", escaped(success(row))
            for quantity in quantities(summary.wide):
                yield place + _letters(quantity.macro), escaped(quantity(row))
        yield f"{place}Trials", str(row.used)
        yield f"{place}TrialsExpected", str(row.expected)
        yield f"{place}Diverged", str(row.trial_diverged)
        yield f"{place}OutOfMemory", str(row.outcomes.get("OUT_OF_MEMORY", 0))
    for entry in summary.entries:
        place = start + _place({"planner": entry.planner, "task": entry.task, "map_size": entry.map_size}) + "AllK"
        ours = entry.ours
        yield f"{place}Ours", f"{ours.mean:.1f}" if ours else "---"
        yield f"{place}OursStd", f"{ours.deviation:.1f}" if ours and ours.n > 1 else "---"
        yield f"{place}OursTrials", str(ours.n if ours else 0)
        yield f"{place}OursExpected", str(entry.expected)
        yield f"{place}Paper", f"{entry.paper.mean:.2f}"
        yield f"{place}PaperStd", f"{entry.paper.deviation:.2f}"
        yield from _difference(place, entry.difference)
    for one in summary.comparisons:
        problem = {} if one.task is None else {"task": one.task, "map_size": one.map_size}
        place = f"{start}{_letters(one.first)}Minus{_letters(one.second)}{_place(problem)}"
        yield from _difference(place, one.difference)
        yield f"{place}Pairs", str(one.difference.n if one.difference else 0)
        yield f"{place}PairsExpected", str(one.expected)


def _metrics(place: str, row: Row) -> Iterator[tuple[str, str]]:
    for column in metric_columns([row]).values():
        found, name = row.metrics[column.name], place + _letters(column.name)
        yield name, escaped(column.value(found.mean))
        yield f"{name}Std", "---" if found.deviation is None else escaped(column.value(found.deviation))


def _difference(place: str, one: Difference | None) -> Iterator[tuple[str, str]]:
    for name, value in (
        ("Difference", one and one.value),
        ("DifferenceLow", one and one.low),
        ("DifferenceHigh", one and one.high),
    ):
        yield f"{place}{name}", "---" if value is None else f"${value:+.1f}$"


def _place(axes: Mapping[str, Scalar]) -> str:
    """Return the words of a place in the sweep: values that are words stand alone, others after their axis."""
    short = {"map_size": "size"}
    return "".join(
        _letters(value) if isinstance(value, str) else _letters(short.get(axis, axis)) + _letters(str(value))
        for axis, value in axes.items()
    )


def _letters(text: str, between: str = "") -> str:
    """Return text in letters alone, as a macro's name must be: each word starts with a capital, digits are words."""
    spelt = re.sub(r"(?<=\d)\.(?=\d)", " Point ", text)
    spelt = re.sub(r"(?:(?<=[eE])|^)-(?=\d)", " Minus ", spelt)
    spelt = re.sub(r"\d", lambda digit: f" {_DIGITS[int(digit[0])]} ", spelt)
    return between.join(word[:1].upper() + word[1:] for word in re.findall(r"[A-Za-z]+", spelt))


def _plain(text: str) -> str:
    """Return text for a comment: one line of plain letters."""
    return printable(" ".join(text.split())).encode("ascii", "backslashreplace").decode()
