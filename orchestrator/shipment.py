"""What `idp submit` sends to a cluster: the working directory and the plug-ins, as one small, reproducible package."""

from __future__ import annotations

import os
import subprocess
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from orchestrator.planning import size_words
from orchestrator.specs import SweepError

MOST_BYTES = 100 * 2**20
"""A package travels through the memory of the cluster's head, so a larger one is refused."""

_NEVER = {".git", ".venv", "venv", "__pycache__", "idp-storage", "mlruns", ".env", "secrets"}
_EPOCH = (1980, 1, 1, 0, 0, 0)


def pack(
    folder: Path,
    package: Path,
    always: Iterable[Path] = (),
    plugins: Iterable[Path] = (),
    storage: Path | None = None,
) -> int:
    """Write a zip of a working directory and return the size of what is in it.

    The same files give the same bytes, so that a cluster that has the package already is not sent it again.

    Args:
        folder: The working directory. In a git repository what is tracked, or untracked and not ignored, is packed;
            elsewhere all but virtual environments, caches and storages.
        package: The zip file to write.
        always: Files of the folder to pack even where git ignores them.
        plugins: Packages and modules; those that lie elsewhere come to the top of the package, where a run finds them.
        storage: A storage directory, which is left out.

    Raises:
        SweepError: A file of `always` is outside the folder, or it is all too large.
    """
    folder = folder.resolve()
    files = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    for path in map(Path.resolve, always):
        if not path.is_relative_to(folder):
            raise SweepError(
                f"{path}: outside {folder}, which is what the cluster is sent: submit from a folder above it"
            )
        files[path.relative_to(folder).as_posix()] = path
    if storage is not None:
        inside = storage.resolve()
        files = {name: path for name, path in files.items() if not path.is_relative_to(inside)}
    beside = {folder, *(path.resolve().parent for path in always)}
    for plugin in map(Path.resolve, plugins):
        root = folder if plugin.parent in beside else plugin.parent
        for path in _walk(plugin) if plugin.is_dir() else [plugin]:
            files[path.relative_to(root).as_posix()] = path
    sizes = {name: path.stat().st_size for name, path in files.items()}
    total = sum(sizes.values())
    if total > MOST_BYTES:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        named = ", ".join(f"{name} ({size_words(sizes[name])})" for name in largest)
        raise SweepError(
            f"{folder}: {size_words(total)} to send, at most {size_words(MOST_BYTES)} can be; the largest: {named}. "
            "Let git ignore what the sweep does not need, or submit from a smaller folder"
        )
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = (0o755 if os.access(files[name], os.X_OK) else 0o644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, files[name].read_bytes())
    return total


def _files(folder: Path) -> Iterator[Path]:
    git = ["git", "-C", str(folder), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(git, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        yield from _walk(folder)
        return
    for name in sorted({os.fsdecode(name) for name in listed.split(b"\0") if name}):
        path = folder / name
        if path.is_file():  # not one that is tracked but removed, and not a submodule
            yield path


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _NEVER)
        for name in sorted(set(names) - _NEVER):
            path = Path(root, name)
            if path.is_file():
                yield path
