"""The verb `plan`: what a sweep consists of, what is done, and what the rest will cost."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict

from orchestrator.campaign.estimates import Schedule, schedule, side_by_side
from orchestrator.campaign.plan import STATES, Plan, Rerun, State, by_cell, make_plan
from orchestrator.cli.results import AddSweepVerb, Load
from orchestrator.storage.code import code_hash
from orchestrator.storage.layout import Storage
from orchestrator.storage.measurements import Measurement
from orchestrator.sweep.specs import PlannedTrial, SweepSpec
from orchestrator.tables.table import headings
from orchestrator.terminal import aligned
from orchestrator.words import counted, duration, size_words


def add_plan(
    sweep_verb: AddSweepVerb, load: Load, again: Callable[[argparse.Namespace], str]
) -> argparse.ArgumentParser:
    """Add the verb and return it.

    Args:
        sweep_verb: Adds a verb that takes a sweep, with all that such verbs have in common.
        load: From a sweep verb's options to the sweep and the chosen trials.
        again: From the same to the command that runs what is planned.
    """

    def run(options: argparse.Namespace) -> int:
        sweep, trials = load(options)
        return _plan(options, trials, sweep, again(options))

    plan = sweep_verb("plan", run, "Trials, datasets, what is done and what the rest will cost; starts nothing.")
    plan.add_argument(
        "--measure",
        action="store_true",
        help="run a few full-size steps of every cell first, here or on each accelerator of --address",
    )
    plan.add_argument(
        "--gpus",
        type=_devices,
        nargs="+",
        default=[],
        metavar="N",
        help="when so many devices of that kind are done",
    )
    return plan


def _devices(text: str) -> int:
    if not re.fullmatch("[0-9]{1,6}", text) or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 100000, got {text!r}")
    return int(text)


def _plan(options: argparse.Namespace, trials: list[PlannedTrial], sweep: SweepSpec, again: str) -> int:
    measured = _measure(options, trials) if options.measure else []
    plan = make_plan(sweep, trials, options.storage)
    schedules = _schedules(plan, options.gpus)
    search = []
    if sweep.search is not None:
        from orchestrator.campaign.search import state_of_search

        search = state_of_search(sweep, options.storage)
    if options.json:
        found = {
            "search": search,
            "schedules": [asdict(entry) for entry in schedules],
            "measured": [m.model_dump() for m in measured],
        }
        print(json.dumps(_plan_json(plan) | found, indent=2))
        return 0
    print(_plan_text(plan, options.storage, again))
    if search:
        print("\n".join(["", *search]))
    for entry in schedules:
        print(
            f"on {counted(entry.devices, 'device')}: {entry.busy_seconds / 3600:.2f} device-hours, done after "
            f"{duration(entry.seconds)}, the last {duration(entry.tail_seconds)} with idle devices"
        )
    if options.gpus and not schedules:
        print("no time is known: --measure runs a few steps of every cell")
    return 0


def disk(plan: Plan) -> int:
    """Return the bytes that datasets and trials which are still missing will take."""
    datasets = sum(dataset.bytes for dataset in plan.datasets if dataset.needed)
    return datasets + plan.trial_bytes * plan.count("missing")


def _plan_json(plan: Plan) -> dict[str, object]:
    return {
        "sweep": plan.sweep.name,
        "trials": len(plan.trials),
        **plan.counts(),
        "to_run": len(plan.to_run()),
        "cells": [
            {**axes, "seeds": seeds, **{state: states[state] for state in STATES}}
            for axes, seeds, states in by_cell(plan)
        ],
        "datasets": [
            {
                "dataset_id": dataset.dataset_id,
                "present": dataset.present,
                "needed": dataset.needed,
                "bytes": dataset.bytes,
                "problems": dataset.problems,
            }
            for dataset in plan.datasets
        ],
        "trial_ids": {trial.trial_id: plan.states[trial.trial_id] for trial in plan.trials},
        "expected_seconds": plan.seconds(),
        "expected_seconds_at_least": plan.at_least(),
        "expected_seconds_from": plan.seconds_from,
        "expected_disk_bytes": disk(plan),
        "code": code_hash(),
    }


def expected_time(plan: Plan, rerun: Rerun | None = None) -> str:
    """Return in words how long what is to run will take, one trial after the other and on this machine."""
    seconds, todo = plan.seconds(rerun), plan.to_run(rerun)
    if seconds is None:
        return "unknown"
    here = min(side_by_side(trial.spec for trial in todo), max(1, len(todo)))
    alone = f"{'at least ' if plan.at_least(rerun) else ''}{duration(seconds)}"
    if here == 1:
        return alone
    finish = schedule((plan.work[trial.trial_id] for trial in todo), here).seconds
    return f"{alone} one after the other, {duration(finish)} on this machine"


def _schedules(plan: Plan, devices: list[int]) -> list[Schedule]:
    if plan.seconds() is None:
        return []
    return [schedule((plan.work[trial.trial_id] for trial in plan.to_run()), count) for count in devices]


def _measure(options: argparse.Namespace, trials: list[PlannedTrial]) -> list[Measurement]:
    def say(trial: PlannedTrial, found: Measurement) -> None:
        took = "" if found.step_seconds is None else f"{1000 * found.step_seconds:.1f} ms a step"
        memory = "" if found.peak_bytes is None else f", {size_words(found.peak_bytes)}"
        print(f"{found.name}  {found.device}  {took or f'{found.status} {found.reason}'}{memory}", file=sys.stderr)

    if options.address is None:
        from orchestrator.trial.measure import measure_cells

        return measure_cells(trials, options.storage, say)
    from orchestrator.cluster.ray_cluster import measure_everywhere, ray_cluster

    with ray_cluster(options.address):
        return measure_everywhere(trials, options.storage, say)


def _plan_text(plan: Plan, storage: Storage, again: str) -> str:
    lines = [f"{plan.sweep.name}: {plan.sweep.description}".rstrip(": "), ""]
    if plan.sweep.search is not None and not plan.trials:
        return "\n".join([*lines, f"no trial yet: its search suggests the first ones when it runs: {again}"])
    cells = by_cell(plan)
    names = list(dict.fromkeys(name for axes, _, _ in cells for name in axes))
    shown: list[State] = ["done", "missing", "stale", "failed"]
    shown += ["cancelled"] if plan.count("cancelled") else []
    header = [*headings(names), "seeds", *shown]
    table = [
        [
            *(str(axes.get(name, "")) for name in names),
            ",".join(map(str, seeds)) if len(seeds) <= 6 else f"{len(seeds)} seeds",
            *(str(states[state] or "·") for state in shown),
        ]
        for axes, seeds, states in cells
    ]
    lines += aligned([header, *table])
    lines += ["", f"storage: {storage}" + ("" if storage.path.exists() else " (there is none yet)"), "datasets"]
    for dataset in plan.datasets:
        state = "not here, and nothing to run needs it"
        if dataset.present:
            state = f"present, {size_words(dataset.bytes)}"
        elif dataset.needed:
            state = f"to make, at most {size_words(dataset.bytes)}"
        lines.append(f"  {dataset.dataset_id}  {dataset.problems:,} problems  {state}")
    todo = plan.count("missing", "failed")
    lines += ["", f"{counted(len(plan.trials), 'trial')}: {plan.count('done')} done, {todo} to run"]
    if plan.count("stale"):
        lines[-1] += f", {plan.count('stale')} stale (other code; --rerun stale trains them again)"
    if plan.count("cancelled"):
        lines[-1] += f", {plan.count('cancelled')} cancelled"
    lines += [
        f"expected time: {expected_time(plan)}" + (f" ({plan.seconds_from})" if todo else ""),
        f"disk to be used: about {size_words(disk(plan))}",
    ]
    if todo:
        lines += ["", f"to run them: {again}"]
    return "\n".join(lines)
