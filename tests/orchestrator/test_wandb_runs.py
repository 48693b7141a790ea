"""W&B's own offline files, read back record by record, where it is installed; and what is said where it is not."""

from __future__ import annotations

import json
import struct
import sys

import pytest
from samples import put_curves, put_result, sample_runs

from orchestrator.errors import TrackingError
from orchestrator.storage.layout import Storage
from orchestrator.tracking.wandb_runs import VARIABLE, send

BLOCK = 2**15


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Return a sweep of one trial that has ended, and its storage."""
    sweep, (run, *_) = sample_runs("quickstart", "smoke")
    storage = Storage(tmp_path / "s")
    directory = storage.trial(run.trial.trial_id).path
    put_curves(directory, run.curves[:2])
    put_result(directory, run.result)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "planning")
    return sweep, storage, run


def records(path):
    """Yield what an offline file holds: records of a log like LevelDB's, in blocks, after seven letters of its own."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole = path.read_bytes(), 7, b""
    while at < len(content):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        size, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole one, or its last part
            yield Record.FromString(whole)
            whole = b""


def plain(items):
    """Return items of a record by their names."""
    return {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}


def test_without_it_or_without_a_project_nothing_is_sent(stored, monkeypatch):
    sweep, storage, run = stored
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(TrackingError, match=r"^IDP_WANDB=planning: wandb is not installed here; pip install wandb$"):
        send(sweep, [run.trial], storage, pytest.fail)
    monkeypatch.setenv(VARIABLE, " ")
    assert send(sweep, [run.trial], storage, pytest.fail) == ""


def test_a_trial_is_a_run_with_its_curves_settings_and_result(stored, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="pip install wandb")
    sweep, storage, run = stored
    monkeypatch.setenv("WANDB_MODE", "offline")
    said = send(sweep, [run.trial], storage, pytest.fail)
    assert said.startswith("1 trial of quickstart now in W&B's planning (")
    wandb.teardown()  # its own process writes the file
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    found = list(records(path))
    (begun,) = [record.run for record in found if record.HasField("run")][:1]
    assert (begun.project, begun.run_id) == ("planning", run.trial.trial_id)
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert config["planner"] == run.trial.axes["planner"] and config["k"] == run.trial.axes["k"]
    history = [plain(record.history.item) for record in found if record.HasField("history")]
    assert [line["epoch/train_loss"] for line in history] == [line["train_loss"] for line in run.curves[:2]]
    updates = [plain(record.summary.update).items() for record in found if record.HasField("summary")]
    last = {name: value for update in updates for name, value in update}
    assert last["result/test_success_rate"] == run.result.test_success_rate
