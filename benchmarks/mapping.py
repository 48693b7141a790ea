"""What a trained mapper still tells about the map: how often a free cell's logit is above an obstacle's, and how much
a cell's logit differs from scene to scene (not at all, where the mapper no longer looks).

python -m benchmarks.mapping STORAGE SWEEP [--profile laptop] [--only planner=contractive] [--set KEY=VALUE ...]

Joint training (D.1) owes the map nothing: the mapper may give the planner whatever serves it, or saturate.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from datagen.storage.dataset import read_split
from datagen.tasks.registry import dataset_id
from orchestrator.storage.layout import Storage
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.selection import select
from orchestrator.sweep.specs import expand
from orchestrator.trial.trained import Inputs, load_trained
from orchestrator.words import trial_name


def told_apart(map_logits: Tensor, map: Tensor) -> float:
    """Return the chance that a free cell's logit is above an obstacle's (the area under the ROC curve).

    Args:
        map_logits: Logits that a cell is free, of any shape.
        map: 1 = free, 0 = obstacle, of the same shape.

    Returns:
        0..1, ties counted half: 1/2 where the logits tell nothing.
    """
    free, obstacles = map_logits[map == 1], map_logits[map == 0].sort().values
    below = torch.searchsorted(obstacles, free) + torch.searchsorted(obstacles, free, right=True)
    return float(below.double().mean() / (2 * len(obstacles)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("storage", type=Path)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--profile")
    parser.add_argument("--only")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    for trial in select(expand(load_sweep(options.sweep, options.profile, options.set)), options.only):
        planner = load_trained(Storage(options.storage).trial(trial.trial_id).path).planner
        problems = read_split(options.storage / "datasets" / dataset_id(trial.spec.data), "test")
        inputs = Inputs.of(problems)
        with torch.no_grad():
            logits = planner.mapper(inputs.observation, problems.map.shape[1:])
        shown = logits.sigmoid()
        free, obstacles = (float(shown[inputs.map == value].median()) for value in (1, 0))
        print(
            f"{trial_name(trial)}  told apart: {told_apart(logits, inputs.map):.3f}"
            f"  median of free cells: {free:.3f}  of obstacles: {obstacles:.3f}"
            f"  deviation over scenes: {float(logits.std(0).mean()):.2g}",
            flush=True,
        )


if __name__ == "__main__":
    main()
