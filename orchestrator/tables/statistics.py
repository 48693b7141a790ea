"""The statistics that a fair comparison needs."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 2000
"""Of a bootstrap, whose generator is seeded: the same results have the same interval."""


@dataclass(frozen=True)
class Sample:
    """Mean and sample standard deviation of `n` trials, in percent."""

    mean: float
    deviation: float
    n: int

    def __str__(self) -> str:
        return with_deviation(self.mean, self.deviation if self.n > 1 else None)


@dataclass(frozen=True)
class Difference:
    """A difference of means with its confidence interval, in percentage points.

    Attributes:
        value: Ours minus theirs, or the first planner minus the second.
        low: Lower end of the 95 % interval; None where there are too few trials for one.
        high: Upper end.
        n: Trials (or pairs of trials) behind it.
    """

    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def significant(self) -> bool:
        """True where the interval excludes zero."""
        return self.low is not None and self.high is not None and not self.low <= 0.0 <= self.high

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:+.1f}"
        return f"{self.value:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def with_deviation(mean: float, deviation: float | None) -> str:
    """Return percents as the paper prints them, "62.1 ± 1.3"."""
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"


def deviation_of(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation (n - 1), None for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def mean_of(values: Iterable[float | None]) -> float | None:
    """Return the mean of the numbers that there are; None where there is none."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def sample(values: Sequence[float]) -> Sample | None:
    """Return mean, sample standard deviation (0 for a single value) and n; None for no values."""
    return Sample(statistics.fmean(values), deviation_of(values) or 0.0, len(values)) if values else None


def mean_difference(differences: Sequence[float]) -> Difference | None:
    """Return the mean of paired differences with Student's 95 % interval; None for none."""
    pairs = sample(differences)
    if pairs is None:
        return None
    if pairs.n < 2:
        return Difference(pairs.mean, None, None, pairs.n)
    reach = reach_over_seeds(pairs.deviation, pairs.n)
    return Difference(pairs.mean, pairs.mean - reach, pairs.mean + reach, pairs.n)


def welch(ours: Sample, theirs: Sample) -> Difference:
    """Return the difference of two means with Welch's 95 % confidence interval, which assumes no common variance.

    Welch, The generalization of "Student's" problem, 1947.
    """
    value = ours.mean - theirs.mean
    if ours.n < 2 or theirs.n < 2:
        return Difference(value, None, None, ours.n)
    ours_share, their_share = ours.deviation**2 / ours.n, theirs.deviation**2 / theirs.n
    total = ours_share + their_share
    if total == 0.0:
        return Difference(value, value, value, ours.n)
    freedom = total**2 / (ours_share**2 / (ours.n - 1) + their_share**2 / (theirs.n - 1))
    reach = _reach(freedom) * math.sqrt(total)
    return Difference(value, value - reach, value + reach, ours.n)


def reach_over_seeds(deviation: float, n: int) -> float:
    """Return half the width of Student's 95 % interval of a mean over n >= 2 seeds."""
    return _reach(n - 1) * deviation / math.sqrt(n)


def reach_over_maps(deviation: float, n: int) -> float:
    """Return half the width of the normal 95 % interval of a mean over n maps: what other maps might have shown.

    For the hundreds of maps of a test set it is the percentile bootstrap's, without keeping each map's success.
    """
    return _normal() * deviation / math.sqrt(n)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share of n maps, 0..1.

    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n); Wilson, Probable inference, 1927.
    """
    square = _normal() ** 2 / n
    middle, reach = share + square / 2, math.sqrt(square * (share * (1 - share) + square / 4))
    return max(0.0, (middle - reach) / (1 + square)), min(1.0, (middle + reach) / (1 + square))


Scores = Sequence[Sequence[float]]
"""Success of one planner: for each problem (task, size, K) those of its seeds."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval by bootstrap, seeds drawn anew within each problem.

    Attributes:
        value: The number.
        low: 2.5th percentile of the resamples; None where some problem has one seed alone, which tells of no spread.
        high: 97.5th.
        n: Trials behind it.
    """

    value: float
    low: float | None
    high: float | None
    n: int


def interquartile_mean(scores: Scores) -> Estimate:
    """Return the mean of the middle half of all trials, problems and seeds together.

    Agarwal et al., Deep reinforcement learning at the edge of the statistical precipice, 2021.
    """
    return _bootstrapped(lambda drawn: _middle_half(np.concatenate(drawn, axis=-1)), [scores])


def probability_of_improvement(first: Scores, second: Scores) -> Estimate:
    """Return how often a seed of the first planner beats one of the second, ties half, averaged over problems.

    Mean over problems of #{(i, j): x_i > y_j} / (n m) + half of the ties; Agarwal et al., 2021.

    Args:
        first: Success of one planner.
        second: Of another, on the same problems.
    """

    def often(drawn: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        ours, theirs = drawn[: len(first)], drawn[len(first) :]
        each = [
            (x[..., :, None] > y[..., None, :]).mean((-2, -1)) + (x[..., :, None] == y[..., None, :]).mean((-2, -1)) / 2
            for x, y in zip(ours, theirs, strict=True)
        ]
        return np.mean(each, axis=0)

    return _bootstrapped(often, [first, second])


def _bootstrapped(
    number: Callable[[Sequence[NDArray[np.float64]]], NDArray[np.float64]], of: Sequence[Scores]
) -> Estimate:
    """Return a number of some planners' scores; it is given [..., seeds] of each problem of each planner in turn."""
    problems = [np.asarray(seeds, np.float64) for scores in of for seeds in scores]
    n = sum(map(len, problems))
    if any(len(seeds) < 2 for seeds in problems):
        return Estimate(float(number(problems)), None, None, n)
    generator = np.random.default_rng(0)
    drawn = [seeds[generator.integers(0, len(seeds), (RESAMPLES, len(seeds)))] for seeds in problems]
    low, high = np.quantile(number(drawn), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(number(problems)), float(low), float(high), n)


def _middle_half(values: NDArray[np.float64]) -> NDArray[np.float64]:
    ordered, cut = np.sort(values, axis=-1), values.shape[-1] // 4
    return np.asarray(ordered[..., cut : values.shape[-1] - cut].mean(-1))


@functools.cache
def _normal() -> float:
    return statistics.NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)


def _reach(freedom: float) -> float:
    """Return how many standard errors the confidence interval reaches, by Student's distribution."""
    from scipy.special import stdtrit  # takes a third of a second to import, which most commands need not

    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2))
