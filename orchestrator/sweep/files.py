"""Sweeps as files: YAML with `extends:`, profiles and overrides, read into a `SweepSpec`."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from datagen.plugins import PluginError
from datagen.spec import Spec, first_problem, nearest
from datagen.tasks.registry import DatasetSpec
from orchestrator.sweep.figure_names import FIGURE_NAMES
from orchestrator.sweep.plugins import load_plugins, load_plugins_at_hand
from orchestrator.sweep.specs import ROW_FIELDS, ExecutionSpec, SweepError, SweepSpec
from orchestrator.sweep.suggestions import check_space, expansion
from orchestrator.sweep.yaml_1_2 import BadYaml, parse_yaml, read_yaml
from planners.registry import CORES
from planners.specs import PlannerSpec, TrainingSpec

MOST_EXTENDED = 20
_OF_FILES = ("extends", "profiles")


def shipped() -> dict[str, Path]:
    """Return the sweeps that come with the package, by their names: `sweeps/`, which a wheel has inside."""
    package = Path(__file__).parents[1]
    folder = next((place for place in (package / "sweeps", package.parent / "sweeps") if place.is_dir()), package)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def found(name: str) -> str:
    """Return the file of a sweep that is named by it; a shipped one by its mere name, where no file here has that."""
    if os.path.lexists(name) or Path(name).name != name:
        return name
    return str(shipped().get(name, name))


def named(path: str) -> str:
    """Return a shipped sweep's name for the path of its file elsewhere, which `found` finds again; other paths stay."""
    there, name = Path(path), Path(path).stem
    elsewhere = there.is_absolute() or ".." in there.parts
    return name if elsewhere and there.resolve() == Path(found(name)).resolve() else path


def load_sweep(path: str | Path, profile: str | None = None, overrides: Iterable[str] = ()) -> SweepSpec:
    """Read a sweep: a plain YAML file, or a Ray cluster file that holds one under `metadata.sweep`.

    Args:
        path: The file. Its `extends:` names a sweep that it adds to: a file, relative to it, else a shipped one.
        profile: One of the file's `profiles:`, merged over the rest; None for the paper's own scale.
        overrides: Settings `path=value`, merged last; the value is YAML.

    Returns:
        The sweep, checked.

    Raises:
        SweepError: When the file can't be read or says something impossible.
    """
    path = Path(path)
    document, overrides = _read_document(path, seen=()), list(overrides)
    profiles = document.pop("profiles", {})
    if not isinstance(profiles, dict):
        raise SweepError(f"{path}: profiles: expected a mapping of names to overrides, got {profiles!r:.80}")
    if profile is not None:
        if profile not in profiles:
            hint = nearest(profile, profiles) if profiles else "it has none"
            raise SweepError(f"{path}: no profile {profile!r}; {hint}")
        if not isinstance(profiles[profile], dict):
            raise SweepError(f"{path}: profiles.{profile}: expected a mapping, got {profiles[profile]!r:.80}")
        document = _laid_over(document, profiles[profile])
    for override in overrides:
        document = _with_override(document, override)
    try:
        _check_fields(document)
        load_plugins_at_hand()
        load_plugins(document.get("plugins", []), beside=[path.parent])
        sweep = SweepSpec.model_validate(document).labelled(_label(profile, overrides))
        for name in sweep.figures:
            if name not in FIGURE_NAMES:  # here, and not when the trials have run
                raise SweepError(f"figures: unknown name {name!r:.80}; {nearest(name, FIGURE_NAMES)}")
        _check_entries(sweep)
        expansion(sweep).trials()
        if sweep.search is not None:
            check_space(sweep)
    except ValidationError as error:
        raise SweepError(f"{path}: {first_problem(error)}") from None
    except (SweepError, PluginError) as error:
        raise SweepError(f"{path}: {error}") from None
    return sweep


def _check_fields(document: Iterable[str]) -> None:
    """Raise SweepError where a sweep, its files and profile laid together, has a field that no sweep has."""
    for field in document:
        if field in _OF_FILES:  # what the file itself says there has been followed
            raise SweepError(f"{field}: stands at the top of a sweep's file, not in a profile or in --set")
        if field not in SweepSpec.model_fields:
            full = _full_path(field)
            hint = f"did you mean {full!r}?" if full else nearest(field, [*SweepSpec.model_fields, *_OF_FILES])
            raise SweepError(f"unknown field {field!r:.80}; {hint}")


def _check_entries(sweep: SweepSpec) -> None:
    """Raise SweepError where a planner's entry has a field of another place in a sweep, or nearly one of its own."""
    for name, entry in sweep.planners.items():
        core = entry.planner.get("core", PlannerSpec().core)
        if entry.is_system or not isinstance(core, str) or core not in CORES:
            continue
        for field in entry.planner:
            if field not in PlannerSpec.model_fields and field not in CORES[core].options_type.model_fields:
                meant = _full_path(field) or "".join(difflib.get_close_matches(field.lower(), ROW_FIELDS, 1, 0.75))
                if meant.startswith(("grid.", "training.")):
                    meant = f"planners.{name}.{meant}"
                if meant:
                    raise SweepError(f"planners.{name}: unknown field {field!r:.80}; did you mean {meant!r}?")


def _label(profile: str | None, overrides: Iterable[str]) -> str:
    """Return in words what was asked for of a file; more seeds make no other sweep."""
    settings = (override.partition("=") for override in overrides)
    other = [f"{path.strip()}={value.strip()}" for path, _, value in settings if path.strip() != "grid.seed"]
    return ", ".join([*([profile] if profile else []), *other])


def sweep_files(path: str | Path) -> list[Path]:
    """Return the file of a sweep and those that it extends.

    Args:
        path: The sweep's file.

    Raises:
        SweepError: As for `load_sweep`, as far as the files are concerned.
    """
    read: list[Path] = []
    _read_document(Path(path), seen=(), read=read)
    return read


def profiles_of(path: str | Path) -> list[str]:
    """Return the names of a sweep's profiles; none where the file can't be read."""
    try:
        profiles = _read_document(Path(path), seen=()).get("profiles")
    except SweepError:
        return []
    return list(profiles) if isinstance(profiles, dict) else []


def _words(document: Any) -> str:
    """Return in words what a file holds in place of a mapping."""
    named = {list: "a list", str: "a text", type(None): "nothing"}
    return named.get(type(document), repr(document)[:80])


def _read_document(path: Path, seen: tuple[Path, ...], read: list[Path] | None = None) -> dict[str, Any]:
    try:
        if path.resolve() in seen:
            raise SweepError(f"{path}: extends: the files extend each other in a circle")
        document = read_yaml(path)
    except FileNotFoundError as error:
        raise SweepError(f"{path}: {error.strerror}{_like(path, extended=bool(seen))}") from None
    except OSError as error:
        raise SweepError(f"{path}: {error.strerror}") from None
    except (ValueError, RuntimeError) as error:  # RuntimeError: symbolic links in a circle
        raise error if isinstance(error, SweepError) else SweepError(f"{path}: {error}") from None
    if isinstance(document, dict) and isinstance(document.get("metadata"), dict) and "sweep" in document["metadata"]:
        document = document["metadata"]["sweep"]
    elif isinstance(document, dict) and "provider" in document and "planners" not in document:
        raise SweepError(f"{path}: a Ray cluster file without a sweep, which would stand under metadata.sweep")
    if not isinstance(document, dict):
        raise SweepError(f"{path}: expected a mapping (name, planners, grid, ...), got {_words(document)}")
    if read is not None:
        read.append(path)
    parent = document.pop("extends", None)
    if parent is None:
        return document
    if not isinstance(parent, str):
        raise SweepError(f"{path}: extends: expected the name of a sweep file, got {parent!r:.80}")
    if len(seen) >= MOST_EXTENDED:
        raise SweepError(f"{path}: extends: more than {MOST_EXTENDED} files, each of which extends the next")
    try:
        beside = path.parent / parent
        extended = beside if os.path.lexists(beside) else shipped().get(parent.removesuffix(".yaml"), beside)
        below = _read_document(extended, (*seen, path.resolve()), read)
    except SweepError as error:
        # A reader of the message has given the first file only, and may not know which of its words led to another.
        looked = "looked for beside this file, then among the sweeps that come with idp"
        raise SweepError(f"{path}: extends: {parent!r:.80} ({looked}): {error}") from None
    return _laid_over(below, document)


def _like(path: Path, *, extended: bool) -> str:
    """Return a hint at the sweep whose name is nearest to that of a file which is not there, empty for none.

    Args:
        path: The file.
        extended: Whether another file extends it, which may name a sweep that comes with idp.
    """
    there: dict[str, Path | str] = {}
    if extended or path.name == str(path):
        there |= {name: name for name in shipped()}
    beside = (file for folder in (path.parent, path.parent / "sweeps") for file in folder.glob("*.yaml"))
    there |= {file.stem: file for file in beside if file.exists()}
    close = difflib.get_close_matches(path.stem, there, n=1)
    return f"; did you mean {there[close[0]]}?" if close else ""


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return a sweep with what is said above it, where null leaves out a planner that it has."""
    result, had, said = _merged(below, above), below.get("planners"), above.get("planners")
    if isinstance(had, dict) and isinstance(said, dict):
        left_out = {name for name in had if name in said and said[name] is None}
        result["planners"] = {name: entry for name, entry in result["planners"].items() if name not in left_out}
    return result


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return `below` with `above` laid over it: mappings are merged, everything else is replaced."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _full_path(name: str) -> str:
    """Return where in a sweep a field of a trial stands, which people name without its section; else nothing."""
    if name in ("k", "seed"):
        return f"grid.{name}"
    sections: dict[str, type[Spec]] = {
        "training": TrainingSpec,
        "planners.NAME": PlannerSpec,
        "data": DatasetSpec,
        "execution": ExecutionSpec,
    }
    return next((f"{section}.{name}" for section, kind in sections.items() if name in kind.model_fields), "")


def _with_override(document: dict[str, Any], override: str) -> dict[str, Any]:
    path, equals, text = override.partition("=")
    parts = path.strip().split(".")
    if equals and len(parts) == 1 and parts[0] not in SweepSpec.model_fields and (full := _full_path(parts[0])):
        raise SweepError(f"--set {override!r:.200}: unknown field {parts[0]!r}; did you mean {full!r}?")
    if not equals or not all(parts):
        raise SweepError(f"--set {override!r:.200}: expected path=value, for example training.epochs=3")
    parts = _axis_as_one(parts)
    try:
        value = parse_yaml(text)
    except BadYaml as error:
        raise SweepError(f"--set {override!r:.200}: the value is {error}") from None
    if parts[0] == "tasks" and len(parts) > 2 and re.fullmatch("[0-9]{1,9}", parts[1]):
        tasks = document.get("tasks", [])
        index = int(parts[1])
        if not isinstance(tasks, list) or index >= len(tasks) or not isinstance(tasks[index], dict):
            raise SweepError(f"--set {override!r:.200}: the sweep has no task {index}")
        changed = _merged(tasks[index], _nested(parts[2:], value))
        return {**document, "tasks": [*tasks[:index], changed, *tasks[index + 1 :]]}
    return _laid_over(document, _nested(parts, value))


def _axis_as_one(parts: list[str]) -> list[str]:
    """Return a path in which an axis, such as `training.learning_rate`, is one key, as it is in the file."""
    places = {"grid": ["grid"], "search": ["search", "space"]}
    above = places.get(parts[0], [*parts[:2], "grid"] if parts[0] in ("planners", "tasks") else parts)
    if parts[: len(above)] != above or len(parts) < len(above) + 2:
        return parts
    end = len(above) + (1 if parts[len(above)] in ("k", "seed") else 2)
    return [*above, ".".join(parts[len(above) : end]), *parts[end:]]


def _nested(parts: list[str], value: Any) -> dict[str, Any]:
    for part in reversed(parts):
        value = {part: value}
    return value
