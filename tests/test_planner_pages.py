"""Every planner core has a page, and what the pages say is so: Python, sweeps, options, numbers of weights."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest
from published import joined, of, rate, rates, says, script, span

from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.specs import expand
from planners import PlannerSpec, build_planner
from planners.registry import CORES, SOLVERS

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "planners"
FROM_REPRODUCTION = sorted(set(CORES) - {"reachability", "shortest_path"})
"""Cores whose numbers stand in REPRODUCTION.md; those of the others have their home on a page."""


def page(core):
    return (PAGES / f"{core}.md").read_text()


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def section(text, title):
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1]


def test_every_core_has_a_page_and_every_page_a_row_of_the_index():
    pages = {path.stem for path in PAGES.glob("*.md")} - {"README"}
    rows = set(re.findall(r"^\| \[`(\w+)`\]\(\1\.md\)", (PAGES / "README.md").read_text(), re.MULTILINE))
    assert pages == rows == set(CORES)


@pytest.mark.parametrize("core", sorted(CORES))
def test_its_python_runs(core):
    code = "\n".join(blocks(page(core), "python"))
    names = {}
    exec(code, names)
    if "route" in names:
        assert names["route"].arrives
    else:
        assert names["logits"].shape == (2, 4, 9, 9) and names["logits"].isfinite().all()


@pytest.mark.parametrize("core", sorted(CORES))
def test_its_sweep_expands_to_trials_of_the_core(core, tmp_path):
    (text,) = blocks(page(core), "yaml")
    for path in (ROOT / "sweeps").glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "mine.yaml").write_text(text)
    own = set(re.findall(r"^  ([\w-]+):", text, re.MULTILINE))
    planned = expand(load_sweep(tmp_path / "mine.yaml", profile="smoke"))
    trials = [trial for trial in planned if trial.axes["planner"] in own]
    assert {trial.axes["planner"] for trial in trials} == own
    assert {trial.spec.planner.core for trial in trials} == {core}


@pytest.mark.parametrize("core", sorted(CORES))
def test_its_options_and_their_defaults_are_the_code_s(core):
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \|", section(page(core), "Options and cost"), re.MULTILINE)
    spec = {name: str(field.default) for name, field in CORES[core].options_type.model_fields.items()}
    assert {name: _meant(default) for name, default in rows} == {name: _meant(spec[name]) for name in spec}


def _meant(text):
    """Return the value that a default is written for: 0 and 0.0 are one, and so are true and True."""
    try:
        return float(text)
    except ValueError:
        return text.lower()


@pytest.mark.parametrize("core", sorted(CORES))
def test_its_solvers_are_those_of_the_registry(core):
    told = re.search(r"Solvers\s+forward:\s+([\w\s,]+?)(?:, the last|\.)", page(core))[1]
    takes = [name for name, entry in SOLVERS.items() if not entry.linear_only and core in (entry.cores or (core,))]
    assert re.split(r",\s+", told) == takes


@pytest.mark.parametrize("core", sorted(CORES))
def test_the_index_counts_its_weights(core):
    row = re.search(rf"^\| \[`{core}`\].*$", (PAGES / "README.md").read_text(), re.MULTILINE)[0]
    weights = sum(part.numel() for part in build_planner(PlannerSpec(core=core)).parameters())
    assert f"| {weights:,} |" in row
    assert re.search(rf"(?<![\d,]){weights:,} (weights|parameters)", page(core))


@pytest.mark.parametrize("core", FROM_REPRODUCTION)
def test_what_is_measured_is_the_archive_s(core):
    assert script("planner_tables").written(core) == page(core), "python docs/planner_tables.py writes it again"


def test_what_the_pages_say_beside_their_tables_is_the_archive_s():
    says(
        "The paper's residual for ID-SPT",
        "begun, here one tied layer applied five times: {} % unrolled, {} % implicit.".format(
            *(rate("cores", planner) for planner in ("spt", "id-spt"))
        ),
        page="docs/planners/spt.md",
    )
    found = {
        pair: rates(of("figure12", "id-symvin", solver=pair[0], solver_bwd=pair[1]))
        for pair in product(("forward", "anderson"), repeat=2)
    }
    assert [len(each) for each in found.values()] == [2, 2, 2, 2], "one seed, two numbers of products"
    says(
        "- With few maps.",
        f"{joined(found['anderson', 'anderson'], 1, by=' and ')} % with Anderson's method backward, the default, and "
        f"{joined(found['anderson', 'forward'], 1, by=' and ')} % with forward iteration backward, against "
        f"{span(found['forward', 'anderson'] + found['forward', 'forward'], 1)} % with forward iteration forward.",
        page="docs/planners/symvin.md",
    )
    made = script("reproduction")
    long = made.chosen(made.at_the_papers_scale(), "vin", size=15, k=30)
    cells, arrivals = (
        [trial.result[f"test_{part}_by_distance"][1] for trial in long] for part in ("cells", "arrivals")
    )
    near = [arrived / cell for arrived, cell in zip(arrivals, cells, strict=True)]
    success = sorted(rates(long))
    assert sum(share > 0.9 for share in near) == sum(rate > 90 for rate in success) == 2 and len(success) == 5
    says("- As the baseline", f"the others stay at {success[0]:.0f} to {success[2]:.0f}.", page="docs/planners/vin.md")
