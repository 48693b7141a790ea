"""The guides, done to the letter: files are written, commands run, Python executed, in the order they stand."""

import re
import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
STRANDS = (
    ("add-a-planner", "use-a-trained-planner"), ("add-a-task",), ("add-a-system",), ("environments",), ("datasets",),
    ("searches",),
)  # fmt: skip
"""Guides that build on each other, followed in one folder; strands know nothing of each other and run side by side."""

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\S+\.(?:py|yaml))\n")


class Shell:
    """A folder in which to follow guides."""

    def __init__(self, folder, idp):
        self.folder, self._idp = folder, idp

    def run(self, what, *words, python=""):
        """Return what a step prints."""
        if words[:1] == ("run",):
            words += ("--in-process",)
        done = self._idp(*words, python=python, cwd=self.folder)
        assert done.returncode == 0, f"{what}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout


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
                printed[line] = shell.run(f"{guide}: {line}", *words)
        else:
            assert language == "python", f"{guide}: a block of {language} that no test would look at"
            script.append(text)
    if script:
        printed["python"] = shell.run(f"{guide}: python", python="\n".join(script))
    return printed


@pytest.fixture(scope="module")
def followed(tmp_path_factory, idp, database):
    def strand(guides):
        folder = tmp_path_factory.mktemp(guides[0])
        (folder / "idp-storage").mkdir()
        (folder / "idp-storage" / "mlflow.db").write_bytes(database)
        return {guide: follow(guide, Shell(folder, idp)) for guide in guides}

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
    assert "8 of 8 checks passed" in printed["idp check my_photos"]
    assert "2 trials: 0 done, 2 to run" in printed["idp plan islands.yaml"]
    rows = [line.split() for line in printed["idp run islands.yaml"].splitlines() if "  1/1  " in line]
    assert len(rows) == 2 and all("id-vin" in row for row in rows) and {"0.2", "0.4"} <= {*rows[0], *rows[1]}


def test_a_system_is_added(followed):
    printed = followed["add-a-system"]
    assert "4 of 4 checks passed" in printed["idp check my_systems"]
    assert "8 trials: 0 done, 8 to run" in printed["idp plan springs.yaml"]
    lines = printed["idp table springs.yaml"].splitlines()
    assert sum("2/2" in line for line in lines) == 4 and any("error cm ↓" in line for line in lines)
    assert "springs-epochs.svg" in printed["idp figures springs.yaml"]


def test_a_trained_planner_is_used(followed):
    residual, steps, converged = followed["use-a-trained-planner"]["python"].split()
    assert 0 <= float(residual) < 10 and int(steps) == 12 and converged in ("True", "False")


def test_every_guide_is_followed():
    written = {path.stem for path in DOCS.glob("*.md") if BLOCK.search(path.read_text())}
    assert {guide for strand in STRANDS for guide in strand} <= written
