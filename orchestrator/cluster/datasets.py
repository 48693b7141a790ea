"""Datasets, made shard by shard on all processors of a cluster; a worker that dies costs no more than its shard."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from datagen.storage.dataset import Shard, directory_of, finish_dataset, is_complete, missing_shards, write_shard
from datagen.storage.manifest import DatasetError
from datagen.tasks.registry import TASKS, DatasetSpec, dataset_id
from datagen.tasks.samples import Samples
from orchestrator.cluster.ray_cluster import ClusterError, finished, machines, most_cpus
from orchestrator.words import first_line

MOST_ATTEMPTS = 3
"""How often a shard is begun before the process that dies over it is called the shard's own fault."""

PROBLEMS_PER_WRITER = 256
"""A process takes seconds to start: it should have something to do."""

_Work = list[tuple[DatasetSpec, Shard | None]]
"""Shards to write; None finishes a dataset whose shards are there."""


@dataclass(frozen=True)
class DatasetProgress:
    """How far the datasets of a sweep are.

    Attributes:
        dataset: Id of the dataset that a shard was just finished for.
        done: Shards there are, of all datasets.
        total: Shards there will be.
        died: The shard whose worker has just died, to be made again; empty where one was finished.
    """

    dataset: str
    done: int
    total: int
    died: str = ""


class ShardWriter:
    """Writes shards in a process of its own; a Ray actor, so that compiled code is warm from the second shard on."""

    def ready(self) -> None:
        """Answer, which it can't before there is a processor for it."""

    def write(self, spec: DatasetSpec, shard: Shard | None, root: Path) -> None:
        """Write one shard of the dataset; with none, finish it, which needs the compiled code too."""
        if shard is None:
            finish_dataset(spec, root)
        else:
            write_shard(spec, shard, root)


Report = Callable[[DatasetProgress], None]
Make = Callable[[_Work, Path, Report], None]
"""Writes shards into a folder, finishes each dataset with its last one, and reports each."""


def make_datasets(
    specs: Iterable[DatasetSpec], root: Path, report: Report = lambda made: None, make: Make | None = None
) -> None:
    """Make what is missing of each dataset, shard by shard, on all CPUs of the cluster.

    A shard's bytes depend on the spec alone, so which worker makes it, and how often, does not matter: the shard of
    a worker that dies is made again by another.

    Args:
        specs: The datasets.
        root: Where datasets are kept; all nodes must see it.
        report: Called after each shard, and where a worker dies.
        make: Writes the shards; without one the processes of the `ray_cluster` that is open.

    Raises:
        ClusterError: A shard's worker died `MOST_ATTEMPTS` times.
    """
    root = root.resolve()
    work: _Work = []
    for spec in {dataset_id(spec): spec for spec in specs}.values():
        if not _whole(spec, root):
            shards = missing_shards(spec, root)
            work += [(spec, shard) for shard in shards]
            if not shards:
                finish_dataset(spec, root)
    if work:
        (make or make_on_cluster)(work, root, report)


def make_here(work: _Work, root: Path, report: Report) -> None:
    """Make shards in this process, one after the other."""
    writer, left = ShardWriter(), Counter(dataset_id(spec) for spec, _ in work)
    for done, (spec, shard) in enumerate(work, start=1):
        writer.write(spec, shard, root)
        name = dataset_id(spec)
        left[name] -= 1
        if not left[name]:
            writer.write(spec, None, root)
        report(DatasetProgress(name, done, len(work)))


def make_on_cluster(work: _Work, root: Path, report: Report) -> None:
    """Make shards, as many at once as there are processors, and finish each dataset with its last one."""
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    if most_cpus(machines()) < 1:
        raise ClusterError("no machine of the cluster has a CPU to make datasets on")
    actor = ray.remote(num_cpus=1, max_restarts=0)(ShardWriter)
    total, done = len(work), 0
    most = min(total, max(1, int(ray.cluster_resources().get("CPU", 1))))
    enough = sum((shard.stop - shard.start) / _writers_share(spec) for spec, shard in work if shard is not None)
    starting: dict[ray.ObjectRef, ray.actor.ActorHandle] = {}
    idle: list[ray.actor.ActorHandle] = []
    running: dict[ray.ObjectRef, tuple[ray.actor.ActorHandle, DatasetSpec, Shard | None]] = {}
    left = Counter(dataset_id(spec) for spec, _ in work)
    deaths = Counter[tuple[str, str]]()

    def start() -> None:
        writer = actor.remote()
        starting[writer.ready.remote()] = writer

    for _ in range(min(most, math.ceil(enough))):
        start()
    while work or running:
        while work and idle:
            writer, (spec, shard) = idle.pop(), work.pop(0)
            running[writer.write.remote(spec, shard, root)] = (writer, spec, shard)
        task = next(finished([*running, *starting]))
        if task in starting:
            idle.append(starting.pop(task))  # should it have died, its first shard tells
            continue
        writer, spec, shard = running.pop(task)
        name, part = dataset_id(spec), shard.name if shard else "manifest.json"
        try:
            ray.get(task)
        except RayActorError as error:
            deaths[name, part] += 1
            if deaths[name, part] >= MOST_ATTEMPTS:
                why = f"its worker died {MOST_ATTEMPTS} times: {first_line(error)}"
                raise ClusterError(f"{name}/{part}: {why}") from error
            work.append((spec, shard))
            start()
            report(DatasetProgress(name, done, total, died=part))
            continue
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        idle.append(writer)
        if shard is None:
            continue
        done += 1
        left[name] -= 1
        if not left[name]:
            work.insert(0, (spec, None))
        report(DatasetProgress(name, done, total))
    for writer in [*idle, *starting.values()]:
        ray.kill(writer)


def _writers_share(spec: DatasetSpec) -> int:
    """Return how many problems are enough for a process to be started for them."""
    task = TASKS[spec.task]
    return min(task.per_file, PROBLEMS_PER_WRITER) if isinstance(task, Samples) else PROBLEMS_PER_WRITER


def _whole(spec: DatasetSpec, root: Path) -> bool:
    """Return whether a dataset is complete and unaltered; a damaged manifest is set aside, its set made again."""
    try:
        return is_complete(spec, root)
    except DatasetError:
        if spec.imported is not None:
            raise
        manifest = directory_of(spec, root) / "manifest.json"
        with suppress(FileNotFoundError):  # another run has set it aside, too
            manifest.replace(manifest.with_name("manifest.json.damaged"))
        return False
