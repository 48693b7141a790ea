"""What `idp table` says: the paper beside ours, the scale, planners against each other, in every format."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import statistics
import subprocess
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from samples import SWEEPS, put_result, sample_runs

from datagen.tasks.registry import DatasetSpec
from orchestrator.cli.main import main
from orchestrator.storage.layout import Storage
from orchestrator.storage.provenance import Provenance
from orchestrator.sweep.specs import SweepError
from orchestrator.tables import columns
from orchestrator.tables.columns import Quantity
from orchestrator.tables.comparison import compared_twins, paired_difference
from orchestrator.tables.formats import render
from orchestrator.tables.latex import escaped
from orchestrator.tables.paper import beside_paper
from orchestrator.tables.rows import DISTANCE_BIN_NAMES, notes
from orchestrator.tables.summary import count_parameters, summarise
from orchestrator.tables.table import MISSING
from planners.specs import PlannerSpec
from planners.training.rollout import DISTANCE_BINS

samples = cache(sample_runs)


def summary_of(name="table1", profile=None, **options):
    sweep, runs = samples(name, profile)
    return summarise(sweep.name, runs, **options)


def lines_of(text, start):
    """The lines of the table under the title that starts with `start`, header and rule left out."""
    table = text.split(f"\n{start}", 1)[1].split("\n\n", 1)[0].splitlines()
    return table[next(number for number, line in enumerate(table) if line.startswith("──")) + 1 :]


def test_the_papers_numbers_stand_beside_ours():
    text = render(summary_of(), "text")
    entries = beside_paper(samples("table1")[1])
    lines = lines_of(text, "Beside the paper's Table 1")
    assert len(lines) == len(entries) == 24
    entry = next(e for e in entries if e.planner == "id-symvin" and e.map_size == 36)
    line = next(line for line in lines if line.startswith("id-symvin") and " 36 " in line)
    wanted = f"{entry.ours.mean:.1f} ± {entry.ours.deviation:.1f} 15/15 98.53 ± 1.42 {entry.difference}"
    assert wanted in " ".join(line.split())
    assert re.search(r"[+-][0-9.]+ \[[+-][0-9.]+, [+-][0-9.]+\]", line)
    diverged = next(line for line in lines if "under 20 %" in line)
    assert re.search(r"\d under 20 %", diverged)
    assert "Not the paper's scale" not in text and "arXiv:2210.13542" in text


def test_what_planners_do_on_other_sizes_stands_below(monkeypatch):
    sweep, runs = samples("figure10_grown")
    summary = summarise(sweep.name, runs)
    lines = lines_of(render(summary, "text"), "Success on maps of other sizes")
    assert [line.split()[0] for line in lines] == list(sweep.planners)
    grown = next(row for row in summary.further if row.axes["planner"] == "contractive")
    assert [(test.map_size, test.k) for test in grown.tests] == [(n, 4 * n) for n in (15, 27, 39, 49, 75, 99)]
    rates = [t.success_rate for r in runs if r.axis("planner") == "vin" for t in r.evaluations if t.map_size == 49]
    vin = next(row for row in summary.further if row.axes["planner"] == "vin").on(49)
    assert (vin.n, vin.success_rate) == (len(rates), pytest.approx(statistics.mean(rates)))
    assert vin.success_rate_std == pytest.approx(statistics.stdev(rates))
    assert f" {vin} " in next(line for line in lines if line.startswith("vin "))
    assert len(json.loads(render(summary, "json"))["further_tests"]) == len(summary.further)
    assert r"-further}" in render(summary, "tex") and "of other sizes" not in render(summary_of(), "md")


def test_sets_of_maps_of_one_size_have_no_common_mean():
    sweep, runs = samples("figure10")

    def also_tested(run):
        other = [
            test.model_copy(update={"dataset_id": "navigation-49-dense", "success_rate": 0.0})
            for test in run.evaluations
            if test.map_size == 49
        ]
        maps = run.maps | {test.dataset_id: DatasetSpec(map_size=49) for test in other}
        return replace(run, evaluations=[*run.evaluations, *other], maps=maps)

    before = {row.axes["planner"]: row.on(49) for row in summarise(sweep.name, runs).further}
    summary = summarise(sweep.name, [also_tested(run) for run in runs])
    for row in summary.further:
        plain = before[row.axes["planner"]]
        assert row.on(49, plain.dataset_id) == plain
        assert row.on(49, "navigation-49-dense").success_rate == 0.0
        assert row.on(49, "navigation-49-dense").n == plain.n
    text = render(summary, "md")
    assert f"{plain.dataset_id} %" in text and "navigation-49-dense %" in text and "27x27 %" in text


def test_sets_that_were_asked_for_stand_apart_while_each_planner_was_tested_on_one():
    _, runs = samples("figure10", "smoke", overrides=("test_on=[{map_size: 11}, {map_size: 11, seed: 7}]",))
    first, second = runs[0].maps
    partly = [replace(run, evaluations=run.evaluations[number % 2 :][:1]) for number, run in enumerate(runs)]
    text = render(summarise("figure10", partly), "md")
    assert f"| {first} % | {second} % |" in text and "11x11" not in text
    lines = lines_of(render(summarise("figure10", partly), "text"), "Success on maps of other sizes")
    assert all(MISSING in line for line in lines)
    alike = [replace(run, evaluations=run.evaluations[:1]) for run in runs]
    assert f"| {first} % | {second} % |" in render(summarise("figure10", alike), "md")


def test_a_smaller_scale_is_told_in_one_line_and_is_under_trained_not_diverged():
    _, runs = samples("table1", "laptop")
    low = [replace(run, result=run.result.model_copy(update={"trial_diverged": True})) if run.completed else run
           for run in runs]  # fmt: skip
    text = render(summarise("table1", low), "text")
    (line,) = (line for line in text.splitlines() if line.startswith("Not the paper's scale"))
    assert "1,000 train maps, not 10,000" in line and "3 seeds, not 5" in line
    assert "under-trained at this scale rather than diverged" in text
    assert "under-trained" not in render(summary_of(), "text") and "has diverged" in render(summary_of(), "text")


def test_a_cell_with_less_than_all_trials_says_how_many():
    _, runs = samples("table1")
    kept = [replace(run, result=None) if run.axis("seed") or run.axis("planner") == "id-vin" else run for run in runs]
    summary = summarise("table1", kept, compare=[("id-symvin", "id-vin"), ("id-symvin", "id-convgppn")])
    text = render(summary, "text")
    for line in lines_of(text, "Beside"):
        assert ("  0/15 " if line.startswith("id-vin") else "/15 ") in line and " 15/15 " not in line
    none, some = (line for line in lines_of(text, "Success %") if line.split()[2] == "all")
    assert none.split()[4:] == [MISSING, MISSING, "0/60"] and some.split()[-1] == "12/60"


def test_two_planners_are_compared_by_problem_and_in_all():
    _, runs = samples("table1")
    summary = summary_of(compare=[("id-vin", "vin")])
    assert [(one.task, one.map_size) for one in summary.comparisons] == [
        ("manipulation", 18), ("manipulation", 36), ("workspace_manipulation", 18), ("visual_navigation", 15),
        (None, None),
    ]  # fmt: skip
    assert summary.comparisons[-1].difference == paired_difference(runs, "id-vin", "vin")
    assert {one.expected for one in summary.comparisons} == {15, 60}
    assert all(one.difference.n == one.expected for one in summary.comparisons)
    with pytest.raises(SweepError, match="did you mean 'id-vin'"):
        summarise("table1", runs, compare=[("id-win", "vin")])


def test_every_interval_is_defined_where_it_stands():
    titles = " ".join(table.title for table in summary_of(compare=[("id-vin", "vin")]).tables())
    for definition in (
        "Welch's interval",
        "Student's interval over the pairs",
        "bootstrap over the seeds of each problem",
    ):
        assert definition in titles


def test_planners_are_compared_over_all_problems_that_all_of_them_have():
    _, every = samples("table1")
    runs = [run for run in every if run.axis("planner") in ("vin", "id-vin")]
    vin, implicit = summarise("table1", runs).aggregates
    assert (vin.planner, implicit.planner) == ("vin", "id-vin") and vin.better_than_first is None
    assert (vin.problems, vin.interquartile_mean.n, implicit.interquartile_mean.n) == (12, 60, 60)
    rates = sorted(100 * run.result.test_success_rate for run in runs if run.axis("planner") == "id-vin")
    assert implicit.interquartile_mean.value == pytest.approx(np.mean(rates[15:45]))
    fewer = [run for run in runs if (run.axis("planner"), run.axis("k")) != ("id-vin", 80)]
    assert {one.problems for one in summarise("table1", fewer).aggregates} == {8}
    alone = [run for run in runs if run.axis("planner") == "vin"]
    assert not summarise("table1", alone).aggregates, "nothing to compare"


def test_no_number_over_several_problems_is_of_several_versions_of_the_code():
    _, every = samples("table1")
    pair = [run for run in every if run.axis("planner") in ("vin", "id-vin")]
    old = Provenance(code="0" * 12)
    partly = [
        replace(run, result=run.result.model_copy(update={"provenance": old}))
        if (run.axis("planner"), run.axis("k")) == ("id-vin", 80)
        else run
        for run in pair
    ]
    summary = summarise("table1", partly, compare=[("id-vin", "vin")])
    assert {(one.problems, one.interquartile_mean.n) for one in summary.aggregates} == {(8, 40)}
    assert {one.better.n for one in summary.comparisons[:-1]} == {20}, "as many as the pairs have trials"
    fresh = [run for run in pair if run.axis("k") != 80]
    assert summary.aggregates == summarise("table1", fresh).aggregates


def test_twins_are_compared_where_only_others_are_done():
    _, every = samples("table1")
    done = ("vin", "symvin")  # two planners with results, of which no pair of twins is made
    runs = [run if run.axis("planner") in done else replace(run, result=None) for run in every]
    assert compared_twins(runs) == []
    (one, *_) = [one for one in compared_twins(every) if (one.first, one.second) == ("id-vin", "vin")]
    assert one.better is not None and 0 <= one.better.value <= 1


def test_planners_of_other_k_are_paired_by_the_mean_over_k_or_not_at_all():
    _, runs = samples("figure7")
    only = [run for run in runs if run.axis("map_size") == 49]
    ks = {name: {run.axis("k") for run in only if run.axis("planner") == name} for name in ("id-vin", "vin")}
    assert not ks["id-vin"] & ks["vin"]
    most = max(ks.values(), key=len)
    lost = next(run for run in only if run.axis("planner") in ks and ks[run.axis("planner")] == most)
    fewer = [replace(run, result=None) if run is lost else run for run in only]
    assert paired_difference(fewer, "id-vin", "vin").n == paired_difference(only, "id-vin", "vin").n - 1


def test_wide_adds_parameters_seconds_and_success_by_path_length():
    assert len(DISTANCE_BIN_NAMES) == len(DISTANCE_BINS)
    summary = summary_of("figure7", "smoke", wide=True)
    text = render(summary, "md")
    for column in ("training s", "parameters", "≤ 10 steps %", "> 160 steps %"):
        assert column in text and column not in render(summary_of("figure7", "smoke"), "md")
    table = list(csv.DictReader(io.StringIO(render(summary, "csv"))))
    row = table[0]
    assert float(row["success_at_most_10"]) == pytest.approx(float(row["success_rate"]), abs=1e-3)
    assert row["success_at_over_160"] == "" and float(row["train_seconds"]) > 0
    assert {int(row["parameters"]) for row in table} == {row.parameters for row in summary.rows}


def test_parameters_are_those_that_are_learnt():
    # VIN: 3x3 convolutions 2 -> 150 -> 1 (bias, none), q from reward and value 2 -> 40 without bias, and a policy.
    plain = PlannerSpec(core="vin")
    from planners.planner import build_planner

    learnt = [p for p in build_planner(plain, actions=4, kernel="reference").parameters() if p.requires_grad]
    assert count_parameters(plain, 4) == sum(p.numel() for p in learnt) > 1000
    assert count_parameters(plain.model_copy(update={"k_fwd": 80}), 4) == count_parameters(plain, 4)
    assert count_parameters(plain, 4) < count_parameters(plain, 8)


def test_json_has_everything_unrounded():
    document = json.loads(render(summary_of(compare=[("id-vin", "vin")]), "json"), parse_constant=pytest.fail)
    entry = beside_paper(samples("table1")[1])[0]
    assert document["beside_paper"][0]["ours"]["mean"] == entry.ours.mean
    assert document["beside_paper"][0]["paper"] == {"mean": 89.65, "deviation": 7.97, "n": 15}
    assert document["not_the_papers_scale"] == [] and len(document["comparisons"]) == 5


def test_the_budget_and_the_tested_checkpoint_are_told():
    assert "Trained for 60 epochs; tested: the last weights." in summary_of().warnings()
    overrides = ("budget.steps=5000", "training.tested_checkpoint=best")
    told = summarise("table1", sample_runs("table1", "smoke", overrides=overrides)[1]).training
    assert told == "Trained for 2 epochs or 5,000 steps, whichever is first; tested: the best on validation."


class Tex:
    """Reads as much of LaTeX as the fragment uses, and refuses what a compiler would refuse."""

    def __init__(self, text):
        assert text.isascii(), [c for c in text if not c.isascii()][:5]
        self.text = re.sub(r"(?m)^%.*\n", "", text)
        for fits_a_column in (r"[3]{#3}", r"\ifdim\width>\columnwidth\columnwidth\else\width\fi"):
            self.text = self.text.replace(fits_a_column, "")
        bare = re.sub(r"\\[\\{}%&$#_]", "", self.text)
        assert "%" not in bare and "#" not in bare
        depth = 0
        for character in bare:
            depth += {"{": 1, "}": -1}.get(character, 0)
            assert depth >= 0
        assert depth == 0 and bare.count("$") % 2 == 0
        math = "".join(bare.split("$")[::2])
        assert not set('_^~<>|"') & set(math.replace(r"\_", "")), "must be escaped outside mathematics"
        opened = []
        for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", self.text):
            if kind == "begin":
                opened.append(name)
            else:
                assert opened.pop() == name
        assert not opened
        known = {
            "begin", "end", "centering", "providecommand", "toprule", "midrule", "bottomrule", "hline", "caption",
            "label", "textit", "pm", "leq", "newcommand", "resizebox", "small", "setlength", "tabcolsep", "vspace",
            "par", "smallskip", "footnotesize", "raggedright", "shortstack", "textbf", "times",
        }  # fmt: skip
        self.names = re.findall(r"\\newcommand\{\\([A-Za-z]+)\}\{", self.text)
        assert set(re.findall(r"\\([A-Za-z]+)", self.text)) <= known | set(self.names)

    def tables(self):
        for align, body in re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", self.text, re.S):
            lines = [line.strip() for line in body.splitlines() if line.rstrip().endswith(r"\\")]
            for line in lines:
                cells = re.split(r"(?<!\\)&", line.removesuffix(r"\\"))
                assert len(cells) == len(align) and not line.startswith(("[", "*"))
            yield lines


@pytest.mark.parametrize("profile", [None, "laptop"])
def test_tex_is_a_fragment_that_compiles(profile, tmp_path):
    summary = summary_of("table1", profile, wide=True, compare=[("id-vin", "vin")])
    text = render(summary, "tex")
    tables = list(Tex(text).tables())
    assert [len(lines) - 1 for lines in tables] == [6, 24, 5, 6, len(summary.rows)]
    assert r"\documentclass" not in text and r"\usepackage" not in text
    diverged = [line for line in tables[1] if r"\textit{" in line]
    assert len(diverged) == sum(bool(entry.diverged) for entry in summary.entries)
    assert ("Not the paper's scale" in text) == (profile == "laptop")
    compiler = shutil.which("tectonic") or shutil.which("pdflatex")
    if compiler is not None:
        (tmp_path / "numbers.tex").write_text(render(summary, "macros"))
        (tmp_path / "results.tex").write_text(text)
        start = r"\documentclass[twocolumn]{article}\usepackage{graphicx}\input{numbers}"
        (tmp_path / "paper.tex").write_text(rf"{start}\begin{{document}}\input{{results}}\end{{document}}")
        ran = subprocess.run([compiler, "paper.tex"], cwd=tmp_path, check=True, capture_output=True, timeout=120)
        assert b"Overfull" not in ran.stdout, "it fits a column of two"


def test_the_papers_layout_has_planners_down_and_problems_across():
    layout = summary_of().layout
    assert layout.header == ["planner", "18x18 Mani.", "36x36 Mani.", "18x18 Workspace Mani.", "15x15 Visual Nav."]
    assert [line[0].text for line in layout.lines] == [
        "VIN", "SymVIN", "ConvGPPN", "ID-VIN", "ID-SymVIN", "ID-ConvGPPN",
    ]  # fmt: skip
    for column in range(1, 5):
        means = [line[column].text.partition(" ")[0] for line in layout.lines]
        best = max((mean for mean in means if mean != "OOM"), key=float)
        bold = [line[column].look.startswith("bold") for line in layout.lines]
        assert bold == [mean == best for mean in means]
    entry = next(e for e in summary_of().entries if (e.planner, e.map_size) == ("id-symvin", 36))
    assert layout.lines[4][2].text == str(entry.ours)
    assert any("italic" in cell.look for line in layout.lines for cell in line)


def test_a_layout_of_fewer_trials_than_planned_says_in_how_many_cells():
    _, runs = samples("table1", None)
    assert all(run.completed for run in runs if run.axis("planner") == "vin"), "else another cell lacks some, too"
    one = [run for run in runs if run.axis("planner") in ("vin", "id-vin")]
    assert "planned" not in summarise("one", one).layout.title
    fewer = [replace(run, result=None) if run.axis("seed") == 1 and run.axis("map_size") == 36 else run for run in one]
    assert summarise("one", fewer).layout.title.endswith("; 2 of 8 cells of fewer trials than planned")


def test_of_one_problem_the_layout_has_k_across():
    _, runs = samples("table1", None)
    one = [run for run in runs if run.axis("map_size") == 36]
    assert summarise("one", one).layout.header == ["planner", "K = 30", "K = 50", "K = 80"]
    assert "36x36 Mani." in summarise("one", one).layout.title
    assert summarise("one", [run for run in one if run.axis("planner") == "vin"]).layout is None


def test_columns_are_chosen_by_their_first_words(storage, capsys):
    words = ["table", str(SWEEPS / "figure7.yaml"), "--profile", "smoke", "--storage", str(storage)]
    assert main([*words, "--columns", "success,param,notes"]) == 0
    text = capsys.readouterr().out.split("\n\n")[-1]
    assert "parameters" in text and "SPL" not in text and "backward" not in text
    assert main([*words, "--columns", "sucess"]) == 2
    assert "did you mean 'success'?" in capsys.readouterr().err


def test_every_number_has_a_macro_of_its_own():
    summary = summary_of(wide=True, compare=[("id-vin", "vin")])
    text = render(summary, "macros")
    names = Tex(text).names
    assert len(names) == len(set(names)) == text.count(r"\newcommand")
    values = dict(re.findall(r"\\newcommand\{\\([A-Za-z]+)\}\{(.*)\}", text))
    row = next(row for row in summary.rows if list(row.axes.values())[:4] == ["id-symvin", "manipulation", 36, 80])
    place = "TableOneManipulationSizeThreeSixIdSymvinKEightZero"
    assert values[f"{place}SuccessMean"] == f"{100 * row.success_rate:.1f}"
    assert values[f"{place}Trials"] == "5" and values[f"{place}SuccessUptoOneZero"] != "---"
    assert values["TableOneIdSymvinManipulationSizeThreeSixAllKPaper"] == "98.53"
    assert re.fullmatch(r"\$[+-][0-9.]+\$", values["TableOneIdVinMinusVinDifferenceLow"])
    assert "OOM" in values.values() or not any(row.outcomes.get("OUT_OF_MEMORY") == 5 for row in summary.rows)


def test_every_quantity_has_a_macro():
    named = [value for value in vars(columns).values() if isinstance(value, tuple | Quantity)]
    every = [one for value in named for one in (value if isinstance(value, tuple) else [value])]
    every = [one for one in every if isinstance(one, Quantity)]
    assert len(every) > 10 and set(every) == set(columns.quantities(wide=True))
    assert len({one.macro for one in every}) == len({one.heading for one in every}) == len(set(every))


def test_macros_of_names_that_differ_in_signs_alone_do_not_clash():
    _, runs = samples("figure7", "smoke")
    clash = [
        replace(run, trial=replace(run.trial, axes={**run.trial.axes, "planner": name}))
        for run, name in zip(runs, ["id-vin", "id_vin"] * len(runs), strict=False)
    ]
    names = Tex(render(summarise("a.b", clash), "macros")).names
    assert len(names) == len(set(names)) and any("No" in name for name in names)


def test_tables_fit_a_terminal_where_they_can():
    summary = summary_of("figure7", "smoke")
    text = render(summary, "text").split("\n\n")[-1].splitlines()
    upper, lower = text[1].split(), text[2].split()
    assert upper == ["success", "SPL", "forward", "backward", "peak"]
    assert lower == ["planner", "size", "K", "%", "%", "n", "ms", "ms", "MiB", "notes"]
    assert all(len(line) <= 80 for line, row in zip(text[4:], summary.rows, strict=True) if not notes(row))


def test_what_latex_would_trip_over_is_escaped():
    assert escaped("a_b & 50 % #1 {x} ~^") == r"a\_b \& 50 \% \#1 \{x\} \textasciitilde{}\textasciicircum{}"
    assert escaped("≤ 10 %") == r"$\leq$ 10 \%"
    assert escaped("-1.5 [-2.0, +3]") == "$-1.5$ [$-2.0$, $+3$]"
    assert escaped("id-vin 1e-05") == "id-vin 1e-05"


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("storage")
    for run in samples("figure7", "smoke")[1]:
        put_result(Storage(folder).trial(run.trial.trial_id).path, run.result)
    return folder


def test_the_command_compares_and_widens(storage, capsys):
    options = [str(SWEEPS / "figure7.yaml"), "--profile", "smoke", "--storage", str(storage)]
    assert main(["table", *options, "--wide", "--compare", "id-vin,vin", "--format", "md"]) == 0
    text = capsys.readouterr().out
    assert "| id-vin | vin |" in text and "parameters" in text and "Not the paper's scale" in text
    assert main(["table", *options, "--compare", "id-vin,von"]) == 2
    assert "did you mean 'vin'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["table", *options, "--compare", "id-vin"])
    assert "expected two planners" in capsys.readouterr().err
