"""The example of experts in a real cluster: are they tasks there, and do they train as they do in one process?"""

from __future__ import annotations

from pathlib import Path

import pytest

from datagen.storage.dataset import make_dataset
from orchestrator.storage.layout import Storage
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.plugins import load_plugins
from orchestrator.sweep.specs import expand
from orchestrator.trial.train import run_trial

EXAMPLES = Path(__file__).parents[1] / "examples"
TASKS = """
from ray.util.state import list_tasks
print(*(task.name for task in list_tasks("ADDRESS", limit=1000, filters=[("state", "=", "FINISHED")])))
"""


def test_experts_are_solved_and_differentiated_in_tasks_as_in_one_process(tmp_path, idp, head):
    only = ("--profile", "smoke", "--only", "planner=workers", "--tracking-uri", "none")
    sweep, storage = EXAMPLES / "experts_square.yaml", Storage(tmp_path / "cluster")
    done = idp("run", sweep, *only, "--storage", storage.path, "--address", head.address)
    assert done.returncode == 0, done.stderr
    (away,) = storage.results().values()
    asked = idp(python=TASKS.replace("ADDRESS", head.jobs_address))
    assert asked.returncode == 0, asked.stderr
    ended = asked.stdout.split()
    assert ended.count("_back") == 4 and ended.count("_forth") > 4  # an expert each; training, validation and test

    load_plugins(["experts"], beside=[EXAMPLES])
    (trial,) = (trial for trial in expand(load_sweep(sweep, "smoke")) if trial.axes["planner"] == "workers")
    make_dataset(trial.spec.data, Storage(tmp_path / "here").datasets)
    here = run_trial(trial.spec, Storage(tmp_path / "here"))
    for name in ("error", "residual"):
        assert away.metrics[name] == pytest.approx(here.metrics[name], rel=1e-6)
