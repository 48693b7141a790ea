"""What `idp submit` sends to a cluster: the working directory and the plug-ins, as one small, reproducible package."""

from __future__ import annotations

import os
import pwd
import subprocess
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cluster.secrecy import secret_content, secret_name
from orchestrator.sweep.specs import SweepError
from orchestrator.words import counted, first_line, size_words

MOST_BYTES = 100 * 2**20
"""A package travels through the memory of the cluster's head, so a larger one is refused."""

_NEVER = {".git", ".hg", ".svn", ".venv", "venv", "__pycache__", "idp-storage", "mlruns"}
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Shipment:
    """What has been packed.

    Attributes:
        files: How many files.
        bytes: What is in them.
        left_out: Files that stay here, since they are secrets or links to what is not sent, or no text names them.
    """

    files: int
    bytes: int
    left_out: tuple[str, ...]

    def words(self) -> str:
        """Return it as one line says it."""
        text = f"{counted(self.files, 'file')}, {size_words(self.bytes)}"
        if not self.left_out:
            return text
        named = ", ".join(self.left_out[:5]) + (", ..." if len(self.left_out) > 5 else "")
        return f"{text}; {len(self.left_out)} stay here, as secrets, links to elsewhere or names in no text: {named}"


def pack(
    folder: Path,
    package: Path,
    always: Iterable[Path] = (),
    plugins: Iterable[Path] = (),
    storage: Path | None = None,
) -> Shipment:
    """Write a zip of a working directory and return what is in it.

    The same files give the same bytes, so that a cluster that has the package already is not sent it again.

    Args:
        folder: The working directory. In a git repository what is tracked, or untracked and not ignored, is packed;
            elsewhere all but virtual environments, caches and storages. In both, secrets stay here, and so does a
            symbolic link whose target is not sent itself.
        package: The zip file to write.
        always: Files of the folder to pack even where git ignores them.
        plugins: Packages and modules; those that lie elsewhere come to the top of the package, where a run finds them.
        storage: A storage directory, which is left out.

    Raises:
        SweepError: The folder is somebody's home, git refuses to list it, a file of `always` is outside the folder, or
            it is all too large.
    """
    folder = folder.resolve()
    _refuse_homes(folder)
    inside = None if storage is None else storage.resolve()
    files, left_out = _kept(
        folder, [path for path in _files(folder) if inside is None or not path.is_relative_to(inside)]
    )
    for path in map(Path.resolve, always):
        if not path.is_relative_to(folder):
            raise SweepError(
                f"{path}: outside {folder}, which is what the cluster is sent: submit from a folder above it"
            )
        files[path.relative_to(folder).as_posix()] = path
    beside = {folder, *(path.resolve().parent for path in always)}
    for plugin in map(Path.resolve, plugins):
        root = folder if plugin.parent in beside else plugin.parent
        kept, left = _kept(root, list(_walk(plugin)) if plugin.is_dir() else [plugin])
        files, left_out = files | kept, left_out + left
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
    return Shipment(len(files), total, tuple(sorted(set(left_out) - set(files))))


def _refuse_homes(folder: Path) -> None:
    homes = []
    for home in (Path.home, lambda: Path(pwd.getpwuid(os.getuid()).pw_dir)):
        with suppress(KeyError, RuntimeError):  # a container's user need not have a name, nor so a home
            homes.append(home().resolve())
    if any(home.is_relative_to(folder) for home in homes):
        raise SweepError(f"{folder}: your home is in it, and would be sent: submit from the folder of the project")


def _kept(root: Path, paths: list[Path]) -> tuple[dict[str, Path], list[str]]:
    """Return the files to send by their names below `root`, and the names of those that are not."""
    plain = {path for path in paths if not path.is_symlink()}
    kept, left_out = {}, []
    for path in paths:
        name = path.relative_to(root)
        # A link goes where its target goes by itself: it leads out of the folder, or around what is left out, else.
        target = path if path in plain else path.resolve()
        if (
            not _is_text(name)
            or target not in plain
            or any(map(secret_name, (name, target.relative_to(root))))
            or secret_content(target)
        ):
            left_out.append(name.as_posix())
        else:
            kept[name.as_posix()] = path
    return kept, left_out


def _is_text(name: Path) -> bool:
    """Return whether a file's name is text, as that of every file in a zip is; names on a disk may be any bytes."""
    try:
        str(name).encode()
    except UnicodeEncodeError:
        return False
    return True


def _files(folder: Path) -> Iterator[Path]:
    git = ["git", "-C", str(folder), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    above = next((place for place in (folder, *folder.parents) if (place / ".git").exists()), None)
    try:
        listed = subprocess.run(git, capture_output=True, check=True, env={**os.environ, "LC_ALL": "C"}).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        if above is None:
            yield from _walk(folder)
            return
        # What git ignores is not known, and may be anything.
        reason = os.fsdecode(error.stderr) if isinstance(error, subprocess.CalledProcessError) else str(error)
        line = first_line(reason) or "it says nothing"
        advice = f"; git config --global --add safe.directory {above}" if "dubious ownership" in reason else ""
        raise SweepError(f"{folder}: a git repository, and git can't list what is in it: {line}{advice}") from None
    for name in sorted({os.fsdecode(name) for name in listed.split(b"\0") if name}):
        path = folder / name
        # Not one that is tracked but removed, and not a submodule.
        if path.is_file() and not _NEVER.intersection(Path(name).parts):
            yield path


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _NEVER)
        for name in sorted(set(names) - _NEVER):
            path = Path(root, name)
            if path.is_file():
                yield path
