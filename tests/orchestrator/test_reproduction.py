"""REPRODUCTION.md's tables, and the numbers of its sentences but the claims', are those of docs/results."""

from __future__ import annotations

import itertools
import json
import re
import statistics
from collections import Counter, defaultdict

import numpy as np
import pyarrow.parquet as pq
import pytest
from published import (
    COLUMNS,
    PAGE,
    ROOT,
    SIX,
    archive,
    at_30,
    chosen,
    epochs_before_the_fall,
    epochs_on_a_gpu,
    is_of_present_code,
    joined,
    made,
    of,
    power,
    rate,
    rates,
    says,
    script,
    span,
    spread,
    trials,
)

from datagen.storage.dataset import directory_of, make_dataset, read_split
from orchestrator.cli.main import main


def test_the_tables_are_the_archives():
    assert archive.with_tables(PAGE, made.TABLES, "reproduction") == PAGE, (
        "python docs/reproduction.py writes them again"
    )


@pytest.mark.parametrize("mark", ["DEVIATION", "UNSPECIFIED"])
def test_where_we_differ_is_where_the_code_says_so(mark):
    marked = set()
    for package in ("datagen", "planners", "orchestrator"):
        for path in (ROOT / package).rglob("*.py"):
            for section in re.findall(rf"# {mark}(?:\((.*?)\))?:", path.read_text()):
                marked.add((str(path.relative_to(ROOT)), section if mark == "DEVIATION" else ""))
    table = PAGE.partition(f"(`# {mark}` in the code)")[2].partition("\n\n")[0]
    told = set()
    for where in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        first, *others = re.findall(r"`(.*?)`", where)
        section = (re.findall(r"\((.*?)\)", where) or [""])[0]
        files = [first, *(f"{first.rpartition('/')[0]}/{name}" for name in others)]
        told |= {(file, section if mark == "DEVIATION" else "") for file in files}
    assert told == marked


def test_the_pages_own_commands_show_what_it_shows(tmp_path, monkeypatch, capsys):
    """`idp unarchive` and `idp table` as they stand on the page, of the trials that its two tables need."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "examples")
    block = next(block for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL) if "idp unarchive" in block)
    (plugin,) = re.findall(r"`PYTHONPATH=examples (idp unarchive .*?)`", PAGE, re.DOTALL)
    whole, few = "docs/results/results.parquet", tmp_path / "few.parquet"
    needed = {trial.result["trial_id"] for trial in [*trials("accuracy"), *trials("cores", None)]}
    pq.read_table(whole).to_pandas().query("trial_id in @needed").to_parquet(
        few, index=False
    )  # all 336 take ten seconds
    commands = [command.split() for command in [*block.splitlines(), plugin]]
    assert [command[1] for command in commands] == ["unarchive", "table", "figures", "table", "unarchive"]
    for _, verb, *rest in commands:
        places = {whole: str(few), "/tmp/results": str(tmp_path / "results")}
        assert verb == "figures" or main([verb, *(places.get(word, word) for word in rest)]) == 0
    printed = capsys.readouterr().out
    assert f"{len(needed)} of {len(needed)} trials put there" in printed and "11 of 11 trials put there" in printed
    for said in made.accuracy()[2:-1] + made.cores()[2:]:
        success = said.split(" | ")[4 if said in made.accuracy() else 1].split(" (")[0]
        assert success in printed, said


def on_mazes(planner, size, k):
    """Return the trials of Figures 2 and 4 that have ended with numbers."""
    found = of("figure2" if planner in SIX[:3] else "figure4", planner, size=size, k=k)
    return [trial for trial in found if trial.result["test_success_rate"] is not None]


def test_our_planner_beside_them():
    ours = [[rate("figure4", "contractive", size=size, k=k) for k in (30, 50, 80)] for size in (15, 27)]
    theirs = [rate("figure4", "id-convgppn", size=15, k=k) for k in (30, 50, 80)]
    seconds = [sorted(t.result["train_seconds"] for t in of("figure4", p)) for p in ("contractive", "id-convgppn")]
    says(
        "Our planner beside them",
        ", ".join(ours[0]) + " % on 15x15",
        f"ID-ConvGPPN has {', '.join(theirs)} (one seed), and {', '.join(ours[1])} % on 27x27",
        f"in {joined((seconds[0][0], seconds[0][-1]), by=' to ')} s of training",
        f"against its {joined((seconds[1][0], seconds[1][-1]), by=' to ')}",
        f"({rate('figure2', 'symvin', size=27, k=30)} %; {rate('figure7', 'symvin', size=27)} with",
        f"one of three is at {min(rates(of('figure4', 'contractive', size=27, k=80))):.1f} % on 27x27 at K = 80",
    )
    best = {
        (size, k): max((*SIX, "contractive"), key=lambda p: statistics.mean(rates(on_mazes(p, size, k)) or [0]))
        for size in (15, 27)
        for k in (30, 50, 80)
    }
    assert [place for place, planner in best.items() if planner != "contractive"] == [(27, 30)]
    (_, second) = of("figure7", "id-convgppn", size=27)
    says("ID-ConvGPPN on 27x27", f"(A second seed at K = 80, `figure7`, has {rates([second])[0]:.1f} %.)")
    curves = [of("figure4", "id-convgppn", size=27, k=k)[0].curves for k in (30, 50, 80)]
    says(
        "ID-ConvGPPN on 27x27",
        "has {}, {} and {} % at K".format(*(rate("figure4", "id-convgppn", size=27, k=k) for k in (30, 50, 80))),
        f"{curves[1][0]['train_loss']:.2f} to {{:.2f}}, {{:.2f}} and {{:.2f}}.".format(
            *(epochs[-1]["train_loss"] for epochs in curves)
        ),
    )


def test_why_id_vin_stalls_and_diverges():
    solved, plain, back, clipped = (rate("id_vin", p) for p in ("solved", "id-vin", "solved-backward", "clipped-at-1"))
    (well,) = of("id_vin", "solved")
    arrived, cells = (well.result[f"test_{what}_by_distance"] for what in ("arrivals", "cells"))
    near = [100 * part / whole for part, whole in zip(arrived, cells, strict=True) if whole]
    says(
        "Why ID-VIN stalls",
        f"residuals are {power(well.result['forward_residual'])} and {power(well.result['backward_residual'])}, and it",
        f"reaches {solved} %, where 30 and 15 reach {plain}, 30 and 60 {back};",
        f"a gradient clip of 1 changes as little ({clipped};",
        f"(K = 100: {near[0]:.0f} % of the starts at most 10 steps away arrive, {near[1]:.0f} % of those up to 20, "
        f"{100 * sum(arrived[2:]) / sum(cells[2:]):.0f} % of the others)",
    )
    one_map = [
        trial for trial in trials("vin_parts", None) if trial.spec["planner"]["options"].get("rewards") != "per_action"
    ]
    assert len(one_map) == 5
    says("So it is", f"stay at {min(rates(one_map)):.0f} to {max(rates(one_map)):.0f} %")
    says(
        "Why ID-VIN diverges",
        f"{', '.join(rate('id_vin', p) for p in ('adam', 'all-optimal', 'falling-step-size'))} %",
    )

    curve = of("accuracy", "id-vin")[2].curves
    fallen = epochs_before_the_fall(curve)
    says(
        "Why ID-VIN diverges",
        f"creep from {joined((curve[n]['forward_residual'] for n in (0, fallen - 1)), 1, 100, ' to ')} %",
        f"the loss goes from {curve[fallen - 1]['train_loss']:.2f} to {curve[fallen]['train_loss']:,.0f}",
        f"it stays at {rates(of('accuracy', 'id-vin'))[2]:.1f} %",
        "falls from {:.0f} points to {:.1f}.".format(
            *(statistics.stdev(rates(of("accuracy", planner))) for planner in ("id-vin", "id-vin-contraction"))
        ),
    )
    (few,), (many,) = (of("accuracy", "id-convgppn", k=k) for k in (30, 50))
    (longer,) = (test for test in few.tests if (test["map_size"], test["maps"], test["k"]) == (15, 2000, 50))
    apart = [
        abs(test["success_rate"] - trial.result["test_success_rate"])
        for trial in trials("accuracy")
        for test in trial.tests
        if (test["map_size"], test["maps"], test["k"]) == (15, 2000, trial.k)
    ]
    says(
        "ID-ConvGPPN is at",
        f"{rates([few])[0]:.2f} % with K = 30, and at {100 * longer['success_rate']:.1f} % when the same weights are "
        f"tested with K = 50; trained with K = 50, at {rates([many])[0]:.2f} %",
        f"differ by {100 * max(apart):.1f} points at most",
    )
    (begun,) = chosen(trials("cores", None), "spt")
    says("SPT has only begun", f"to {begun.curves[-1]['train_loss']:.2f} in the two epochs")
    symvins = of("figure12", core="symvin")
    first = sorted(100 * trial.curves[0]["valid_success_rate"] for trial in symvins)
    last = {
        back: sorted(t.curves[-1]["forward_residual"] for t in chosen(symvins, solver="anderson", solver_bwd=back))
        for back in ("anderson", "forward")
    }
    says(
        "Why Anderson",
        f"alike ({first[0]:.0f} to {first[-1]:.0f} %",
        f"to {' and '.join(map(power, last['anderson']))} with Anderson backward",
        f"to {' and '.join(f'{left:.2f}' for left in last['forward'])} with forward iteration backward",
    )
    kept = {row["trial_id"]: row for row in json.loads((ROOT / "docs" / "results" / "stability.json").read_text())}
    found = {
        pair: [kept[t.result["trial_id"]] for t in chosen(symvins, solver=pair[0], solver_bwd=pair[1])]
        for pair in itertools.product(("forward", "anderson"), repeat=2)
    }
    radii = {pair: [row["radius"] for row in rows] for pair, rows in found.items()}
    through = radii["forward", "forward"] + radii["forward", "anderson"]
    says(
        "Why Anderson",
        f"there is {min(through):.2f} to {max(through):.2f} (median",
        "{:.2f} and {:.2f} with Anderson both ways".format(*sorted(radii["anderson", "anderson"])),
        "{:.2f} and {:.2f} with Anderson forward and".format(*radii["anderson", "forward"]),
        "(residuals of {:.2f} and {:.2f})".format(*(row["Anderson, 100"] for row in found["anderson", "forward"])),
    )
    traces = [of("accuracy", "id-convgppn", k=k)[0].result["forward_trace"] for k in (30, 50)]
    both = [kept[of("accuracy", "id-convgppn", k=k)[0].result["trial_id"]] for k in (30, 50)]
    radii = [row["radius"] for row in both]
    told = (ROOT / "docs" / "planners" / "conv_gppn.md").read_text()
    assert f"(spectral radii of {joined(radii, 2, by=' and ')}," in told
    (unrolled,), (symvin,), implicit = (
        [kept[t.result["trial_id"]] for t in of("accuracy", p)] for p in ("convgppn", "symvin", "id-symvin")
    )
    says(
        "ID-ConvGPPN's fixed point repels",
        f"and {joined((row['forward, 200'] for row in both), 2, by=' and ')} after 200",
        f"(residuals of {' and '.join(power(row['Anderson, 100']) for row in both)} after 100 steps;",
        f"of the step is {joined(radii, 2, by=' and ')}:",
        f"ConvGPPN after two epochs ({unrolled['radius']:.2f}) and SymVIN's pair ({symvin['radius']:.2f}; "
        f"{joined((row['radius'] for row in implicit), 2, by=' and ')}) stand",
    )
    every = [*of("accuracy", "vin"), *of("accuracy", "id-vin")]
    restless, (calm,) = (
        [
            t
            for t in every
            if (kept[t.result["trial_id"]]["forward, 200"] < 1e-3) == rest and t.result["test_success_rate"] > 0.1
        ]
        for rest in (False, True)
    )
    assert [t.planner for t in restless] == ["vin"] * 2 + ["id-vin"] * 2 and calm.planner == "vin"
    rows, rest = [kept[t.result["trial_id"]] for t in restless], kept[calm.result["trial_id"]]
    left, radii = (sorted(row[what] for row in rows) for what in ("forward, 200", "radius"))
    undone = [sorted(archive.tested(restless, 49, k)) for k in (None, 196)]
    says(
        "VIN need not have a fixed point",
        f"still {100 * left[0]:.1f} to {100 * left[-1]:.1f} % from standing still",
        f"radii of {radii[0]:.2f} to {radii[-1]:.2f}.",
        f"({power(rest['forward, 200'])} after 200 steps; {rest['radius']:.2f})",
        f"has {rates([calm])[0]:.1f} % where the others have {joined(rates(restless[:2]), 1, by=' and ')}.",
        f"{undone[0][0]:.1f} to {undone[0][-1]:.1f} % with K = 30, {undone[1][0]:.1f} to {undone[1][-1]:.1f} with 196)",
        f"({joined((archive.tested([calm], 49, k)[0] for k in (None, 196)), 1, by=' and ')})",
    )
    says(
        "ID-ConvGPPN's fixed point repels",
        "is {:.1f} after 30 steps and {:.1f} after 50".format(*(t[-1] for t in traces)),
    )
    assert max(traces[1][24:]) < 1.15 * min(traces[1][24:])


def test_the_sentences_of_table_1():
    there = [trial for trial in trials("table1_ours") if trial.result["provenance"]["accelerator"] != "cpu"]
    says(
        "Times in this table compare nothing",
        f"{len(there)} of the trials",
        f"the other {len(trials('table1_ours')) - len(there)}",
        f"each of the {len(kinds_of_trial(*archive.ARCHIVES))} kinds",
    )
    claim, six = "What the scale leaves", {(p, k): table_1(p, k) for p in SIX for k in (30, 50, 80)}
    cells = [(k, column) for k in (30, 50, 80) for column in range(4)]
    best = {(k, column): max(SIX, key=lambda planner: six[planner, k][column]) for k, column in cells}
    assert all("symvin" in best[k, column] for k, column in cells if column < 2)
    assert [cell for cell, planner in best.items() if planner == "id-convgppn"] == [(80, 2)]
    led = [rate("table1_ours", p, task="workspace_manipulation", k=80) for p in ("id-convgppn", "id-symvin", "symvin")]
    says(claim, "with {} beside ID-SymVIN's {} and SymVIN's {}".format(*led))
    large = {"task": "manipulation", "size": 36}
    twins = [[table_1(planner, k) for k in (30, 50, 80)] for planner in ("id-convgppn", "convgppn")]
    assert [implicit[2] > unrolled[2] for implicit, unrolled in zip(*twins, strict=True)] == [False, True, True]
    assert all(implicit[1] < unrolled[1] for implicit, unrolled in zip(*twins, strict=True))
    backward = [100 * trial.result["backward_residual"] for trial in of("table1_ours", "id-symvin", **large, k=30)]
    forward = [trial.result["forward_residual"] for trial in of("table1_ours", "id-convgppn", **large)]
    says(
        claim,
        f"{six['id-symvin', 30][1]:.1f} % at K = 30, where its adjoint leaves {span(backward, 0)} %",
        f"{six['id-symvin', 50][1]:.1f} at K = 50 and {six['id-symvin', 80][1]:.1f} at K = 80",
        "beside SymVIN's {:.1f}, {:.1f} and {:.1f}".format(*(six["symvin", k][1] for k in (30, 50, 80))),
        f"on 36x36 is {span(forward, 2)}",
        "has {:.1f}, {:.1f} and {:.1f} % on 36x36".format(*(table_1("contractive", k)[1] for k in (30, 50, 80))),
    )
    ours = [table_1("reachability", k) for k in (30, 50, 80)]
    assert all(means[column] == 100 for means in ours for column in (0, 1, 3))
    says(claim, f"{span([means[2] for means in ours], 1)} %")
    unsettled = [trial.result["forward_residual"] for trial in of("table1_ours", "contractive", **large, k=30)]
    says(claim, f"with a residual of {span(unsettled, 3)}")


def test_what_needs_no_map():
    workspace, panoramas = (made.blind()[*place, 1000] for place in COLUMNS[2:])
    every = of("table1_ours", task="workspace_manipulation")
    drawn = statistics.median(100 * trial.result["test_searched"] for trial in every)
    far = [
        100 * sum(trial.result["test_arrivals_by_distance"][2:]) / sum(trial.result["test_cells_by_distance"][2:])
        for trial in every
    ]
    assert max(rates(every)) < workspace["mean map"]
    says(
        "What needs no map",
        f"has {workspace['mean map']:.1f} % on workspaces",
        f"there has more than {max(rates(every)):.1f}.",
        f"has {drawn:.1f} % (median), about what an empty map gives ({workspace['empty map']:.1f})",
        f"steps away at most {max(far):.1f} % arrive",
        f"({panoramas['mean map']:.1f} %) either",
    )
    ten_thousand = {}
    for planner in ("id-symvin", "reachability"):
        (trial,) = of("workspaces", planner)
        ten_thousand[planner] = trial.result, 100 * trial.result["test_searched"]
    seeing, its_maps = ten_thousand["id-symvin"]
    apart = {
        trial.spec["training"]["mapper_pretrain_epochs"]: trial
        for trial in archive.archived().values()
        if trial.spec["planner"]["core"] == "reachability" and trial.spec["data"]["train"] == 10_000
    }
    valid = {
        epochs: [f"{100 * each['valid_success_rate']:.1f}" for each in trial.curves] for epochs, trial in apart.items()
    }

    def tested(epochs):
        return [f"{100 * apart[epochs].result[f'test_{name}']:.1f}" for name in ("success_rate", "searched")]

    far = [sum(seeing[f"test_{part}_by_distance"][2:]) for part in ("arrivals", "cells")]
    says(
        "What needs no map",
        f"({seeing['steps']:,} steps)",
        f"succeeds from {rate('workspaces', 'id-symvin')} %, from {100 * far[0] / far[1]:.1f} % of the starts",
        f"a search on its maps has {its_maps:.1f}.",
        f"reachability has {rate('workspaces', 'reachability')} and {ten_thousand['reachability'][1]:.1f} % if",
        "after two epochs it has {} and {} %, and {} and {} % from the start".format(*tested(2), *tested(0)),
        f"{valid[2][1]} % after two epochs apart and {valid[2][2]} after",
        f"together; {valid[6][-1]}, {valid[2][-1]} and {valid[0][-1]} in the end",
        f"that does not look has {made.blind()[*COLUMNS[2], 10_000]['mean map']:.1f}.",
    )
    assert len(trials("workspaces")) == 2
    says(
        "Where a mapper draws the map",
        f"from {rate('workspaces', 'reachability')} % of all starts so, from {tested(0)[0]} % where",
        page="docs/planners/reachability.md",
    )
    found = [100 * trial.result["test_searched"] for trial in of("table1_ours", task="visual_navigation")]
    lost = sorted(share for share in found if share < 100)
    says(
        "The last epoch",
        f"finds {lost[1]:.1f} and {lost[0]:.1f} % of the ways, and 100 % in the column's {len(found) - 2} ",
    )


def kinds_of_trial(*archives):
    """Return what `docs/same_numbers.py` trains for these archives."""
    kinds = script("same_numbers").kinds
    return kinds(row for name in archives for row in pq.read_table(ROOT / f"docs/results/{name}.parquet").to_pylist())


def table_1(planner, k):
    """Return the mean success of a planner in each column of Table 1."""
    return [statistics.mean(rates(of("table1_ours", planner, task=t, size=s, k=k))) for t, s in COLUMNS]


def test_what_the_last_epoch_undoes():
    def validation(trial):
        return [100 * epoch["valid_success_rate"] for epoch in trial.curves]

    def falls(trial):
        """Return the epochs that end more than 15 points below the one before, counted from the end."""
        found = validation(trial)
        return [number - len(found) for number in range(1, len(found)) if found[number - 1] - found[number] > 15]

    claim, best = "The last epoch", {}
    for planner in ("id-convgppn", "convgppn"):
        assert sum(map(bool, map(falls, of("table1_ours", planner)))) == 7
        assert sum(-1 in falls(trial) for trial in of("table1_ours", planner)) == (3 if "id-" in planner else 0)
        panoramas = [of("table1_ours", planner, task="visual_navigation", k=k) for k in (30, 50, 80)]
        best[planner] = ", ".join(spread([max(validation(trial)) for trial in seeds]) for seeds in panoramas)
    says(claim, "come to 7 of its 36 trials and to 7 of ConvGPPN's", f"{best['id-convgppn']} and {best['convgppn']} %")
    panoramas = [of("table1_ours", "id-convgppn", task="visual_navigation", k=k) for k in (30, 80)]
    first = [validation(trial) for seeds in panoramas for trial in seeds if trial.spec["seed"] == 0]
    says(claim, *("{:.1f} and {:.1f}".format(*(epochs[at] for epochs in first)) for at in (-2, -1)))
    told = {}
    for planner in ("vin", "id-vin", "symvin", "id-symvin"):
        fallen = [falls(trial) for trial in of("table1_ours", planner)]
        told[planner] = sum(map(bool, fallen)), sum(-1 in epochs for epochs in fallen)
    (undone,) = (t for t in of("table1_ours", "vin", task="manipulation", size=18, k=50) if t.spec["seed"] == 0)
    says(
        claim,
        f"Of VIN's trials they come to {told['vin'][0]}, to {told['vin'][1]} in the last epoch",
        "(on 18x18 at K = 50 from {:.1f} to {:.1f} %)".format(*validation(undone)[-2:]),
        f"of ID-VIN's to {told['id-vin'][0]} and {told['id-vin'][1]}, of SymVIN's to {told['symvin'][0]} and none",
    )
    assert told["symvin"][1] == 0 and told["id-symvin"] == (0, 0)
    assert not any(falls(trial) for p in ("contractive", "reachability") for trial in of("table1_ours", p))


@pytest.mark.parametrize(
    ("page", "planners"),
    [
        ("vin", ("vin", "id-vin")),
        ("symvin", ("symvin", "id-symvin")),
        ("conv_gppn", ("convgppn", "id-convgppn")),
        ("contractive", ("contractive",)),
    ],
)
def test_the_pages_of_planners_have_table_1_s_numbers(page, planners):
    text = (ROOT / "docs" / "planners" / f"{page}.md").read_text()

    def cells(*places):
        return " | ".join(", ".join(at_30(p, *place) for place in places) for p in planners)

    assert f"| {cells(('manipulation', 18), ('manipulation', 36))} | `idp run sweeps/table1_ours" in text
    assert f"| {cells(('workspace_manipulation', 18), ('visual_navigation', 15))} | the same |" in text


def test_our_planner_on_larger_maps():
    whole = trials("contractive", None)
    reached = {
        size: [100 * test["success_rate"] for trial in whole for test in trial.tests if test["map_size"] == size]
        for size in (15, 27, 49, 99)
    }
    average = {size: statistics.mean(rates) for size, rates in reached.items()}
    minutes = [trial.result["train_seconds"] / 60 for trial in whole]
    says(
        "`contractive`, trained for ten epochs",
        f"({span(minutes, 1)} minutes a seed)",
        f"{average[15]:.2f} % success on 1,000 mazes of 15x15, {average[27]:.1f} % on 500 of 27x27",
        f"{average[49]:.1f} % on 500 of 49x49 ({span(reached[49], 1)})",
        f"{average[99]:.1f} % on 200 of 99x99 ({span(reached[99], 1)})",
        page="docs/planners/contractive.md",
    )
    says("ID-ConvGPPN is at", f"Ours, trained with K = 60, is at {statistics.mean(rates(whole)):.2f} %")
    ahead = statistics.mean(rates(of("accuracy", "contractive"))) - rates(of("accuracy", "id-convgppn", k=30))[0]
    says("Our planner beside them", f"K = 30 it is {ahead:.1f} points ahead of ID-ConvGPPN")
    says("Success falls with the size", f"with 108 and 196 has {average[27]:.1f} / {average[49]:.1f}.")


def test_when_to_use_which_planner():
    def advice(planner, start, *texts):
        says(start, *texts, page=f"docs/planners/{planner}.md")

    small, large, _, panoramas = COLUMNS
    against = [f"{at_30('symvin', *place)} against {at_30('convgppn', *place)}" for place in (small, large, panoramas)]
    advice("symvin", "- With few maps", f"({against[0]} % on 18x18, {against[1]} on 36x36;", f"({against[2]}).")
    backward = {
        (solver, back): [
            f"{value:.1f}" for value in rates(of("figure12", core="symvin", solver=solver, solver_bwd=back))
        ]
        for solver in ("forward", "anderson")
        for back in ("forward", "anderson")
    }
    through = sorted(float(each) for back in ("forward", "anderson") for each in backward["forward", back])
    advice(
        "symvin",
        "- With few maps",
        f"{' and '.join(backward['anderson', 'forward'])} % with forward iteration backward",
        f"against {through[0]:.1f} to {through[-1]:.1f} % with",
    )
    few, more = rate("few_steps", "id-convgppn", size=15, k=10), rate("figure4", "id-convgppn", size=15, k=30)
    panoramas = of("table1_ours", "id-convgppn", task="visual_navigation", k=80)
    advice(
        "conv_gppn",
        "- For success on mazes",
        *(f"{rate('accuracy', 'id-convgppn', k=k)} % with K = {k}" for k in (30, 50)),
        f"ID-SymVIN has {rate('accuracy', 'id-symvin')} %",
        f"({made.mean(panoramas, 'forward_residual'):.2f} on panoramas at K = 80, "
        f"{made.mean(of('table1_ours', 'id-convgppn', size=36, k=80), 'forward_residual'):.2f} on 36x36)",
        f"ID-ConvGPPN needs {of('figure9', 'id-convgppn', k=80)[0].result['peak_bytes'] / 2**20:.0f} MiB",
        f"at K = 10, it has {few} %",
        f"has {more} % at K = 30",
    )
    both = {p: of("accuracy", p, k=30) for p in ("contractive", "id-convgppn")}
    minutes = {p: f"{made.mean(found, 'train_seconds') / 60:.1f}" for p, found in both.items()}
    advice(
        "contractive",
        "- For planning on larger",
        f"(10,000: {spread(rates(both['contractive']))} %)",
        f"K = 30: {at_30('contractive', *large)})",
        f"it has {statistics.mean(rates(both['contractive'])):.1f} % after {minutes['contractive']} minutes of a core",
        f"has {spread(rates(both['id-convgppn']))} after {minutes['id-convgppn']} (K = 30)",
    )


def test_how_many_starts_are_too_far_for_30_steps(tmp_path):
    spec = archive.planned("accuracy")[0].spec.data.model_copy(update={"train": 0, "valid": 0})
    make_dataset(spec, tmp_path)
    distance = read_split(directory_of(spec, tmp_path), "test").distance
    starts, far = (np.sum((distance > least) & np.isfinite(distance), axis=(1, 2)) for least in (0, 30))
    every = f"{100 * far.sum() / starts.sum():.1f} %"
    says(
        "`idp run sweeps/accuracy.yaml",
        f"of whose starts {every} are",
        f"({100 * np.mean(far / starts):.1f} % of a maze's",
    )
    says("K steps see", f"leaves out the {every} of", page="docs/planners/vin.md")


def test_what_was_run_and_what_it_cost():
    hours, number, elsewhere = defaultdict(float), Counter(), Counter()
    for trial in archive.archived().values():
        if trial.result["provenance"]["accelerator"] != "cpu":
            elsewhere[trial.archive] += 1
            continue  # told apart
        on_a_gpu = sum(epoch["train_seconds"] for epoch in epochs_on_a_gpu(trial))
        seconds = (trial.result["train_seconds"] or 0) - on_a_gpu
        hours[trial.archive] += seconds * trial.spec["execution"]["threads"] / 3600
        number[trial.archive] += 1
    says(
        "The trials behind these pages",
        f"for {sum(hours.values()):.1f} processor-hours",
        f"{hours['results']:.1f} in `results.parquet` ({number['results']} trials, the three that ran out of memory",
        f"{hours['paper_scale']:.1f} in `paper_scale.parquet` ({number['paper_scale']} on CPUs;",
        f"; {elsewhere['paper_scale']} more on an H200)",
        f"{hours['averaged']:.1f} in `averaged.parquet` ({number['averaged']})",
        f"{hours['vin_parts']:.1f} in `vin_parts.parquet` ({number['vin_parts']})",
        f"{hours['reachability']:.1f} in `reachability.parquet` ({number['reachability']} on CPUs;",
        f"{hours['table1']:.1f} in `table1.parquet` ({number['table1']} on CPUs",
    )
    kept = [trial for trial in archive.archived().values() if trial.archive == "results"]
    assert all(map(is_of_present_code, kept))
    assert sum(trial.result["status"] == "OUT_OF_MEMORY" for trial in kept) == 3
    for sweep in ("table1_ours", "factorial", "fair"):
        assert all(map(is_of_present_code, trials(sweep))), sweep
    assert {trial.code for trial in trials("vin_parts", None)} == {of("figure2", "vin")[0].code}
    says("`table1_ours`", f"all {len(trials('table1_ours'))} trials")


def test_the_sweeps_that_are_said_to_be_whole_are():
    table = PAGE.partition("| sweep | what of")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", table, re.MULTILINE)
    every = [names for names, what in rows if re.fullmatch(r"all(?: \d+ trials)?", what)]
    whole = [name for names in every for name in re.findall(r"`(\w+)`", names)]
    assert len(whole) > 12
    for sweep in whole:
        at = sweep, None if sweep == "vin_parts" else "laptop"
        assert len(trials(*at)) == len(archive.planned(*at)), sweep
