"""The paper's figures, redrawn from what the trials left behind; pure functions from runs to figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from datagen.spec import nearest
from orchestrator.figures.measures import cost, detours, lengths
from orchestrator.figures.metrics import epochs, metrics
from orchestrator.figures.parts import NothingToDraw, TrialRecords
from orchestrator.figures.published import SOURCE
from orchestrator.figures.search import history, importances, intermediate, slices
from orchestrator.figures.solvers import backward, jacobian, residuals, solvers
from orchestrator.figures.style import PAGE_WIDTH_INCHES, Picture, style, write_picture
from orchestrator.figures.success import curves, distance, generalisation, runtime, seconds, success
from orchestrator.sweep.search_space import SearchSpec
from orchestrator.sweep.specs import SweepSpec
from orchestrator.tables.studies import Study, best_runs, studies_of

K_ARE_DIFFERENT = (
    "K of an unrolled planner (dashed, open markers) is its number of layers, K of an implicit one (solid, filled) the "
    "budget of its forward solver: equal K are not equal things (section 4.3)."
)


def write_figures(
    sweep: SweepSpec,
    runs: TrialRecords,
    folder: Path,
    format: Picture,
    width: float = PAGE_WIDTH_INCHES,
    before: Callable[[], object] = lambda: None,
) -> tuple[list[Path], dict[str, str]]:
    """Draw the sweep's figures into `folder`.

    Args:
        sweep: The sweep.
        runs: Its trials with all that they left behind.
        folder: Where to.
        format: Kind of the files.
        width: Inches.
        before: Is called once there is something to write, before that is done.

    Returns:
        The files, and by name of a figure why it was left out.

    Raises:
        NothingToDraw: When there is nothing to draw at all.
    """
    drawn: dict[str, Figure] = {}
    skipped: dict[str, str] = {}
    for name in figures_of(sweep):
        try:
            drawn[name] = draw(name, runs, width, sweep.search)
        except NothingToDraw as error:
            skipped[name] = str(error)
    if not drawn:
        raise NothingToDraw("; ".join(skipped.values()))
    before()
    written = []
    for name, figure in drawn.items():
        written.append(folder / f"{sweep.name}-{name}.{format}")
        with style():
            write_picture(figure, written[-1])
    return written, skipped


def figures_of(sweep: SweepSpec) -> list[str]:
    """Return the names of the sweep's figures.

    Raises:
        NothingToDraw: When it names one that does not exist.
    """
    systems = any(entry.is_system for entry in sweep.planners.values())
    usual = OF_SYSTEMS if systems else DEFAULT_FIGURES if sweep.search is None else SEARCH_FIGURES
    names, every = sweep.figures or list(usual), [*FIGURES, *SEARCH_FIGURES]
    for name in names:
        if name not in every:
            raise NothingToDraw(f"figures: unknown name {name!r}; {nearest(name, every)}")
    return names


@dataclass(frozen=True)
class Drawing:
    """One line of the registry of figures.

    Attributes:
        draw: From runs and a width in inches to the figure.
        title: What it shows, in a few words.
        caption: What a reader must know to read it.
    """

    draw: Callable[[TrialRecords, float], Figure]
    title: str
    caption: str


@dataclass(frozen=True)
class SearchDrawing:
    """One line of the registry of figures of a search.

    Attributes:
        draw: From a search, what it has found and a width in inches to the figure.
        title: What it shows, in a few words.
        caption: What a reader must know to read it.
    """

    draw: Callable[[SearchSpec, Sequence[Study], float], Figure]
    title: str
    caption: str


def draw(name: str, runs: TrialRecords, width: float = PAGE_WIDTH_INCHES, search: SearchSpec | None = None) -> Figure:
    """Return the figure `name` of `FIGURES`, or of `SEARCH_FIGURES`.

    Args:
        name: Of the figure.
        runs: The sweep's trials with all that they left behind.
        width: Inches.
        search: Of a sweep with one: other figures are then of its best settings alone.

    Raises:
        NothingToDraw: When no trial has what it shows.
    """
    studies = studies_of(search, runs) if search is not None else []
    if name in SEARCH_FIGURES:
        if search is None:
            raise NothingToDraw(f"{name}: the sweep has no search")
        with style():
            return SEARCH_FIGURES[name].draw(search, studies, width)
    systems = name in OF_SYSTEMS
    kept = runs if search is None else best_runs(studies, runs)
    shown = [run for run in kept if (run.trial.spec.system is not None) == systems]
    if kept and not shown:
        raise NothingToDraw(f"{name}: is a figure of {'systems' if systems else 'planners'}, and the sweep has none")
    with style():
        return FIGURES[name].draw(shown, width)


def drawing(name: str) -> Drawing | SearchDrawing:
    """Return the line of the registry."""
    return SEARCH_FIGURES[name] if name in SEARCH_FIGURES else FIGURES[name]


FIGURES: dict[str, Drawing] = {
    "success": Drawing(
        success,
        "Success rate over K",
        "Mean and standard deviation over seeds, one faint dot per seed. A cross below the axis: out of memory. "
        + K_ARE_DIFFERENT,
    ),
    "runtime": Drawing(
        runtime,
        "Runtime of forward and backward pass",
        "Median milliseconds of a training step, mean and deviation over seeds, log scale. A missing dot ran out of "
        "memory. " + K_ARE_DIFFERENT,
    ),
    "curves": Drawing(
        curves,
        "Training curves",
        "Success rate on the validation maps after each epoch, mean over seeds in a band of one standard deviation.",
    ),
    "seconds": Drawing(
        seconds,
        "Success against training time",
        "The same success rates over the seconds that training took (validation excluded), so that a cheaper planner "
        "stands further left.",
    ),
    "residuals": Drawing(
        residuals,
        "Convergence of the two fixed-point solves",
        "Relative residual ||f(v) - v|| / ||f(v)|| after each step on test maps, after training, median over maps, for "
        "each planner's largest K (and last value on any further axis); what is smaller than 1e-12, as an exact 0 is, "
        "stands there. Unrolled planners solve no adjoint system.",
    ),
    "generalisation": Drawing(
        generalisation,
        "Generalisation to larger maps",
        "Success rate of planners that were trained on small maps, on unseen larger ones; mean and deviation over "
        "seeds. " + K_ARE_DIFFERENT,
    ),
    "backward": Drawing(
        backward,
        "Backward time over backward iterations",
        "Median milliseconds of the backward pass of a training step, mean and deviation over seeds.",
    ),
    "solvers": Drawing(
        solvers,
        "Success by solver of either pass",
        "Mean and standard deviation over seeds.",
    ),
    "jacobian": Drawing(
        jacobian,
        "Jacobian regularisation",
        "Success rate with a penalty on the Jacobian's Frobenius norm, by weight and share of the steps that add it; "
        "dashed: without.",
    ),
    "distance": Drawing(
        distance,
        "Success by length of the shortest path",
        "Share of all starts of the test maps that arrive, by the cost of their shortest path; mean and deviation over "
        "seeds.",
    ),
    "lengths": Drawing(
        lengths,
        "Success by length of the shortest path, to the longest",
        "Share of all starts of all further maps that arrive, by the cost of their shortest path; mean and deviation "
        "over seeds.",
    ),
    "detours": Drawing(
        detours,
        "Success by the way round that a wall saves",
        "Share of all starts of all further maps that arrive, by how much shorter their path would be without a wall "
        "beside them: a planner to which a wall is only a price walks through it; mean and deviation over seeds.",
    ),
    "cost": Drawing(
        cost,
        "Whole paths that are right, against parameters and operations",
        "Share of maps whose whole path from one start is a shortest one; mean and deviation over seeds; planners with "
        f"equally many stand side by side. Crosses: as published for {SOURCE}, trained on its 1,000 training mazes and "
        "tested on its test split, where ours is tested on mazes of that kind; their operations were not published. "
        "Operations: those of encoder, K steps and policy.",
    ),
    "metrics": Drawing(
        metrics,
        "Metrics of the tests",
        "Mean and standard deviation over seeds, one faint dot per seed, of each number on the test samples.",
    ),
    "epochs": Drawing(
        epochs,
        "Metrics over training",
        "Numbers of each epoch, mean over seeds in a band of one standard deviation.",
    ),
}


_MARKS = "Orange: the best of those that were trained to the end; hollow or dashed: stopped early. Validation maps."
SEARCH_FIGURES: dict[str, SearchDrawing] = {
    "history": SearchDrawing(
        history,
        "History of the search",
        "What is searched for, of each suggestion in the order in which they were made, and the best so far. " + _MARKS,
    ),
    "importances": SearchDrawing(
        importances,
        "Importance of the settings",
        "The share of the variance of what is searched for that each setting explains (fANOVA).",
    ),
    "slices": SearchDrawing(slices, "Slices", "What is searched for, over each setting. " + _MARKS),
    "intermediate": SearchDrawing(
        intermediate,
        "Intermediate values",
        "What is searched for after each epoch, a line for each suggestion. " + _MARKS,
    ),
}


DEFAULT_FIGURES = ("success", "curves", "distance", "seconds")
"""What a sweep shows that does not say."""

OF_SYSTEMS = ("metrics", "epochs")
"""The figures of systems, all of which a sweep of systems shows that does not say; the others are planners'."""
