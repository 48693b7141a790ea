"""Options that verbs share: what they may be, and the command line that they make when it is to be typed again."""

from __future__ import annotations

import argparse
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator.sweep.specs import SweepError

_ONLY_RUN = ("--address", "--tracking-uri", "--rerun")


def default_storage() -> str:
    """Return the storage where no option names one."""
    return os.environ.get("IDP_STORAGE", "idp-storage")


def add_storage(parser: argparse.ArgumentParser, what: str = "where everything is kept") -> None:
    """Add `--storage`; it stays text until `storage_path` has looked at it."""
    parser.add_argument(
        "--storage", metavar="DIR", default=default_storage(), help=f"{what} (default: IDP_STORAGE, or ./idp-storage)"
    )


def storage_path(given: str | Path) -> Path:
    """Return a storage directory as a path; it need not exist.

    Raises:
        SweepError: It is no folder, and can't become one.
    """
    text = str(given)
    name = "IDP_STORAGE" if os.environ.get("IDP_STORAGE") == text else "--storage"
    if not text.strip() or "\0" in text:
        raise SweepError(f"{name} {text!r}: expected the name of a folder, such as ./idp-storage")
    if "://" in text:
        raise SweepError(f"{name} {text!r:.200}: expected a folder, got an address: mount it here")
    if (home := text.split("/")[0]).startswith("~") and os.path.expanduser(home) != home:
        raise SweepError(
            f"{name} {text!r:.200}: expected a folder, and nothing has put a home in the place of {home!r}"
        )
    path = Path(text)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise SweepError(f"{name} {text!r:.200}: a link that leads nowhere") from None
        return path
    except NotADirectoryError:
        raise SweepError(f"{name} {text!r:.200}: expected a folder, but what is above it is none") from None
    except OSError as error:
        raise SweepError(f"{name} {text!r:.200}: {error.strerror}") from None
    if not stat.S_ISDIR(mode):
        raise SweepError(f"{name} {text!r:.200}: expected a folder, got a file")
    return path


def check_writable(storage: Path) -> None:
    """Look whether a run could write to the storage; makes nothing.

    Raises:
        SweepError: It could not.
    """
    places = [folder for name in ("", "trials", "datasets", "sweeps") if (folder := storage / name).is_dir()]
    above = storage.absolute()
    while not above.exists() and above != above.parent:
        above = above.parent
    for place in places or [above]:
        if not os.access(place, os.W_OK | os.X_OK):
            raise SweepError(
                f"{place}: nothing can be written there (another's, or read-only); --storage names another place"
            )


def open_storage(storage: Path) -> None:
    """Make the storage where there is none, before anything that takes time has begun.

    Raises:
        SweepError: Nothing can be written there.
        OSError: It can't be made.
    """
    check_writable(storage)
    storage.mkdir(parents=True, exist_ok=True)


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
