"""`idp certify`: what is proven of every plan that a trial's weights make, on maps of any size."""

from __future__ import annotations

import argparse
import json
import math
from typing import TYPE_CHECKING

from orchestrator.cli.options import TRIAL_HELP, add_storage, trial_folder
from orchestrator.storage.results import ResultError
from orchestrator.sweep.plugins import add_plugin_option
from orchestrator.words import counted

if TYPE_CHECKING:
    from planners.certificate import Certificate


def add_certify(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb `certify` to the command line's verbs."""
    certify = verbs.add_parser("certify", help="How far a trial's plans are proven to arrive, by shortest ways.")
    certify.set_defaults(verb=_certify)
    certify.add_argument("trial", metavar="TRIAL", help=TRIAL_HELP)
    certify.add_argument("--json", action="store_true", help="one JSON object on standard output")
    add_storage(certify)
    add_plugin_option(certify)


def _certify(options: argparse.Namespace) -> int:
    folder = trial_folder(options.trial, options.storage)
    from planners.certificate import certify
    from planners.inference import load_planner

    trained = load_planner(folder)
    try:
        found = certify(trained.planner, trained.moves)
    except ValueError as error:
        raise ResultError(f"{folder}: {error}") from error
    maps = "of free cells and obstacles, of any size"
    if trained.moves.wrap:
        maps += " from 3x3 on, on the torus"
    if len(trained.moves.names) == 8:
        maps += ", by eight moves that may cut corners"
    maps += ", with one goal"
    if options.json:
        document = {
            "trial": str(folder),
            "shortest_up_to": "any length" if found.shortest == math.inf else int(found.shortest),
            "arrives_up_to": "any length" if found.arrives == math.inf else int(found.arrives),
            "suboptimality": found.suboptimality,
            "maps": maps,
            "patterns": found.patterns,
            "decisions": found.decisions,
            "least_survival": found.survival,
            "least_margin": found.margin,
            "worst_pattern": None if found.worst is None else str(found.worst),
            "reason": found.reason,
        }
        print(json.dumps(document, indent=2))
        return 0
    print(f"{folder}: {found.patterns} local patterns, {found.decisions} decisions")
    _say(found, maps)
    return 0


def _say(found: Certificate, maps: str) -> None:
    if found.arrives > 0:
        length = "any length" if found.arrives == math.inf else f"up to {counted(int(found.arrives), 'step')}"
        way = "by a shortest way" if found.suboptimality == 1 else "by a way of fewest moves"
        way = way if found.shortest > 0 else "in at most twice the fewest moves"
        print(f"every plan, on every map {maps}, arrives {way}: {length}")
        if found.suboptimality > 1:
            print(f"such a way costs up to {found.suboptimality:.4g} times the cheapest, no more")
    if found.reason:
        unproven = "beyond, nothing" if found.shortest > 0 else "nothing" if found.arrives == 0 else "no shortest way"
        print(f"{unproven} is proven: {found.reason}")
    print(
        f"least survival of a move that is needed: {found.survival:.6g}; least margin of a decision: {found.margin:.4g}"
    )
    if found.worst is not None:
        drawn = str(found.worst).replace("/", "\n  ")
        print(f"in the way (. free, # obstacle, the agent in the middle):\n  {drawn}")
