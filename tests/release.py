"""The release as its users get it: wheel and sdist, each in an empty environment with all that it needs.

`make release-test` runs it: an environment takes minutes, and 2 to 7 GB while it is there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from hatchling.build import build_sdist, build_wheel

ROOT = Path(__file__).parents[1]
BUILDERS = {"wheel": build_wheel, "sdist": build_sdist}


def call(*words: str | Path, cwd: Path) -> str:
    """Run a command as somebody does who has nothing of ours set, and return what it printed."""
    ours = ("IDP_", "PYTHON", "RAY_", "MLFLOW_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    clean["RAY_worker_niceness"] = "0"  # else they wait for whatever else runs here
    ran = subprocess.run([str(word) for word in words], cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: exit {ran.returncode}\n{ran.stdout}{ran.stderr}")
    return ran.stdout


def tried(python: str, artifact: Path, scratch: Path) -> str:
    """Install one into an empty environment, run the quickstart as small as it gets, and say how it was."""
    began = time.monotonic()
    prefix, anywhere = scratch / "environment", scratch / "any where"
    anywhere.mkdir()
    call(python, "-m", "venv", prefix, cwd=anywhere)
    found = call(prefix / "bin" / "pip", "list", "--format", "json", cwd=anywhere)
    assert {package["name"] for package in json.loads(found)} <= {"pip", "setuptools"}, "it is not empty"
    pip = (prefix / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile")
    call(*pip, "-c", ROOT / "constraints.txt", artifact, cwd=anywhere)
    call(prefix / "bin" / "pip", "check", cwd=anywhere)
    installed = time.monotonic()
    idp = prefix / "bin" / "idp"
    version = call(idp, "--version", cwd=anywhere).strip()
    assert version.removeprefix("idp ") in artifact.name, version
    said = call(idp, "run", "quickstart", "--profile", "smoke", cwd=anywhere)
    assert said.splitlines()[-1].endswith("idp run table1 --profile smoke"), said
    rows = json.loads(call(idp, "table", "quickstart", "--profile", "smoke", "--format", "json", cwd=anywhere))
    assert [row["used"] for row in rows["rows"]] == [1, 1], rows
    (anywhere / "quickstart").write_text("name: mine\nplanners: {vin: {core: vin}}\n")
    said = call(idp, "plan", "quickstart", cwd=anywhere)
    assert said.startswith("mine\n"), f"a file of that name goes first\n{said}"
    ran = time.monotonic() - installed
    number = call(prefix / "bin" / "python", "--version", cwd=anywhere).strip()
    return f"{artifact.name} on {number}: installed in {installed - began:.0f} s, quickstart in {ran:.0f} s"


def main() -> None:
    """Build and try what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", action="append", default=[], help="an interpreter; several may be given")
    parser.add_argument("--only", choices=BUILDERS, help="one kind of artifact; both where it is not given")
    options = parser.parse_args()
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory(prefix="idp-release-") as folder:
        dist = Path(folder, "dist")
        dist.mkdir()
        artifacts = [dist / build(str(dist)) for kind, build in BUILDERS.items() if options.only in (None, kind)]
        for python in options.python or ["python3"]:
            for artifact in artifacts:
                scratch = Path(folder, "scratch")
                scratch.mkdir()
                print(tried(python, artifact, scratch), flush=True)
                shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
