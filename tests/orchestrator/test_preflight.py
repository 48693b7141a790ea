"""What a machine is asked before a sweep runs on several; tests/multinode.py asks real ones."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from datagen.storage.dataset import is_complete
from datagen.tasks.registry import DatasetSpec
from orchestrator import signals as interruption
from orchestrator.cluster import preflight
from orchestrator.cluster.datasets import make_datasets
from orchestrator.cluster.preflight import Sight, _check_code, check_machines, see
from orchestrator.cluster.ray_cluster import (
    ClusterError,
    finished,
    machine_here,
    machines,
    measure_everywhere,
    ray_cluster,
)
from orchestrator.cluster.resources import alone, requested_resources
from orchestrator.storage.code import whole_code
from orchestrator.storage.layout import Storage
from orchestrator.sweep.specs import PlannedTrial, Resources, TrialSpec, trial_id

pytestmark = pytest.mark.sweeps


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(preflight, "APPEAR_SECONDS", 0.0)


def test_a_machine_that_sees_the_file_and_can_write_is_fine_and_leaves_nothing(tmp_path):
    (tmp_path / "mark").write_text("content")
    sight = see(tmp_path / "mark", "content")
    assert (sight.problem, sight.code) == ("", whole_code())
    assert os.listdir(tmp_path) == ["mark"]


def test_what_is_wrong_is_told_apart(tmp_path, monkeypatch):
    assert see(tmp_path / "mark", "content").problem == "what this run writes there is not seen"
    assert see(tmp_path / "absent" / "mark", "content").problem == "there is no such folder"
    (tmp_path / "mark").write_text("another run's")
    assert see(tmp_path / "mark", "content").problem == "another file is there"
    (tmp_path / "mark").write_text("content")

    def no_links(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert see(tmp_path / "mark", "content").problem == "can't be written to: Operation not permitted"
    assert os.listdir(tmp_path) == ["mark"]


def test_a_storage_inside_a_jobs_own_copy_is_refused(tmp_path):
    inside = tmp_path / "working_dir_files" / "_ray_pkg_1" / "idp-storage"
    with pytest.raises(ClusterError, match="goes away with this job: set IDP_STORAGE"):
        check_machines(Storage(inside), "auto")


def test_code_that_is_not_this_process_s_is_refused_in_one_line():
    _check_code([Sight("here", "", whole_code())], [])
    with pytest.raises(ClusterError, match=r"other code of idp than this one \(.*\): there \(0123456789ab\)") as caught:
        _check_code([Sight("here", "", whole_code()), Sight("there", "", "0123456789ab")], [])
    assert "\n" not in str(caught.value)


@pytest.fixture
def uneven(monkeypatch):
    """A real cluster of machines with 1 and 2 processors, joined."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    bare = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **bare})
    try:
        cluster.add_node(num_cpus=2)
        with interruption.interruptible(), ray_cluster(cluster.address):
            yield cluster
    finally:
        cluster.shutdown()


def test_uneven_machines_their_code_and_a_signal_while_they_work(uneven, tmp_path, monkeypatch):
    import ray

    def here() -> tuple[dict[str, float], str]:
        return machine_here(), whole_code()

    every = machines()
    assert sorted(machine["CPU"] for machine in every) == [1, 2]
    request = requested_resources(Resources(exclusive=True), TrialSpec(), every)
    task = ray.remote(num_cpus=request["cpu"])(here)
    for machine, code in ray.get([task.remote() for _ in range(2)]):
        assert machine["CPU"] == 2 and alone(request, machine)
        assert code == whole_code()
    machine, _ = ray.get(ray.remote(num_cpus=1)(here).remote())
    assert machine["CPU"] in (1, 2)

    check_machines(Storage(tmp_path), uneven.address)
    monkeypatch.setattr(preflight, "whole_code", lambda: "0123456789ab")
    with pytest.raises(ClusterError, match="other code of idp than this one"):
        check_machines(Storage(tmp_path), uneven.address)

    # More threads than any machine has: measured on what there is, not waited for.
    spec = TrialSpec(execution={"threads": 64}, training={"epochs": 0})
    assert measure_everywhere([PlannedTrial(trial_id(spec), spec, {})], tmp_path, lambda trial, found: None) == []

    class Busy:
        def ready(self) -> None:
            pass

    # Another run keeps all but one processor, for hours: the one writer that has a processor makes all shards.
    busy = ray.remote(num_cpus=2)(Busy).remote()
    ray.get(busy.ready.remote())
    in_the_end = threading.Timer(60.0, ray.kill, (busy,))
    in_the_end.start()
    data = DatasetSpec(map_size=5, train=600, valid=8, test=8)
    make_datasets([data], tmp_path / "datasets")
    assert is_complete(data, tmp_path / "datasets") and in_the_end.is_alive()
    in_the_end.cancel()
    ray.kill(busy)

    def endless() -> None:
        import time

        time.sleep(600)

    with pytest.raises(interruption.Interrupted, match="SIGHUP"):
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGHUP)).start()
        list(finished([ray.remote(endless).remote()]))
