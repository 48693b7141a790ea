"""Sweeps that share a name (profiles, `--set`, two files), none of which silently replaces another's documents."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from datagen.spec import digest
from orchestrator.storage.files import read_stored
from orchestrator.storage.layout import Storage, SweepFolder
from orchestrator.storage.results import write_json
from orchestrator.storage.suggestions import planned_trials
from orchestrator.sweep.specs import PlannedTrial, Resources, SweepSpec
from orchestrator.sweep.trial import however_launched

_OWNER = re.compile(r"([A-Za-z0-9=,._+-]{1,60}-)?[0-9a-f]{6}")
_NO_OTHER_NUMBERS: dict[str, Any] = {"description": "", "next": None, "figures": [], "resources": Resources()}


def every_trial(sweep: SweepSpec, storage: Storage) -> list[PlannedTrial]:
    """Return all trials of a sweep, those that a search has suggested so far included."""
    return planned_trials(sweep, storage)[0]


def variant(sweep: SweepSpec) -> str:
    """Return six digits that tell sweeps of one name apart: another budget makes another, more seeds do not."""
    planners = {
        name: entry.model_copy(update={"grid": _without_seeds(entry.grid)}) for name, entry in sweep.planners.items()
    }
    tasks = [
        {**task, "grid": _without_seeds(task["grid"])} if isinstance(task.get("grid"), dict) else task
        for task in sweep.tasks
    ]
    execution = however_launched(sweep.execution)
    same = {"planners": planners, "tasks": tasks, "grid": _without_seeds(sweep.grid), "execution": execution}
    return digest(sweep.model_copy(update={**_NO_OTHER_NUMBERS, **same}), 6)


def _without_seeds(grid: dict[str, Any]) -> dict[str, Any]:
    return {axis: values for axis, values in grid.items() if axis != "seed"}


def _owner(sweep: SweepSpec) -> str:
    """Return what tells a sweep's documents from those of others, with words for people: "smoke-1a2b3c"."""
    words = _plain(sweep.label)[:60]
    return f"{words}-{variant(sweep)}" if words else variant(sweep)


def _plain(words: str) -> str:
    return re.sub(r"[^A-Za-z0-9=,._+-]+", "_", words)


def make_way(sweep: SweepSpec, storage: Storage, name: str) -> Path | None:
    """Keep what another variant of the sweep left at `sweeps/NAME/name`, and note that it is now this one's.

    Args:
        sweep: The sweep that is about to write there.
        storage: The storage directory.
        name: A file or a folder of the sweep.

    Returns:
        Where the other's is now; None where there was none.
    """
    folder, own = storage.sweep(sweep.name), _owner(sweep)
    path, owners = folder.path / name, _owners(folder)
    other, kept = owners.get(name), None
    if other is not None and not _same(other, own) and path.exists():
        kept = path.with_name(f"{path.stem}-{other}{path.suffix}")
        if kept.is_dir():
            shutil.rmtree(kept)  # what it has is older
        path.replace(kept)
    if other != own:
        write_json(folder.variants, {**owners, name: own})
    return kept


def is_of(sweep: SweepSpec, storage: Storage, name: str) -> bool:
    """Return whether `sweeps/NAME/name` is this variant's, as far as is noted."""
    owner = _owners(storage.sweep(sweep.name)).get(name)
    return owner is None or _same(owner, variant(sweep))


def _same(one: str, other: str) -> bool:
    return one[-6:] == other[-6:]


def folder_of_selection(sweep: SweepSpec, storage: Storage, chosen: str) -> Path:
    """Return where the documents of `--only` go: beside the whole sweep's, not over them."""
    return storage.sweep(sweep.name).selection(f"{variant(sweep)}-{_plain(chosen)[:100]}")


def _owners(folder: SweepFolder) -> dict[str, str]:
    try:
        found = json.loads(read_stored(folder.variants))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    # They become parts of names.
    return {name: own for name, own in found.items() if isinstance(own, str) and _OWNER.fullmatch(own)}
