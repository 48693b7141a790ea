"""`make gpu-test` runs where there is a GPU, says so where there is none, and here its way is gone on the CPU."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import Run, main, missing


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(capsys, tmp_path):
    assert main(["--out", str(tmp_path / "out.json")]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "no GPU" in said.err and not said.out and not list(tmp_path.iterdir())
    assert "expected 'cuda' or 'cpu'" in missing(torch.device("meta"))
    with pytest.raises(SystemExit, match="2"):
        main(["--device", "gpu"])
    with pytest.raises(SystemExit, match="2"):
        main(["--only", "kernel"])


@pytest.mark.slow
def test_its_sections_run_and_are_written_to_one_file(capsys, tmp_path, monkeypatch):
    """All but the two that run sweeps, which tests of sweeps run; those are asked for in the same words."""
    pytest.importorskip("torchdeq")
    asked = []

    def sweep(run, *arguments):
        asked.append(arguments)
        yield {"exclusive": True}

    monkeypatch.setattr(gpu, "_sweep", sweep)
    out = tmp_path / "out.json"
    monkeypatch.setattr(gpu, "CORES", {name: gpu.CORES[name] for name in ("vin", "reachability")})
    assert main(["--device", "cpu", "--tiny", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert list(found["sections"]) == [section.__name__ for section in gpu.SECTIONS] and found["accelerator"] == "cpu"
    assert all(section["holds"] and section["rows"] for section in found["sections"].values())
    methods = {row["method"] for row in found["sections"]["steps"]["rows"]}
    assert {"unrolled, auto", "implicit, reference", "plain loop", "torchdeq"} <= methods
    assert asked == [("figure6", "smoke", "resources.exclusive=true"), ("quickstart", "smoke")]
    assert "quickstart" in capsys.readouterr().out


def test_what_does_not_hold_is_told_and_the_rest_goes_on(monkeypatch, tmp_path, capsys):
    def wrong(run):
        yield {"core": "vin"}
        raise AssertionError("kernels differ")

    monkeypatch.setattr(gpu, "SECTIONS", (wrong, gpu.memory))
    out = tmp_path / "out.json"
    assert main(["--device", "cpu", "--tiny", "--out", str(out), "--only", "wrong,memory"]) == 1
    found = json.loads(out.read_text())["sections"]
    assert not found["wrong"]["holds"] and "kernels differ" in found["wrong"]["error"] and found["memory"]["holds"]
    assert found["wrong"]["rows"] == [{"core": "vin"}]  # what was found before
    assert "FAILS" in capsys.readouterr().out


def test_the_paper_s_sizes_are_run_where_it_is_not_tiny():
    run = Run(torch.device("cpu"), tiny=False)
    assert (run.sizes, run.batch, run.steps) == ((15, 27, 49), 32, 30)
    assert run.spec("vin").options.q_channels == 100 and Run(run.device, tiny=True).spec("vin").options.q_channels == 8
