"""The picture of the rooms, drawn from the imports: `python docs/rooms.py` writes docs/images/rooms.svg again.

A room is a sub-package, or the files of a package beside its sub-packages: those that import none of them ("below"),
and the others ("above"). An arrow says "imports"; what follows from other arrows is left out. Imports that serve type
checkers alone do not count.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

import grimp

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "rooms.svg"
PACKAGES = ("orchestrator", "planners", "datagen")
LIBRARIES = ("ray", "mlflow", "optuna", "torch", "e2cnn", "numba", "pyarrow", "matplotlib", "miniworld")
"""What boxes name of the libraries that they import."""

BOX, HIGH, ACROSS, DOWN, MARGIN = 204, 96, 16, 32, 18
LINE, LINES = 29, 4
"""Letters in a line of a box, and lines."""
BESIDE = 2
"""Most rooms on a floor."""

Arrow = tuple[str, str]


@dataclass(frozen=True)
class House:
    """One package: its rooms with what each is, and who imports whom.

    Attributes:
        captions: What each room is, in a sentence.
        libraries: Those of `LIBRARIES` that each room imports.
        arrows: Pairs of rooms, the first of which imports the second; without a circle.
        climbs: Pairs that close a circle with them.
    """

    captions: dict[str, str]
    libraries: dict[str, tuple[str, ...]]
    arrows: frozenset[Arrow]
    climbs: frozenset[Arrow]


def import_graph() -> grimp.ImportGraph:
    """Return who imports whom, as Python sees it when it runs."""
    return grimp.build_graph(
        *PACKAGES, include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None
    )


def house(graph: grimp.ImportGraph, package: str) -> House:
    """Return a package's rooms and arrows."""
    room = _rooms(graph, package)
    members: dict[str, list[str]] = {}
    for module in sorted(room):
        members.setdefault(room[module], []).append(module)
    counts: dict[Arrow, int] = {}
    for module, importer in room.items():
        for imported in graph.find_modules_directly_imported_by(module):
            if imported in room and room[imported] != importer:
                arrow = importer, room[imported]
                counts[arrow] = counts.get(arrow, 0) + 1
    climbs = _climbs(counts)
    libraries = {name: _libraries(graph, modules) for name, modules in members.items()}
    captions = {name: _caption(name, modules) for name, modules in members.items()}
    return House(captions, libraries, frozenset(counts) - climbs, climbs)


def _rooms(graph: grimp.ImportGraph, package: str) -> dict[str, str]:
    """Return the room of each module of a package."""
    children = graph.find_children(package)
    folders = {child for child in children if graph.find_children(child)}
    room = {module: folder for folder in folders for module in (folder, *graph.find_descendants(folder))}
    for module in children - folders:
        if not module.endswith("__main__"):
            reached = graph.find_upstream_modules(module) & set(room)
            above = any(room[found] in folders for found in reached)
            room[module] = f"{package} {'above' if above else 'below'}"
    return room


def _caption(name: str, modules: list[str]) -> str:
    """Return the first line of a sub-package's docstring up to a semicolon, or the names of files."""
    if " " in name:
        return ", ".join(module.rpartition(".")[2] for module in modules)
    text = (ROOT / name.replace(".", "/") / "__init__.py").read_text()
    return text.removeprefix('"""').partition("\n")[0].removesuffix('"""').partition(";")[0].rstrip(".")


def _libraries(graph: grimp.ImportGraph, modules: Iterable[str]) -> tuple[str, ...]:
    imported = {found for module in modules for found in graph.find_modules_directly_imported_by(module)}
    return tuple(library for library in LIBRARIES if library in imported)


def _reachable(arrows: Iterable[Arrow], start: str) -> set[str]:
    arrows, found, todo = list(arrows), set[str](), [start]
    while todo:
        here = todo.pop()
        new = {low for high, low in arrows if high == here} - found
        found |= new
        todo += new
    return found


def _climbs(counts: dict[Arrow, int]) -> frozenset[Arrow]:
    """Return a few arrows without which there is no circle, those of the fewest imports first."""
    left = dict(counts)
    removed: list[Arrow] = []
    for arrow in sorted(counts, key=lambda arrow: (counts[arrow], arrow)):
        if arrow[0] in _reachable(left, arrow[1]):
            removed.append(arrow)
            del left[arrow]
    for arrow in reversed(removed):
        if arrow[0] not in _reachable(left, arrow[1]):
            left[arrow] = 0
    return frozenset(counts) - frozenset(left)


def told(arrows: frozenset[Arrow]) -> list[Arrow]:
    """Return the arrows that do not follow from others, in order."""
    return sorted(
        (high, low)
        for high, low in arrows
        if not any(low in _reachable(arrows, middle) for upper, middle in arrows if upper == high and middle != low)
    )


def floors(arrows: frozenset[Arrow], rooms: Iterable[str]) -> dict[str, int]:
    """Return the floor of each room, above all that it imports and as low as the rooms on each floor allow."""
    found: dict[str, int] = {}
    lowest = {room: _depth(arrows, room) for room in rooms}
    urgent = {room: min((lowest[high] for high, low in arrows if low == room), default=len(lowest)) for room in lowest}
    for room in sorted(lowest, key=lambda room: (lowest[room], urgent[room], room)):
        floor = 1 + max((found[low] for high, low in arrows if high == room), default=-1)
        while list(found.values()).count(floor) == BESIDE:
            floor += 1
        found[room] = floor
    return found


def _depth(arrows: frozenset[Arrow], room: str) -> int:
    """Return how many rooms are below a room, on the longest way."""
    return 1 + max((_depth(arrows, low) for high, low in arrows if high == room), default=-1)


def places(house: House) -> tuple[dict[str, tuple[float, float]], dict[Arrow, list[str]], float, float]:
    """Return where rooms and bends of long arrows are, the bends of each arrow, and the house's width and height."""
    level = floors(house.arrows, house.captions)
    top = max(level.values())
    rows: list[list[str]] = [[] for _ in range(top + 1)]
    for room in sorted(level):
        rows[top - level[room]].append(room)
    ways: dict[Arrow, list[str]] = {}
    for high, low in told(house.arrows):
        bends = [f"{high}>{low}@{height}" for height in range(level[high] - 1, level[low], -1)]
        for bend, height in zip(bends, range(level[high] - 1, level[low], -1), strict=True):
            rows[top - height].append(bend)
        ways[high, low] = [high, *bends, low]
    links = [pair for way in ways.values() for pair in pairwise(way)]
    x: dict[str, float] = {}
    width = max(sum(_width(item) + ACROSS for item in row) for row in rows) - ACROSS
    for sweep in range(12):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            _arrange(row, x, links, width)
    return (
        {item: (x[item], (HIGH + DOWN) * y + HIGH / 2) for y, row in enumerate(rows) for item in row},
        ways,
        width,
        ((HIGH + DOWN) * len(rows) - DOWN),
    )


def _width(item: str) -> float:
    return 14 if "@" in item else BOX


def _arrange(row: list[str], x: dict[str, float], links: list[Arrow], width: float) -> None:
    """Order a row by where its neighbours above and below are, and spread it over the width."""

    def pull(item: str) -> float:
        near = [x[other] for pair in links if item in pair for other in pair if other != item and other in x]
        return sum(near) / len(near) if near else x.get(item, width / 2)

    row.sort(key=lambda item: (pull(item), item))
    gap = ACROSS
    left = (width - sum(_width(item) for item in row) - gap * (len(row) - 1)) / 2
    wanted = [pull(item) for item in row]
    for item in row:
        x[item] = left + _width(item) / 2
        left += _width(item) + gap
    # as far as the row has room, it goes where it is pulled
    shift = sum(want - x[item] for item, want in zip(row, wanted, strict=True)) / len(row)
    low, high = x[row[0]] - _width(row[0]) / 2, x[row[-1]] + _width(row[-1]) / 2
    shift = min(max(shift, -low), width - high)
    for item in row:
        x[item] += shift


STYLE = """
.name, .title { font-weight: 600 } .name { font-size: 15px } .title { font-size: 17px }
.what, .library { font-size: 12px } .library { font-style: italic }
.arrow, .climb, .great { fill: none; stroke-width: 1.4 } .climb { stroke-dasharray: 4 3 } .great { stroke-width: 3 }
.paper { fill: #ffffff; stroke: #d0d7de } .house { fill: #f6f8fa; stroke: #d0d7de }
.room { fill: #ffffff; stroke: #57606a } .arrow, .great { stroke: #57606a } .head { fill: #57606a }
.name, .title { fill: #1f2328 } .what { fill: #424a53 } .library { fill: #0969da }
.climb { stroke: #cf222e } .climbing { fill: #cf222e }
@media (prefers-color-scheme: dark) {
.paper { fill: #0d1117; stroke: #30363d } .house { fill: #161b22; stroke: #30363d }
.room { fill: #0d1117; stroke: #8b949e } .arrow, .great { stroke: #8b949e } .head { fill: #8b949e }
.name, .title { fill: #e6edf3 } .what { fill: #b1bac4 } .library { fill: #58a6ff }
.climb { stroke: #ff7b72 } .climbing { fill: #ff7b72 }
}
"""
"""It has a ground of its own, and so can be read wherever it is shown."""


def drawn(house: House, package: str, left: float, above: float, width: float) -> tuple[list[str], float]:
    """Return one package as SVG, in a frame of that width, and the frame's height."""
    at, ways, wide, tall = places(house)
    x0, y0 = left + (width - wide) / 2, above + 40
    lines = [
        f'<rect class="house" x="{left:.0f}" y="{above:.0f}" width="{width:.0f}" height="{tall + 58:.0f}" rx="10"/>',
        f'<text class="title" x="{left + 14:.0f}" y="{above + 26:.0f}">{package}/</text>',
    ]
    leaving: dict[str, list[Arrow]] = {}
    coming: dict[str, list[Arrow]] = {}
    for (high, low), way in ways.items():
        leaving.setdefault(high, []).append((way[1], low))
        coming.setdefault(low, []).append((way[-2], high))
    for ends in (*leaving.values(), *coming.values()):
        ends.sort(key=lambda end: at[end[0]][0])
    for (high, low), way in ways.items():
        ends = [(x0 + at[item][0], y0 + at[item][1]) for item in (high, low)]
        bends = [(x0 + at[item][0], y0 + at[item][1] + side) for item in way[1:-1] for side in (-HIGH / 2, HIGH / 2)]
        points = [ends[0], *bends, ends[1]]
        out, into = leaving[high].index((way[1], low)), coming[low].index((way[-2], high))
        points[0] = points[0][0] + _port(out, len(leaving[high])), points[0][1] + HIGH / 2
        points[-1] = points[-1][0] + _port(into, len(coming[low])), points[-1][1] - HIGH / 2 - 5
        lines.append(f'<path class="arrow" marker-end="url(#head)" d="{_curve(points)}"/>')
    for high, low in sorted(house.climbs):
        (xa, ya), (xb, yb) = ((x0 + at[end][0], y0 + at[end][1]) for end in (high, low))
        lines.append(
            f'<path class="climb" marker-end="url(#climbing)" d="M {xa - 60:.0f} {ya - HIGH / 2:.0f} '
            f'L {xb - 60:.0f} {yb + HIGH / 2 + 5:.0f}"/>'
        )
    for room, caption in sorted(house.captions.items()):
        x, y = x0 + at[room][0] - BOX / 2, y0 + at[room][1] - HIGH / 2
        name = "*.py" if " " in room else room.partition(".")[2]
        lines.append(f'<rect class="room" x="{x:.0f}" y="{y:.0f}" width="{BOX}" height="{HIGH}" rx="6"/>')
        lines.append(f'<text class="name" x="{x + 10:.0f}" y="{y + 20:.0f}">{name}</text>')
        lines.append(
            f'<text class="library" text-anchor="end" x="{x + BOX - 10:.0f}" y="{y + 20:.0f}">'
            f"{' '.join(house.libraries[room])}</text>"
        )
        for number, words in enumerate(textwrap.wrap(caption, LINE, max_lines=LINES, break_on_hyphens=False)):
            lines.append(f'<text class="what" x="{x + 10:.0f}" y="{y + 38 + 15 * number:.0f}">{escape(words)}</text>')
    return lines, tall + 58


def _port(number: int, count: int) -> float:
    return (number - (count - 1) / 2) * min(28, (BOX - 40) / max(count, 1))


def _curve(points: list[tuple[float, float]]) -> str:
    """Return a path through the points that leaves and reaches each one downwards."""
    (x, y), *others = points
    path = f"M {x:.0f} {y:.0f}"
    for to_x, to_y in others:
        middle = (y + to_y) / 2
        path += f" C {x:.0f} {middle:.0f} {to_x:.0f} {middle:.0f} {to_x:.0f} {to_y:.0f}"
        x, y = to_x, to_y
    return path


def picture(graph: grimp.ImportGraph) -> str:
    """Return the whole picture as SVG."""
    houses = {package: house(graph, package) for package in PACKAGES}
    wide = {package: places(houses[package])[2] + 2 * MARGIN for package in PACKAGES}
    first = wide["orchestrator"]
    second = max(wide["planners"], wide["datagen"])
    middle = first + 2 * MARGIN + 24
    left, high = drawn(houses["orchestrator"], "orchestrator", MARGIN, MARGIN, first)
    upper, down = drawn(houses["planners"], "planners", middle, MARGIN, second)
    lower, last = drawn(houses["datagen"], "datagen", middle, MARGIN + down + 40, second)
    width, height = middle + second + MARGIN, max(high, down + 40 + last) + 2 * MARGIN
    between, side = middle + second / 2, MARGIN + first
    great = [
        f'<path class="great" marker-end="url(#great)" d="M {side:.0f} {y:.0f} L {middle - 9:.0f} {y:.0f}"/>'
        for y in (MARGIN + down / 2, min(MARGIN + down + 40 + last / 2, MARGIN + high - 30))
    ]
    great.append(
        f'<path class="great" marker-end="url(#great)" d="M {between:.0f} {MARGIN + down:.0f} '
        f'L {between:.0f} {MARGIN + down + 31:.0f}"/>'
    )
    heads = "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="4" refY="4" markerUnits="userSpaceOnUse" markerWidth="{size}" '
        f'markerHeight="{size}" orient="auto"><path class="{kind}" d="M 0 0 L 8 4 L 0 8 z"/></marker>'
        for name, kind, size in (("head", "head", 9), ("climbing", "climbing", 9), ("great", "head", 17))
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
            f'height="{height:.0f}" font-family="-apple-system, Segoe UI, Helvetica, Arial, sans-serif">',
            "<title>The rooms of orchestrator, planners and datagen, and who imports whom</title>",
            f"<style>{STYLE}</style>",
            f"<defs>{heads}</defs>",
            f'<rect class="paper" x="0.5" y="0.5" width="{width - 1:.0f}" height="{height - 1:.0f}" rx="12"/>',
            *great,
            *left,
            *upper,
            *lower,
            "</svg>",
            "",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(picture(import_graph()))
