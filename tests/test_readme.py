"""The README is true: its files are there, its verbs exist, its Python and YAML run."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.specs import expand
from planners import build_planner, load_planner

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_its_make_targets_exist():
    targets = set(re.findall(r"^make (\w+)", README, re.MULTILINE))
    assert {"quickstart", "test"} <= targets
    rules = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", rules, re.MULTILINE) for target in targets)


def test_its_verbs_exist():
    verbs = set(re.findall(r"`idp ([\w-]+)", README + (ROOT / "docs" / "commands.md").read_text()))
    usage = subprocess.run([sys.executable, "-m", "orchestrator", "--help"], capture_output=True, text=True, check=True)
    assert {"plan", "run", "table"} <= verbs
    known = set(re.findall(r"^    ([a-z-]+)", usage.stdout, re.MULTILINE))
    assert verbs == known, "each verb stands on the page of verbs"


def test_its_python_runs():
    _, code = blocks("python")
    names = {}
    exec(code, names)
    assert names["logits"].shape == (2, 4, 15, 15)


def test_its_own_planner_is_a_row_of_table_1_and_learns(tmp_path, monkeypatch):
    (code, _), (text,) = blocks("python"), blocks("yaml")
    assert code.count("\n") <= 40, "thirty lines, and what is between them"
    (tmp_path / "my_planner.py").write_text(code)
    for path in (ROOT / "sweeps").glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    base = {trial.trial_id for trial in expand(load_sweep(tmp_path / "table1.yaml"))}
    mine = {trial.trial_id: trial for trial in expand(load_sweep(tmp_path / "mine.yaml"))}
    assert base < set(mine) and len(mine) - len(base) == 60
    spec = next(trial.spec.planner for trial_id, trial in mine.items() if trial_id not in base)
    planner = build_planner(spec.model_copy(update={"k_fwd": 5, "wrap": False}))
    planner(torch.ones(2, 1, 7, 7), torch.zeros(2, 1, 7, 7)).square().sum().backward()
    assert all(weights.grad is not None for weights in planner.parameters())


def test_what_it_says_of_the_published_weights_is_the_page_s():
    page = (ROOT / "docs" / "planners" / "reachability.md").read_text()
    rows = re.findall(r"^\| \w+ \| \d+ \| .* \| (\d+) \|$", page, re.MULTILINE)
    starts, longest = re.search(r"^\| perfect \| 2001 \| 5 \| ([\d,]+) \| ([\d,]+) \|", page, re.MULTILINE).groups()
    said = " ".join(README.split())
    assert f"search is {min(map(int, rows))} to {round(max(map(int, rows)), -2)} times faster" in said
    assert f"takes all {starts} starts of five perfect mazes of 2001x2001" in said and f"up to {longest} steps" in said
    weights = sum(part.numel() for part in load_planner("reachability").planner.parameters())
    assert f"{weights} weights trained on mazes of 15x15" in said


def test_the_report_that_it_shows_has_as_many_trials_as_it_says():
    trials = expand(load_sweep(ROOT / "sweeps" / "table1.yaml", profile="laptop"))
    assert f"`laptop` profile, from the [archive](REPRODUCTION.md#what-was-run): {len(trials)} trials" in README


@pytest.mark.slow
def test_its_first_picture_shows_what_it_says(tmp_path):
    told = runpy.run_path(str(ROOT / "docs" / "far.py"))["draw"](tmp_path / "far.png")
    size, steps = re.search(r"(\d+x\d+), a way of ([\d,]+) steps", told).groups()
    picture, caption = re.search(r"!\[.*?\]\((.*?)\)\n\n\*(.*?)\*\n", README, re.DOTALL).groups()
    assert picture == "docs/images/far.png" and size in caption and f"{steps} steps" in caption
    assert (tmp_path / "far.png").stat().st_size > 50_000


def test_no_command_to_begin_with_trains_at_the_papers_scale():
    begins = re.compile(
        r"^[# ]*(.*?(?:idp (?:submit|run)|sbatch|ray (?:job )?submit) .*?sweeps/table1\.yaml.*)", re.MULTILINE
    )
    folders = (ROOT.glob("README.md"), ROOT.glob("docs/*.md"), ROOT.glob("slurm/*"), ROOT.glob("kubernetes/*.yaml"))
    found = [line for folder in folders for path in folder for line in begins.findall(path.read_text())]
    commands = [command for line in found if "`" not in (command := line.partition(" # ")[0])]  # in no sentence
    assert len(commands) >= 14
    assert [command for command in commands if "--profile" not in command] == []
