"""What `load_planner` reads of a trial: damage of any kind is one error that names the file, and plans nothing."""

import io
import json
import os
import pickle
import shutil
import zipfile
from dataclasses import asdict

import pytest
import torch
from mutations import EXAMPLES, bounded, mutated

from datagen.plugins import PluginError
from datagen.problem import FOUR
from planners import PlannerSpec, TrainingSpec, build_planner, load_planner
from planners.trial_files import PlannerError

PLANNER = PlannerSpec(core="vin", hidden_channels=8, q_channels=6, k_fwd=12)


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """A trial directory with the files that `load_planner` reads, its planner untrained."""
    folder = tmp_path_factory.mktemp("trial")
    torch.manual_seed(0)
    trainer = {"planner": build_planner(PLANNER).state_dict(), "moves": asdict(FOUR), "best": None, "epoch": 1}
    training = TrainingSpec().model_dump(mode="json")
    spec = {"planner": PLANNER.model_dump(mode="json"), "training": training, "plugins": []}
    (folder / "spec.json").write_text(json.dumps(spec, indent=2))
    torch.save({"trainer": trainer, "records": [], "code": "x"}, folder / "checkpoint.pt")
    return folder


@pytest.fixture
def damaged(trial, tmp_path):
    """Makes a copy of the trial in which one file is another."""

    def make(name, content):
        for file in ("spec.json", "checkpoint.pt"):
            shutil.copy(trial / file, tmp_path)
        (tmp_path / name).write_bytes(content)
        return tmp_path

    return make


def checkpoint_of(trial, **changes):
    """The bytes of the trial's checkpoint with other parts."""
    state = torch.load(trial / "checkpoint.pt", weights_only=True)
    content = io.BytesIO()
    torch.save({**state, "trainer": {**state["trainer"], **changes}}, content)
    return content.getvalue()


def test_each_damage_is_one_error_that_names_the_file(trial, damaged):
    whole, spec = (trial / "checkpoint.pt").read_bytes(), json.loads((trial / "spec.json").read_text())
    weights = torch.load(trial / "checkpoint.pt", weights_only=True)["trainer"]["planner"]
    name = next(iter(weights))
    not_finite = weights | {name: torch.full_like(weights[name], torch.nan)}

    def moves(**changes):
        return checkpoint_of(trial, moves={**asdict(FOUR), **changes})

    def every(change):
        return checkpoint_of(trial, planner={name: change(tensor) for name, tensor in weights.items()})

    def changed(section, **fields):
        return json.dumps(spec | {section: spec[section] | fields}).encode()

    cases = [
        ("checkpoint.pt", whole[: len(whole) // 2], "is damaged, or no checkpoint"),
        ("checkpoint.pt", b"", "is empty"),
        ("checkpoint.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        ("checkpoint.pt", pickle.dumps({"trainer": {}}), "is damaged, or no checkpoint"),
        ("checkpoint.pt", checkpoint_of(trial, moves=None), "trainer.moves: it has none"),
        (
            "checkpoint.pt",
            checkpoint_of(trial, moves={"names": ["n"], "speed": 1}),
            "trainer.moves: not of this version",
        ),
        ("checkpoint.pt", checkpoint_of(trial, planner=[]), "trainer.planner: it has none"),
        ("checkpoint.pt", checkpoint_of(trial, planner=not_finite), f"{name}: weights that are not finite"),
        (
            "checkpoint.pt",
            checkpoint_of(trial, planner={1: torch.zeros(2)}),
            "trainer.planner: expected tensors by name",
        ),
        ("checkpoint.pt", every(lambda tensor: torch.zeros(1).expand(10**6, 10**6)), "do not fit the planner"),
        ("checkpoint.pt", every(torch.Tensor.to_sparse), "expected a tensor with all its numbers"),
        ("checkpoint.pt", every(lambda tensor: "x"), "expected torch.float32, got str"),
        ("checkpoint.pt", moves(names=[1, 2, 3, 4]), "expected names as text"),
        ("checkpoint.pt", moves(offsets=[[10**30, 0]] * 4), "at most 1000 away"),
        ("checkpoint.pt", moves(wrap="x"), "wrap as true or false"),
        ("spec.json", changed("planner", options={**spec["planner"]["options"], "q_channels": 10**10}), "q_channels"),
        ("spec.json", b"{not json", "is not JSON"),
        ("spec.json", b"\xff\xfe", "is not JSON"),
        ("spec.json", b"[" * 100_000, "is not JSON"),
        ("spec.json", b"[1]", "expected an object"),
        ("spec.json", b'{"plugins": []}', "planner: not of this version"),
        ("spec.json", changed("planner", speed=3), "unknown field 'speed'"),
        ("spec.json", changed("planner", options={**spec["planner"]["options"], "depth": 2}), "unknown field 'depth'"),
        ("spec.json", changed("planner", k_fwd=0), "k_fwd"),
        ("spec.json", changed("training", tested_checkpoint="median"), "tested_checkpoint: 'median'"),
    ]
    for file, content, reason in cases:
        with pytest.raises(PlannerError, match=reason) as told:
            load_planner(damaged(file, content))
        said = str(told.value)
        assert file in said, said
        assert "\n" not in said and "weights_only" not in said and "arbitrary" not in said and len(said) < 600, said


def test_a_checkpoint_of_another_spec_is_refused(trial, damaged):
    state = torch.load(trial / "checkpoint.pt", weights_only=True)
    spec = json.loads((trial / "spec.json").read_text())
    for change in ({"k_fwd": 13}, {"tolerance": 0.5}):
        content = io.BytesIO()
        torch.save({**state, "spec": spec | {"planner": spec["planner"] | change}}, content)
        with pytest.raises(
            PlannerError, match=rf"made by another trial .* describes: planner.{next(iter(change))} differs"
        ):
            load_planner(damaged("checkpoint.pt", content.getvalue()))
    content = io.BytesIO()
    torch.save({**state, "spec": spec | {"seed": torch.zeros(3)}}, content)
    with pytest.raises(PlannerError, match=r"checkpoint.pt: spec: holds what no JSON does"):
        load_planner(damaged("checkpoint.pt", content.getvalue()))


def test_neither_a_pipe_nor_a_device_is_waited_for(trial, damaged):
    folder = damaged("spec.json", (trial / "spec.json").read_bytes())
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), os.mkdir):
        for name in ("checkpoint.pt", "spec.json"):
            shutil.copy(trial / "spec.json", folder)
            (folder / name).unlink(missing_ok=True)
            make(folder / name)
            with pytest.raises(PlannerError, match=rf"{name}: expected a file"):
                load_planner(folder)
            (folder / name).rmdir() if make is os.mkdir else (folder / name).unlink()
            shutil.copy(trial / "checkpoint.pt", folder)


def test_what_no_memory_holds_is_told_by_its_file(damaged):
    folder = damaged("checkpoint.pt", b"")
    os.truncate(folder / "checkpoint.pt", 2**43)
    with pytest.raises(PlannerError, match=r"checkpoint\.pt: .* bytes, more than there is memory for"):
        load_planner(folder)


def test_a_compressed_bomb_is_refused_unread(damaged):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(200_000_000))
    with (
        bounded(processor_seconds=5, mebibytes=50),
        pytest.raises(PlannerError, match="not stored as torch stores them"),
    ):
        load_planner(damaged("checkpoint.pt", content.getvalue()))


def test_fuzzed_checkpoints_are_refused_or_plan_the_same(trial, damaged):
    whole = (trial / "checkpoint.pt").read_bytes()
    expected, refused = load_planner(trial), 0
    with bounded(processor_seconds=60 + EXAMPLES / 2, mebibytes=200):
        for number in range(EXAMPLES):
            folder = damaged("checkpoint.pt", mutated(whole, number))
            try:
                found = load_planner(folder)
            except PlannerError as error:
                assert "checkpoint.pt" in str(error) and "\n" not in str(error)
                refused += 1
                continue
            assert found.moves == expected.moves and found.tolerance == expected.tolerance
            for name, tensor in expected.planner.state_dict().items():
                assert torch.equal(found.planner.state_dict()[name], tensor), (number, name)
    assert refused > EXAMPLES / 2


def test_fuzzed_specs_are_refused_or_plan_the_same(trial, damaged):
    state = torch.load(trial / "checkpoint.pt", weights_only=True)
    spec = (trial / "spec.json").read_bytes()
    content = io.BytesIO()
    torch.save({**state, "spec": json.loads(spec)}, content)
    expected, refused = load_planner(trial), 0
    for number in range(EXAMPLES):
        folder = damaged("spec.json", mutated(spec, number))
        (folder / "checkpoint.pt").write_bytes(content.getvalue())
        try:
            found = load_planner(folder)
        except (PlannerError, PluginError) as error:
            assert "\n" not in str(error), number
            refused += 1
            continue
        assert repr(found.planner) == repr(expected.planner) and found.planner.solver == expected.planner.solver
        assert (found.tolerance, found.all_steps) == (expected.tolerance, expected.all_steps), number
    assert refused > EXAMPLES / 2
