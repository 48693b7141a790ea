"""What produced a trial's numbers, as far as its spec does not say: code, libraries, machine."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import socket
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from pydantic import BaseModel, ConfigDict, Field

from datagen.plugins import LOADED
from orchestrator.storage.code import code_hash, part_hash
from orchestrator.storage.files import Line

_VERSIONED = ("torch", "numpy", "numba", "pyarrow", "ray", "mlflow", "e2cnn", "pydantic")


class Provenance(BaseModel):
    """What produced a trial's numbers, as far as its spec does not say.

    Attributes:
        code: Hash of the datagen and planners sources (`code_hash`).
        parts: Hash of each module that the trial's numbers begin from, with all that it imports (`code.parts_of`).
        plugins: Hash of each plug-in's sources that the trial used.
        git_commit: Commit of the source tree, empty outside one.
        git_dirty: True where the tree had changes that are not in the commit.
        versions: Version of Python and of each library that matters.
        host: Name of the machine.
        platform: Operating system and processor architecture.
        cpu: Processor model.
        cpus: Logical processors of the machine.
        accelerator: Device model, or "cpu".
        accelerator_bytes: Memory of the device; 0 for "cpu".
        driver: Version of the device's runtime, empty for "cpu".
        float32: How the device multiplies float32: "ieee", or "tf32", which keeps 10 of its 23 bits; empty for "cpu".
        dataset_id: The dataset that was trained and tested on.
        exclusive: True where no other trial of the run shared the device, so that times can be compared.
        graphs: True where training steps were replayed as CUDA graphs.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    code: Line = ""
    parts: dict[Line, Line] = Field({}, max_length=1000)
    plugins: dict[str, str] = {}
    git_commit: Line = ""
    git_dirty: bool = False
    versions: dict[Line, Line] = {}
    host: Line = ""
    platform: Line = ""
    cpu: Line = ""
    cpus: int = Field(0, ge=0, lt=2**31)
    accelerator: Line = "cpu"
    accelerator_bytes: int = Field(0, ge=0, lt=2**53)
    driver: Line = ""
    float32: Line = ""
    dataset_id: Line = ""
    exclusive: bool = False
    graphs: bool = False

    @property
    def device_name(self) -> str:
        """The model of the device that did the work, and how, so that times of different ones are never averaged."""
        if self.accelerator == "cpu":
            return self.cpu or "cpu"
        return f"{self.accelerator}, graphs" if self.graphs else self.accelerator

    def made_by(self, code: str) -> bool:
        """Return whether the project's code `code` and the plug-ins as they are now made it.

        Code that differs elsewhere alone, in another task, say, made it too: its own parts are the present ones.
        A plug-in that is not loaded did not make it: what a file names is neither looked for nor read.
        """
        return (
            self.code == code or (bool(self.parts) and code == code_hash() and _present(self.parts, part_hash))
        ) and _present(self.plugins, lambda name: code_hash(name) if name in LOADED else "")


def _present(digests: Mapping[str, str], present: Callable[[str], str]) -> bool:
    return all(found and found == present(name) for name, found in digests.items())


def provenance(
    dataset_id: str = "",
    device: str = "cpu",
    plugins: Iterable[str] = (),
    exclusive: bool = False,
    parts: Mapping[str, str] = MappingProxyType({}),
    graphs: bool = False,
) -> Provenance:
    """Return what produces the numbers of a trial that runs here and now.

    Args:
        dataset_id: The dataset that the trial uses.
        device: The torch device that it runs on.
        plugins: The plug-ins that the trial uses.
        exclusive: Whether the trial has the device to itself.
        parts: The modules that its numbers begin from, with their digests.
        graphs: Whether training steps are replayed as CUDA graphs.
    """
    commit, dirty = _git()
    accelerator, accelerator_bytes, driver = _accelerator(device)
    return Provenance(
        code=code_hash(),
        parts=dict(parts),
        plugins={name: code_hash(name) for name in plugins},
        git_commit=commit,
        git_dirty=dirty,
        versions=_versions(),
        host=socket.gethostname(),
        platform=f"{platform.system()}-{platform.machine()}",
        cpu=_cpu(),
        cpus=os.cpu_count() or 0,
        accelerator=accelerator,
        accelerator_bytes=accelerator_bytes,
        driver=driver,
        float32=_float32(device),
        dataset_id=dataset_id,
        exclusive=exclusive,
        graphs=graphs,
    )


@functools.cache
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an optional library that is not installed has no version to record
    return versions


@functools.cache
def _git() -> tuple[str, bool]:
    folder, root = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]

    def git(*words: str) -> str | None:
        try:
            # Another user's clone, as in a container, is no danger more: what runs is its code.
            trusted = ["-c", f"safe.directory={root}"]
            done = subprocess.run(["git", *trusted, *words], cwd=folder, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed copy may lie inside somebody else's repository, whose commit would say nothing about it.
    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return "", False
    return git("rev-parse", "HEAD") or "", bool(git("status", "--porcelain", "--untracked-files=no"))


@functools.cache
def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor()


def _float32(device: str) -> str:
    if not device.startswith("cuda"):
        return ""
    from torch import backends

    return "tf32" if backends.cudnn.allow_tf32 or backends.cuda.matmul.allow_tf32 else "ieee"


def _accelerator(device: str) -> tuple[str, int, str]:
    if not device.startswith("cuda"):
        return device, 0, ""
    import torch

    properties = torch.cuda.get_device_properties(device)
    return properties.name, properties.total_memory, f"cuda {torch.version.cuda}"
