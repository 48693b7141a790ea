"""The wheel can be installed beside others: what it puts where, and what is said when another package hides ours."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from hatchling.build import build_wheel

ROOT = Path(__file__).parents[1]
PACKAGES = {"datagen", "orchestrator", "planners"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Return the files of the wheel, as paths beside other packages."""
    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        name = build_wheel(str(folder))
    with zipfile.ZipFile(folder / name) as archive:
        return {PurePosixPath(path) for path in archive.namelist()}


def test_it_holds_the_three_packages_and_nothing_else(wheel):
    tops = {path.parts[0] for path in wheel}
    assert tops > PACKAGES
    (metadata,) = tops - PACKAGES
    assert metadata.endswith(".dist-info")


def test_every_file_of_the_packages_is_in_it(wheel):
    here = {
        PurePosixPath(path.relative_to(ROOT).as_posix())
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {path.suffix for path in here} >= {".py", ".css", ".js", ".yaml"}
    sweeps = {PurePosixPath("orchestrator", "sweeps", path.name) for path in (ROOT / "sweeps").iterdir()}
    assert here | sweeps == {path for path in wheel if path.parts[0] in PACKAGES}
    assert {PurePosixPath(package, "py.typed") for package in PACKAGES} <= wheel, "users' type checkers see no types"


def test_it_clobbers_no_other_distribution(wheel):
    commands = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"])
    ours = {path.parts[0] for path in wheel}
    others = [found for found in importlib.metadata.distributions() if found.name != "idp"]
    assert {"torch", "ray", "mlflow"} <= {found.name for found in others if found.read_text("RECORD")}
    for found in others:
        record = found.read_text("RECORD") or ""
        files = [PurePosixPath(line.partition(",")[0]) for line in record.splitlines()]
        assert not ours & {path.parts[0].removesuffix(".py") for path in files}, found.name
        assert not commands & {path.name for path in files if "bin" in path.parts[:-1]}, found.name


def test_unpacked_anywhere_it_plans_a_shipped_sweep_by_its_name(tmp_path):
    """Without the source tree: the packages of the wheel, and the libraries of this environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        name = build_wheel(str(tmp_path))
    with zipfile.ZipFile(tmp_path / name) as archive:
        archive.extractall(tmp_path / "installed")
    (tmp_path / "elsewhere").mkdir()
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "IDP_STORAGE": str(tmp_path / "storage")}

    def idp(*words):
        ran = subprocess.run(
            [sys.executable, "-P", "-m", "orchestrator", *words],
            capture_output=True, text=True, cwd=tmp_path / "elsewhere", env=environment, check=False,
        )  # fmt: skip
        return ran.returncode, ran.stdout + ran.stderr

    code, said = idp("plan", "quickstart")
    assert code == 0 and said.startswith("quickstart: ") and "4 trials" in said, said
    code, said = idp("plan", "quickstrat")
    assert code == 2 and "did you mean quickstart?" in said
    (tmp_path / "elsewhere" / "quickstart").write_text("name: mine\nplanners: {vin: {core: vin}}\n")
    code, said = idp("plan", "quickstart")
    assert code == 0 and said.startswith("mine\n"), "a file of that name goes first"


@pytest.mark.parametrize("hidden", ["planners.py", "datagen/__init__.py"])
def test_what_hides_a_package_is_named(tmp_path, hidden):
    (tmp_path / hidden).parent.mkdir(exist_ok=True)
    (tmp_path / hidden).touch()
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import orchestrator"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    package = hidden.partition("/")[0].removesuffix(".py")
    assert ran.returncode == 1
    said = f"ImportError: {package}: expected the package that comes with idp, found {tmp_path / hidden};"
    assert ran.stderr.splitlines()[-1].startswith(said)
