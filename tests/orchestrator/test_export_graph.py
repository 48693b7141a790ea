"""`idp export-model --format torch|onnx`: a planner as one graph that plans as the planner does, elsewhere.

Making a graph takes torch some seconds of processor time, so by default one is made, of the published weights, and
every core is compared in the form that is written; with IDP_EXPORT_ALL set a graph is made of each.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datagen.problem import FOUR, FOUR_WRAP, Moves
from orchestrator.cli.main import main
from orchestrator.trial import export
from planners import load_planner
from planners.planner import Planner, build_planner
from planners.portable import agreement
from planners.portable.formats import ABOUT, exported, opened, written
from planners.portable.inference_form import OUTPUTS, InferenceForm, StepRule
from planners.specs import PlannerSpec
from planners.trial_files import PlannerError, most_steps

ROOT = Path(__file__).parents[2]
EIGHT = Moves(
    names=("n", "nw", "w", "sw", "s", "se", "e", "ne"),
    offsets=((-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1), (0, 1), (-1, 1)),
    costs=(1.0, 1.5) * 4,
)
SPT = {"core": "spt", "embedding": 8, "heads": 2, "feedforward": 8}
SMALL = {"hidden_channels": 8, "q_channels": 8}
CASES = {
    "vin": (FOUR, {"core": "vin", **SMALL}),
    "vin-torus": (FOUR_WRAP, {"core": "vin", **SMALL, "kernel_size": 5, "wrap": True}),
    "vin-unrolled": (FOUR, {"core": "vin", **SMALL, "adjoint": "unrolled", "k_fwd": 7}),
    "vin-smooth-8": (EIGHT, {"core": "vin", **SMALL, "temperature": 0.1}),
    "symvin": (FOUR, {"core": "symvin", "hidden_channels": 4, "q_channels": 2}),
    "conv_gppn": (FOUR, {"core": "conv_gppn", **SMALL}),
    "conv_gppn-torus": (FOUR_WRAP, {"core": "conv_gppn", **SMALL, "wrap": True}),
    "contractive": (FOUR, {"core": "contractive", **SMALL, "discount": 0.9}),
    "contractive-anderson": (FOUR, {"core": "contractive", **SMALL, "discount": 0.8, "solver": "anderson"}),
    "contractive-sweeps": (FOUR, {"core": "contractive", **SMALL, "discount": 0.8, "solver": "gauss_seidel"}),
    "spt": (FOUR, {**SPT, "inject_map": True}),
    "spt-stack": (FOUR, {**SPT, "adjoint": "unrolled", "k_fwd": 1}),
    "reachability": (FOUR, {"core": "reachability", "decided": False}),
    "reachability-torus": (FOUR_WRAP, {"core": "reachability", "decided": False, "wrap": True, "solver": "best_first"}),
    "reachability-8": (
        EIGHT,
        {"core": "reachability", "decided": False, "q_channels": 16, "group": "trivial", "solver": "best_first"},
    ),
}  # fmt: skip
PER_ROW = 2.5


def planner_of(case):
    """A planner whose weights are drawn, a torus's value filter too, which starts at zero; and what its actions do."""
    moves, options = CASES[case]
    torch.manual_seed(0)
    spec = PlannerSpec(**options)
    planner = build_planner(
        spec, actions=len(moves.names), kernel="auto" if spec.compiled_solver else "reference"
    ).eval()
    if hasattr(planner.core, "w_v"):
        torch.nn.init.uniform_(planner.core.w_v, -0.02, 0.02)
    if hasattr(planner.core, "progress"):
        planner.core.progress.fill_(1.0)
    return planner, moves


def steps_of(planner):
    return lambda rows: most_steps(planner.solver.max_steps, PER_ROW, rows)


def by_form(form):
    def run(map, goal):
        with torch.no_grad():
            return dict(zip(OUTPUTS, form(map, goal, torch.tensor(0)), strict=True))

    return run


@pytest.mark.parametrize("case", CASES)
def test_the_form_that_is_written_plans_as_the_planner(case):
    planner, moves = planner_of(case)
    form = InferenceForm(planner, moves, PER_ROW)
    agreement.check(by_form(form), planner, moves, steps_of(planner), case)
    map, goal = agreement.random_problems(2, 6, 5, walled=False, seed=9)
    logits, _, steps, _ = form(map, goal, torch.tensor(1))
    assert steps.tolist() == [1, 1] and float(logits.std()) > 0
    none = form(map[:0], goal[:0], torch.tensor(0))
    assert [tuple(found.shape) for found in none] == [(0, *logits.shape[1:]), (0, 6, 5), (0,), (0,)]


@pytest.mark.skipif("IDP_EXPORT_ALL" not in os.environ, reason="some ten processor seconds each: IDP_EXPORT_ALL=1")
@pytest.mark.parametrize("case", CASES)
def test_every_core_as_a_graph(case):
    planner, moves = planner_of(case)
    program = exported(InferenceForm(planner, moves, PER_ROW))
    for format in ("torch", "onnx"):
        content = written(program, format, {"feed": case})
        agreement.check(opened(content, format), planner, moves, steps_of(planner), case)


@pytest.fixture(scope="module")
def program():
    """The published planner as a graph."""
    found = load_planner("reachability")
    return exported(InferenceForm(found.planner, found.moves, found.steps_per_row))


@pytest.fixture(scope="module")
def model(tmp_path_factory, program):
    """The published planner as the verb writes it, in ONNX."""
    out = tmp_path_factory.mktemp("model") / "planner.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "exported", lambda form: program)  # made once for all tests here
        assert main(["export-model", "reachability", str(out), "--format", "onnx", "--licence", "MIT"]) == 0
    return out


def about_of(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return json.loads(session.get_modelmeta().custom_metadata_map[ABOUT])


def test_the_file_says_what_it_is_and_nothing_of_this_machine(model):
    about = about_of(model)
    assert (about["task"], about["core"], about["licence"]) == ("mazes", "reachability", "MIT")
    assert about["moves"]["names"] == ["north", "west", "south", "east"] and not about["moves"]["wrap"]
    assert "4 per row" in about["steps"] and "float32 [batch, 1, h, w]" in about["feed"]
    assert re.fullmatch("[0-9a-f]{40}|", about["source_commit"])
    content = model.read_bytes()
    assert str(ROOT).encode() not in content and sys.prefix.encode() not in content


def test_onnx_plans_far_ways_on_maps_of_other_sizes(model):
    run, planner = opened(model.read_bytes(), "onnx"), load_planner("reachability")
    for count, height, width in ((1, 33, 21), (3, 12, 40)):
        map, goal = agreement.random_problems(count, height, width, walled=False, seed=height)
        actions = run(map, goal)["actions"].numpy()
        for one in range(count):
            at = tuple(int(part) for part in goal[one, 0].nonzero()[0])
            route = planner.solve(map[one, 0].numpy(), start=at, goal=at)
            free = route.grid == 1
            assert (actions[one] == route.actions)[free & (route.values > -100)].all()
    assert run(map[:0], goal[:0])["logits"].shape == (0, 4, 12, 40)


def test_torch_s_own_format_plans_and_says_the_same(program, tmp_path, monkeypatch, capsys, model):
    monkeypatch.setattr(export, "exported", lambda form: program)
    out = tmp_path / "planner.pt2"
    assert main(["export-model", "reachability", str(out), "--format", "torch", "--licence", "MIT"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    told = {ABOUT: ""}
    module = torch.export.load(out, extra_files=told).module()
    assert json.loads(told[ABOUT]) == about_of(model)
    map, goal = agreement.random_problems(2, 9, 11, walled=False, seed=1)
    actions, by_onnx = module(map, goal, torch.tensor(0))[1], opened(model.read_bytes(), "onnx")(map, goal)["actions"]
    assert actions.equal(by_onnx)
    assert module(map[:0], goal[:0], torch.tensor(0))[1].shape == (0, 9, 11)
    assert b"inference_form.py" not in out.read_bytes()


def test_a_route_with_numpy_and_onnxruntime_alone(model, tmp_path):
    alone = (
        "import sys\n"
        "class Refused:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('planners', 'datagen', 'orchestrator', 'torch'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refused())\n"
        "import runpy\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [sys.executable, "-c", alone, str(ROOT / "examples" / "onnx_route.py"), str(model)]
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=bare, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.endswith("14 moves, arrives\n"), done
    (tmp_path / "map.txt").write_text("S#G\n.#.\n###\n")
    done = subprocess.run([*command, "map.txt"], capture_output=True, text=True, env=bare, cwd=tmp_path)
    assert done.returncode == 1 and "does not arrive" in done.stdout
    (tmp_path / "map.txt").write_text("S..\n..\n..G\n")
    done = subprocess.run([*command, "map.txt"], capture_output=True, text=True, env=bare, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "expected rows of one length on the map\n")


def test_what_does_not_agree_is_not_written(tmp_path, program, model, monkeypatch, capsys):
    out = tmp_path / "planner.onnx"
    out.write_bytes(b"as it was")
    command = ["export-model", "reachability", str(out), "--format", "onnx"]
    monkeypatch.setattr(export, "exported", lambda form: program)
    monkeypatch.setattr(export, "written", lambda *_: model.read_bytes())  # of the planner as it was
    plan = Planner.plan

    def other(self, *args, **kwargs):
        found = plan(self, *args, **kwargs)
        return replace(found, logits=found.logits * 1.01)

    monkeypatch.setattr(Planner, "plan", other)
    assert main(command) == 2
    assert "planner.onnx: 1 maps of 6x9: its logits differ from the planner's by" in (said := capsys.readouterr().err)
    assert said.count("\n") == 1 and out.read_bytes() == b"as it was"


def test_wrong_actions_and_step_counts_are_seen():
    planner, moves = planner_of("vin")
    run = by_form(InferenceForm(planner, moves, PER_ROW))
    for name, changed, told in (
        ("actions", lambda actions: 3 - actions, "other actions"),
        ("steps", lambda steps: steps + 2, "2 steps more or fewer"),
        ("logits", lambda logits: logits * np.nan, "differ from the planner's by nan"),
    ):

        def wrong(map, goal, name=name, changed=changed):
            return (found := run(map, goal)) | {name: changed(found[name])}

        with pytest.raises(PlannerError, match=told):
            agreement.check(wrong, planner, moves, steps_of(planner), "x")


def test_what_can_t_be_a_graph_is_refused_in_a_line(tmp_path, capsys, monkeypatch):
    command = ["export-model", "reachability"]
    (tmp_path / "folder.onnx").mkdir()
    for out, format, told in (
        ("planner.onnx", "torch", "expected a name that ends in .pt2"),
        ("planner", "onnx", "expected a name that ends in .onnx"),
        ("folder.onnx", "onnx", "expected a file, found a folder"),
    ):
        assert main([*command, str(tmp_path / out), "--format", format]) == 2
        assert told in (said := capsys.readouterr().err) and said.count("\n") == 1
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main([*command, str(tmp_path / "planner.pt2"), "--format", "aoti"]) == 2
    assert "there is no no-such-compiler" in (said := capsys.readouterr().err) and said.count("\n") == 1
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main([*command, str(tmp_path / "planner.onnx"), "--format", "onnx"]) == 2
    assert "pip install 'idp[export]'" in (said := capsys.readouterr().err) and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"]
    planner, _ = planner_of("vin")
    for wrong in (Moves(links="roads:read"), FOUR):
        planner.channels = 0 if wrong.links else 2
        with pytest.raises(PlannerError, match="this one reads"):
            InferenceForm(planner, wrong, None)


def test_a_core_that_looks_at_its_numbers_is_refused_by_name():
    planner, moves = planner_of("vin")
    encode = planner.core.encode

    class Looking(type(planner.core)):
        def encode(self, x):
            return encode(x) if float(x.sum()) > 0 else encode(-x)

    planner.core.__class__ = Looking
    with pytest.raises(PlannerError, match="core Looking: no graph can be made of it") as told:
        exported(InferenceForm(planner, moves, None))
    assert "\n" not in str(told.value)


def test_the_rule_of_steps_is_told():
    planner, _ = planner_of("contractive-sweeps")
    assert str(StepRule.of(planner, 4.0)) == (
        "at most 30, or 4 per row (or column, if there are more) on larger maps, or as many as the map has cells; "
        "a map stops where ||f(v) - v|| / (1e-5 + ||f(v)||) <= 1e-06"
    )
    planner, _ = planner_of("vin-unrolled")
    assert str(StepRule.of(planner, None)) == "exactly 7"


def test_nothing_of_ray_or_mlflow_is_needed():
    program = (
        "import sys\n"
        "sys.modules['ray'] = sys.modules['mlflow'] = sys.modules['optuna'] = None\n"
        "import orchestrator.trial.export, planners.portable.agreement\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
