"""How long gradients are while a trial trains: medians and maxima of a hundred steps each.

python -m benchmarks.gradients STORAGE SWEEP [--profile laptop] [--only planner=id-vin,k=30] [--epochs 5]
    [--out docs/results/gradients.json]

STORAGE has the sweep's datasets. Trains as the trial does, from its seed, for the first epochs; nothing is kept of it.
Lengths are of the whole gradient, at most the clip.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.rows import keep, parser
from datagen.storage.dataset import read_split
from datagen.tasks.registry import TASKS, dataset_id
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.selection import select
from orchestrator.sweep.specs import TrialSpec, expand
from orchestrator.words import trial_name
from planners.training.trainer import Trainer

BLOCK = 100


def lengths(spec: TrialSpec, datasets: Path, epochs: int) -> list[float]:
    """Return the 2-norm of each training step's gradient, clipped, over the first epochs."""
    splits = [read_split(datasets / dataset_id(spec.data), split) for split in ("train", "valid")]
    trainer = Trainer(spec.planner, spec.training, *splits, moves=TASKS[spec.data.task].moves, seed=spec.seed)
    found: list[float] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parts = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        found.append(float(torch.linalg.vector_norm(torch.stack([part.norm() for part in parts]))))

    trainer.optimizer.register_step_pre_hook(note)
    while trainer.epoch < epochs and not trainer.finished:
        trainer.run_epoch()
    return found


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--epochs", type=int, default=5)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    rows = []
    for trial in select(expand(load_sweep(options.sweep, options.profile)), options.only):
        found = lengths(trial.spec, options.storage / "datasets", options.epochs)
        blocks = [found[start : start + BLOCK] for start in range(0, len(found), BLOCK)]
        medians, largest = ([of(block) for block in blocks] for of in (statistics.median, max))
        print(
            trial_name(trial),
            *(f"{median:.2g} (at most {most:.2g})" for median, most in zip(medians, largest, strict=True)),
            flush=True,
        )
        rows.append({"trial_id": trial.trial_id, "block": BLOCK, "median": medians, "largest": largest})
    keep(rows, options.out)


if __name__ == "__main__":
    main()
