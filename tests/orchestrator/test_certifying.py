"""`idp certify`: a proof, or the pattern that stands in its way."""

import json
import shutil

import pytest
import torch

from orchestrator.cli.main import main
from planners.published import MODEL_FILE, WEIGHTS, folder_of, read_model


def broken(tmp_path, by=3.0, **moves):
    folder = tmp_path / "storage" / "trials" / "0123456789abcdef"
    folder.mkdir(parents=True)
    shutil.copy(WEIGHTS / "reachability" / "spec.json", folder)
    state = read_model(WEIGHTS / "reachability" / MODEL_FILE)
    state["trainer"]["planner"]["core.survival_bias"] -= by
    state["trainer"]["moves"] |= moves
    torch.save(state, folder / "checkpoint.pt")
    return folder


def test_published_weights_are_proven(capsys):
    assert main(["certify", "reachability", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["shortest_up_to"], document["worst_pattern"], document["reason"]) == ("any length", None, "")
    assert document["patterns"] == 512 and document["least_survival"] == 1
    assert main(["certify", "reachability"]) == 0
    assert "arrives by a shortest way: any length" in capsys.readouterr().out


@pytest.mark.slow
def test_what_stands_in_the_way_is_drawn(tmp_path, capsys):
    folder = broken(tmp_path)
    assert main(["certify", "0123", "--storage", str(tmp_path / "storage"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["trial"] == str(folder) and document["shortest_up_to"] == 0
    assert "survives with" in document["reason"] and len(document["worst_pattern"]) == 11
    assert main(["certify", str(folder)]) == 0
    assert "nothing is proven" in (shown := capsys.readouterr().out) and "  " + document["worst_pattern"][:3] in shown


@pytest.mark.parametrize(
    ("trial", "message"), [("absent", "is no folder, and no trial in"), ("{here}", "spec.json: no such file")]
)
def test_bad_input_is_one_line(tmp_path, capsys, trial, message):
    assert main(["certify", trial.format(here=tmp_path), "--storage", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and captured.err.count("\n") == 1


def test_a_folder_comes_before_the_name_of_published_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert folder_of("reachability") == WEIGHTS / "reachability"
    (tmp_path / "reachability").mkdir()
    assert not folder_of("reachability").is_absolute()


def test_a_finite_length_is_told_with_its_pattern(tmp_path, capsys):
    folder = broken(tmp_path, by=0.01)
    assert main(["certify", str(folder), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["shortest_up_to"] == 3 and "4 steps away: needed moves survive with 0.99" in document["reason"]
    assert main(["certify", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "arrives by a shortest way: up to 3 steps\nbeyond, nothing is proven" in shown and "in the way (" in shown


def test_what_moves_cost_is_told(tmp_path, capsys):
    folder = broken(tmp_path, by=0.0, costs=(1.0, 1.0, 1.0, 2.0))
    assert main(["certify", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "arrives by a way of fewest moves: any length\nsuch a way costs up to 2 times the cheapest, no more" in shown
    assert main(["certify", str(folder), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["arrives_up_to"], document["suboptimality"], document["worst_pattern"]) == ("any length", 2, None)


def test_moves_of_another_kind_are_one_line(tmp_path, capsys):
    folder = broken(tmp_path, offsets=((-1, 0), (0, -1), (1, 0), (1, 1)))
    assert main(["certify", str(folder)]) == 2
    assert "certify: expected the four moves north" in (said := capsys.readouterr().err) and said.count("\n") == 1
    (tmp_path / "mine.yaml").touch()
    assert main(["certify", str(tmp_path / "mine.yaml")]) == 2
    assert capsys.readouterr().err.startswith(f"idp: {tmp_path}/mine.yaml: of sweeps, ")
