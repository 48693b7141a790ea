"""What goes wrong around a trial, and that it goes on: damage, full disks, cancelling, divergence, memory."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from mutations import EXAMPLES, bounded, mutated
from samples import put_result
from small_trial import DATA, Stop, small_trial

from datagen.storage import dataset as parquet
from orchestrator.cli.main import main
from orchestrator.storage import checkpoints
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import Owner, take
from orchestrator.storage.results import StorageFull, no_room, write_bytes
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.sweep.specs import ExecutionSpec, trial_id
from orchestrator.trial.cancel import cancel, retry
from orchestrator.trial.healing import heal
from orchestrator.trial.train import run_trial
from planners.training.trainer import Trainer

SPEC = small_trial(epochs=4)
NUMBERS = ("test_success_rate", "test_optimality", "test_spl", "train_loss", "forward_residual", "epochs")
DIRECTORY = f"trials/{trial_id(SPEC)}"


@pytest.fixture(scope="module")
def undisturbed(datasets):
    result = run_trial(SPEC, Storage(datasets.parent))
    return [getattr(result, name) for name in NUMBERS]


def stop_after(epoch):
    def stop(record):
        if record["epoch"] == epoch:
            raise Stop

    return stop


def flip(path):
    content = bytearray(path.read_bytes())
    for place in range(0, len(content), 50):  # one bit alone may be padding
        content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "epochs"),
    [
        (lambda d: flip(d / "checkpoint.pt"), [3, 4]),
        (lambda d: (d / "checkpoint.pt").write_bytes((d / "checkpoint.pt").read_bytes()[:1000]), [3, 4]),
        (lambda d: (d / "checkpoint.pt").write_bytes(b""), [3, 4]),
        (lambda d: (d / "checkpoint.pt").unlink(), [3, 4]),
        (lambda d: [flip(d / "checkpoint.pt"), flip(d / "checkpoint.previous.pt")], [1, 2, 3, 4]),
        (lambda d: (d / "curves.parquet").write_bytes(b"PAR1"), [4]),
        (lambda d: (d / "spec.json").write_bytes(b"{"), [4]),
        (lambda d: (d / ".log.txt.0123.tmp").write_bytes(b"half"), [4]),
    ],
)
def test_a_damaged_file_costs_epochs_but_not_the_trial(storage, undisturbed, damage, epochs):
    with pytest.raises(Stop):
        run_trial(SPEC, Storage(storage), stop_after(3))
    directory = Storage(storage).trial(trial_id(SPEC)).path
    damage(directory)
    seen = []
    result = run_trial(SPEC, Storage(storage), lambda record: seen.append(record["epoch"]))
    assert seen == epochs
    assert result.status == "COMPLETED"
    assert [getattr(result, name) for name in NUMBERS] == undisturbed
    if epochs != [4] and (directory / "log.txt").read_text().count("is damaged"):
        assert ("the one before is taken" if epochs == [3, 4] else "training starts again") in (
            directory / "log.txt"
        ).read_text()
    assert not (directory / "checkpoint.previous.pt").exists()


def save(directory, state):
    lease = take(directory, Owner.here())
    checkpoints.save_checkpoint(TrialDirectory(directory), state, lease)
    lease.release()


def test_every_flipped_byte_of_a_checkpoint_is_noticed_or_harmless(tmp_path):
    state = {"weights": torch.arange(6.0), "epoch": 3}
    save(tmp_path, state)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        loaded, wrong = checkpoints.load_checkpoint(TrialDirectory(tmp_path))
        if loaded is None:
            assert "checkpoint.pt is damaged" in wrong[0]
        else:
            assert loaded["epoch"] == 3 and torch.equal(loaded["weights"], state["weights"]), place


def test_weights_that_are_not_finite_do_not_replace_the_last_finite_checkpoint(storage, monkeypatch):
    from planners.training.trainer import Trainer

    whole = Trainer.run_epoch

    def spoil(self):
        record = whole(self)
        if record.epoch == 4:
            with torch.no_grad():
                next(iter(self.planner.parameters())).fill_(math.nan)
        return record

    monkeypatch.setattr(Trainer, "run_epoch", spoil)
    run_trial(SPEC, Storage(storage))
    directory = Storage(storage).trial(trial_id(SPEC)).path
    state, _ = checkpoints.load_checkpoint(TrialDirectory(directory))
    assert state["trainer"]["epoch"] == 3
    assert "weights are not finite" in (directory / "log.txt").read_text()


def test_a_cancelled_trial_stops_stays_stopped_and_goes_on_when_asked(storage, undisturbed):
    seen = []

    def cancel_in_the_second_epoch(record):
        seen.append(record["epoch"])
        if record["epoch"] == 2:
            assert cancel(Storage(storage).trial(trial_id(SPEC))) == "at the next epoch"

    result = run_trial(SPEC, Storage(storage), cancel_in_the_second_epoch)
    assert result.status == "CANCELLED" and "after epoch 2 of 4" in result.reason
    assert run_trial(SPEC, Storage(storage), cancel_in_the_second_epoch) == result
    assert seen == [1, 2]
    assert retry(Storage(storage).trial(trial_id(SPEC))) and not retry(Storage(storage).trial(trial_id(SPEC)))
    result = run_trial(SPEC, Storage(storage), lambda record: seen.append(record["epoch"]))
    assert seen == [1, 2, 3, 4]
    assert [getattr(result, name) for name in NUMBERS] == undisturbed
    assert cancel(Storage(storage).trial(trial_id(SPEC))) == "already done"


def test_cancel_and_retry_from_the_command_line(tmp_path, capsys):
    sweep = tmp_path / "s.yaml"
    sweep.write_text(
        "name: s\nplanners: {vin: {core: vin, adjoint: unrolled}, id-vin: {core: vin, adjoint: implicit}}\n"
        "data: {train: 64, valid: 16, test: 16}\ntraining: {epochs: 1}\n"
    )
    common = [str(sweep), "--storage", str(tmp_path / "storage")]
    assert main(["cancel", *common]) == 2
    assert "say which trials" in capsys.readouterr().err
    assert main(["cancel", *common, "--only", "planner=vin"]) == 0
    assert "1 trial: cancelled" in capsys.readouterr().out
    main(["plan", *common, "--json"])
    plan = json.loads(capsys.readouterr().out)
    assert (plan["cancelled"], plan["missing"]) == (1, 1)
    main(["table", *common])
    assert "cancelled" in capsys.readouterr().out.lower()
    assert main(["retry", *common]) == 0
    assert "1 trial: runs again with the sweep" in capsys.readouterr().out
    main(["plan", *common, "--json"])
    assert json.loads(capsys.readouterr().out)["missing"] == 2


@pytest.mark.parametrize(("gib", "phase"), [(1e-4, "forward"), (1e-9, "loading")])
def test_out_of_memory_names_the_phase(storage, gib, phase):
    spec = SPEC.model_copy(update={"execution": ExecutionSpec(memory_limit_gib=gib)})
    result = run_trial(spec, Storage(storage))
    assert result.status == "OUT_OF_MEMORY"
    assert result.out_of_memory_phase in (phase, "update", "forward")
    assert result.reason.startswith("in ")


def test_memory_that_runs_out_in_the_backward_pass_is_said_to(storage):
    from planners.training.memory import MemoryLimitExceeded

    class Exceeds(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            raise MemoryLimitExceeded(12 * 2**30, 11 * 2**30)

    from planners.planner import Planner

    whole = Planner.plan
    import dataclasses

    def plan(self, *arguments):
        found = whole(self, *arguments)
        return dataclasses.replace(found, logits=Exceeds.apply(found.logits))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Planner, "plan", plan)
        result = run_trial(SPEC, Storage(storage))
    assert (result.status, result.out_of_memory_phase) == ("OUT_OF_MEMORY", "backward")
    assert result.reason == "in the backward pass: tensors take 12.00 GiB, the limit is 11.00 GiB"


def test_a_full_disk_is_no_failure_of_the_trial(storage, monkeypatch, undisturbed):
    whole = checkpoints.write_bytes

    def full(path, content, **_):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    seen = []
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(StorageFull, match=r"make room, then run the same command"),
    ):

        def fill_the_disk(record):
            if record["epoch"] == 2:
                patch.setattr(checkpoints, "write_bytes", full)

        run_trial(SPEC, Storage(storage), fill_the_disk)
    assert checkpoints.write_bytes is whole
    assert Storage(storage).trial(trial_id(SPEC)).read_result() is None
    result = run_trial(SPEC, Storage(storage), lambda record: seen.append(record["epoch"]))
    assert seen == [3, 4]
    assert [getattr(result, name) for name in NUMBERS] == undisturbed


def test_what_is_not_written_whole_is_named_and_leaves_what_was_there(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "report.html"
    write_bytes(path, b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as raised:
        write_bytes(path, b"new")
    assert str(no_room(raised.value, Path("the disk"))).startswith(f"{path}: No space left on device; ")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match=r"'/proc/self/report\.html'"):
        write_bytes(Path("/proc/self/report.html"), b"new")


def test_what_means_that_there_is_no_room(tmp_path):
    quota = OSError(errno.EDQUOT, "Disk quota exceeded", "/x")
    assert "/x: Disk quota exceeded" in str(no_room(quota, tmp_path))
    wrapped = RuntimeError("while saving")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert str(tmp_path) in str(no_room(wrapped, tmp_path))
    assert no_room(FileNotFoundError(errno.ENOENT, "No such file"), tmp_path) is None


def test_the_first_divergence_is_kept_and_shown_again(tmp_path, datasets, capsys):
    sweep = tmp_path / "s.yaml"
    sweep.write_text(
        "name: s\nplanners: {vin: {core: vin, adjoint: implicit, hidden_channels: 8, q_channels: 4}}\n"
        "tasks: [{map_size: 9}]\ndata: {train: 64, valid: 16, test: 16}\ngrid: {k: [200], seed: [1]}\n"
        "training: {epochs: 2, batch_size: 16, learning_rate: 3.0}\nexecution: {kernel: reference}\n"
    )
    (tmp_path / "datasets").symlink_to(datasets)
    main(["plan", str(sweep), "--storage", str(tmp_path), "--json"])
    (name,) = json.loads(capsys.readouterr().out)["trial_ids"]
    assert main(["trial", str(sweep), name, "--storage", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["forward_diverged"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "trials" / name).iterdir()}
    assert main(["trial", str(sweep), name, "--storage", str(tmp_path), "--replay", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["diverged"] and shown["again"] == shown["diverged"]
    assert len(shown["indices"]) == 16 and len(shown["residual"][0]) == 16
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "trials" / name).iterdir()} == before
    assert main(["trial", str(sweep), name, "--storage", str(tmp_path), "--replay"]) == 0
    assert "first divergence in epoch" in capsys.readouterr().out


def test_a_damaged_manifest_is_found_and_the_set_made_again(tmp_path, datasets):
    import shutil

    from orchestrator.cluster.datasets import _whole

    root = tmp_path / "datasets"
    shutil.copytree(datasets, root)
    manifest = parquet.directory_of(DATA, root) / "manifest.json"
    expected = manifest.read_bytes()
    manifest.write_bytes(expected[: len(expected) // 2])
    assert not _whole(DATA, root)
    parquet.make_dataset(DATA, root)
    assert manifest.read_bytes() == expected


def test_damaged_curves_and_tests_are_mended_by_retry(storage, capsys):
    result = run_trial(SPEC, Storage(storage))
    directory = Storage(storage).trial(trial_id(SPEC)).path
    curves = TrialDirectory(directory).read_curves()
    (directory / "curves.parquet").write_bytes(b"PAR1")
    test = TrialDirectory(directory).evaluation("navigation-9-0123456789ab", "test", 9)
    test.parent.mkdir()
    test.write_text("{")
    said = heal(Storage(storage).trial(trial_id(SPEC)))
    assert len(said) == 2 and str(test) in said[0] and "written again from the checkpoint" in said[1]
    assert repr(TrialDirectory(directory).read_curves()) == repr(curves) and not test.exists()
    assert heal(Storage(storage).trial(trial_id(SPEC))) == [] and TrialDirectory(directory).read_result() == result
    (directory / "curves.parquet").write_bytes(b"PAR1")
    (directory / "checkpoint.pt").unlink()
    assert "no checkpoint has its records" in heal(Storage(storage).trial(trial_id(SPEC)))[0]
    take(directory, Owner.here())
    assert "left alone" in heal(Storage(storage).trial(trial_id(SPEC)))[0]


def test_a_checkpoint_of_another_trial_is_not_taken(storage, undisturbed):
    other = SPEC.model_copy(update={"seed": 7, "training": SPEC.training.model_copy(update={"epochs": 2})})
    run_trial(other, Storage(storage))
    directory = Storage(storage).trial(trial_id(SPEC)).path
    directory.mkdir(parents=True)
    shutil.copy(Storage(storage).trial(trial_id(other)).path / "checkpoint.pt", directory)
    result = run_trial(SPEC, Storage(storage))
    assert "the checkpoint is another trial's: training starts again" in (directory / "log.txt").read_text()
    assert [getattr(result, name) for name in NUMBERS] == undisturbed


def test_a_checkpoint_of_0_1_0_which_does_not_say_whose_it_is_is_not_taken(storage, undisturbed):
    directory = Storage(storage).trial(trial_id(SPEC)).path
    run_trial(SPEC, Storage(storage))
    state, _ = checkpoints.load_checkpoint(TrialDirectory(directory))
    del state["spec"]
    save(directory, state)
    (directory / "result.json").unlink()
    seen = []
    result = run_trial(SPEC, Storage(storage), lambda record: seen.append(record["epoch"]))
    assert seen == [1, 2, 3, 4] and [getattr(result, name) for name in NUMBERS] == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: s.pop("records"),
        lambda s: s.update(trainer={}),
        lambda s: s.update(records=[5]),
        lambda s: s["trainer"]["spent"].update(steps=-5),
        lambda s: s["trainer"]["spent"].update(seconds=math.nan),
        lambda s: s["trainer"]["spent"].update(applications="x"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_told_by_name(storage, spoil):
    directory = Storage(storage).trial(trial_id(SPEC)).path
    run_trial(SPEC, Storage(storage))
    state, _ = checkpoints.load_checkpoint(TrialDirectory(directory))
    spoil(state)
    save(directory, state)
    (directory / "result.json").unlink()
    result = run_trial(SPEC, Storage(storage))
    assert result.status == "FAILED" and f"{directory / 'checkpoint.pt'}: does not fit this trial" in result.reason
    (directory / "checkpoint.pt").unlink()
    assert run_trial(SPEC, Storage(storage)).status == "COMPLETED"


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and repr(one) == repr(other)


def test_fuzzed_checkpoint_resume_gives_the_same_numbers(storage, undisturbed):
    directory = Storage(storage).trial(trial_id(SPEC)).path
    run_trial(SPEC, Storage(storage))
    TrialDirectory(directory).previous_checkpoint.unlink(missing_ok=True)
    content = (directory / "checkpoint.pt").read_bytes()
    good, _ = checkpoints.load_checkpoint(TrialDirectory(directory))
    for number in range(EXAMPLES):
        (directory / "checkpoint.pt").write_bytes(mutated(content, number))
        with bounded(processor_seconds=5, mebibytes=200):
            state, wrong = checkpoints.load_checkpoint(TrialDirectory(directory))
        assert state is None or same(state, good)
        assert all("\n" not in line and "damaged" in line for line in wrong) and (state is not None or wrong)


def test_what_fails_beside_a_final_result_does_not_replace_it(storage, monkeypatch):
    first = run_trial(SPEC, Storage(storage))
    directory = Storage(storage).trial(trial_id(SPEC)).path
    stale = first.model_copy(update={"provenance": first.provenance.model_copy(update={"code": "other", "parts": {}})})
    put_result(directory, stale)
    (directory / "checkpoint.pt").unlink()

    def fail(self):
        raise RuntimeError("the new code does not work")

    monkeypatch.setattr(Trainer, "run_epoch", fail)
    told = run_trial(SPEC, Storage(storage))
    assert told.status == "FAILED" and told.reason.endswith("the result of before stays")
    assert TrialDirectory(directory).read_result() == stale
    assert "the new code does not work" in (directory / "log.txt").read_text()
    (directory / "cancelled").write_text("stop")
    assert run_trial(SPEC, Storage(storage)).status == "CANCELLED" and TrialDirectory(directory).read_result() == stale


def test_gc_lists_first_and_frees_what_is_left_over(storage, capsys):
    run_trial(SPEC, Storage(storage))
    directory = Storage(storage).trial(trial_id(SPEC)).path
    left = [directory / ".curves.parquet.0123456789ab.tmp", directory / "checkpoint.previous.pt"]
    for path in left:
        path.write_bytes(b"x" * 1000)
        os.utime(path, (1e9, 1e9))
    assert main(["gc", "--storage", str(storage)]) == 0
    assert main(["gc", "--storage", str(storage), "--remove", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert all(str(path) in out for path in left) and "no unfinished trial needs it" in out
    assert all(path.exists() for path in left)
    assert main(["gc", "--storage", str(storage), "--remove"]) == 0
    assert not any(path.exists() for path in left)
    assert parquet.is_complete(DATA, storage / "datasets")
    assert TrialDirectory(directory).read_result().status == "COMPLETED"
