"""What tests measured beside success, as tables: by set of maps, by length of the path, by detour."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.storage.evaluations import Bins, EvaluationResult
from orchestrator.tables.generalisation import Further, Tested
from orchestrator.tables.table import MISSING, Table, headings, varying

_FIRST = 10


def bin_names(count: int) -> list[str]:
    """Return the names of the first bins of `planners.training.rollout.ENDS`: 0, up to 10, 20, 40 and so on."""
    return ["0", *(f"≤ {_FIRST * 2**power:,}" for power in range(count - 1))][:count]


def measured_tables(further: Sequence[Further], axes: Sequence[str]) -> list[Table]:
    """Return the tables of further tests that measured more than success; none where none did.

    Args:
        further: The tests.
        axes: The axes that tell the sweep's cells apart.
    """
    tests = [(row, test) for row in further for test in row.tests]
    if not any(test.measured for _, test in tests):
        return []
    columns = [name for name in varying([test.about for _, test in tests]) if name != "size"]
    places = [
        [
            *(str(row.axes.get(axis, MISSING)) for axis in axes),
            str(test.map_size),
            *(test.about.get(name, MISSING) for name in columns),
        ]
        for row, test in tests
    ]
    header = [*(f"trained: {name}" if name == "size" else name for name in headings(axes)), "test size", *columns]
    words = ["test K", "success %", "exact %", "starts lost", "wrong actions", "same fixed point", "AUROC"]
    priced = any(part is not None for _, test in tests for part in (test.cost_ratio, test.cost_rank))
    words += [*(("cost ratio", "cost rank") if priced else ()), "n"]
    lines = [[*place, *_numbers(test, priced)] for place, (_, test) in zip(places, tests, strict=True)]
    tables = [Table.of("tests", "Tests on further maps, all seeds together", [*header, *words], lines)]
    for name, title in (
        ("lengths", "Success % by length of the shortest path"),
        ("detours", "Success % by the way round that an adjacent wall would save"),
    ):
        binned = [(place, getattr(test, name)) for place, (_, test) in zip(places, tests, strict=True)]
        most = max((len(bins.starts) for _, bins in binned if bins is not None), default=0)
        if most:
            first = 1 if name == "lengths" else 0  # no path has length 0
            shown = [[*place, *_shares(bins, most)[first:]] for place, bins in binned if bins is not None]
            tables.append(Table.of(name, title, [*header, *bin_names(most)[first:]], shown))
    return tables


def _numbers(test: Tested, priced: bool) -> list[str]:
    bins = test.lengths
    lost, wrong = ("", "") if bins is None else (_missed(bins, bins.arrivals), _missed(bins, bins.right))
    return [
        str(test.k),
        str(test),
        MISSING if test.exact is None else f"{100 * test.exact:.1f}",
        lost or MISSING,
        wrong or MISSING,
        _shown(test.path_independence),
        MISSING if test.residual_auroc is None else f"{test.residual_auroc:.3f}",
        *([_shown(test.cost_ratio), _shown(test.cost_rank)] if priced else []),
        str(test.n),
    ]


def _shown(number: float | None) -> str:
    return MISSING if number is None else f"{number:.4f}"


def _missed(bins: Bins, of: Sequence[int]) -> str:
    return f"{sum(bins.starts) - sum(of):,} of {sum(bins.starts):,}"


def _shares(bins: Bins, most: int) -> list[str]:
    shares = [
        f"{100 * arrivals / starts:.1f}" if starts else MISSING
        for starts, arrivals in zip(bins.starts, bins.arrivals, strict=True)
    ]
    return shares + [MISSING] * (most - len(shares))


def words_of_measures(found: EvaluationResult) -> list[str]:
    """Return what a test measured beside success, a line each."""
    lines = []
    for bins, what in ((found.lengths, "path"), (found.detours, "way round")):
        if bins is not None:
            shares = zip(bin_names(len(bins.starts)), _shares(bins, len(bins.starts)), strict=True)
            shown = ", ".join(f"{name}: {share} %" for name, share in shares if share != MISSING)
            lines.append(f"success by {what}: {shown}")
    if "lengths" in found.measured and found.lengths is not None:
        lost, wrong = (_missed(found.lengths, of) for of in (found.lengths.arrivals, found.lengths.right))
        lines.append(f"starts lost: {lost}; wrong actions: {wrong}")
    for name, value in (
        ("path_independence", found.path_independence),
        ("residual_auroc", found.residual_auroc),
        ("cost_ratio", found.cost_ratio),
        ("cost_rank", found.cost_rank),
    ):
        if name in found.measured:
            lines.append(f"{name.replace('_', ' ')}: {'none' if value is None else f'{value:.4f}'}")
    return lines
