"""The picture of a run's terminal: `python docs/terminal_picture.py` draws what the display itself wrote, as SVG.

The display is the real one, told of the quickstart's four trials, with success rates as README has them and times and
epochs like theirs; a test draws it again and compares the two.
"""

from __future__ import annotations

import io
import re
from html import escape
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from orchestrator.campaign import progress as display
from orchestrator.storage.results import TrialResult
from orchestrator.storage.standing import Standing
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.specs import expand
from orchestrator.terminal import Printable
from orchestrator.words import outcome, trial_name

PICTURE = Path(__file__).parent / "images" / "terminal.svg"
SWEEP = Path(__file__).parents[1] / "sweeps" / "quickstart.yaml"
COLUMNS, ROWS = 80, 24
_COLOURS = {"": "#d7dae0", "31": "#e06c75", "32": "#98c379", "33": "#e5c07b"}
_LINE, _LETTER, _EDGE = 18, 8.4, 14


class _Terminal(io.StringIO):
    """A terminal that keeps what it is sent."""

    def isatty(self) -> bool:
        return True


def written() -> str:
    """Return what the display writes until two of the quickstart's trials are done and two are on their way."""
    trials = expand(load_sweep(SWEEP))
    seconds = dict(zip((trial.trial_id for trial in trials), (88.0, 88.0, 56.0, 56.0), strict=True))
    stream, clock = _Terminal(), SimpleNamespace(now=0.0)
    terminal = Printable(stream)
    terminal.colours = True
    time = SimpleNamespace(monotonic=lambda: clock.now)
    size = mock.patch.object(display.Progress, "_size", lambda _: SimpleNamespace(columns=COLUMNS, lines=ROWS))
    with mock.patch.object(display, "time", time), size:
        progress = display.Progress(len(trials), 0, seconds, terminal)
        progress.say("4 trials to run, expected time: about 2 min 24 s; disk: about 9.5 MB")
        progress.doing("starting Ray")

        def epochs(number: int, rates: list[float], each: float) -> None:
            trial = trials[number]
            progress.start(trial.trial_id, trial_name(trial), 3)
            for epoch, rate in enumerate(rates, start=1):
                record = {"epoch": epoch, "valid_success_rate": rate, "train_seconds": each}
                progress.epoch(trial.trial_id, trial_name(trial), 3, record)

        clock.now = 40.0
        for number, rates, rate in ((0, [0.41, 0.55, 0.48], 0.483), (2, [0.32, 0.55, 0.51], 0.529)):
            epochs(number, rates, 28.0)
            clock.now += 44.0
            result = TrialResult(trial_id=trials[number].trial_id, status="COMPLETED", test_success_rate=rate)
            progress.finish(result.trial_id, trial_name(trials[number]), outcome(result))
        epochs(1, [0.47, 0.51], 29.0)
        epochs(3, [0.45], 17.0)
        clock.now += 21.0
        where = {
            trials[1].trial_id: Standing(doing="training", epoch=3, epochs=3, batch=181, batches=313),
            trials[3].trial_id: Standing(doing="validating", epoch=2, epochs=3),
        }
        for name, standing in where.items():  # what a thread of its own reads from the storage, once a second
            progress._running[name] = display.replace(progress._running[name], where=standing.words())
        progress.tick()
    return stream.getvalue()


def screen(text: str) -> list[str]:
    """Return the lines that a terminal shows after it was sent a text, colours in them."""
    lines = [""]
    for part in re.split(r"(\x1b\[\d+F\x1b\[J|\n)", text):
        if part == "\n":
            lines.append("")
        elif found := re.fullmatch(r"\x1b\[(\d+)F\x1b\[J", part):
            del lines[len(lines) - 1 - int(found[1]) :]
            lines.append("")
        else:
            lines[-1] += part
    return lines


def drawn(command: str, lines: list[str]) -> str:
    """Return a picture of a terminal's lines below the command that was typed."""
    height, width = _LINE * (len(lines) + 1) + 2 * _EDGE, round(COLUMNS * _LETTER) + 2 * _EDGE
    shown = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, \'DejaVu Sans Mono\', monospace" font-size="14">',
        f'<rect width="{width}" height="{height}" rx="8" fill="#21252b"/>',
    ]
    for row, line in enumerate([f"\x1b[33m$\x1b[0m {command}", *lines]):
        column, colour = 0, ""
        for part in re.split(r"(\x1b\[\d+m)", line):
            if found := re.fullmatch(r"\x1b\[(\d+)m", part):
                colour = found[1] if found[1] in _COLOURS else ""
            elif part:
                x, y = _EDGE + column * _LETTER, _EDGE + _LINE * row + 13
                shown.append(
                    f'<text x="{x:.1f}" y="{y}" textLength="{len(part) * _LETTER:.1f}" fill="{_COLOURS[colour]}" '
                    f'xml:space="preserve">{escape(part)}</text>'
                )
                column += len(part)
    return "\n".join([*shown, "</svg>", ""])


def picture() -> str:
    """Return the picture of the quickstart's terminal."""
    return drawn("idp run quickstart", [line for line in screen(written()) if line])


if __name__ == "__main__":
    PICTURE.write_text(picture())
