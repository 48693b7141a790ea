"""The paper's own numbers beside ours."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestrator.sweep.specs import Scalar
from orchestrator.tables.freshness import is_present
from orchestrator.tables.records import TrialRecord, grouped, percents_of, planner_of, usable
from orchestrator.tables.statistics import Difference, Sample, sample, welch
from orchestrator.words import counted
from planners.registry import CORES
from planners.specs import PlannerSpec, TrainingSpec

MOST_LISTED = 6


@functools.cache
def paper() -> dict[str, Any]:
    """Return what the paper prints, from the data file beside this module."""
    content: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "paper.yaml").read_text(encoding="utf-8"))
    return content


def printed(planner: PlannerSpec, task: str, map_size: int) -> Sample | None:
    """Return the paper's Table 1 entry for a planner and a task, None where it has none.

    A planner with other sizes or solvers than the paper's has none.
    """
    table = paper()["table1"]
    column = {"task": task, "map_size": map_size}
    if column not in table["columns"] or not _is_the_papers(planner):
        return None
    for row in table["rows"]:
        if (row["core"], row["adjoint"]) == (planner.core, planner.adjoint):
            mean, deviation = row["success"][table["columns"].index(column)]
            return Sample(mean, deviation, table["trials"])
    return None


def _is_the_papers(planner: PlannerSpec) -> bool:
    plain = PlannerSpec(core=planner.core, adjoint=planner.adjoint)
    fields = ("solver", "solver_bwd", "k_bwd", "adjoint_options", "solver_options", "solver_bwd_options")
    return _plain_sizes(planner) and all(getattr(planner, field) == getattr(plain, field) for field in fields)


@dataclass(frozen=True)
class Entry:
    """One cell of the paper's Table 1 beside ours, all K and seeds together.

    Attributes:
        planner: Name of the planner in the sweep, with its place on further axes than K and the seed.
        task: Name of the task.
        map_size: Rows of the map.
        paper: The printed numbers.
        ours: Ours, None where no trial is completed.
        expected: Trials of the sweep in this cell.
        diverged: How many of ours are under 20 %.
        out_of_memory: How many ran out of memory.
        stale: True where ours are of other code than the present.
        difference: Ours minus the paper's with a 95 % interval (Welch); None without ours.
    """

    planner: str
    task: str
    map_size: int
    paper: Sample
    ours: Sample | None
    expected: int
    diverged: int
    out_of_memory: int
    stale: bool
    difference: Difference | None


def beside_paper(runs: Sequence[TrialRecord]) -> list[Entry]:
    """Return the entries of Table 1 that the sweep has, in its order; empty where it has none."""
    entries = []
    # Of a planner's trials each once: one that two spellings of an axis list is one entry, and no further seed.
    each = {(run.axis("planner"), run.trial.trial_id): run for run in reversed(runs)}
    for (planner, task, size), members in grouped(list(each.values())[::-1], _cell).items():
        spec = members[0].trial.spec
        theirs = None if spec.system else printed(spec.planner, str(task), int(str(size)))
        if theirs is None:
            continue
        done = usable(members)
        ours = sample(percents_of(done))
        entries.append(
            Entry(
                planner=str(planner),
                task=str(task),
                map_size=int(str(size)),
                paper=theirs,
                ours=ours,
                expected=len(members),
                diverged=sum(bool(run.result and run.result.trial_diverged) for run in done),
                out_of_memory=sum(run.out_of_memory for run in members),
                stale=any(run.result is not None and not is_present(run.result.provenance) for run in done),
                difference=None if ours is None else welch(ours, theirs),
            )
        )
    return entries


def _cell(run: TrialRecord) -> tuple[Scalar, Scalar, Scalar]:
    return planner_of(run), run.axis("task"), run.axis("map_size")


def scale_differences(runs: Sequence[TrialRecord]) -> list[str]:
    """Return in what the sweep is smaller than, or otherwise not, the paper's scale, in words; empty where it is.

    Only the paper's planners on its tasks count: what is in no paper need not be trained as the paper's are.
    """
    scale = paper()["scale"]
    specs = [
        run.trial.spec
        for run in runs
        if run.trial.spec.planner.core in scale["cores"] and run.trial.spec.data.task in scale["tasks"]
    ]
    if not specs:
        return []
    words = []
    for split, count in scale["maps"].items():
        counts = sorted({int(getattr(spec.data, split)) for spec in specs})
        if counts != [count]:
            words.append(f"{_list(counts)} {split} maps, not {count:,}")
    plain = TrainingSpec()
    for field in TrainingSpec.model_fields:
        values = {getattr(spec.training, field) for spec in specs} - {getattr(plain, field)}
        if values and not field.startswith("jacobian"):
            usual = getattr(plain, field)
            instead = "" if usual is None else f", not {usual}"
            words.append(f"training.{field} {_list(_in_order(values))}{instead}")
    seeds = len({spec.seed for spec in specs})
    if seeds != scale["seeds"]:
        words.append(f"{counted(seeds, 'seed')}, not {scale['seeds']}")
    ks = paper()["table1"]["k"]
    used = sorted({spec.planner.k_fwd for spec in specs})
    if beside_paper(runs) and used != ks:
        words.append(f"K {_list(used)}, not {_list(ks)}")
    if any(not _plain_sizes(spec.planner) for spec in specs):
        words.append("other layer sizes than the paper's")
    return words


def _plain_sizes(planner: PlannerSpec) -> bool:
    return planner.options == CORES[planner.core].options_type()


def _list(values: Sequence[Any]) -> str:
    if len(values) > MOST_LISTED:  # a search has as many as suggestions
        return f"{len(values)} values from {values[0]} to {values[-1]}"
    return "/".join(f"{value:,}" if isinstance(value, int) else str(value) for value in values)


def _in_order(values: set[Any]) -> list[Any]:
    """Return values in order: numbers by size, what can't be compared by its letters."""
    numbers = all(isinstance(value, int | float) for value in values)
    return sorted(values) if numbers else sorted(values, key=str)
