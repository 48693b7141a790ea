"""The kernels that iterate on a GPU's chip: their numbers under Triton's interpreter; that they compile for GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from planners import ForwardIteration, PlannerSpec, build_planner
from planners.cores import encoded
from planners.cores.steps import ValueIteration
from planners.fixed_points import Implicit, Result, Unrolled

triton = pytest.importorskip("triton")
from planners.compiled.on_chip import solver  # noqa: E402

PARTS = ("value", "residual", "steps", "result")


def _settings(**changes):
    return ForwardIteration(**{"max_steps": 30, "tolerance": 1e-4, "rule": "residual"} | changes)


def _step(core, *, wrap=False, size=(3, 5), progress=0.0, **options):
    torch.manual_seed(0)
    options = {"hidden_channels": 4, "q_channels": 4, **options}
    if core in ("contractive", "reachability"):
        options["group"] = "trivial"
    if core == "symvin":
        options["group"] = "C4"
    spec = PlannerSpec(core=core, wrap=wrap, options=options)
    planner = build_planner(spec)
    with torch.no_grad():
        if core == "vin":
            planner.core.w_v.normal_(std=0.45 / options.get("kernel_size", 3))
        if core == "reachability":
            planner.core.progress.fill_(progress)
    free = (torch.rand(3, 1, *size) > 0.2).float()
    goal = torch.zeros(3, 1, *size)
    goal[:, 0, 1, 2] = 1.0
    with torch.no_grad():
        step = encoded(planner.core, torch.cat([free, goal], dim=1))
    return step.prepared() if isinstance(step, ValueIteration) else step


def _agree(step, method):
    v0 = step.initial_value()
    expected = method.solve(step, v0)
    found = solver.OnChip(method.max_steps, method.tolerance, rule="residual").solve(step, v0)
    for part in PARTS:
        torch.testing.assert_close(getattr(found, part), getattr(expected, part), rtol=2e-5, atol=2e-6)
    return found


@pytest.mark.parametrize(("kernel_size", "wrap"), [(3, False), (3, True), (5, True)])
def test_value_iteration_is_the_references(kernel_size, wrap):
    step = _step("vin", wrap=wrap, kernel_size=kernel_size)
    found = _agree(step, _settings(max_steps=12, tolerance=1e-2))
    assert len(found.steps.unique()) > 1 and (found.result == Result.SETTLED).all()
    exact = _agree(step, _settings(max_steps=4, tolerance=0.0))
    assert (exact.steps == 4).all() and (exact.result == Result.MAX_STEPS).all()


def test_the_action_is_the_first_of_the_best():
    step = _step("contractive")
    actions = torch.empty(3, 3, 5, dtype=torch.int32)
    v = solver.iterate(step, step.initial_value(), _settings(max_steps=3, tolerance=0.0)).value
    again = solver.iterate(step, v, _settings(max_steps=1, tolerance=0.0), actions)
    torch.testing.assert_close(again.value, step(v))
    torch.testing.assert_close(actions.long(), step.action_values(v).argmax(1))


@pytest.mark.parametrize("spoilt", [float("nan"), 1e4])
def test_a_sample_that_diverges_keeps_its_last_value_and_leaves_the_others_alone(spoilt):
    step = _step("vin")
    step = replace(step, w_v=step.w_v * 40.0) if spoilt == 1e4 else step
    if spoilt != 1e4:
        step.reward[1, 3, 2, 2] = spoilt
    found = _agree(step, _settings(max_steps=9))
    assert (found.result[1] == Result.DIVERGED) and torch.isfinite(found.value).all()
    assert spoilt == 1e4 or (found.result[[0, 2]] != Result.DIVERGED).all()


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("progress", [0.0, 0.6, 1.0])
def test_reachability_is_the_references(wrap, progress):
    step = _step("reachability", wrap=wrap, progress=progress)
    assert step.sharp == (progress == 1.0)
    _agree(step, _settings(max_steps=6, tolerance=1e-6))


def test_which_solves_go_on_the_chip():
    step, forward, implicit = _step("vin"), _settings(), Implicit()
    assert not solver.step_refusal(step) and not solver.solver_refusal(forward, implicit)
    assert "CUDA" in solver.missing(torch.device("cpu")) and solver.on_chip(step, forward, implicit) is None
    assert "leaves the chip" in solver.solver_refusal(forward, Unrolled())
    assert solver.solver_refusal(_settings(record=True), implicit)
    assert solver.solver_refusal(ForwardIteration(), implicit)
    assert "float32" in solver.step_refusal(replace(step, reward=step.reward.double()))
    assert "one channel" in solver.step_refusal(_step("symvin"))
    assert "one channel" in solver.step_refusal(replace(step, temperature=0.1))
    assert "4096" in solver.step_refusal(_step("vin", size=(65, 64)))
    assert "no kernel" in solver.step_refusal(_step("conv_gppn"))


def test_a_planner_solves_on_the_chip_and_its_gradient_is_the_references(monkeypatch):
    monkeypatch.setattr(solver, "missing", lambda device: "")
    spec = PlannerSpec(core="contractive", options={"hidden_channels": 8, "q_channels": 8}, k_fwd=9, k_bwd=9)
    torch.manual_seed(0)
    planner = build_planner(spec, kernel="reference")
    free, goal = torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    goal[:, 0, 2, 1] = 1.0
    gradients = []
    for on_chip in (False, True):
        planner.zero_grad()
        planner.kernel = "auto" if on_chip else "reference"
        with monkeypatch.context() as patch:
            if on_chip:
                patch.setattr("planners.planner.unsupported", lambda *_: "there are no processors' loops here")
            plan = planner.plan(free, goal)
        assert plan.kernel == ("triton" if on_chip else "reference: asked for")
        plan.logits.square().sum().backward()
        gradients.append([plan.logits.detach(), *(weights.grad.clone() for weights in planner.parameters())])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
from planners.compiled.on_chip import kernels

numbers = {"H": "i32", "W": "i32", "A": "i32", "K": "i32", "tolerance": "fp32", "floor": "fp32"}
others = {"steps": "*i64", "results": "*i8", "action": "*i32", "leads": "*i32"}
chosen = {"FILTER": 3, "WRAP": False, "ARGMAX": True, "NEIGHBOURS": (4, 1, 3, 7, 5), "SHARP": False, "BLOCK": 1024}
for kernel in (kernels.value_iteration, kernels.reachability):
    names = [part.name for part in kernel.params]
    constants = {name: value for name, value in chosen.items() if name in names}
    types = {name: "constexpr" if name in constants else (numbers | others).get(name, "*fp32") for name in names}
    source = ASTSource(kernel, types, {(names.index(name),): value for name, value in constants.items()})
    for capability in (80, 90):
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
        print(kernel.__name__, capability, len(made.asm["cubin"]) > 0, made.metadata.shared)
"""


def test_the_kernels_compile_for_gpus(tmp_path):
    """To machine code, by the compiler that Triton brings: it needs no GPU."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # A multiprocessor of these has 164 KiB and more of its own memory.
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[:3] for row in rows] == [
        [kernel, capability, "True"] for kernel in ("value_iteration", "reachability") for capability in ("80", "90")
    ] and all(int(row[3]) <= 16384 for row in rows)
