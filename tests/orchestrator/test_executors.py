"""A run in one process, without Ray; what a cluster does is in test_campaign."""

import pytest

from orchestrator.cli.main import main
from orchestrator.command import Command
from orchestrator.storage.layout import Storage
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.specs import expand

SWEEP = """
name: tiny
planners:
  vin: {core: vin, adjoint: unrolled, hidden_channels: 8, q_channels: 4}
  id-vin: {core: vin, adjoint: implicit, hidden_channels: 8, q_channels: 4}
data: {train: 64, valid: 8, test: 8}
tasks: [{map_size: 9}]
test_on: [{map_size: 11, test: 4}]
grid: {k: [4], seed: [0]}
training: {epochs: 1}
figures: [success]
"""


def test_a_run_in_one_process_goes_on_after_a_broken_trial(tmp_path, storage_with_database, idp):
    path, storage = tmp_path / "tiny.yaml", Storage(storage_with_database)
    path.write_text(SWEEP)
    good, broken = expand(load_sweep(path))
    (storage.trial(broken.trial_id).path / "log.txt").mkdir(parents=True)
    command = ("run", path, "--storage", storage.path, "--in-process")
    done = idp(*command)
    assert done.returncode == 1 and "Ray" not in done.stderr.replace("without Ray", ""), done.stderr
    assert "2 trials in this process" in done.stderr and "[1/2]" in done.stderr and "tested  [1/1]" in done.stderr
    results = [storage.trial(trial.trial_id).read_result() for trial in (good, broken)]
    assert [result.status for result in results] == ["COMPLETED", "FAILED"]
    assert not results[0].provenance.exclusive
    (storage.trial(broken.trial_id).path / "log.txt").rmdir()
    again = idp(*command)
    assert again.returncode == 0 and "1 trial in this process" in again.stderr, again.stderr


def test_a_run_in_one_process_has_no_cluster(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["run", "tiny.yaml", "--in-process", "--address", "head:6379"])
    assert "not allowed with argument" in capsys.readouterr().err
    assert Command("tiny.yaml", in_process=True).words()[-1] == "--in-process"
    assert "--in-process" not in Command("tiny.yaml", in_process=True).words("table")
