"""One problem drawn: map, distances, optimal actions, arm or views; with a planner its value, policy and paths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from datagen.options import ArmOptions
from datagen.problem import Moves, Problems
from datagen.storage import dataset as parquet
from datagen.tasks.registry import TASKS, DatasetSpec, Split
from orchestrator.figures import cells as grids
from orchestrator.figures.style import BLUE, MUTED, VERMILION, panels, style, write_picture
from orchestrator.storage.files import check_output
from orchestrator.storage.layout import Storage
from orchestrator.storage.results import ResultError, no_room
from orchestrator.trial.evaluate import MOST_STEPS, check_option

if TYPE_CHECKING:
    from orchestrator.trial.trained import Trained
    from planners.fixed_points import Solution
    from planners.planner import Plan

Field = NDArray[np.float32]
Actions = NDArray[np.int64]
Chosen = NDArray[np.bool_]

PANEL_INCHES = 2.45
PATHS = 6


def read_problem(dataset: Path, split: Split, index: int) -> tuple[DatasetSpec, Problems]:
    """Return what a dataset is, and its problem `index` of a split as a batch of one.

    Raises:
        DatasetError: The dataset is missing or altered.
        ResultError: It has no such problem, or is not one of maps.
    """
    manifest = parquet.load_manifest(dataset)
    if TASKS[manifest.spec.task].moves.links:
        raise ResultError(f"{dataset}: problems of task {manifest.spec.task!r} are graphs; pictures are of maps")
    count = manifest.rows(split)
    if not 0 <= index < count:
        raise ResultError(f"--index {index}: {dataset} has {count} {split} problems, numbered from 0")
    for part in parquet.read_shards(dataset, split):
        if index < len(part):
            return manifest.spec, part[index : index + 1]
        index -= len(part)
    raise AssertionError("the manifest counts its rows")


def write_dataset_picture(dataset: Path, split: Split, index: int, out: Path) -> None:
    """Draw a problem of a dataset into the file `out`."""
    check_picture(out)
    spec, problem = read_problem(dataset, split, index)
    with style():
        write_figure(problem_figure(spec, problem), out, "--out")


def check_picture(out: Path) -> None:
    """Raise ResultError for a file that no picture can be written to."""
    if out.suffix not in (".png", ".svg", ".pdf"):
        raise ResultError(f"--out {out}: expected a name ending in .png, .svg or .pdf")
    if out.is_dir():
        raise ResultError(f"--out {out}: is a folder")
    try:
        check_output(out)
    except ResultError as error:
        raise ResultError(f"--out {error}") from None


def write_figure(figure: Figure, out: Path, option: str) -> None:
    """Write a picture that the command line was asked for by that option."""
    try:
        write_picture(figure, out)
    except OSError as error:
        raise no_room(error, out) or ResultError(f"{option} {out}: {error.strerror or error}") from error


def problem_figure(spec: DatasetSpec, problem: Problems) -> Figure:
    """Return map, distances and optimal actions of a problem; before them what its observation or workspace shows."""
    moves = TASKS[spec.task].moves
    map_, goal, distance = problem.map[0], problem.goal[0], problem.distance[0]
    best = _bits(problem.optimal_actions[0], len(moves.names))
    titles = ["map, longest shortest path", "distance to the goal", "optimal actions"]
    titles = _scene_titles(problem) + titles
    figure, every = panels(titles, PANEL_INCHES * len(titles), height=PANEL_INCHES - 0.25, share_x=False, share_y=False)
    path = grids.roll_out(_farthest(distance), best.argmax(0), map_, goal, moves)
    if len(every) > 3:
        _scene(every[0], spec, problem, path)
    board, far, act = every[-3:]
    grids.board(board, map_)
    grids.trail(board, path, grids.ARRIVES)
    grids.heat(far, map_, distance, "steps", reverse=True)
    grids.board(act, map_)
    grids.arrows(act, best, moves)
    for axes in (board, far, act):
        grids.star(axes, goal)
    if isinstance(spec.options, ArmOptions):
        _name_joints((board, far, act))
    return figure


def _bits(mask: NDArray[np.uint8], actions: int) -> NDArray[np.bool_]:
    return ((mask[None] >> np.arange(actions)[:, None, None]) & 1).astype(bool)


def _farthest(distance: NDArray[np.float32]) -> tuple[int, int]:
    reachable = np.where(np.isfinite(distance), distance, -1)
    row, column = np.unravel_index(int(reachable.argmax()), distance.shape)
    return int(row), int(column)


def _name_joints(every: Any) -> None:
    for axes in every:
        axes.set_xlabel("second joint", fontsize=6.5)
    every[0].set_ylabel("first joint", fontsize=6.5)


def _scene_titles(problem: Problems) -> list[str]:
    if problem.obstacles is not None:
        return ["workspace, arm from start to goal"]
    seen = problem.observation
    if seen is None:
        return []
    if seen.ndim == 7:
        return ["views from the start"]
    # Files of other code bring images, and no polygons.
    return ["image that is seen"] if seen.ndim == 4 else []


def _scene(axes: Axes, spec: DatasetSpec, problem: Problems, path: grids.Path) -> None:
    """Draw what lies behind the map: the arm among its obstacles along a path, views from its start, or an image."""
    if problem.obstacles is not None:
        assert isinstance(spec.options, ArmOptions)
        grids.workspace(axes, problem.obstacles[0])
        shown = path.cells[np.unique(np.linspace(0, len(path.cells) - 1, 12).round().astype(int))]
        # From pale to strong along the path: the start is grey, the goal blue.
        shades = [mpl.colormaps["Blues"](0.25 + 0.6 * i / max(1, len(shown) - 1)) for i in range(len(shown))]
        shades[0] = mpl.colors.to_rgba(MUTED)
        grids.arm(axes, shown, spec.map_size, spec.options.inclusive_angles, shades)
        return
    assert problem.observation is not None
    if problem.observation.ndim == 4:
        image = problem.observation[0]
        shown = image.transpose(1, 2, 0) if len(image) == 3 else image[0]
        axes.imshow(shown, cmap="gray_r", interpolation="nearest")
        grids.bare(axes)
        return
    row, column = path.cells[0]
    views = problem.observation[0, row, column]
    grids.bare(axes)
    axes.set_box_aspect(1)
    names = [str(view) for view in getattr(spec.options, "views", ("north", "west", "south", "east"))]
    columns = 2
    for number, view in enumerate(views):
        x, y = number % columns, number // columns
        small = axes.inset_axes((0.02 + 0.5 * x, 0.52 - 0.5 * y, 0.46, 0.42))
        small.imshow(view, interpolation="nearest")
        small.set_title(names[number] if number < len(names) else str(number), fontsize=6.5, pad=2)
        grids.bare(small)


def write_trial_pictures(
    directory: Path,
    split: Split,
    index: int,
    out: Path,
    *,
    dataset: Path | None = None,
    k: int | None = None,
    frames: Path | None = None,
) -> None:
    """Draw what a trained planner makes of a problem.

    Args:
        directory: The trial directory, in its storage.
        split: Split of the problem.
        index: Its number there.
        out: The picture.
        dataset: Folder of the dataset; None is the one that the trial was trained on.
        k: Most forward steps; None is the planner's own number for maps of this size (`Trained.steps`).
        frames: Folder for a picture after each forward step; None draws none.

    Raises:
        ResultError: There is no trained planner, or no such problem.
        DatasetError: The dataset is missing or altered.
    """
    from orchestrator.trial.trained import load_trained

    check_picture(out)
    check_option("--k", k, MOST_STEPS)
    trained = load_trained(directory)
    folder = dataset or Storage(directory.resolve().parents[1]).dataset(trained.spec.data)
    if dataset is None and not folder.exists():  # as of weights that came without it
        raise ResultError(
            f"{directory}: what it was trained on, {folder.name}, is not here; --dataset names another set, --map a map"
        )
    spec, problem = read_problem(folder, split, index)
    if TASKS[spec.task].moves != trained.moves:
        raise ResultError(
            f"{directory}: trained for the moves of {trained.spec.data.task!r}, not those of {spec.task!r}"
        )
    if TASKS[spec.task].mapper != trained.spec.planner.mapper:
        raise ResultError(
            f"{directory}: the planner's mapper is {trained.spec.planner.mapper!r}, but {spec.task!r} needs "
            f"{TASKS[spec.task].mapper!r}"
        )
    with style():
        write_figure(plan_figure(trained, spec, problem, k), out, "--out")
        if frames is not None:
            for step, figure in enumerate(_frames(trained, spec, problem, k), 1):
                write_figure(figure, frames / f"step-{step:04d}.png", "--frames")


def plan_figure(trained: Trained, spec: DatasetSpec, problem: Problems, k: int | None = None) -> Figure:
    """Return map and paths, value and policy, which cells arrive, and how the solve converged."""
    from orchestrator.trial.trained import solve

    plan = solve(trained.planner, problem, k or trained.steps(max(problem.map.shape[1:])), trained.moves)
    solution, (value, actions) = plan.solution, _value_and_actions(plan)
    scene = _scene_titles(problem)
    titles = [*scene, "paths of the policy", _value_title(solution.value.shape[1]), "starts that arrive", "convergence"]
    figure, every = panels(titles, PANEL_INCHES * len(titles), height=PANEL_INCHES, share_x=False, share_y=False)
    moves, map_, goal, distance = TASKS[spec.task].moves, problem.map[0], problem.goal[0], problem.distance[0]
    arrives = _arrivals(actions, problem, moves)
    best = _bits(problem.optimal_actions[0], len(moves.names))
    paths = [grids.roll_out(start, actions, map_, goal, moves) for start in _starts(distance, arrives)]
    if scene:
        _scene(every[0], spec, problem, grids.roll_out(_farthest(distance), best.argmax(0), map_, goal, moves))
    board, values, fates, residuals = every[-4:]
    grids.board(board, map_)
    for path in paths:
        grids.trail(board, path, grids.ARRIVES if path.arrives else grids.LOST, dashed=not path.arrives)
    _draw_values(values, problem, value, actions, best, moves)
    _draw_fates(fates, problem, arrives)
    for axes in (board, values, fates):
        grids.star(axes, goal)
    reachable = np.isfinite(distance)
    found = f"{arrives[reachable].sum()} of {reachable.sum()} starts arrive (blue)"
    fates.set_xlabel(found, fontsize=6.5)
    handles = [
        Line2D([], [], color=grids.ARRIVES, marker="o", markerfacecolor="white", label="arrives"),
        Line2D([], [], color=grids.LOST, marker="o", markerfacecolor="white", linestyle="--", label="cycles or bumps"),
    ]
    board.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, fontsize=6, columnspacing=1)
    draw_residuals(residuals, _trace(solution), trained.spec.planner.tolerance)
    return figure


def _value_title(channels: int) -> str:
    return "value and policy" if channels == 1 else f"|value| over {channels} channels, policy"


def _value_and_actions(plan: Plan) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    v = plan.solution.value
    value = v[0, 0] if v.shape[1] == 1 else v[0].norm(dim=0)
    return value.numpy(), plan.logits[0].argmax(0).numpy()


def _arrivals(actions: NDArray[np.int64], problem: Problems, moves: Moves) -> NDArray[np.bool_]:
    import torch

    from planners.training.rollout import follow

    arrived, _ = follow(
        torch.from_numpy(actions[None]),
        torch.from_numpy(problem.map).bool(),
        torch.from_numpy(problem.goal).long(),
        moves,
    )
    result: NDArray[np.bool_] = arrived[0].numpy() & np.isfinite(problem.distance[0])
    return result


def _starts(distance: NDArray[np.float32], arrives: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return cells to start from: near, far and between, half of them lost ones where there are any."""
    chosen: list[tuple[int, int]] = []
    fates = [np.argwhere(np.isfinite(distance) & (distance > 0) & (arrives == fate)) for fate in (False, True)]
    share = PATHS // 2 if all(map(len, fates)) else PATHS - 1
    for cells in fates:
        if len(cells):
            ordered = cells[np.argsort(distance[tuple(cells.T)], kind="stable")]
            places = np.linspace(0.45, 1, min(share, len(ordered))) * (len(ordered) - 1)
            chosen += [(int(row), int(column)) for row, column in ordered[places.round().astype(int)]]
    return chosen


def _draw_values(axes: Axes, problem: Problems, value: Field, actions: Actions, best: Chosen, moves: Moves) -> None:
    map_ = problem.map[0]
    grids.heat(axes, map_, value, "value, high near the goal")
    away = problem.optimal_actions[0] > 0
    right = np.take_along_axis(best, actions[None], 0)[0]
    chosen = (actions[None] == np.arange(len(moves.names))[:, None, None]) & away
    scale = _scaled(value, away)
    # Light arrows on dark cells; a wrong action is orange on both.
    colours = np.where(right, np.where(scale < 0.55, "#ffffff", "#1d1f24"), VERMILION)
    grids.arrows(axes, chosen, moves, colours)
    label = "orange arrows: not an optimal action" if grids.arrows_show(map_.shape) else "too many cells for arrows"
    axes.set_xlabel(label, fontsize=6.5)


def _scaled(value: NDArray[np.float32], where: NDArray[np.bool_]) -> Field:
    low, high = (float(value[where].min()), float(value[where].max())) if where.any() else (0.0, 1.0)
    return (value - low) / max(high - low, 1e-12)


def _draw_fates(axes: Axes, problem: Problems, arrives: NDArray[np.bool_]) -> None:
    map_, reachable = problem.map[0], np.isfinite(problem.distance[0])
    grids.board(axes, map_)
    fate = np.full((*map_.shape, 4), 0.0)
    fate[reachable & arrives] = mpl.colors.to_rgba(grids.ARRIVES, 0.55)
    fate[reachable & ~arrives] = mpl.colors.to_rgba(grids.LOST, 0.75)
    axes.imshow(fate, interpolation="nearest")
    grids.crosses(axes, reachable & ~arrives)


def _trace(solution: Solution) -> list[float]:
    assert solution.trace is not None, "the solver was told to record"
    found: list[float] = solution.trace[: int(solution.steps[0]), 0].tolist()
    return found


def draw_residuals(axes: Axes, trace: Sequence[float], tolerance: float) -> None:
    """Draw the residual after each step of a solve."""
    steps = len(trace)
    x = np.arange(1, len(trace) + 1)
    axes.semilogy(x, np.maximum(trace, 1e-12), color=BLUE)
    if tolerance > 0:
        axes.axhline(tolerance, color=MUTED, linewidth=0.7, linestyle=(0, (2, 2)))
        axes.text(1, tolerance, "tolerance", fontsize=6, color=MUTED, va="bottom")
    axes.set_box_aspect(1)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axes.set_xlabel(f"step of the forward solve ({steps} used)", fontsize=6.5)
    axes.set_ylabel("relative residual", fontsize=6.5)


def _frames(trained: Trained, spec: DatasetSpec, problem: Problems, k: int | None) -> Iterator[Figure]:
    """Yield a figure for each step: value and policy, who arrives, residual so far."""
    from orchestrator.trial.trained import solve

    last = k or trained.steps(max(problem.map.shape[1:]))
    moves, best = TASKS[spec.task].moves, _bits(problem.optimal_actions[0], len(TASKS[spec.task].moves.names))
    for step in range(1, last + 1):
        # Solved again from the start for each frame: the same for every solver, and a single problem is cheap.
        plan = solve(trained.planner, problem, step, trained.moves)
        solution, (value, actions) = plan.solution, _value_and_actions(plan)
        arrives = _arrivals(actions, problem, moves)
        titles = [f"step {step}: value and policy", "starts that arrive", "convergence"]
        figure, (left, middle, right) = panels(
            titles, 3 * PANEL_INCHES, height=PANEL_INCHES - 0.25, share_x=False, share_y=False
        )
        _draw_values(left, problem, value, actions, best, moves)
        _draw_fates(middle, problem, arrives)
        for axes in (left, middle):
            grids.star(axes, problem.goal[0])
        draw_residuals(right, _trace(solution), trained.spec.planner.tolerance)
        right.set_xlim(0.5, last + 0.5)
        right.set_ylim(1e-6, 3)
        yield figure
        if int(solution.steps[0]) < step:
            break
