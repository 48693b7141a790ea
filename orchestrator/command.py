"""The command line that a verb's options make when it is to be typed again."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator.storage.layout import default_storage

_ONLY_RUN = ("--address", "--tracking-uri", "--rerun")


def command_of(options: argparse.Namespace, verb: str = "run", *, here: bool = True, **changed: Any) -> list[str]:
    """Return the command that does `verb` with the same options.

    Args:
        options: What was given.
        verb: The verb.
        here: True leaves out what is the default on this machine anyway, and passwords; False is for another machine.
        changed: Options that are to be others; None leaves one out.
    """
    given = {**vars(options), **changed}
    storage = given.get("storage")
    if storage is not None and here and Path(storage) == Path(default_storage()):
        storage = None
    address, uri = given.get("address"), given.get("tracking_uri")
    if here:
        address = None if address == os.environ.get("RAY_ADDRESS") else address
        uri = None if uri in (None, os.environ.get("MLFLOW_TRACKING_URI")) else _without_password(uri)
    words = ["idp", verb, str(given["sweep"])]
    for flag, value in (("--address", address), ("--profile", given.get("profile")), ("--storage", storage)):
        words += [flag, str(value)] if value else []
    for override in given.get("overrides") or []:
        words += ["--set", override]
    for flag, value in (("--only", given.get("only")), ("--tracking-uri", uri), ("--rerun", given.get("rerun"))):
        words += [flag, value] if value else []
    return words


def _without_password(value: str) -> str:
    parts = urlsplit(value)
    return value if "@" not in parts.netloc else value.replace(parts.netloc, "***@" + parts.netloc.rpartition("@")[2])


def for_verb(command: Sequence[str], verb: str) -> list[str]:
    """Return an `idp run` command for a verb that looks at results, without what only a run takes."""
    words, left_out = [], False
    for word in command[2:]:
        if not left_out and word not in _ONLY_RUN:
            words.append(word)
        left_out = not left_out and word in _ONLY_RUN
    return [command[0], verb, *words]
