"""A route in C++ by `idp export-model --format aoti`: `make cpp-test`, a minute of processor time."""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.cli.main import main
from planners import load_planner

pytestmark = pytest.mark.skipif("IDP_CPP_TEST" not in os.environ, reason="a minute of compilers: make cpp-test")
EXAMPLE = Path(__file__).parents[2] / "examples" / "cpp_planner"
OPEN = "\n".join(("..........", ".S.#####..", "...#...#..", ".###.#.##.", ".....#..G.", ".........."))
SHUT = "#####\n#S#G#\n#####"


@pytest.fixture(scope="module")
def route(tmp_path_factory):
    build = tmp_path_factory.mktemp("build")
    given = ["-S", str(EXAMPLE), "-B", str(build), f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"]
    for command in (["cmake", *given], ["cmake", "--build", str(build)]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert main(["export-model", "reachability", str(build / "planner.pt2"), "--format", "aoti"]) == 0

    def run(*words):
        return subprocess.run([str(build / "route"), *words], capture_output=True, text=True, cwd=build)

    return run


def test_a_route_without_python(route, tmp_path):
    draw = np.random.default_rng(0).choice([".", "#"], (21, 33), p=(0.8, 0.2))
    draw[0, 0], draw[-1, -1] = "S", "G"
    for number, text in enumerate((OPEN, "\n".join("".join(row) for row in draw))):
        (tmp_path / f"{number}.txt").write_text(text)
        done = route("planner.pt2", str(tmp_path / f"{number}.txt"))
        rows = np.array([list(row) for row in text.split()])
        start, goal = (tuple(int(part) for part in np.argwhere(rows == mark)[0]) for mark in "SG")
        expected = load_planner("reachability").solve(rows != "#", start=start, goal=goal)
        assert expected.arrives and done.returncode == 0, done.stderr
        *drawn, told = done.stdout.splitlines()
        assert told == f"{int(expected.cost)} moves, arrives"
        way = {tuple(cell) for cell in np.argwhere(np.array([list(row) for row in drawn]) != rows).tolist()}
        assert way == {tuple(cell) for cell in expected.cells[1:-1].tolist()}


def test_what_is_wrong_is_one_line(route, tmp_path):
    (tmp_path / "shut.txt").write_text(SHUT)
    (tmp_path / "two.txt").write_text("SSG")
    done = route("planner.pt2", str(tmp_path / "shut.txt"))
    assert (done.returncode, done.stdout.splitlines()[-1][-15:]) == (1, "does not arrive")
    for words, reason in (
        (["planner.pt2", str(tmp_path / "two.txt")], "expected one S and one G"),
        (["planner.pt2", "none.txt"], "can't be read"),
        ([str(tmp_path / "two.txt"), str(tmp_path / "shut.txt")], "zip"),
        ([], "usage"),
    ):
        done = route(*words)
        assert done.returncode == 2 and re.fullmatch(f"route: .*{reason}.*\n", done.stderr), done.stderr
