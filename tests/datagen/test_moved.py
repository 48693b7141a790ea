"""What code of version 0.1 imports is found, and it is told the new name."""

import importlib
import subprocess
import sys

import pytest

from datagen.moved import MODULES

OLD = """
from datagen.expert import solve
from datagen.links import Links, solve_links
from datagen.parquet import read_split
from datagen.proposals import Proposal, draw_maps, draw_proposed
from datagen.task import SPLITS, TASKS, DatasetSpec, Split, Task, dataset_id
from datagen.visual import VisualOptions
from orchestrator.cli import main
from orchestrator.results import read_results, trial_directory
from orchestrator.show import write_dataset_picture, write_trial_pictures
from orchestrator.trained import Inputs, load_trained
from planners.adjoints import Implicit
from planners.cores import Injected
from planners.cores.bellman import convolve, maximum, same_conv
from planners.cores.value_iteration import ValueIteration
from planners.evaluation import Inputs
from planners.fixed_points import fixed_point, root
from planners.solvers import Anderson, ForwardIteration, Step
from planners.specs import TrainingSpec, VINOptions
from planners.training import Trainer
import datagen.task, datagen.tasks.registry
assert datagen.task is datagen.tasks.registry and datagen.task.TASKS is TASKS
"""


@pytest.mark.slow
def test_imports_of_version_0_1_work_and_warn():
    done = subprocess.run([sys.executable, "-Walways", "-c", OLD], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for said in (
        "datagen.task is now datagen.tasks.registry; the old name will go with version 0.3",
        "planners.specs.VINOptions is now planners.options.VINOptions",
        "planners.training.Trainer is now planners.training.trainer.Trainer",
        "orchestrator.cli.main is now orchestrator.cli.main.main",
        "<string>:6: DeprecationWarning",
    ):
        assert said in done.stderr, done.stderr


@pytest.mark.parametrize("old", MODULES)
def test_every_old_name_is_one_and_the_same_module(old, monkeypatch):
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {MODULES[old]}"):
        module = importlib.import_module(old)
    assert module is importlib.import_module(MODULES[old])


def test_what_never_was_is_not_found():
    import planners.training

    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("planners.never")
    with pytest.raises(AttributeError, match=r"module 'planners\.training' has no attribute 'never'"):
        _ = planners.training.never
