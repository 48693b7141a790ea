"""Whole things of a storage as one tar file each, as an object storage keeps them: a trial that has ended, a dataset.

Whoever opens one checks it first: names, what the trial is, how it has ended, the digests of a dataset's files.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from datagen.storage.dataset import load_manifest
from datagen.storage.files import write_atomically
from datagen.storage.manifest import DatasetError
from orchestrator.errors import ResultError
from orchestrator.storage.bucket import check_size
from orchestrator.storage.files import write_bytes
from orchestrator.storage.leases import Owner
from orchestrator.storage.results import TrialResult
from orchestrator.storage.trial_directory import TrialDirectory

MANIFEST, CARD = "manifest.json", "README.md"


def packed(files: Iterable[Path]) -> bytes:
    """Return those of the files that are there as one tar file, which depends on their names and contents alone.

    Raises:
        TooLarge: They are more than one write into a bucket takes.
    """
    files = [path for path in files if path.is_file()]
    if files:  # looked at first, since the whole tar file is in memory
        check_size(files[0].parent, sum(path.stat().st_size for path in files))
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in files:
            content = path.read_bytes()
            about = tarfile.TarInfo(path.name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return body.getvalue()


def unpacked(body: bytes, names: Collection[str] | None = None) -> dict[str, bytes]:
    """Return the files of a tar file by their names, which nobody has checked unless they had to be among `names`.

    Raises:
        ResultError: It is none, or holds anything else.
    """
    found: dict[str, bytes] = {}
    at, block = 0, tarfile.BLOCKSIZE
    # Header by header, of which idp writes the plainest alone: what tarfile makes of others need never end.
    while any(header := body[at : at + block]):
        try:
            about = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        except (tarfile.TarError, ValueError) as error:
            raise ResultError(f"not a tar file: {error}") from None
        if about.type != tarfile.REGTYPE or about.name in found or (names is not None and about.name not in names):
            raise ResultError(f"not what idp has written: {about.name!r:.80}")
        start, at = at + block, at + block + -(-about.size // block) * block
        if about.size < 0 or at > len(body):
            raise ResultError(f"cut short in {about.name!r:.80}")
        found[about.name] = body[start : start + about.size]
    return found


def _files(trial: TrialDirectory) -> list[Path]:
    """Return what is kept of a trial that has ended, its tests on further maps left out."""
    training = [trial.curves_file, trial.checkpoint, trial.divergence, trial.test_steps, trial.log]
    return [trial.spec_file, *training, trial.result_file]


def packed_trial(trial: TrialDirectory) -> bytes:
    """Return a trial that has ended as one file."""
    return packed(_files(trial))


@contextmanager
def unpacked_trial(trial_id: str, body: bytes) -> Iterator[tuple[TrialDirectory, TrialResult]]:
    """Unpack a trial aside, until the end of the block.

    Raises:
        ResultError: It is not that trial, or has not ended.
    """
    with tempfile.TemporaryDirectory(prefix="idp-mirror-") as folder:
        arrived = TrialDirectory(Path(folder) / trial_id)
        for name, content in unpacked(body, {path.name for path in _files(arrived)}).items():
            write_bytes(arrived.path / name, content, durable=False)
        arrived.read_spec()
        arrived.read_curves()
        result = arrived.read_result()
        if result is None or not result.final:
            raise ResultError("expected a trial that has ended")
        yield arrived, result


def place_trial(arrived: TrialDirectory, result: TrialResult, trial: TrialDirectory, owner: Owner) -> None:
    """Put a trial that was unpacked into a storage, in place of what it had there.

    Raises:
        TrialHeld: A process works on it there.
        LeaseLost: A process took it over meanwhile.
    """
    lease = trial.take(owner)
    try:
        for path in trial.of_training:  # which the result is not of
            path.unlink(missing_ok=True)
        trial.write_spec(arrived.read_spec())
        for path in _files(arrived):
            if path.exists() and path not in (arrived.spec_file, arrived.result_file):
                write_bytes(trial.path / path.name, path.read_bytes(), check=lease.check)
        trial.publish(lease, result)
    finally:
        lease.release()


def packed_dataset(folder: Path) -> bytes:
    """Return a dataset as one file; `DatasetError` where it is not finished."""
    shards = [folder / record.name for record in load_manifest(folder).shards]
    return packed([folder / MANIFEST, folder / CARD, *shards])


def place_dataset(body: bytes, folder: Path) -> None:
    """Unpack a dataset into its folder.

    Raises:
        ResultError: It is not the one of the folder's name, or not as it was made; nothing is written.
        DatasetError: The same, or there is no room.
    """
    files = unpacked(body)
    with tempfile.TemporaryDirectory(prefix="idp-mirror-") as aside:
        write_bytes(Path(aside) / folder.name / MANIFEST, files.get(MANIFEST, b""), durable=False)
        try:
            manifest = load_manifest(Path(aside) / folder.name)
        except DatasetError as error:
            raise ResultError(str(error).replace(f"{aside}/", "")) from None
    if manifest.dataset_id != folder.name:
        raise ResultError(f"{MANIFEST}: dataset_id: expected {folder.name!r:.80}, got {manifest.dataset_id!r}")
    for record in manifest.shards:
        if hashlib.sha256(files.get(record.name, b"")).hexdigest() != record.sha256:
            raise ResultError(f"{record.name}: not what its manifest says")
    shards = [record.name for record in manifest.shards]
    for name in (*shards, CARD, MANIFEST):  # the manifest says that the rest is there
        if name in files:
            write_atomically(folder / name, files[name])
