"""What reaches a terminal: whatever a file says, in whatever letters the terminal has."""

from __future__ import annotations

import csv
import io
import json
import sys
from dataclasses import replace

import pytest
from samples import put_result, sample_runs

from orchestrator.campaign.progress import Progress
from orchestrator.cli.main import main
from orchestrator.storage.code import code_hash
from orchestrator.storage.layout import Storage
from orchestrator.storage.provenance import Provenance
from orchestrator.storage.results import TrialResult
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.specs import expand
from orchestrator.tables.formats import render
from orchestrator.tables.summary import summarise
from orchestrator.terminal import Printable, painted, printable, printing

SWEEP = """
name: words
planners: {vin: {core: vin, adjoint: unrolled}, id-vin: {core: vin}}
grid: {k: [5], seed: [0, 1]}
"""
EVIL = "\x1b]0;owned\x07\x9b31m\r\x08\u202e"


class Terminal(io.TextIOWrapper):
    """A terminal of some encoding that keeps what it is sent."""

    def __init__(self, encoding):
        self.sent = io.BytesIO()
        super().__init__(self.sent, encoding=encoding, errors="strict", write_through=True)

    def isatty(self):
        return True

    def text(self):
        return self.sent.getvalue().decode(self.encoding)


@pytest.fixture(autouse=True)
def no_colours(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")  # codes of our own, where all others are to be found out


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    monkeypatch.setenv("IDP_STORAGE", str(tmp_path / "storage"))
    path = tmp_path / "words.yaml"
    path.write_text(SWEEP)
    for trial in expand(load_sweep(path)):
        origin = Provenance(code=code_hash(), cpu=EVIL, host=EVIL)
        bad = trial.axes["planner"] == "id-vin"
        result = TrialResult(
            trial_id=trial.trial_id, status="FAILED" if bad else "COMPLETED", reason=EVIL, provenance=origin,
            test_success_rate=0.5 + 0.1 * trial.spec.seed, forward_seconds=1.0 + trial.spec.seed,
        )  # fmt: skip
        put_result(Storage(tmp_path / "storage").trial(trial.trial_id).path, result)
    return path


def said(monkeypatch, encoding, *words):
    out, err = Terminal(encoding), Terminal(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    code = main([str(word) for word in words])
    return code, out.text(), err.text()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "iso-8859-1"])
def test_every_verb_speaks_in_the_terminals_letters_and_cannot_be_made_to_steer_it(sweep, monkeypatch, encoding):
    for words in (["table"], ["table", "--wide"], ["table", "--format", "csv"], ["table", "--format", "md"], ["plan"],
                  ["plan", "--json"], ["table", "--json"], ["report"]):  # fmt: skip
        code, out, err = said(monkeypatch, encoding, words[0], sweep, *words[1:])
        assert code == 0, err
        assert printable(out) == out and printable(err) == err
    assert ("±" if encoding != "ascii" else "+-") in said(monkeypatch, encoding, "table", sweep)[1]
    code, _, err = said(monkeypatch, encoding, "table", sweep, "--set", f"planners.vin.core=x{EVIL}")
    assert code == 2 and printable(err) == err and "Traceback" not in err


def test_a_file_whose_name_is_no_text_has_a_report(sweep, monkeypatch, tmp_path):
    odd = tmp_path / b"sw\xe9ep.yaml".decode(errors="surrogateescape")
    odd.write_text(SWEEP)
    code, _, err = said(monkeypatch, "utf-8", "report", odd)
    assert (code, err) == (0, "")
    assert r"sw\udce9ep.yaml" in (tmp_path / "storage/sweeps/words/report.html").read_text()
    assert said(monkeypatch, "utf-8", "plan", odd)[0] == 0


def test_a_progress_bar_still_steers_its_terminal(monkeypatch):
    screen = Terminal("utf-8")
    monkeypatch.setattr(sys, "stderr", screen)
    with printing():
        progress = Progress(2, 0)
        progress.start("0" * 16, f"name{EVIL}", 3)
        progress.finish("0" * 16, "name", f"FAILED: {EVIL}", failed=True)
        progress.close()
    text = screen.text()
    assert "\x1b[2F\x1b[J" in text and printable(text.replace("\x1b[2F\x1b[J", "").replace("\x1b[1F\x1b[J", "")) in (
        text.replace("\x1b[2F\x1b[J", "").replace("\x1b[1F\x1b[J", "")
    )
    assert sys.stderr is screen


def test_no_cell_of_a_csv_is_a_formula_and_no_text_breaks_a_table():
    sweep, runs = sample_runs("figure7", "smoke")
    for text in ('=HYPERLINK("http://x")', "+1+1", "@SUM(A1)", "-1+2", " =1", "\t=1"):
        evil = Provenance(code=code_hash(), cpu=f"{text}\n| b |{EVIL}")
        marked = [replace(run, result=run.result.model_copy(update={"provenance": evil})) for run in runs]
        summary = summarise(sweep.name, marked)
        lines = list(csv.reader(io.StringIO(render(summary, "csv"))))
        devices = {line[lines[0].index("device")] for line in lines[1:]}
        assert all(device[0] in "'\\" for device in devices) and printable("".join(devices)) == "".join(devices)
        assert all(line[lines[0].index("success_rate")][0].isdigit() for line in lines[1:])
        for format in ("text", "md", "tex", "macros"):
            written = render(summary, format)
            assert "\x1b" not in written and "\x9b" not in written
        json.loads(render(summary, "json"))


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "variables", "coloured"),
    [
        (Screen, {}, True),
        (Screen, {"NO_COLOR": "1"}, False),
        (Screen, {"TERM": "dumb"}, False),
        (io.StringIO, {}, False),
    ],
)
def test_colours_are_for_terminals_whose_owner_wants_them(monkeypatch, stream, variables, coloured):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    inner = stream()
    outer = Printable(inner)
    outer.write(f"{painted('ok', 'green', outer)} \x1b[31mnot by a file\x1b[0m\n")
    ok = "\x1b[32mok\x1b[0m" if coloured else "ok"
    assert inner.getvalue() == f"{ok} \\x1b[31mnot by a file\\x1b[0m\n"
