"""Where a trained planner's fixed point lies: residuals by two solvers, and the spectral radius of its step there.

python -m benchmarks.stability STORAGE SWEEP [--profile laptop] [--only planner=id-symvin] [--problems 24]
    [--out docs/results/stability.json]

Below 1 the forward iteration comes to the fixed point, and so does that of the adjoint system (Eq. 6); above 1 neither.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.rows import keep, parser
from datagen.problem import Problems
from datagen.storage.dataset import read_split
from datagen.tasks.registry import dataset_id
from orchestrator.storage.layout import Storage
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.selection import select
from orchestrator.sweep.specs import expand
from orchestrator.trial.trained import Inputs, load_trained
from orchestrator.words import trial_name
from planners.cores import CompactStep, encoded
from planners.fixed_points import Anderson, ForwardIteration, Step
from planners.planner import Planner


@torch.no_grad()
def fixed_points(planner: Planner, problems: Problems) -> dict[str, float]:
    """Return, as medians over the problems, the relative residuals after some steps and the spectral radius."""
    inputs = Inputs.of(problems)
    x, _ = planner.inputs(inputs.map.double(), inputs.goal.double(), inputs.observation)
    step = encoded(planner.core, x)
    if isinstance(step, CompactStep):
        step = step.prepared()
    start = step.initial_value()
    found: dict[str, float] = {}
    value = start
    for name, solver in (
        ("forward, 30", ForwardIteration(max_steps=30, tolerance=0.0)),
        ("forward, 200", ForwardIteration(max_steps=200, tolerance=0.0)),
        ("Anderson, 30", Anderson(max_steps=30, tolerance=0.0)),
        ("Anderson, 100", Anderson(max_steps=100, tolerance=0.0)),
    ):
        value = solver.solve(step, start).value
        after = step(value)
        found[name] = float((_norm(after - value) / _norm(after)).median())
    radius = spectral_radius(step, value)
    return found | {"radius": float(radius.median()), "largest radius": float(radius.max())}


def spectral_radius(step: Step, value: Tensor, burn_in: int = 150, rounds: int = 20) -> Tensor:
    """Return each sample's largest |eigenvalue| of df/dv at `value` [B, ...], by power iteration on its transpose."""
    _, pull_back = torch.func.vjp(step, value)
    direction = torch.randn(value.shape, dtype=value.dtype, generator=torch.Generator().manual_seed(0))
    growth = torch.zeros(len(value), dtype=value.dtype)
    for i in range(burn_in + rounds):
        (image,) = pull_back(direction)
        norm = _norm(image)
        direction = image / norm.view(-1, *[1] * (value.ndim - 1))
        # A pair of complex eigenvalues makes single norms swing; their geometric mean does not.
        growth += norm.log() if i >= burn_in else 0.0
    return (growth / rounds).exp()


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--problems", type=int, default=24, help="test problems of the sweep's own")
    options = arguments.parse_args()
    rows = []
    for trial in select(expand(load_sweep(options.sweep, options.profile)), options.only):
        directory = Storage(options.storage).trial(trial.trial_id).path
        planner = load_trained(directory).planner.double()
        problems = read_split(options.storage / "datasets" / dataset_id(trial.spec.data), "test")
        found = fixed_points(planner, problems[: options.problems])
        print(trial_name(trial), *(f"{name}: {value:.2g}" for name, value in found.items()), sep="  ", flush=True)
        rows.append({"trial_id": trial.trial_id} | found)
    keep(rows, options.out)


if __name__ == "__main__":
    main()
