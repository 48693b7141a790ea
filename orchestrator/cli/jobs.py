"""The verbs that put a sweep on a cluster and follow it: submit, status, logs, and `cancel --job`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import tempfile
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from orchestrator.campaign.plan import RERUN_HELP, RERUNS, make_plan
from orchestrator.cli.options import Joined, add_storage
from orchestrator.cli.results import AddSweepVerb, Load
from orchestrator.cluster import jobs
from orchestrator.cluster.package import pack
from orchestrator.command import Command
from orchestrator.storage.layout import Storage, default_storage
from orchestrator.storage.leases import EXPIRY_SECONDS, free
from orchestrator.storage.runs import Run, runs
from orchestrator.storage.standing import read_standing
from orchestrator.sweep import plugins
from orchestrator.sweep.files import load_sweep, sweep_files
from orchestrator.sweep.specs import SweepError, SweepSpec
from orchestrator.terminal import aligned, tell
from orchestrator.words import counted, duration, trial_name

JOB_FAILED = 1


def add_job_verbs(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], sweep_verb: AddSweepVerb, load: Load
) -> None:
    """Add the verbs.

    Args:
        verbs: The command line's verbs.
        sweep_verb: Adds a verb that takes a sweep, with all that such verbs have in common.
        load: From a sweep verb's options to the sweep and the chosen trials.
    """
    submit = sweep_verb("submit", lambda options: _submit(options, load), "Run a sweep on a cluster, as a Ray job.")
    # The storage is one of the cluster's, where another may be the default.
    submit.set_defaults(storage=None, storage_elsewhere=True)
    submit.add_argument("--tracking-uri", help="MLflow's store, as the cluster's head sees it")
    submit.add_argument("--rerun", choices=RERUNS, help=RERUN_HELP)
    status = verbs.add_parser("status", help="What runs, where it stands, what is done of a sweep; a cluster's jobs.")
    status.set_defaults(verb=lambda options: _status(options, load))
    status.add_argument(
        "sweep", metavar="SWEEP", nargs="?", help="a sweep's YAML file; without one, all that runs in the storage"
    )
    status.add_argument("--profile", help="one of the sweep's profiles; none is the paper's own scale")
    add_storage(status)
    status.add_argument("--set", dest="overrides", action="append", default=[], metavar="PATH=VALUE")
    status.add_argument("--only", action=Joined, metavar="KEY=VALUE,...", help="only these trials")
    logs = verbs.add_parser("logs", help="What a job says.")
    logs.set_defaults(verb=_logs)
    logs.add_argument("job", metavar="SWEEP|JOB", help="a job's id, or a sweep (its file or name) for its latest job")
    logs.add_argument("--follow", action="store_true", help="go on until the job ends; then exit 1 if it failed")
    for verb in (status, logs):
        verb.add_argument("--json", action="store_true", help="one JSON object on standard output")
    for verb in (submit, status, logs):
        add_address(verb)


def add_address(verb: argparse.ArgumentParser) -> None:
    """Add the option that says where the cluster is."""
    verb.add_argument(
        "--address",
        help=f"the cluster's dashboard, http://HOST:8265 (default: RAY_API_SERVER_ADDRESS, or {jobs.DEFAULT_ADDRESS})",
    )


def run_command(options: argparse.Namespace, sweep: SweepSpec, folder: Path) -> list[str]:
    """Return what the cluster's head is to run, in a copy of `folder`.

    Raises:
        SweepError: The storage is not one that every machine of a cluster could mean.
    """
    path = Path(options.sweep).resolve()
    if options.storage is not None and not Path(options.storage).is_absolute():
        raise SweepError(f"--storage {options.storage}: expected the path on the cluster's machines, from the root")
    overrides = list(options.overrides)
    # A plug-in that is installed here, and so needs no mention in the sweep, may not be installed there.
    if unmentioned := [name for name in plugins.loaded() if name not in sweep.plugins]:
        overrides.append(f"plugins={json.dumps([*sweep.plugins, *unmentioned])}")
    relative = path.relative_to(folder).as_posix()
    asked = replace(Command.of(options), sweep=relative, address="auto", overrides=tuple(overrides))
    return asked.words(here=False)


def _submit(options: argparse.Namespace, load: Load) -> int:
    local = Storage.given(default_storage())
    sweep, trials = load(argparse.Namespace(**{**vars(options), "storage": local}))
    folder = Path.cwd().resolve()
    with tempfile.TemporaryDirectory(prefix="idp-submit-") as scratch:
        package = Path(scratch, "working-directory.zip")
        sent = pack(folder, package, sweep_files(options.sweep), plugins.packages(), storage=local.path)
        command = run_command(options, sweep, folder)
        client = jobs.connect(options.address)
        job_id = jobs.submit(client, package, command, sweep.name, options.profile)
    where = ["--address", options.address] if options.address else []
    of_sweep = replace(Command.of(options), storage=None).words("status")
    follow = {
        "status": shlex.join(of_sweep),
        "logs": shlex.join(["idp", "logs", job_id, "--follow", *where]),
        "cancel": shlex.join(["idp", "cancel", options.sweep, "--job", job_id, *where]),
    }
    if options.json:
        shown = {
            "job": job_id,
            "sweep": sweep.name,
            "trials": len(trials),
            "command": command,
            "sent": asdict(sent),
            "follow": follow,
        }
        print(json.dumps(shown, indent=2))
        return 0
    print(f"{job_id}: {sweep.name}, {counted(len(trials), 'trial')}, at {client.get_address()}")
    print(f"sent:    {sent.words()}, of {folder}")
    print("\n".join(f"{name + ':':<8} {line}" for name, line in follow.items()))
    return 0


def _status(options: argparse.Namespace, load: Load) -> int:
    for name, given in (("--profile", options.profile), ("--set", options.overrides), ("--only", options.only)):
        if given and options.sweep is None:
            raise SweepError(f"{name}: is for a sweep, and none is named")
    shown: dict[str, Any] = {}
    names: dict[str, str] = {}
    if options.sweep is not None:
        sweep, trials = load(options)
        names = {trial.trial_id: trial_name(trial) for trial in trials}
        shown = {"sweep": sweep.name, "trials": len(trials)}
        if options.storage.path.is_dir():
            shown |= make_plan(sweep, trials, options.storage).counts()
        if not options.json:
            print(_progress_line(shown, options.storage), flush=True)
    working = [run for run in runs(options.storage) if options.sweep is None or run.note.sweep == shown["sweep"]]
    if working and not options.json:
        print("\n".join(run_lines(working, time.time())) + "\n", flush=True)
    if options.json:
        shown["runs"] = [run.note.model_dump() | {"silent_seconds": run.silent_seconds} for run in working]
    at_work = _at_work(options.storage, names if options.sweep is not None else None)
    on_cluster = _is_on_cluster(options)
    if not options.json and (at_work or not (working or on_cluster)):
        print(_running_table(at_work, names, options.storage), flush=True)
    found = jobs.list_jobs(jobs.connect(options.address)) if on_cluster else []
    if options.sweep is not None:
        found = [job for job in found if job.sweep == shown["sweep"]]
    if options.json:
        print(json.dumps(shown | {"running": at_work, "jobs": [asdict(job) for job in found]}, indent=2))
    elif on_cluster:
        print(_job_table(found, time.time()))
    return 0


def _is_on_cluster(options: argparse.Namespace) -> bool:
    """Return whether a cluster is named, or one runs here: else a run has no job."""
    return bool(options.address or os.environ.get("RAY_API_SERVER_ADDRESS")) or jobs.listens()


def _at_work(storage: Storage, chosen: Container[str] | None) -> list[dict[str, Any]]:
    """Return who works on which trials of a storage, as far as they say, and where they stand."""
    found = []
    for trial in storage.trial_folders():
        held = trial.latest_lease() if chosen is None or trial.name in chosen else None
        if held is None or held.owner is None or free(held):
            continue
        standing = read_standing(trial)
        quiet = max(0.0, time.time() - held.touched / 1e9)
        who = {"trial_id": trial.name, "host": held.owner.host, "pid": held.owner.pid, "quiet_seconds": round(quiet)}
        found.append(
            who | {"standing": standing and standing.model_dump(), "words": standing.words() if standing else ""}
        )
    return found


def _running_table(at_work: Sequence[dict[str, Any]], names: Mapping[str, str], storage: Storage) -> str:
    if not at_work:
        return f"no trial runs in {storage}{'' if storage.path.exists() else ' (there is none yet)'}"
    lines = [("trial", "what", "where it stands", "who")]
    for one in at_work:
        who = f"process {one['pid']} on {one['host']}"
        if one["quiet_seconds"] > EXPIRY_SECONDS:  # by two clocks, so only said
            who += f", no sign of life for {duration(one['quiet_seconds'])}"
        lines.append((one["trial_id"][:8], names.get(one["trial_id"], ""), one["words"] or "runs", who))
    return "\n".join(aligned(lines))


def _progress_line(shown: dict[str, Any], storage: Storage) -> str:
    start = f"{shown['sweep']}: {counted(shown['trials'], 'trial')}"
    if "done" not in shown:
        return f"{start}; what is done is known where the storage is (there is no {storage} here)"
    kept = ("done", "missing", "failed", "stale", "cancelled")
    return f"{start}: " + ", ".join(f"{shown[k]} {k}" for k in kept if shown[k] or k in ("done", "missing"))


def run_lines(working: Sequence[Run], now: float) -> list[str]:
    """Return who runs what, a line each below a heading."""
    lines = [("user", "sweep", "priority", "runs", "waiting", "done", "for", "last epoch", "where")]
    for run in working:
        note = run.note
        where = ", ".join(filter(None, [note.job, f"cluster {note.cluster}" if note.cluster else "", note.host]))
        if run.lost:
            where += f" (no sign of life for {duration(run.silent_seconds)})"
        each = f"{note.gpus:g} GPU" if note.gpus else f"{note.cpus:g} CPU"
        lines.append(
            (
                note.user,
                note.sweep,
                str(note.priority),
                f"{note.running} x {each}",
                str(max(0, note.wants - note.running)),
                f"{note.done}/{note.total}",
                duration(max(0.0, now - note.began)),
                f"{duration(max(0.0, now - note.moved))} ago" if note.epochs else "none yet",
                where,
            )
        )
    return aligned(lines)


def _job_table(found: Sequence[jobs.Job], now: float) -> str:
    if not found:
        return "no jobs"
    lines = [("job", "state", "submitted", "for", "command")]
    for job in found:
        submitted = datetime.fromtimestamp(job.started).strftime("%Y-%m-%d %H:%M")
        lines.append((job.job_id, job.state, submitted, duration((job.ended or now) - job.started), job.command))
    reasons = [f"{job.job_id}: {job.message}" for job in found if job.state == "FAILED"]
    return "\n".join(aligned(lines) + reasons)


def _logs(options: argparse.Namespace) -> int:
    name = load_sweep(options.job).name if Path(options.job).is_file() else options.job
    client = jobs.connect(options.address)
    job = jobs.find_job(jobs.list_jobs(client), name)
    if options.follow and not options.json:
        ended = jobs.follow(client, job, lambda text: print(text, end="", flush=True))
        tell(f"job {ended.job_id} {ended.state}: {ended.message}")
        return 0 if ended.state == "SUCCEEDED" else JOB_FAILED
    text = jobs.log(client, job)
    if options.json:
        print(json.dumps({**asdict(job), "log": text}, indent=2))
    else:
        print(text, end="")
    return 0


def cancel_job(sweep: SweepSpec, job_id: str, address: str | None) -> dict[str, str]:
    """Stop a sweep's jobs on a cluster and return what became of each.

    Args:
        sweep: The sweep.
        job_id: One of its jobs; empty for all that run.
        address: The cluster's dashboard.

    Raises:
        JobError: There is no such job, or no such cluster.
    """
    client = jobs.connect(address)
    found = jobs.list_jobs(client)
    if job_id:
        chosen = [jobs.find_job(found, job_id)]
        alive = [job.job_id for job in found if job.sweep == job_id and job.alive]
        if chosen[0].job_id != job_id and len(alive) > 1:
            raise jobs.JobError(f"{len(alive)} jobs of {job_id} run: {', '.join(alive)}; name one, or none for all")
        if chosen[0].sweep and chosen[0].sweep != sweep.name:
            raise jobs.JobError(f"{chosen[0].job_id} is a job of {chosen[0].sweep}, not of {sweep.name}")
    else:
        chosen = [job for job in found if job.sweep == sweep.name and job.alive]
    if not chosen:
        raise jobs.JobError(f"{sweep.name}: no job of it is running")
    return {job.job_id: "stopping" if jobs.stop(client, job) else f"was {job.state} already" for job in chosen}
