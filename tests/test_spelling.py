"""Names are spelled one way (decision 81)."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
AMERICAN = re.compile(
    r"(normaliz|initializ|regulariz|optimiz|linearize|generaliz|discretiz|visualiz|analyz|serializ|behavior|"
    r"neighbor|color|center|favor|honor|labeled|labeling|modeled|artifact)",
    re.IGNORECASE,
)
OF_OTHERS = {"optimizer", "_optimizer", "color", "colors", "artifacts", "sky_color", "light_color"}
"""Words of torch, matplotlib, OpenGL and MLflow."""


def names(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def test_names_are_british_or_somebody_elses():
    every = {
        (name, path.relative_to(ROOT).as_posix())
        for package in ("datagen", "planners", "orchestrator")
        for path in sorted((ROOT / package).rglob("*.py"))
        for name in names(path)
    }
    assert len(every) > 3000
    american = sorted(one for one in every if AMERICAN.search(one[0]) and one[0] not in OF_OTHERS)
    assert not american, american
