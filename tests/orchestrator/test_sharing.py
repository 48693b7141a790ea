"""Several runs on one cluster: how its machines are divided, what gives way, and that nothing is lost by it."""

from __future__ import annotations

import json
import math
import os
import threading
import time

import pytest
from samples import put_result

from orchestrator.campaign.plan import make_plan
from orchestrator.campaign.run import _note
from orchestrator.cli.jobs import run_lines
from orchestrator.cli.main import main
from orchestrator.cluster import rounds
from orchestrator.cluster import sharing as shares
from orchestrator.cluster.datasets import make_datasets, make_here
from orchestrator.cluster.ray_cluster import ClusterError
from orchestrator.cluster.rounds import Round, Terms
from orchestrator.cluster.sharing import Sharing, division, most_at_once
from orchestrator.cluster.trials import train
from orchestrator.storage.code import whole_code
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import Owner, take
from orchestrator.storage.provenance import Provenance
from orchestrator.storage.results import TrialResult
from orchestrator.storage.runs import (
    RunNote,
    ask_to_give_way,
    asked_to_give_way,
    job_here,
    runs,
    user_here,
    write_note,
)
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.limits import Resources
from orchestrator.sweep.specs import expand
from orchestrator.trial.cancel import GaveWay, cancel
from orchestrator.trial.train import TrialOptions, run_trial

FOUR_GPUS = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 16.0, "GPU": 2.0}]
SWEEP = """
name: NAME
planners: {vin: {core: vin, adjoint: unrolled, hidden_channels: 8, q_channels: 4}}
data: {train: 128, valid: 16, test: 16}
tasks: [{map_size: 9}]
grid: {k: [6], seed: SEEDS}
training: {epochs: EPOCHS}
figures: [success]
"""


def swept(folder, seeds, *, epochs=2, name="s"):
    """A sweep of one planner, written to NAME.yaml in the folder."""
    text = SWEEP.replace("NAME", name).replace("SEEDS", str(seeds)).replace("EPOCHS", str(epochs))
    (folder / f"{name}.yaml").write_text(text)
    return load_sweep(folder / f"{name}.yaml")


def note(user, wants=99, gpus=1.0, cpus=1.0, **more):
    return RunNote(**{"sweep": "s", "user": user, "wants": wants, "gpus": gpus, "cpus": cpus, "cluster": "c", **more})


def divided(*notes, machines=FOUR_GPUS):
    parts = division({str(number): note for number, note in enumerate(notes)}, machines)
    return [parts[str(number)] for number in range(len(notes))]


def test_users_have_equal_parts_however_many_sweeps_they_run():
    assert divided(note("anna")) == [4]
    assert divided(note("anna"), note("boris")) == [2, 2]
    assert divided(note("anna"), note("boris"), note("boris", sweep="t")) == [2, 1, 1]
    assert divided(note("anna", wants=1), note("boris")) == [1, 3]
    assert divided(note("anna", wants=0), note("boris")) == [0, 4]


def test_a_higher_priority_has_what_it_wants_first():
    assert divided(note("anna"), note("boris", priority=1, wants=3)) == [1, 3]
    assert divided(note("anna"), note("boris", priority=1)) == [0, 4]
    assert divided(note("anna", priority=-1), note("anna")) == [0, 4]


def test_at_most_is_for_all_runs_of_a_sweep_together():
    assert divided(note("anna", most_gpus=1.0), note("boris", wants=2)) == [1, 2]
    assert divided(note("anna", most_gpus=3.0), note("anna", most_gpus=3.0)) == [2, 1]
    assert divided(note("anna", cpus=4.0, most_cpus=9.0)) == [2]


def test_who_needs_processors_and_who_needs_gpus_are_in_nobodys_way():
    # Five eighths of the processors for the one, three quarters of the GPUs for the other.
    assert divided(note("anna", gpus=0.0, cpus=4.0), note("boris", cpus=4.0)) == [5, 3]


def test_a_trial_goes_to_a_machine_that_has_room_for_all_of_it():
    machines = [{"CPU": 12.0}, {"CPU": 12.0}, {}]
    assert divided(note("anna", gpus=0.0, cpus=8.0), machines=machines) == [2]
    assert divided(note("anna", gpus=0.0, cpus=8.0), note("boris", gpus=0.0, cpus=4.0), machines=machines) == [2, 2]
    assert divided(note("anna", cpus=1.0), machines=machines) == [0]


def test_who_asks_for_a_model_is_in_the_way_only_of_whoever_needs_that_model():
    machines = [{"CPU": 64.0, "GPU": 8.0, "accelerator_type:H100": 1.0}]
    machines += [{"CPU": 64.0, "GPU": 8.0, "accelerator_type:A100": 1.0}] * 4
    anna = note("anna", accelerator="H100")
    assert divided(anna, note("boris"), machines=machines) == [8, 32]
    assert divided(note("boris"), anna, machines=machines) == [32, 8]
    assert divided(anna, note("boris", accelerator="H100"), machines=machines) == [4, 4]
    assert divided(note("anna", accelerator="T4"), note("boris"), machines=machines) == [0, 40]


def test_parts_of_a_gpu_are_of_one_gpu():
    assert divided(note("anna", gpus=0.6)) == [4]
    assert divided(note("anna", gpus=0.6), note("boris", gpus=0.4)) == [3, 5]
    assert divided(note("anna", gpus=0.25)) == [16]
    assert divided(note("anna", gpus=0.25, wants=1), note("boris", gpus=2.0)) == [1, 1]


def test_the_last_device_goes_to_whoever_has_had_less_of_late():
    one = [{"CPU": 1.0}]
    both = {"gpus": 0.0}
    assert divided(note("anna", **both), note("boris", **both), machines=one) == [1, 0]
    assert divided(note("anna", used=700.0, **both), note("boris", used=500.0, **both), machines=one) == [0, 1]
    # Not for a moment's difference: a turn is of ten minutes.
    assert divided(note("anna", used=900.0, **both), note("boris", used=700.0, **both), machines=one) == [1, 0]


def test_what_would_never_begin_is_refused():
    resources = Resources.model_validate({"at_most": {"gpus": 2, "cpus": 8}})
    assert most_at_once(resources, {"cpu": 1.0, "gpu": 0.5}) == 4
    assert most_at_once(resources, {"cpu": 3.0}) == 2
    assert most_at_once(Resources(), {"cpu": 3.0}) == math.inf
    with pytest.raises(ClusterError, match=r"resources.at_most.cpus is 8, but one trial needs 16"):
        most_at_once(resources, {"cpu": 16.0})


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Two runs by two users on one cluster with four GPUs; their leases are held, and no thread touches them."""
    monkeypatch.setattr(shares, "LOOK_SECONDS", 0.0)
    storage = Storage(tmp_path)
    both = []
    for user in ("anna", "boris"):
        mark = storage.working / user
        take(mark, Owner.here())
        both.append(Sharing(storage, mark, note(user, wants=0)))
        both[-1].begins(Resources(), lambda: [{"cpu": 1.0, "gpu": 1.0}], lambda: FOUR_GPUS)
    return storage, *both


def test_a_run_gives_way_to_another_and_has_all_again_when_that_has_ended(two):
    storage, anna, boris = two
    assert anna.allowed(running=4, waiting=5) == math.inf  # nobody else wants anything
    assert boris.allowed(running=0, waiting=7) == 2
    assert anna.allowed(running=4, waiting=5) == 2
    assert {run.note.user: (run.note.running, run.note.wants) for run in runs(storage)} == {
        "anna": (4, 9),
        "boris": (0, 7),
    }
    anna.ask(["3" * 32, "4" * 32])
    assert asked_to_give_way(anna.mark, "3" * 32) and not asked_to_give_way(boris.mark, "3" * 32)
    anna.ask(["4" * 32])
    assert not asked_to_give_way(anna.mark, "3" * 32) and asked_to_give_way(anna.mark, "4" * 32)
    boris.allowed(running=0, waiting=0)
    assert anna.allowed(running=2, waiting=7) == math.inf


def test_what_a_run_has_used_counts_less_and_less(two, monkeypatch):
    _, anna, _ = two
    clock = time.monotonic()
    monkeypatch.setattr(shares.time, "monotonic", lambda: clock)
    anna.allowed(running=3, waiting=0)
    clock += 100.0
    anna.allowed(running=0, waiting=3)
    assert anna.note.used == pytest.approx(300.0)
    clock += 3600.0
    anna.allowed(running=0, waiting=3)
    assert anna.note.used == pytest.approx(150.0)


def test_a_run_that_gives_no_sign_of_life_has_no_part(two):
    _, anna, boris = two
    boris.allowed(running=2, waiting=2)
    anna._patience = shares.Patience(0.0)
    assert anna.allowed(running=2, waiting=2) == 2  # seen for the first time
    assert anna.allowed(running=2, waiting=2) == math.inf


def test_a_run_stands_still_only_while_its_trials_run(two, monkeypatch):
    storage, anna, boris = two
    began = clock = time.time()
    monkeypatch.setattr(shares.time, "time", lambda: clock)

    def still():
        return next(run.still_seconds for run in runs(storage) if run.note.user == "anna")

    anna.moved(done=1)
    clock += 3 * 3600.0  # behind others, or making datasets
    anna.allowed(running=0, waiting=4)
    assert still() == 0.0
    anna.allowed(running=1, waiting=3)
    assert still() == pytest.approx(0.0, abs=1.0)
    clock += 3 * 3600.0
    anna.allowed(running=2, waiting=2)
    assert still() == pytest.approx(3 * 3600.0, abs=1.0) and anna.note.began <= began
    # The note of a round's end is written at once: nothing looks while further maps are tested.
    monkeypatch.setattr(shares, "LOOK_SECONDS", 1e9)
    anna.allowed(running=0, waiting=0)
    assert still() == 0.0 and boris.allowed(running=0, waiting=7) == math.inf


def test_the_latest_trials_are_asked_and_the_first_to_come_back(two, tmp_path):
    storage, anna, boris = two
    planned = expand(swept(tmp_path, [0, 1, 2, 3, 4]))
    ids = [trial.trial_id for trial in planned]
    told = []

    class Watcher:
        def tick(self):
            pass

        def left(self, trial):
            told.append(trial.trial_id)

    terms = Terms(Resources(), tmp_path / "scratch", sharing=anna)
    together = Round(planned, storage, Watcher(), dict.fromkeys(ids), terms, "run")
    assert [together.next() for _ in range(6)] == [*ids, None]
    boris.allowed(running=0, waiting=9)
    together.tick()
    assert [asked_to_give_way(anna.mark, name) for name in ids] == [False, False, True, True, True]
    for _ in range(2):  # Tune repeats the last report when a trial ends
        together.said(ids[3], {"gave_way": True})
    together.ended(ids[3], "the trial ended without a result")
    assert told == [ids[3]] and not together.over and together.next() is None
    assert not asked_to_give_way(anna.mark, ids[3])
    boris.allowed(running=0, waiting=0)
    assert together.next() == ids[3] and together.next() is None
    assert not any(asked_to_give_way(anna.mark, name) for name in ids)


def test_a_trial_runs_once_it_has_a_process_and_gives_way_before_it_begins_anything(two, tmp_path):
    storage, anna, boris = two
    planned = expand(swept(tmp_path, [0, 1, 2, 3, 4]))
    ids, told = [trial.trial_id for trial in planned], []

    class Watcher:
        def tick(self):
            pass

        def started(self, trial):
            told.append(("started", trial.trial_id))

        def left(self, trial):
            told.append(("left", trial.trial_id))

    terms = Terms(Resources(), tmp_path / "scratch", sharing=anna)
    together = Round(planned, storage, Watcher(), dict.fromkeys(ids), terms, "run")
    assert [together.next() for _ in range(5)] == ids
    together.tick()
    assert (anna.note.running, anna.note.wants) == (0, 5), "Tune has them all, and no process works on any"
    for trial_id in (ids[1], ids[4]):
        together.started(trial_id)
    together.tick()
    assert (anna.note.running, anna.note.wants) == (2, 5)
    boris.allowed(running=0, waiting=9)
    together.tick()
    waited = [ids[0], ids[2], ids[3]]
    assert [name for name in ids if asked_to_give_way(anna.mark, name)] == waited, "not those that run"
    del told[:]
    for trial_id in waited:
        config = together.config(trial_id) | {"storage": str(storage.path), "campaign": "run", "code": whole_code()}
        together.started(trial_id)
        train(config | {"run": str(anna.mark)}, lambda said, name=trial_id: together.said(name, said), False)
        together.ended(trial_id, "the trial ended without a result")
        assert not storage.trial(trial_id).path.exists()
    assert told == [("left", name) for name in waited]
    boris.allowed(running=0, waiting=0)
    assert [together.next() for _ in range(4)] == [*waited, None], "in the order in which they were planned"


@pytest.mark.parametrize("how", ["given back", "silent", "finished"])
def test_a_trial_that_another_run_lets_go_of_is_run_before_the_round_ends(tmp_path, monkeypatch, how):
    monkeypatch.setattr(rounds, "EXPIRY_SECONDS", 0.0)
    storage = Storage(tmp_path)
    held, own = expand(swept(tmp_path, [0, 1]))
    directory = storage.trial(held.trial_id)
    lease = directory.take(Owner("another", "elsewhere", "", 1, ""))

    class Watcher:
        def tick(self):
            pass

        def left(self, trial):
            pass

    pending = {trial.trial_id: trial for trial in (held, own)}
    terms, before = Terms(Resources(), tmp_path / "scratch"), dict.fromkeys(pending)
    patience = shares.Patience(0.0 if how == "silent" else 1e9)
    together = Round([own], storage, Watcher(), before, terms, "run", {}, pending, patience)
    assert together.next() == own.trial_id
    together.tick()
    assert together.next() is None
    if how == "finished":
        put_result(directory.path, TrialResult(trial_id=held.trial_id, status="COMPLETED", provenance=Provenance()))
    if how != "silent":
        lease.release()
    together.tick()
    found = together.next()
    if how == "finished":
        assert found is None
        return
    assert found == held.trial_id and directory.read_spec() == held.spec
    assert together.config(found)["instead_of"] == (lease.number if how == "silent" else 0)
    together.said(found, {"left": True})  # somebody was faster
    together.ended(found, "the trial ended without a result")
    assert together.next() is None
    together.tick()
    assert together.next() == held.trial_id


def test_a_run_without_a_part_ends_its_round_and_waits(two, tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "WAIT_SECONDS", 0.0)
    storage, anna, boris = two
    for each in (anna, boris):
        each.begins(Resources(), lambda: [{"cpu": 1.0}], lambda: [{"CPU": 1.0}])
    planned = expand(swept(tmp_path, [0, 1]))
    told = []

    class Watcher:
        def tick(self):
            told.append("tick")
            if len(told) > 3:
                anna.allowed(running=0, waiting=0)

        def behind(self, users):
            told.append(users)

    terms = Terms(Resources(), tmp_path / "scratch", sharing=boris)
    before = {trial.trial_id: None for trial in planned}
    together = Round(planned, storage, Watcher(), before, terms, "run")
    anna.allowed(running=1, waiting=4)
    assert together.over and together.has_its_part and together.next() is None
    together.wait_for_a_part()
    assert told == ["anna (s)", "tick", "tick", "tick"]
    assert together.next() == planned[0].trial_id and not together.over and not together.has_its_part


def test_a_trial_gives_way_between_two_epochs_and_ends_with_the_same_numbers(tmp_path):
    (trial,) = expand(swept(tmp_path, [0], epochs=3))
    assert (
        main(
            [
                "run",
                str(tmp_path / "s.yaml"),
                "--in-process",
                "--storage",
                str(tmp_path / "a"),
                "--tracking-uri",
                "none",
            ]
        )
        == 0
    )
    storage = Storage(tmp_path / "b")
    storage.path.mkdir()
    (storage.path / "datasets").symlink_to(tmp_path / "a" / "datasets")
    with storage.at_work() as mark:
        options = TrialOptions(run=mark)
        with pytest.raises(GaveWay, match="after epoch 2 of 3"):
            run_trial(
                trial.spec,
                storage,
                lambda record: ask_to_give_way(mark, trial.trial_id) if record["epoch"] == 2 else None,
                options,
            )
        with pytest.raises(GaveWay, match="after epoch 2 of 3"):
            run_trial(trial.spec, storage, options=options)  # it does not begin while it is asked for
    given_back = storage.trial(trial.trial_id)
    assert given_back.read_result() is None and "gives way to another sweep after epoch 2" in given_back.log.read_text()
    found = run_trial(trial.spec, storage)
    expected = Storage(tmp_path / "a").trial(trial.trial_id).read_result()
    for name in ("status", "epochs", "train_loss", "test_success_rate", "test_cells_by_distance"):
        assert getattr(found, name) == getattr(expected, name)


def test_the_user_is_who_has_submitted(monkeypatch):
    monkeypatch.setenv("IDP_USER", "anna")
    assert user_here() == "anna"
    monkeypatch.delenv("IDP_USER")
    monkeypatch.setenv("LOGNAME", "boris")
    assert user_here() == "boris"


def test_a_run_without_an_epoch_has_no_last_one(two):
    storage, anna, _ = two
    anna.moved(epochs=1)
    anna.allowed(running=1, waiting=0)  # which writes it
    rows = {line.split()[0]: line for line in run_lines(runs(storage), time.time())}
    assert "none yet" in rows["boris"] and "none yet" not in rows["anna"]


@pytest.mark.parametrize("field", [name for name, value in note("anna") if isinstance(value, (int, float))])
def test_no_number_in_a_note_widens_everybodys_table(two, field):
    storage, anna, boris = two
    usual = len(max(run_lines(runs(storage), time.time()), key=len))
    for number in (-1e300, 1e300, 10**300, 10**12):
        (anna.mark / "run.json").write_text(json.dumps({**anna.note.model_dump(), field: number}))
        lines = run_lines(runs(storage), time.time())
        assert any(line.startswith(boris.note.user) for line in lines)
        assert len(max(lines, key=len)) < usual + 30


@pytest.mark.parametrize("name", ["\udcff", "\x1b" * 200, "\U000e0001" * 200, "é" * 300])
def test_a_run_by_whatever_user_and_job_is_seen(two, monkeypatch, name):
    """`\\udcff` is what Python reads of a byte that is no UTF-8."""
    storage, anna, _ = two
    for variable, here in (("IDP_USER", user_here), ("LOGNAME", user_here), ("IDP_JOB", job_here)):
        monkeypatch.setattr(os, "environ", {variable: name})
        assert 0 < len(here()) <= 300 and here().isprintable()
        said = RunNote(sweep="s", user=here()) if here is user_here else RunNote(sweep="s", user="u", job=here())
        write_note(anna.mark, said)
        assert said in [run.note for run in runs(storage)]


def test_others_make_room_for_the_datasets_of_a_run_that_begins(tmp_path):
    sweep = swept(tmp_path, [0], epochs=1, name="new")
    begins = _note(make_plan(sweep, expand(sweep), Storage(tmp_path)), (), "c").model_copy(update={"user": "anna"})
    given = division({"old": note("boris", gpus=0.0), "new": begins}, [{"CPU": 2.0}])
    assert given == {"old": 1, "new": 1}


def test_two_users_share_the_one_processor_of_a_cluster(tmp_path, idp, head, storage_with_database):
    sweeps = (swept(tmp_path, [0], epochs=100_000, name="long"), swept(tmp_path, [2], name="short"))
    long, short = (expand(sweep)[0] for sweep in sweeps)
    storage = Storage(storage_with_database)
    make_datasets([long.spec.data], storage.datasets, make=make_here)
    where = ("--storage", storage_with_database, "--address", head.address, "--tracking-uri", "none")
    done = {}

    def start(name, user):
        def work():
            done[name] = idp("run", tmp_path / f"{name}.yaml", *where, env={"IDP_USER": user}, timeout=500.0)

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    def wait(come, what):
        until = time.monotonic() + 300.0
        while not come():
            assert time.monotonic() < until and "long" not in done, (what, done)
            time.sleep(0.1)

    trial = storage.trial(long.trial_id)
    first = start("long", "boris")
    try:
        wait(trial.checkpoint.exists, "an epoch")
        second = start("short", "anna")
        wait(lambda: len(runs(storage)) == 2, "another run")
        said = idp("status", "--storage", storage.path, "--address", head.jobs_address, "--json")
        told = json.loads(said.stdout)
        assert [(run["user"], run["sweep"]) for run in told["runs"]] == [("boris", "long"), ("anna", "short")]
        second.join()
        assert done["short"].returncode == 0, done
        wait(lambda: "goes on after epoch" in trial.log.read_text(), "what gave way")
    finally:
        cancel(trial)
        first.join()
    assert done["long"].returncode == 0, done
    assert "gives way to another sweep after epoch" in trial.log.read_text()
    ended = {result.trial_id: (result.status, result.epochs) for result in storage.results().values()}
    assert ended[short.trial_id] == ("COMPLETED", 2) and ended[long.trial_id][0] == "CANCELLED"
    assert runs(storage) == []
