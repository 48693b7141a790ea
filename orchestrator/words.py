"""How times, sizes, trials and errors are said to people: in one place, so that they are said the same everywhere."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol


class Placed(Protocol):
    """A trial with its place in a sweep."""

    @property
    def axes(self) -> Mapping[str, Any]:
        """Where it stands: planner, task, map_size, k, seed, and further axes of the grid."""


class Outcome(Protocol):
    """How a trial has ended; a `TrialResult`."""

    @property
    def status(self) -> str:
        """COMPLETED, OUT_OF_MEMORY, FAILED or CANCELLED."""

    @property
    def reason(self) -> str:
        """Why, where it is not COMPLETED."""

    @property
    def test_success_rate(self) -> float | None:
        """Share of starts that arrive, 0..1."""

    @property
    def metrics(self) -> Mapping[str, float | None]:
        """Of a system, what it is judged by."""

    @property
    def trial_diverged(self) -> bool:
        """Whether that is under 20 %."""

    @property
    def forward_diverged(self) -> bool:
        """Whether the forward iteration left its fixed point."""

    @property
    def backward_stalled(self) -> bool:
        """Whether the adjoint iteration stands still."""


def duration(seconds: float) -> str:
    """Return seconds as people say them: "45 s", "3 min 20 s", "5 h 12 min", "2 d 4 h"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def size_words(count: float) -> str:
    """Return bytes as people say them: "12.3 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: "1 trial", "3 trials", "no trial"."""
    return f"{count or 'no'} {noun}{'s' if count > 1 else ''}"


def trial_name(trial: Placed) -> str:
    """Return a trial's name for people, e.g. "id-vin navigation-15 K=30 seed=0"."""
    return place_name(trial.axes)


def place_name(place: Mapping[str, Any]) -> str:
    """Return the name of a place in a sweep for people: "id-vin navigation-15 K=30", for all seeds without one."""
    axes = dict(place)
    name = f"{axes.pop('planner')} {axes.pop('task')}"
    if "map_size" in axes:  # as a planner has
        name += f"-{axes.pop('map_size')} K={axes.pop('k')}"
    return " ".join([name, *(f"{axis.rpartition('.')[2]}={shown(value)}" for axis, value in sorted(axes.items()))])


def shown(value: object) -> str:
    """Return a setting as people read it: of a number's digits, four say enough."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def cell_name(place: Mapping[str, Any], varying: Collection[str]) -> str:
    """Return the name of a cell among others, without the task and size that all of them have: "id-vin K=30"."""
    if {"task", "map_size"} & set(varying) or "map_size" not in place:
        return place_name(place)
    return place_name({**place, "task": "", "map_size": ""}).replace(" - ", " ", 1)


def outcome(result: Outcome) -> str:
    """Return how a trial ended, in a few words."""
    if result.status != "COMPLETED":
        return f"{result.status}: {result.reason}" if result.reason else result.status
    if result.metrics:
        numbers = [f"{name} {value:.3g}" for name, value in result.metrics.items() if value is not None]
        return ", ".join([*numbers, *(["diverged"] if result.trial_diverged else [])])
    rate = "no success rate" if result.test_success_rate is None else f"success {100 * result.test_success_rate:.1f} %"
    said = {
        "under 20 %": result.trial_diverged,
        "forward iteration diverged": result.forward_diverged,
        "adjoint iteration stalled": result.backward_stalled,
    }
    return ", ".join([rate, *(words for words, true in said.items() if true)])


def first_line(error: BaseException | str) -> str:
    """Return the first line of what an error says, or of a text; an error's kind where it says nothing."""
    return _lines(error)[0]


def last_line(error: BaseException | str) -> str:
    """Return the last line of what an error says, or of a text: of one that passes another on, the other's."""
    return _lines(error)[-1]


def _lines(error: BaseException | str) -> list[str]:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines or ["" if isinstance(error, str) else type(error).__name__]
