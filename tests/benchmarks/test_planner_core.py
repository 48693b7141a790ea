"""The benchmark of the planner core: its baselines compute what ours does, its report has all parts."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("torchdeq")

from benchmarks import planner_core, planner_steps
from planners import PlannerSpec, build_planner


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:tostring", "ignore:indexing with dtype torch.uint8")  # e2cnn's
@pytest.mark.parametrize("name", planner_core.CORES)
def test_every_method_computes_the_same_logits_and_gradients(name):
    torch.manual_seed(0)
    options = {"q_channels": 4, "hidden_channels": 6}
    core = build_planner(PlannerSpec(core=name, options=options)).core
    if name == "vin":
        torch.nn.init.normal_(core.w_v, std=0.1)
    map, goal, label = planner_steps.inputs_of(planner_steps.problems_of(15, 2))
    found = {}
    for work in planner_steps.works_of(name, core, map, goal, 30, "fixed"):
        core.zero_grad()
        logits, steps, _ = work.run()
        assert steps == 30, work.name
        torch.nn.functional.cross_entropy(logits, label).backward()
        head = next(parameter for parameter in core.head.parameters() if parameter.requires_grad)
        found[work.name] = (logits.detach(), head.grad.clone())
    assert ("authors' unrolled" in found) == (name == "symvin")
    expected, gradient = found["plain loop"]
    for method, (logits, head_gradient) in found.items():
        scale = float(expected.abs().max())
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3 * scale, msg=method)
        torch.testing.assert_close(head_gradient, gradient, rtol=1e-2, atol=1e-5, msg=method)


@pytest.mark.slow
@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("name", planner_core.CORES)
def test_the_step_in_jax_is_ours(name, unrolled):
    xla = pytest.importorskip("benchmarks.planner_xla", exc_type=ImportError)
    torch.manual_seed(0)
    core = build_planner(PlannerSpec(core=name, options={"q_channels": 4, "hidden_channels": 6})).core
    if name == "vin":
        torch.nn.init.normal_(core.w_v, std=0.1)
    map, goal, label = planner_steps.inputs_of(planner_steps.problems_of(15, 2))
    method = "ours, unrolled" if unrolled else "ours"
    (work,) = (w for w in planner_steps.works_of(name, core, map, goal, 9, "fixed") if w.name == method)
    expected, steps, _ = work.run()
    torch.nn.functional.cross_entropy(expected, label).backward()
    bias = (core.hidden_bias if name == "symvin" else core.hidden.bias).grad
    found = xla.steps_of(core, torch.cat([map, goal], 1), label, 9, planner_steps.K_BWD, 0.0, unrolled)
    logits, taken = xla.logits_of(found)
    (_, _), gradients = found.both(found.parameters)
    assert taken == steps == 9
    torch.testing.assert_close(logits, expected.detach(), rtol=1e-4, atol=1e-5 * float(expected.detach().abs().max()))
    torch.testing.assert_close(torch.tensor(gradients["bias"].tolist()), bias, rtol=1e-2, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["contractive", "reachability", "spt"])
def test_cores_beside_the_papers_three_have_rows(name, monkeypatch):
    monkeypatch.setattr(planner_steps, "BATCH", 3)
    monkeypatch.setattr(planner_steps, "MOST_SECONDS", 0.0)
    torch.manual_seed(0)
    core = build_planner(PlannerSpec(core=name)).core
    limits = {"matmul_gflops": 1.0, "copy_gbytes": 1.0}
    for mode in ("fixed", "1e-4"):
        rows = planner_steps.rows_of(name, core, 9, 4, mode, limits, 3, planner_core.time.process_time)
        assert rows[0].method == "ours" and {"torchdeq", "authors' ID layer"} <= {row.method for row in rows}
        assert all(row.maps == planner_steps.PROBE for row in rows), "a method that takes too long sees fewer maps"


def test_an_unknown_core_is_refused_in_words(capsys):
    with pytest.raises(SystemExit):
        planner_core.main(["--cores", "vim"])
    assert "--cores: unknown name 'vim'; known: vin, symvin" in capsys.readouterr().err


def test_map_by_map_evaluation_agrees_with_ours():
    seconds = planner_core.evaluation(planner_core.time.perf_counter, maps=20, plain_maps=10)
    assert min(seconds) > 0


@pytest.mark.slow
def test_the_report_is_one_json_object(capsys, monkeypatch):
    monkeypatch.setattr(planner_core, "settled_core", lambda name: (build_planner(PlannerSpec(core=name)).core, 0.9))
    monkeypatch.setattr(planner_steps, "BATCH", 2)
    monkeypatch.setattr(planner_core, "evaluation", lambda *_: (1e-5, 1e-3))
    planner_core.main(["--json", "--quick", "--cores", "vin", "--steps", "3", "--clock", "cpu"])
    report = json.loads(capsys.readouterr().out)
    assert {"machine", "rows", "targets", "first_call_seconds", "spectral_radius"} <= report.keys()
    assert {row["method"] for row in report["rows"]} >= {"ours", "plain loop", "torchdeq", "authors' ID layer"}
    assert all(row["forward_ms"] > 0 and row["peak_mib"] > 0 for row in report["rows"])
    assert {target["verdict"] for target in report["targets"]} <= {"PASS", "short"}
