"""The one place where text reaches a terminal: nothing in it can steer the terminal, and no letter stops a command."""

from __future__ import annotations

import codecs
import io
import os
import re
import secrets
import sys
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TextIO

WIDTH = 80
"""Columns of a usual terminal."""
_PLAIN = {"±": "+-", "—": "-", "≤": "<=", "≥": ">=", "─": "-", "━": "#", "╌": ".", "·": ","}
# C0 and C1 controls but tab and line feed, and what turns the direction of writing.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_HANDLER = "idp.plain"
Colour = Literal["bold", "faint", "red", "green", "yellow"]
_CODES: dict[Colour, str] = {"bold": "1", "faint": "2", "red": "31", "green": "32", "yellow": "33"}
# Letters that nobody uses stand for the codes until they are written, since codes in a text are escaped; which ones is
# drawn anew by each process, so that no file can have them.
_FIRST = 0x100000 + 16 * secrets.randbelow(4000)
_MARKS = {chr(_FIRST + number): f"\x1b[{code}m" for number, code in enumerate(("0", *_CODES.values()))}
_MARK = re.compile("[" + "".join(_MARKS) + "]")


def printable(text: str) -> str:
    """Return the text with its control characters written as escapes; lines and tabs stay."""
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)


def painted(text: str, colour: Colour, stream: object = None) -> str:
    """Return the text in a colour where the stream it is for shows any; standard output where none is named."""
    if not text or not getattr(sys.stdout if stream is None else stream, "colours", False):
        return text
    return f"{chr(_FIRST + 1 + list(_CODES).index(colour))}{text}{chr(_FIRST)}"


def _shows_colours(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that shows colours, and nobody asks for none (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def tell(line: str) -> None:
    """Write a line for people beside what a command puts out."""
    print(f"idp: {line}", file=sys.stderr)


def aligned(lines: Sequence[Sequence[str]], right: Container[int] = (), rule: str = "") -> list[str]:
    """Return the lines of a table as text, the first of which is its header.

    Where a line would be too wide for a terminal, the words of the header stand above each other.

    Args:
        lines: Their cells.
        right: The columns that end at the right.
        rule: What the line below the header is drawn with; none without it.
    """
    columns = range(len(lines[0]))
    widths = [max(len(line[column]) for line in lines) for column in columns]
    header = [list(lines[0])]
    if sum(widths) + 2 * (len(widths) - 1) > WIDTH and any(" " in heading for heading in lines[0]):
        halves = [_halves(heading) for heading in lines[0]]
        header = [[upper for upper, _ in halves], [lower for _, lower in halves]]
    every = [*header, *lines[1:]]
    widths = [max(len(line[column]) for line in every) for column in columns]

    def written(line: Sequence[str]) -> str:
        padded = (line[i].rjust(widths[i]) if i in right else line[i].ljust(widths[i]) for i in columns)
        return "  ".join(padded).rstrip()

    below = ["  ".join(rule * width for width in widths)] if rule else []
    return [*map(written, header), *below, *map(written, lines[1:])]


def _halves(heading: str) -> tuple[str, str]:
    """Return a heading as two lines, as narrow as can be; one of a single word stands in the lower."""
    splits = [(heading[:place], heading[place + 1 :]) for place, letter in enumerate(heading) if letter == " "]
    return min(splits, key=lambda split: max(map(len, split)), default=("", heading))


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """Write what an encoding has not in letters that it has: what people know it by, else an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    escaped = (_PLAIN.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in letters)
    return "".join(escaped), error.end


class Printable:
    """A text stream that writes control characters as escapes; everything else is the stream's own.

    Attributes:
        colours: Whether it shows colours.
        unread: Whether it is a pipe whose reader has gone.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.unread = False
        self.colours = _shows_colours(stream)

    def write(self, text: str) -> int:
        """Write the text, cleaned, in its colours."""
        clean = printable(text)
        try:
            self._stream.write(_MARK.sub(lambda found: _MARKS[found[0]], clean) if self.colours else clean)
        except BrokenPipeError:
            self.unread = True
            raise
        return len(text)

    def steer(self, code: str) -> None:
        """Write a control sequence of our own."""
        self._stream.write(code)

    def writelines(self, lines: list[str]) -> None:
        """Write the lines, cleaned."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@contextmanager
def printing() -> Iterator[None]:
    """Clean what is written to standard output and standard error until the end of the block."""
    codecs.register_error(_HANDLER, _plain)
    before = sys.stdout, sys.stderr
    wrappers = [stream for stream in before if isinstance(stream, io.TextIOWrapper)]
    errors = [stream.errors for stream in wrappers]
    for stream in wrappers:
        stream.reconfigure(errors=_HANDLER)
    # None where the shell has closed it: `print` then says nothing.
    sys.stdout, sys.stderr = (Printable(stream) if stream is not None else None for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream, old in zip(wrappers, errors, strict=True):
            if not stream.closed:
                stream.reconfigure(errors=old)
