"""What numbers smaller than a normal float32 cost: one training step at the start, with and without flushing them.

python -m benchmarks.denormals [--size 49] [--k 80] [--cores vin,symvin] [--rounds 3] [--json]

One thread, batch 32, fresh weights of D.2's sizes, unrolled. The two ways run in turn; times are medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import nullcontext

import torch
from torch.nn import functional

from datagen.tasks.navigation import draw
from datagen.tasks.registry import DatasetSpec
from planners.planner import Planner, build_planner
from planners.specs import PlannerSpec
from planners.training.evaluation import Inputs
from planners.training.trainer import flushed_denormals

WAYS = {"kept": nullcontext, "flushed": flushed_denormals}


def backward(planner: Planner, inputs: Inputs) -> tuple[float, float]:
    """Return the seconds of a backward pass and the norm of its gradient."""
    planner.zero_grad()
    loss = functional.cross_entropy(planner(inputs.map, inputs.goal), inputs.label)
    started = time.perf_counter()
    loss.backward()
    seconds = time.perf_counter() - started
    gradient = torch.cat([p.grad.flatten() for p in planner.parameters() if p.grad is not None])
    return seconds, float(gradient.double().norm())


def compare(core: str, size: int, k: int, rounds: int) -> dict[str, float]:
    """Return median seconds and gradient norm of both ways."""
    torch.manual_seed(0)
    planner = build_planner(PlannerSpec(core=core, adjoint="unrolled", k_fwd=k))
    inputs = Inputs.of(draw(DatasetSpec(map_size=size), "train", 0, 32), torch.device("cpu"))
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    found: dict[str, float] = {}
    for _ in range(rounds):
        for way, block in WAYS.items():
            with block():
                taken, found[f"{way}_gradient"] = backward(planner, inputs)
            seconds[way].append(taken)
    return found | {f"{way}_seconds": statistics.median(times) for way, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=49)
    parser.add_argument("--k", type=int, default=80)
    parser.add_argument("--cores", default="vin,symvin")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for core in options.cores.split(","):
        found = compare(core, options.size, options.k, options.rounds)
        if options.json:
            print(json.dumps({"core": core, "size": options.size, "k": options.k, **found}), flush=True)
            continue
        print(
            f"{core} {options.size}x{options.size}, K = {options.k}: backward {found['kept_seconds']:.2f} s, flushed "
            f"{found['flushed_seconds']:.2f} s ({found['kept_seconds'] / found['flushed_seconds']:.1f} times faster); "
            f"norm of the gradient {found['kept_gradient']:.9g}, {found['flushed_gradient']:.9g}",
            flush=True,
        )


if __name__ == "__main__":
    main()
