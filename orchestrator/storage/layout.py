"""Where everything in a storage is: no other module spells the name of a file or a folder in it."""

from __future__ import annotations

import os
import re
import stat
import uuid
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from datagen.tasks.registry import DatasetSpec, dataset_id
from orchestrator.errors import SweepError
from orchestrator.storage import leases
from orchestrator.storage.files import Folder
from orchestrator.storage.results import TrialResult, is_trial_id
from orchestrator.storage.trial_directory import TrialDirectory

WORKING = "working"
_ADVICE = (
    "a running trial needs what object storage has not: files that grow, locks, a word that room runs out. Keep the "
    "storage on this machine's disk, or on a file system that all machines mount, and share what has ended: "
    "idp run ... --mirror s3://BUCKET/PREFIX"
)
_DATASET = re.compile(r"[^/\x00\n]+-[0-9]+-[0-9a-f]{12}")


def default_storage() -> str:
    """Return the storage where no option names one."""
    return os.environ.get("IDP_STORAGE", "idp-storage")


@dataclass(frozen=True)
class SweepFolder(Folder):
    """What is kept of a sweep besides its trials, `sweeps/NAME`.

    Attributes:
        path: The folder.
    """

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / "report.html"

    @property
    def figures(self) -> Path:
        """The folder of figures."""
        return self.path / "figures"

    @property
    def search(self) -> Path:
        """The folder of the rounds of suggestions that a search has made."""
        return self.path / "search"

    @property
    def journal(self) -> Path:
        """What Optuna's dashboard opens of a search."""
        return self.search / "optuna.journal"

    @property
    def variants(self) -> Path:
        """The note which variant of the sweep each document here is of."""
        return self.path / "variants.json"

    @property
    def schedulers(self) -> Path:
        """The folder of schedulers' notes, one for each run that is alive."""
        return self.path / "ray"

    def scheduler(self) -> Path:
        """Return a new folder for a run's scheduler: another run of the sweep may go on when this one removes it."""
        return self.schedulers / uuid.uuid4().hex[:12]

    def selection(self, name: str) -> Path:
        """Return the folder for the documents of some of the trials."""
        return self.path / "only" / name

    def shown(self, view: str) -> Path:
        """Return the note what of the sweep an MLflow store, named by some digits, has been sent."""
        return self.path / f"mlflow-{view}.json"


@dataclass(frozen=True)
class Storage(Folder):
    """A storage directory; nothing is created by looking.

    Attributes:
        path: The directory; it need not exist.
    """

    @classmethod
    def given(cls, given: str | os.PathLike[str]) -> Storage:
        """Return the storage that an option names; it need not exist.

        Raises:
            SweepError: It is no folder, and can't become one.
        """
        text = str(given)
        name = "IDP_STORAGE" if os.environ.get("IDP_STORAGE") == text else "--storage"
        if not text.strip() or "\0" in text:
            raise SweepError(f"{name} {text!r}: expected the name of a folder, such as ./idp-storage")
        if "://" in text:
            raise SweepError(f"{name} {text!r:.200}: expected a folder, got an address: {_ADVICE}")
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
            return cls(path)
        except NotADirectoryError:
            raise SweepError(f"{name} {text!r:.200}: expected a folder, but what is above it is none") from None
        except OSError as error:
            raise SweepError(f"{name} {text!r:.200}: {error.strerror}") from None
        if not stat.S_ISDIR(mode):
            raise SweepError(f"{name} {text!r:.200}: expected a folder, got a file")
        return cls(path)

    def resolve(self) -> Storage:
        """Return it by its absolute path, as another process needs it."""
        return Storage(self.path.resolve())

    @property
    def trials(self) -> Path:
        """The folder of trial directories."""
        return self.path / "trials"

    @property
    def datasets(self) -> Path:
        """The folder of datasets."""
        return self.path / "datasets"

    @property
    def sweeps(self) -> Path:
        """The folder of what is kept of sweeps."""
        return self.path / "sweeps"

    @property
    def measurements(self) -> Path:
        """The folder of measured training steps."""
        return self.path / "measurements"

    @property
    def working(self) -> Path:
        """The folder in which runs that hold no trial show that they live."""
        return self.path / WORKING

    @property
    def mlflow(self) -> Path:
        """MLflow's database, where no other store is named."""
        return self.path / "mlflow.db"

    @property
    def artifacts(self) -> Path:
        """MLflow's files, where no other store is named."""
        return self.path / "mlruns"

    def trial(self, trial_id: str) -> TrialDirectory:
        """Return the directory of a trial.

        Raises:
            ValueError: `trial_id` is no digest, so that no name can lead out of the storage directory.
        """
        if not is_trial_id(trial_id):
            raise ValueError(f"trial id: expected 8 to 64 hexadecimal digits, got {trial_id!r}")
        return TrialDirectory(self.trials / trial_id)

    def sweep(self, name: str) -> SweepFolder:
        """Return what is kept of a sweep."""
        return SweepFolder(self.sweeps / name)

    def dataset(self, spec: DatasetSpec) -> Path:
        """Return the folder of a dataset."""
        return self.datasets / dataset_id(spec)

    def trial_ids(self) -> list[str]:
        """Return the trials that are here, sorted."""
        found = sorted(self.trials.iterdir()) if self.trials.is_dir() else []
        return [path.name for path in found if is_trial_id(path.name) and path.is_dir()]

    def trial_folders(self) -> list[TrialDirectory]:
        """Return the trials that have a directory of their own here, sorted; links are not followed."""
        return [TrialDirectory(path) for path in folders(self.trials) if is_trial_id(path.name)]

    def dataset_folders(self) -> list[Path]:
        """Return the folders of datasets, sorted; links are not followed."""
        return [path for path in folders(self.datasets) if is_dataset_id(path.name)]

    def linked_datasets(self) -> list[Path]:
        """Return the datasets that lie elsewhere, behind a link, sorted."""
        every = sorted(self.datasets.iterdir()) if self.datasets.is_dir() else []
        own = set(self.dataset_folders())
        return [path for path in every if is_dataset_id(path.name) and path.is_dir() and path not in own]

    def results(self, trial_ids: Iterable[str] | None = None) -> dict[str, TrialResult]:
        """Return the results by trial id.

        A result that cannot be read stands as FAILED with the reason, so that it is seen and tried again.

        Args:
            trial_ids: The trials to look for; all that are there by default.
        """
        chosen = self.trial_ids() if trial_ids is None else trial_ids
        known = {trial_id: self.trial(trial_id).known_result() for trial_id in chosen}
        return {trial_id: result for trial_id, result in known.items() if result is not None}

    def check_writable(self) -> None:
        """Look whether a run could write here; makes nothing.

        Raises:
            SweepError: It could not.
        """
        places = [folder for folder in (self.path, self.trials, self.datasets, self.sweeps) if folder.is_dir()]
        above = self.path.absolute()
        while not above.exists() and above != above.parent:
            above = above.parent
        for place in places or [above]:
            if not os.access(place, os.W_OK | os.X_OK):
                raise SweepError(
                    f"{place}: nothing can be written there (another's, or read-only); --storage names another place"
                )

    def make(self) -> None:
        """Make the storage where there is none, before anything that takes time has begun.

        Raises:
            SweepError: Nothing can be written there.
            OSError: It can't be made.
        """
        self.check_writable()
        self.path.mkdir(parents=True, exist_ok=True)

    def at_work(self) -> AbstractContextManager[Path]:
        """Show, until the end of the block, that this process writes here without holding a trial."""
        return leases.at_work(self.working)


def is_dataset_id(name: str) -> bool:
    """Return whether a name can be a dataset's, and so that of its folder."""
    return _DATASET.fullmatch(name) is not None


def folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted, links to others left out."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries if entry.is_dir(follow_symlinks=False))


def trial_directory(storage: str | os.PathLike[str], trial_id: str) -> Path:
    """Return `storage/trials/trial_id`, as version 0.1 did; `Storage.trial` knows more."""
    return Storage(Path(storage)).trial(trial_id).path
