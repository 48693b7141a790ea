"""The verbs that look at results: table, figures, report, show, evaluate. The command line adds them to its own."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import cast

from datagen.spec import nearest
from datagen.tasks.registry import Split
from orchestrator.api import open_sweep
from orchestrator.cli.options import TRIAL_HELP, add_storage, refuse, trial_folder
from orchestrator.cli.own_map import OF_A_MAP, add_map_options, show_map
from orchestrator.command import Command
from orchestrator.errors import ResultError, SweepError, UserError
from orchestrator.storage.layout import Storage
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.storage.variants import folder_of_selection, make_way
from orchestrator.sweep.files import profiles_of
from orchestrator.sweep.plugins import add_plugin_option
from orchestrator.sweep.specs import PlannedTrial, SweepSpec
from orchestrator.tables.table import FORMATS, Format
from orchestrator.terminal import tell
from orchestrator.words import counted
from planners.registry import MEASURES, Measure

Run = Callable[[argparse.Namespace], int]
AddSweepVerb = Callable[[str, Run, str], argparse.ArgumentParser]
Load = Callable[[argparse.Namespace], tuple[SweepSpec, list[PlannedTrial]]]

STEPS_HELP = "most forward steps (default: the planner's own, or its sweep's `test_steps_per_row` where that is more)"


def add_table(sweep_verb: AddSweepVerb, load: Load) -> None:
    """Add the verb `table`; arguments as for `add_verbs`."""
    table = sweep_verb(
        "table", lambda options: _table(options, *load(options)), "The table of what is done, beside the paper's."
    )
    table.add_argument("--format", choices=FORMATS, help="default: text; macros: one for every number")
    table.add_argument("--wide", action="store_true", help="add training seconds, parameters, success by path length")
    table.add_argument(
        "--columns",
        type=lambda text: text.split(","),
        default=[],
        metavar="A,B",
        help="only these, e.g. success,SPL,parameters, in text, md and tex",
    )
    _add_best(table)
    table.add_argument(
        "--compare",
        type=two_planners,
        action="append",
        default=[],
        metavar="A,B",
        help="success of planner A minus that of planner B, paired by seed, with its 95 %% interval",
    )


def _add_best(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--best",
        metavar="AXIS",
        help="of cells that differ on this axis alone, e.g. training.learning_rate, the best on validation maps",
    )


def two_planners(text: str) -> tuple[str, str]:
    """Return the two planners of "A,B"."""
    first, comma, second = (part.strip() for part in text.partition(","))
    if not comma or not first or not second or "," in second or first == second:
        raise argparse.ArgumentTypeError(f"expected two planners such as id-vin,vin, got {text!r}")
    return first, second


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser], sweep_verb: AddSweepVerb, load: Load) -> None:
    """Add the verbs.

    Args:
        verbs: The command line's verbs.
        sweep_verb: Adds a verb that takes a sweep, with all that such verbs have in common.
        load: From a sweep verb's options to the sweep and the chosen trials.
    """
    figures = sweep_verb("figures", lambda options: _figures(options, *load(options)), "The paper's figures, redrawn.")
    figures.add_argument("--format", choices=("svg", "png", "pdf"), default="svg", help="default: svg")
    figures.add_argument("--out", type=Path, help="folder (default: sweeps/NAME/figures in the storage, --only apart)")
    _add_best(figures)
    figures.add_argument("--width", type=inches, default=7.0, help="e.g. 3.25in or 8cm (default: 7in)")
    report = sweep_verb("report", lambda options: _report(options, *load(options)), "One self-contained HTML page.")
    report.add_argument("--out", type=Path, help="folder (default: sweeps/NAME in the storage, --only apart)")

    show = verbs.add_parser("show", help="Draw one problem, with what a planner makes of it.")
    show.set_defaults(verb=_show)
    show.add_argument(
        "directory", metavar="TRIAL|DATASET", type=Path, nargs="?", help=f"a trial: {TRIAL_HELP}; or a dataset's folder"
    )
    show.add_argument("--index", type=int, help="number of the problem in its split (default: 0)")
    show.add_argument("--split", choices=("train", "valid", "test"), help="default: test")
    show.add_argument("--dataset", type=Path, help="draw a problem of this dataset, not of the trial's own")
    show.add_argument("--k", type=int, help=STEPS_HELP)
    show.add_argument("--frames", type=Path, help="folder for one picture per forward step")
    show.add_argument("--out", type=Path, required=True, help="the picture: a name ending in .png, .svg or .pdf")
    add_map_options(show)

    evaluate = verbs.add_parser("evaluate", help="Test a trained planner on any dataset, of any map size.")
    evaluate.set_defaults(verb=_evaluate)
    evaluate.add_argument("directory", metavar="TRIAL", type=Path, help=TRIAL_HELP)
    evaluate.add_argument("dataset", metavar="DATASET", type=Path, help="a dataset's folder, generated or imported")
    evaluate.add_argument("--split", choices=("train", "valid", "test"), default="test", help="default: test")
    evaluate.add_argument("--k", type=int, help=STEPS_HELP)
    evaluate.add_argument("--threads", type=int, help="threads (default: the trial's)")
    evaluate.add_argument(
        "--measure", type=some_measures, default=(), metavar="WHAT", help=f"also {', '.join(MEASURES)}, or all"
    )
    evaluate.add_argument("--json", action="store_true", help="one JSON object on standard output")
    add_storage(evaluate, "where trials are that are named by their ids")
    for reader in (show, evaluate):
        add_plugin_option(reader)


def some_measures(text: str) -> tuple[Measure, ...]:
    """Return the measures of "lengths,detours", every one of "all"."""
    names = MEASURES if text.strip() == "all" else [part.strip() for part in text.split(",")]
    for name in names:
        if name not in MEASURES:
            raise argparse.ArgumentTypeError(f"{name!r}: {nearest(name, [*MEASURES, 'all'])}")
    return cast("tuple[Measure, ...]", tuple(names))


def inches(text: str) -> float:
    """Return a width such as "3.25in" or "8.2cm" in inches."""
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(in|cm|mm|pt)\s*", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected a width and its unit (in, cm, mm, pt), e.g. 8.2cm, got {text!r}")
    width = float(found[1]) / {"in": 1.0, "cm": 2.54, "mm": 25.4, "pt": 72.27}[found[2]]
    if not 2.0 <= width <= 40.0:
        raise argparse.ArgumentTypeError(f"expected a width between 2in and 40in, got {text!r}")
    return width


def _table(options: argparse.Namespace, sweep: SweepSpec, trials: list[PlannedTrial]) -> int:
    from orchestrator.tables.formats import render
    from orchestrator.tables.records import best_on_validation, collect
    from orchestrator.tables.summary import summarise

    if options.json and options.format not in (None, "json"):
        raise UserError(f"--format {options.format}: beside --json, which prints JSON; give one of the two")
    format: Format = "json" if options.json else options.format or "text"
    runs = collect(sweep, trials, options.storage, curves=sweep.search is not None)
    title = sweep.name
    if options.best:
        runs = best_on_validation(runs, options.best)
        title += f", {options.best} chosen on validation maps"
    summary = summarise(
        title,
        runs,
        wide=options.wide,
        compare=options.compare,
        columns=options.columns,
        search=sweep.search,
    )
    print(render(summary, format), end="", flush=True)
    ended = sum(run.result is not None for run in runs)
    if not ended or format == "text":  # what is read by programs comes without words
        of = f"{ended} of {counted(len(runs), 'trial')}" if ended else "no trial"
        profile = f"with --profile {options.profile}" if options.profile else "without a profile"
        said = f"{of} of {sweep.name} {profile} {'have' if ended > 1 else 'has'} ended in {options.storage}"
        tell(said + _with_other_profiles(options))
    return 0


def _with_other_profiles(options: argparse.Namespace) -> str:
    """Return how many trials have ended with each of the sweep's other profiles, as far as any have."""
    there = set(options.storage.trial_ids())
    found = []
    for profile in (None, *profiles_of(options.sweep)):
        if profile != options.profile and there:
            try:
                trials = open_sweep(options.sweep, options.storage, profile, options.overrides).trials
            except SweepError:
                continue  # a profile that is wrong, or that --set does not fit, has trained nothing of this
            ended = len(options.storage.results(there & {trial.trial_id for trial in trials}))
            found += [f"{ended} {f'with --profile {profile}' if profile else 'without one'}"] if ended else []
    return f"; {', '.join(found)}" if found else ""


def _figures(options: argparse.Namespace, sweep: SweepSpec, trials: list[PlannedTrial]) -> int:
    from orchestrator.figures.registry import write_figures
    from orchestrator.tables.records import best_on_validation, collect

    runs = collect(sweep, trials, options.storage)
    selected = options.only or ""
    if options.best:
        runs = best_on_validation(runs, options.best)
        selected += f",best={options.best}"
    chosen = _folder(options, sweep, selected)
    folder = chosen or options.storage.sweep(sweep.name).figures

    def make_way() -> None:
        if chosen is None:
            _make_way(sweep, options.storage, folder.name)

    written, skipped = write_figures(sweep, runs, folder, options.format, options.width, make_way)
    for line in (line for run in runs for line in run.damaged):
        tell(f"left out, {line}")
    if options.json:
        print(json.dumps({"sweep": sweep.name, "figures": [str(p) for p in written], "skipped": skipped}, indent=2))
        return 0
    for path in written:
        print(path)
    for reason in skipped.values():
        tell(f"left out, {reason}")
    return 0


def _report(options: argparse.Namespace, sweep: SweepSpec, trials: list[PlannedTrial]) -> int:
    from orchestrator.report.page import write_report

    folder = _folder(options, sweep, options.only)
    if folder is None:
        _make_way(sweep, options.storage, options.storage.sweep(sweep.name).report.name)
    chosen = trials if options.only else None
    path = write_report(sweep, options.storage, folder, trials=chosen, command=Command.of(options))
    print(json.dumps({"sweep": sweep.name, "report": str(path)}, indent=2) if options.json else path)
    return 0


def _folder(options: argparse.Namespace, sweep: SweepSpec, selected: str | None) -> Path | None:
    """Return the folder that documents go to, None for the sweep's own."""
    if options.out or not selected:
        chosen: Path | None = options.out
        return chosen
    return folder_of_selection(sweep, options.storage, selected)


def _make_way(sweep: SweepSpec, storage: Storage, name: str) -> None:
    kept = make_way(sweep, storage, name)
    if kept is not None:
        tell(f"{name} was of the sweep with other settings; it is now {kept}")


def _show(options: argparse.Namespace) -> int:
    if options.map is not None or options.costs is not None:
        return show_map(options)
    if options.directory is None:
        raise UserError("show: expected a trial's or a dataset's folder, or --map FILE")
    from orchestrator.figures.problem import write_dataset_picture, write_trial_pictures

    refuse(options, OF_A_MAP, "is for --map or --costs")
    directory = trial_folder(str(options.directory), options.storage)
    split: Split = options.split or "test"
    index: int = options.index or 0
    if (directory / "manifest.json").exists():
        refuse(options, ("dataset", "k", "frames"), f"is for a trial, and {directory} is a dataset")
        write_dataset_picture(directory, split, index, options.out)
    else:
        write_trial_pictures(
            directory,
            split,
            index,
            options.out,
            dataset=options.dataset,
            k=options.k,
            frames=options.frames,
        )
    print(options.out)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from orchestrator.trial.evaluate import evaluate_trial, keep_evaluation

    trial = TrialDirectory(trial_folder(str(options.directory), options.storage))
    found = evaluate_trial(
        trial,
        options.dataset,
        options.split,
        options.k,
        options.threads,
        measures=options.measure,
    )
    if options.json:
        print(json.dumps(found.model_dump(mode="json"), indent=2))
    else:
        print(
            f"{found.dataset_id} {found.split}: {found.maps} maps, success {100 * found.success_rate:.1f} %, "
            f"optimal {100 * found.optimality:.1f} %, SPL {100 * found.spl:.1f} %, "
            f"exact {100 * (found.exact or 0):.1f} %, K = {found.k}, {found.seconds:.1f} s"
        )
        from orchestrator.tables.measures import words_of_measures

        for line in words_of_measures(found):
            print(line)
    try:
        keep_evaluation(trial, found)
    except (ResultError, OSError) as error:
        tell(f"not kept: {error}")
    return 0
