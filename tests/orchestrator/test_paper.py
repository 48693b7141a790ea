"""The paper's numbers and the statistics beside them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from samples import sample_runs

from orchestrator.tables.comparison import paired_difference
from orchestrator.tables.paper import beside_paper, paper, printed, scale_differences
from orchestrator.tables.statistics import Sample, mean_difference, sample, welch
from planners.specs import PlannerSpec


def test_table_1_has_six_planners_on_four_tasks():
    table = paper()["table1"]
    assert len(table["rows"]) == 6 and all(len(row["success"]) == len(table["columns"]) == 4 for row in table["rows"])
    assert printed(PlannerSpec(core="symvin"), "manipulation", 18) == Sample(99.63, 0.08, 15)
    assert printed(PlannerSpec(core="vin", adjoint="unrolled"), "visual_navigation", 15) == Sample(66.11, 8.91, 15)
    assert printed(PlannerSpec(core="conv_gppn"), "workspace_manipulation", 18) == Sample(92.60, 1.83, 15)


def test_what_the_paper_did_not_run_has_no_number():
    assert printed(PlannerSpec(core="vin"), "navigation", 15) is None
    assert printed(PlannerSpec(core="contractive"), "manipulation", 18) is None
    assert printed(PlannerSpec(core="vin", q_channels=40), "manipulation", 18) is None
    assert printed(PlannerSpec(core="vin", k_bwd=5), "manipulation", 18) is None


def test_welch_is_scipys():
    ours, theirs = [90.0, 91.5, 88.0, 95.0], [80.0, 99.0, 70.0, 85.0, 90.0]
    expected = scipy.stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    found = welch(sample(ours), sample(theirs))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert not found.significant and str(found).startswith("+6.3 [")
    assert welch(Sample(90, 0, 1), Sample(80, 3, 15)).low is None
    assert welch(Sample(90, 1, 15), Sample(80, 1, 15)).significant


def test_an_interval_needs_two_pairs():
    assert mean_difference([]) is None
    assert mean_difference([1.5]).low is None and str(mean_difference([1.5])) == "+1.5"
    # t of one degree of freedom is 12.706: 2 ± 12.706 sqrt(2) / sqrt(2).
    assert str(mean_difference([1.0, 3.0])) == "+2.0 [-10.7, +14.7]"


def test_table_1_stands_beside_ours_cell_by_cell():
    _, runs = sample_runs("table1")
    entries = beside_paper(runs)
    assert len(entries) == 24 and {entry.expected for entry in entries} == {15}
    entry = next(e for e in entries if (e.planner, e.task, e.map_size) == ("id-vin", "manipulation", 36))
    rates = [
        100 * run.result.test_success_rate
        for run in runs
        if (run.axis("planner"), run.axis("task"), run.axis("map_size")) == ("id-vin", "manipulation", 36)
    ]
    assert entry.paper == Sample(56.27, 20.92, 15)
    assert entry.ours.mean == pytest.approx(np.mean(rates)) and entry.ours.deviation == pytest.approx(
        np.std(rates, ddof=1)
    )
    assert entry.difference.value == pytest.approx(np.mean(rates) - 56.27)
    assert any(entry.diverged for entry in entries) and any(entry.out_of_memory for entry in entries)
    assert beside_paper(sample_runs("figure11", "smoke")[1]) == []


def test_a_cell_without_results_says_so():
    _, runs = sample_runs("table1")
    entry = beside_paper([replace(run, result=None) for run in runs])[0]
    assert entry.ours is None and entry.difference is None and entry.expected == 15


@pytest.mark.slow
def test_the_papers_scale_differs_in_nothing_and_a_profile_is_told():
    assert scale_differences(sample_runs("table1")[1]) == []
    assert scale_differences(sample_runs("figure10", overrides=("test_on=[]",))[1]) == []
    laptop = scale_differences(sample_runs("table1", "laptop")[1])
    assert laptop == [
        "1,000 train maps, not 10,000",
        "100 valid maps, not 2,000",
        "200 test maps, not 2,000",
        "training.epochs 8, not 60",
        "training.mapper_pretrain_epochs 3, not 15",
        "3 seeds, not 5",
    ]
    assert "other layer sizes than the paper's" in scale_differences(sample_runs("figure2", "smoke")[1])


def test_the_paired_difference_pairs_seeds():
    _, runs = sample_runs("figure4", overrides=("tasks.2.map_size=33",))
    found = paired_difference(runs, "id-symvin", "id-vin")
    rates = {
        (run.axis("planner"), run.axis("map_size"), run.axis("k"), run.axis("seed")): 100 * run.result.test_success_rate
        for run in runs
    }
    differences = [rate - rates["id-vin", *key[1:]] for key, rate in rates.items() if key[0] == "id-symvin"]
    expected = scipy.stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert found.n == len(differences) == 45 and found.value == pytest.approx(np.mean(differences))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert paired_difference(runs, "id-vin", "nobody") is None


def test_planners_that_share_no_k_are_paired_all_the_same():
    _, runs = sample_runs("figure7")
    only = [run for run in runs if run.axis("map_size") == 49]
    found = paired_difference(only, "id-vin", "vin")
    assert found.n == 5 and math.isfinite(found.low)
