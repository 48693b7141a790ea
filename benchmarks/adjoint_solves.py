"""How far `solver_bwd: moving_average` is from the adjoint solve of the authors' code, in trained planners.

python -m benchmarks.adjoint_solves STORAGE SWEEP [--profile laptop] [--only planner=id-vin-averaged]
    [--out docs/results/adjoint_solves.json]

Of each trained planner and one batch of its training maps: the norm of the incoming gradient g, and how far apart the
two solutions of w = J^T w + g (Eq. 6) are, relative to the authors': the median sample, the worst two, and how many
there are. (The answer of `moving_average` is its iterate of lowest residual, theirs is the last.)
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
from planners.fixed_points import Implicit, Step
from planners.fixed_points.averaging import MovingAverage
from planners.fixed_points.solution import AdjointSlot
from planners.planner import Planner
from planners.training.losses import cross_entropy

RIDGE, DEPTH = 1e-4, 5  # of the authors' code


def with_a_ridge(product: Step, g: Tensor, products: int) -> Tensor:
    """Return w after some steps of Anderson's method as in the authors' code, for g [B, ...] at the scale of the loss.

    w_{k+1} = sum_i alpha_i f(w_i), f(w) = J^T w + g, where alpha, of sum 1, minimises
    ||sum_i alpha_i (f(w_i) - w_i)||^2 + ridge ||alpha||^2 over the last five; the first step is a plain one.
    """
    w, iterates, images = g, list[Tensor](), list[Tensor]()
    for k in range(products):
        if k:
            found = torch.stack([image.flatten(1) for image in images], 1)  # [B, n, N]
            defects = found - torch.stack([iterate.flatten(1) for iterate in iterates], 1)
            gram = (defects @ defects.transpose(1, 2)).double()
            gram.diagonal(dim1=1, dim2=2).add_(RIDGE)
            alpha = torch.linalg.solve(gram, gram.new_ones(*gram.shape[:2], 1))
            alpha = (alpha / alpha.sum(1, keepdim=True)).to(found.dtype)
            w = (alpha.transpose(1, 2) @ found).view_as(g)
        iterates, images = [*iterates, w][-DEPTH:], [*images, product(w) + g][-DEPTH:]
    return w


def compare(planner: Planner, problems: Problems, *, one_hot: bool) -> dict[str, float]:
    """Return the numbers of the module's docstring for a planner whose adjoint solver is `MovingAverage`."""
    solver = planner.adjoint.solver
    assert isinstance(solver, MovingAverage)
    found: dict[str, float] = {}

    class Compared(Implicit):
        def adjoin(self, transposed_jacobian: Step, g: Tensor, slot: AdjointSlot) -> Tensor:
            w = super().adjoin(transposed_jacobian, g, slot)
            theirs = with_a_ridge(transposed_jacobian, g, solver.max_steps)
            apart = _norm(w - theirs) / _norm(theirs)
            found["gradient"] = float(_norm(g).median())
            found["apart"] = float(apart.median())
            found["worst"], found["next"] = apart.topk(2).values.tolist()
            found["samples"] = len(apart)
            return w

    planner.adjoint = Compared(solver, inexact=True)
    planner.kernel = "reference"
    inputs = Inputs.of(problems)
    plan = planner.plan(inputs.map, inputs.goal, inputs.observation)
    cross_entropy(plan.logits, inputs, one_hot=one_hot).backward()
    return found


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    rows = []
    for trial in select(expand(load_sweep(options.sweep, options.profile)), options.only):
        directory = Storage(options.storage).trial(trial.trial_id).path
        if trial.spec.planner.solver_bwd != "moving_average" or not (directory / "result.json").exists():
            continue
        trained = load_trained(directory)
        problems = read_split(options.storage / "datasets" / dataset_id(trial.spec.data), "train")
        one_hot = trained.spec.training.labels == "one_hot"
        found = compare(trained.planner, problems[: trained.spec.training.batch_size], one_hot=one_hot)
        print(trial_name(trial), *(f"{name}: {value:.2g}" for name, value in found.items()), sep="  ", flush=True)
        rows.append({"trial_id": trial.trial_id} | found)
    keep(rows, options.out)


if __name__ == "__main__":
    main()
