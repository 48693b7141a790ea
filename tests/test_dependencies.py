"""What the code imports is declared, in pyproject.toml and with its tested version in constraints.txt."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("datagen", "planners", "orchestrator")
CALLED = {"yaml": "pyyaml", "PIL": "pillow", "tensorboardX": "tensorboardx"}
FOR_TESTS = {"jaxtyping", "beartype", "triton"}
"""Imported by datagen/shapes.py where tests ask for it, and by annotations for the type checker; by the kernels for
GPUs, where torch brings it along, and in tests."""


def imported():
    """The top-level modules of other projects, with a file that imports each."""
    modules = {}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            modules |= {name.partition(".")[0]: path for name in names}
    return {name: path for name, path in modules.items() if name not in {*sys.stdlib_module_names, *PACKAGES}}


def test_what_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    lists = [*project["dependencies"], *optional["export"], *optional["s3"], *optional["wandb"]], optional["dev"]
    names, for_tests = ({re.match(r"[A-Za-z0-9._-]+", line)[0].lower() for line in lines} for lines in lists)
    assert for_tests >= FOR_TESTS
    names |= FOR_TESTS
    tested = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    modules = imported()
    assert len(modules) > 10
    for module, path in modules.items():
        project = CALLED.get(module, module)
        assert project in names, f"{path.relative_to(ROOT)} imports {module}, which pyproject.toml does not name"
        assert project in tested
