"""The picture of learnt preferences: `python docs/preferences_picture.py` trains for half a minute and draws it again.

The true costs of a world, what is learnt of them from 8,000 answers of two annotators told apart and taken for one, and
the careful one's density over ways between two ends beside what either gives.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from datagen.tasks.registry import TASKS, DatasetSpec
from orchestrator.sweep.plugins import load_plugins
from orchestrator.trial.system import Setting
from planners.specs import TrainingSpec

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "preferences.png"
PAIRS, EPOCHS, TRAINED, TOLD, ONE = 8000, 40, 0.05, "#2b7a78", "#e4572e"


def learnt(annotators: str, spec: DatasetSpec, samples: dict[str, np.ndarray]) -> np.ndarray:
    """Return the costs [cells] after training, in the careful annotator's unit."""
    from preferences import LearningOptions
    from preferences.learning import Learning

    training = TrainingSpec(epochs=EPOCHS, batch_size=100, learning_rate=TRAINED)
    setting = Setting(
        LearningOptions(annotators=annotators),
        spec.options,
        training,
        samples,
        {name: values[:200] for name, values in samples.items()},
        samples,
        0,
        "cpu",
        lambda: None,
    )
    trial = Learning(setting)
    for epoch in range(1, EPOCHS + 1):
        trial.run_epoch(epoch)
    return trial.costs().detach().numpy()


def draw(path: Path) -> str:
    """Write the picture; return what it shows."""
    load_plugins(["preferences"], beside=[ROOT / "examples"])
    from preferences.world import divergence, masses, true_costs

    spec = DatasetSpec(task="pairs", train=PAIRS, options={"careful": 2.0, "noisy": 0.2})
    samples = TASKS["pairs"].draw()(spec, "train", 0, PAIRS)
    options, size = spec.options, spec.options.size
    true = options.careful * true_costs(size, options.world)
    found = {"told apart": learnt("told", spec, samples), "taken for one": learnt("one", spec, samples)}
    figure = Figure(figsize=(11.5, 3.2), dpi=120, layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.35))
    for ax, (title, costs) in zip(axes, [("true costs (careful)", true), *found.items()], strict=False):
        image = ax.imshow(costs.reshape(size, size), cmap="cividis", vmin=0.0, vmax=true.max())
        ax.set(xticks=[], yticks=[], title=title)
    figure.colorbar(image, ax=axes[:3], shrink=0.8, label="cost of a cell")
    errand = np.flatnonzero(samples["goal"][:, 0] == samples["goal"][0, 0])[:150]
    visits = samples["visits"][errand, 0].reshape(len(errand), -1)
    starts, goal = samples["start"][errand, 0], samples["goal"][errand[0], 0]

    def log_density(costs: np.ndarray) -> np.ndarray:
        *_, (log_z, _) = masses(costs.astype(float), np.array([goal]), options.horizon)
        return -visits @ costs - log_z[0, starts]

    exact = log_density(true)
    for (title, costs), colour in zip(found.items(), (TOLD, ONE), strict=True):
        axes[3].plot(exact, log_density(costs), "o", color=colour, markersize=3.5, alpha=0.7, label=title)
    ends = [exact.min(), 0.0]
    axes[3].plot(ends, ends, color="0.4", linewidth=0.8, zorder=0)
    axes[3].set(xlabel="log density of a way, careful annotator", ylabel="log density, as learnt")
    axes[3].set_title("ways to one goal")
    axes[3].yaxis.tick_right()
    axes[3].yaxis.set_label_position("right")
    axes[3].legend(frameon=False)
    figure.savefig(path, metadata={"Software": None})
    pairs = samples["start"][:, 0], samples["goal"][:, 0]
    numbers = {
        title: divergence(true, costs.astype(float), options.horizon)[pairs].mean() for title, costs in found.items()
    }
    return f"{path}: " + ", ".join(f"{title} {number:.2f} nat" for title, number in numbers.items())


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(draw(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE))
