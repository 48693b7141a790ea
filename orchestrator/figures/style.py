"""How every picture looks: palette, panels, legend, and files that print well."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from orchestrator.tables.layout import in_print

Picture = Literal["svg", "png", "pdf"]
PICTURES: tuple[Picture, ...] = ("svg", "png", "pdf")

INK, MUTED, GRID = "#1d1f24", "#6b7079", "#dfe2e7"
PAGE_WIDTH_INCHES = 7.0
PANEL_HEIGHT_INCHES = 1.75
NARROWEST_PANEL_INCHES = 1.55
INCHES_PER_LETTER = 0.066
DOTS_PER_INCH = 200

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.2,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "mathtext.fontset": "dejavusans",
    # Text stays text: searchable, and no Type 3 fonts, which conferences refuse.
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "idp",
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
}

# Okabe and Ito's colours, which people with any colour vision tell apart.
BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#aa4499"
ORANGE, SKY, SLATE = "#e69f00", "#56b4e9", "#5c6370"


@dataclass(frozen=True)
class Pen:
    """How one planner is drawn. In greyscale the marker tells the core and the line tells the adjoint.

    Attributes:
        colour: Of the core.
        marker: Of the core.
        line: "-" where the gradient is implicit, dashes where it is unrolled.
        filled: Whether markers are, as the line is solid.
    """

    colour: str
    marker: str
    line: Any = "-"
    filled: bool = True

    @property
    def face(self) -> str:
        """Colour of the marker's inside."""
        return self.colour if self.filled else "white"


_OF_CORE = {
    "vin": (BLUE, "o"),
    "symvin": (VERMILION, "s"),
    "conv_gppn": (GREEN, "^"),
    "contractive": (PURPLE, "D"),
    "spt": (ORANGE, "p"),
}
_OTHERS = ((SLATE, "v"), (SKY, "P"), (ORANGE, "X"), (PURPLE, "h"), (BLUE, "<"), (VERMILION, ">"), (GREEN, "*"))
_DASHES = (0.0, (3.2, 1.4))
_DOTS = (0.0, (1.0, 1.2))
MOST_NAMED = 24
"""Entries of a legend in which each is named."""
NAMED_OF_MORE = 12
"""Entries of a legend of more than that, spread over all of them: shades are told apart by their order alone."""
_MOST_ALIKE = 1 + len(_OTHERS)
"""Planners of one core and adjoint that have a colour of their own each; more have shades of one."""


def _shades(colour: str, number: int) -> list[str]:
    """Return so many shades of a colour, light to dark."""
    red, green, blue = to_rgb(colour)
    places = (step / max(1, number - 1) for step in range(number))
    # From two thirds of the way to white, to a little over half of the way to black.
    parts = (((1 - 3 * p) * 0.66, 1.0) if p < 1 / 3 else (0.0, 1 - 0.55 * (1.5 * p - 0.5)) for p in places)
    mixed = ([(c + (1 - c) * white) * dark for c in (red, green, blue)] for white, dark in parts)
    return [to_hex((r, g, b)) for r, g, b in mixed]


def pens(planners: Sequence[tuple[str, str, str]]) -> dict[str, Pen]:
    """Return a pen for each planner of a sweep, all different; of many of one kind in shades, the first the lightest.

    Args:
        planners: Name, core and adjoint of each.
    """
    given: dict[str, Pen] = {}
    own = {_OF_CORE.get(core, (SLATE, "v"))[0] for _, core, _ in planners}
    others = iter(sorted(_OTHERS, key=lambda other: other[0] in own))  # first the colours that no core here has
    kinds = Counter((core, adjoint) for _, core, adjoint in planners)
    shades = {kind: iter(_shades(_OF_CORE.get(kind[0], (SLATE, "v"))[0], many)) for kind, many in kinds.items()}
    for name, core, adjoint in planners:
        colour, marker = _OF_CORE.get(core, (SLATE, "v"))
        pen = Pen(colour, marker, _DASHES if adjoint == "unrolled" else "-", adjoint != "unrolled")
        if kinds[core, adjoint] > _MOST_ALIKE:
            given[name] = replace(pen, colour=next(shades[core, adjoint]))
            continue
        while pen in given.values():
            colour, marker = next(others, (INK, "d"))
            another = Pen(colour, marker, pen.line, pen.filled)
            pen = another if another not in given.values() else Pen(INK, f"${len(given)}$", _DOTS, True)
        given[name] = pen
    return given


@contextmanager
def style() -> Iterator[None]:
    """Draw and write in the style of the project, whatever the user's own settings are."""
    with mpl.rc_context({**mpl.rcParamsDefault, **STYLE}):
        yield


def panels(
    titles: Sequence[str],
    width: float,
    columns: int | None = None,
    height: float = PANEL_HEIGHT_INCHES,
    share_y: bool = True,
    share_x: bool = True,
    narrowest: float = NARROWEST_PANEL_INCHES,
) -> tuple[Figure, list[Axes]]:
    """Return a figure with one panel per title; fewer stand side by side where it is narrow.

    Args:
        titles: One per panel; planners have their names in print.
        width: Inches.
        columns: How many panels stand side by side where there is room; None for all.
        height: Inches of one panel.
        share_y: Whether all panels have one vertical scale, written at the left only.
        share_x: The same for the horizontal scale.
        narrowest: Inches that a panel must have.
    """
    most = max(1, int(width / narrowest))
    side_by_side = max(1, min(columns or len(titles), most, len(titles)))
    rows = -(-len(titles) // side_by_side)
    figure = Figure(figsize=(width, rows * height + 0.45), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, side_by_side, squeeze=False, sharey=share_y, sharex=share_x)
    every = [axes for row in grid for axes in row]
    letters = max(8, int((width - 0.5) / side_by_side / INCHES_PER_LETTER))
    for axes, title in zip(every, titles, strict=False):
        whole = in_print(title).replace(" = ", "\u00a0=\u00a0")  # a line never ends within "K = 30"
        axes.set_title("\n".join(wrap(whole, letters)).replace("\u00a0", " "), loc="left", pad=4)
    for unused in every[len(titles) :]:
        unused.set_visible(False)
    if share_x and rows > 1:
        for number in range(len(titles)):
            if number + side_by_side >= len(titles):  # nothing below it: its ticks would be missing
                every[number].tick_params(labelbottom=True)
    return figure, every[: len(titles)]


def left_of(axes: Axes) -> bool:
    """Return whether the panel is the first of its row."""
    spec = axes.get_subplotspec()
    return spec is None or spec.is_first_col()


def lowest(axes: Axes) -> bool:
    """Return whether there is no visible panel below this one."""
    spec = axes.get_subplotspec()
    if spec is None:
        return True
    below = [
        other
        for other in axes.figure.axes
        if other.get_visible()
        and (place := other.get_subplotspec()) is not None
        and place.colspan.start == spec.colspan.start
        and place.rowspan.start > spec.rowspan.start
    ]
    return not below


def handle(pen: Pen, label: str) -> Line2D:
    """Return a legend entry; planners have their names in print."""
    look = {"color": pen.colour, "linestyle": pen.line, "marker": pen.marker, "markerfacecolor": pen.face}
    return Line2D([], [], **look, label=in_print(label))


def legend(figure: Figure, handles: Sequence[Artist], width: float) -> None:
    """Put one legend under all panels; of more than can be told apart some are named, from the first to the last."""
    if len(handles) > MOST_NAMED:
        more = Line2D([], [], linestyle="", label=f"and {len(handles) - NAMED_OF_MORE + 1} between them")
        step = (len(handles) - 1) / (NAMED_OF_MORE - 2)
        handles = [*(handles[round(step * place)] for place in range(NAMED_OF_MORE - 1)), more]
    if handles:
        longest = max(len(str(entry.get_label())) for entry in handles)
        columns = max(1, min(len(handles), int(width / (0.62 + 0.062 * longest))))
        rows = -(-len(handles) // columns)
        figure.set_figheight(figure.get_figheight() + 0.16 * rows)
        figure.legend(handles=list(handles), loc="outside lower center", ncols=-(-len(handles) // rows))


def picture(figure: Figure, format: Picture) -> bytes:
    """Return the figure as a file; the same figure gives the same bytes."""
    target = io.BytesIO()
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}[format]
    figure.savefig(target, format=format, dpi=DOTS_PER_INCH, metadata=metadata)
    return target.getvalue()


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """Return the figure as an SVG element for a page: its ids are its own, ink and grid follow the page's colours.

    Args:
        figure: The figure.
        name: Unique in the page.
        label: What a screen reader says.
    """
    text = picture(figure, "svg").decode()
    text = text[text.index("<svg") :]
    for attribute in ("id=", "xlink:href=", "href="):
        text = re.sub(rf'(\s{attribute})"(#?)([^"]+)"', rf'\1"\g<2>{name}-\3"', text)
    text = text.replace("url(#", f"url(#{name}-")
    for colour, variable in ((INK, "ink"), (MUTED, "muted"), (GRID, "grid"), ("#ffffff", "page"), ("white", "page")):
        text = re.sub(rf"((?:fill|stroke): ){colour}\b", rf"\1var(--{variable})", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    size = re.search(r'width="([\d.]+)pt"', text)
    assert size is not None
    head, body = text[: text.index(">")], text[text.index(">") :]
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    shown = f'<svg role="img" aria-label="{escape(label)}" style="max-width: {float(size[1]) * 1.9:.0f}px"'
    return head.replace("<svg", shown, 1) + body


def write_picture(figure: Figure, path: Path) -> None:
    """Write the figure in the format that the path's suffix names."""
    from orchestrator.storage.results import write_bytes

    format = path.suffix.lstrip(".")
    if format not in PICTURES:
        raise ValueError(f"{path}: expected a name ending in .{', .'.join(PICTURES)}")
    write_bytes(path, picture(figure, format))
