"""TensorBoard's files, read back record by record: every trial's curves once, its settings and how it ended."""

from __future__ import annotations

import json
import struct

import pytest
from samples import put_curves, put_result, sample_runs
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from tensorboardX.record_writer import masked_crc32c

from orchestrator.cli.main import main
from orchestrator.errors import TrackingError
from orchestrator.storage.layout import Storage
from orchestrator.tracking.event_files import VARIABLE, EventFiles


def events(path):
    """Yield the entries of an event file, whose checksums are right."""
    content = path.read_bytes()
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        head, body = content[:8], content[12 : 12 + size]
        assert struct.unpack("<I", content[8:12]) == (masked_crc32c(head),)
        assert struct.unpack("<I", content[12 + size : 16 + size]) == (masked_crc32c(body),)
        yield Event.FromString(body)
        content = content[16 + size :]


def shown(folder):
    """Return the scalars by tag and step, the settings and the compared metrics of the one trial in a folder."""
    (path,) = folder.glob("*/*/events.out.tfevents.*")
    first, *rest = events(path)
    assert first.file_version == "brain.Event:2"
    scalars, settings, compared = {}, {}, []
    for event in rest:
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                scalars.setdefault(value.tag, []).append((event.step, value.simple_value))
            else:
                said = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                settings |= dict(said.session_start_info.hparams)
                compared += [metric.name.tag for metric in said.experiment.metric_infos]
    return scalars, settings, compared


@pytest.fixture
def stored(tmp_path):
    """Return a sweep of one trial, its storage, and what the trial is said to have been."""
    sweep, (run, *_) = sample_runs("quickstart", "smoke")
    storage = Storage(tmp_path / "s")
    directory = storage.trial(run.trial.trial_id).path
    put_curves(directory, run.curves[:2])
    return sweep, storage, run


def test_each_epoch_is_shown_once_the_settings_and_how_it_ended(stored, tmp_path):
    sweep, storage, run = stored
    files = EventFiles(tmp_path / "board", sweep, storage, pytest.fail)
    for event in ("epoch", "epoch"):
        files.note(run.trial, event)
    tag = "epoch/train_loss"
    assert [step for step, _ in shown(tmp_path / "board")[0][tag]] == [1, 2], "while it runs, too"
    directory = storage.trial(run.trial.trial_id).path
    put_curves(directory, run.curves)
    put_result(directory, run.result)
    files.note(run.trial, "finished")
    files.close()
    scalars, settings, compared = shown(tmp_path / "board")
    expected = [(row["epoch"], pytest.approx(row["train_loss"])) for row in run.curves]
    assert scalars[tag] == expected
    assert scalars["result/test_success_rate"] == [(0, pytest.approx(run.result.test_success_rate))]
    assert settings["k"].number_value == 10 and settings["core"].string_value == "vin"
    assert "result/test_success_rate" in compared and set(compared) <= set(scalars)
    (folder,) = (tmp_path / "board" / sweep.name).iterdir()
    assert folder.name == f"vin_navigation-15_K=10_seed=0_smoke-{run.trial.trial_id[:8]}"
    again = EventFiles(tmp_path / "board", sweep, storage, pytest.fail)
    again.note(run.trial, "finished")
    again.note(run.trial, "finished")
    assert shown(tmp_path / "board") == (scalars, settings, compared), "nothing is in it twice"


def test_what_an_attempt_left_goes_when_another_starts(stored, tmp_path):
    sweep, storage, run = stored
    files = EventFiles(tmp_path / "board", sweep, storage, pytest.fail)
    files.note(run.trial, "epoch")
    files.note(run.trial, "started")
    put_curves(storage.trial(run.trial.trial_id).path, run.curves[:1])
    files.note(run.trial, "epoch")
    files.close()
    assert [step for step, _ in shown(tmp_path / "board")[0]["epoch/train_loss"]] == [1]


def test_a_folder_that_cannot_be_is_refused_and_one_that_fails_later_is_told_once(stored, tmp_path):
    sweep, storage, run = stored
    place = tmp_path / "board"
    said = []
    files = EventFiles(place, sweep, storage, said.append)
    place.touch()
    with pytest.raises(TrackingError, match=f"{VARIABLE}=.*board: expected a folder"):
        EventFiles(place, sweep, storage)
    files.note(run.trial, "epoch")
    files.note(run.trial, "epoch")
    (line,) = said
    assert line.startswith(f"{VARIABLE}: {place}: ") and line.endswith("the run goes on without it")


def test_without_the_setting_nothing_is_written(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    EventFiles.of_environment(None, None, pytest.fail).note(None, "finished")


def test_sync_fills_it_alone_where_there_is_to_be_no_mlflow(stored, tmp_path, monkeypatch, capsys):
    _, storage, run = stored
    put_result(storage.trial(run.trial.trial_id).path, run.result)
    sync = ["sync", "quickstart", "--profile", "smoke", "--storage", str(storage.path), "--tracking-uri", "none"]
    assert main(sync) == 2 and "name the store that is to be filled" in capsys.readouterr().err
    monkeypatch.setenv(VARIABLE, str(tmp_path / "board"))
    assert main(sync) == 0 and capsys.readouterr().out == ""
    assert main([*sync, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"sweep": "quickstart", "trials": 0, "tracking_uri": "none"}
    assert "result/test_success_rate" in shown(tmp_path / "board")[0] and not storage.mlflow.exists()
