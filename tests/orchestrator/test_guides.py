"""The guides, done to the letter: files are written, commands run, Python executed, in the order they stand."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
GUIDES = ("add-a-planner", "add-a-task", "use-a-trained-planner")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\S+\.(?:py|yaml))\n")


def follow(guide, folder):
    """Do what a guide says, in a folder, and return what its commands print."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONWARNINGS", "PYTHONPATH")}
    environment |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    printed, script = {}, []

    def run(command, name):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, f"{guide}: {name}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        printed[name] = done.stdout

    for language, text in BLOCK.findall((DOCS / f"{guide}.md").read_text()):
        named = FILE.match(text)
        if named:
            path = folder / named[1]
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        elif language == "console":
            for line in text.splitlines():
                program, *words = shlex.split(line)
                assert program == "idp", line
                run([sys.executable, "-m", "orchestrator", *words], line)
        else:
            assert language == "python", f"{guide}: a block of {language} that no test would look at"
            script.append(text)
    if script:
        run([sys.executable, "-c", "\n".join(script)], "python")
    return printed


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guides")
    return {guide: follow(guide, folder) for guide in GUIDES}


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
    assert set(GUIDES) <= written
