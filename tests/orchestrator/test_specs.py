"""Sweeps: what they expand to, what names their trials, and how a mistake is told."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import EXAMPLES
from pydantic import ValidationError

from datagen.spec import Spec, canonical_json
from datagen.tasks.registry import TASKS, DatasetSpec, dataset_id
from orchestrator.storage.layout import Storage
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.selection import find_trial, select
from orchestrator.sweep.specs import SweepError, SweepSpec, TrialSpec, expand, further_tests, trial_id
from planners.specs import PlannerSpec, TrainingSpec

SWEEPS = sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml"))
TINY = {
    "name": "tiny",
    "tasks": [{"task": "navigation", "map_size": 15}, {"task": "navigation", "map_size": 27}],
    "data": {"train": 64, "valid": 8, "test": 8},
    "planners": {"vin": {"core": "vin", "adjoint": "unrolled"}, "id-vin": {"core": "vin"}},
    "grid": {"k": [10, 20], "seed": [0, 1, 2]},
    "training": {"epochs": 1},
    "profiles": {"smoke": {"data": {"train": 32}, "grid": {"seed": [0]}}},
}


def write(folder, document, name="tiny.yaml"):
    path = folder / name
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


# Golden: these identities are in people's storage. They may only change with a reason in the changelog.
GOLDEN = {
    "default": (TrialSpec(), "44136fa355b3678a"),
    "table": (
        TrialSpec(
            data=DatasetSpec(map_size=27, train=5000),
            planner=PlannerSpec(core="vin", adjoint="unrolled", k_fwd=80),
            training=TrainingSpec(epochs=30, labels="all_optimal"),
            seed=3,
        ),
        "cd90a45cab7b6242",
    ),
    "options": (TrialSpec(planner=PlannerSpec(q_channels=40, k_bwd=10, solver="anderson")), "bc96d631b2844b49"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_identities_are_those_in_peoples_storage(name):
    spec, expected = GOLDEN[name]
    assert trial_id(spec) == expected


def test_another_process_names_trials_alike():
    code = (
        "import json; from orchestrator.sweep.specs import *\nfrom orchestrator.sweep.files import load_sweep\n"
        f"sweep = load_sweep({str(SWEEPS[0])!r})\n"
        "print(json.dumps([trial.trial_id for trial in expand(sweep)]))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "77"}
    )
    assert json.loads(other.stdout) == [trial.trial_id for trial in expand(load_sweep(SWEEPS[0]))]


def test_a_new_field_with_a_default_leaves_identities_alone():
    class Later(TrialSpec):
        novelty: int = 5

    spec = TrialSpec(seed=4)
    assert canonical_json(Later(seed=4)) == canonical_json(spec)
    assert canonical_json(Later(seed=4, novelty=6)) != canonical_json(spec)


def test_a_default_that_is_spelt_out_changes_nothing():
    spelt = {"core": "vin", "adjoint": "implicit", "q_channels": 100, "solver_bwd_options": {"depth": 5}}
    assert trial_id(TrialSpec(planner=PlannerSpec.model_validate(spelt))) == trial_id(TrialSpec())
    assert PlannerSpec(q_channels=50) == PlannerSpec(options={"q_channels": 50})


def test_how_a_gpu_launches_a_trial_s_steps_makes_no_other_trial_of_it():
    assert trial_id(TrialSpec(execution={"graphs": True})) == trial_id(TrialSpec(execution={"graphs": False}))
    assert trial_id(TrialSpec(execution={"graphs": None})) == trial_id(TrialSpec())
    assert trial_id(TrialSpec(execution={"kernel": "reference"})) != trial_id(TrialSpec())


def test_the_grid_is_the_product_of_its_axes(tmp_path):
    trials = expand(load_sweep(write(tmp_path, TINY)))
    keys = ("map_size", "planner", "k", "seed")
    expected = list(itertools.product([15, 27], ["vin", "id-vin"], [10, 20], [0, 1, 2]))
    assert [tuple(trial.axes[key] for key in keys) for trial in trials] == expected
    assert len({trial.trial_id for trial in trials}) == len(expected)


def test_any_field_of_the_trial_is_an_axis_and_a_planner_may_have_its_own(tmp_path):
    document = TINY | {
        "tasks": [{"map_size": 15}],
        "grid": {"k": [10], "seed": [0], "training.learning_rate": [0.1, 0.2]},
        "planners": {"id-vin": {"grid": {"planner.k_bwd": [5, 6], "k": [7]}}},
    }
    trials = expand(load_sweep(write(tmp_path, document)))
    found = [(t.spec.planner.k_fwd, t.spec.training.learning_rate, t.spec.planner.k_bwd) for t in trials]
    assert sorted(found) == [(7, 0.1, 5), (7, 0.1, 6), (7, 0.2, 5), (7, 0.2, 6)]
    assert trials[0].axes["planner.k_bwd"] == 5


def test_the_tasks_surroundings_reach_the_planner():
    for name, task in TASKS.items():
        training = {"mapper_pretrain_epochs": 0} if task.cell_costs else {}
        sweep = {"name": "s", "tasks": [{"task": name}], "planners": {"p": {}}, "training": training}
        (trial,) = expand(SweepSpec.model_validate(sweep))
        assert trial.spec.planner.wrap == task.moves.wrap
        assert trial.spec.planner.mapper == task.mapper


def test_profiles_extension_and_settings_are_laid_over_each_other(tmp_path):
    base = write(tmp_path, TINY)
    child = {"extends": base.name, "name": "child", "planners": {"more": {"q_channels": 7}}}
    path = write(tmp_path, child, "child.yaml")
    sweep = load_sweep(path, "smoke", ["training.epochs=9", "tasks.1.map_size=49", "grid.training.epsilon=[0.1]"])
    assert list(sweep.planners) == ["vin", "id-vin", "more"]
    assert (sweep.data["train"], sweep.grid["seed"], sweep.training["epochs"]) == (32, [0], 9)
    assert [task["map_size"] for task in sweep.tasks] == [15, 49]
    assert sweep.grid["training.epsilon"] == [0.1]


def test_an_extension_trains_only_what_is_new(tmp_path):
    base = {trial.trial_id for trial in expand(load_sweep(write(tmp_path, TINY)))}
    child = {"extends": "tiny.yaml", "name": "child", "planners": {"more": {"q_channels": 7}}}
    extended = {trial.trial_id for trial in expand(load_sweep(write(tmp_path, child, "child.yaml")))}
    assert base < extended and len(extended - base) == 12


def test_a_merged_mapping_may_be_overridden(tmp_path):
    path = tmp_path / "merged.yaml"
    path.write_text("name: m\nplanners: {a: &a {core: vin, k_bwd: 3}, b: {<<: *a, k_bwd: 4}}")
    assert [trial.spec.planner.k_bwd for trial in expand(load_sweep(path))] == [3, 4]


def test_a_ray_cluster_file_is_a_sweep(tmp_path):
    cluster = {"cluster_name": "lab", "provider": {"type": "external"}, "metadata": {"sweep": TINY}}
    assert load_sweep(write(tmp_path, cluster, "cluster.yaml")) == load_sweep(write(tmp_path, TINY))


def test_only_selects_by_value_and_by_id(tmp_path):
    trials = expand(load_sweep(write(tmp_path, TINY)))
    assert len(select(trials, "planner=id-vin,k=20,seed=0,seed=1")) == 4
    assert select(trials, f"id={trials[3].trial_id[:10]}") == [trials[3]]
    assert find_trial(trials, trials[5].trial_id[:9]) == trials[5]
    with pytest.raises(SweepError, match=r"unknown key 'planer'; did you mean 'planner'"):
        select(trials, "planer=vin")
    with pytest.raises(SweepError, match="no trial of the sweep matches"):
        select(trials, "k=99")
    with pytest.raises(SweepError, match="expected a trial's id"):
        find_trial(trials, "")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("foo=1", "unknown field 'foo'"),
        ("epochs=3", "unknown field 'epochs'; did you mean 'training.epochs'?"),
        ("k=3", "unknown field 'k'; did you mean 'grid.k'?"),
        ("core=vin", "unknown field 'core'; did you mean 'planners.NAME.core'?"),
        ("nmae=x", "unknown field 'nmae'; did you mean 'name'?"),
        ("planners.vin.core=vim", "planners.vin: planner: core: unknown name 'vim'; did you mean 'vin'?"),
        ("planners.vin.qchannels=3", "unknown field 'qchannels' for core 'vin'; did you mean 'q_channels'?"),
        ("planners.vin.q_channels=many", "core 'vin': q_channels: expected a whole number, got 'many'"),
        ("planners.vin.kernel_size=4", "kernel_size must be odd"),
        ("planners.vin.solver=anderson", "adjoint 'unrolled' differentiates through forward iteration"),
        ("planners.vin.k_bwd=7", "k_bwd means nothing with adjoint 'unrolled'"),
        ("planners.id-vin.solver=newtn", "solver: unknown name 'newtn'"),
        ("planners.vin=3", "planners.vin: expected a mapping, got 3"),
        ("planners=[]", "planners: expected a mapping, got []"),
        ("data.trian=5", "tasks.0: unknown field 'trian'; did you mean 'train'?"),
        ("data.train=8", "data.train is 8, less than one batch (training.batch_size 32)"),
        ("data.test=0", "data.test is 0"),
        ("training.discount_from=0.9", "training.discount_from is 0.9, expected none: core 'vin' has no discount"),
        ("training.jacobian_weight=2", "expected jacobian_weight and jacobian_frequency both above 0"),
        ("training.epochs=" + "9" * 30, "training.epochs: expected less than 1000000000, got 99999"),
        ("training.learning_rate=1e300", "training.learning_rate: expected 1e+30 or less, got 1e+300"),
        ("planners.vin.q_channels=2000000000", "core 'vin': q_channels: expected 65536 or less, got 2000000000"),
        ("training.optimizer=sgd", "training.optimizer: expected 'rmsprop' or 'adam', got 'sgd'"),
        ("training.learning_rate=.nan", "learning_rate"),
        ("tasks.0.task=navigatoin", "tasks.0: task: unknown name 'navigatoin'; did you mean 'navigation'?"),
        ("tasks.7.map_size=9", "the sweep has no task 7"),
        ("tasks.².map_size=9", "tasks: expected a list, got {'²': "),
        (f"tasks.{'9' * 5000}.map_size=9", "tasks: expected a list, got {'999"),
        ("tasks=[]", "tasks: expected 1 or more parts, got []"),
        ("grid.k=[0]", "planners.vin: planner.k_fwd: expected 1 or more, got 0"),
        ("grid.k=[[30]]", "grid.k.0: expected a text, a finite number, true, false or null, got [30]"),
        ("planners.vin.grid={k: [.inf]}", "planners.vin.grid.k.0: expected a text, a finite number, true, false or"),
        ("search.space.planner.k_bwd={low: [1]}", "search.space.planner.k_bwd.low: expected a finite number, got [1]"),
        ("planners.vin.trainig={epochs: 3}", "planners.vin: unknown field 'trainig'; did you mean 'training'?"),
        ("planners.vin.epochs=3", "unknown field 'epochs'; did you mean 'planners.vin.training.epochs'?"),
        ("planners.vin.seed=[3]", "unknown field 'seed'; did you mean 'planners.vin.grid.seed'?"),
        ("planners.vin.train=3", "planners.vin: unknown field 'train'; did you mean 'data.train'?"),
        ("grid.seed=[]", "grid.seed: expected at least one value"),
        ("grid.colour=[1]", "grid.colour: expected k, seed, planner.FIELD or training.FIELD"),
        ("name=../../etc/passwd", "expected at most 64 letters"),
        ("planners={'a/b': {}}", "expected at most 64 letters"),
        ("execution.device=gpu", "execution.device: expected 'auto', 'cpu' or 'cuda', got 'gpu'"),
        ("resources.stall_seconds=1e-9", "resources.stall_seconds: expected 2.0 or more, got 1e-09"),
        ("execution.memory_limit_gib=1e300", "memory_limit_gib: expected 1000000000.0 or less, got 1e+300"),
        ("resources.min_memory_gib=1e300", "min_memory_gib: expected 1000000000.0 or less, got 1e+300"),
        ("resources.cpus=1e300", "resources.cpus: expected 1000000000.0 or less, got 1e+300"),
        ("resources.gpus=1e300", "resources.gpus: expected a number from 0 to 1e+09, or 'auto', got 1e+300"),
        ("resources.at_most.gpus=1e300", "resources.at_most.gpus: expected 1000000000.0 or less, got 1e+300"),
        ("resources.at_most.cpus=0.5", "resources.at_most.cpus: expected 1 or more, as one trial has, got 0.5"),
        ("resources={cpus: 4, at_most: {cpus: 3}}", "resources.at_most.cpus: expected 4 or more"),
        ("resources={gpus: 2, at_most: {gpus: 1}}", "resources.at_most.gpus: expected 2 or more"),
        ("resources={accelerator: H100, at_most: {gpus: 0.5}}", "resources.at_most.gpus: expected 1 or more"),
        ("epochs", "expected path=value"),
        ("training.epochs=[", "the value is not valid YAML"),
        ("training.epochs=three", "training.epochs: expected a whole number, got 'three'"),
        ("grid=" + str({"seed": list(range(400)), "k": list(range(1, 300))}), "more than 100000 trials"),
        ("figures=[succes]", "figures: unknown name 'succes'; did you mean 'success'?"),
        ("figures=[success, '<b>']", "figures: unknown name '<b>'; known: "),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_one_line(tmp_path, setting, expected):
    with pytest.raises(SweepError) as caught:
        load_sweep(write(tmp_path, TINY), overrides=[setting])
    message = str(caught.value)
    assert expected in message and "\n" not in message
    assert message.startswith("--set") or "tiny.yaml: " in message


def test_what_is_enough_for_one_trial_is_taken(tmp_path):
    for resources in ("{at_most: {cpus: 1, gpus: 0.5}}", "{gpus: 0.5, at_most: {gpus: 0.5}}"):
        load_sweep(write(tmp_path, TINY), overrides=[f"resources={resources}"])  # "auto" may be no GPU


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [", "found '<stream end>' in line 1, column 8"),
        ("- a", "expected a mapping (name, planners, grid, ...), got a list"),
        ("", "expected a mapping (name, planners, grid, ...), got nothing"),
        ("name: a\nname: b", "key 'name' is given twice"),
        ("planners: {a: &a {core: vin, k_bwd: 3}, b: {<<: *a, core: spt, core: vin}}", "key 'core' is given twice"),
        ("1: a", "key 1 must be text"),
        ("extends: other.yaml", "No such file"),
        ("extends: bad.yaml", "in a circle"),
        ("extends: [a]", "extends: expected the name of a sweep file"),
        ("name: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("profiles: 3\nname: a", "profiles: expected a mapping"),
        ("metadata: {sweep: 3}", "expected a mapping"),
        ("extend: quickstart", "unknown field 'extend'; did you mean 'extends'?"),
        ("profile: {smoke: {}}", "unknown field 'profile'; did you mean 'profiles'?"),
        ("epochs: 3", "unknown field 'epochs'; did you mean 'training.epochs'?"),
        ("extends: quickstrat", "No such file or directory; did you mean quickstart?"),
    ],
)
def test_a_bad_file_is_told_in_one_line(tmp_path, text, expected):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(SweepError) as caught:
        load_sweep(path)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_profile_names_the_nearest(tmp_path):
    with pytest.raises(SweepError, match=r"no profile 'smok'; did you mean 'smoke'\?"):
        load_sweep(write(tmp_path, TINY), "smok")


def test_a_profile_of_a_sweep_that_has_none_is_told_so(tmp_path):
    with pytest.raises(SweepError, match=r"no profile 'p'; it has none$"):
        load_sweep(write(tmp_path, {name: part for name, part in TINY.items() if name != "profiles"}), "p")


@pytest.mark.parametrize("field", ["extends", "profiles"])
def test_what_stands_in_a_file_alone_is_told_so_elsewhere(tmp_path, field):
    path = write(tmp_path, TINY | {"profiles": {"p": {field: "quickstart"}}})
    for profile, overrides in (("p", []), (None, [f"{field}=quickstart"])):
        with pytest.raises(SweepError, match=rf"{field}: stands at the top of a sweep's file"):
            load_sweep(path, profile, overrides)


def test_a_link_that_leads_nowhere_is_not_what_was_meant(tmp_path):
    (tmp_path / "gone.yaml").symlink_to("nowhere.yaml")
    with pytest.raises(SweepError, match=r"gone.yaml: No such file or directory$"):
        load_sweep(tmp_path / "gone.yaml")


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_and_profile_of_the_project_expands(path):
    document = yaml.safe_load(path.read_text())
    document = document.get("metadata", {}).get("sweep", document)
    for profile in (None, *document.get("profiles", {})):
        sweep = load_sweep(path, profile)
        assert expand(sweep) or sweep.search is not None, "a search has trials once it has made suggestions"


values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(data=st.data())
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_fuzzed_sweeps_are_accepted_or_refused_with_one_line(mutated_file, data):
    document = json.loads(json.dumps(TINY | {"profiles": {"p": {"training": {"epochs": 1}}}}))
    for _ in range(data.draw(st.integers(1, 3))):
        spot = document
        while True:
            keys = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
            key = data.draw(st.sampled_from(keys))
            if isinstance(spot[key], (dict, list)) and spot[key] and data.draw(st.booleans()):
                spot = spot[key]
            else:
                break
        spot[key] = data.draw(values)
    mutated_file.write_text(yaml.safe_dump(document))
    assert_accepted_or_refused_in_one_line(mutated_file)


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_fuzzed_letters_of_a_sweep_are_accepted_or_refused_with_one_line(mutated_file, data):
    text = data.draw(st.sampled_from([path.read_text() for path in SWEEPS]))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        stop = start + data.draw(st.integers(0, 3))
        inserted = data.draw(st.text(alphabet="{}[]:,-#&*!|>'\"%@\n\t ~01e.<é\x00../$abc", max_size=4))
        text = text[:start] + inserted + text[stop:]
    mutated_file.write_text(text)
    assert_accepted_or_refused_in_one_line(mutated_file)


@pytest.fixture(scope="module")
def mutated_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mutated")
    for path in SWEEPS:  # what they extend
        shutil.copy(path, folder)
    return folder / "m.yaml"


def assert_accepted_or_refused_in_one_line(path):
    try:
        sweep = load_sweep(path)
        trials = expand(sweep)
    except SweepError as error:
        assert str(error).startswith(str(path.parent)) and "\n" not in str(error)
        return
    assert all(isinstance(trial.spec, Spec) for trial in trials)
    storage = path.parent / "storage"
    places = [storage / "sweeps" / sweep.name]
    places += [storage / "datasets" / dataset_id(trial.spec.data) for trial in trials]
    places += [Storage(storage).trial(trial.trial_id).path for trial in trials]
    for place in places:
        assert place.resolve().is_relative_to(storage.resolve()) and place.resolve() != storage.resolve()


def test_a_budget_is_the_same_for_all_planners(tmp_path):
    without = {trial.trial_id for trial in expand(load_sweep(write(tmp_path, TINY)))}
    assert {trial.trial_id for trial in expand(load_sweep(write(tmp_path, TINY), overrides=["budget={}"]))} == without
    limits = "budget={steps: 7, seconds: 60, applications: 500, epochs: 2}"
    trials = expand(load_sweep(write(tmp_path, TINY), overrides=[limits]))
    for trial in trials:
        training = trial.spec.training
        assert (training.most_steps, training.most_seconds, training.most_applications) == (7, 60.0, 500.0)
        assert training.epochs == 2
    assert without.isdisjoint({trial.trial_id for trial in trials})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("planners.vin.training.most_steps=9", "planners.vin.training.most_steps: the sweep's budget fixes it"),
        ("grid.training.most_steps=[1, 2]", "grid.training.most_steps: the sweep's budget fixes it"),
        (
            "search={space: {training.most_steps: {low: 5, high: 9}}}",
            "search.space.training.most_steps: the sweep's budget fixes it",
        ),
        ("planners.vin.test_steps_per_row=1e300", "planners.vin.test_steps_per_row"),
        ("budget.minutes=5", "unknown field 'minutes'"),
        ("budget.steps=0", "budget.steps"),
    ],
)
def test_a_planner_with_a_budget_of_its_own_is_refused(tmp_path, override, message):
    document = {**TINY, "budget": {"steps": 7}}
    with pytest.raises(SweepError, match=re.escape(message)):
        load_sweep(write(tmp_path, document), overrides=[override])


def test_datasets_of_one_task_and_size_have_cells_of_their_own(tmp_path):
    tasks = [
        {"task": "manipulation", "map_size": 9},
        {"task": "manipulation", "map_size": 9, "options": {"inclusive_angles": True}},
        {"task": "manipulation", "map_size": 12},
    ]
    trials = expand(load_sweep(write(tmp_path, TINY | {"tasks": tasks, "grid": {"k": [5], "seed": [0]}})))
    places = [trial.axes.get("data.inclusive_angles") for trial in trials if trial.axes["planner"] == "vin"]
    assert places == [False, True, None]
    assert len(select(trials, "data.inclusive_angles=True")) == 2


def _dataset_of(data, **sweep):
    (trial,) = expand(SweepSpec(name="s", planners={"vin": {"core": "vin"}}, data=data, **sweep))
    return trial.spec.data


def test_a_sweep_has_the_newer_rule_of_what_is_distinct_and_may_have_the_first():
    assert _dataset_of({}).distinct == "up_to_symmetry"
    assert dataset_id(_dataset_of({"distinct": "maps"})) == dataset_id(DatasetSpec())
    assert dataset_id(_dataset_of({})) != dataset_id(DatasetSpec())
    assert _dataset_of({"imported": "0" * 64}) == DatasetSpec(imported="0" * 64)


def test_further_tests_are_a_sample_of_their_own_except_by_the_first_rule():
    def further(data, **fields):
        sweep = SweepSpec(name="s", planners={"vin": {"core": "vin"}}, data=data, test_on=[fields])
        return further_tests(sweep, expand(sweep)[0].spec.data, 0)

    assert further({"seed": 3}) == DatasetSpec(train=0, valid=0, test=1000, seed=4, distinct="up_to_symmetry")
    assert further({}, seed=0, map_size=27).seed == 0
    assert further({"seed": 3, "distinct": "maps"}) == DatasetSpec(train=0, valid=0, test=1000)
    imported = {"imported": "0" * 64, "test": 7}
    assert further({}, **imported) == DatasetSpec(train=0, valid=0, **imported)


def test_an_imported_set_has_no_rule_of_what_is_distinct():
    with pytest.raises(ValidationError, match="distinct: says how a set is made"):
        DatasetSpec(imported="0" * 64, distinct="up_to_symmetry")


def test_what_no_generator_can_make_is_refused_when_the_sweep_is_read():
    with pytest.raises(SweepError, match=r"map_size: task 'visual_navigation' draws .* odd sizes; got 16"):
        _dataset_of({"map_size": 16}, tasks=[{"task": "visual_navigation"}])
    with pytest.raises(SweepError, match=r"options.wall_texture: MiniWorld has no texture 'brick_wal'; did you mean"):
        _dataset_of({}, tasks=[{"task": "visual_navigation", "options": {"wall_texture": "brick_wal"}}])
    # Brought from elsewhere, it need not be made.
    assert DatasetSpec(task="visual_navigation", map_size=16, imported="0" * 64).map_size == 16


def test_sets_that_differ_in_a_list_are_no_seeds_of_one_cell():
    tasks = [
        {"task": "mazes", "map_size": 9, "options": {"kinds": kinds}} for kinds in (["perfect"], ["noise", "caves"])
    ]
    trials = expand(SweepSpec(name="s", planners={"vin": {"core": "vin"}}, tasks=tasks))
    assert [trial.axes["data.kinds"] for trial in trials] == ["perfect", "noise, caves"]
    assert len({tuple(trial.cell.items()) for trial in trials}) == 2
