"""The verbs that exchange things with others: datasets in the GPPN layout, trained planners, and results."""

from __future__ import annotations

import argparse
from pathlib import Path

from datagen.spec import nearest
from datagen.tasks.registry import TASKS
from orchestrator.cli.options import TRIAL_HELP, add_storage, trial_folder
from orchestrator.cli.own_map import add_reading, reading_of
from orchestrator.errors import UserError
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.sweep.plugins import add_plugin_option
from orchestrator.sweep.specs import SweepError
from orchestrator.terminal import tell
from orchestrator.words import counted

ORDERS = ("4abs-cc", "news")
ORDER_HELP = "order of the file's actions; 4abs-cc (default): north, west, south, east; news: north, east, west, south"


def add_interchange(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verbs `import` and `export` to the command line's."""
    bring = verbs.add_parser(
        "import", help="Make a dataset of a .npz file in the GPPN layout, of one's own map, of Maze-Unique or terrain."
    )
    bring.set_defaults(verb=_import)
    bring.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help="a .npz, or a map: .png, .pgm, .yaml, .map, .scen, .npy; for maze_unique and terrain their folder",
    )
    bring.add_argument("--task", required=True, help=f"its moves and observations: {', '.join(sorted(TASKS))}")
    bring.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder of datasets; its name is printed")
    bring.add_argument("--actions", choices=ORDERS, help=ORDER_HELP)
    bring.add_argument(
        "--crops", metavar="CELLS", type=int, help="of a map, or maze_unique: crops, each with a goal of its own"
    )
    bring.add_argument(
        "--count", metavar="N", type=int, help="how many crops (default: 10000), or goals on a whole map (100)"
    )
    add_reading(bring)

    take = verbs.add_parser("export", help="Write a dataset as one file in the GPPN layout (.npz).")
    take.set_defaults(verb=_export)
    take.add_argument("dataset", metavar="DATASET", type=Path, help="a dataset's folder")
    take.add_argument("file", metavar="FILE.npz", type=Path)
    take.add_argument("--labels", choices=("one_hot", "full"), default="one_hot", help="one action a cell, or all ties")
    take.add_argument("--actions", choices=ORDERS, default=ORDERS[0], help=ORDER_HELP)
    give = verbs.add_parser("export-model", help="Write a trained planner to hand on: safetensors, torch.export, ONNX.")
    give.set_defaults(verb=_export_model)
    give.add_argument("trial", metavar="TRIAL", help=TRIAL_HELP)
    give.add_argument(
        "out", metavar="OUT", type=Path, help="the folder, for `load_planner(OUT)`; or the file, NAME.pt2 or NAME.onnx"
    )
    give.add_argument(
        "--format",
        choices=("safetensors", "torch", "aoti", "onnx"),
        default="safetensors",
        help="a folder of weights, spec and card (default), or the whole plan as one graph: torch.export's, "
        "that compiled for C++ (AOTInductor), or ONNX",
    )
    give.add_argument("--licence", default="not stated", help="what the card says of it (default: not stated)")
    add_storage(give)
    for exchange in (bring, take, give):
        add_plugin_option(exchange)

    for name, run, text in (
        ("archive", _archive, "Write all results of a storage to one small Parquet file."),
        ("unarchive", _unarchive, "Put the results of such a file into a storage, for tables, figures and reports."),
    ):
        verb = verbs.add_parser(name, help=text)
        verb.set_defaults(verb=run)
        verb.add_argument("file", metavar="FILE.parquet", type=Path)
        add_storage(verb)
        add_plugin_option(verb)


def _import(options: argparse.Namespace) -> int:
    if options.task not in TASKS:  # the plug-ins have been loaded by now
        raise SweepError(f"--task: unknown name {options.task!r}; {nearest(options.task, TASKS)}")
    print(_imported(options))
    return 0


def _imported(options: argparse.Namespace) -> Path:
    from datagen.storage.npz import import_npz
    from datagen.storage.own_maps import CROPS, import_map, is_map

    reading, whole = reading_of(options, options.file), options.crops is None
    if options.task == "terrain" and whole:
        from datagen.storage.terrain import import_terrain

        _leave_out(options, "actions", "count")
        return import_terrain(options.file, options.out)
    if options.task == "maze_unique":
        from datagen.storage.maze_unique import import_crops, import_mazes

        if whole:
            _leave_out(options, "actions", "count")
            return import_mazes(options.file, options.out)
        _leave_out(options, "actions")
        count = CROPS if options.count is None else options.count
        return import_crops(options.file, options.out, size=options.crops, count=count)
    if is_map(options.file):
        _leave_out(options, "actions")
        return import_map(
            options.file, options.task, options.out, count=options.count, size=options.crops, reading=reading
        )
    _leave_out(options, "crops", "count")
    return import_npz(options.file, options.task, options.out, actions=options.actions or "4abs-cc")


_ONLY_FOR = {
    "actions": ".npz files in the GPPN layout have actions in an order",
    "crops": "maps, and mazes of --task maze_unique, are cut",
    "count": "crops, and problems on a map, are counted",
}


def _leave_out(options: argparse.Namespace, *names: str) -> None:
    """Refuse options that would mean nothing here."""
    for name in names:
        if getattr(options, name) is not None:
            raise SweepError(f"--{name}: only {_ONLY_FOR[name]}; leave it out for {options.file}")


def _check_ending(file: Path, ending: str) -> None:
    """Refuse a name that says another kind of file than the one that is written."""
    if file.suffix not in ("", ending):
        raise UserError(f"{file}: expected a name that ends in {ending}, the one kind of file that is written")


def _export(options: argparse.Namespace) -> int:
    from datagen.storage.npz import export_npz

    _check_ending(options.file, ".npz")
    export_npz(options.dataset, options.file, labels=options.labels, actions=options.actions)
    print(options.file)
    return 0


def _export_model(options: argparse.Namespace) -> int:
    from orchestrator.trial.export import export_graph, export_model

    for place, text in (("OUT", options.out.name), ("--licence", options.licence)):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"{place}: expected letters that UTF-8 has, got {text!r:.80}") from None
    trial = TrialDirectory(trial_folder(options.trial, options.storage))
    if options.format == "safetensors":
        export_model(trial, options.out, options.licence)
    else:
        export_graph(trial, options.out, options.format, options.licence)
    print(options.out)
    return 0


def _archive(options: argparse.Namespace) -> int:
    from orchestrator.storage.archive import write_archive

    _check_ending(options.file, ".parquet")
    print(f"{options.file}: {counted(write_archive(options.storage, options.file, tell), 'trial')}")
    return 0


def _unarchive(options: argparse.Namespace) -> int:
    from orchestrator.storage.archive import read_archive

    written, there = read_archive(options.file, options.storage, tell)
    print(f"{options.storage}: {written} of {counted(there, 'trial')} put there, {there - written} it had already")
    return 0
