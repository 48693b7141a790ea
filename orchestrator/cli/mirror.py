"""Sharing through object storage: the verb `mirror`, and the option of `run` of that name."""

from __future__ import annotations

import argparse

from orchestrator.cli.options import add_storage
from orchestrator.errors import SweepError
from orchestrator.storage.mirror import Mirror
from orchestrator.sweep.plugins import add_plugin_option
from orchestrator.sweep.specs import PlannedTrial, SweepSpec
from orchestrator.terminal import tell
from orchestrator.words import counted

MIRROR_HELP = (
    "machines without a shared file system share the sweep through this bucket: who runs which trial, what has ended, "
    "datasets (default: IDP_MIRROR)"
)


def add_mirror(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb `mirror` to the command line's."""
    text = "Exchange what is finished between a storage and a bucket: a copy, or a restore."
    verb = verbs.add_parser("mirror", help=text, description=text)
    verb.set_defaults(verb=_mirror)
    verb.add_argument("bucket", metavar="s3://BUCKET/PREFIX")
    one_way = verb.add_mutually_exclusive_group()
    one_way.add_argument("--send", action="store_true", help="only write what the bucket lacks")
    one_way.add_argument("--take", action="store_true", help="only fetch what the storage lacks")
    add_storage(verb)
    add_plugin_option(verb)


def opened(options: argparse.Namespace, sweep: SweepSpec, trials: list[PlannedTrial]) -> Mirror | None:
    """Return the mirror of a run, with which it has exchanged what there is of the sweep; None where it has none."""
    if not options.mirror:
        return None
    if sweep.search is not None:
        raise SweepError("--mirror: the rounds of a search are made in one storage, which all its machines must mount")
    from orchestrator.storage.bucket import Bucket, BucketError

    try:
        bucket = Bucket(options.mirror)
    except BucketError as error:
        raise BucketError(f"--mirror (or IDP_MIRROR): {error}") from None
    mirror = Mirror(bucket, options.storage, tell, retime=options.rerun == "shared")
    options.storage.make()
    with options.storage.at_work():
        mirror.meet([trial.trial_id for trial in trials])
    return mirror


def _mirror(options: argparse.Namespace) -> int:
    from orchestrator.storage.bucket import Bucket

    storage, told = options.storage, list[str]()

    def say(line: str) -> None:
        tell(line)
        told.append(line)

    mirror = Mirror(Bucket(options.bucket), storage, say)
    storage.make()
    with storage.at_work():
        here = [name for name, result in storage.results().items() if result.final]
        there = mirror.trials()
        trials, sets = [0, 0], [0, 0]
        if not options.take:
            trials[0] = mirror.give(here)
            names = {folder.name for folder in storage.dataset_folders()} - set(mirror.datasets())
            sets[0] = sum(mirror.give_dataset(name) for name in sorted(names))
        if not options.send:
            trials[1] = len(mirror.fetch(sorted(set(there) - set(here)), stale=True))
            names = set(mirror.datasets()) - {folder.name for folder in storage.dataset_folders()}
            sets[1] = sum(mirror.fetch_dataset(name) for name in sorted(names))
        chosen = set(here) | set(there)
        tests = mirror.exchange_evaluations(chosen, send=not options.take, take=not options.send)
    for verb, way in ("sent", 0), ("taken", 1):
        print(
            f"{verb}: {counted(trials[way], 'trial')}, {counted(sets[way], 'dataset')}, {counted(tests[way], 'test')} "
            "on further maps"
        )
    return 1 if told else 0  # a copy that lacks something is not taken for one that is whole
