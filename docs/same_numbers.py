"""A mend that changes no training leaves trained results what they are, once both codes are shown to train alike.

    git worktree add /tmp/before COMMIT
    python docs/same_numbers.py /tmp/before docs/results/table1.parquet docs/results/reachability.parquet

What the archives' trials begin from (their modules' digests) may have changed since COMMIT, though nothing of what they
computed has. Each kind of trial, all that its spec says but how large its numbers are, is trained for four steps and
tested, on a few maps of each task that its archived tests name as well, by the code of COMMIT and by this tree's:
weights, losses and tests must be the same to the bit. Then, of results whose digests are those of COMMIT, the archives
say those of this tree; else nothing is written. `code` and `git_commit` go on naming
what trained them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
FEW = {"data": {"train": 32, "valid": 8, "test": 8, "seed": 0}, "training": {"epochs": 2, "batch_size": 16}, "seed": 0}
"""What is trained in place of a trial: four steps, whose sums go through every operation that its own went through."""
MOST_K = 30
"""Forward steps; more are the same step again."""
TESTED = {"train": 8, "valid": 4, "test": 4}
_TIMES = ("seconds", "bytes", "provenance", "checksum", "trial_id")


def few_steps(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's spec as it is trained here, on maps of the task's own where its were imported."""
    training = {**spec["training"], **FEW["training"]}
    training["mapper_pretrain_epochs"] = min(1, training["mapper_pretrain_epochs"])
    planner = {**spec["planner"], "k_fwd": min(MOST_K, spec["planner"]["k_fwd"])}
    data = {**spec["data"], **FEW["data"], "imported": None, "distinct": "maps"}
    execution = {**spec["execution"], "memory_limit_gib": None, "graphs": None}
    few = {"data": data, "planner": planner, "training": training, "execution": execution, "seed": FEW["seed"]}
    return {**spec, **few}


def without_sizes(value: Any) -> Any:
    """Return a part of a spec with a mark for each number but 0, which says that something is not computed at all."""
    if isinstance(value, Mapping):
        return {name: without_sizes(part) for name, part in value.items()}
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return "a number" if number and value else value


def kinds(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each kind of trial among the rows of archives once, as it is trained here, with what it is tested on.

    Returns:
        Mappings of `spec` and `tests`, a task each: its name, rows of the smallest maps, steps and what was measured.
    """
    found: dict[str, tuple[dict[str, Any], dict[str, list[Any]]]] = {}
    for row in sorted(rows, key=lambda row: str(row["spec"])):
        spec = few_steps(json.loads(row["spec"]))
        kind = {**spec, **{part: without_sizes(spec[part]) for part in ("planner", "training")}}
        _, tests = found.setdefault(json.dumps(kind, sort_keys=True), (spec, {}))
        for test in json.loads(row["evaluations"] or "[]"):
            task = test["dataset_id"].split("-")[0]
            smallest = [test["map_size"], test["k"], test["measured"]]
            tests[task] = min(tests.get(task, smallest), smallest)
    return [
        {"spec": spec, "tests": [[task, *how] for task, how in sorted(tests.items())]} for spec, tests in found.values()
    ]


def trained(given: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Train and test what `kinds` returns by the code that is imported.

    Returns:
        `digests` of all numbers, by spec, and `parts`, the digest of each module that results of these kinds name.
    """
    import torch

    from datagen.tasks.registry import DatasetSpec, dataset_id
    from orchestrator.cluster.datasets import make_datasets, make_here
    from orchestrator.storage.code import parts_of
    from orchestrator.storage.layout import Storage
    from orchestrator.sweep.specs import TrialSpec, trial_id
    from orchestrator.trial.evaluate import evaluate_trial
    from orchestrator.trial.train import run_trial

    torch.set_num_threads(1)
    _load_plugins(given)
    digests, parts = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(Path(folder))
        for each in given:
            spec = TrialSpec.model_validate(each["spec"])
            make_datasets([spec.data], storage.datasets, make=make_here)
            result = run_trial(spec, storage)
            if result.status != "COMPLETED":
                raise SystemExit(f"same_numbers: {each}: {result.status}: {result.reason}")
            trial, found = storage.trial(trial_id(spec)), [result]
            for task, map_size, k, measured in each["tests"]:
                data = DatasetSpec(task=task, map_size=map_size, distinct="maps", **TESTED)
                make_datasets([data], storage.datasets, make=make_here)
                dataset = storage.datasets / dataset_id(data)
                found.append(evaluate_trial(trial, dataset, k=k, measures=measured))
                parts |= parts_of(data, spec.planner, spec.plugins, measured)
            numbers = [
                {name: value for name, value in one.model_dump(mode="json").items() if not name.endswith(_TIMES)}
                for one in found
            ]
            state = torch.load(trial.checkpoint, weights_only=True, map_location="cpu")
            sums = hashlib.sha256(json.dumps(numbers, sort_keys=True).encode())
            for name, tensor in sorted(_tensors(state)):
                sums.update(name.encode() + tensor.contiguous().numpy().tobytes())
            digests[json.dumps(each["spec"], sort_keys=True)] = sums.hexdigest()
            parts |= parts_of(spec.data, spec.planner, spec.plugins, ("lengths",))
            done = f"{result.steps} steps, {len(found) - 1} tests"
            print(f"{spec.planner.core} {spec.planner.adjoint} {spec.data.task}: {done}", file=sys.stderr)
    return {"digests": digests, "parts": parts}


def _load_plugins(given: Sequence[dict[str, Any]]) -> None:
    import orchestrator
    from orchestrator.sweep.plugins import load_plugins

    names = sorted({name for each in given for name in each["spec"]["plugins"]})
    load_plugins(names, beside=[Path(orchestrator.__path__[0]).parent / "examples"])


def _tensors(state: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the weights and buffers of a checkpoint with their names."""
    import torch

    if isinstance(state, torch.Tensor):
        yield name, state
    elif isinstance(state, dict):
        for key, value in state.items():
            yield from _tensors(value, f"{name}.{key}")


def by_code_of(checkout: Path, given: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what `trained` says in a process of its own with a checkout's code."""
    done = subprocess.run(
        [sys.executable, __file__, "--train"],
        input=json.dumps(given), stdout=subprocess.PIPE, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(checkout)},
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def renewed(provenance: dict[str, Any], before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, Any]:
    """Return a provenance that says the digests of this tree, if its own are all those of the tree before."""
    parts = provenance.get("parts") or {}
    if not parts or any(before.get(module) != digest for module, digest in parts.items()):
        return provenance
    return {**provenance, "parts": {module: after[module] for module in parts}}


def renew(path: Path, before: Mapping[str, str], after: Mapping[str, str]) -> int:
    """Write an archive anew with the digests of this tree; return how many of its results were of the tree before."""
    from orchestrator.storage.archive import read_archive, write_archive
    from orchestrator.storage.files import sealed, write_json
    from orchestrator.storage.layout import Storage

    changed = 0
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(Path(folder))
        read_archive(path, storage)
        for name in storage.trial_ids():
            trial = storage.trial(name)
            for file in (trial.result_file, *trial.evaluations):
                document = json.loads(file.read_bytes())
                provenance = renewed(document["provenance"], before, after)
                if provenance != document["provenance"]:
                    changed += 1
                    document = {**document, "provenance": provenance}
                    document.pop("checksum")
                    write_json(file, sealed(document))
        write_archive(storage, path)
    return changed


def main() -> None:
    """Compare, then write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("before", type=Path, nargs="?", help="a checkout of the code that trained them")
    parser.add_argument("archives", type=Path, nargs="*")
    options = parser.parse_args()
    if options.train:
        print(json.dumps(trained(json.load(sys.stdin))))
        return
    if not options.before or not options.archives:
        parser.error("expected a checkout and archives")
    columns = ["spec", "evaluations"]
    specs = kinds(row for path in options.archives for row in pq.read_table(path, columns=columns).to_pylist())
    with ThreadPoolExecutor() as pool:
        before, after = pool.map(by_code_of, (options.before.resolve(), ROOT), (specs, specs))
    unlike = [spec for spec, digest in before["digests"].items() if after["digests"][spec] != digest]
    if unlike:
        raise SystemExit(f"same_numbers: {len(unlike)} of {len(specs)} kinds come to other numbers, {unlike[0]}")
    _load_plugins(specs)  # without which their archives are not read
    print(f"{len(specs)} kinds of trial come to the same bits by both codes")
    for path in options.archives:
        print(f"{path}: {renew(path, before['parts'], after['parts'])} results now name this tree's code")


if __name__ == "__main__":
    main()
