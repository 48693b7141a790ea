"""What a trial asks of Ray, and whether it has its device to itself."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

from orchestrator.errors import ClusterError
from orchestrator.sweep.specs import Resources, TrialSpec
from orchestrator.trial.device import may_use_gpu

MEMORY_GIB = {
    "P4": 8, "T4": 16, "P100": 16, "V100": 16, "A10G": 24, "A10": 24, "L4": 24, "A100-40G": 40, "A100": 40, "L40S": 48,
    "A6000": 48, "A100-80G": 80, "H100": 80, "H200": 141, "B200": 180,
}  # fmt: skip
"""Memory of the models that Ray tells apart, the smallest variant of each name."""

_PREFIX = "accelerator_type:"


def requested_resources(
    resources: Resources, spec: TrialSpec, machines: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """Return what one trial asks of Ray.

    Args:
        resources: What the sweep says.
        spec: A trial of the sweep.
        machines: What each machine has, e.g. {"CPU": 2.0, "GPU": 1.0, "accelerator_type:H100": 1.0}.

    Raises:
        ClusterError: No machine has what one trial needs, so that Ray would wait forever.
    """
    cpus = float(spec.execution.threads) if resources.cpus is None else resources.cpus
    pinned = resources.accelerator is not None or resources.min_memory_gib is not None
    if resources.gpus == "auto":
        any_gpu = any(machine.get("GPU", 0.0) >= 1 for machine in machines)
        gpus = 1.0 if pinned or (any_gpu and may_use_gpu(spec)) else 0.0
    else:
        gpus = float(resources.gpus)
    if resources.exclusive and 0 < gpus < 1:
        raise ClusterError(
            f"resources.gpus is {gpus:g}, but resources.exclusive promises each trial a device to itself"
        )
    if pinned and not gpus:
        raise ClusterError("resources.gpus is 0, but resources.accelerator or min_memory_gib asks for a GPU")
    request = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    for name, count in request.items():
        most = max((machine.get(name, 0.0) for machine in machines), default=0.0)
        if count > most:
            has = f"the largest machine of the cluster has {most:g}" if most else "no machine of the cluster has any"
            raise ClusterError(f"a trial needs {count:g} {name}, but {has}")
    if pinned:
        request[_PREFIX + _model(resources, machines)] = 0.001
    fits = [machine for machine in machines if all(machine.get(name, 0.0) >= n for name, n in request.items())]
    if not fits:
        wanted = " and ".join(_words(name, count) for name, count in request.items())
        raise ClusterError(f"a trial needs {wanted} on one machine, but no machine of the cluster has all of them")
    if resources.exclusive and not gpus:
        # The processor is the device. Less than the largest machine has would let others of its trials in beside one
        # there, and Ray has no name for "a whole machine, however large": the smaller ones get no trial.
        request["CPU"] = max(machine["CPU"] for machine in fits)
    return {"cpu": request.pop("CPU")} | ({"gpu": request.pop("GPU")} if gpus else {}) | request


def distinct_requests(
    resources: Resources, specs: Iterable[TrialSpec], machines: Sequence[Mapping[str, float]]
) -> list[dict[str, float]]:
    """Return what trials of one sweep ask of Ray, each request once, those for a GPU first.

    Args:
        resources: What the sweep says.
        specs: The trials; they ask for the same but that not all of them may compute on a GPU.
        machines: What each machine has.

    Raises:
        ClusterError: No machine has what a trial needs.
    """
    kinds = {may_use_gpu(spec): spec for spec in specs}
    requests: list[dict[str, float]] = []
    for able in sorted(kinds, reverse=True):
        request = requested_resources(resources, kinds[able], machines)
        if request not in requests:
            requests.append(request)
    return requests


def check_here(resources: Resources, spec: TrialSpec) -> None:
    """Refuse, before Ray is started on this machine, what it can't have.

    Args:
        resources: What the sweep says.
        spec: A trial of the sweep.

    Raises:
        ClusterError: A trial needs more processors than there are.
    """
    cpus = float(spec.execution.threads) if resources.cpus is None else resources.cpus
    if cpus > (there := os.cpu_count() or 1):
        raise ClusterError(f"a trial needs {cpus:g} CPU, but this machine has {there}")


def left_out(request: Mapping[str, float], machines: Sequence[Mapping[str, float]]) -> int:
    """Return how many machines that have processors are too small for a trial that asks this of Ray."""
    return sum(0 < machine.get("CPU", 0.0) < request["cpu"] for machine in machines)


def alone(request: Mapping[str, float], machine: Mapping[str, float]) -> bool:
    """Return whether a trial has its device to itself, so that its times can be compared.

    Args:
        request: What it has asked of Ray.
        machine: What the machine that it runs on has.
    """
    if "gpu" in request:
        return request["gpu"] >= 1
    return request["cpu"] >= machine.get("CPU", float("inf"))


def model_of(request: Mapping[str, float]) -> str:
    """Return the GPU model that a trial asks for, empty for any."""
    return next((name.removeprefix(_PREFIX) for name in request if name.startswith(_PREFIX)), "")


def models_of(machine: Mapping[str, float]) -> set[str]:
    """Return the GPU models that a machine has."""
    return {name.removeprefix(_PREFIX) for name in machine if name.startswith(_PREFIX)}


def _words(name: str, count: float) -> str:
    return f"a {name.removeprefix(_PREFIX)}" if name.startswith(_PREFIX) else f"{count:g} {name}"


def _model(resources: Resources, machines: Sequence[Mapping[str, float]]) -> str:
    """Return the GPU model to ask for."""
    there = sorted({name for machine in machines for name in models_of(machine)})
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
