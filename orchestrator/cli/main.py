"""The command line: `idp VERB SWEEP ...`; verbs import what they need when they run, so that planning is instant."""

from __future__ import annotations

import argparse
import errno
import importlib.metadata
import json
import os
import shlex
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

from datagen.spec import nearest
from orchestrator.api import open_sweep
from orchestrator.campaign.plan import RERUN_HELP, RERUNS, Plan, make_plan
from orchestrator.campaign.progress import Progress
from orchestrator.cli.certify import add_certify
from orchestrator.cli.check import add_check
from orchestrator.cli.completion import add_completion, verbs_of
from orchestrator.cli.doctor import add_doctor
from orchestrator.cli.exchange import add_interchange
from orchestrator.cli.fields import add_fields
from orchestrator.cli.jobs import add_job_verbs
from orchestrator.cli.metrics import add_metrics
from orchestrator.cli.mirror import MIRROR_HELP, add_mirror, opened
from orchestrator.cli.options import Joined, add_storage
from orchestrator.cli.plan import add_plan, disk, expected_time
from orchestrator.cli.results import add_table, add_verbs
from orchestrator.cli.trials import add_trial_verbs
from orchestrator.command import Command
from orchestrator.environment import wrong_numbers
from orchestrator.errors import UserError
from orchestrator.signals import Interrupted, interruptible
from orchestrator.storage.layout import Storage
from orchestrator.storage.results import no_room
from orchestrator.sweep.files import found, profiles_of
from orchestrator.sweep.plugins import load_plugins, load_plugins_at_hand
from orchestrator.sweep.specs import PlannedTrial, SweepSpec
from orchestrator.terminal import painted, printing, tell
from orchestrator.words import counted, duration, size_words

BAD_INPUT = 2
TRIALS_FAILED = 1


@printing()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 when trials FAILED, 2 on bad input, 128 + n on signal n."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser()
    if not words:
        parser.print_help(sys.stderr)
        parser.exit(BAD_INPUT)
    if words[0] == "help":
        words = [*words[1:2], "--help"]
    if not words[0].startswith("-") and words[0] not in (verbs := [verb.name for verb in verbs_of(parser)]):
        tell(f"there is no verb {words[0]!r:.80}; {nearest(words[0], verbs)}")
        return BAD_INPUT
    options = parser.parse_args(words)
    try:
        if wrong := wrong_numbers():
            raise UserError(wrong[0])
        if getattr(options, "storage", None) is not None and not getattr(options, "storage_elsewhere", False):
            options.storage = Storage.given(options.storage)
        if getattr(options, "sweep", None) is not None:
            options.sweep = found(options.sweep)
        with interruptible():
            if hasattr(options, "plugins"):
                load_plugins_at_hand()
                load_plugins(options.plugins)
            code: int = options.verb(options)
            if sys.stdout is not None:
                sys.stdout.flush()
            return code
    except Interrupted as interrupted:
        with suppress(OSError):  # a terminal that was closed takes no more words
            tell(f"stopped by {interrupted}")
        return 128 + interrupted.number
    except KeyboardInterrupt:  # no signal of ours: a plug-in, or another program's handler, has raised it
        tell("stopped by KeyboardInterrupt")
        return 128 + signal.SIGINT
    except UserError as error:
        print(f"{painted('idp:', 'red', sys.stderr)} {error}", file=sys.stderr)
        return BAD_INPUT
    except SystemExit as ended:
        # No verb ends the process itself: a plug-in's code has, and its status would be taken for the verb's.
        last = traceback.extract_tb(ended.__traceback__)[-1]
        tell(f"{last.filename}, line {last.lineno} ended the process: sys.exit({ended.code!r})")
        return BAD_INPUT
    except OSError as error:
        unread = _drop_unread()
        if isinstance(error, BrokenPipeError) and unread:
            return 0  # the reader (head, less) has seen enough
        if error.errno is None:
            raise  # not the operating system's, but somebody's own
        tell(_told(error))
        return BAD_INPUT


def _drop_unread() -> bool:
    """Return whether standard output can't be written to; what it holds is dropped, or Python complains too."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
        return getattr(sys.stdout, "unread", False)  # what is not buffered leaves nothing to flush
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True


def _told(error: OSError) -> str:
    """Return what the operating system refused, in one line."""
    if full := no_room(error, Path("the disk")):
        return str(full)
    place = error.filename if error.filename2 is None else error.filename2
    if isinstance(place, bytes):
        place = os.fsdecode(place)
    if place is None:
        calls = traceback.extract_tb(error.__traceback__)
        place = f"in {calls[-1].name} ({calls[-1].filename}, line {calls[-1].lineno})"
    advice = ""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        advice = "; --storage, or --out where there is one, names another place"
    return str(UserError(f"{place}: {error.strerror or error}{advice}"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="idp", description="Experiments for differentiable planning.")
    parser.add_argument("-V", "--version", action="version", version=f"idp {importlib.metadata.version('idp')}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(name: str, run: Callable[[argparse.Namespace], int], description: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=description, description=description)
        added.set_defaults(verb=run)
        added.add_argument(
            "sweep", metavar="SWEEP", help="a sweep's YAML file, or the name of one that comes along, e.g. quickstart"
        )
        added.add_argument("--profile", help="one of the sweep's profiles; none is the paper's own scale")
        add_storage(added)
        added.add_argument(
            "--set", dest="overrides", action="append", default=[], metavar="PATH=VALUE", help="change one field"
        )
        added.add_argument(
            "--only",
            action=Joined,
            metavar="KEY=VALUE,...",
            help="only these trials, e.g. planner=vin,id-vin,k=80: any of a key's values, and all of the keys",
        )
        added.add_argument("--json", action="store_true", help="one JSON object on standard output")
        return added

    plan = add_plan(verb, _load, lambda options: _again(options, "run"))
    data = verb("data", _data, "Make the datasets only.")
    run = verb("run", _run, "Datasets, trials, table: all of it, resumable.")
    add_table(verb, _load)
    sync = verb("sync", _sync, "Rebuild the MLflow view from the trial directories.")
    place = run.add_mutually_exclusive_group()
    place.add_argument(
        "--in-process", action="store_true", help="all of it in this process, without Ray: for a debugger"
    )
    for ray in (plan, data, place):
        # A job that Ray runs, and whoever has set it, finds the cluster by the variable; jobs' clients put a URL there.
        known = os.environ.get("RAY_ADDRESS", "")
        ray.add_argument(
            "--address",
            default=None if known.startswith("http") else known or None,
            help="an existing Ray cluster (default: RAY_ADDRESS; without it one is started on this machine)",
        )
    for mlflow in (run, sync):
        mlflow.add_argument(
            "--tracking-uri",
            default=os.environ.get("MLFLOW_TRACKING_URI"),
            help="MLflow's store, or none (default: MLFLOW_TRACKING_URI; without it, sqlite in the storage)",
        )
    run.add_argument("--rerun", choices=RERUNS, help=RERUN_HELP)
    run.add_argument("--mirror", metavar="s3://BUCKET/PREFIX", default=os.environ.get("IDP_MIRROR"), help=MIRROR_HELP)
    add_trial_verbs(verbs, verb, _load)
    add_verbs(verbs, verb, _load)
    add_job_verbs(verbs, verb, _load)
    add_interchange(verbs)
    add_mirror(verbs)
    add_fields(verbs)
    add_check(verbs)
    add_certify(verbs)
    add_doctor(verbs)
    add_metrics(verbs)
    add_completion(verbs, parser)
    return parser


def _load(options: argparse.Namespace) -> tuple[SweepSpec, list[PlannedTrial]]:
    opened = open_sweep(options.sweep, options.storage, options.profile, options.overrides, options.only)
    for line in opened.left_out:
        tell(line)
    return opened.spec, opened.trials


def _program(name: str) -> str:
    """Return how to call a program of this installation: its name, or where it is when the shell would not find it."""
    beside = Path(sys.executable).with_name(name)
    return name if shutil.which(name) or not beside.exists() else os.path.relpath(beside)


def _again(options: argparse.Namespace, verb: str) -> str:
    """Return the command that does `verb` with the same options, as a shell takes it."""
    return shlex.join([_program("idp"), *Command.of(options).words(verb)[1:]])


def _going_on(options: argparse.Namespace) -> str:
    """Return how to go on: what a job's script says of itself, since its cluster may be gone when that is read."""
    return os.environ.get("IDP_TO_GO_ON") or _again(options, "run")


def _found(sweep: str, beside: Path) -> str:
    """Return where the next sweep is, from here: `next:` counts from the folder of all sweeps, or from its parent."""
    places = [folder / sweep for folder in (Path(), beside, beside.parent)]
    return next((os.path.relpath(place) for place in places if place.is_file()), "")


def _next_sweep(options: argparse.Namespace, sweep: str) -> str:
    """Return the command that runs the next sweep at the scale of this one: at the paper's, some take months."""
    profiles, profile = profiles_of(sweep), options.profile
    if profile is None and "laptop" not in profiles_of(options.sweep):
        profile = "smoke"  # this one is small by itself, as the quickstart is
    alone = replace(Command.of(options), sweep=sweep, overrides=(), only=None, rerun=None)
    command = replace(alone, profile=profile if profile in profiles else None)
    return shlex.join([_program("idp"), *command.words()[1:]])


def _data(options: argparse.Namespace) -> int:
    sweep, trials = _load(options)
    plan = make_plan(sweep, trials, options.storage)
    options.storage.make()
    missing = [dataset.spec for dataset in plan.datasets if not dataset.present]
    if missing:
        from orchestrator.campaign.run import dataset_lines
        from orchestrator.cluster.datasets import make_datasets
        from orchestrator.cluster.preflight import check_machines
        from orchestrator.cluster.ray_cluster import ray_cluster

        progress = Progress(0, 0)
        with options.storage.at_work(), ray_cluster(options.address):
            check_machines(options.storage, options.address)
            make_datasets(missing, options.storage.datasets, dataset_lines(progress))
    folders = {d.dataset_id: str(options.storage.datasets / d.dataset_id) for d in plan.datasets}
    if options.json:
        print(json.dumps({"sweep": sweep.name, "made": len(missing), "datasets": folders}, indent=2))
    else:
        print("\n".join(folders.values()))
    return 0


def _run(options: argparse.Namespace) -> int:
    sweep, trials = _load(options)
    if sweep.search is not None:
        from orchestrator.campaign.search import next_suggestions

        # The campaign goes on from round to round, but with trials to begin with.
        if next_suggestions(sweep, options.storage, options.only):
            sweep, trials = _load(options)
    mirror = opened(options, sweep, trials)
    plan = make_plan(sweep, trials, options.storage)
    todo = plan.to_run(options.rerun)
    work = {trial.trial_id: plan.work[trial.trial_id] for trial in todo}
    progress = Progress(len(plan.states), len(plan.states) - len(todo), work)
    expected = expected_time(plan, options.rerun)
    if todo:
        options.storage.make()
        progress.say(
            f"{counted(len(todo), 'trial')} to run, expected time: {expected}; disk: about {size_words(disk(plan))}"
        )
    started = time.monotonic()
    from orchestrator.campaign.run import run_campaign

    try:
        ending = run_campaign(plan, todo, options.storage, progress, Command.of(options), mirror)
    except Interrupted:
        sweep, trials = _load(options)  # a search has perhaps added some
        plan = make_plan(sweep, trials, options.storage)
        done, every = len(plan.states) - len(plan.to_run(options.rerun)), len(plan.states)
        progress.say(f"{done} of {every} trials are done; to go on: {_going_on(options)}")
        raise
    from orchestrator.tables.formats import render
    from orchestrator.tables.records import collect
    from orchestrator.tables.summary import summarise

    trials = ending.trials
    if todo or sweep.search is not None:
        plan = make_plan(sweep, trials, options.storage)
    summary = summarise(
        sweep.name,
        collect(sweep, trials, options.storage, curves=sweep.search is not None),
        search=sweep.search,
    )
    if options.json:
        print(render(summary, "json"), end="")
    else:
        print(f"\n{render(summary, 'text')}\n{_what_next(plan, todo, options)}")
    if todo:
        progress.say(f"{counted(ending.ran, 'trial')} in {duration(time.monotonic() - started)}; expected {expected}")
    return max(_failures(plan, options), TRIALS_FAILED if ending.failed_tests or ending.failures else 0)


def _what_next(plan: Plan, todo: list[PlannedTrial], options: argparse.Namespace) -> str:
    from orchestrator.tracking.tracker import NOWHERE, default_uri, page_of, shown_uri

    uri = options.tracking_uri or default_uri(options.storage)
    page = "" if uri == NOWHERE else page_of(options.storage, plan.sweep, uri)
    sync = replace(Command.of(options), tracking_uri=None)
    lines = [] if todo else ["nothing to run: every trial is done"]
    report = options.storage.sweep(plan.sweep.name).report
    lines += [f"report:       {report}"] if report.exists() else []
    if uri == NOWHERE:
        lines.append(f"MLflow:       {shlex.join([_program('idp'), *sync.words('sync')[1:]])} fills it")
    elif uri.startswith("http"):
        lines.append(f"MLflow page:  {shown_uri(uri).rstrip('/')}{page}")
    else:
        lines.append(f"MLflow page:  {_program('mlflow')} ui --backend-store-uri {shlex.quote(shown_uri(uri))}")
        lines += [f"              once it says that it runs, open http://127.0.0.1:5000{page}"] if page else []
    if plan.sweep.next and (sweep := _found(plan.sweep.next, Path(options.sweep).parent)):
        lines.append(f"next sweep:   {_next_sweep(options, sweep)}")
    return "\n".join(lines)


def _failures(plan: Plan, options: argparse.Namespace) -> int:
    failed = [trial for trial in plan.trials if plan.states[trial.trial_id] == "failed"]
    for trial in failed:
        path = options.storage.trial(trial.trial_id).result_file
        tell(f"{trial.trial_id} FAILED: {plan.results[trial.trial_id].reason} ({path})")
    return TRIALS_FAILED if failed else 0


def _sync(options: argparse.Namespace) -> int:
    sweep, trials = _load(options)
    from orchestrator.tracking.event_files import EventFiles
    from orchestrator.tracking.tracker import NOWHERE, default_uri, shown_uri, sync
    from orchestrator.tracking.wandb_runs import send

    progress = Progress(len(trials), len(trials))  # a word from time to time: thousands of trials take minutes
    uri = options.tracking_uri or default_uri(options.storage)

    def say(line: str) -> None:
        progress.say(f"idp: {line}")

    with progress.watched(lambda trial_id: ""), closing(progress):
        progress.doing(f"reading {counted(len(trials), 'trial')}")
        events = EventFiles.of_environment(sweep, options.storage, say)
        for trial in trials:
            events.note(trial, "finished")
        if wandb := send(sweep, trials, options.storage, say):
            say(wandb)
        alone = uri == NOWHERE and (wandb or events.folder is not None)  # MLflow is not asked for
        progress.doing("" if alone else f"sending {counted(len(trials), 'trial')} to MLflow")
        count = 0 if alone else sync(uri, sweep, trials, options.storage, say)
    shown = {"sweep": sweep.name, "trials": count, "tracking_uri": shown_uri(uri)}
    if options.json:
        print(json.dumps(shown, indent=2))
    elif not alone:
        print(f"{counted(count, 'trial')} of {sweep.name} now in {shown_uri(uri)}")
    return 0
