"""The features that docs/fixed_points.md claims are tried here, and each is backed by a test of its own."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.fixed_point import FEATURES, measured, tried
from benchmarks.fixed_point_peers import PEERS, SIZES, Ours, TorchDEQ

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "fixed_points.md").read_text()


@pytest.fixture(autouse=True)
def single_precision_again() -> Iterator[None]:
    """The peers compute in float64, which JAX has as a setting of the process: other tests have theirs in float32."""
    yield
    if jax := sys.modules.get("jax"):
        jax.config.update("jax_enable_x64", False)


def table() -> list[list[str]]:
    lines = [line for line in PAGE.partition("## Beside its peers")[2].splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if row[0] in FEATURES]


@pytest.mark.parametrize("words", FEATURES)
def test_ours_has_the_feature(words: str) -> None:
    assert FEATURES[words](Ours())


def test_every_cell_of_ours_names_a_test_that_is_there() -> None:
    rows = table()
    assert [row[0] for row in rows] == list(FEATURES)
    for words, ours, *_, backed in rows:
        named = re.fullmatch(r"`(tests/[\w/]+\.py|planners/[\w/]+\.py)`: `(\w+)`", backed)
        assert ours == "yes" and named, words
        assert f"def {named[2]}(" in (ROOT / named[1]).read_text(), backed


@pytest.mark.slow
def test_the_cells_of_installed_peers_are_what_running_them_says() -> None:
    columns = ["ours", *(peer.name for peer in PEERS)]
    for peer in PEERS:
        if peer.available():
            said = {row[0]: row[1 + columns.index(peer.name)] == "yes" for row in table()}
            assert tried(peer()) == said, peer.name


@pytest.mark.slow
def test_rows_have_small_errors() -> None:
    pytest.importorskip("torchdeq")
    rows = measured([Ours(), TorchDEQ()], *SIZES[True][0])
    assert len(rows) == 9 and all(row.solve_ms > 0.0 for row in rows)
    for row in rows:
        if row.method.startswith("ours") and "residual" not in row.method and "look" not in row.method:
            assert row.value_error < 1e-5 and row.gradient_error < 1e-4, row
