"""`idp certify`: what is proven of every plan that a trial's weights make, on maps of any size."""

from __future__ import annotations

import argparse
import json
import math

from orchestrator.cli.options import TRIAL_HELP, add_storage, trial_folder
from orchestrator.storage.results import ResultError


def add_certify(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb `certify` to the command line's verbs."""
    certify = verbs.add_parser("certify", help="How far a trial's plans are proven to arrive, by shortest ways.")
    certify.set_defaults(verb=_certify)
    certify.add_argument("trial", metavar="TRIAL", help=TRIAL_HELP)
    certify.add_argument("--json", action="store_true", help="one JSON object on standard output")
    add_storage(certify)


def _certify(options: argparse.Namespace) -> int:
    folder = trial_folder(options.trial, options.storage)
    from planners.certificate import certify
    from planners.inference import load_planner
    from planners.trial_files import PlannerError

    try:
        found = certify(load_planner(folder).planner)
    except (PlannerError, ValueError) as error:
        raise ResultError(f"{folder}: {error}") from error
    proven = found.shortest == math.inf
    worst = None if found.worst is None else str(found.worst)
    if options.json:
        document = {
            "trial": str(folder),
            "shortest_up_to": "any length" if proven else 0,
            "maps": "of free cells and obstacles, of any size, with one goal",
            "patterns": found.patterns,
            "decisions": found.decisions,
            "least_survival": found.survival,
            "least_margin": found.margin,
            "worst_pattern": worst,
            "reason": found.reason,
        }
        print(json.dumps(document, indent=2))
        return 0
    print(f"{folder}: {found.patterns} local patterns, {found.decisions} decisions")
    if proven:
        print(
            "every plan, on every map of free cells and obstacles with one goal, arrives by a shortest way: any length"
        )
    else:
        print(f"nothing is proven: {found.reason}")
    print(
        f"least survival of a move that is needed: {found.survival:.6g}; least margin of a decision: {found.margin:.4g}"
    )
    if worst is not None:
        print("in the way (. free, # obstacle, G goal, the agent in the middle):\n  " + worst.replace("/", "\n  "))
    return 0
