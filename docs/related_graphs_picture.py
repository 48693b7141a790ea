"""The picture of graphs: `python docs/related_graphs_picture.py` trains for two minutes and draws it again.

What is predicted of each node of graphs of 60 nodes over what is so, after training on graphs of 10 to 20: walkers and
traffic, by fixed points of contracting maps, by two rounds of these, and by four layers that pass messages.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import graphs.problems
from graphs import GraphOptions, SolverOptions
from graphs.networks import Graphs
from graphs.trial import GraphSolver

from orchestrator.trial.system import Setting
from planners import TrainingSpec

PICTURE = Path(__file__).parent / "images" / "related-graphs.png"
ROWS = {
    "convergent": SolverOptions(),
    "two rounds": SolverOptions(rounds=2, width=32),
    "message passing": SolverOptions(network="message_passing", width=24),
}
TASKS = {"walks": "walkers at a node", "traffic": "time to a destination"}
EPOCHS, TRAINED_ON, SHOWN = 10, 480, 24


def samples(task: str, options: GraphOptions, count: int, stream: int) -> dict[str, np.ndarray]:
    """Return samples of a task as the trial reads them."""
    made = [getattr(graphs.problems, task)(options, np.random.default_rng([stream, number])) for number in range(count)]
    whole = {name: np.array([sample[name] for sample in made]) for name in made[0]}
    return {name: values.astype(np.int16 if values.dtype.kind == "i" else np.float32) for name, values in whole.items()}


def told(task: str, solver: SolverOptions, larger: dict[str, np.ndarray]) -> np.ndarray:
    """Train a network on small graphs, and return what it says of the nodes of larger ones."""
    options, training = GraphOptions(share=0.0), TrainingSpec(epochs=EPOCHS, batch_size=16, learning_rate=0.003)
    train = samples(task, options, TRAINED_ON, 0)
    torch.manual_seed(0)
    setting = Setting(solver, options, training, train, larger, larger, 0, "cpu", lambda: None)
    trial = GraphSolver(setting)
    for epoch in range(1, EPOCHS + 1):
        trial.run_epoch(epoch)
    return trial.answers(larger)[0][Graphs.of(larger).present].numpy()


def draw(path: Path) -> str:
    """Write the picture; return what it shows."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    said = []
    for axes, (task, label) in zip(figure.subplots(1, 2), TASKS.items(), strict=True):
        larger = samples(task, GraphOptions(share=0.999), SHOWN, 1)
        true = larger["answer"][Graphs.of(larger).present.numpy()]
        for colour, (name, solver) in zip(("tab:blue", "tab:green", "tab:orange"), ROWS.items(), strict=True):
            found = told(task, solver, larger)
            share = np.abs(found - true).mean() / np.abs(true - true.mean()).mean()
            said.append(f"{task}, {name}: {100 * share:.1f} %")
            axes.plot(true, found, ".", markersize=3, alpha=0.5, color=colour, label=f"{name}: {100 * share:.0f} %")
        axes.axline((0, 0), slope=1, color="black", linewidth=0.8)
        axes.set(title=task, xlabel=f"{label}, true", ylabel="predicted")
        axes.legend(title="error, graphs of 60 nodes", markerscale=4)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return "; ".join(said)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(draw(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE))
