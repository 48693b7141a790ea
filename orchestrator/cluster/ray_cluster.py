"""Ray: joining or starting a cluster, what its machines have, and tests and measurements on all of them."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from orchestrator import signals as interruption
from orchestrator.errors import ClusterError as ClusterError
from orchestrator.storage.evaluations import PlannedEvaluation, missing_evaluations
from orchestrator.storage.layout import Storage
from orchestrator.storage.measurements import Measurement
from orchestrator.sweep import plugins
from orchestrator.sweep.specs import PlannedTrial
from orchestrator.trial.evaluate import evaluate_trial, keep_evaluation
from orchestrator.words import first_line, last_line

REACHABLE_SECONDS = 5.0

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to anybody
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial that Ray lends no GPU sees none
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # the newer output prints its box even when told to be silent
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard copies beside our own files
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",  # no list of all trials every ten seconds: ours go on from their directories
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "30",
    "RAY_TQDM": "0",
}

_LOCAL = {"prestart_worker_first_driver": False}
"""Processes that Ray starts ahead have not the environment that ours ask for: nobody would ever use them."""

OBJECT_STORE_BYTES = 128 * 2**20
"""Datasets travel through files, so a local cluster needs next to no object store."""


@contextmanager
def ray_cluster(address: str | None = None) -> Iterator[None]:
    """Join the Ray cluster at `address`, or start one on this machine, and leave it at the end.

    Args:
        address: "auto", "HOST:PORT" or "ray://...": None starts a local one.

    Raises:
        ClusterError: Ray can't be started or joined; the message has Ray's reason.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    check_address(address)
    import ray

    local = (
        {}
        if address
        else {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES, "_system_config": _LOCAL}
    )
    try:
        with interruption.spared_hangups():
            ray.init(
                address=address or "local",
                runtime_env=plugins.runtime_env(),
                logging_level=logging.ERROR,
                log_to_driver=False,
                **local,
            )
    except SystemExit as ended:
        # Ray's own handler of SIGTERM, which it puts over ours while it starts.
        raise interruption.Interrupted(ended.code if isinstance(ended.code, int) else signal.SIGTERM) from None
    except Exception as error:  # of no class of its own where a busy machine was too slow, for one
        where = f"join the Ray cluster at {address}" if address else "start Ray"
        raise ClusterError(f"can't {where}: {first_line(error)}") from error
    # Tune and the dashboard agent speak through these; what matters reaches the caller as an exception.
    for name in ("ray", "ray.tune", "ray.air", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        # Ray prints what its daemons say, such as a worker's death, to standard output, which is for the table.
        with interruption.deferred(), open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            yield
    finally:
        ray.shutdown()


def machines() -> list[dict[str, float]]:
    """Return what each machine of the open cluster has, e.g. {"CPU": 8.0, "GPU": 1.0, "accelerator_type:T4": 1.0}."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def head_address() -> str:
    """Return where the head of the open cluster is, the same to all its processes."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def most_cpus(every: list[dict[str, float]]) -> float:
    """Return the processors of the largest of the machines: a task that asks for more would wait for ever."""
    return max((machine.get("CPU", 0.0) for machine in every), default=0.0)


def machine_here() -> dict[str, float]:
    """Return what the machine has that this process of the cluster runs on."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    return next((dict(node["Resources"]) for node in ray.nodes() if node["NodeID"] == own), {})


def finished(tasks: list[Any], seconds: float = math.inf) -> Iterator[Any]:
    """Yield tasks as they end, for at most so many seconds, and leave where a signal asks for it.

    Args:
        tasks: References that Ray has given.
        seconds: When to stop waiting; what has not ended by then is not yielded.
    """
    import ray

    left, until = list(tasks), time.monotonic() + seconds
    while left and time.monotonic() < until:
        ready, left = ray.wait(left, num_returns=1, timeout=0.2)
        interruption.check()
        yield from ready


def machine() -> tuple[float, float]:
    """Run a task on the open cluster and return how many CPUs and GPUs it has."""
    import ray

    def answer() -> int:
        return os.getpid()

    if not list(finished([ray.remote(num_cpus=0)(answer).remote()], 60.0)):
        raise ClusterError("no process of the cluster has answered for a minute")
    return ray.cluster_resources().get("CPU", 0.0), ray.cluster_resources().get("GPU", 0.0)


def check_address(address: str | None) -> None:
    """Raise ClusterError where nothing listens; Ray itself would try for minutes, aloud."""
    if address is None or address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port):
        raise ClusterError(f"--address {address!r}: expected auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=REACHABLE_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"can't join the Ray cluster at {address}: {error}") from error


def evaluate_all(
    planned: list[PlannedEvaluation],
    storage: Storage,
    report: Callable[[PlannedEvaluation, str], None] | None = None,
    stall_seconds: float | None = None,
) -> int:
    """Test trained planners on further maps, on all CPUs of the cluster; results go into the trial directories.

    Args:
        planned: What to do; a `ray_cluster` must be open and the datasets be there.
        storage: The storage directory; all nodes must see it.
        report: Called after each, with the reason where it failed, else "".
        stall_seconds: Time without a tested batch after which a process is ended; None to wait for ever.

    Returns:
        How many failed. They have left nothing, so that the next run tries them again.
    """
    import ray
    from ray.exceptions import RayError

    storage = storage.resolve()
    cpus = most_cpus(machines())
    running: dict[ray.ObjectRef, PlannedEvaluation] = {}
    task = ray.remote(max_retries=2)(evaluate)
    for evaluation in planned:
        sized = task.options(num_cpus=min(evaluation.trial.spec.execution.threads, cpus))
        running[sized.remote(evaluation, storage, stall_seconds)] = evaluation
    failures = 0
    for ended in finished(list(running)):
        reason = ""
        try:
            ray.get(ended)
        except RayError as error:
            reason = last_line(getattr(error, "cause", None) or error)
            failures += 1
        if report:
            report(running[ended], reason)
    return failures


def evaluate(evaluation: PlannedEvaluation, storage: Storage, stall_seconds: float | None) -> None:
    """Test a trained planner on a further set of maps in this process; the result goes into the trial directory.

    What another run on this storage has tested meanwhile is not tested again.
    """
    if not missing_evaluations([evaluation], storage):
        return
    trial = storage.trial(evaluation.trial.trial_id)
    from orchestrator.trial.watchdog import watched

    with watched(trial, stall_seconds) as watchdog:
        dataset = storage.dataset(evaluation.data)
        found = evaluate_trial(
            trial, dataset, "test", evaluation.k, progress=watchdog.advance, measures=evaluation.measure
        )
        keep_evaluation(trial, found)


def measure_everywhere(
    trials: list[PlannedTrial], storage: Storage, say: Callable[[PlannedTrial, Measurement], None]
) -> list[Measurement]:
    """Measure every distinct cell once on each model of accelerator that the cluster has, or on a processor of it.

    Args:
        trials: The sweep's trials; a `ray_cluster` must be open.
        storage: The storage directory, where measurements are kept; all nodes must see it.
        say: Is told of each measurement once its machine is done.
    """
    import ray
    from ray.exceptions import RayError

    storage = storage.resolve()
    threads = max((trial.spec.execution.threads for trial in trials), default=1)
    every = machines()
    models = sorted({name for machine in every for name in machine if name.startswith("accelerator_type:")})
    tasks = []
    for model in models or [""]:
        cpus = min(threads, most_cpus([machine for machine in every if not model or model in machine]))
        extra = {"num_gpus": 1, "resources": {model: 0.001}} if model else {}
        tasks.append(ray.remote(num_cpus=cpus, **extra)(_measure).remote(trials, storage))
    found = []
    for task in finished(tasks):
        try:
            pairs = ray.get(task)
        except RayError as error:
            raise ClusterError(f"a measurement failed: {last_line(error)}") from error
        for trial, measurement in pairs:
            say(trial, measurement)
            found.append(measurement)
    return found


def _measure(trials: list[PlannedTrial], storage: Storage) -> list[tuple[PlannedTrial, Measurement]]:
    from orchestrator.trial.measure import measure_cells

    found: list[tuple[PlannedTrial, Measurement]] = []
    measure_cells(trials, storage, lambda trial, measurement: found.append((trial, measurement)))
    return found
