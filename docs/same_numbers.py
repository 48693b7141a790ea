"""A mend that changes no training leaves trained results what they are, once both codes are shown to train alike.

    git worktree add /tmp/before COMMIT
    python docs/same_numbers.py /tmp/before docs/results/table1.parquet docs/results/reachability.parquet

What the archives' trials begin from (their modules' digests) may have changed since COMMIT, though nothing of what they
computed has. Each kind of trial, all that its spec says but seed and scale, is trained for four steps and tested by the
code of COMMIT and by this tree's: weights, losses and tests must be the same to the bit. Then, of trials whose digests
are those of COMMIT, the archives say those of this tree; else nothing is written. `code` and `git_commit` go on naming
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
_TIMES = ("seconds", "bytes", "provenance", "checksum", "trial_id")


def few_steps(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's spec as it is trained here, on maps of the task's own where its were imported."""
    training = {**spec["training"], **FEW["training"]}
    training["mapper_pretrain_epochs"] = min(1, training["mapper_pretrain_epochs"])
    data = {**spec["data"], **FEW["data"], "imported": None, "distinct": "maps"}
    return {**spec, "data": data, "training": training, "seed": FEW["seed"]}


def kinds(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each kind of trial among the rows of archives once, as it is trained here."""
    found = {json.dumps(few_steps(json.loads(row["spec"])), sort_keys=True) for row in rows}
    return [json.loads(text) for text in sorted(found)]


def trained(specs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Train specs by the code that is imported, and return their digests and those of each archived kind's modules."""
    import torch

    from orchestrator.cluster.datasets import make_datasets, make_here
    from orchestrator.storage.code import parts_of
    from orchestrator.storage.layout import Storage
    from orchestrator.sweep.specs import TrialSpec, trial_id
    from orchestrator.trial.train import run_trial

    torch.set_num_threads(1)
    digests, parts = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(Path(folder))
        for each in specs:
            spec = TrialSpec.model_validate(each)
            make_datasets([spec.data], storage.datasets, make=make_here)
            result = run_trial(spec, storage)
            if result.status != "COMPLETED":
                raise SystemExit(f"same_numbers: {each}: {result.status}: {result.reason}")
            numbers = {k: v for k, v in result.model_dump(mode="json").items() if not k.endswith(_TIMES)}
            state = torch.load(storage.trial(trial_id(spec)).checkpoint, weights_only=True, map_location="cpu")
            sums = hashlib.sha256(json.dumps(numbers, sort_keys=True).encode())
            for name, tensor in sorted(_tensors(state)):
                sums.update(name.encode() + tensor.contiguous().numpy().tobytes())
            digests[json.dumps(each, sort_keys=True)] = sums.hexdigest()
            parts |= parts_of(spec.data, spec.planner, spec.plugins, ("lengths",))
            print(f"{spec.planner.core} {spec.planner.adjoint} {spec.data.task}: {result.steps} steps", file=sys.stderr)
    return {"digests": digests, "parts": parts}


def _tensors(state: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the weights and buffers of a checkpoint with their names."""
    import torch

    if isinstance(state, torch.Tensor):
        yield name, state
    elif isinstance(state, dict):
        for key, value in state.items():
            yield from _tensors(value, f"{name}.{key}")


def by_code_of(checkout: Path, specs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what `trained` says in a process of its own with a checkout's code."""
    done = subprocess.run(
        [sys.executable, __file__, "--train"],
        input=json.dumps(specs), stdout=subprocess.PIPE, text=True, check=True,
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
    """Write an archive anew with the digests of this tree; return how many of its trials were of the tree before."""
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
                    changed += file == trial.result_file
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
    specs = kinds(row for path in options.archives for row in pq.read_table(path, columns=["spec"]).to_pylist())
    with ThreadPoolExecutor() as pool:
        before, after = pool.map(by_code_of, (options.before.resolve(), ROOT), (specs, specs))
    unlike = [spec for spec, digest in before["digests"].items() if after["digests"][spec] != digest]
    if unlike:
        raise SystemExit(f"same_numbers: {len(unlike)} of {len(specs)} kinds train to other numbers, {unlike[0]}")
    print(f"{len(specs)} kinds of trial train to the same bits by both codes")
    for path in options.archives:
        print(f"{path}: {renew(path, before['parts'], after['parts'])} trials now name this tree's code")


if __name__ == "__main__":
    main()
