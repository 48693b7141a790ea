"""The picture of learned terrain: `python docs/terrain_picture.py` trains for a minute and draws it again.

A map of 20x20 as it is seen, the costs that were recovered of it, the true ones, and the way. Trained on 500 maps of
12x12, one cheapest way on each, from corner to corner; the map shown is another, and so are its size and its ends.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from datagen.problem import EIGHT, Problems
from datagen.tasks import terrain
from datagen.tasks.registry import DatasetSpec
from planners import PlannerSpec, TrainingSpec
from planners.planner import Planner
from planners.training.trainer import Trainer

PICTURE = Path(__file__).parent / "images" / "terrain.png"
SIZE, SHOWN = 20, 3


def trained() -> Planner:
    """Return a planner after 500 updates."""
    spec = DatasetSpec(task="terrain", map_size=12, train=500)
    planner = PlannerSpec(core="shortest_path", mapper="tiles", solver="best_first", solver_bwd="best_first")
    training = TrainingSpec(
        labels="path",
        optimizer="adam",
        learning_rate=0.02,
        learning_rate_decay=0.9,
        epochs=34,
        mapper_pretrain_epochs=0,
    )
    problems = terrain.draw(spec, "train", 0, spec.train)
    trainer = Trainer(planner, training, problems, problems[:0], moves=EIGHT, seed=0)
    while not trainer.finished:
        trainer.run_epoch()
    return trainer.planner


def way(problem: Problems, actions: np.ndarray) -> np.ndarray:
    """Return the cells from the start to the goal, [n, 2]."""
    cells = [tuple(problem.start[0])]
    while cells[-1] != tuple(problem.goal[0]):
        cells.append(tuple(np.add(cells[-1], EIGHT.offsets[actions[cells[-1]]])))
    return np.array(cells)


def draw(path: Path) -> str:
    """Write the picture; return what it shows."""
    spec = DatasetSpec(task="terrain", map_size=SIZE, test=SHOWN + 1, seed=5, options={"ends": "anywhere"})
    problem = terrain.draw(spec, "test", SHOWN, SHOWN + 1)
    goal = torch.zeros(1, 1, SIZE, SIZE)
    goal[0, 0, *problem.goal[0].tolist()] = 1
    planner = trained()
    with torch.no_grad():
        plan = planner.plan(None, goal, torch.from_numpy(problem.observation))
    assert plan.map_logits is not None
    recovered = torch.nn.functional.softplus(-plan.map_logits)[0, 0].numpy()
    cells = way(problem, plan.logits[0].max(0).indices.numpy())
    taken = float(problem.costs[0][tuple(cells[1:].T)].sum())
    least = float(problem.distance[0][tuple(problem.start[0])])
    figure = Figure(figsize=(9.8, 3.4), dpi=130, layout="constrained")
    shown = (problem.observation[0].transpose(1, 2, 0), recovered, problem.costs[0])
    titles = ("what is seen", "costs recovered", "true costs")
    for axes, image, title in zip(figure.subplots(1, 3), shown, titles, strict=True):
        drawn = axes.imshow(image, cmap="cividis", extent=(-0.5, SIZE - 0.5, SIZE - 0.5, -0.5))
        axes.plot(cells[:, 1], cells[:, 0], color="#e4572e", linewidth=2.2, label="planned path")
        ends = {"markeredgewidth": 2, "markeredgecolor": "#e4572e", "markersize": 8, "linestyle": ""}
        axes.plot(*cells[0][::-1], "o", color="white", **ends, label="start")
        ends = {"markeredgecolor": "black", "markersize": 15, "linestyle": ""}
        axes.plot(*cells[-1][::-1], "*", color="#f0e442", **ends, label="goal")
        axes.set(xticks=[], yticks=[], title=title)
        if image.ndim == 2:
            unit = ", in a unit of its own" if image is recovered else ""
            figure.colorbar(drawn, ax=axes, shrink=0.75, label=f"cost of a cell{unit}")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, metadata={"Software": None})
    return f"{path}: a way of {len(cells) - 1} steps, {taken / least:.3f} times the cheapest"


if __name__ == "__main__":
    print(draw(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE))
