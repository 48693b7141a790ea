"""The wheel: what it puts where beside others, that it works there, and what is said when another hides ours."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
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
    """Return the wheel, built."""
    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return folder / build_wheel(str(folder))


@pytest.fixture(scope="module")
def files(wheel):
    """Return the files of the wheel, as paths beside other packages."""
    with zipfile.ZipFile(wheel) as archive:
        return {PurePosixPath(path) for path in archive.namelist()}


def test_it_holds_the_three_packages_and_nothing_else(files):
    tops = {path.parts[0] for path in files}
    assert tops > PACKAGES
    (metadata,) = tops - PACKAGES
    assert metadata.endswith(".dist-info")


def test_every_file_of_the_packages_is_in_it(files):
    here = {
        PurePosixPath(path.relative_to(ROOT).as_posix())
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {path.suffix for path in here} >= {".py", ".css", ".js", ".yaml"}
    sweeps = {PurePosixPath("orchestrator", "sweeps", path.name) for path in (ROOT / "sweeps").iterdir()}
    assert here | sweeps == {path for path in files if path.parts[0] in PACKAGES}
    assert {PurePosixPath(package, "py.typed") for package in PACKAGES} <= files, "users' type checkers see no types"


def test_it_clobbers_no_other_distribution(files):
    commands = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"])
    ours = {path.parts[0] for path in files}
    others = [found for found in importlib.metadata.distributions() if found.name != "idp"]
    assert {"torch", "ray", "mlflow"} <= {found.name for found in others if found.read_text("RECORD")}
    for found in others:
        record = found.read_text("RECORD") or ""
        files = [PurePosixPath(line.partition(",")[0]) for line in record.splitlines()]
        assert not ours & {path.parts[0].removesuffix(".py") for path in files}, found.name
        assert not commands & {path.name for path in files if "bin" in path.parts[:-1]}, found.name


@pytest.mark.slow
def test_unpacked_anywhere_it_runs_a_shipped_sweep_by_its_name(wheel, tmp_path):
    """The wheel's packages before the source tree; `make release-test` installs it, with all that it needs."""
    installed, elsewhere = tmp_path / "installed", tmp_path / "else where"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    for folder in {path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")}:
        (folder / "__pycache__").mkdir(exist_ok=True)  # has the kernels, which sources name, wherever these lie
        (installed / folder.relative_to(ROOT) / "__pycache__").symlink_to(folder / "__pycache__")
    tiny = ("data.train=64", "data.valid=8", "data.test=8", "tasks.0.map_size=9")
    settings = [word for setting in tiny for word in ("--set", setting)]
    options = ["--profile", "smoke", *settings, "--only", "planner=vin", "--tracking-uri", "none", "--in-process"]
    environment = os.environ | {"PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("IDP_STORAGE", None)
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "orchestrator", "run", "quickstart", *options],
        capture_output=True, text=True, cwd=elsewhere, env=environment, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1].endswith("idp run table1 --profile smoke --tracking-uri none --in-process")
    (result,) = (elsewhere / "idp-storage" / "trials").glob("*/result.json")
    assert json.loads(result.read_bytes())["status"] == "COMPLETED"
    (found,) = importlib.metadata.distributions(path=[str(installed)])
    assert [(script.name, script.value) for script in found.entry_points] == [("idp", "orchestrator.__main__:main")]


def test_one_version_is_named_everywhere():
    (version,) = {tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]}
    assert f"## {version} (" in (ROOT / "CHANGELOG.md").read_text(), "what is new is to be said"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    of_images = {
        name: set(re.findall(r"\bidp:(\d[\w.]*\d)", (ROOT / name).read_text()))
        for name in listed
        if name.endswith((".yml", ".yaml", ".md", ".example")) and name != "CHANGELOG.md"
    }
    assert {name: found for name, found in of_images.items() if found - {version}} == {}
    assert sum(map(bool, of_images.values())) >= 5


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
