import importlib
import io
import os
import re
import sys
import threading
from pathlib import Path

import pytest

from orchestrator.campaign.progress import Progress
from orchestrator.storage.results import TrialResult
from orchestrator.sweep.specs import PlannedTrial, TrialSpec
from orchestrator.words import duration, outcome, trial_name

AXES = {"planner": "id-vin", "task": "navigation", "map_size": 15, "k": 30, "seed": 1}
ID = "0123456789abcdef"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (18720, "5 h 12 min"), (187200, "2 d 4 h")],
)
def test_durations_as_people_say_them(seconds, words):
    assert duration(seconds) == words


def test_names_and_outcomes():
    trial = PlannedTrial(ID, TrialSpec(), {**AXES, "planner.solver": "anderson"})
    assert trial_name(trial) == "id-vin navigation-15 K=30 solver=anderson seed=1"
    done = TrialResult(trial_id=ID, status="COMPLETED", test_success_rate=0.123, trial_diverged=True)
    assert outcome(done) == "success 12.3 %, under 20 %"
    assert outcome(TrialResult(trial_id=ID, status="FAILED", reason="boom")) == "FAILED: boom"


def play(progress: Progress) -> None:
    progress.say("starting")
    progress.start("a" * 16, "vin", 2)
    progress.tick()
    progress.epoch("a" * 16, "vin", 2, {"epoch": 1, "train_loss": 1.5, "valid_success_rate": 0.25})
    progress.finish("a" * 16, "vin", "success 50.0 %")
    progress.finish("b" * 16, "vin", "FAILED: boom", failed=True)
    progress.close()


def test_plain_lines_where_nobody_watches():
    stream = io.StringIO()
    play(Progress(3, 1, {}, stream))
    assert stream.getvalue().splitlines() == [
        "starting",
        "aaaaaaaa  vin  epoch 1/2  success  25.0 %  loss 1.500",
        "aaaaaaaa  vin  success 50.0 %  [2/3]",
        "bbbbbbbb  vin  FAILED: boom  [2/3]",
    ]


def test_a_terminal_keeps_only_what_stays():
    stream = Terminal()
    play(Progress(3, 1, {}, stream))
    screen: list[str] = []
    for part in stream.getvalue().split("\n"):
        while "\x1b[" in part:  # up n lines, erase to the end of the screen
            count, _, rest = part.partition("\x1b[")[2].partition("F")
            del screen[len(screen) - int(count) :]
            part = rest.removeprefix("\x1b[J")
        screen.append(part)
    assert screen == ["starting", "aaaaaaaa  vin  success 50.0 %  [2/3]", "bbbbbbbb  vin  FAILED: boom  [2/3]", ""]


def test_more_trials_than_lines_of_the_terminal_stay_within_it(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("LINES", "8")
    stream = Terminal()
    progress = Progress(20, 0, {}, stream)
    for number in range(20):
        progress.start(f"{number:016x}", "a name that is wider than the terminal", 2)
    block = stream.getvalue().rpartition("\x1b[J")[2].splitlines()
    assert len(block) == 6 and max(map(len, block)) == 29 and block[-1] == "  and 16 more"


def test_the_width_is_that_of_the_stream_that_is_written_to(monkeypatch):
    monkeypatch.setattr(os, "get_terminal_size", lambda file: os.terminal_size((40, 24) if file == 2 else (0, 0)))
    stream = Terminal()
    stream.fileno = lambda: 2
    Progress(1, 0, {}, stream).start("a" * 16, "a name that is wider than forty columns of a terminal", 2)
    assert max(map(len, stream.getvalue().splitlines())) == 39


def test_time_left_shrinks_with_the_work():
    stream = io.StringIO()
    progress = Progress(2, 0, {"a" * 16: 1.0, "b" * 16: 1.0}, stream)
    progress.start("a" * 16, "vin", 1)
    progress.epoch("a" * 16, "vin", 1, {"epoch": 1, "valid_success_rate": None})
    assert "left" in stream.getvalue()
    progress.finish("a" * 16, "vin", "done")
    progress.finish("b" * 16, "vin", "done")
    progress.epoch("c" * 16, "vin", 1, {"epoch": 1})
    assert "left" not in stream.getvalue().splitlines()[-1]


def test_the_time_left_counts_the_work_of_this_run_alone():
    stream = io.StringIO()
    progress = Progress(2, 0, {"a" * 16: 100.0, "b" * 16: 100.0}, stream)
    progress._started -= 10.0  # ten seconds ago
    progress.start("a" * 16, "vin", 100)
    # Ninety epochs are an earlier run's: this one has done one in ten seconds, and 109 are left.
    progress.epoch("a" * 16, "vin", 100, {"epoch": 91, "valid_success_rate": None})
    assert "about 18 min" in stream.getvalue()
    progress.finish("b" * 16, "vin", "done by another run")
    progress.epoch("a" * 16, "vin", 100, {"epoch": 92, "valid_success_rate": None})
    assert re.search(r"epoch 92/100  about (39|40|41) s left", stream.getvalue())


def test_a_trial_whose_process_died_is_not_shown_where_it_stood():
    stream, name = io.StringIO(), "a" * 16
    progress = Progress(1, 0, None, stream)
    progress.start(name, "vin", 4)
    progress.wait(name)
    for said in ("waits for another process", "epoch 1/4, batch 2/9"):
        progress.look(lambda _: "epoch 1/4, batch 2/9", progress._said_at + 1e6)
        assert stream.getvalue().splitlines()[-1].endswith(f"0/1 trials; aaaaaaaa {said}")
        progress.start(name, "vin", 4)


def test_threads_that_draw_and_change_at_once_do_not_meet():
    progress = Progress(1, 0, {}, Terminal())
    failures: list[BaseException] = []
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    stop = threading.Event()

    def draw() -> None:
        try:
            while not stop.is_set():
                progress.say("MLflow speaks")
        except BaseException as error:
            failures.append(error)

    drawer = threading.Thread(target=draw)
    drawer.start()
    try:
        for number in range(300):
            progress.start(f"{number:016x}", "vin", 1)
            progress.epoch(f"{number:016x}", "vin", 1, {"epoch": 1, "valid_success_rate": 0.5})
            if number >= 20:
                progress.leave(f"{number - 20:016x}")
    finally:
        stop.set()
        drawer.join()
        sys.setswitchinterval(before)
    assert not failures


class Hungup(Terminal):
    lost = 0

    def write(self, text: str) -> int:
        self.lost += 1
        raise OSError(5, "Input/output error")


def test_a_terminal_that_is_gone_stops_nothing():
    terminal = Hungup()
    play(Progress(3, 1, {}, terminal))
    assert terminal.lost > 0 and terminal.getvalue() == ""


def test_a_number_is_shown_whole_or_not_at_all(monkeypatch):
    rows = {}
    for columns in range(30, 81):
        monkeypatch.setattr(Progress, "_size", lambda _, columns=columns: os.terminal_size((columns, 24)))
        stream = Terminal()
        progress = Progress(1, 0, {}, stream)
        progress.epoch(ID, "vin navigation-15 K=30", 3, {"epoch": 1, "valid_success_rate": 0.534})
        rows[columns] = stream.getvalue().splitlines()[-1]
    whole = "  01234567  vin navigation-15 K=30  epoch 1/3"
    assert {row.removeprefix(whole) for row in rows.values() if row.startswith(whole)} == {
        "",
        "   53.4 %",
        "  success  53.4 %",
    }
    assert all(whole.startswith(row) or row.startswith(whole) for row in rows.values())


def test_the_picture_of_a_terminal_is_of_this_display(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "docs")
    drawing = importlib.import_module("terminal_picture")
    assert drawing.PICTURE.read_text() == drawing.picture(), "python docs/terminal_picture.py draws it again"
