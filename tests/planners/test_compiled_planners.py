"""Where a planner's compiled loop runs, and why not elsewhere; its numbers are held to the reference in conformance."""

from __future__ import annotations

import pytest
import torch

from planners import PlannerSpec, build_planner
from planners.cores.steps import GRUIteration, ValueIteration
from planners.fixed_points import jacobian_penalty
from planners.registry import CORES

SMALL = {"hidden_channels": 8, "q_channels": 16}
COMPILED = ("vin", "symvin", "contractive")
GATED = ("conv_gppn",)


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
    grads = []
    for kernel in ("auto", "reference"):
        torch.manual_seed(0)
        planner = build_planner(PlannerSpec(options=SMALL, k_fwd=7), kernel=kernel)
        torch.nn.init.normal_(planner.core.w_v, std=0.1)  # so that the value matters
        plan = planner.plan(*problems())
        generator = torch.Generator().manual_seed(3)
        jacobian_penalty(plan.step, plan.solution.value, generator).mean().backward()
        grads.append(planner.core.w_v.grad.clone())
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-5)
    assert grads[0].abs().max() > 0
