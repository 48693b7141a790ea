"""`idp doctor`: is everything here that sweeps need, and what to do where it is not."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from orchestrator.addresses import shown_uri, without_secrets
from orchestrator.cli.options import add_storage
from orchestrator.cluster import jobs
from orchestrator.errors import ClusterError, JobError, SweepError
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import Lease, Owner, latest_lease
from orchestrator.terminal import Colour, painted
from orchestrator.words import counted, first_line, last_line, size_words

State = Literal["ok", "warning", "failed", "not used"]
SOMETHING_FAILED = 1
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
LEAST_FREE_BYTES = 5 * 10**9
MOST_SKEW_SECONDS = 2.0
CUDA_TOLERANCE = 1e-3
"""Most that a logit or gradient may differ from the CPU's, as a share of the largest: above rounding, below TF32."""

_COLOURS: dict[State, Colour] = {"ok": "green", "warning": "yellow", "failed": "red"}
_LOCAL_FILE_SYSTEMS = {"ext4", "ext3", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "f2fs"}


@dataclass(frozen=True)
class Finding:
    """What an examination found.

    Attributes:
        name: What was examined.
        state: How it is; "not used" where this installation does without.
        what: What was found, in a sentence.
        advice: What to do about it; empty where there is nothing to do.
    """

    name: str
    state: State
    what: str
    advice: str = ""


def add_doctor(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line's."""
    doctor = verbs.add_parser("doctor", help="Is everything here that sweeps need, and what to do where it is not?")
    doctor.set_defaults(verb=_doctor)
    add_storage(doctor, "the storage to examine")
    doctor.add_argument(
        "--address",
        help="a cluster's dashboard, http://HOST:8265 (default: RAY_API_SERVER_ADDRESS; else Ray is started)",
    )
    doctor.add_argument(
        "--tracking-uri",
        default=os.environ.get("MLFLOW_TRACKING_URI"),
        help="MLflow's store (default: MLFLOW_TRACKING_URI; without it, sqlite in the storage)",
    )
    doctor.add_argument("--json", action="store_true", help="one JSON object on standard output")


def _doctor(options: argparse.Namespace) -> int:
    address = options.address or os.environ.get("RAY_API_SERVER_ADDRESS")
    examinations: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": examine_versions,
        "token": lambda: examine_token(address),
        "storage": lambda: examine_storage(options.storage),
        "EGL": examine_egl,
        "CUDA": examine_cuda,
        "MLflow": lambda: examine_mlflow(options.tracking_uri, options.storage),
        "Ray": lambda: examine_ray(address),
    }
    findings = []
    for finding in (found for name, examine in examinations.items() for found in _examined(name, examine)):
        findings.append(finding)
        if not options.json:
            print(_line(finding), flush=True)
    failed = sum(finding.state == "failed" for finding in findings)
    if options.json:
        print(json.dumps({"ok": not failed, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        print(f"\n{failed} of {len(findings)} need something done" if failed else "\nall is well")
    return SOMETHING_FAILED if failed else 0


def _examined(name: str, examine: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from examine()
    except Exception as error:  # whatever is broken here is what a doctor is asked about
        yield Finding(
            name, "failed", f"{type(error).__name__}: {first_line(str(error))}", "this is unexpected; please report it"
        )


def _line(finding: Finding) -> str:
    state = f"{finding.state:<8}"
    shown = painted(state, _COLOURS[finding.state]) if finding.state in _COLOURS else state
    line = f"{shown}  {finding.name:<12}  {finding.what}"
    return f"{line}\n{'':24}-> {finding.advice}" if finding.advice else line


def examine_versions() -> Iterator[Finding]:
    """Are the libraries those that were tested together?"""
    from packaging.requirements import Requirement
    from packaging.version import Version

    python = ".".join(map(str, sys.version_info[:3]))
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        yield Finding("Python", "failed", f"Python {python}", "use Python 3.11 to 3.13 in a new virtual environment")
    wrong = []
    for line in importlib.metadata.requires("idp") or []:
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        found = _installed(needed.name)
        if found is None or not needed.specifier.contains(Version(found).public, prereleases=True):
            wrong.append(f"{needed.name} {found or 'missing'} (needed: {needed.specifier})")
    if wrong:
        yield Finding("versions", "failed", ", ".join(wrong), "make setup, or pip install -c constraints.txt idp")
        return
    if not CONSTRAINTS.is_file():
        yield Finding("versions", "ok", f"Python {python}; all that is needed is there")
        return
    tested = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", CONSTRAINTS.read_text(), re.MULTILINE))
    other = [
        f"{name} {found} (tested: {version})"
        for name, version in tested.items()
        if (found := _installed(name)) is not None and Version(found).public != Version(version).public
    ]
    if other:
        yield Finding("versions", "warning", ", ".join(other), f"pip install -r {CONSTRAINTS} for what was tested")
    else:
        yield Finding("versions", "ok", f"Python {python}; every library as in {CONSTRAINTS.name}")


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def examine_token(address: str | None) -> Iterator[Finding]:
    """Is the token that keeps others from a cluster there, and kept from others?

    Args:
        address: The cluster's dashboard; None where none is used.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        if address is None:
            yield Finding("token", "not used", "Ray runs on this machine only")
        else:
            advice = "start the cluster with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH, and set both here too"
            yield Finding("token", "warning", "without a token, whoever reaches the Jobs API runs code there", advice)
        return
    if os.environ.get("RAY_AUTH_TOKEN"):
        yield Finding("token", "ok", "in RAY_AUTH_TOKEN")
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        token, mode = path.read_text().strip(), path.stat().st_mode
    except OSError as error:
        advice = "copy the cluster's token there, or set RAY_AUTH_TOKEN_PATH to where it is"
        yield Finding("token", "failed", f"{path}: {error.strerror}", advice)
        return
    if not token:
        yield Finding("token", "failed", f"{path} is empty", "copy the cluster's token there")
    elif mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield Finding("token", "warning", f"{path} can be read by others", f"chmod 600 {path}")
    else:
        yield Finding("token", "ok", str(path))


def examine_storage(storage: Storage) -> Iterator[Finding]:
    """Does the storage do what leases and results rely on?

    Args:
        storage: The storage directory; where there is none, none is made.
    """
    advice = "choose another folder by --storage or IDP_STORAGE; on NFS, mount it read-write and hard"
    if not storage.path.exists():
        # An examiner makes nothing: a name with a slip in it would be a storage from then on.
        try:
            storage.check_writable()
        except SweepError as error:
            yield Finding("storage", "failed", str(error), advice)
            return
        what = f"there is no {storage} yet; the first run makes it"
        yield Finding("storage", "warning", what, "is that its name? --storage or IDP_STORAGE name another")
        return
    folder = storage.path.resolve() / f".doctor-{uuid.uuid4().hex[:12]}"
    try:
        folder.mkdir()
    except OSError as error:
        yield Finding("storage", "failed", f"{storage}: {error.strerror}", advice)
        return
    try:
        broken = [said for said in (_rename(folder), _leases(folder)) if said]
        now = time.time()
        (folder / "clock").write_text("")
        skew = (folder / "clock").stat().st_mtime - now
    except OSError as error:
        broken, skew = [str(error)], 0.0
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    kind = _file_system(storage.path.resolve())
    if broken:
        yield Finding("storage", "failed", f"{storage} ({kind}): {'; '.join(broken)}", advice)
        return
    shared = "of this machine alone" if kind in _LOCAL_FILE_SYSTEMS else "may be shared"
    yield Finding("storage", "ok", f"{storage} ({kind}, {shared}): renames replace, leases have one owner")
    free = shutil.disk_usage(storage).free
    if free < LEAST_FREE_BYTES:
        yield Finding("disk", "warning", f"{size_words(free)} free", "idp gc --dry-run lists what can be made again")
    else:
        yield Finding("disk", "ok", f"{size_words(free)} free")
    if abs(skew) > MOST_SKEW_SECONDS:
        # Nothing is decided by comparing clocks; logs and pages would only be confusing.
        what = f"the file server's clock is {skew:+.1f} s from this machine's"
        yield Finding("clock", "warning", what, "run NTP on both; results are right, but times in logs are not")
    else:
        yield Finding("clock", "ok", f"{1000 * skew:+.0f} ms between the storage's clock and this machine's")


def _rename(folder: Path) -> str:
    """Return what is wrong with renaming over a file that somebody reads; empty where nothing is."""
    (folder / "old").write_text("old")
    (folder / "new").write_text("new")
    with (folder / "old").open() as reader:
        os.replace(folder / "new", folder / "old")
        if reader.read() != "old":
            return "a file that is being read changes when another is renamed over it"
    return "" if (folder / "old").read_text() == "new" else "a rename does not replace"


def _leases(folder: Path) -> str:
    """Return what is wrong with leases; empty where nothing is."""
    first = Lease.take(folder, Owner.here(), None)
    if first is None or Lease.take(folder, Owner.here(), None) is not None:
        return "two processes can have one lease (hard links are not exclusive)"
    (path,) = folder.glob(".lease-*")
    os.utime(path, (1e9, 1e9))
    held = latest_lease(folder)
    first.release()
    return "" if held and held.touched == 10**18 else "a file's time does not change when it is touched"


def _file_system(path: Path) -> str:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    # The kernel writes a space as \040, and letters beyond ASCII as they are.
    places = {re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), mount[1]): mount[2] for mount in mounts}
    above = {place: kind for place, kind in places.items() if path.is_relative_to(place)}
    return above[max(above, key=len)] if above else "unknown"


def examine_egl() -> Iterator[Finding]:
    """Can MiniWorld draw without a screen? In a process of its own, since a broken driver takes the process along."""
    draw = (
        "from datagen.tasks.registry import DatasetSpec; from datagen.tasks.visual_navigation import draw; "
        "print(draw(DatasetSpec(task='visual_navigation', map_size=7, train=1, valid=0, test=1), 'train', 0, 1)"
        ".observation.std())"
    )
    advice = "install libegl1 libgl1 libglu1-mesa libopengl0 libgl1-mesa-dri; only visual navigation needs them"
    try:
        done = subprocess.run([sys.executable, "-c", draw], capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        yield Finding("EGL", "failed", "drawing a panorama takes more than two minutes", advice)
        return
    if done.returncode:
        yield Finding("EGL", "failed", last_line(done.stderr) or f"signal {-done.returncode}", advice)
    elif float(done.stdout.split()[-1]) == 0.0:
        yield Finding("EGL", "failed", "the pictures are of one colour", advice)
    else:
        yield Finding("EGL", "ok", "MiniWorld draws panoramas")


def examine_cuda() -> Iterator[Finding]:
    """Does the GPU compute what the CPU does?"""
    import torch

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi") is None:
            yield Finding("CUDA", "not used", "no GPU here; everything runs on the CPU")
        else:
            advice = "install torch from the index of the driver's CUDA version (download.pytorch.org/whl/cuNNN)"
            yield Finding("CUDA", "failed", f"there is a driver, but torch {torch.__version__} can't use it", advice)
        return
    for adjoint in ("unrolled", "implicit"):
        difference = cuda_difference(adjoint)
        what = f"{torch.cuda.get_device_name()}: {adjoint} gradients differ by {difference:.1e} from the CPU's"
        if difference > CUDA_TOLERANCE:
            yield Finding("CUDA", "failed", what, "update driver and torch; do not trust this GPU's results")
        else:
            yield Finding("CUDA", "ok", what)


def cuda_difference(adjoint: str, device: str = "cuda") -> float:
    """Return how far a planner's logits and gradients on a device are from the CPU's, of the largest.

    Both take 100 steps, so that errors add up: TF32 gives 3e-3, float32 in another order 5e-6. Nothing ties.

    Args:
        adjoint: How it is differentiated.
        device: The device.
    """
    import torch

    from planners import PlannerSpec, build_planner

    torch.manual_seed(0)
    steps = {"k_fwd": 100} | ({"k_bwd": 100, "tolerance": 0.0, "tolerance_bwd": 1e-6} if adjoint == "implicit" else {})
    options = {"q_channels": 16, "temperature": 0.1}  # smoothed: rounding would decide a tie
    spec = PlannerSpec.model_validate({"core": "vin", "adjoint": adjoint, "options": options, **steps})
    reference, planner = (build_planner(spec, kernel="reference") for _ in range(2))
    with torch.no_grad():
        filters = dict(reference.named_parameters())["core.w_v"]  # zero as it is built, and then nothing is iterated
        filters.uniform_(0.5, 1.5).mul_(0.95 / filters.sum(dim=(1, 2, 3), keepdim=True))
    planner.load_state_dict(reference.state_dict())
    map_, goal = (torch.rand(4, 1, 15, 15) > 0.3).float(), torch.zeros(4, 1, 15, 15)
    goal[:, :, 7, 7] = 1.0
    weight = torch.randn(4, 4, 15, 15)
    found = []
    for one, place in ((reference, "cpu"), (planner.to(device), device)):
        logits = one(map_.to(place), goal.to(place))
        (logits * weight.to(place)).mean().backward()
        found.append([logits, *(weights.grad for weights in one.parameters() if weights.grad is not None)])
    return max(
        float((ours.detach().cpu() - theirs.detach()).abs().max() / theirs.detach().abs().max().clamp(min=1e-12))
        for theirs, ours in zip(*found, strict=True)
    )


def examine_mlflow(uri: str | None, storage: Storage) -> Iterator[Finding]:
    """Does MLflow's store answer?

    Args:
        uri: The store; None for the SQLite file in the storage.
        storage: The storage directory.
    """
    from orchestrator.tracking.store import sqlite_path
    from orchestrator.tracking.tracker import NOWHERE, default_uri
    from orchestrator.tracking.view import connect

    if uri == NOWHERE:
        yield Finding("MLflow", "ok", "none is kept")
        return
    uri = uri or default_uri(storage)  # a variable that is set to nothing is not set
    database = sqlite_path(uri)
    if database is not None and not database.exists():  # which MLflow would make by being asked
        yield Finding("MLflow", "ok", f"{shown_uri(uri)} will be made by the first run")
        return
    advice = "results are kept without it; once it is back, idp sync SWEEP sends them"
    if uri.startswith("http"):
        import urllib.request
        from http.client import HTTPException

        try:
            # Name and password in an address are for MLflow's own client; urllib would take them for the host.
            address = shown_uri(uri).replace("***@", "", 1)
            urllib.request.urlopen(f"{address.rstrip('/')}/health", timeout=5).close()
        except (OSError, HTTPException, ValueError) as error:  # URLError is an OSError
            reason = without_secrets(" ".join(str(getattr(error, "reason", error)).split()), uri)
            yield Finding("MLflow", "failed", f"{shown_uri(uri)}: {reason}", advice)
            return
        advice = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or _FILE in compose); " + advice
    try:
        count = len(connect(uri).search_experiments(max_results=1000))
    except Exception as error:  # MLflow raises whatever its store does
        reason = without_secrets(first_line(error), uri)
        yield Finding("MLflow", "failed", f"{shown_uri(uri)}: {reason}", advice)
        return
    yield Finding("MLflow", "ok", f"{shown_uri(uri)}: {counted(count, 'experiment')}")


def examine_ray(address: str | None) -> Iterator[Finding]:
    """Does the cluster answer and run our Ray, or does Ray start here?

    Args:
        address: The cluster's dashboard; None to start Ray on this machine.
    """
    ours = _installed("ray")
    if address is not None:
        try:
            client = jobs.connect(address)
            theirs = jobs.version(client)
            running = sum(job.alive for job in jobs.list_jobs(client))
        except JobError as error:
            yield Finding("Ray", "failed", str(error), "docker compose ps on the head says what is down")
            return
        if theirs == ours:
            yield Finding("Ray", "ok", f"{address} answers, Ray {theirs}, {counted(running, 'job')} running")
            return
        advice = f"pip install 'ray[default,tune]=={theirs}' here, or rebuild the cluster's image"
        yield Finding("Ray", "failed", f"{address} runs Ray {theirs}, this machine has {ours}", advice)
        return
    from orchestrator.cluster.ray_cluster import machine, ray_cluster

    try:
        with ray_cluster():
            cpus, gpus = machine()
    except ClusterError as error:
        yield Finding("Ray", "failed", str(error), "is /tmp writable and /dev/shm at least 128 MB?")
        return
    yield Finding("Ray", "ok", f"Ray {ours} starts here and runs a task: {cpus:g} CPUs, {gpus:g} GPUs")
