"""`idp check`: the conformance checks on a plug-in's parts, each failure told in the words of the plug-in's author."""

from __future__ import annotations

import argparse
import json
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datagen.plugins import OWNERS, PluginError, source_files
from datagen.tasks.registry import TASKS, DatasetSpec
from datagen.tasks.samples import Samples
from orchestrator.sweep.plugins import load_plugins
from orchestrator.sweep.systems import SYSTEMS, small_options

FAILED = 1


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        part: Kind and name of the part, such as "core residual_vin".
        asked: What is asked of it.
        passed: Whether it does that.
        found: What it does instead; empty where it passed.
        place: The last line of the plug-in's own that had a hand in it; empty where there is none.
    """

    part: str
    asked: str
    passed: bool
    found: str = ""
    place: str = ""


@dataclass(frozen=True)
class _Check:
    part: str
    asked: str
    run: Callable[[], None]


def check_plugin(name: str, beside: Path | None = None, only: str = "") -> Iterator[Finding]:
    """Yield what each check finds on the parts of a plug-in.

    Args:
        name: Its module.
        beside: A folder to look for it in first.
        only: A kind of parts, "core", or one part, "core my_core"; empty for all.

    Raises:
        PluginError: It can't be loaded, or has nothing to check.
    """
    load_plugins([name], beside=[] if beside is None else [beside])
    kinds = ("CORES", "SOLVERS", "ADJOINTS", "MAPPERS", "TASKS", "SYSTEMS")
    own = {kind: [line for (of, line), owner in OWNERS.items() if (of, owner) == (kind, name)] for kind in kinds}
    if not any(own.values()):
        raise PluginError(f"plugins: {name} has none of CORES, SOLVERS, ADJOINTS, MAPPERS, TASKS and SYSTEMS")
    files = {str(path) for path in source_files(name).values()}
    checks = [*_planner_checks(own), *_task_checks(own["TASKS"]), *_system_checks(own["SYSTEMS"])]
    parts = dict.fromkeys(check.part for check in checks)
    asked = [check for check in checks if only in ("", check.part, check.part.partition(" ")[0])]
    if not asked:
        raise PluginError(f"--only {only!r:.80}: {name} has {', '.join(parts)}")
    for check in asked:
        yield _finding(check, files)


def _planner_checks(own: dict[str, list[str]]) -> Iterator[_Check]:
    from planners.conformance import cores, solvers
    from planners.registry import ADJOINTS, SOLVERS

    for core in own["CORES"]:
        part = f"core {core}"
        for check in (cores.check_actions, *cores.EVERY_CORE):
            yield _Check(part, _asked(check), partial(check, core))
        for adjoint in ADJOINTS:
            for with_adjoint in cores.EVERY_ADJOINT:
                asked = f"{_asked(with_adjoint)} [{adjoint}]"
                yield _Check(part, asked, partial(with_adjoint, core, adjoint))
        for adjoint in cores.EXACT:
            exact = cores.check_gradient_matches_finite_differences
            yield _Check(part, f"{_asked(exact)} [{adjoint}]", partial(exact, core, adjoint))
    for kind, checks in (("SOLVERS", solvers.EVERY_SOLVER), ("ADJOINTS", solvers.EVERY_ADJOINT)):
        for name in own[kind]:
            if kind == "SOLVERS" and (SOLVERS[name].cores or SOLVERS[name].linear_only):
                continue  # it solves certain cores' steps or linear systems only, not any function
            for of_one in checks:
                part = f"{kind.lower()[:-1]} {name}"
                yield _Check(part, _asked(of_one), partial(of_one, name))
    for mapper in own["MAPPERS"]:
        asked = _asked(solvers.check_maps_from_observations)
        yield _Check(f"mapper {mapper}", asked, partial(_map_observations, mapper))


def _map_observations(mapper: str) -> None:
    import torch

    from planners.conformance.solvers import check_maps_from_observations

    tasks = [name for name, task in TASKS.items() if task.mapper == mapper]
    assert tasks, f"no task names the mapper {mapper!r}, so there is no observation to give it"
    spec = DatasetSpec(task=tasks[0], train=20, valid=8, test=8)
    problems = TASKS[tasks[0]].draw()(spec, "train", 0, 2)
    assert problems.observation is not None, f"the task {tasks[0]!r} has no observation"
    height, width = problems.map.shape[1:]
    check_maps_from_observations(mapper, torch.from_numpy(problems.observation), (height, width))


def _task_checks(tasks: list[str]) -> Iterator[_Check]:
    from datagen.conformance import EVERY_SAMPLES, EVERY_TASK

    for task in tasks:
        few = isinstance(TASKS[task], Samples)  # each of which may take seconds
        train, other = (9, 2) if few else (60, 20)
        spec = {"task": task, "train": train, "valid": other, "test": other, "options": small_options(task)}
        for check in EVERY_SAMPLES if few else EVERY_TASK:
            yield _Check(f"task {task}", _asked(check), partial(_of_set, check, spec))


def _of_set(check: Callable[[DatasetSpec], None], fields: dict[str, Any]) -> None:
    check(DatasetSpec(**fields))


def _system_checks(systems: list[str]) -> Iterator[_Check]:
    from orchestrator.trial.conformance import EVERY_SYSTEM

    for system in systems:
        for task in SYSTEMS[system].tasks:
            for check in EVERY_SYSTEM:
                yield _Check(f"system {system}", f"{_asked(check)} [{task}]", partial(check, system, task))


def _asked(check: Callable[..., None]) -> str:
    return (check.__doc__ or check.__name__).strip().splitlines()[0].rstrip(".")


def _finding(check: _Check, files: set[str]) -> Finding:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check.run()
    except Exception as error:  # whatever the plug-in raises is what is to be told
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
        place = f"{own[-1].filename}, line {own[-1].lineno}, in {own[-1].name}" if own else ""
        text = " ".join(str(error).split()) or type(error).__name__
        found = text if isinstance(error, AssertionError) else f"{type(error).__name__}: {text}"
        return Finding(check.part, check.asked, False, found, place)
    return Finding(check.part, check.asked, True)


def add_check(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb `check` to the command line's verbs."""
    check = verbs.add_parser("check", help="Try a plug-in's cores, solvers, adjoints, mappers, tasks and systems.")
    check.set_defaults(verb=_check)
    check.add_argument("plugin", metavar="PLUGIN", help="its module, or its folder")
    check.add_argument("--only", default="", metavar="PART", help="a kind of parts, e.g. core, or one: 'core my_core'")
    check.add_argument("--json", action="store_true", help="one JSON object on standard output")


def _check(options: argparse.Namespace) -> int:
    import torch

    path = Path(options.plugin)
    is_path = path.exists() and ("/" in options.plugin or path.suffix == ".py")
    name, beside = (path.resolve().stem, path.resolve().parent) if is_path else (options.plugin, None)
    torch.manual_seed(0)
    findings = []
    for finding in check_plugin(name, beside, options.only):
        findings.append(finding)
        if not options.json:
            _say(finding, first=len(findings) == 1 or findings[-2].part != finding.part)
    failures = sum(not finding.passed for finding in findings)
    if options.json:
        shown = {"plugin": name, "failures": failures, "checks": [asdict(finding) for finding in findings]}
        print(json.dumps(shown, indent=2))
    else:
        print(f"\n{name}: {len(findings) - failures} of {len(findings)} checks passed")
    return FAILED if failures else 0


def _say(finding: Finding, first: bool) -> None:
    if first:
        print(f"\n{finding.part}")
    print(f"  {'ok    ' if finding.passed else 'FAILED'}  {finding.asked}", flush=True)
    for line in (finding.found, finding.place):
        if line:
            print(f"          {line}")
