"""The guides, done to the letter: files are written, commands run, Python executed, in the order they stand."""

import json
import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
STRANDS = (("add-a-planner", "use-a-trained-planner"), ("add-a-task",))
"""Guides that build on each other, followed in one folder; strands know nothing of each other and run side by side."""

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\S+\.(?:py|yaml))\n")

SHELL = """
import json, os, sys, traceback
import matplotlib.pyplot, mlflow, pyarrow.parquet, ray, torch
import orchestrator.campaign.run, orchestrator.cli.main, orchestrator.cluster.trials
import orchestrator.report.page, orchestrator.tracking.tracker
import planners.conformance.cores
sys.path.insert(0, "")
for line in sys.stdin:
    step = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(step[name], os.O_CREAT | os.O_TRUNC | os.O_WRONLY), number)
        code = 1
        try:
            exec(step["python"], {"__name__": "__main__"})
            code = orchestrator.cli.main.main(step["idp"]) if step["idp"] else 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs every step in a process of its own, as a shell does; forked from one that has read the libraries already."""


class Shell:
    """A folder in which to follow guides."""

    def __init__(self, folder):
        self.folder = folder
        environment = {
            name: value for name, value in os.environ.items() if name not in ("PYTHONWARNINGS", "PYTHONPATH")
        }
        environment |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SHELL],
            cwd=folder,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def run(self, what, *, idp=(), python=""):
        """Return what a step prints."""
        out, err = self.folder / "printed.txt", self.folder / "complaints.txt"
        step = {"idp": list(idp), "python": python, "out": str(out), "err": str(err)}
        self.process.stdin.write(json.dumps(step) + "\n")
        self.process.stdin.flush()
        code = self.process.stdout.readline().strip()
        assert code == "0", f"{what}: {code}\n{out.read_text()[-2000:]}\n{err.read_text()[-2000:]}"
        return out.read_text()

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(60)


def follow(guide, shell):
    """Do what a guide says, and return what its commands print."""
    printed, script = {}, []
    for language, text in BLOCK.findall((DOCS / f"{guide}.md").read_text()):
        named = FILE.match(text)
        if named:
            path = shell.folder / named[1]
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        elif language == "console":
            for line in text.splitlines():
                program, *words = shlex.split(line)
                assert program == "idp", line
                printed[line] = shell.run(f"{guide}: {line}", idp=words)
        else:
            assert language == "python", f"{guide}: a block of {language} that no test would look at"
            script.append(text)
    if script:
        printed["python"] = shell.run(f"{guide}: python", python="\n".join(script))
    return printed


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    def strand(guides):
        shell = Shell(tmp_path_factory.mktemp(guides[0]))
        try:
            return {guide: follow(guide, shell) for guide in guides}
        finally:
            shell.close()

    with ThreadPoolExecutor(len(STRANDS)) as side_by_side:
        first, *others = side_by_side.map(strand, STRANDS)
    for other in others:
        first |= other
    return first


def test_a_planner_is_added(followed):
    printed = followed["add-a-planner"]
    assert "FAILED" not in printed["idp check my_planners"]
    lines = printed["idp table own.yaml"].splitlines()
    assert [line.split()[0] for line in lines if "1/1" in line] == ["vin", "soft-vin", "id-soft-vin"]


def test_a_task_is_added(followed):
    printed = followed["add-a-task"]
    assert "FAILED" not in printed["idp check my_tasks"]
    assert "2 trials: 0 done, 2 to run" in printed["idp plan islands.yaml"]
    rows = [line.split() for line in printed["idp run islands.yaml"].splitlines() if "  1/1  " in line]
    assert len(rows) == 2 and all("id-vin" in row for row in rows) and {"0.2", "0.4"} <= {*rows[0], *rows[1]}


def test_a_trained_planner_is_used(followed):
    residual, steps, converged = followed["use-a-trained-planner"]["python"].split()
    assert 0 <= float(residual) < 10 and int(steps) == 12 and converged in ("True", "False")


def test_every_guide_is_followed():
    written = {path.stem for path in DOCS.glob("*.md") if BLOCK.search(path.read_text())}
    assert {guide for strand in STRANDS for guide in strand} <= written
