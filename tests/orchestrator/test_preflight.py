"""What a machine is asked before a sweep runs on several; tests/multinode.py asks real ones."""

from __future__ import annotations

import os

import pytest

from orchestrator import preflight
from orchestrator.cluster import ClusterError
from orchestrator.preflight import check_machines, see
from orchestrator.provenance import code_hash


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(preflight, "APPEAR_SECONDS", 0.0)


def test_a_machine_that_sees_the_file_and_can_write_is_fine_and_leaves_nothing(tmp_path):
    (tmp_path / "mark").write_text("content")
    sight = see(tmp_path / "mark", "content")
    assert (sight.problem, sight.code) == ("", code_hash())
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
        check_machines(inside, "auto")


def test_one_machine_needs_no_check(tmp_path):
    check_machines(tmp_path / "storage", None)
    assert not (tmp_path / "storage").exists()
