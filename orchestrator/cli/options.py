"""Options that verbs share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError
from orchestrator.storage.layout import Storage, default_storage
from orchestrator.words import counted

TRIAL_HELP = "its folder, a prefix of its id, or the name of published weights"


def add_storage(parser: argparse.ArgumentParser, what: str = "where everything is kept") -> None:
    """Add `--storage`; it stays text until `Storage.given` has looked at it."""
    parser.add_argument(
        "--storage", metavar="DIR", default=default_storage(), help=f"{what} (default: IDP_STORAGE, or ./idp-storage)"
    )


def trial_folder(given: str, storage: Storage) -> Path:
    """Return the folder of a trained planner, named as `TRIAL_HELP` says.

    Raises:
        UserError: There is none, or several.
    """
    from planners.published import folder_of

    if (folder := folder_of(given)).exists():
        return folder
    found = [storage.trial(name).path for name in storage.trial_ids() if given and name.startswith(given)]
    if len(found) != 1:
        there = f"{counted(len(found), 'trial')} in {storage.trials} has an id that starts so"
        raise UserError(f"{given!r:.80} is no folder, and {there}")
    return found[0]


def refuse(options: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Refuse options that say nothing here, rather than pass over them.

    Raises:
        UserError: One of them is given.
    """
    for name in names:
        if getattr(options, name) not in (None, False):
            raise UserError(f"--{name.replace('_', '-')}: {why}")


class Joined(argparse.Action):
    """An option that may be given several times: what was said before stays, and is joined by a comma."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Join what is given now to what was given before."""
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, values if before is None else f"{before},{values}")
