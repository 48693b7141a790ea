"""The statistics that a fair comparison needs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


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
    reach = _reach(pairs.n - 1) * pairs.deviation / math.sqrt(pairs.n)
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


def _reach(freedom: float) -> float:
    """Return how many standard errors the confidence interval reaches, by Student's distribution."""
    from scipy.special import stdtrit  # takes a third of a second to import, which most commands need not

    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2))
