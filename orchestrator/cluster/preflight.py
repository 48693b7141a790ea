"""Before a sweep runs on several machines: do they all have the same storage, and the same code?"""

from __future__ import annotations

import os
import socket
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.cluster.ray_cluster import finished
from orchestrator.errors import ClusterError
from orchestrator.storage.code import whole_code
from orchestrator.storage.layout import Storage
from orchestrator.words import last_line

APPEAR_SECONDS = 5.0
"""A file may take a moment to be seen by another client of a network file system."""

ANSWER_SECONDS = 120.0
"""A machine that gives no answer for so long is too busy, or broken; its first process may take a while to start."""


@dataclass(frozen=True)
class Sight:
    """What a machine sees.

    Attributes:
        host: Its name.
        problem: What is wrong with the storage there; empty where nothing is.
        code: Hash of the code that it would run, this package's included.
    """

    host: str
    problem: str
    code: str


def check_machines(storage: Storage, address: str | None) -> None:
    """Refuse a run whose storage is not the same on all machines of the cluster, or whose code is not.

    A file with a random content is written into the storage here, and each machine has to find it there. Of a single
    machine only the code is asked. A cluster that this process has started is asked nothing, which would take a process
    of its own: each trial compares the code once more (`trials.train`).

    Args:
        storage: The storage directory; a `ray_cluster` must be open.
        address: The cluster that it joined; None for one that it started itself, which is this machine alone.

    Raises:
        ClusterError: What is wrong where, and what to do.
    """
    folder = storage.path.resolve()
    check_place(folder)
    if address is None:
        return
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2 and not address.startswith("ray://"):
        _check_code(*_ask(nodes, None, ""))
        return
    folder.mkdir(parents=True, exist_ok=True)
    mark, content = folder / f".preflight-{uuid.uuid4().hex[:12]}", uuid.uuid4().hex
    mark.write_text(content)
    try:
        sights, problems = _ask(nodes, mark, content)
    finally:
        mark.unlink(missing_ok=True)
    problems += [f"{sight.host}: {sight.problem}" for sight in sights if sight.problem]
    if problems:
        raise ClusterError(
            f"the storage {folder} is not shared by all machines of the cluster: {'; '.join(sorted(problems))}. Mount "
            "one file system (such as NFS) there on all of them, or give --storage with a path where one is"
        )
    _check_code(sights, [])


def check_place(storage: Path) -> None:
    """Refuse a storage that goes away with the job that runs.

    Args:
        storage: The storage directory, resolved.

    Raises:
        ClusterError: It is in a job's own copy of what was submitted.
    """
    if "working_dir_files" in storage.parts:
        raise ClusterError(
            f"the storage would be {storage}, a folder that goes away with this job: set IDP_STORAGE on the cluster's "
            "machines, or give --storage, to a path on a file system that they share"
        )


def _ask(nodes: list[dict[str, Any]], mark: Path | None, content: str) -> tuple[list[Sight], list[str]]:
    """Return what the machines see, and what is wrong with those that can't say."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(see)
    asked = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            mark, content
        ): node
        for node in nodes
    }
    sights, problems = [], []
    for task in finished(list(asked), ANSWER_SECONDS):
        node = asked.pop(task)
        try:
            sights.append(ray.get(task))
        except RayError as error:
            if _alive(node["NodeID"]):
                problems.append(f"{_name(node)}: {last_line(error)}")
    return sights, problems + [f"{_name(node)} gives no answer" for node in asked.values()]


def _check_code(sights: list[Sight], problems: list[str]) -> None:
    if problems:
        raise ClusterError(f"a process of the cluster can't be asked for its code: {'; '.join(sorted(problems))}")
    others = sorted({f"{sight.host} ({sight.code})" for sight in sights if sight.code != whole_code()})
    if others:
        raise ClusterError(
            f"these machines run other code of idp than this one ({whole_code()}): {', '.join(others)}; "
            "install one version everywhere, or use idp submit, which sends it along"
        )


def see(mark: Path | None, content: str) -> Sight:
    """Return what the machine that this runs on sees of a file that another has just written.

    Args:
        mark: The file; None to ask for the code alone.
        content: What is in it.
    """
    if mark is None:
        return Sight(socket.gethostname(), "", whole_code())
    deadline = time.monotonic() + APPEAR_SECONDS
    problem = ""
    while True:
        try:
            problem = "" if mark.read_text() == content else "another file is there"
        except FileNotFoundError:
            problem = "what this run writes there is not seen" if mark.parent.is_dir() else "there is no such folder"
        except OSError as error:
            problem = str(error.strerror)
        if not problem or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    if not problem:
        own = mark.with_name(f"{mark.name}-{uuid.uuid4().hex[:8]}")
        try:
            own.write_text(content)
            os.link(own, own.with_name(f"{own.name}-link"))  # what leases are made of
            own.with_name(f"{own.name}-link").unlink()
        except OSError as error:
            problem = f"can't be written to: {error.strerror}"
        finally:
            own.unlink(missing_ok=True)
    return Sight(socket.gethostname(), problem, whole_code())


def _name(node: dict[str, object]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def _alive(node_id: str) -> bool:
    import ray

    return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())
