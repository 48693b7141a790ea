"""The verbs that handle single trials and the storage: trial, cancel, retry, gc."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from orchestrator.campaign.progress import Progress
from orchestrator.cli.jobs import add_address, cancel_job
from orchestrator.cli.options import add_storage
from orchestrator.cli.results import AddSweepVerb, Load
from orchestrator.storage.evaluations import keep_test_steps
from orchestrator.storage.leases import LeaseLost, TrialHeld, free, holder, silent
from orchestrator.storage.results import ResultError, write_json
from orchestrator.sweep.plugins import add_plugin_option
from orchestrator.sweep.selection import find_trial
from orchestrator.sweep.specs import PlannedTrial, SweepError, SweepSpec
from orchestrator.terminal import tell
from orchestrator.words import counted, outcome, size_words, trial_name


def add_trial_verbs(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], sweep_verb: AddSweepVerb, load: Load
) -> None:
    """Add the verbs.

    Args:
        verbs: The command line's verbs.
        sweep_verb: Adds a verb that takes a sweep, with all that such verbs have in common.
        load: From a sweep verb's options to the sweep and the chosen trials.
    """
    trial = sweep_verb("trial", lambda options: _trial(options, *load(options)), "One trial here, without Ray.")
    trial.add_argument("trial_id", metavar="TRIAL_ID", help="the trial's id or a prefix of it")
    trial.add_argument("--replay", action="store_true", help="show its first forward divergence again, in a new folder")
    cancel = sweep_verb(
        "cancel", lambda options: _cancel(options, *load(options)), "Stop chosen trials and keep them stopped."
    )
    cancel.add_argument(
        "--job",
        nargs="?",
        const="",
        metavar="JOB",
        help="stop the sweep's job on a cluster instead; its trials stay as they are, submitting it again goes on",
    )
    add_address(cancel)
    sweep_verb(
        "retry",
        lambda options: _retry(options, *load(options)),
        "Let cancelled and failed trials run again; mend damaged curves.",
    )
    gc = verbs.add_parser("gc", help="What the storage holds that can be made again; --remove frees it.")
    gc.set_defaults(verb=_gc)
    add_storage(gc)
    gc.add_argument("--remove", action="store_true", help="free what is marked so; without it, only listed")
    gc.add_argument("--dry-run", action="store_true", help="list only, as without --remove")
    gc.add_argument("--datasets", action="store_true", help="free generated datasets too; their specs make them again")
    gc.add_argument("--json", action="store_true", help="one JSON object on standard output")
    add_plugin_option(gc)


def _trial(options: argparse.Namespace, sweep: SweepSpec, trials: list[PlannedTrial]) -> int:
    trial = find_trial(trials, options.trial_id)
    directory = options.storage.trial(trial.trial_id)
    options.storage.make()
    from datagen.storage import dataset as parquet
    from orchestrator.trial.train import TrialOptions, run_trial

    with options.storage.at_work():
        parquet.make_dataset(trial.spec.data, options.storage.datasets)
    if options.replay:
        return _replay(options, trial)
    progress = Progress(1, 0)
    name, epochs = trial_name(trial), trial.spec.training.epochs
    held = directory.latest_lease()
    if held is not None and not free(held):
        most = f"{held.expiry_seconds:.0f} s at most"
        progress.say(f"{holder(held)} works on this trial; waiting for a sign of life, {most}")
    gone = {lease.number for _, lease in silent([directory.path])}
    progress.start(trial.trial_id, name, epochs)
    try:
        result = run_trial(
            trial.spec,
            options.storage,
            lambda record: progress.epoch(trial.trial_id, name, epochs, record),
            TrialOptions(instead_of=max(gone, default=0), stall_seconds=sweep.resources.stall_seconds),
        )
    except (TrialHeld, LeaseLost) as other:
        raise ResultError(str(other)) from None
    progress.finish(trial.trial_id, name, outcome(result), failed=result.status == "FAILED")
    progress.close()
    keep_test_steps(sweep, [trial], options.storage)
    if options.json:
        print(json.dumps(result.model_dump(mode="json"), indent=2))
    else:
        print(directory)
    if result.status == "FAILED":
        tell(f"{trial.trial_id} FAILED: {result.reason} ({directory.result_file})")
    return int(result.status == "FAILED")


def _replay(options: argparse.Namespace, trial: PlannedTrial) -> int:
    from orchestrator.trial.divergence import replay
    from orchestrator.trial.train import open_split

    if trial.spec.system is not None:
        raise ResultError(f"{trial.trial_id}: --replay runs a planner's forward iteration; this is a system's trial")
    source = open_split(trial.spec.data, options.storage.datasets, "train")
    found = replay(options.storage.trial(trial.trial_id), trial.spec, source)
    scratch = Path(tempfile.mkdtemp(prefix=f"idp-replay-{trial.trial_id[:8]}-"))
    write_json(scratch / "replay.json", asdict(found))
    if options.json:
        print(json.dumps(asdict(found), indent=2))
        return 0
    print(f"{trial.trial_id[:8]}  {trial_name(trial)}: first divergence in epoch {found.epoch}, step {found.step}")
    same = "the same now" if found.again == found.diverged else f"now {found.again}"
    print(f"samples of the batch that diverged: {found.diverged}, {same}")
    if found.indices is not None:
        print(f"problems of the training set: {[found.indices[i] for i in found.diverged]}")
    print("\nstep  relative residual of each of them (the first six)")
    for step, row in enumerate(found.residual, start=1):
        shown = ("not finite" if row[i] is None else f"{row[i]:10.3e}" for i in found.diverged[:6])
        print(f"{step:4d}  {'  '.join(shown)}")
    print(f"\n{scratch / 'replay.json'}")
    return 0


def _cancel(options: argparse.Namespace, sweep: SweepSpec, trials: list[PlannedTrial]) -> int:
    from orchestrator.trial.cancel import cancel

    if options.job is not None:
        if options.only:
            raise SweepError("cancel: --only cancels trials, --job stops a job; not both")
        said_of_jobs = cancel_job(sweep, options.job, options.address)
        print(
            json.dumps({"sweep": sweep.name, "jobs": said_of_jobs}, indent=2)
            if options.json
            else "\n".join(f"{job}: {words}" for job, words in said_of_jobs.items())
        )
        return 0
    if not options.only:
        raise SweepError(
            "cancel: say which trials, e.g. --only planner=vin or --only id=3f2a; or --job for the job on a cluster"
        )
    said = {trial.trial_id: cancel(options.storage.trial(trial.trial_id)) for trial in trials}
    _say_each(options, sweep, dict(said))
    return 0


def _retry(options: argparse.Namespace, sweep: SweepSpec, trials: list[PlannedTrial]) -> int:
    from orchestrator.trial.cancel import retry
    from orchestrator.trial.healing import heal

    said = {}
    for directory in (options.storage.trial(trial.trial_id) for trial in trials):
        for line in heal(directory):
            tell(line)
        said[directory.name] = "runs again with the sweep" if retry(directory) else "nothing to retry"
    _say_each(options, sweep, said)
    return 0


def _say_each(options: argparse.Namespace, sweep: SweepSpec, said: dict[str, str]) -> None:
    if options.json:
        print(json.dumps({"sweep": sweep.name, "trials": said}, indent=2))
        return
    if not said:
        print(f"no trial of {sweep.name} yet: its search has not begun")
    for words, count in Counter(said.values()).items():
        print(f"{counted(count, 'trial')}: {words}")


def _gc(options: argparse.Namespace) -> int:
    from orchestrator.storage.cleanup import check_storage, rebuildable, remove, running

    check_storage(options.storage)
    freeing = options.remove and not options.dry_run
    busy = running(options.storage, wait=freeing)
    found = rebuildable(options.storage, busy)
    chosen = [i for i in found if i.kind == "left over" or (i.kind == "dataset" and options.datasets)]
    if freeing:
        remove(chosen)  # before it is told of as done
    if options.json:
        items = [{**asdict(item), "path": str(item.path), "chosen": item in chosen} for item in found]
        print(json.dumps({"items": items, "running": busy, "removed": freeing}, indent=2))
    else:
        for item in found:
            mark = "free" if item in chosen else "keep"
            print(f"{mark}  {size_words(item.bytes):>8}  {item.path}  ({item.reason})")
        done = "freed" if freeing else "can be freed"
        print(f"{size_words(sum(item.bytes for item in chosen))} {done}", end="")
        print("" if options.datasets else "; with --datasets also the sets that their specs make again")
    if busy:
        kept = "what they may use, datasets above all, is not listed"
        tell(f"{options.storage}: {len(busy)} runs or trials are at work; {kept}")
    return 0
