"""Success in the paper's own layout: planners down, problems across, the best of each column marked."""

from __future__ import annotations

import re
from collections.abc import Sequence

from orchestrator.sweep.specs import Scalar
from orchestrator.tables.records import TrialRecord, grouped, once, percents_of, planner_of, usable
from orchestrator.tables.statistics import Sample, sample
from orchestrator.tables.table import MISSING, Cell, Look, Table
from orchestrator.words import counted

_WORDS = {
    "id": "ID",
    "vin": "VIN",
    "symvin": "SymVIN",
    "convgppn": "ConvGPPN",
    "conv_gppn": "ConvGPPN",
    "gppn": "GPPN",
    "spt": "SPT",
}
_TASKS = {
    "navigation": "Navigation",
    "mazes": "Mazes",
    "maze_unique": "Maze-Unique",
    "manipulation": "Mani.",
    "workspace_manipulation": "Workspace Mani.",
    "visual_navigation": "Visual Nav.",
}


def in_print(name: str) -> str:
    """Return a planner's name as papers print it: "id-vin" is ID-VIN; words that are nobody's name stay."""
    return re.sub(r"[A-Za-z_]+", lambda word: _WORDS.get(word[0].lower(), word[0]), name)


def problem_in_print(task: Scalar, size: Scalar) -> str:
    """Return a task and its size as the paper prints them, "18x18 Mani."."""
    return f"{size}x{size} {_TASKS.get(str(task), str(task))}"


def layout_table(runs: Sequence[TrialRecord]) -> Table | None:
    """Return the table, of one problem across K; None where there is nothing to lay out.

    The mean of a cell is over seeds, and over K where there are several problems, as in the paper's Table 1.

    Args:
        runs: The trials of a sweep.
    """
    if any(run.trial.spec.system is not None for run in runs):
        return None  # what systems are judged by has no one word
    problems = grouped(runs, _problem)
    ks = sorted({int(str(run.axis("k"))) for run in runs})
    rows = grouped(runs, planner_of)
    if len(rows) < 2:
        return None
    one_each = all(len({run.axis("k") for run in members}) == 1 for members in rows.values())
    across = _problem if len(problems) > 1 or one_each else _k
    columns = list(grouped(runs, across))
    cells: dict[tuple[str, str], list[TrialRecord]] = {}
    for run in runs:
        cells.setdefault((planner_of(run), across(run)), []).append(run)
    samples = {place: sample(percents_of(usable(members))) for place, members in cells.items()}
    lines = []
    for name in rows:
        line = [Cell(in_print(name))]
        for column in columns:
            place = name, column
            line.append(_cell(samples.get(place), cells.get(place, []), _best(samples, column)))
        lines.append(line)
    planned = {place: len(once(members)) for place, members in cells.items()}
    fewer = sum(one is None or one.n < planned[place] for place, one in samples.items())
    lacking = f"; {fewer} of {counted(len(samples), 'cell')} of fewer trials than planned" if fewer else ""
    over = "seeds and K" if across is _problem and len(ks) > 1 and not one_each else "seeds"
    where = "" if across is _problem else f" on {next(iter(problems))}"
    marks = "the best in bold, in italics where a trial is under 20 %"
    title = f"Success rate (%){where}, mean ± std over {over}; {marks}{lacking}"
    return Table.of("layout", title, ["planner", *columns], lines)


def _problem(run: TrialRecord) -> str:
    return problem_in_print(run.axis("task"), run.axis("map_size"))


def _k(run: TrialRecord) -> str:
    return f"K = {run.axis('k')}"


def _best(samples: dict[tuple[str, str], Sample | None], column: str) -> str:
    """Return the largest mean of a column, as it is written."""
    means = [one.mean for (_, where), one in samples.items() if where == column and one is not None]
    return f"{max(means):.1f}" if len(means) > 1 else ""


def _cell(ours: Sample | None, members: Sequence[TrialRecord], best: str) -> Cell:
    if ours is None:
        return Cell("OOM" if any(run.out_of_memory for run in members) else MISSING)
    diverged = any(run.result is not None and run.result.trial_diverged for run in usable(members))
    look: dict[tuple[bool, bool], Look] = {(True, True): "bold italic", (True, False): "bold", (False, True): "italic"}
    return Cell(str(ours), look.get((f"{ours.mean:.1f}" == best, diverged), ""))
