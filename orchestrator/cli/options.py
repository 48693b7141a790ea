"""Options that verbs share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from orchestrator.storage.layout import default_storage


def add_storage(parser: argparse.ArgumentParser, what: str = "where everything is kept") -> None:
    """Add `--storage`; it stays text until `Storage.given` has looked at it."""
    parser.add_argument(
        "--storage", metavar="DIR", default=default_storage(), help=f"{what} (default: IDP_STORAGE, or ./idp-storage)"
    )


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
