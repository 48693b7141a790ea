"""The compiled loop inside a planner equals the reference, and says why where it does not run."""

from __future__ import annotations

import pytest
import torch

from planners import PlannerSpec, build_planner
from planners.cores.steps import GRUIteration, ValueIteration
from planners.registry import ADJOINTS, CORES

SMALL = {"hidden_channels": 8, "q_channels": 16}
COMPILED = ("vin", "symvin", "contractive")
GATED = ("conv_gppn",)


def planners(core, adjoint, wrap, **fields):
    """The same planner twice, compiled and reference, with weights that make the value matter."""
    options = {name: size for name, size in SMALL.items() if name in CORES[core].options_type.model_fields}
    spec = PlannerSpec(core=core, adjoint=adjoint, options=options, k_fwd=7, wrap=wrap, **fields)
    found = []
    for kernel in ("auto", "reference"):
        torch.manual_seed(0)
        planner = build_planner(spec, kernel=kernel)
        if core == "vin":
            torch.nn.init.normal_(planner.core.w_v, std=0.1)
        found.append(planner)
    return found


def problems(height=7, width=9):
    generator = torch.Generator().manual_seed(1)
    map = (torch.rand(3, 1, height, width, generator=generator) > 0.3).float()
    goal = torch.zeros(3, 1, height, width)
    goal[:, 0, 2, 3] = 1.0
    return map, goal


def test_the_cores_with_a_compiled_loop_are_known():
    steps = {core: build_planner(PlannerSpec(core=core)).plan(*problems(), k_fwd=1).step for core in CORES}
    assert tuple(core for core, step in steps.items() if isinstance(step, ValueIteration)) == COMPILED
    assert tuple(core for core, step in steps.items() if isinstance(step, GRUIteration)) == GATED


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [False, True], ids=["walls", "wrap"])
@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("core", COMPILED + GATED)
def test_compiled_equals_reference(core, adjoint, wrap):
    results = []
    for planner in planners(core, adjoint, wrap):
        plan = planner.plan(*problems())
        plan.logits.square().mean().backward()
        grads = {name: p.grad.clone() for name, p in planner.named_parameters() if p.grad is not None}
        results.append((plan, grads))
    (fast, fast_grads), (slow, slow_grads) = results
    assert fast.kernel == "compiled" and slow.kernel == "reference: asked for"
    torch.testing.assert_close(fast.logits, slow.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast.solution.residual, slow.solution.residual, rtol=1e-3, atol=1e-6)
    assert torch.equal(fast.solution.steps, slow.solution.steps)
    assert fast_grads.keys() == slow_grads.keys()
    for name, grad in slow_grads.items():
        scale = float(grad.abs().max()) + 1e-7
        torch.testing.assert_close(
            fast_grads[name], grad, rtol=2e-3, atol=2e-4 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"core": "spt"}, "SPT has no compiled loop"),
        ({"core": "conv_gppn", "solver": "broyden"}, "no solver Broyden"),
        ({"core": "vin", "solver": "anderson"}, "the solver is Anderson"),
        ({"core": "vin", "temperature": 0.5}, "the maximum is smoothed"),
    ],
)
def test_where_it_does_not_run_the_plan_says_why(fields, reason):
    options = {name: 8 for name in SMALL if name in CORES[fields["core"]].options_type.model_fields}
    planner = build_planner(PlannerSpec(k_fwd=3, options=options, **fields))
    assert planner.plan(*problems()).kernel.startswith("reference: ") and reason in planner.plan(*problems()).kernel


def test_double_precision_runs_the_reference():
    planner = build_planner(PlannerSpec(options=SMALL, k_fwd=3)).double()
    map, goal = problems()
    assert "float32 tensors on the CPU" in planner.plan(map.double(), goal.double()).kernel


def test_the_jacobian_penalty_can_be_added_to_a_compiled_plan():
    """It differentiates twice, through the generic operations of the same step."""
    from planners.fixed_points import jacobian_penalty

    grads = []
    for planner in planners("vin", "implicit", False):
        plan = planner.plan(*problems())
        generator = torch.Generator().manual_seed(3)
        jacobian_penalty(plan.step, plan.solution.value, generator).mean().backward()
        grads.append(planner.core.w_v.grad.clone())
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-5)
    assert grads[0].abs().max() > 0
