"""The tables "Measured" of docs/planners are made from docs/results by `python docs/planner_tables.py`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial

from archive import (
    NAMES,
    ROOT,
    Kept,
    chosen,
    mean,
    rates,
    row_of,
    seconds,
    spread,
    tested,
    trials,
    with_seeds,
    with_tables,
)
from reproduction import at_the_papers_scale

PAGES = ROOT / "docs" / "planners"
K = (30, 50, 80)
_AGAIN = "the same"


def _run(sweep: str, profile: str = " --profile laptop") -> str:
    return f"`idp run sweeps/{sweep}.yaml{profile}`"


def _accuracy(planner: str) -> list[list[Kept]]:
    """Return a planner's trials of `accuracy`, those of each K together."""
    found = chosen(trials("accuracy"), planner)
    return [chosen(found, k=k) for k in dict.fromkeys(trial.k for trial in found)]


def _minutes(cells: Sequence[Sequence[Kept]]) -> str:
    return ", ".join(f"{mean(found, 'train_seconds') / 60:.1f} min" for found in cells)


def _step(cells: Sequence[Sequence[Kept]]) -> str:
    parts = ("forward_seconds", "backward_seconds")
    return ", ".join(" + ".join(seconds(mean(found, part)) for part in parts) for found in cells)


def _beyond(planner: str) -> str:
    """Return success on larger mazes than those of the training, with the K of the training."""
    found = chosen(trials("figure10"), planner)
    return " / ".join(f"{statistics.mean(tested(found, size, None)):.0f}" for size in (27, 49, 75))


def _on_mazes(planner: str, size: int) -> list[Kept]:
    """Return seed 0 at K = 30, 50 and 80."""
    found = chosen(trials("figure4" if planner.startswith("id-") else "figure2"), planner, size=size)
    return [trial for trial in found if trial.spec["seed"] == 0]


def _peak(trial: Kept) -> str:
    return "over 1 GiB" if trial.result["status"] == "OUT_OF_MEMORY" else f"{trial.result['peak_bytes'] / 2**20:.0f}"


def _table_1(planner: str, *places: tuple[str, int]) -> str:
    found = (chosen(trials("table1_ours"), planner, task=task, size=size, k=30) for task, size in places)
    return ", ".join(spread(rates(each)) for each in found)


_ARMS = (("manipulation", 18), ("manipulation", 36))
_SEEN = (("workspace_manipulation", 18), ("visual_navigation", 15))


def _at_the_papers_scale(planner: str) -> str:
    """Return success on mazes of 15x15 and in configuration spaces of 18x18, K = 30."""
    found = chosen(at_the_papers_scale(), planner, k=30)
    return ", ".join(spread(rates(chosen(found, size=size))) for size in (15, 18))


def of_pair(unrolled: str) -> list[str]:
    """Return the table of one of the paper's planners: unrolled, and with implicit differentiation."""
    pair = (unrolled, f"id-{unrolled}")
    cells = [_accuracy(planner) for planner in pair]
    if unrolled == "vin":
        first = ["10,000 maps, 20 epochs, three seeds, K = 30", *(with_seeds(rates(each[0])) for each in cells)]
        mazes = ["1,000 maps, 155 steps, K = 30 / 50 / 80"] + [" / ".join(_rates(_on_mazes(p, 15))) for p in pair]
        few = [*mazes, f"{_run('figure2')}, `figure4.yaml`"]
    else:
        in_row = [
            ", ".join(f"{spread(rates(found))} ({found[0].k}, {found[0].spec['training']['epochs']})" for found in each)
            for each in cells
        ]
        first = ["10,000 maps (K and epochs in the row), one seed unless ± says more", *in_row]
        two = [spread(rates(chosen(trials("figure7"), planner, size=15, k=80))) for planner in pair]
        few = ["1,000 maps, 155 steps, K = 80, two seeds", *two, _run("figure7")]
    digits = 1 if unrolled == "vin" else 0
    back = [" / ".join(f"{1000 * t.result['backward_seconds']:.{digits}f}" for t in _on_mazes(p, 15)) for p in pair]
    rows = [
        [*first, _run("accuracy")],
        ["training time of that, one thread", *map(_minutes, cells), _AGAIN],
        ["a step, seconds, forward + backward", *map(_step, cells), _AGAIN],
        few,
        ["backward ms at K = 30 / 50 / 80", *back, _run("figure6")],
    ]
    if unrolled != "vin":
        peaks = [" / ".join(map(_peak, _on_mazes(planner, 27))) for planner in pair]
        rows.append(["peak MiB at K = 30 / 50 / 80 on 27x27", *peaks, "`figure2.yaml`, `figure4.yaml`"])
    rows += [
        ["trained on 15x15, tested on 27x27 / 49x49 / 75x75", *map(_beyond, pair), _run("figure10")],
        [
            "manipulation 18x18, 36x36",
            *(_table_1(p, *_ARMS) for p in pair),
            _run("table1_ours", " --profile laptop --only k=30"),
        ],
        ["workspace, visual", *(_table_1(p, *_SEEN) for p in pair), _AGAIN],
    ]
    if unrolled == "vin":
        averaged = f"{_at_the_papers_scale('id-vin')}; `moving_average` {_at_the_papers_scale('id-vin-averaged')}"
        scale = "10,000 maps, 60 epochs, five seeds, K = 30: mazes, manipulation 18x18"
        rows.insert(
            0, [scale, _at_the_papers_scale("vin"), averaged, "[these](../../REPRODUCTION.md#at-the-papers-scale)"]
        )
    titles = (f"{NAMES[pair[0]]} (unrolled)", f"{NAMES[pair[1]]} (implicit)")
    return [row_of("", *titles, "made by"), "|---|---|---|---|", *(row_of(*row) for row in rows)]


def _rates(found: Sequence[Kept]) -> list[str]:
    return [f"{rate:.1f}" for rate in rates(found)]


def contractive() -> list[str]:
    """Return the table of our planner that goes a cell a step."""
    (cells,) = _accuracy("contractive")
    whole = trials("contractive", None)
    larger = [
        statistics.mean(
            100 * next(test for test in trial.tests if test["map_size"] == size)["success_rate"] for trial in whole
        )
        for size in (27, 49, 99)
    ]
    few = [spread(rates(chosen(trials("figure4"), "contractive", size=15, k=k))) for k in K]
    rows = [
        ["10,000 mazes of 15x15, ten epochs, K = 30", spread(rates(cells)), _run("accuracy")],
        ["training time of that, one thread", _minutes([cells]), _AGAIN],
        ["a step, seconds, forward + backward", _step([cells]), _AGAIN],
        [
            "with K = 60 in training, and 4 x rows in the test: 15x15",
            f"{statistics.mean(rates(whole)):.2f}",
            _run("contractive", ""),
        ],
        [
            "the same weights on 27x27, 49x49, 99x99, sizes that it has not seen",
            ", ".join(f"{rate:.2f}" for rate in larger),
            _AGAIN,
        ],
        ["1,000 maps, 155 steps, K = 30 / 50 / 80", ", ".join(few), _run("figure4")],
        [
            "manipulation 18x18, 36x36 (1,000 maps, K = 30)",
            _table_1("contractive", *_ARMS),
            _run("table1_ours", " --profile laptop --only k=30"),
        ],
        ["workspace, visual", _table_1("contractive", *_SEEN), _AGAIN],
    ]
    return ["| | | made by |", "|---|---|---|", *(row_of(*row) for row in rows)]


def spt() -> list[str]:
    """Return the table of transformers, and of ID-VIN beside them."""
    names = {
        "spt": "SPT, five layers, one pass",
        "id-spt": "ID-SPT, K = 5",
        "id-spt-injected": "ID-SPT with the map injected, K = 5",
        "id-vin": "ID-VIN, K = 15 and 30, beside them",
        "spt-as-published": "SPT by D.2's RMSprop and one optimal action",
        "id-spt-as-published": "ID-SPT by these",
    }
    rows = [row_of("planner", "success %", "forward residual", "made by"), "|---|---|---|---|"]
    for planner, name in names.items():
        found = chosen(trials("spt"), planner)
        residuals = ", ".join(f"{each.result['forward_residual']:.2f}" for each in found)
        left = "" if planner.startswith("spt") else residuals
        rows.append(row_of(name, ", ".join(_rates(found)), left, _run("spt") if planner == "spt" else _AGAIN))
    return rows


TABLES: dict[str, Callable[[], list[str]]] = {
    "vin": partial(of_pair, "vin"),
    "symvin": partial(of_pair, "symvin"),
    "conv_gppn": partial(of_pair, "convgppn"),
    "contractive": contractive,
    "spt": spt,
}


def written(core: str) -> str:
    """Return the text of a core's page with its table made anew."""
    return with_tables((PAGES / f"{core}.md").read_text(encoding="utf-8"), {"measured": TABLES[core]}, "planner_tables")


if __name__ == "__main__":
    for name in TABLES:
        (PAGES / f"{name}.md").write_text(written(name), encoding="utf-8")
