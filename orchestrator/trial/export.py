"""A trained planner as a folder to hand on: its weights as safetensors, its spec, and a model card."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datagen.storage.dataset import load_manifest
from datagen.storage.manifest import DatasetError
from orchestrator.storage.evaluations import read_evaluation
from orchestrator.storage.files import ResultError, write_bytes
from orchestrator.storage.layout import Storage
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.trial.trained import Trained, load_trained
from planners.certificate import certify
from planners.published import CARD_FILE, MODEL_FILE, model_bytes
from planners.trial_files import SPEC_FILE, STEPS_FILE, read_json

OWN = {SPEC_FILE, MODEL_FILE, CARD_FILE, STEPS_FILE}
"""What such a folder may hold, so that it may be written again."""


def export_model(trial: TrialDirectory, out: Path, licence: str) -> None:
    """Write what `load_planner` reads, and a card, to a folder: the same bytes for the same trial.

    Args:
        trial: A trained trial.
        out: The folder; it is made, or replaced where it is one of these.
        licence: What the card says of it.

    Raises:
        ResultError: There is no trained planner, or the folder holds something else.
    """
    if out.exists() and not out.is_dir():
        raise ResultError(f"{out}: expected a folder, found a file")
    if foreign := sorted(path.name for path in out.glob("*") if path.name not in OWN):
        raise ResultError(f"{out}: holds {foreign[0]}, which is of no exported planner; name another folder")
    trained = load_trained(trial.path)
    # As the trial has it, and not as this version would write it: a later one may have more fields.
    spec = read_json(trial.spec_file)
    content = model_bytes(spec, asdict(trained.moves), trained.planner.state_dict(), trained.epoch)
    card = model_card(trained, trial, out.name, licence)
    write_bytes(out / SPEC_FILE, (json.dumps(spec, indent=2) + "\n").encode())
    if trial.test_steps.is_file():
        write_bytes(out / STEPS_FILE, trial.test_steps.read_bytes())
    else:
        (out / STEPS_FILE).unlink(missing_ok=True)
    write_bytes(out / CARD_FILE, card.encode())
    write_bytes(out / MODEL_FILE, content)


def model_card(trained: Trained, trial: TrialDirectory, name: str, licence: str) -> str:
    """Return the card, in Markdown."""
    spec, planner = trained.spec, trained.planner
    weights = sum(part.numel() for part in planner.parameters())
    told = {
        "What": f"a planner with core `{spec.planner.core}`, {weights:,} weights; "
        f"moves: {', '.join(trained.moves.names)}",
        "Load": f'`load_planner("{name}").solve(grid, goal=(1, 1), start=(5, 8))`, from `planners`; '
        "grid: 1 free, 0 obstacle, any size",
        "Data": f"{spec.data.train:,} maps of {spec.data.map_size}x{spec.data.map_size} of task `{spec.data.task}`, "
        f"`{json.dumps(spec.data.options.model_dump(mode='json'))}`",
        "Recipe": f"seed {spec.seed}, training {_json(spec.training)}, planner {_json(spec.planner)}; "
        "the rest is as by default, and `spec.json` says all of it",
        "Proven": _proven(trained, name),
        "Limits": _limits(planner.core),
        "Licence": licence,
    }
    lines = [f"- **{title}:** {text}" for title, text in told.items() if text]
    rows = list(_rows(trained, trial))
    numbers = [
        "| maps | size | n | success % | shortest % | exact % | made by |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]
    numbers = ["", "## Numbers", *numbers] if rows else []
    return "\n".join([f"# {name}: model card", "", *lines, *numbers]) + "\n"


def _json(part: Any) -> str:
    return f"`{json.dumps(part.model_dump(mode='json', exclude_defaults=True))}`"


def _proven(trained: Trained, name: str) -> str:
    try:
        found = certify(trained.planner)
    except ValueError:
        return ""
    if found.shortest == 0:
        return f"nothing ({found.reason}: `idp certify {name}`)"
    length = "whatever its length" if found.shortest == math.inf else f"of up to {found.shortest:,.0f} steps"
    return (
        f"every plan {length}, on every map of free cells and obstacles with one goal, is a shortest way "
        f"({found.patterns:,} local patterns, {found.decisions:,} decisions enumerated: `idp certify {name}`)"
    )


def _limits(core: Any) -> str:
    said = re.search(r"^Limits: (.*?)(?:\n\n|\Z)", inspect.getdoc(type(core)) or "", re.MULTILINE | re.DOTALL)
    return " ".join(said[1].split()) if said else "maps unlike those of its training are a guess"


def _rows(trained: Trained, trial: TrialDirectory) -> Iterator[str]:
    """Return the rows of the table of numbers: the trial's own test, then each on further maps."""
    data, result = trained.spec.data, trial.read_result()
    if result is not None and result.test_success_rate is not None:
        shares = (result.test_success_rate, result.test_optimality, result.test_exact)
        yield _row(f"{data.task}, its own test", data.map_size, data.test, shares, "idp trial")
    storage = Storage(trial.path.resolve().parents[1])
    for path in trial.evaluations:
        found = read_evaluation(path)
        if found is None:
            continue
        try:
            task = load_manifest(storage.datasets / found.dataset_id).spec.task
        except DatasetError:
            task = "maps"
        shares = (found.success_rate, found.optimality, found.exact)
        command = f"idp evaluate TRIAL_DIR {found.dataset_id[:12]}... --split {found.split} --k {found.k}"
        yield _row(f"{task}, {found.split}", found.map_size, found.maps, shares, command)


def _row(maps: str, size: int, count: int, shares: tuple[float | None, ...], command: str) -> str:
    told = ["-" if share is None else f"{100 * share:.4g}" for share in shares]
    return f"| {maps} | {size}x{size} | {count:,} | {' | '.join(told)} | `{command}` |"
