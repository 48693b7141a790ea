"""Visual navigation: views per second beside MiniWorld's `render_obs` on the same maps, and the rates to and from disk.

    python benchmarks/visual.py [--maps N] [--problems N] [--json]

Both renderers run in this one process, one after the other on each map, on one thread (LP_NUM_THREADS=0, with which
`render_obs` is fastest too). Their rates are views per second of processor time (other work on the machine slows wall
time, not this); MiniWorld's is that of `render_obs` alone, without building its world. Disk rates are wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

if not __package__:  # run as a script: this file must not hide the package of its name
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from datagen.options import VisualOptions
from datagen.storage.dataset import make_dataset
from datagen.storage.stream import ProblemStream
from datagen.tasks import navigation
from datagen.tasks.registry import DatasetSpec


def compare_renderers(maps: np.ndarray) -> dict[str, float]:
    from datagen.rendering.miniworld_reference import render_view, room_world
    from datagen.rendering.panorama import PanoramaRenderer

    options = VisualOptions()
    renderer = PanoramaRenderer(maps.shape[1], options)
    renderer.render(maps[0])
    ours, theirs, worlds, largest = [], [], [], 0
    for map_ in maps:
        views = 4 * np.count_nonzero(map_)
        started = time.process_time()
        panorama = renderer.render(map_)
        ours.append(views / (time.process_time() - started))
        started = time.process_time()
        world, rooms = room_world(map_, options)
        worlds.append(time.process_time() - started)
        seconds = 0.0
        for cell, room in rooms.items():
            for k, view in enumerate(options.views):
                started = time.process_time()
                image = render_view(world, room, view)
                seconds += time.process_time() - started
                largest = max(largest, int(np.abs(image.astype(int) - panorama[cell][k]).max()))
        theirs.append(views / seconds)
    return {
        "views_per_second": statistics.median(ours),
        "views_per_second_slowest_map": min(ours),
        "render_obs_views_per_second": statistics.median(theirs),
        "speedup": statistics.median(a / b for a, b in zip(ours, theirs, strict=True)),
        "speedup_smallest": min(a / b for a, b in zip(ours, theirs, strict=True)),
        "render_obs_world_seconds": statistics.median(worlds),
        "largest_pixel_difference": largest,
    }


def measure_disk(problems: int) -> dict[str, float]:
    spec = DatasetSpec(task="visual_navigation", train=problems, valid=0, test=0)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        make_dataset(spec, Path(folder))
        made = time.perf_counter() - started
        directory = next(Path(folder).iterdir())
        stored = sum(path.stat().st_size for path in directory.glob("*.parquet"))
        raw = sum(
            pq.read_metadata(path).row_group(k).total_byte_size
            for path in directory.glob("*.parquet")
            for k in range(pq.read_metadata(path).num_row_groups)
        )
        stream = ProblemStream(directory, "train")
        list(stream.in_order(16))
        started = time.perf_counter()
        read = sum(len(batch) for batch in stream.batches(32, 0, 0))
        seconds = time.perf_counter() - started
        training = measure_training(ProblemStream(directory, "train", max_bytes=2**29), epochs=2)
    return {
        "maps_made_per_second": problems / made,
        "stored_bytes_per_map": stored / problems,
        "compression": raw / stored,
        "streamed_maps_per_second": read / seconds,
        "seconds_per_batch_of_32": 32 * seconds / read,
        **training,
    }


def measure_training(stream: ProblemStream, epochs: int) -> dict[str, float]:
    """Return how long training ID-VIN through the panorama mapper waits for its batches, beside its steps' own time.

    Whole epochs count, with the first batch of each, for which no step hides the reading. As with the paper's 10,000
    maps, the set is several times the memory that the stream may take.
    """
    import torch

    from planners import PlannerSpec, build_planner

    torch.manual_seed(0)
    planner = build_planner(PlannerSpec(core="vin", adjoint="implicit", k_fwd=30, k_bwd=15, mapper="panorama"))
    optimizer = torch.optim.RMSprop(planner.parameters(), lr=1e-3)
    loading, steps = [], []
    for epoch in range(epochs + 1):
        asked = time.perf_counter()
        for batch in stream.batches(32, 0, epoch):
            loaded = time.perf_counter()
            assert batch.observation is not None
            goal = torch.zeros(len(batch), 1, *batch.map.shape[1:])
            row, column = torch.from_numpy(batch.goal).long().T
            goal[torch.arange(len(batch)), 0, row, column] = 1
            logits = planner.plan(None, goal, torch.from_numpy(batch.observation)).logits
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch.label).long()).backward()
            optimizer.step()
            if epoch:  # in the first, kernels compile
                loading.append(loaded - asked)
                steps.append(time.perf_counter() - loaded)
            asked = time.perf_counter()
    return {
        "training_step_seconds": sum(steps) / len(steps),
        "training_wait_seconds": sum(loading) / len(loading),
        "loaders_share_of_training": sum(loading) / (sum(loading) + sum(steps)),
    }


def main() -> None:
    os.environ["LP_NUM_THREADS"] = "0"  # Processor time is one thread's.
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=12, help="maps drawn by both renderers")
    parser.add_argument("--problems", type=int, default=320, help="problems written to disk and streamed back")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    maps = navigation.draw(DatasetSpec(), "train", 0, arguments.maps).map
    results = compare_renderers(maps) | measure_disk(arguments.problems)
    if arguments.json:
        print(json.dumps(results))
        return
    for name, value in results.items():
        print(f"{name:32s} {value:12,.3f}")


if __name__ == "__main__":
    main()
