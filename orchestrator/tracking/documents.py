"""What a sweep's run in MLflow carries as artifacts: the plan, the table, the figures and the report."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from datagen.tasks.registry import dataset_id
from orchestrator.storage.layout import Storage
from orchestrator.storage.results import write_bytes, write_json
from orchestrator.storage.variants import is_of
from orchestrator.sweep.specs import SweepSpec
from orchestrator.tables.records import TrialRecord

_LONGEST = 4900
"""Signs of a description: of a tag of MLflow's."""


def digest_of_documents(sweep: SweepSpec, runs: Sequence[TrialRecord]) -> str:
    """Return what changes whenever one of the documents does, without making them."""
    parts = [sweep.model_dump_json()]
    for run in runs:
        parts += [run.trial.trial_id, run.result.model_dump_json() if run.result else ""]
        parts += [test.model_dump_json() for test in run.evaluations]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def write_documents(sweep: SweepSpec, runs: Sequence[TrialRecord], storage: Storage, folder: Path) -> None:
    """Write plan.json, table.md, table.csv, report.html and figures/*.png into `folder`.

    Args:
        sweep: The sweep.
        runs: Its trials with all that they left behind.
        storage: The storage directory; its report is taken where it is as new as the results.
        folder: An empty folder.
    """
    # Drawing is imported here: a sweep whose MLflow does not answer needs none of it.
    from orchestrator.figures.parts import NothingToDraw
    from orchestrator.figures.registry import write_figures
    from orchestrator.report.page import encoded, report
    from orchestrator.tables.formats import render
    from orchestrator.tables.summary import summarise

    write_json(folder / "plan.json", _plan(sweep, runs))
    summary = summarise(sweep.name, runs, search=sweep.search)
    write_bytes(folder / "table.md", render(summary, "md").encode())
    write_bytes(folder / "table.csv", render(summary, "csv").encode())
    kept = storage.sweep(sweep.name).report
    if kept.exists() and is_of(sweep, storage, kept.name) and kept.stat().st_mtime >= _newest(runs, storage):
        shutil.copyfile(kept, folder / "report.html")
    else:
        write_bytes(folder / "report.html", encoded(report(sweep, runs)))
    try:
        write_figures(sweep, runs, folder / "figures", "png")
    except NothingToDraw as error:
        # The report says so too, in the figure's place.
        write_bytes(folder / "figures" / "none.txt", f"{error}\n".encode())


def said_of(sweep: SweepSpec, runs: Sequence[TrialRecord]) -> str:
    """Return what the sweep's run says of itself, in Markdown: its question and its table, as far as there is room."""

    from orchestrator.tables.formats import render
    from orchestrator.tables.summary import summarise

    table = render(summarise(sweep.name, runs, search=sweep.search), "md")
    parts = [sweep.description.strip(), *table.split("\n\n")[1:]]
    # The tables first: MLflow shows the beginning alone until it is asked for the rest.
    parts.sort(key=lambda part: not part.startswith(("|", "#")))
    lines = "\n\n".join(part for part in parts if part).splitlines(keepends=True)
    said, taken = "", 0
    while taken < len(lines) and len(said) + len(lines[taken]) <= _LONGEST:
        said += lines[taken]
        taken += 1
    return said if taken == len(lines) else f"{said}\nThe rest is in the artifact table.md.\n"


def _newest(runs: Sequence[TrialRecord], storage: Storage) -> float:
    paths = (storage.trial(run.trial.trial_id).result_file for run in runs if run.result)
    return max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)


def _plan(sweep: SweepSpec, runs: Sequence[TrialRecord]) -> dict[str, object]:
    specs = {run.trial.trial_id: run.trial.spec for run in runs}
    return {
        "sweep": json.loads(sweep.model_dump_json()),
        "datasets": list(dict.fromkeys(dataset_id(spec.data) for spec in specs.values())),
        "trials": [
            {
                "trial_id": run.trial.trial_id,
                "axes": run.trial.axes,
                "spec": json.loads(run.trial.spec.model_dump_json(exclude_defaults=True)),
            }
            for run in runs
        ],
    }
