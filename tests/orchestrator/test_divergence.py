"""The first divergence of a trial, shown again for tasks of other moves than four, and of damaged files."""

import json
from pathlib import Path

import pytest

from orchestrator.cli.main import main

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def diverged(tmp_path_factory):
    """A sweep of one trial on streets (eight moves, maps open at the edge) whose forward iteration has diverged."""
    folder = tmp_path_factory.mktemp("streets")
    (folder / "street_planning").symlink_to(EXAMPLES / "street_planning")
    sweep = folder / "s.yaml"
    sweep.write_text(
        "name: s\nplugins: [street_planning]\ntasks: [{task: streets, map_size: 9}]\n"
        "planners: {vin: {core: vin, adjoint: implicit, hidden_channels: 8, q_channels: 4}}\n"
        "data: {train: 64, valid: 16, test: 16}\ngrid: {k: [50], seed: [1]}\n"
        "training: {epochs: 2, batch_size: 16, learning_rate: 3.0}\nexecution: {kernel: reference}\n"
    )
    (name,) = _ids(sweep)
    assert main(["trial", str(sweep), name, "--storage", str(folder)]) == 0
    return sweep, name


def _ids(sweep):
    from orchestrator.sweep.files import load_sweep
    from orchestrator.sweep.specs import expand

    return [trial.trial_id for trial in expand(load_sweep(sweep))]


def replayed(sweep, name):
    return main(["trial", str(sweep), name, "--storage", str(sweep.parent), "--replay", "--json"])


@pytest.mark.slow
def test_it_is_shown_again_with_eight_moves_on_open_maps(diverged, capsys):
    capsys.readouterr()
    assert replayed(*diverged) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["diverged"] and shown["again"] == shown["diverged"]
    assert len(shown["indices"]) == 16 and len(shown["residual"]) == 50


def test_a_damaged_record_is_told(diverged, capsys):
    sweep, name = diverged
    record = sweep.parent / "trials" / name / "divergence.pt"
    whole = record.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    try:
        for content, reason in ((b"", "is empty"), (whole[:1000], "is damaged"), (bytes(flipped), "is damaged")):
            record.write_bytes(content)
            capsys.readouterr()
            assert replayed(sweep, name) == 2
            said = capsys.readouterr().err
            assert f"divergence.pt: {reason}" in said and said.count("\n") == 1
    finally:
        record.write_bytes(whole)
