"""Where a trial may run: what it asks of Ray, and whether a device is as large as its spec says."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.cluster import ClusterError
from orchestrator.specs import Resources, TrialSpec

MEMORY_GIB = {
    "P4": 8, "T4": 16, "P100": 16, "V100": 16, "A10G": 24, "A10": 24, "L4": 24, "A100-40G": 40, "A100": 40, "L40S": 48,
    "A6000": 48, "A100-80G": 80, "H100": 80, "H200": 141, "B200": 180,
}  # fmt: skip
"""Memory of the models that Ray tells apart, the smallest variant of each name."""

_PREFIX = "accelerator_type:"


def requested_resources(resources: Resources, spec: TrialSpec, cluster: Mapping[str, float]) -> dict[str, float]:
    """Return what one trial asks of Ray.

    Args:
        resources: What the sweep says.
        spec: A trial of the sweep.
        cluster: What the cluster has in total, e.g. {"CPU": 2.0, "GPU": 1.0, "accelerator_type:H100": 1.0}.

    Raises:
        ClusterError: The cluster has less than one trial needs, so that Ray would wait forever.
    """
    cpus = float(spec.execution.threads) if resources.cpus is None else resources.cpus
    pinned = resources.accelerator is not None or resources.min_memory_gib is not None
    if resources.gpus == "auto":
        gpus = 1.0 if pinned or (cluster.get("GPU", 0.0) >= 1 and may_use_gpu(spec)) else 0.0
    else:
        gpus = float(resources.gpus)
    if resources.exclusive and 0 < gpus < 1:
        raise ClusterError(
            f"resources.gpus is {gpus:g}, but resources.exclusive promises each trial a device to itself"
        )
    if pinned and not gpus:
        raise ClusterError("resources.gpus is 0, but resources.accelerator or min_memory_gib asks for a GPU")
    for name, count in {"CPU": cpus, "GPU": gpus}.items():
        if count > cluster.get(name, 0.0):
            raise ClusterError(f"a trial needs {count:g} {name}, but the cluster has {cluster.get(name, 0.0):g}")
    if resources.exclusive and not gpus:  # the processor is the device: no other trial on its machine
        cpus = max(cpus, _cpus_of_a_machine(cluster))
    request = {"cpu": cpus} | ({"gpu": gpus} if gpus else {})
    if pinned:
        request[_PREFIX + _model(resources, cluster)] = 0.001
    return request


def alone(request: Mapping[str, float], cluster: Mapping[str, float]) -> bool:
    """Return whether a trial that asks this of Ray has its device to itself, so that its times can be compared."""
    return request.get("gpu", 0.0) >= 1 or ("gpu" not in request and request["cpu"] >= _cpus_of_a_machine(cluster))


def _cpus_of_a_machine(cluster: Mapping[str, float]) -> float:
    machines = sum(name.startswith("node:") and not name.startswith("node:__") for name in cluster)
    return cluster["CPU"] // max(1, machines)


def _model(resources: Resources, cluster: Mapping[str, float]) -> str:
    """Return the GPU model to ask for."""
    there = sorted(name.removeprefix(_PREFIX) for name in cluster if name.startswith(_PREFIX))
    least = resources.min_memory_gib or 0.0
    fits = [
        name
        for name in there
        if resources.accelerator in (None, name) and (not least or MEMORY_GIB.get(name, 0) >= least)
    ]
    if not fits:
        wanted = f"a {resources.accelerator}" if resources.accelerator else "a GPU"
        wanted += f" with {least:g} GiB" if least else ""
        raise ClusterError(f"a trial needs {wanted}, but the cluster has {', '.join(there) or 'no GPU that Ray knows'}")
    return min(fits, key=lambda name: (MEMORY_GIB.get(name, 0), name))


def may_use_gpu(spec: TrialSpec) -> bool:
    """Return whether a trial computes on a GPU where it is lent one."""
    return spec.execution.device != "cpu" and not spec.planner.compiled_solver


class PlacementError(RuntimeError):
    """The trial was put on a device that is smaller than its memory limit: no outcome, to be tried on a larger one."""


def check_device(total_bytes: int, name: str, limit_gib: float | None) -> None:
    """Raise PlacementError where a device could not hold what the trial's spec allows.

    Args:
        total_bytes: Memory of the device.
        name: Its model.
        limit_gib: The spec's memory limit, None for none.
    """
    if limit_gib is not None and total_bytes < limit_gib * 2**30:
        raise PlacementError(
            f"{name} has {total_bytes / 2**30:.1f} GiB, less than the trial's limit of {limit_gib:g}: it must run on a "
            f"larger device, e.g. by resources.min_memory_gib: {limit_gib:g}"
        )
