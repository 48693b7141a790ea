"""The tables of REPRODUCTION.md are made from docs/results: `python docs/reproduction.py` writes them again."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import chain
from typing import Any

from archive import (
    NAMES,
    ROOT,
    Kept,
    chosen,
    code_of,
    far_apart,
    mean,
    power,
    rates,
    row_of,
    seconds,
    spread,
    tested,
    trials,
    with_seeds,
    with_tables,
)

from orchestrator.tables.freshness import of_commonest
from orchestrator.tables.paper import paper
from orchestrator.tables.statistics import Estimate, interquartile_mean, probability_of_improvement

PAGE = ROOT / "REPRODUCTION.md"
SIX = ("vin", "id-vin", "symvin", "id-symvin", "convgppn", "id-convgppn")
STEPS = (30, 50, 80)
COLUMNS = (("manipulation", 18), ("manipulation", 36), ("workspace_manipulation", 18), ("visual_navigation", 15))
SETTLED = 90  # % of success under which a seed of contractive's has settled after an epoch: none has 83 to 98
VERDICTS = ("holds", "holds in part", "fails", "not seen", "not decided", "not tested")


def verdicts() -> list[str]:
    """Return each of the page's claims with its verdict, section by section, and how many have which."""
    claims = PAGE.read_text(encoding="utf-8").partition("\n## Claims")[2].partition("\n## ")[0]
    rows = [row_of("claim", "verdict"), "|---|---|"]
    for section in claims.split("\n### ")[1:]:
        found = re.findall(r"^#### (.+)\n\*\*(.+?)\*\*", section, re.MULTILINE)
        if not found:
            continue  # pictures
        count = Counter(verdict.lower() for _, verdict in found)
        told = ", ".join(f"{verdict} {count[verdict]}" for verdict in VERDICTS if count[verdict])
        rows.append(row_of(f"**{section.partition(chr(10))[0]}**", told))
        rows += [row_of(f"[{claim}](#{slug(claim)})", verdict.lower()) for claim, verdict in found]
    return rows


def slug(heading: str) -> str:
    """Return the anchor of a heading, as the forge and the site make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def step_times() -> list[str]:
    """Return what a step of the six planners costs: time on 15x15, memory on 27x27, at each K."""

    def milliseconds(*parts: str) -> str:
        found = [chosen(trials("figure6"), planner, size=15, k=k) for k in STEPS]
        times = [sum(1000 * mean(each, f"{part}_seconds") for part in parts) for each in found]
        return " / ".join(f"{time:.{1 if time < 100 else 0}f}" for time in times)

    def mebibytes(k: int) -> str:
        (trial,) = chosen(trials("figure6"), planner, size=27, k=k)
        peak = trial.result["peak_bytes"] / 2**20
        return "over 1 GiB" if trial.result["out_of_memory_phase"] else f"{peak:.0f}"

    rows = [row_of("", "forward, ms", "backward, ms", "together, ms", "peak MiB on 27x27"), "|---|---|---|---|---|"]
    for planner in SIX:
        times = [milliseconds(*parts) for parts in (("forward",), ("backward",), ("forward", "backward"))]
        rows.append(row_of(NAMES[planner], *times, " / ".join(map(mebibytes, STEPS))))
    return rows


def _columns_of_table_1(cell: Callable[[str, str, int], str]) -> list[str]:
    """Return the six planners' rows in the columns of Table 1; a cell is told of a planner, a task and a size."""
    rows = [
        "| | manipulation 18x18 | manipulation 36x36 | workspace 18x18 | visual 15x15 |",
        "|---|---|---|---|---|",
    ]
    return rows + [row_of(NAMES[planner], *(cell(planner, *column) for column in COLUMNS)) for planner in SIX]


def forward_residuals() -> list[str]:
    """Return what forward passes leave after K steps in Table 1, the seeds' mean at each K."""

    def left(planner: str, task: str, size: int) -> str:
        found = chosen(trials("table1_ours"), planner, task=task, size=size)
        return " / ".join(_left(mean(chosen(found, k=k), "forward_residual")) for k in STEPS)

    return _columns_of_table_1(left)


def _left(residual: float) -> str:
    return f"{residual:.2f}" if residual > 0.01 else power(residual)


def deviations() -> list[str]:
    """Return how far seeds are apart in Table 1: at each K, over all K, and in the paper."""

    def apart(planner: str, task: str, size: int) -> str:
        found = chosen(trials("table1_ours"), planner, task=task, size=size)
        each = " / ".join(f"{statistics.stdev(rates(chosen(found, k=k))):.1f}" for k in STEPS)
        printed = _printed_success(found[0])[task, size].rpartition(" ")[2]
        return f"{each}; {statistics.stdev(rates(found)):.1f} ({printed})"

    return _columns_of_table_1(apart)


def accuracy() -> list[str]:
    """Return the table of what each planner reaches with the paper's data."""
    rows = [
        "| | epochs | K | seeds | success % | on foreign mazes % | on 27x27 / 49x49, % | the same with K = 108 / 196 "
        "| minutes of training, one thread | seconds of a step, forward + backward |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    more = {
        "id-vin-contraction": "ID-VIN with a contraction core, all else the paper's",
        "id-vin-better": "the same, all optimal actions as labels, Adam, falling step size",
    }
    cells: dict[tuple[str, int], list[Kept]] = {}
    for trial in trials("accuracy"):
        cells.setdefault((trial.planner, trial.k), []).append(trial)
    for (planner, k), found in cells.items():
        foreign = tested(found, 15, k, maps=2000)
        success = rates(found)
        rows.append(
            row_of(
                more.get(planner) or NAMES[planner],
                found[0].spec["training"]["epochs"],
                k,
                len(found),
                with_seeds(success),
                ", ".join(f"{rate:.1f}" for rate in foreign)
                if far_apart(success)
                else f"{statistics.mean(foreign):.1f}",
                *(
                    " / ".join(
                        f"{statistics.mean(tested(found, size, k)):.1f}"
                        for size, k in zip((27, 49), steps, strict=True)
                    )
                    for steps in ((None, None), (108, 196))
                ),
                f"{mean(found, 'train_seconds') / 60:.1f}",
                " + ".join(seconds(mean(found, f"{part}_seconds")) for part in ("forward", "backward")),
            )
        )
    grown = tested(chosen(trials("accuracy"), "contractive"), 15, 60)
    rows.append(
        row_of("the same weights, tested with K = 60 on 200 mazes", "", 60, len(grown), spread(grown), *[""] * 5)
    )
    return rows


def few_steps() -> list[str]:
    """Return success with ten steps forward and with thirty."""
    sizes = (15, 27)
    rows = [row_of("", *(f"{size}x{size}, K = 10 / 30" for size in sizes)), "|---|---|---|"]
    for planner in (*SIX, "contractive"):
        found = chosen(trials("few_steps"), planner)
        cells = [" / ".join(spread(rates(chosen(found, size=size, k=k))) for k in (10, 30)) for size in sizes]
        rows.append(row_of(NAMES[planner], *cells))
    return rows


def solver_pairs() -> list[str]:
    """Return success and the adjoint's residual in Figure 12, by both solvers, with 5 and 15 products."""
    names = {"forward": "forward iteration", "anderson": "Anderson"}
    pairs = [(solver, back) for solver in names for back in ("anderson", "forward")]
    rows = [row_of("forward / backward", *(f"{names[one]} / {names[two]}" for one, two in pairs)), "|---" * 5 + "|"]
    for planner in ("id-vin", "id-symvin", "id-convgppn"):
        cells = []
        for solver, back in pairs:
            found = [chosen(trials("figure12"), planner, solver=solver, solver_bwd=back, k_bwd=k)[0] for k in (5, 15)]
            residuals = " / ".join(_left(trial.result["backward_residual"]) for trial in found)
            cells.append(f"{' / '.join(f'{rate:.1f}' for rate in rates(found))} ({residuals})")
        rows.append(row_of(NAMES[planner], *cells))
    return rows


def larger_maps() -> list[str]:
    """Return success on larger maps than those of the training, with its K and with K grown."""
    sizes = (27, 49, 75)
    rows = [
        row_of("", "K of training", *(f"{size}x{size}, that K / {4 * size}" for size in sizes)),
        "|---|---|---|---|---|",
    ]
    for planner in (*SIX, "contractive"):
        kept, grown = (chosen(trials(sweep), planner) for sweep in ("figure10", "figure10_grown"))
        both = [(tested(kept, size, None), tested(grown, size, 4 * size)) for size in sizes]
        rows.append(row_of(NAMES[planner], kept[0].k, *(" / ".join(map(spread, pair)) for pair in both)))
    return rows


def vin_parts() -> list[str]:
    """Return the table of VIN with one part after another replaced."""
    names = {
        "id-vin": "ID-VIN",
        "relu": "ReLU in the encoder",
        "per-action": "a reward per action instead of one map",
        "relu-per-action": "both",
        "probabilities": "probabilities instead of free filters",
        "advantages": "a head that reads advantages",
        "all-but-per-action": "probabilities, advantages and ReLU, one map of rewards",
        "all-but-probabilities": "rewards per action, advantages and ReLU, free filters",
        "relu-per-action-probabilities": "rewards per action, ReLU and probabilities",
        "all-but-relu": "rewards per action, probabilities and advantages",
        "all": "all four",
    }
    found = {trial.planner: trial for trial in trials("vin_parts", None)}
    assert found.keys() == names.keys()
    return ["| | success % |", "|---|---|"] + [
        row_of(
            name, spread(rates([found[planner]])) + (", diverged" if found[planner].result["trial_diverged"] else "")
        )
        for planner, name in names.items()
    ]


def _of_seeds(success: Sequence[float]) -> str:
    return f"{spread(success)} ({len(success)})" if success else ""


@cache
def blind() -> dict[tuple[str, int, int], dict[str, Any]]:
    """Return what `python -m benchmarks.blind` found, by task, size of the maps and number of training maps."""
    found = json.loads((ROOT / "docs" / "results" / "blind.json").read_text(encoding="utf-8"))
    return {(row["task"], row["map_size"], row["train"]): row for row in found}


def _searched(found: Iterable[Kept]) -> str:
    """Return success of a graph search on the maps that these trials' mappers drew, mean and range."""
    drawn = [100 * rate for trial in found if (rate := trial.result["test_searched"]) is not None]
    if not drawn:
        return ""
    mean, least, most = (f"{rate:.1f}" for rate in (statistics.mean(drawn), min(drawn), max(drawn)))
    return mean if least == most else f"{mean} ({least} to {most})"


def table1() -> list[str]:
    """Return Table 1 at the laptop's scale, every K and all of them together, as the paper has it, and the paper's."""
    average = {(task, size): row["mean map"] for (task, size, maps), row in blind().items() if maps == 1000}
    rows = [
        "| | K | manipulation 18x18 | manipulation 36x36 | workspace 18x18 | visual 15x15 |",
        "|---|---|---|---|---|---|",
        row_of("breadth-first search on the given map", "", *["100"] * len(COLUMNS)),
        row_of("a search that does not look, on the training maps' mean", "", *(f"{average[c]:.1f}" for c in COLUMNS)),
    ]
    found = trials("table1_ours")
    for planner in dict.fromkeys(trial.planner for trial in found):
        of = chosen(found, planner)
        rows += _by_k(of, COLUMNS)
        drawn = [_searched(chosen(of, task=task, size=size)) for task, size in COLUMNS]
        rows += [row_of("", "a search on its maps", *drawn), *_printed(of[0], COLUMNS)]
    return rows


def aggregates() -> list[str]:
    """Return the planners of Table 1 over its twelve problems together, as `idp table` has them."""
    found = trials("table1_ours")
    scores = {
        planner: [rates(chosen(found, planner, task=t, size=size, k=k)) for t, size in COLUMNS for k in (30, 50, 80)]
        for planner in dict.fromkeys(trial.planner for trial in found)
    }

    def beats(planner: str, other: str) -> str:
        if planner == other or other not in scores:
            return ""
        return _estimated(probability_of_improvement(scores[planner], scores[other]), 100, 0)

    rows = [
        "| | middle half, success % [95 %] | beats its unrolled twin, % [95 %] | beats ID-ConvGPPN, % [95 %] |",
        "|---|---|---|---|",
    ]
    for planner, each in scores.items():
        others = planner.removeprefix("id-"), "id-convgppn"
        middle = _estimated(interquartile_mean(each), 1, 1)
        rows.append(row_of(NAMES[planner], middle, *(beats(planner, other) for other in others)))
    return rows


def _estimated(found: Estimate, times: float, digits: int) -> str:
    value, *ends = (
        "?" if number is None else f"{times * number:.{digits}f}" for number in (found.value, found.low, found.high)
    )
    return f"{value} [{', '.join(ends)}]"


def _by_k(of: Sequence[Kept], columns: Sequence[tuple[str, int]]) -> list[str]:
    """Return a planner's rows: each K, and all K together where it has one; a cell is a task and a size."""
    every = {
        k: [rates(of_commonest(chosen(of, k=k, task=task, size=size), code_of)) for task, size in columns]
        for k in (30, 50, 80)
    }  # as `idp table` has it
    rows = [row_of(NAMES[of[0].planner], k, *map(_of_seeds, cells)) for k, cells in every.items() if any(cells)]
    together = [
        [*chain(*cells)] if len(set(map(len, cells))) == 1 else [] for cells in zip(*every.values(), strict=True)
    ]
    if any(together) and of[0].planner != "reachability":  # it has no K: the same seeds three times
        rows.append(row_of("", "30, 50, 80", *map(_of_seeds, together)))
    return rows


def _printed_success(trial: Kept) -> dict[tuple[str, int], str]:
    """Return what the paper's Table 1 prints of a trial's planner, by task and size; nothing of one that it has not."""
    table, planner = paper()["table1"], trial.spec["planner"]
    return {
        (at["task"], at["map_size"]): f"{rate:.2f} ± {deviation:.2f}"
        for row in table["rows"]
        if all(row[name] == planner[name] for name in ("core", "adjoint"))
        for at, (rate, deviation) in zip(table["columns"], row["success"], strict=True)
    }


def _printed(trial: Kept, columns: Sequence[tuple[str, int]]) -> list[str]:
    """Return the row of the paper's Table 1 for a trial's planner, none where the paper has nothing to say of it."""
    success = _printed_success(trial)
    cells = [success.get(column, "") for column in columns]
    return [row_of("", "paper", *cells)] if any(cells) else []


def at_the_papers_scale() -> list[Kept]:
    """Return the trials with the paper's 10,000 maps, 60 epochs and five seeds that have been run, each once."""
    sweeps = "figure2", "figure4", "adjoint_solves", "table1_ours", "table1_averaged"
    larger_steps = chosen(trials("contractive_start", "whole"), "contractive-80-by-0.04")
    every = chain(*(trials(sweep, None) for sweep in sweeps), larger_steps)
    found = {trial.result["trial_id"]: trial for trial in every if trial.archive == "paper_scale"}
    return list(found.values())


def paper_scale() -> list[str]:
    """Return success at the paper's scale, and the paper's where it prints a number."""
    found = at_the_papers_scale()
    columns = list(dict.fromkeys((str(trial.spec["data"]["task"]), trial.size) for trial in found))
    names = {"navigation": "mazes", "manipulation": "manipulation"}
    rows = [
        row_of("", "K", *(f"{names[task]} {size}x{size}" for task, size in columns)),
        "|---" * (len(columns) + 2) + "|",
    ]
    kinds = dict.fromkeys((trial.spec["planner"]["core"], trial.spec["planner"]["adjoint"]) for trial in found)
    for core, adjoint in kinds:
        alike = chosen(found, core=core, adjoint=adjoint)
        for planner in dict.fromkeys(trial.planner for trial in alike):
            rows += _by_k(chosen(alike, planner), columns)
        printed = _printed_success(alike[0])
        if printed:
            rows.append(row_of(f"the paper's {NAMES[alike[0].planner]}", "", *(printed.get(at, "") for at in columns)))
    return rows


def contractive_start() -> list[str]:
    """Return how many of contractive's seeds settle early in configuration space, by latent actions and step size."""
    found = trials("contractive_start", None)
    rows = [row_of("latent actions", "step size", "settle", "their success", "the others'"), "|---|---|---|---|---|"]
    for planner in dict.fromkeys(trial.planner for trial in found):
        alike = chosen(found, planner)
        success = rates(alike)
        low = [rate for rate in success if rate < SETTLED]
        others = [rate for rate in success if rate >= SETTLED]
        spec = alike[0].spec
        actions, step = spec["planner"]["options"]["q_channels"], spec["training"]["learning_rate"]
        rows.append(row_of(actions, step, f"{len(low)} of {len(success)}", _reach(low), _reach(others)))
    return rows


def _reach(numbers: Sequence[float]) -> str:
    least, most = (f"{end(numbers):.1f}" if numbers else "" for end in (min, max))
    return least if least == most else f"{least} to {most}"


def averaged() -> list[str]:
    """Return Table 1's implicit planners by two solves of their adjoint systems, and their unrolled twins."""
    found = trials("table1_averaged")
    new = [trial for trial in found if trial.planner.endswith("-averaged")]
    columns = [column for column in COLUMNS if any((t.spec["data"]["task"], t.size) == column for t in new)]
    names = {"manipulation": "manipulation", "workspace_manipulation": "workspace", "visual_navigation": "visual"}
    head = [
        f"{names[task]} {size}x{size}, {how}" for task, size in columns for how in ("averaged", "Anderson", "unrolled")
    ]
    rows = [row_of("", "K", *head), "|---" * (len(head) + 2) + "|"]
    for planner in dict.fromkeys(trial.planner for trial in new):
        implicit = planner.removesuffix("-averaged")
        kinds = planner, implicit, implicit.removeprefix("id-")
        for k in (30, 50, 80):
            cells = list[list[float]]()
            for task, size in columns:
                success = [rates(chosen(found, kind, task=task, size=size, k=k)) for kind in kinds]
                cells += success if success[0] else [[]] * len(kinds)
            if any(cells):
                rows.append(row_of(NAMES[implicit], k, *map(_of_seeds, cells)))
    return rows


def sizes() -> list[str]:
    """Return what contractive does on sizes that it was not trained on."""
    rows = ["| maps | K | seed 0 | seed 1 | seed 2 | mean |", "|---|---|---|---|---|---|"]
    found = trials("contractive", None)
    own = rates(found)
    maps = found[0].spec["data"]["test"]
    rows.append(
        row_of(f"{maps:,} of 15x15, its own test set", found[0].k, *map("{:.2f}".format, [*own, statistics.mean(own)]))
    )
    for size in (27, 49, 99):
        tests = [next(test for test in trial.tests if test["map_size"] == size) for trial in found]
        numbers = [100 * test["success_rate"] for test in tests]
        numbers.append(statistics.mean(numbers))
        rows.append(row_of(f"{tests[0]['maps']} of {size}x{size}", tests[0]["k"], *map("{:.2f}".format, numbers)))
    return rows


def cores() -> list[str]:
    """Return success of every core with every adjoint."""
    adjoints = {"unrolled": "", "implicit": "id-", "phantom": "phantom-", "one-step": "one-step-"}
    found = trials("cores", None)
    rows = [row_of("", *adjoints), "|---|---|---|---|---|"]
    for core in ("vin", "symvin", "convgppn", "spt", "contractive"):
        cells = [spread(rates(chosen(found, f"{prefix}{core}"))) for prefix in adjoints.values()]
        rows.append(row_of(NAMES[core], *cells))
    return rows


TABLES: dict[str, Callable[[], list[str]]] = {
    "verdicts": verdicts,
    "step_times": step_times,
    "forward_residuals": forward_residuals,
    "deviations": deviations,
    "accuracy": accuracy,
    "few_steps": few_steps,
    "solver_pairs": solver_pairs,
    "larger_maps": larger_maps,
    "vin_parts": vin_parts,
    "table1": table1,
    "aggregates": aggregates,
    "paper_scale": paper_scale,
    "contractive_start": contractive_start,
    "averaged": averaged,
    "sizes": sizes,
    "cores": cores,
}


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), TABLES, "reproduction"), encoding="utf-8")
