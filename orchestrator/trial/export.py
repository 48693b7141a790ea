"""A trained planner to hand on: a folder of weights, spec and model card, or one file with the graph of its plan."""

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
from orchestrator.storage.provenance import provenance
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.trial.trained import Trained, load_trained
from planners.certificate import certify
from planners.portable.agreement import VERIFIED, check
from planners.portable.formats import SUFFIXES, Format, check_installed, exported, opened, written
from planners.portable.inference_form import FEWEST_CELLS, InferenceForm
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
    if kinds := [kind for kind, suffix in SUFFIXES.items() if out.suffix == suffix]:
        raise ResultError(
            f"{out}: format safetensors makes a folder; such a file is made by --format {' or '.join(kinds)}"
        )
    if out.exists() and not out.is_dir():
        raise ResultError(f"{out}: expected a folder, found a file")
    if foreign := sorted(path.name for path in out.glob("*") if path.name not in OWN):
        raise ResultError(f"{out}: holds {foreign[0]}, which is of no exported planner; name another folder")
    trained = load_trained(trial.path)
    # As the trial has it, and not as this version would write it: a later one may have more fields.
    spec = read_json(trial.spec_file)
    content = model_bytes(spec, asdict(trained.moves), trained.planner.state_dict(), trained.epoch)
    card = model_card(trained, trial, out.name, licence).encode()
    write_bytes(out / SPEC_FILE, (json.dumps(spec, indent=2) + "\n").encode())
    if trial.test_steps.is_file():
        write_bytes(out / STEPS_FILE, trial.test_steps.read_bytes())
    else:
        (out / STEPS_FILE).unlink(missing_ok=True)
    write_bytes(out / CARD_FILE, card)
    write_bytes(out / MODEL_FILE, content)


def export_graph(trial: TrialDirectory, out: Path, format: Format, licence: str) -> None:
    """Write the planner with its loop as one file, after it has planned as the planner does.

    Args:
        trial: A trained trial.
        out: The file.
        format: "torch" (torch.export), "aoti" (that compiled for C++) or "onnx".
        licence: What the file says of it.

    Raises:
        ResultError: There is no trained planner, or the file can't be one.
        PlannerError: No such graph can be made of the planner, or it does not plan as that does.
    """
    if out.suffix != SUFFIXES[format]:
        raise ResultError(f"{out}: expected a name that ends in {SUFFIXES[format]}, for format {format}")
    if out.exists() and not out.is_file():
        raise ResultError(f"{out}: expected a file, found a folder")
    check_installed(format)
    trained = load_trained(trial.path)
    # Of a ring whose width the map decides, torch's compiler (2.13) makes wrong numbers.
    form = InferenceForm(trained.planner, trained.moves, trained.steps_per_row, rings=format != "aoti")
    about = about_graph(trained, trial, form, licence)
    content = written(exported(form), format, about)
    check(opened(content, format), trained.planner, trained.moves, trained.steps, out.name)
    write_bytes(out, content)


def about_graph(trained: Trained, trial: TrialDirectory, form: InferenceForm, licence: str) -> dict[str, Any]:
    """Return what such a file says of itself."""
    result, moves = trial.read_result(), trained.moves
    commit = provenance().git_commit if result is None else result.provenance.git_commit
    sizes = f"h and w from {FEWEST_CELLS}"
    wall, ring = "the edge is a wall; no ring of obstacles is needed", ""
    if moves.wrap:
        wall = "over the edge lies the opposite one"
    elif not form.walled:
        wall = "no free cell at its edge: put a ring of obstacles round a map that has one"
    else:
        ring = " A map with free cells at its edge has the whole batch planned inside a ring."
    return {
        "format": 1,
        "task": trained.spec.data.task,
        "map_size": trained.spec.data.map_size,
        "core": trained.spec.planner.core,
        "moves": asdict(moves),
        "steps": str(form.rule),
        "trial": trial.name,
        "verified": VERIFIED,
        "licence": licence,
        "source_commit": commit,
        "feed": f"map: float32 [batch, 1, h, w], 1 free and 0 obstacle, {sizes}; {wall}. goal: float32 of the same "
        "shape, 1 at the goal and 0 elsewhere. max_steps: int64 scalar, most steps; 0 takes the planner's own "
        "rule. Out come logits [batch, actions, h, w]; actions int64 [batch, h, w], the number of the "
        "move in `moves`; steps and residual [batch]." + ring,
    }


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
        found = certify(trained.planner, trained.moves)
    except ValueError:
        return ""
    if found.arrives == 0:
        return f"nothing ({found.reason}: `idp certify {name}`)"
    length = "whatever its length" if found.arrives == math.inf else f"of up to {found.arrives:,.0f} steps"
    dearer = f"arrives, at no more than {found.suboptimality:.4g} times the least cost"
    way = "is a shortest way" if found.suboptimality == 1 else dearer
    return (
        f"every plan {length}, on every map of free cells and obstacles with one goal, {way} "
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
