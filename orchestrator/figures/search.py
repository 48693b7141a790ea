"""Charts of a search, as Optuna's users know them: history, importances, slices, intermediate values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.figures.parts import NothingToDraw, label_below
from orchestrator.figures.style import BLUE, MUTED, VERMILION, left_of, panels
from orchestrator.sweep.search_space import SearchSpec
from orchestrator.tables.optuna_study import importances as importances_of
from orchestrator.tables.studies import Study, Tried
from orchestrator.words import shown


def _with_values(study: Study) -> list[Tried]:
    return [one for one in study.tried if one.value is not None]


def _needed(name: str, studies: Sequence[Study]) -> list[Study]:
    found = [study for study in studies if _with_values(study)]
    if not found:
        raise NothingToDraw(f"{name}: no suggestion has finished an epoch")
    return found


def _label(axes: Axes, study: Study) -> None:
    if left_of(axes):
        axes.set_ylabel(f"{study.metric.replace('_', ' ')} (%)")


def _points(axes: Axes, study: Study, place: Callable[[Tried], float]) -> None:
    """Draw the suggestions as points: hollow where one was stopped, the best in another colour."""
    for one in _with_values(study):
        colour = VERMILION if one is study.best else BLUE if one.state == "complete" else MUTED
        face = colour if one.state == "complete" else "white"
        axes.plot(place(one), 100 * (one.value or 0.0), "o", color=colour, markerfacecolor=face, zorder=3)
    _label(axes, study)


def history(search: SearchSpec, studies: Sequence[Study], width: float) -> Figure:
    """The metric of each suggestion, in the order in which they were made, and the best so far."""
    found = _needed("history", studies)
    figure, every = panels([study.name for study in found], width, height=2.0)
    for axes, study in zip(every, found, strict=True):
        done = [one for one in _with_values(study) if one.state == "complete"]
        best = list(accumulate((100 * (one.value or 0.0) for one in done), max))
        axes.step([one.number + 1 for one in done], best, where="post", color=VERMILION)
        _points(axes, study, lambda one: one.number + 1)
        label_below(axes, "suggestion")
    return figure


def importances(search: SearchSpec, studies: Sequence[Study], width: float) -> Figure:
    """The share of the metric's variance that each setting explains."""
    found = {study.name: shares for study in studies if (shares := importances_of(search, study))}
    if not found:
        raise NothingToDraw("importances: no study has four suggestions that were trained to the end")
    figure, every = panels(list(found), width, height=0.9 + 0.22 * len(search.space), share_y=False)
    for axes, shares in zip(every, found.values(), strict=True):
        names, values = list(shares)[::-1], list(shares.values())[::-1]
        axes.barh(range(len(names)), values, color=BLUE, height=0.6)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlim(0, 1)
        label_below(axes, "importance (fANOVA)")
    return figure


def slices(search: SearchSpec, studies: Sequence[Study], width: float) -> Figure:
    """The metric over each setting."""
    found = _needed("slices", studies)
    places = [(study, axis) for study in found for axis in search.space]
    titles = [f"{study.name}: {axis}" if len(found) > 1 else axis for study, axis in places]
    figure, every = panels(titles, width, len(search.space), height=1.8, share_x=False)
    for axes, (study, axis) in zip(every, places, strict=True):
        choices = {shown(value): number for number, value in enumerate(search.space[axis].choices or ())}
        _points(axes, study, _place(axis, choices))
        if choices:
            axes.set_xticks(list(choices.values()), list(choices))
            axes.set_xlim(-0.5, len(choices) - 0.5)
        else:
            axes.set_xscale("log" if search.space[axis].log else "linear")
    return figure


def _place(axis: str, choices: dict[str, int]) -> Callable[[Tried], float]:
    def place(one: Tried) -> float:
        value = one.settings[axis]
        return float(choices[shown(value)] if choices else value)  # type: ignore[arg-type]

    return place


def intermediate(search: SearchSpec, studies: Sequence[Study], width: float) -> Figure:
    """The metric after each epoch, a line for each suggestion: the best, those that ended, those that were stopped."""
    found = _needed("intermediate", studies)
    figure, every = panels([study.name for study in found], width, height=2.0)
    for axes, study in zip(every, found, strict=True):
        for one in study.tried:
            best, ended = one is study.best, one.state == "complete"
            axes.plot(
                np.arange(1, len(one.reached) + 1),
                100 * np.array(one.reached),
                "-" if ended else "--",
                marker="o" if len(one.reached) == 1 else "",
                color=VERMILION if best else BLUE if ended else MUTED,
                alpha=1.0 if best else 0.45,
                linewidth=1.6 if best else 0.9,
                zorder=3 if best else 2,
            )
        _label(axes, study)
        label_below(axes, "epoch")
    return figure
