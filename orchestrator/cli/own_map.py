"""`idp show --map FILE`: a trained planner on a map of one's own."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.cli.options import Joined, add_storage, refuse, trial_folder
from orchestrator.errors import UserError
from orchestrator.storage.layout import Storage
from orchestrator.terminal import tell
from orchestrator.words import counted

if TYPE_CHECKING:
    from datagen.storage.map_files import MapFile, Reading
    from planners.inference import Cell, RoutePlanner

PUBLISHED = "reachability"
"""The weights that plan where nobody names others."""

_WHOLE = re.compile(r"\s*(-?[0-9]{1,9})\s*,\s*(-?[0-9]{1,9})\s*")
_NUMBER = r"\s*(-?[0-9]{1,9}(?:\.[0-9]*)?)\s*m\s*"
_METRES = re.compile(f"{_NUMBER},{_NUMBER}")

_PICTURES, _ROS = (".png", ".pgm"), (".yaml", ".yml")

Where = tuple[int, int] | tuple[float, float, str]


def add_map_options(show: argparse.ArgumentParser) -> None:
    """Add to `show` what it takes to plan on a map of one's own."""
    own = show.add_argument_group(
        "a map of one's own",
        "With --map or --costs, TRIAL may also be a sweep.",
    )
    own.add_argument(
        "--map", type=Path, metavar="FILE", help="a picture (.png, .pgm), ROS map (.yaml), .map, .scen, or .npy"
    )
    own.add_argument("--goal", type=cell, metavar="R,C", help="row and column; of a ROS map also metres, 1.5m,2m")
    own.add_argument("--start", type=cell, metavar="R,C", help="the same; of a .scen, --index chooses both")
    own.add_argument(
        "--costs", type=Path, metavar="FILE", help="what entering each cell costs: .npy, or a picture's greys"
    )
    own.add_argument(
        "--darkest",
        type=float,
        metavar="COST",
        help="what black costs, where white costs 1 (default: 10)",
    )
    add_reading(own)
    own.add_argument("--only", action=Joined, metavar="KEY=VALUE", help="of a sweep: which trial, planner=vin,seed=0")
    own.add_argument("--profile", help="of a sweep: its profile")
    add_storage(show)


OF_A_MAP = ("start", "goal", "darkest", "threshold", "dark_is_free", "unknown_is_free", "only", "profile")
"""What is said beside `--map` or `--costs` alone."""


def add_reading(parser: argparse._ActionsContainer) -> None:
    """Add the options that say how a map is read where its file leaves it open."""
    parser.add_argument("--threshold", type=int, metavar="N", help="how light a free pixel is at least, 1 to 255 (128)")
    parser.add_argument("--dark-is-free", action="store_true", help="of pictures: dark is free, and costs less")
    parser.add_argument("--unknown-is-free", action="store_true", help="of a ROS map: the unknown is free")


def reading_of(options: argparse.Namespace, file: Path | None, costs: Path | None = None) -> Reading:
    """Return what those options say of a map's file.

    Args:
        options: Parsed options.
        file: The map.
        costs: What entering its cells costs, where that is a file of its own.

    Raises:
        UserError: One is given that no file is read by.
    """
    from datagen.storage.map_files import Reading

    for name, endings, files in (
        ("threshold", _PICTURES, [file]),
        ("dark_is_free", _PICTURES, [file, costs]),
        ("unknown_is_free", _ROS, [file]),
        ("darkest", _PICTURES, [costs]),
    ):
        said, there = getattr(options, name, None), [path for path in files if path is not None]
        if said is not None and said is not False and not any(path.suffix.lower() in endings for path in there):
            got = " and ".join(map(str, there)) or "none"
            raise UserError(f"--{name.replace('_', '-')}: is for {' and '.join(endings)} files, got {got}")
    threshold = 128 if options.threshold is None else options.threshold
    return Reading(threshold, options.dark_is_free, options.unknown_is_free)


def cell(text: str) -> Where:
    """Return row and column of "3,4", or metres, and that they are some, of "1.5m,2m"."""
    if found := _WHOLE.fullmatch(text):
        return int(found[1]), int(found[2])
    if found := _METRES.fullmatch(text):
        return float(found[1]), float(found[2]), "m"
    raise argparse.ArgumentTypeError(f"expected row,column such as 3,4, or metres such as 1.5m,2m, got {text!r:.40}")


def show_map(options: argparse.Namespace) -> int:
    """Plan on the map and draw it; say how it ends."""
    from datagen.storage.map_files import MapFile, read_costs, read_map
    from orchestrator.figures.own_map import write_route
    from orchestrator.figures.problem import check_picture
    from orchestrator.trial.evaluate import MOST_STEPS, check_option

    check_picture(options.out)
    check_option("--k", options.k, MOST_STEPS)
    refuse(options, ("dataset", "frames", "split"), "is not for a map of one's own")
    reading, costs = reading_of(options, options.map, options.costs), None
    if options.costs is not None:
        darkest = 10.0 if options.darkest is None else options.darkest
        costs = read_costs(options.costs, darkest=darkest, dark_is_free=options.dark_is_free)
    if options.map is not None:
        found = read_map(options.map, reading)
    else:
        assert costs is not None
        found = MapFile(np.isfinite(costs).astype(np.uint8))
    if costs is not None:
        costs = _on_free_cells(costs, found, options.costs)
    start, goal = _ends(options, found)
    planner = _planner(options)
    route = planner.solve(found.free, start=start, goal=goal, k=options.k, costs=costs)
    said = write_route(planner, route, options.out, costs)
    tell(f"{said}; {counted(route.steps, 'step')}, residual {route.residual:.1e}")
    if route.advice not in ("", said):
        tell(route.advice)
    print(options.out)
    return 0


def _on_free_cells(costs: NDArray[np.float64], found: MapFile, file: Path) -> NDArray[np.float64]:
    if costs.shape != found.free.shape:
        raise UserError(f"{file}: expected one cost a cell of the {found.free.shape} map, got {costs.shape}")
    without = (found.free == 1) & ~np.isfinite(costs)
    if without.any():
        row, column = np.argwhere(without)[0].tolist()
        raise UserError(f"{file}: the cell {(row, column)} is free on the map and has no finite cost")
    return np.where(found.free == 1, costs, 0.0)


def _ends(options: argparse.Namespace, found: MapFile) -> tuple[Cell, Cell]:
    """Return start and goal, free cells both."""
    if found.ends and options.start is None and options.goal is None:
        index = options.index or 0
        if not 0 <= index < len(found.ends):
            raise UserError(f"--index {index}: {options.map} has {len(found.ends)} problems, numbered from 0")
        return found.ends[index]
    if options.index is not None:
        raise UserError("--index: of a map of one's own, is for a .scen without --start and --goal")
    ends = []
    for name in ("start", "goal"):
        given: Where | None = getattr(options, name)
        if given is None:
            raise UserError(f"--{name}: is missing: row and column of a free cell, such as --{name} 3,4")
        ends.append(_free(f"--{name}", _cell_of(f"--{name}", given, found), found.free))
    return ends[0], ends[1]


def _cell_of(option: str, given: Where, found: MapFile) -> Cell:
    if len(given) == 2:
        return given
    if found.place is None:
        raise UserError(f"{option}: metres are of ROS maps, which say where they lie; give row and column")
    from planners.robot import OccupancyGrid

    height, width = found.free.shape
    grid = OccupancyGrid(np.zeros((height, width), np.int8), found.place.resolution, found.place.origin)
    there = grid.cell((given[0], given[1]))
    if there is None:
        raise UserError(f"{option}: ({given[0]} m, {given[1]} m) is not on the map")
    return height - 1 - there[0], there[1]  # a robot's rows count from the lowest


def _free(option: str, cell: Cell, free: NDArray[np.uint8]) -> Cell:
    """Return a cell that is free; where it is not, say which near it is."""
    row, column = cell
    if not (0 <= row < free.shape[0] and 0 <= column < free.shape[1]):
        raise UserError(f"{option}: expected a cell of the {free.shape[0]} x {free.shape[1]} map, got {row},{column}")
    if not free[row, column]:
        others = np.argwhere(free)
        if not len(others):
            raise UserError(f"{option}: the map has no free cell; of a picture, see --threshold and --dark-is-free")
        near: list[Any] = others[np.abs(others - cell).sum(1).argmin()].tolist()
        raise UserError(f"{option}: {row},{column} is an obstacle; the nearest free cell is {near[0]},{near[1]}")
    return row, column


def _planner(options: argparse.Namespace) -> RoutePlanner:
    from orchestrator.api import load_planner as of_sweep
    from orchestrator.sweep.files import found
    from planners.inference import load_planner

    named = str(options.directory or PUBLISHED)
    if Path(sweep := found(named)).suffix in (".yaml", ".yml"):
        return of_sweep(sweep, only=options.only, storage=options.storage.path, profile=options.profile)
    refuse(options, ("only", "profile"), f"is for a sweep, and {named!r:.80} is none")
    storage: Storage = options.storage
    return load_planner(trial_folder(named, storage))
