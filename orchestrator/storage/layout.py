"""Where a storage is, and whether it can be one."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from orchestrator.errors import SweepError


def default_storage() -> str:
    """Return the storage where no option names one."""
    return os.environ.get("IDP_STORAGE", "idp-storage")


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
