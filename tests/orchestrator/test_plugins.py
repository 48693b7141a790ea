"""Plug-ins: the example's package down the quickstart's path, and what is said of a broken one."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from samples import put_result

from datagen.plugins import OWNERS, PluginError
from datagen.storage.checks import empty_problems
from datagen.storage.dataset import load_manifest
from datagen.storage.manifest import DatasetError
from datagen.tasks.registry import TASKS, DatasetSpec
from orchestrator.cli.main import main
from orchestrator.report.keeper import FreshReport
from orchestrator.storage.code import code_hash
from orchestrator.storage.layout import Storage
from orchestrator.storage.provenance import Provenance
from orchestrator.storage.results import TrialResult, write_json
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.plugins import load_plugins
from orchestrator.sweep.specs import SweepError, TrialSpec, expand, trial_id
from orchestrator.trial.failure import record_failure
from planners.inference import load_planner
from planners.specs import PlannerSpec

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def write(folder, text, name="mine"):
    (folder / f"{name}.py").write_text(text)
    sweep = folder / "sweep.yaml"
    sweep.write_text(f"name: s\nplugins: [{name}]\nplanners: {{p: {{core: vin}}}}\n")
    return sweep


CORE = """
from planners.options import VINOptions
from planners.specs import Entry

class Options(VINOptions):
    sharpness: float = 2.0

CORES = {"sharp": Entry("mine:Sharp", Options)}
"""


def test_the_six_of_table_1_are_the_same_trials_beside_a_plug_ins():
    plain = expand(load_sweep(ROOT / "sweeps" / "table1.yaml"))
    beside = expand(load_sweep(EXAMPLES / "residual_table1.yaml"))
    ids = {trial.trial_id for trial in plain}
    assert ids < {trial.trial_id for trial in beside}
    own = [trial for trial in beside if trial.trial_id not in ids]
    assert {trial.axes["planner"] for trial in own} == {"residual-vin", "id-residual-vin"}
    assert {trial.spec.plugins for trial in own} == {("street_planning",)}
    assert {trial.spec.plugins for trial in beside if trial.trial_id in ids} == {()}


def test_own_options_reach_validation_identity_and_the_grid(tmp_path):
    path = write(tmp_path, CORE)
    sweep = ["planners.p.core=sharp"]
    (plain,) = expand(load_sweep(path, overrides=sweep))
    (sharper,) = expand(load_sweep(path, overrides=[*sweep, "planners.p.sharpness=3"]))
    assert plain.spec.planner.options.sharpness == 2.0 and sharper.spec.planner.options.sharpness == 3.0
    assert plain.trial_id != sharper.trial_id
    axis = load_sweep(path, overrides=[*sweep, "grid={k: [5], seed: [0], planner.sharpness: [1, 2]}"])
    assert [trial.spec.planner.options.sharpness for trial in expand(axis)] == [1.0, 2.0]
    with pytest.raises(SweepError, match="unknown field 'sharpnes' for core 'sharp'; did you mean 'sharpness'"):
        load_sweep(path, overrides=[*sweep, "planners.p.sharpnes=3"])


def test_a_spec_is_read_back_where_its_plug_in_is_named(tmp_path):
    path = write(tmp_path, CORE)
    read = (
        "import sys; from orchestrator.sweep.specs import *\n"
        "from orchestrator.sweep.plugins import load_plugins_at_hand\n"
        "load_plugins_at_hand(); spec = TrialSpec.model_validate_json(sys.argv[1])\n"
        "print(trial_id(spec), type(spec.planner.options).__module__)"
    )
    make = (
        "import sys; from orchestrator.sweep.specs import *; from orchestrator.sweep.files import *\n"
        "(t,) = expand(load_sweep(sys.argv[1], overrides=['planners.p.core=sharp']))\n"
        "print(t.trial_id); print(t.spec.model_dump_json())"
    )

    def run(code, argument):
        command = [sys.executable, "-c", code, argument]
        environment = os.environ | {"IDP_PLUGINS": "mine"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True, env=environment)
        return done.stdout.split()

    made, spec = run(make, str(path))
    assert run(read, spec) == [made, "mine"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import absent_module\n", "importing 'mine' failed with ModuleNotFoundError.*mine.py, line 1"),
        ("\n\nx = 1 / 0\n", "importing 'mine' failed with ZeroDivisionError.*mine.py, line 3"),
        ("def f(:\n", "importing 'mine' failed with SyntaxError.*mine.py, line 1"),
        ("CORES = ['vin']\n", "mine.CORES: expected a dictionary, got list"),
        ("CORES = {'a': 'planners.cores.vin:VIN'}\n", r"mine.CORES\['a'\]: expected a name and a Entry, got a str"),
        (
            "from planners.specs import Entry\nCORES = {'vin': Entry('mine:X')}\n",
            r"mine.CORES\['vin'\]: the name is taken by this project",
        ),
        ("from planners.registry import CORES\n", "mine.CORES is the project's own"),
    ],
)
def test_a_broken_plug_in_is_told_with_its_own_line(tmp_path, text, message):
    with pytest.raises(SweepError, match=message):
        load_sweep(write(tmp_path, text))
    assert "mine" not in OWNERS.values()


PARTS = """
from dataclasses import dataclass
from datagen.tasks.registry import Task
from datagen.tasks.samples import Column, Samples
from planners.specs import Entry

@dataclass
class Plain:
    width: int = 3

def absent(spec):
    return {}["absent"]
"""


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("CORES = {'a': Entry('m:C', Plain)}", "options: expected a datagen.spec.Spec, got <class 'mine.Plain'>"),
        ("CORES = {'a': Entry('m:C', 'mine:Plain')}", "options: expected a datagen.spec.Spec, got 'mine:Plain'"),
        ("CORES = {'a': Entry('m:C', 'mine:Plan')}", "options: 'mine:Plan': AttributeError: module 'mine' has no"),
        ("CORES = {'a': Entry('m.C')}", "target: expected 'module:name', got 'm.C'"),
        ("SOLVERS = {'a': Entry('m:C', cores=('vin'))}", "cores: expected tuple, got 'vin'"),
        ("TASKS = {'a': Task('m:d', options=Plain)}", "options: expected a datagen.spec.Spec, got <class"),
        ("TASKS = {'a': Task('m:d', moves=('north',))}", "moves: expected Moves, got ('north',)"),
        ("TASKS = {'a': Task('m:d', observation_shape=(1, 9, 9))}", "observation_shape: expected a function, got (1,"),
    ],
)
def test_a_line_with_a_field_that_is_none_is_refused_when_it_is_loaded(tmp_path, lines, message):
    with pytest.raises(SweepError, match=re.escape(message)) as refused:
        load_sweep(write(tmp_path, PARTS + lines))
    assert re.search(r"plugins: mine\.(CORES|SOLVERS|TASKS)\['a'\]: ", str(refused.value))
    assert "mine" not in OWNERS.values()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("Task('m:d', map_shape=absent)", "map_shape: KeyError: 'absent' ("),
        ("Task('m:d', map_shape=lambda spec: 9)", "map_shape: expected two whole numbers, 1 or more, got 9"),
        ("Task('m:d', observation_shape=lambda spec: '1x9x9')", "observation_shape: expected whole numbers, 1 or more"),
        ("Task('m:d', check=absent)", "check: KeyError: 'absent' ("),
        ("Task('m:d', starts=absent)", "starts: KeyError: 'absent' ("),
        ("Samples('m:d', columns=lambda options: {'x': ()})", "columns: expected a mapping of names to Column, got"),
        (
            "Samples('m:d', columns=lambda options: {'x': Column('x', (), 'flot')})",
            "columns: TypeError: data type 'flot'",
        ),
    ],
)
def test_a_task_that_answers_what_can_not_be_is_named(tmp_path, monkeypatch, task, message):
    write(tmp_path, f"{PARTS}TASKS = {{'a': {task}}}")
    monkeypatch.chdir(tmp_path)
    load_plugins(["mine"])
    with pytest.raises((PluginError, ValidationError), match=re.escape(f"plugins: mine.TASKS['a']: {message}")):
        spec = DatasetSpec(task="a")
        empty_problems(spec) if "Samples" not in task else TASKS["a"].bytes_per_sample(spec)


@pytest.mark.parametrize(("names", "message"), [("mine", "a list"), ([3], "names of Python modules"), (["../x"], "x")])
def test_names_of_plug_ins_are_checked(names, message):
    with pytest.raises(PluginError, match=message):
        load_plugins(names)


def test_an_absent_plug_in_says_where_it_was_looked_for():
    with pytest.raises(PluginError, match="no module 'not_there' beside the sweep, in the current folder"):
        load_plugins(["not_there"])


def test_streets_have_eight_moves_any_shape_and_a_fingerprint():
    load_plugins(["street_planning"], beside=[EXAMPLES])
    spec = DatasetSpec(task="streets", map_size=9, options={"width": 14}, train=40, valid=4, test=4)
    problems = TASKS["streets"].draw()(spec, "train", 0, 40)
    assert problems.map.shape == (40, 9, 14) and problems.label.max() == 7
    assert len(spec.options.sha256) == 64
    # a diagonal step costs the square root of two, and a straight one 1
    reach = problems.distance[np.isfinite(problems.distance) & (problems.distance > 0)]
    assert reach.min() == 1 and np.isclose(reach, 2**0.5).any()
    again = TASKS["streets"].draw()(spec, "train", 30, 40)
    np.testing.assert_array_equal(again.map, problems.map[30:])
    with pytest.raises(ValueError, match=r"nowhere.map does not exist; expected one of \['town.map'\]"):
        DatasetSpec(task="streets", options={"file": "nowhere.map"})
    changed = DatasetSpec(task="streets", map_size=9, options={"sha256": "0" * 64})
    with pytest.raises(ValueError, match="its content is not the one that the dataset names"):
        TASKS["streets"].draw()(changed, "train", 0, 1)


def test_a_failure_that_others_write_down_is_of_the_plug_ins_code_too(tmp_path):
    """Else it passes for one of other code, and MLflow's run of the trial is made anew."""
    planned = expand(load_sweep(EXAMPLES / "streets.yaml"))[0]
    trial = Storage(tmp_path).trial(planned.trial_id)
    trial.write_spec(planned.spec)
    failed = record_failure(trial, RuntimeError("its process died"))
    assert failed.provenance.plugins == {"street_planning": code_hash("street_planning")}
    assert failed.provenance.made_by(code_hash())


@pytest.mark.parametrize(
    ("fields", "advice"),
    [("{core: symvin}", "give it equivariant_policy: false"), ("{core: contractive}", "give it group: trivial")],
)
def test_cores_that_turn_four_moves_refuse_eight_when_the_sweep_is_read(fields, advice):
    path = EXAMPLES / "streets.yaml"
    with pytest.raises(SweepError, match=f"streets.yaml: planners.tied: .*and the task has 8; {advice}"):
        load_sweep(path, overrides=[f"planners.tied={fields}"])
    plain = fields.replace("}", f", {advice.removeprefix('give it ')}}}")
    assert "tied" in load_sweep(path, overrides=[f"planners.tied={plain}"]).planners


@pytest.fixture(scope="module")
def campaign(tmp_path_factory, idp, database):
    """The example as a user has it: in a folder of one's own, started from another."""
    folder, elsewhere = tmp_path_factory.mktemp("own"), tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(EXAMPLES / "street_planning", folder / "street_planning")
    sweep = folder / "streets.yaml"
    text = (EXAMPLES / "streets.yaml").read_text()
    sweep.write_text(text.replace("../sweeps/", f"{ROOT}/sweeps/"))
    settings = ["data={train: 32, valid: 8, test: 8}", "grid={k: [3], seed: [0]}", "training={epochs: 1}"]
    settings += ["figures=[success]", "tasks=[{task: streets, map_size: 7, options: {width: 9}}]"]
    (folder / "storage").mkdir()
    (folder / "storage" / "mlflow.db").write_bytes(database)
    options = [sweep, "--storage", folder / "storage"]
    for setting in settings:
        options += ["--set", setting]

    def there(verb, *more):
        return idp(verb, *options, *more, cwd=elsewhere)

    return folder, elsewhere, there, there("run", "--in-process")


def test_the_example_runs_through_the_quickstarts_path(campaign):
    folder, _, idp, done = campaign
    assert done.returncode == 0, done.stderr
    for name in ("vin", "id-vin", "residual-vin", "id-residual-vin"):
        assert any(line.split()[:1] == [name] and "1/1" in line for line in done.stdout.splitlines()), done.stdout
    plan = json.loads(idp("plan", "--json").stdout)
    assert (plan["trials"], plan["done"]) == (4, 4)
    for name in plan["trial_ids"]:
        directory = Storage(folder / "storage").trial(name).path
        result = TrialDirectory(directory).read_result()
        weights = torch.load(directory / "checkpoint.pt", weights_only=True)["trainer"]["planner"]
        # the planner has as many actions as the task has moves
        (head,) = [weight for key, weight in weights.items() if key == "core.head.weight"]
        assert head.shape[0] == 8
        assert set(result.provenance.plugins) == {"street_planning"}


def test_an_installed_package_offers_itself(tmp_path):
    (tmp_path / "mine.py").write_text(CORE)
    installed = tmp_path / "mine-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[idp.plugins]\nmine = mine\n")
    sys.path.insert(0, str(tmp_path))
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("name: s\nplanners: {p: {core: sharp}}\n")
    (trial,) = expand(load_sweep(sweep))
    assert trial.spec.plugins == ("mine",)


def test_a_changed_plug_in_makes_its_results_stale(campaign):
    folder, _, idp, _ = campaign
    core = folder / "street_planning" / "core.py"
    core.write_text(core.read_text() + "\n# a remark changes nothing\n")
    assert json.loads(idp("plan", "--json").stdout)["done"] == 4
    core.write_text(core.read_text() + "\nCHANGED = True\n")
    plan = json.loads(idp("plan", "--json").stdout)
    assert (plan["done"], plan["stale"]) == (0, 4)


def test_other_verbs_are_told_the_plug_in_that_a_trial_needs(campaign, idp):
    folder, elsewhere, _, _ = campaign
    (dataset,) = (folder / "storage" / "datasets").iterdir()
    trials = sorted((folder / "storage" / "trials").iterdir())

    def run(*more, beside="", **variables):
        environment = {"PYTHONPATH": str(beside)} | variables
        return idp("evaluate", trials[0], dataset, "--json", *more, cwd=elsewhere, env=environment)

    done = run("--plugin", "street_planning", beside=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["maps"] == 8 and set(found["provenance"]["plugins"]) == {"street_planning"}
    unnamed, absent = run(beside=folder), run(IDP_PLUGINS="street_planning")
    assert unnamed.returncode == absent.returncode == 2
    assert "needs 'street_planning', which is not loaded" in unnamed.stderr
    assert "no module 'street_planning'" in absent.stderr
    assert "Traceback" not in unnamed.stderr + absent.stderr


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A folder with a module that leaves a trace when it is imported, the current one."""
    (tmp_path / "evil.py").write_text("open('ran', 'w').close()\nCORES = {}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    yield tmp_path
    assert "evil" not in sys.modules and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["evil", "unittest.__main__", "this", "antigravity"])
def test_no_file_has_a_module_imported(stranger, name):
    modules = set(sys.modules)
    spec = {**TrialSpec().model_dump(mode="json"), "plugins": [name]}
    with pytest.raises(ValueError, match=f"needs '{name}', which is not loaded.*--plugin {name}"):
        TrialSpec.model_validate(spec)
    manifest = {"plugins": [name], "dataset_id": "x", "spec": {}, "source": "generated", "shards": [], "code": ""}
    (stranger / "manifest.json").write_text(json.dumps({**manifest, "versions": {}}))
    with pytest.raises(DatasetError, match=rf"manifest.json: .*plugins: needs '{name}', which is not loaded"):
        load_manifest(stranger)
    (stranger / "spec.json").write_text(json.dumps(spec))
    torch.save({"trainer": {}}, stranger / "checkpoint.pt")
    with pytest.raises(PluginError, match=r"spec.json: plugins: needs .* which is not loaded"):
        load_planner(stranger)
    origin = Provenance(code=code_hash(), plugins={name: code_hash()})
    assert not origin.made_by(code_hash())
    assert name in modules or name not in sys.modules


def test_verbs_refuse_or_skip_what_needs_a_plug_in_that_nobody_named(stranger, capsys):
    directory = Storage(stranger / "idp-storage").trial("0123456789abcdef").path
    write_json(directory / "spec.json", {**TrialSpec().model_dump(mode="json"), "plugins": ["evil"]})
    result = TrialResult(trial_id=directory.name, status="COMPLETED", forward_seconds=1.0, backward_seconds=1.0)
    put_result(directory, result)
    for words in (
        ["evaluate", str(directory), "."],
        ["show", str(directory), "--out", "x.png"],
        ["archive", "a.parquet"],
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "'evil', which is not loaded" in said and said.count("\n") == 1
    sweep = stranger / "sweep.yaml"
    sweep.write_text("name: s\nplanners: {p: {core: vin}}\n")
    assert main(["plan", str(sweep)]) == main(["table", str(sweep)]) == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import sys\nsys.exit(0)\n", "SystemExit: 0 .*mine.py, line 2"),
        ("import os\nos._exit(0)\n", r"SystemExit: os._exit\(0\) .*mine.py, line 2"),
        ("from os import _exit\n_exit(0)\n", r"SystemExit: os._exit\(0\) .*mine.py, line 2"),
        ("raise KeyboardInterrupt\n", "KeyboardInterrupt.*mine.py, line 1"),
        ("class Odd(BaseException): ...\nraise Odd('no')\n", "Odd: no .*mine.py, line 2"),
    ],
)
def test_an_import_that_ends_the_process_is_a_failed_import(tmp_path, capsys, text, reason):
    assert main(["plan", str(write(tmp_path, text))]) == 2
    said = capsys.readouterr().err
    assert re.search(f"importing 'mine' failed with {reason}", said) and said.count("\n") == 1
    assert os._exit.__module__ == "posix"


def test_code_that_ends_the_process_later_is_told_too(tmp_path, capsys):
    later = "import sys\n" + CORE.replace("float = 2.0", "float = 2.0\n    def check_moves(self, moves): sys.exit(0)")
    assert main(["plan", str(write(tmp_path, later)), "--set", "planners.p.core=sharp"]) == 2
    said = capsys.readouterr().err
    assert "mine.py" in said and "sys.exit(0)" in said and said.count("\n") == 1


def test_a_child_of_an_import_ends_as_it_must(tmp_path):
    fork = "import os\nchild = os.fork()\nif not child: os._exit(7)\nSTATUS = os.waitpid(child, 0)[1]\n"
    load_sweep(write(tmp_path, fork + CORE))
    assert os.waitstatus_to_exitcode(sys.modules["mine"].STATUS) == 7


def test_what_an_import_prints_stays_out_of_the_answer(tmp_path, capsys):
    assert main(["plan", str(write(tmp_path, "print('hello')\n" + CORE)), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["trials"] == 1 and "hello" in printed.err


def test_nothing_changes_without_plug_ins():
    assert trial_id(TrialSpec()) == "44136fa355b3678a"
    assert trial_id(TrialSpec(planner=PlannerSpec(q_channels=40, k_bwd=10, solver="anderson"))) == "bc96d631b2844b49"


def test_the_process_that_draws_knows_the_plug_ins(tmp_path):
    sweep = load_sweep(EXAMPLES / "vin_parts.yaml")
    keeper = FreshReport(sweep, Storage(tmp_path), seconds=0.01)
    path = tmp_path / "sweeps" / "vin_parts" / "report.html"
    keeper.note()
    deadline = time.monotonic() + 60
    while not path.exists() and keeper.error is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert keeper.error is None and "still running" in path.read_text()
    keeper.close()
