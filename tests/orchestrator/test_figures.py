"""Figures: every one draws, says what the runs say, and prints."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from samples import SWEEPS, sample_runs

from orchestrator.figures.parts import NothingToDraw
from orchestrator.figures.registry import DEFAULT_FIGURES, FIGURES, OF_SYSTEMS, SEARCH_FIGURES, draw
from orchestrator.figures.style import (
    NAMED_OF_MORE,
    Pen,
    handle,
    inline_svg,
    legend,
    panels,
    pens,
    picture,
    style,
    write_picture,
)
from orchestrator.sweep.figure_names import FIGURE_NAMES
from orchestrator.sweep.files import load_sweep
from orchestrator.tables.records import cell_of, usable, usable_by_cell
from orchestrator.tables.summary import summarise

DRAWN = [
    ("figure2", "success"),
    ("figure6", "runtime"),
    ("figure7", "curves"),
    ("figure7", "seconds"),
    ("spt", "residuals"),
    ("figure10", "generalisation"),
    ("figure11", "backward"),
    ("figure12", "solvers"),
    ("figure15", "jacobian"),
    ("figure7", "distance"),
    ("factorial", "lengths"),
    ("factorial", "detours"),
    ("far_axes", "cost"),
]
FEW = ("grid.seed=[0, 1]",)
samples = cache(sample_runs)


@pytest.mark.slow
def test_every_figure_is_drawn_here_and_every_sweep_asks_for_figures_that_exist():
    assert {name for _, name in DRAWN} == {*FIGURES} - {*OF_SYSTEMS} and {*FIGURES, *SEARCH_FIGURES} == set(
        FIGURE_NAMES
    )
    asked = {name for path in SWEEPS.glob("*.yaml") for name in load_sweep(path).figures}
    assert asked <= set(FIGURES) and set(DEFAULT_FIGURES) <= set(FIGURES)


@pytest.mark.slow
@pytest.mark.parametrize(("sweep", "name"), DRAWN)
@pytest.mark.parametrize("width", [3.25, 7.0])
def test_a_figure_fits_its_width_and_no_text_leaves_it(sweep, name, width):
    _, runs = samples(sweep, overrides=FEW)
    figure = draw(name, runs, width)
    with style():
        figure.draw_without_rendering()
        assert figure.get_figwidth() == width
        inside = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    canvas = figure.bbox
    assert inside.x0 >= -1 and inside.y0 >= -1
    assert inside.x1 <= canvas.x1 + 1 and inside.y1 <= canvas.y1 + 1


@pytest.mark.parametrize("name", sorted({*FIGURES} - {*OF_SYSTEMS}))
def test_nothing_to_draw_is_said(name):
    _, runs = samples("figure10", "smoke")
    empty = [replace(run, result=None, curves=[], evaluations=[]) for run in runs]
    with pytest.raises(NothingToDraw, match=f"^{name}: no "):
        draw(name, empty)


def test_success_shows_means_deviations_and_missing_dots():
    _, runs = samples("figure2")
    figure = draw("success", runs)
    panel = figure.axes[0]
    assert [axes.get_title("left") for axes in figure.axes] == ["15x15", "27x27", "49x49"]
    line, _, _ = next(c for c in panel.containers if c.lines[0].get_marker() == "o").lines
    rates = [
        np.mean([100 * r.result.test_success_rate for r in runs if _at(r, "vin", 15, k) and r.completed])
        for k in (30, 50, 80)
    ]
    np.testing.assert_allclose(line.get_ydata(), rates)
    crosses = sum(line.get_marker() == "x" for axes in figure.axes for line in axes.lines)
    cells = {tuple(run.axis(a) for a in ("planner", "map_size", "k")) for run in runs if run.out_of_memory}
    assert crosses == len(cells) > 0
    assert "out of memory" in [text.get_text() for text in figure.legends[0].get_texts()]


def _at(run, planner, size, k):
    return (run.axis("planner"), run.axis("map_size"), run.axis("k")) == (planner, size, k)


def test_runtime_keeps_layers_and_iterations_apart():
    _, runs = samples("figure6", overrides=FEW)
    figure = draw("runtime", runs)
    labels = {axes.get_xlabel() for axes in figure.axes} - {""}
    assert labels == {r"$K_{\mathrm{layer}}$", r"$K_{\mathrm{fwd}}$"}
    bottom = figure.axes[9]  # backward, implicit, 15x15
    for container in bottom.containers:
        times = container.lines[0].get_ydata()
        assert max(times) < 1.05 * min(times)


@pytest.mark.slow
def test_curves_have_bands_over_seeds():
    _, runs = samples("figure7")
    figure = draw("curves", runs)
    _, single = samples("figure7", overrides=("grid.seed=[0]",))
    band = figure.axes[0].collections[0].get_paths()[0].get_extents()
    flat = draw("curves", single).axes[0].collections[0].get_paths()[0].vertices
    assert band.height > 1
    upper, lower = flat[1 : len(flat) // 2], flat[len(flat) // 2 + 1 : -1][::-1]
    np.testing.assert_allclose(upper[:, 1][: len(lower)], lower[:, 1][: len(upper)], atol=1e-9)


@pytest.mark.parametrize("name", ["curves", "seconds"])
def test_a_task_without_validation_maps_has_no_curves_and_costs_no_others(name):
    _, runs = samples("figure7", "smoke")

    def unvalidated(run):
        return replace(run, curves=[record | {"valid_success_rate": math.nan} for record in run.curves])

    with pytest.raises(NothingToDraw, match=f"^{name}: no trial has validation maps"):
        draw(name, [unvalidated(run) for run in runs])
    some = [unvalidated(run) if run.axis("map_size") == 7 else run for run in runs]
    assert [axes.get_title("left") for axes in draw(name, some).axes if axes.get_visible()] == ["11x11"]


def test_a_seed_that_was_stopped_does_not_cut_a_curve_short():
    runs = [run for run in samples("figure7", overrides=FEW)[1] if run.completed]

    def lengths(runs) -> list[int]:
        return [len(line.get_xdata()) for axes in draw("curves", runs).axes for line in axes.lines]

    def stopped(run):
        assert run.result is not None and len(run.curves) > 1
        return replace(run, result=run.result.model_copy(update={"status": "CANCELLED"}), curves=run.curves[:1])

    assert lengths([stopped(run) if run.axis("seed") == 1 else run for run in runs]) == lengths(runs)
    assert set(lengths([stopped(run) for run in runs])) == {1}


def test_generalisation_says_how_many_steps_were_taken():
    def told(name):
        return {
            text.get_text() for text in draw("generalisation", samples(name, overrides=FEW)[1]).legends[0].get_texts()
        }

    assert {"contractive (K = 80)", "VIN (K = 50)", "ID-VIN (K = 80)"} <= told("figure10")
    assert {"contractive (K = 60 to 396)", "VIN (K = 60 to 396)"} <= told("figure10_grown")


def test_trials_that_were_trained_with_other_k_are_not_averaged():
    two = ("planners.id-vin.grid={k: [8, 16]}",)
    panels = draw("generalisation", samples("figure10", "smoke", overrides=two)[1]).axes
    assert [axes.get_title("left") for axes in panels] == [f"trained on 7x7, K = {k}" for k in (8, 16)]
    assert len(draw("generalisation", samples("figure10", "smoke")[1]).axes) == 1


def test_no_mean_is_of_some_of_the_sets_of_a_size():
    two = ("test_on=[{map_size: 11}, {map_size: 11, seed: 7}, {map_size: 13}]",)
    _, runs = samples("figure10", "smoke", overrides=two)

    def sizes(runs) -> list[list[float]]:
        return [list(line.lines[0].get_xdata()) for line in draw("generalisation", runs).axes[0].containers]

    def stale(test):
        return test.model_copy(update={"provenance": test.provenance.model_copy(update={"code": "0" * 12})})

    def without(run, number):
        return replace(run, evaluations=[test for at, test in enumerate(run.evaluations) if at != number])

    assert all(line == [11, 13] for line in sizes(runs))
    for partly in (
        [without(run, number % 2) for number, run in enumerate(runs)],
        [replace(run, evaluations=[stale(run.evaluations[0]), *run.evaluations[1:]]) for run in runs],
    ):
        assert all(line == [13] for line in sizes(partly))
    with pytest.raises(NothingToDraw, match=r"generalisation: no .* all `test_on` maps of one size"):
        draw("generalisation", [without(without(run, 2), 0) for run in runs])
    mixed = [replace(run, evaluations=[stale(run.evaluations[0]), run.evaluations[1]]) for run in runs]
    with pytest.raises(NothingToDraw, match="of one size by one code: some tests are of other code, and idp run makes"):
        draw("generalisation", mixed)
    for shown, told in ((runs, False), (mixed, True)):
        assert any("Tests on further maps" in line for line in summarise("few", shown).warnings()) == told


@pytest.mark.parametrize("name", ["lengths", "detours"])
def test_lengths_are_of_trials_that_were_tested_on_all_maps(name):
    _, runs = samples("factorial", "smoke")
    kept, partly = runs[0], replace(runs[0], evaluations=runs[0].evaluations[1:])
    draw(name, [kept])
    with pytest.raises(NothingToDraw, match=f"{name}: no .* all `test_on` maps"):
        draw(name, [partly])


def test_results_of_other_code_are_left_out_and_shown_only_alone():
    _, fresh = samples("figure11", "smoke")
    _, stale = samples("figure11", "smoke", code="0" * 12)
    assert usable([*stale, *fresh[:2]]) == fresh[:2]
    assert usable(stale) == stale
    assert usable([*stale[:1], *samples("figure11", "smoke", code="1" * 12)[1]])[0].result.provenance.code == "1" * 12


def test_a_figure_shows_in_each_cell_what_the_tables_use_there():
    one_seed = ("planners.contractive.grid.seed=[0]",)
    fresh, stale = (
        [run for run in samples("figure6", "laptop", code=code, overrides=one_seed)[1] if run.completed]
        for code in (None, "0" * 12)
    )
    assert len({cell_of(run) for run in fresh}) == len(fresh) > 20
    mixed = [*fresh[:2], *stale[2:]]
    assert usable_by_cell([*stale, *fresh[:2]]) == mixed

    def drawn(runs) -> list[int]:
        return [sum(len(line.get_xdata()) for line in axes.lines) for axes in draw("runtime", runs).axes]

    assert drawn(mixed) == drawn(fresh) and sum(drawn(fresh)) > 0


def test_pens_differ_and_tell_the_adjoint_apart_without_colour():
    planners = [(f"p{i}", core, adjoint) for i, core in enumerate(["vin", "symvin", "conv_gppn", "contractive", "spt"])
                for adjoint in ["unrolled", "implicit"]]  # fmt: skip
    given = pens([(name + adjoint, core, adjoint) for name, core, adjoint in planners])
    without_colour = {(pen.marker, pen.line, pen.filled) for pen in given.values()}
    assert len(without_colour) == len(planners)
    many = pens([(f"v{i}", "vin", "implicit") for i in range(20)])
    assert len({(p.colour, p.marker, p.line) for p in many.values()}) == 20
    brightness = [sum(to_rgb(pen.colour)) for pen in many.values()]
    assert brightness == sorted(brightness, reverse=True), "shades tell where in their order they are"
    kin = pens([("a", "vin", "implicit"), ("b", "shortest_path", "implicit"), ("c", "reachability", "implicit")])
    assert len({pen.colour for pen in kin.values()}) == 3 and {pen.line for pen in kin.values()} == {"-"}
    cores = ["vin", "symvin", "conv_gppn", "contractive", "spt", "spt", "vin"]
    some = pens([(f"p{i}", core, "implicit") for i, core in enumerate(cores)])
    assert len({pen.colour for pen in some.values()}) == 7, "who has no colour of its own has one that nobody has"


def test_labels_of_seconds_have_room_and_titles_break_between_words():
    _, runs = samples("table1", None, overrides=FEW)
    figure = draw("seconds", runs)
    with style():
        figure.draw_without_rendering()
    for axes in figure.axes:
        places = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
        shown = sorted((p.x0, p.x1) for p in places if axes.bbox.x0 - 1 <= (p.x0 + p.x1) / 2 <= axes.bbox.x1 + 1)
        assert all(left[1] < right[0] for left, right in pairwise(shown)), shown
        assert not any(line.endswith("=") for line in axes.get_title(loc="left").split("\n"))


@pytest.mark.slow
def test_files_are_repeatable_searchable_and_hold_no_type_3_fonts(tmp_path):
    _, runs = samples("figure11", "smoke")
    files = []
    for attempt in ("a", "b"):
        figure = draw("backward", runs, 3.25)
        with style():
            files.append([picture(figure, format) for format in ("svg", "png", "pdf")])
        del attempt
    assert files[0] == files[1]
    svg, png, pdf = files[0]
    assert b">ID-SymVIN</text>" in svg and png.startswith(b"\x89PNG")
    assert b"/Type3" not in pdf and b"/FontFile2" in pdf
    with style(), pytest.raises(ValueError, match=r"expected a name ending in \.svg, \.png, \.pdf"):
        write_picture(figure, tmp_path / "figure.gif")


def test_inline_svgs_are_xml_with_ids_of_their_own_and_the_pages_colours():
    _, runs = samples("figure11", "smoke")
    figure = draw("backward", runs)
    with style():
        texts = [inline_svg(figure, name, "a < b") for name in ("one", "two")]
    found = [{element.get("id") for element in ElementTree.fromstring(text).iter()} - {None} for text in texts]
    assert found[0] and not found[0] & found[1]
    for text in texts:
        assert "var(--ink)" in text and "var(--grid)" in text and "#1d1f24" not in text
        assert "<metadata" not in text and "http" not in text.replace("http://www.w3.org/", "")


def test_what_differs_on_a_further_axis_is_not_averaged():
    _, runs = samples("figure11", "smoke")
    labels = [text.get_text() for text in draw("success", runs).legends[0].get_texts()]
    assert len(labels) == 18 and "ID-VIN solver=forward solver_bwd=anderson k_bwd=8" in labels
    residuals = draw("residuals", samples("figure12", "smoke")[1])
    assert [axes.get_title("left") for axes in residuals.axes] == [
        "7x7, forward solve, forward",
        "7x7, forward solve, anderson",
        "7x7, backward solve, forward",
        "7x7, backward solve, anderson",
    ]
    assert {len(line.get_xdata()) for axes in residuals.axes for line in axes.lines} == {8}


@pytest.mark.parametrize(
    ("sweep", "name", "count"), [("figure11", "backward", 3), ("figure12", "solvers", 6), ("figure12", "residuals", 4)]
)
@pytest.mark.parametrize("axis", ["training.learning_rate=[0.001, 0.01]", "k=[8, 12]"])
def test_charts_of_the_solvers_average_nothing_but_seeds(sweep, name, count, axis):
    _, runs = samples(sweep, "smoke", overrides=(f"grid.{axis}",))
    figure, one = draw(name, runs), draw(name, samples(sweep, "smoke")[1])
    by_k = axis.startswith("k=") and name == "residuals"  # which shows the largest K alone
    lines = [sum(len(axes.lines) + len(axes.patches) for axes in drawn.axes) for drawn in (figure, one)]
    assert lines == [lines[1] * (1 if by_k else 2), lines[1]] and len(one.axes) == count
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    texts += [axes.get_title("left").replace("\n", " ") for axes in figure.axes]
    assert by_k or any("K = 12" in text or "learning_rate=0.01" in text for text in texts)


def test_the_chart_of_the_penalty_keeps_other_axes_apart():
    _, runs = samples("figure15", "smoke", overrides=("grid.training.learning_rate=[0.001, 0.01]",))
    figure = draw("jacobian", runs)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[0] == "no penalty: ID-VIN learning_rate=0.001" and len(texts) == 4
    assert all(len(axes.containers) == 4 for axes in figure.axes)


def test_of_many_suggestions_some_are_named_from_the_first_to_the_last():
    figure, _ = panels(["a"], 7.0)
    legend(figure, [handle(Pen("#000000", "o"), f"id-vin {number}") for number in range(50)], 7.0)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(texts) == NAMED_OF_MORE and (texts[0], texts[-2]) == ("ID-VIN 0", "ID-VIN 49")
    assert texts[-1] == f"and {50 - NAMED_OF_MORE + 1} between them"
