"""The picture of constraints by experts: `python docs/experts_picture.py` trains for a minute and draws it again.

One unseen problem as it is solved by three rows of `examples/experts.yaml`, their residuals, and processor time and
memory of the layer over the number of experts where all together have 64 basis functions on 512 cells.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from datagen.tasks.registry import TASKS, DatasetSpec
from orchestrator.sweep.plugins import load_plugins
from orchestrator.trial.system import Setting
from planners.specs import TrainingSpec

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "experts.png"
EPOCHS, TESTED, SHOWN, TOGETHER, CELLS = 15, 64, 3, 64, 512
ROWS = {
    "soft penalty": {"constraint": "soft"},
    "global, 8 bases": {"experts": 1},
    "8 experts of 8": {"experts": 8},
}
COLOURS = dict(zip(ROWS, ("#e4572e", "#e0a100", "#2b7a78"), strict=True))


def drawn(spec: DatasetSpec, split: str, count: int) -> dict[str, np.ndarray]:
    """Return samples."""
    return TASKS["diffusion"].draw()(spec, split, 0, count)


def trained() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return u and residual of the shown problem by row."""
    from experts import SolverOptions
    from experts.training import Training, tensors

    spec = DatasetSpec(task="diffusion", options={})
    train, test = drawn(spec, "train", 128), drawn(spec, "test", TESTED)
    training, found = TrainingSpec(batch_size=16, learning_rate=0.004), {}
    for row, options in ROWS.items():
        torch.manual_seed(0)
        setting = Setting(SolverOptions(**options), spec.options, training, train, test, test, 0, "cpu", lambda: None)
        trial = Training(setting)
        for epoch in range(1, EPOCHS + 1):
            trial.run_epoch(epoch)
        with torch.no_grad():
            problems = tensors(test)
            u = trial.solved(problems)
            found[row] = u[SHOWN].numpy(), trial.residual(u, problems)[SHOWN].numpy()
            print(f"{row}: median residual {float(trial.residual(u, problems).abs().median()):.2%}")
    return found | {"solution": (test["solution"][SHOWN], np.zeros(1))}


def costs() -> dict[int, tuple[float, float]]:
    """Return the layer's processor time in ms, there and back, and KiB kept, per sample, by number of experts."""
    from experts.layer import satisfied
    from experts.training import Kept

    samples = drawn(DatasetSpec(task="diffusion", options={"cells": CELLS}), "train", 8)
    given = [torch.as_tensor(samples[name]) for name in ("solution", "conductivity", "source")]
    found = {}
    for experts in (1, 2, 4, 8, 16, 32):
        numbers = torch.arange(TOGETHER // experts, dtype=torch.float64)[:, None]
        bases = torch.cos(torch.pi * numbers * torch.linspace(0.0, experts, CELLS + 1, dtype=torch.float64))
        leaf = bases.expand(8, -1, -1).clone().requires_grad_()

        def layer(leaf: Tensor = leaf, experts: int = experts) -> Tensor:
            return satisfied(given[0], leaf, *given[1:], experts=experts, reaction=20.0)[0].square().sum()

        kept = Kept()
        with kept:
            layer()
        found[experts] = 1e3 * _least(lambda: layer().backward()) / 8, kept.bytes / 8 / 1024
    return found


def _least(run: Callable[[], None]) -> float:
    spent = []
    for _ in range(4):
        begun = time.process_time()
        run()
        spent.append(time.process_time() - begun)
    return min(spent)


def draw(path: Path) -> str:
    """Write the picture; return the costs in it."""
    load_plugins(["experts"], beside=[ROOT / "examples"])
    found, measured = trained(), costs()
    figure = Figure(figsize=(12, 3.3), dpi=120, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    x = np.linspace(0.0, 1.0, len(found["solution"][0]))
    left.plot(x, found["solution"][0], color="black", linewidth=3, alpha=0.35, label="solution")
    for row in ROWS:
        left.plot(x, found[row][0], color=COLOURS[row], linewidth=1.3, label=row)
        middle.semilogy(x[1:-1], np.abs(found[row][1]) + 1e-8, color=COLOURS[row], linewidth=1.0)
    left.set(title="an unseen problem", xlabel="x", ylabel="u")
    left.legend(frameon=False, fontsize=8)
    middle.set(title="residual of the PDE over the source", xlabel="x", ylim=(1e-4, None))
    experts = list(measured)
    right.loglog(experts, [ms for ms, _ in measured.values()], "o-", color="#2b7a78", label="processor time, ms")
    right.loglog(experts, [kib for _, kib in measured.values()], "s-", color="#e4572e", label="kept for gradients, KiB")
    right.set(title=f"{TOGETHER} basis functions together", xlabel="experts", xticks=experts, xticklabels=experts)
    right.minorticks_off()
    right.legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Software": None})
    return "\n".join(f"{n} experts: {ms:.2f} ms, {kib:.0f} KiB per sample" for n, (ms, kib) in measured.items())


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(draw(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE))
