"""Drawing on the cells of a map: obstacles, fields of numbers, arrows, paths, and the arm that a cell stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Polygon, Rectangle
from numpy.typing import NDArray

from datagen.problem import Moves
from datagen.tasks.arm import BASE, LINK, WORKSPACE, joint_angles, link_positions
from orchestrator.figures.style import BLUE, INK, MUTED, VERMILION

WALL, FLOOR = "#3a3f4a", "#ffffff"
ARRIVES, LOST = BLUE, VERMILION
ARROW = 0.46  # of a cell
MOST_ARROWS = 41
"""Rows of the largest map on which arrows can still be seen."""
MOST_CROSSES = 45
"""Crosses that stand side by side in a panel and let the colour below be seen."""


@dataclass(frozen=True)
class Path:
    """The roll-out of a policy from one cell.

    Attributes:
        cells: int [steps + 1, 2], rows and columns, the start first.
        arrives: Whether it ends at the goal; else it ends where it would come round again or bump for ever.
        moves: int [steps, 2], what each step adds to row and column before a torus wraps them.
    """

    cells: NDArray[np.int64]
    arrives: bool
    moves: NDArray[np.int64]


def board(axes: Axes, map_: NDArray[np.uint8]) -> None:
    """Draw free cells and obstacles [h, w]."""
    axes.imshow(map_, cmap=ListedColormap([WALL, FLOOR]), vmin=0, vmax=1, interpolation="nearest")
    axes.add_patch(Rectangle((-0.5, -0.5), map_.shape[1], map_.shape[0], fill=False, edgecolor=MUTED, linewidth=0.6))
    bare(axes)


def bare(axes: Axes) -> None:
    """Take ticks, grid and frame away."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def heat(
    axes: Axes, map_: NDArray[np.uint8], field: NDArray[np.floating[Any]], label: str, reverse: bool = False
) -> None:
    """Draw a number per free cell, with its scale; a number that is not finite leaves the cell white."""
    board(axes, map_)
    shown = np.ma.masked_where((map_ == 0) | ~np.isfinite(field), field)
    image = axes.imshow(shown, cmap="cividis_r" if reverse else "cividis", interpolation="nearest")
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.72, pad=0.03, aspect=24)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2, width=0.5, labelsize=6)
    bar.set_label(label, fontsize=6.5)


def star(axes: Axes, goal: NDArray[np.int16]) -> None:
    """Mark the goal (row, column)."""
    axes.plot(
        goal[1],
        goal[0],
        marker="*",
        color="#f0c419",
        markersize=8.5,
        markeredgecolor=INK,
        markeredgewidth=0.7,
        zorder=6,
    )


def arrows_show(shape: tuple[int, ...]) -> bool:
    """Return whether arrows can be seen on a map of that shape."""
    return max(shape) <= MOST_ARROWS


def arrows(axes: Axes, chosen: NDArray[np.bool_], moves: Moves, colours: NDArray[np.str_] | str = INK) -> None:
    """Draw an arrow for each chosen action.

    Args:
        axes: Where.
        chosen: bool [actions, h, w].
        moves: What the actions do.
        colours: One for all, or one per cell [h, w].
    """
    if not arrows_show(chosen.shape[1:]):
        return
    for action, (down, right) in enumerate(moves.offsets):
        rows, columns = np.nonzero(chosen[action])
        if len(rows):
            scale = ARROW / max(np.hypot(down, right), 1e-9)
            axes.quiver(
                columns,
                rows,
                np.full(len(rows), right * scale),
                np.full(len(rows), down * scale),
                color=colours if isinstance(colours, str) else colours[rows, columns],
                angles="xy",
                scale_units="xy",
                scale=1,
                width=0.075,
                units="xy",
                headwidth=3.6,
                headlength=3.2,
                headaxislength=3.0,
                minlength=0,
                minshaft=0.5,
                zorder=4,
            )


def roll_out(
    start: tuple[int, int], actions: NDArray[np.int64], map_: NDArray[np.uint8], goal: NDArray[np.int16], moves: Moves
) -> Path:
    """Follow a policy from a cell until it arrives or comes to a cell for the second time.

    Args:
        start: Row and column.
        actions: int [h, w], what it does in each cell.
        map_: uint8 [h, w], 1 = free.
        goal: Row and column.
        moves: What the actions do.
    """
    height, width = map_.shape
    end, cell = (int(goal[0]), int(goal[1])), start
    cells, seen, taken = [start], {start}, []
    while cell != end:
        down, right = moves.offsets[int(actions[cell])]
        row, column = cell[0] + down, cell[1] + right
        if moves.wrap:
            row, column = row % height, column % width
        if not (0 <= row < height and 0 <= column < width and map_[row, column]):
            break
        cell = (row, column)
        cells.append(cell)
        taken.append((down, right))
        if cell in seen:
            break
        seen.add(cell)
    return Path(np.array(cells), cell == end, np.array(taken, np.int64).reshape(-1, 2))


def crosses(axes: Axes, cells: NDArray[np.bool_]) -> None:
    """Mark cells [h, w] with crosses, which tell them apart without colour; on large maps some of them."""
    # Closer than they are wide they would paint the cells over. One artist for all, since thousands take minutes.
    apart = -(-max(cells.shape) // MOST_CROSSES)
    rows, columns = np.nonzero(cells)
    shown = (rows % apart == apart // 2) & (columns % apart == apart // 2)
    axes.plot(columns[shown], rows[shown], "x", color="white", linestyle="", markersize=2.4, markeredgewidth=0.7)


def trail(axes: Axes, path: Path, colour: str, dashed: bool = False) -> None:
    """Draw a path; it is cut where it leaves one side of a torus and enters at the other."""
    cells = path.cells.astype(float)
    steps = np.diff(cells, axis=0)
    cuts = np.flatnonzero((steps != path.moves).any(axis=1))
    pieces = np.split(cells, cuts + 1)
    for number, cut in enumerate(cuts):
        out = 0.5 * path.moves[cut]
        pieces[number] = np.vstack([pieces[number], cells[cut] + out])
        pieces[number + 1] = np.vstack([cells[cut + 1] - out, pieces[number + 1]])
    for piece in pieces:
        axes.plot(
            piece[:, 1],
            piece[:, 0],
            color=colour,
            linestyle=(0, (2.2, 1.3)) if dashed else "-",
            linewidth=1.5,
            solid_capstyle="round",
            solid_joinstyle="round",
            zorder=5,
        )
    row, column = path.cells[0]
    axes.plot(column, row, "o", color="white", markeredgecolor=colour, markeredgewidth=1.2, markersize=4, zorder=6)
    if not path.arrives:
        axes.plot(path.cells[-1, 1], path.cells[-1, 0], "x", color=colour, markersize=5, markeredgewidth=1.5, zorder=7)


def arm(axes: Axes, cells: NDArray[np.int64], size: int, inclusive: bool, colours: list[Any]) -> None:
    """Draw the arm in the configurations of some cells [n, 2], the last on top."""
    angles = joint_angles(size, inclusive)[cells]
    for points, colour in zip(link_positions(angles), colours, strict=True):
        axes.plot(points[:, 0], points[:, 1], color=colour, linewidth=2.2, marker="o", markersize=2.8,
                  solid_capstyle="round", zorder=5)  # fmt: skip


def workspace(axes: Axes, polygons: list[NDArray[np.float32]]) -> None:
    """Draw the workspace of the arm: obstacles, base, and the circle that the hand can reach."""
    axes.set_xlim(0, WORKSPACE)
    axes.set_ylim(0, WORKSPACE)
    axes.set_aspect("equal")
    for polygon in polygons:
        axes.add_patch(Polygon(polygon.astype(float), closed=True, facecolor=WALL, edgecolor="none"))
    around = np.linspace(0, 2 * np.pi, 200)
    axes.plot(BASE + 2 * LINK * np.cos(around), BASE + 2 * LINK * np.sin(around), color=MUTED, linewidth=0.5,
              linestyle=(0, (1, 2)))  # fmt: skip
    axes.plot(BASE, BASE, "s", color=INK, markersize=4, zorder=7)
    bare(axes)
    for spine in axes.spines.values():
        spine.set(visible=True, color=MUTED, linewidth=0.6)
