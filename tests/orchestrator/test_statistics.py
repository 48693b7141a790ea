"""The statistics of the tables against what others trust: rliable's definitions, scipy, a bootstrap written out.

Of rliable its definitions alone: its resampling needs a version of arch that the present pandas breaks.
"""

from __future__ import annotations

import numpy as np
import pytest
from rliable import metrics
from scipy.stats import binomtest

from orchestrator.tables.statistics import (
    interquartile_mean,
    probability_of_improvement,
    reach_over_maps,
    reach_over_seeds,
    wilson,
)


def scores(seed, seeds=3, problems=8, shift=0.0):
    generator = np.random.default_rng(seed)
    return np.clip(generator.normal(80 + shift, 12, (problems, seeds)), 0, 100)


@pytest.mark.parametrize("right, n", [(0, 1), (1, 1), (3, 7), (0, 200), (199, 200), (200, 200)])
def test_wilsons_interval_is_that_of_scipy(right, n):
    theirs = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right / n, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def resampled(number, *planners, times=2000):
    """Return the 95 % interval of a number of planners' [seeds, problems], seeds drawn anew within each problem."""
    generator, found = np.random.default_rng(7), []
    for _ in range(times):
        drawn = [
            np.stack([generator.choice(seeds, len(seeds)) for seeds in scores_of.T], axis=1) for scores_of in planners
        ]
        found.append(number(*drawn))
    return np.quantile(found, [0.025, 0.975])


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interquartile_mean_is_that_of_rliable(seeds):
    every = scores(0, seeds)
    ours = interquartile_mean(every)
    assert ours.value == pytest.approx(metrics.aggregate_iqm(every.T)) and ours.n == 8 * seeds
    low, high = resampled(metrics.aggregate_iqm, every.T)
    assert [ours.low, ours.high] == pytest.approx([low, high], abs=0.1 * (high - low))  # two draws of 2,000 resamples


def test_the_probability_of_improvement_is_that_of_rliable():
    first, second = scores(1).round(-1), scores(2, shift=-5).round(-1)  # rounded, so that there are ties
    ours = probability_of_improvement(first, second)
    assert ours.value == pytest.approx(metrics.probability_of_improvement(first.T, second.T))
    low, high = resampled(metrics.probability_of_improvement, first.T, second.T, times=300)
    assert [ours.low, ours.high] == pytest.approx([low, high], abs=0.2 * (high - low))
    assert probability_of_improvement(second, first).value == pytest.approx(1 - ours.value)


def test_a_planner_that_always_wins_has_no_doubt():
    best = probability_of_improvement([[90, 91], [95, 96]], [[10, 20, 30], [94, 93]])
    assert (best.value, best.low, best.high, best.n) == (1, 1, 1, 9)
    alone = interquartile_mean([[90, 91], [95]])
    assert (alone.value, alone.low, alone.high) == (pytest.approx(92), None, None), "one seed tells of no spread"


def test_the_interval_over_maps_is_that_of_a_bootstrap():
    shares = np.clip(np.random.default_rng(3).beta(4, 0.4, 200), 0, 1)
    drawn = np.random.default_rng(4).choice(shares, (4000, 200)).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert 2 * reach_over_maps(float(shares.std(ddof=1)), 200) == pytest.approx(high - low, rel=0.05)


def test_the_interval_over_seeds_is_students():
    assert reach_over_seeds(2.0, 4) == pytest.approx(3.182446 * 2 / 2, rel=1e-6)
