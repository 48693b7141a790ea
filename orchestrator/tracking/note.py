"""What MLflow has been sent, in a note beside the sweep: it only saves asking, so losing it loses nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.storage.files import read_stored
from orchestrator.storage.layout import Storage
from orchestrator.storage.results import TrialResult, write_json
from orchestrator.storage.variants import variant
from orchestrator.sweep.specs import SweepSpec
from orchestrator.tracking.comparison import address_of
from orchestrator.tracking.store import knows_experiment


def unsent(storage: Storage, sweep: str, uri: str, results: Mapping[str, TrialResult]) -> list[str]:
    """Return the trials whose result MLflow has not been sent; asks no server."""
    sent = _sent(_read_note(storage, sweep, uri))
    return [trial_id for trial_id, result in results.items() if sent.get(trial_id) != result_digest(result)]


def write_sent(
    storage: Storage, sweep: SweepSpec, uri: str, experiment: str, sent: Mapping[str, str], *, compared: bool
) -> None:
    """Note what MLflow has been sent, and where to; of an experiment that is there no more, nothing is kept.

    Args:
        storage: The storage directory.
        sweep: The sweep.
        uri: MLflow's store.
        experiment: MLflow's id of the experiment.
        sent: Digests of results by trial.
        compared: Whether it has the means, and the page that compares them.
    """
    old = _read_note(storage, sweep.name, uri)
    old = old if old.get("experiment") == experiment else {}
    pages = old.get("compared")
    pages = dict.fromkeys([*(pages if isinstance(pages, list) else []), *([variant(sweep)] if compared else [])])
    note = {"experiment": experiment, "compared": list(pages), "sent": {**_sent(old), **sent}}
    write_json(note_path(storage, sweep.name, uri), note)


def result_digest(result: TrialResult) -> str:
    """Return what tells one result from another."""
    return hashlib.sha256(result.model_dump_json().encode()).hexdigest()[:16]


def page_of(storage: Storage, sweep: SweepSpec, uri: str) -> str:
    """Return the path and fragment of the sweep's page below MLflow's address; "" where MLflow never answered.

    It compares the sweep's cells, where MLflow has been sent the means of this variant of it.
    """
    note = _read_note(storage, sweep.name, uri)
    if not note.get("experiment"):
        return ""
    own, compared = variant(sweep), note.get("compared")
    return address_of(note["experiment"], own if isinstance(compared, list) and own in compared else None)


def note_path(storage: Storage, sweep: str, uri: str) -> Path:
    """Return where the note is; its name has a digest of the address, which may hold a password."""
    return storage.sweep(sweep).shown(hashlib.sha256(uri.encode()).hexdigest()[:12])


def _read_note(storage: Storage, sweep: str, uri: str) -> dict[str, Any]:
    try:
        note = json.loads(read_stored(note_path(storage, sweep, uri)))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(note, dict) or not isinstance(note.get("experiment"), str):
        return {}
    return note if knows_experiment(uri, note["experiment"], sweep) else {}


def _sent(note: Mapping[str, Any]) -> dict[str, str]:
    sent = note.get("sent")
    return sent if isinstance(sent, dict) else {}
