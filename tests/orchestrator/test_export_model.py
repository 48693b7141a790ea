"""`idp export-model`: a folder of safetensors, spec and card that `load_planner` reads; damage plans nothing."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import safetensors.torch
import torch
from mutations import EXAMPLES, bounded, mutated

from datagen.problem import FOUR
from orchestrator.cli.main import main
from orchestrator.trial.trained import load_trained
from planners import load_planner
from planners.published import MODEL_FILE, WEIGHTS, model_bytes, read_model
from planners.trial_files import PlannerError

PUBLISHED = WEIGHTS / "reachability"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(PUBLISHED, tmp_path / "model")


def rewritten(folder, moves=FOUR, epoch=8, **changes):
    """Write the model with other tensors, its checksums right."""
    state = read_model(PUBLISHED / MODEL_FILE)
    weights = {name: tensor for name, tensor in (state["trainer"]["planner"] | changes).items() if tensor is not None}
    (folder / MODEL_FILE).write_bytes(model_bytes(state["spec"], asdict(moves), weights, epoch))


def test_the_published_folder_is_what_the_verb_makes_of_it(tmp_path, capsys):
    out = tmp_path / "reachability"
    command = ["export-model", "reachability", str(out), "--licence", "MIT, that of this repository"]
    assert main(command) == 0 and capsys.readouterr().out == f"{out}\n"
    assert main(command) == 0  # it may be written again
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    assert files["README.md"].startswith(b"# reachability: model card\n")
    own = {path.name: path.read_bytes() for path in PUBLISHED.iterdir()}
    assert {name: files[name] for name in files if name != "README.md"} == {n: own[n] for n in own if n != "README.md"}
    assert sum(map(len, files.values())) < 10_000
    for planner in (load_planner(out).planner, load_trained(out).planner):
        assert planner.core.sharp and torch.equal(
            planner.core.head_weight, load_planner(PUBLISHED).planner.core.head_weight
        )


@pytest.mark.slow
def test_the_bytes_are_the_same_in_every_process(folder):
    program = f"""
import sys
from dataclasses import asdict
from pathlib import Path
from datagen.problem import FOUR
from planners.published import model_bytes, read_model
state = read_model(Path({str(folder / MODEL_FILE)!r}))
weights = dict(reversed(state["trainer"]["planner"].items()))
sys.stdout.buffer.write(model_bytes(state["spec"], asdict(FOUR), weights, state["trainer"]["epoch"]))
"""
    for seed in "01":
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        )
        assert done.stdout == (PUBLISHED / MODEL_FILE).read_bytes(), done.stderr.decode()


def test_a_folder_with_other_things_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("all of it")
    (tmp_path / "file").touch()
    for out, told in (
        (tmp_path, "holds file, which is of no exported planner"),
        (tmp_path / "file", "expected a folder"),
        (tmp_path / "vin.onnx", "--format onnx"),
        (tmp_path / "vin.pt2", "--format torch or aoti"),
    ):
        assert main(["export-model", "reachability", str(out)]) == 2
        assert told in (said := capsys.readouterr().err) and said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "thesis.tex"]


@pytest.mark.parametrize(("out", "licence", "named"), [("out", "M\udcff", "--licence: "), ("o\udcff", "MIT", "OUT: ")])
@pytest.mark.parametrize("format", ["safetensors", "torch"])
def test_words_that_no_file_takes_are_refused_before_anything_is_written(tmp_path, capsys, format, out, licence, named):
    command = ["export-model", "reachability", str(tmp_path / out), "--licence", licence, "--format", format]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert named in said and r"\udcff" in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_another_planner_s_weights_are_refused_by_name(folder):
    whole = read_model(folder / MODEL_FILE)["trainer"]["planner"]
    head = whole["core.head_weight"]
    cases = [
        ({"core.head_weight": head.double()}, "core.head_weight: expected torch.float32, got torch.float64"),
        ({"core.head_weight": head[:, :2]}, "size mismatch for core.head_weight"),
        ({"core.head_weight": head * torch.nan}, "core.head_weight: weights that are not finite"),
        ({"core.head_weight": None}, "Missing key"),
        ({"core.more": head}, "Unexpected key"),
    ]
    for changes, reason in cases:
        rewritten(folder, **changes)
        with pytest.raises(PlannerError, match=reason) as told:
            load_planner(folder)
        assert str(folder / MODEL_FILE) in str(told.value) and "\n" not in str(told.value)
    rewritten(folder)
    assert load_planner(folder).solve(np.ones((3, 3)), start=(2, 2), goal=(0, 0)).cost == 4


def test_unknown_fields_and_another_spec_are_refused(folder):
    state = read_model(folder / MODEL_FILE)
    for text in ("{}", "[]", json.dumps({"format": 2}), "[" * 10_000, json.dumps({"format": 1, "code": "x"})):
        content = safetensors.torch.save(state["trainer"]["planner"], {"idp": text})
        (folder / MODEL_FILE).write_bytes(content)
        with pytest.raises(PlannerError, match="is damaged, or no model of idp"):
            load_planner(folder)
    rewritten(folder)
    spec = json.loads((folder / "spec.json").read_text())
    spec["planner"]["options"]["discount"] = 0.5
    (folder / "spec.json").write_text(json.dumps(spec))
    with pytest.raises(PlannerError, match=r"describes: planner.options.discount differs"):
        load_planner(folder)


def test_fuzzed_models_are_refused_or_plan_the_same(folder):
    whole, refused = (folder / MODEL_FILE).read_bytes(), 0
    expected = load_planner(folder)
    with bounded(processor_seconds=60 + EXAMPLES / 2, mebibytes=200):
        for number in range(EXAMPLES):
            (folder / MODEL_FILE).write_bytes(mutated(whole, number))
            try:
                found = load_planner(folder)
            except PlannerError as error:
                assert MODEL_FILE in str(error) and "\n" not in str(error)
                refused += 1
                continue
            assert found.moves == expected.moves
            for name, tensor in expected.planner.state_dict().items():
                assert torch.equal(found.planner.state_dict()[name], tensor), (number, name)
    assert refused > EXAMPLES / 2
