"""Where a trial stands while it runs: in its directory, on the terminal, and by `idp status` from elsewhere."""

from __future__ import annotations

import io
import json
import threading

import pytest
from small_trial import small_trial

from orchestrator.campaign.progress import Progress
from orchestrator.cli.main import main
from orchestrator.cluster import jobs
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import Owner
from orchestrator.storage.standing import Standing, read_standing, write_standing
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.specs import expand, trial_id
from orchestrator.trial import telling
from orchestrator.trial.telling import Teller
from orchestrator.trial.train import run_trial

SPEC = small_trial(epochs=2)
HALF = Standing(doing="training", epoch=2, epochs=3, batch=5, batches=10)


@pytest.fixture
def trial(tmp_path):
    trial = Storage(tmp_path).trial(trial_id(SPEC))
    trial.path.mkdir(parents=True)
    return trial


def test_a_trial_tells_where_it_stands_and_takes_it_away(storage, monkeypatch):
    monkeypatch.setattr(telling, "MOST_OFTEN_SECONDS", 0.0)
    trial, written = Storage(storage).trial(trial_id(SPEC)), []
    monkeypatch.setattr(
        telling, "write_standing", lambda place, now: (write_standing(place, now), written.append(read_standing(place)))
    )
    run_trial(SPEC, Storage(storage))
    words = [standing.words() for standing in written if standing.doing != "compiling"]
    batches = [f"epoch {epoch}/2, batch {batch}/4" for epoch in (1, 2) for batch in (1, 2, 3, 4)]
    assert [said for said in words if "batch" in said] == batches
    assert words[0] == "loading" and "epoch 1/2, validating" in words and words[-1] == "testing, 16 maps"
    assert not trial.standing.exists()


def test_compiling_is_told_at_once(trial):
    lease = trial.take(Owner.here())
    teller = Teller(trial, SPEC)
    teller.say("loading")
    teller.on_start(None)
    assert read_standing(trial).words() == "compiling"
    lease.release()


def test_what_a_killed_process_left_and_what_is_damaged_says_nothing(trial):
    write_standing(trial, HALF)
    assert read_standing(trial) is None, "nobody works on it"
    lease = trial.take(Owner.here())
    assert read_standing(trial) == HALF and HALF.words() == "epoch 2/3, batch 5/10"
    for damaged in (b"", b"{}", b'{"doing": "dancing"}', b'{"doing": "testing", "maps": -1}', b"x" * 10_000):
        trial.standing.write_bytes(damaged)
        assert read_standing(trial) is None
    lease.release()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_batches_and_what_is_done_meanwhile():
    stream, asked = Terminal(), threading.Event()

    def where(_):
        asked.set()
        return HALF.words()

    progress = Progress(2, 0, {}, stream)
    progress.doing("starting Ray")
    assert "0 s  starting Ray\n" in stream.getvalue()
    with progress.watched(where):
        progress.start("a" * 16, "vin", 3)
        assert asked.wait(20)
    progress.close()
    assert "  aaaaaaaa  vin  epoch 2/3, batch 5/10\n" in stream.getvalue()
    assert not any(thread.name == "idp-terminal" for thread in threading.enumerate())


def test_where_no_terminal_shows_it_a_line_says_what_is_waited_for():
    stream = io.StringIO()
    progress = Progress(4, 0, {}, stream)
    begun = progress._started

    def look(seconds, standings=()):
        before = len(stream.getvalue())
        progress.look(dict(standings).get, begun + seconds)
        return stream.getvalue()[before:]

    assert look(1000) == "", "nothing is known to say"
    progress.doing("starting Ray")
    assert [look(seconds) for seconds in (29, 31, 90, 92)] == [
        "",
        "31 s: starting Ray\n",
        "",
        "1 min 32 s: starting Ray\n",
    ]
    names = [letter * 16 for letter in "abcde"]
    for name in names:
        progress.start(name, "vin", 3)
    standings = dict.fromkeys(names, "") | {names[0]: "compiling", names[1]: HALF.words()}
    said = "0/4 trials; aaaaaaaa compiling, bbbbbbbb epoch 2/3, batch 5/10, cccccccc starting, and 2 more\n"
    assert look(1000, standings) == f"16 min 40 s: {said}"
    for name in names:
        progress.leave(name)
    assert look(2000) == "", "nobody works, and nothing is known of why"
    progress.waiting("waiting for 5 trials, run by process 7 on vm")
    assert look(4000) == "1 h 06 min: waiting for 5 trials, run by process 7 on vm\n"
    progress.say("something")
    assert progress._still_said == 0, "after a word it is patient for as long as in the beginning"


def test_the_time_left_begins_with_the_first_epoch():
    stream = io.StringIO()
    progress = Progress(1, 0, {"a" * 16: 1.0}, stream)
    progress._started -= 1000.0  # Ray, data, compilation
    progress.start("a" * 16, "vin", 2)
    progress.epoch("a" * 16, "vin", 2, {"epoch": 1, "train_seconds": 30.0})
    assert "about 30 s left" in stream.getvalue()


def test_status_tells_of_local_runs_without_a_cluster(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setattr(jobs, "DEFAULT_ADDRESS", "http://127.0.0.1:9")
    sweep = tmp_path / "small.yaml"
    sweep.write_text("name: small\nplanners: {vin: {core: vin}}\n")
    (planned,) = expand(load_sweep(sweep))
    storage = tmp_path / "storage"
    assert main(["status", "--storage", str(storage)]) == 0 and not storage.exists()
    assert capsys.readouterr().out == f"no trial runs in {storage} (there is none yet)\n"
    trial = Storage(storage).trial(planned.trial_id)
    lease = trial.take(Owner.here())
    write_standing(trial, HALF)
    assert main(["status", str(sweep), "--storage", str(storage)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "small: 1 trial: 0 done, 1 missing"
    assert said[-1].startswith(f"{planned.trial_id[:8]}  vin navigation-15 K=30 seed=0  epoch 2/3, batch 5/10  process")
    assert main(["status", "--storage", str(storage), "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["running"]
    assert (one["trial_id"], one["standing"]["batch"]) == (planned.trial_id, 5)
    lease.release()
