"""docs/reading-results.md has every column that the code can print, and every field that it keeps."""

from __future__ import annotations

import re

import pytest
from published import ROOT, archive, script

from orchestrator.storage.provenance import Provenance
from orchestrator.storage.results import TrialResult
from orchestrator.tables import columns, generalisation
from orchestrator.tables.aggregates import Aggregate
from orchestrator.tables.measures import measured_tables
from orchestrator.tables.rows import Row
from orchestrator.tables.statistics import Estimate
from orchestrator.tables.studies import studies_table
from planners.training.records import EpochRecord

PAGE = (ROOT / "docs" / "reading-results.md").read_text()
TOLD = set(re.findall(r"`([^`\n]+)`", PAGE))


@pytest.fixture(scope="module")
def printed():
    """The headings of every table that `idp table` has."""
    row = Row({"planner": "vin"}, 1, searched=1.0, success_by_distance=(1.0,) * 6, counted_by_distance=1)
    tested = generalisation.Tested(9, 8, 4, "", 1, 1.0, None, path_independence=1.0, cost_ratio=1.0)
    first = Aggregate("vin", Estimate(1.0, None, None, 1), 1, None)
    tables = [
        columns.cells_table("", [row], wide=True),
        columns.paper_table([]),
        columns.aggregates_table([first]),
        columns.comparisons_table([]),
        columns.further_table([], []),
        *measured_tables([generalisation.Further({}, [tested], [])], []),
        studies_table([]),
    ]
    return {heading for table in tables for heading in table.header}


def test_every_column_that_a_table_can_have_is_told(printed):
    assert {"success %", "middle half % [95 %]", "> 160 steps %", "same fixed point"} <= printed
    named = {quantity.heading for quantity in columns.quantities(wide=True)}
    # Those of LaTeX's macros stand in no table; a search's metric has the sweep's own name.
    beside = {columns.MEAN.heading, columns.DEVIATION.heading, columns.OPTIMALITY.heading, " %"}
    assert (printed | named) - beside <= TOLD


def test_every_field_that_is_kept_is_told():
    tables = script("reading_tables")
    assert archive.with_tables(PAGE, tables.TABLES, "reading_tables") == PAGE, "python docs/reading_tables.py"
    fields = {*TrialResult.model_fields} - tables.OTHERWISE | {"trial_id", "status"}
    assert fields | {f"provenance_{name}" for name in Provenance.model_fields} <= TOLD
    assert EpochRecord.__dataclass_fields__.keys() <= TOLD


def test_readers_of_the_first_table_are_led_there():
    readme = (ROOT / "README.md").read_text()
    assert "docs/reading-results.md" in readme.partition("peak MiB")[2].partition("![")[0]
