"""The one base of what goes wrong by something that a user gave, or can mend."""

from __future__ import annotations

_MOST_LETTERS = 2000


class UserError(ValueError):
    """Something that whoever reads the message can mend; one line, names the file, the field and what was expected."""

    def __init__(self, message: str) -> None:
        # It may quote names from the file, with line breaks and whatever else they are made of, of any length.
        if len(message) > _MOST_LETTERS:
            message = f"{message[: _MOST_LETTERS - 300]} ... {message[-300:]}"
        super().__init__("".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in message))
