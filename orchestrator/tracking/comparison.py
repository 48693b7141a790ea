"""The page of MLflow's that compares a sweep's cells: which runs, which charts, in which order.

MLflow keeps a view that somebody shares as a tag of the experiment, and opens it by its key in the address. This one is
written as MLflow 3 writes them; where a version does not know it, its page opens with charts of its own choice.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

_TAG = "mlflow.sharedViewState."
_CELLS, _AXES, _COSTS, _MORE = "cells", "axes", "costs", "more"
_SECTIONS = {
    _CELLS: ("Cells: success, divergence, runtime", 3),
    _AXES: ("Settings", 2),
    _COSTS: ("Time and memory", 2),
    _MORE: ("Model metrics", 3),
}
"""Names, and how many charts stand side by side. The last name is MLflow's own: what has no chart here goes there."""
_BARS = {
    **dict.fromkeys(("test_success_rate", "trials_diverged", "train_seconds"), _CELLS),
    **dict.fromkeys(("forward_seconds", "backward_seconds", "peak_bytes", "trials_out_of_memory"), _COSTS),
}
_MOST_BARS = 300
_LOWEST, _HIGHEST = 360, 720
_COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#aa4499", "#e69f00", "#56b4e9", "#5c6370"),
    *("#882255", "#117733", "#332288", "#999933", "#661100"),
)
"""Of the planners, bar after bar: those of the figures first."""


def colour_of(number: int) -> str:
    """Return the colour of a sweep's n-th planner in MLflow's charts."""
    return _COLOURS[number % len(_COLOURS)]


def comparison(variant: str, axes: Sequence[str], cells: int, searched: str | None = None) -> dict[str, str]:
    """Return the tags of an experiment that hold the page.

    Args:
        variant: Of the sweep.
        axes: What tells its cells apart.
        cells: How many there are.
        searched: The metric of a search, by which its cells are put in order; theirs on the test maps are not shown.
    """
    return {f"{_TAG}{key_of(variant)}": json.dumps(_state(variant, list(axes), cells, searched), separators=(",", ":"))}


def key_of(variant: str) -> str:
    """Return the key of a variant's page."""
    return f"idp{variant}"


def address_of(experiment: str, variant: str | None) -> str:
    """Return the path and fragment of a page below MLflow's address: a variant's comparison, else the list of runs."""
    # Without its first word, MLflow's pages open on its views for language models.
    words = "workflowType=machine_learning"
    if variant is not None:
        words += f"&compareRunsMode=CHART&viewStateShareKey={key_of(variant)}"
    return f"/#/experiments/{experiment}/runs?{words}"


def _state(variant: str, axes: list[str], cells: int, searched: str | None) -> dict[str, Any]:
    first = searched or "test_success_rate"
    bars = {first: _CELLS, **{name: section for name, section in _BARS.items() if name != "test_success_rate"}}
    charts = [_chart("BAR", name, section, metricKey=name) for name, section in bars.items()]
    charts += [
        _chart("PARALLEL", "settings", _AXES, selectedParams=axes, selectedMetrics=[first]),
        _chart("SCATTER", "trade", _AXES, xaxis=_metric("train_seconds"), yaxis=_metric(first)),
    ]
    order = {"orderByKey": f"metrics.`{first}`", "orderByAsc": False} if searched else {}
    return {
        "searchFilter": f"tags.`idp.kind` = 'mean' AND tags.`idp.variant` = '{variant}'",
        **{"orderByKey": "attributes.start_time", "orderByAsc": True, **order},
        "runsHiddenMode": "SHOW_ALL",
        "hideEmptyCharts": True,
        "runListHidden": True,  # the legends have it, and MLflow's assistant takes a quarter of the page
        "isAccordionReordered": True,
        "selectedColumns": [
            *(f"metrics.`{name}`" for name in (first, f"{first}_std", "trials", "trials_diverged", "train_seconds")),
            *(f"params.`{axis}`" for axis in axes),
        ],
        "compareRunCharts": charts,
        "compareRunSections": [
            {
                "uuid": section, "name": name, "display": section != _MORE, "isReordered": False,
                "columns": columns, "cardHeight": min(_HIGHEST, max(_LOWEST, 100 + 12 * cells)),
            }
            for section, (name, columns) in _SECTIONS.items()
        ],
    }  # fmt: skip


def _chart(kind: str, uuid: str, section: str, **more: Any) -> dict[str, Any]:
    return {
        "type": kind,
        "uuid": f"idp-{uuid}",
        "metricSectionId": section,
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": _MOST_BARS,
        **more,
    }


def _metric(name: str) -> dict[str, str]:
    return {"key": name, "type": "METRIC"}
