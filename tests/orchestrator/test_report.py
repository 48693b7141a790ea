"""The report: complete, honest about what is missing, and clean in a real browser without a network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest
from samples import SWEEPS, put_curves, put_result, sample_runs

from orchestrator.cli.main import main
from orchestrator.command import Command
from orchestrator.figures.parts import NothingToDraw
from orchestrator.report.keeper import FreshReport, ReportError
from orchestrator.report.page import Page, report, write_report
from orchestrator.storage.layout import Storage
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.sweep.files import load_sweep

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
samples = cache(sample_runs)


class Reader(HTMLParser):
    """Collects text, links, ids and whether tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.links, self.ids, self.open = [], [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [attributes[name] for name in ("href", "src", "xlink:href") if name in attributes]
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text.append(data)


def read(html):
    reader = Reader()
    reader.feed(html)
    assert not reader.open
    return reader, " ".join(" ".join(reader.text).split())


@cache
def page(name="figure11", profile="smoke", **fields):
    sweep, runs = samples(name, profile)
    return report(sweep, runs, Page(Command(f"sweeps/{name}.yaml", profile), **fields))


def test_a_report_says_question_results_figures_provenance_and_commands():
    reader, text = read(page())
    sweep, runs = samples("figure11", "smoke")
    assert sweep.description in text and f"{len(runs)}/{len(runs)}" in text
    for heading in ("Beside the paper", "Figures", "Results", "Provenance", "To reproduce it"):
        assert heading in text
    assert "idp run sweeps/figure11.yaml --profile smoke" in text and "idp report sweeps/figure11.yaml" in text
    assert "0123456789ab" in text and "torch 2.13.0" in text and "Some CPU" in text and "node-1" in text
    assert runs[0].result.provenance.dataset_id in text
    assert len(reader.ids) == len(set(reader.ids)) > 10


@pytest.mark.slow
def test_a_report_asks_nobody_for_anything():
    html = page("table1", None)
    reader, _ = read(html)
    assert all(link.startswith(("#", "data:")) for link in reader.links)
    assert "url(http" not in html and "@import" not in html and "fetch(" not in html


@pytest.mark.slow
def test_table_1_stands_beside_the_papers_with_its_source():
    _, text = read(page("table1", None))
    assert "paper 99.63 ± 0.08" in text and "arXiv:2210.13542" in text
    assert "Not the paper's scale" not in text and "no profile" in text
    _, smoke = read(page("figure7"))
    assert "Not the paper's scale" in smoke and "64 train maps, not 10,000" in smoke
    assert "profile smoke" in smoke


@pytest.mark.slow
def test_missing_out_of_memory_and_diverged_trials_are_told():
    sweep, runs = samples("figure2")
    kept = [replace(run, result=None, curves=[]) if run.axis("seed") == 4 else run for run in runs]
    _, text = read(report(sweep, kept, Page(running=True)))
    oom, diverged = sum(r.out_of_memory for r in kept), sum(bool(r.result and r.result.trial_diverged) for r in kept)
    assert oom and diverged
    assert f"{oom} out of memory" in text and f"{diverged} diverged" in text
    assert f"{len(runs) - len(runs) // 5}/{len(runs)}" in text and "Missing" in text and "missing seeds" in text
    assert "out of memory: a training step needed more than the limit of 11 GiB" in text
    assert "still running" in text
    assert 'http-equiv="refresh"' in report(sweep, kept, Page(running=True))
    assert 'http-equiv="refresh"' not in report(sweep, kept)


def test_an_empty_sweep_has_a_report():
    sweep, runs = samples("figure7", "smoke")
    _, text = read(report(sweep, [replace(run, result=None, curves=[]) for run in runs]))
    assert f"0/{len(runs)}" in text and "curves: no trial has finished an epoch" in text


def test_what_trials_say_cannot_become_code():
    sweep, runs = samples("figure7", "smoke")
    evil = runs[0].result.model_copy(update={"status": "FAILED", "reason": "<script>alert(1)</script>"})
    html = report(sweep, [replace(runs[0], result=evil), *runs[1:]])
    assert "<script>alert" not in html and "&lt;script&gt;alert(1)" in html


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """A storage with plausible trials of figure 7's smoke profile."""
    folder = tmp_path_factory.mktemp("storage")
    for run in samples("figure7", "smoke")[1]:
        directory = Storage(folder).trial(run.trial.trial_id).path
        TrialDirectory(directory).write_spec(run.trial.spec)
        if run.curves:
            put_curves(directory, run.curves)
        put_result(directory, run.result)
    return folder


SWEEP = str(SWEEPS / "figure7.yaml")


@pytest.mark.slow
def test_the_commands_write_figures_and_report(storage, tmp_path, capsys):
    options = ["--profile", "smoke", "--storage", str(storage)]
    assert main(["report", SWEEP, *options, "--json"]) == 0
    path = storage / "sweeps" / "figure7" / "report.html"
    assert json.loads(capsys.readouterr().out) == {"sweep": "figure7", "report": str(path)}
    assert "--profile smoke" in path.read_text()
    assert main(["figures", SWEEP, *options, "--format", "pdf", "--width", "8.255cm", "--out", str(tmp_path)]) == 0
    written = sorted(tmp_path.iterdir())
    assert [path.name for path in written] == ["figure7-curves.pdf", "figure7-seconds.pdf"]
    assert re.search(rb"/MediaBox \[ 0 0 234 ", written[0].read_bytes())  # 3.25 inches
    capsys.readouterr()
    assert main(["figures", SWEEP, "--profile", "smoke", "--storage", str(tmp_path / "empty")]) == 2
    assert "no trial has finished an epoch" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["figures", SWEEP, "--width", "wide"])
    with pytest.raises(SystemExit, match="2"):
        main(["figures", SWEEP, "--width", "3"])
    assert "a width and its unit" in capsys.readouterr().err
    assert main(["figures", SWEEP, *options, "--set", "figures=[sucess]"]) == 2
    assert "unknown name 'sucess'; did you mean 'success'?" in capsys.readouterr().err


@pytest.mark.slow
def test_a_report_is_kept_fresh_while_the_sweep_runs(storage):
    sweep = load_sweep(SWEEP, "smoke")
    keeper = FreshReport(sweep, Storage(storage), Command("figure11.yaml", "smoke"), seconds=0.01)
    path = storage / "sweeps" / "figure7" / "report.html"
    path.unlink(missing_ok=True)
    keeper.note()
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "still running" in path.read_text()
    with pytest.raises(ReportError, match=r"takes more than 0\.1 seconds now"):
        keeper.close(0.1)
    assert "still running" in path.read_text()
    assert keeper.close() == path and keeper.error is None
    assert "still running" not in path.read_text()


def test_a_sweep_that_ends_at_once_is_drawn_once(storage, monkeypatch):
    written = []
    monkeypatch.setattr(FreshReport, "_write", lambda keeper, running, patience=0.0: written.append(running))
    keeper = FreshReport(load_sweep(SWEEP, "smoke"), Storage(storage))
    keeper.note()
    keeper.close()
    assert written == [False]


@pytest.mark.slow
def test_a_version_that_cannot_be_written_is_told_if_the_last_one_fails_too(tmp_path):
    sweep = load_sweep(SWEEP, "smoke")
    (tmp_path / "sweeps").write_text("a file where the folder should be")
    keeper = FreshReport(sweep, Storage(tmp_path), seconds=0.01)
    keeper.note()
    deadline = time.monotonic() + 60
    while keeper.error is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "NotADirectoryError" in str(keeper.error)
    with pytest.raises(ReportError, match="NotADirectoryError"):
        keeper.close()


def test_an_unknown_figure_is_told(storage):
    sweep = load_sweep(SWEEP, "smoke").model_copy(update={"figures": ["sucess"]})
    with pytest.raises(NothingToDraw, match="did you mean 'success'"):
        write_report(sweep, Storage(storage))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_the_page_and_sorts_it_without_a_complaint(tmp_path):
    html = page("figure7")
    # A click on a head, as a reader would do it; the result is read back from the page.
    probe = """<script>
      const heads = [...document.querySelectorAll("table.sortable th button")];
      const head = heads.find((button) => button.textContent === "success %");
      head.click();
      const table = head.closest("table"), column = head.closest("th").cellIndex;
      const shown = [...table.tBodies[0].rows].map((row) => parseFloat(row.cells[column].textContent));
      const svgs = [...document.querySelectorAll("figure svg")].map((svg) => svg.getBoundingClientRect());
      document.body.dataset.probe = JSON.stringify({ shown, widths: svgs.map((box) => box.width),
        overflow: document.documentElement.scrollWidth - window.innerWidth });
    </script></body>"""
    path = tmp_path / "report.html"
    path.write_text(html.replace("</body>", probe))
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr", "--v=0", "--window-size=1100,900", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'data-probe="([^"]*)"', done.stdout)
    assert found, done.stderr
    probed = json.loads(found[1].replace("&quot;", '"'))
    assert len(probed["shown"]) == 14 and probed["shown"] == sorted(probed["shown"])  # seven planners on two sizes
    assert len(probed["widths"]) == 2 and min(probed["widths"]) > 700 and probed["overflow"] <= 0
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert complaints == []


@pytest.mark.slow
def test_at_a_smaller_scale_a_low_trial_is_not_called_diverged():
    sweep, runs = samples("figure7", "smoke")
    low = runs[0].result.model_copy(update={"trial_diverged": True, "test_success_rate": 0.1})
    _, text = read(report(sweep, [replace(runs[0], result=low), *runs[1:]]))
    assert "diverged or under-trained: success 10.0 %, under 20 %" in text
    assert f"{1 + sum(run.result.trial_diverged for run in runs[1:])} under 20 %" in text
    assert "own scale" not in text
    _, full = read(report(*samples("figure2")))
    assert "trial diverged: success" in full and "under-trained" not in full


@pytest.mark.slow
def test_a_selection_and_other_settings_keep_their_own_documents(storage, capsys):
    options = ["--profile", "smoke", "--storage", str(storage)]
    folder = storage / "sweeps" / "figure7"
    shutil.rmtree(folder, ignore_errors=True)
    assert main(["report", SWEEP, *options]) == 0 and main(["figures", SWEEP, *options]) == 0
    whole = (folder / "report.html").read_text()
    assert main(["report", SWEEP, *options, "--only", "planner=vin"]) == 0
    chosen = capsys.readouterr().out.splitlines()[-1]
    assert (folder / "report.html").read_text() == whole and chosen.startswith(str(folder / "only"))
    assert "--only planner=vin" in Path(chosen).read_text()
    other = [*options, "--set", "training.epochs=7"]
    assert main(["report", SWEEP, *other]) == 0
    kept = re.search(r"it is now (\S+)", capsys.readouterr().err)[1]
    assert Path(kept).read_text() == whole and (folder / "report.html").read_text() != whole
    # Nothing to draw: what was drawn before stays where it is. More seeds are no other sweep.
    assert main(["figures", SWEEP, *other]) == 2 and (folder / "figures").is_dir()
    assert main(["report", SWEEP, *other, "--set", "grid.seed=[0,1,2]"]) == 0
    assert len(list(folder.glob("report*.html"))) == 2


def test_captions_stand_outside_the_boxes_that_scroll():
    html = page("figure2", None)
    assert "<caption" not in html and html.count('class="caption"') == 1
    boxes = re.findall(r'<div class="scroll">.*?</div>', html, flags=re.DOTALL)
    assert boxes and not any('class="caption"' in box for box in boxes)


@pytest.mark.slow
def test_a_report_whose_command_nobody_knows_guesses_none():
    assert "To reproduce it" not in report(*samples("figure7", "smoke"))
