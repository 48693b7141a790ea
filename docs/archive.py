"""What docs/results keeps, for the scripts that make the pages' tables of it."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.specs import PlannedTrial, expand

ROOT = Path(__file__).parents[1]
ARCHIVES = ("results", "vin_parts", "reachability", "table1", "paper_scale", "averaged")
NAMES = {
    "vin": "VIN", "symvin": "SymVIN", "convgppn": "ConvGPPN", "spt": "SPT",
    "id-vin": "ID-VIN", "id-symvin": "ID-SymVIN", "id-convgppn": "ID-ConvGPPN",
    "contractive": "contractive (ours)", "contractive-80-by-0.04": "contractive (ours), steps of 0.04",
    "reachability": "reachability (ours)",
    "id-vin-averaged": "ID-VIN, averaged", "id-symvin-averaged": "ID-SymVIN, averaged",
    "id-convgppn-averaged": "ID-ConvGPPN, averaged", "id-vin-six-terms": "ID-VIN, six terms",
    "id-vin-forward": "ID-VIN, forward iteration backward",
}  # fmt: skip
WIDE = 10  # points of deviation from which on seeds are named one by one


@dataclass(frozen=True)
class Kept:
    """What the archive keeps of a trial.

    Attributes:
        archive: Name of the file in docs/results.
        code: Code hash of the trial.
        spec: Its specification.
        result: Its numbers.
        curves: One record an epoch.
        tests: What it was tested on beside its own test set.
        planner: Name of its planner in the sweep that was asked for.
    """

    archive: str
    code: str
    spec: dict[str, Any]
    result: dict[str, Any]
    curves: list[dict[str, Any]]
    tests: list[dict[str, Any]]
    planner: str = ""

    @property
    def size(self) -> int:
        """Rows of its maps."""
        return int(self.spec["data"]["map_size"])

    @property
    def k(self) -> int:
        """Steps of its forward pass."""
        return int(self.spec["planner"]["k_fwd"])


@cache
def archived() -> dict[str, Kept]:
    """Return every trial of docs/results by its id."""
    kept = {}
    for name in ARCHIVES:
        for row in pq.read_table(ROOT / "docs" / "results" / f"{name}.parquet").to_pylist():
            texts = (json.loads(row[column]) for column in ("spec", "result", "curves", "evaluations"))
            kept[row["trial_id"]] = Kept(name, row["code"], *texts)
    return kept


@cache
def trials(sweep: str, profile: str | None = "laptop") -> tuple[Kept, ...]:
    """Return what the archive has of a sweep, shipped or among the examples, in the sweep's order, seed by seed."""
    return tuple(
        Kept(**{**vars(archived()[trial.trial_id]), "planner": str(trial.axes["planner"])})
        for trial in planned(sweep, profile)
        if trial.trial_id in archived()
    )


def planned(sweep: str, profile: str | None = "laptop") -> list[PlannedTrial]:
    """Return every trial of a sweep, shipped or among the examples."""
    path = next(path for folder in ("sweeps", "examples") if (path := ROOT / folder / f"{sweep}.yaml").exists())
    return expand(load_sweep(path, profile))


def chosen(found: Iterable[Kept], planner: str | None = None, **axes: Any) -> list[Kept]:
    """Return the trials of a planner with these values of `k`, `size` and `task`, and of the planner's spec."""

    def value(trial: Kept, axis: str) -> Any:
        if axis in ("k", "size"):
            return getattr(trial, axis)
        return trial.spec["data"]["task"] if axis == "task" else trial.spec["planner"][axis]

    return [
        trial
        for trial in found
        if planner in (None, trial.planner) and all(value(trial, axis) == wanted for axis, wanted in axes.items())
    ]


def tested(found: Iterable[Kept], size: int, k: int | None, maps: int | None = None) -> list[float]:
    """Return success in percent on further maps of a size, by K steps, None for those of the training."""
    return [
        100 * test["success_rate"]
        for trial in found
        for test in trial.tests
        if (test["map_size"], test["k"]) == (size, k or trial.k) and maps in (None, test["maps"])
    ]


def code_of(trial: Kept) -> str:
    """Return which code made a trial: that of the parts which reach its numbers, where they were written down."""
    return json.dumps(trial.result["provenance"].get("parts") or trial.code, sort_keys=True)


def rates(found: Iterable[Kept]) -> list[float]:
    """Return success on the trials' own test sets in percent."""
    return [100 * trial.result["test_success_rate"] for trial in found]


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Return a mean, and where there are several values their deviation."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def far_apart(success: Sequence[float]) -> bool:
    """Return whether seeds differ so much that each is named."""
    return len(success) > 1 and statistics.stdev(success) > WIDE


def with_seeds(success: Sequence[float]) -> str:
    """Return a mean, its deviation, and each seed where they are far apart."""
    return spread(success) + (f" ({', '.join(f'{rate:.1f}' for rate in success)})" if far_apart(success) else "")


def mean(found: Sequence[Kept], field: str) -> float:
    """Return the mean of a field of the results."""
    return statistics.mean(trial.result[field] for trial in found)


def seconds(value: float) -> str:
    """Return a time as tables have it."""
    return f"{value:.4f}" if value < 0.03 else f"{value:.3f}"


def row_of(*cells: object) -> str:
    """Return a row of a table in Markdown."""
    return f"| {' | '.join(map(str, cells))} |"


def power(value: float) -> str:
    """Return a residual as the page writes it, as 2e-4."""
    return re.sub(r"e([+-])0*", lambda found: f"e{found[1].strip('+')}", f"{value:.0e}")


def with_tables(text: str, tables: dict[str, Callable[[], list[str]]], script: str) -> str:
    """Return a page's text with the tables that a script of this folder makes made anew."""
    for name, table in tables.items():
        start = f"<!-- {name}: python docs/{script}.py -->\n"
        pattern = re.compile(re.escape(start) + r".*?(?=<!-- end -->)", re.DOTALL)
        made = "\n".join([start, *table(), "", ""])
        text, times = pattern.subn(made.replace("\\", r"\\"), text)
        assert times == 1, f"the page has {times} places for {name}"
    return text
