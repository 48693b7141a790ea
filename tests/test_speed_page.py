"""The numbers of docs/speed.md are those of docs/results/planner-core.json."""

from __future__ import annotations

import pytest
from published import ROOT, archive, script

PAGE = (ROOT / "docs" / "speed.md").read_text()
TEXT = PAGE.replace("\n", " ")


@pytest.fixture(scope="module")
def tables():
    return script("speed_tables")


def test_the_tables_are_what_the_run_said(tables):
    assert archive.with_tables(PAGE, tables.TABLES, "speed_tables") == PAGE, (
        "python docs/speed_tables.py writes them again"
    )


def test_so_are_the_sentences(tables):
    def times(ours, *others):
        """Return how many times as long as ours the others take, from the least to the most."""
        found = [ms[other] / ms[ours] for _, ms in steps for other in others if {ours, other} <= set(ms)]
        return f"{min(found):.1f} to {max(found):.{0 if max(found) > 20 else 1}f} times"

    steps = [*tables.cases("fixed"), *tables.cases("1e-4")]
    assert f"JAX takes {times('ours', 'JAX').removesuffix(' times')} times as long as ours by implicit" in TEXT
    assert f"{times('ours, unrolled', 'JAX, unrolled')} unrolled" in TEXT
    assert f"torchdeq {times('ours', 'torchdeq')} as long" in TEXT
    layer = times("ours", "authors' ID layer")
    assert f"the ID layer {layer}, the plain loop {times('ours, unrolled', 'plain loop')} as ours unrolled" in TEXT
    both = (("ours", "JAX"), ("ours, unrolled", "JAX, unrolled"))
    compared = [(case, pair) for case, ms in steps for pair in both if set(pair) <= set(ms)]
    assert f"in each of {len(compared)} comparisons" in TEXT
    few = sum(row["maps"] < 32 for row in tables.RUN["rows"])
    assert f"{few} of the {len(tables.RUN['rows'])} are of fewer than 32 maps" in TEXT
    assert min(row["maps"] for row in tables.RUN["rows"]) == 2
    short = {target["what"]: target["value"] for target in tables.RUN["targets"] if target["verdict"] == "short"}
    symvin = [value for what, value in short.items() if what.startswith("unrolled symvin")]
    assert f"| {min(symvin):.1f} to {max(symvin):.1f} |" in PAGE and len(symvin) == 3 and len(short) == 7
    for what, digits in {
        "ID-VIN 49x49, K 80, fixed: torchdeq / ours": 1,
        "unrolled conv_gppn 27x27, K 80: plain loop / ours": 2,
    }.items():
        assert f"| {short[what]:.{digits}f} |" in PAGE
    evaluation = tables.RUN["evaluation_seconds_per_map"]
    published = short["evaluation, 15x15: the authors' published time a map / ours"]
    beside = evaluation["map by map"] / evaluation["ours"]
    assert f"| {published:.0f} ({beside:.0f} times as fast as one map by map in this run) |" in PAGE
    assert f"| {short['vin implicit: backward at K 120 / K 30']:.2f} times |" in PAGE
