from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import planners
from planners import Anderson, ForwardIteration, Implicit, Plan, PlannerSpec, Result, Unrolled, build_planner

SMALL = {"hidden_channels": 8, "q_channels": 8}


def maps(batch=2, height=6, width=5):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, batch, 1, height, width, generator=generator).unbind()


@pytest.mark.slow
def test_importing_planners_is_cheap():
    """No torch until a name that needs it is used: a sweep is planned without."""
    program = (
        "import sys, planners; planners.PlannerSpec(core='symvin'); "
        "assert not {'torch', 'e2cnn', 'numba'} & set(sys.modules); "
        "from planners import build_planner; assert 'torch' in sys.modules; "
        "build_planner(planners.PlannerSpec()); assert 'e2cnn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_public_name_exists():
    assert sorted(planners.__all__) == sorted(set(planners.__all__))
    for name in planners.__all__:
        assert callable(getattr(planners, name)), name  # and no submodule of that name, once they are all imported
    assert set(planners.__all__) <= set(dir(planners))
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = planners.Nonsense


def test_the_designs_example_runs():
    planner = build_planner(PlannerSpec(core="vin", adjoint="implicit", k_fwd=80, k_bwd=15))
    assert planner(*maps(2, 7, 7)).shape == (2, 4, 7, 7)


def test_solver_and_adjoint_come_from_the_spec():
    planner = build_planner(
        PlannerSpec(solver="anderson", solver_options={"depth": 3}, k_fwd=40, tolerance=1e-3, k_bwd=9)
    )
    assert planner.solver == Anderson(max_steps=40, tolerance=1e-3, depth=3, rule="residual")
    assert planner.adjoint == Implicit(solver=Anderson(max_steps=9, tolerance=1e-4, rule="residual"), inexact=True)
    planner = build_planner(PlannerSpec(adjoint="unrolled", k_fwd=7))
    assert isinstance(planner.solver, ForwardIteration) and planner.solver.max_steps == 7
    assert planner.adjoint == Unrolled()


def test_the_unrolled_planner_takes_exactly_k_steps_whatever_the_tolerance():
    planner = build_planner(PlannerSpec(adjoint="unrolled", k_fwd=9, options=SMALL))  # W_v = 0: solved at once
    assert planner.plan(*maps()).solution.steps.tolist() == [9, 9]
    planner = build_planner(PlannerSpec(adjoint="implicit", k_fwd=9, options=SMALL))
    solution = planner.plan(*maps()).solution
    assert (solution.steps < 9).all() and (solution.result == Result.SETTLED).all()


def test_a_plan_holds_the_step_whose_fixed_point_it_found():
    planner = build_planner(
        PlannerSpec(core="contractive", options=SMALL | {"discount": 0.5}, k_fwd=60, tolerance=1e-6)
    )
    plan = planner.plan(*maps())
    assert isinstance(plan, Plan) and plan.map_logits is None
    torch.testing.assert_close(plan.step(plan.solution.value), plan.solution.value, rtol=1e-5, atol=1e-5)
    one = plan.step.take(torch.tensor([1]))
    torch.testing.assert_close(one(plan.solution.value[1:]), plan.step(plan.solution.value)[1:])
    torch.testing.assert_close(planner(*maps()), plan.logits)


def test_more_steps_can_be_asked_for_at_test_time():
    planner = build_planner(PlannerSpec(core="contractive", options=SMALL, adjoint="unrolled", k_fwd=5))
    map, goal = maps(1, 9, 9)
    with torch.no_grad():
        assert int(planner.plan(map, goal).solution.steps) == 5
        longer = planner.plan(map, goal, k_fwd=36)
    assert int(longer.solution.steps) == 36
    assert planner.solver.max_steps == 5


def test_the_planner_moves_and_casts_as_any_module():
    for core in ("vin", "symvin"):
        planner = build_planner(PlannerSpec(core=core, options=SMALL, k_fwd=3)).double()
        assert planner(*(x.double() for x in maps())).dtype == torch.float64
        meta = build_planner(PlannerSpec(core=core, options=SMALL, k_fwd=3)).to("meta")
        assert meta.core.encode(torch.empty(2, 2, 5, 5, device="meta")).reward.device.type == "meta"


@pytest.mark.parametrize(
    ("map", "goal", "message"),
    [
        (None, torch.zeros(1, 1, 4, 4), "map: expected a tensor"),
        (torch.zeros(1, 4, 4), torch.zeros(1, 1, 4, 4), r"map: expected a float tensor \[B, 1, h, w\]"),
        (torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.uint8), "goal: expected a float tensor"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(1, 1, 4, 4), "must have one shape"),
    ],
)
def test_wrong_shapes_are_named(map, goal, message):
    with pytest.raises(ValueError, match=message):
        build_planner(PlannerSpec(options=SMALL, k_fwd=2)).plan(map, goal)


def test_a_planner_that_is_given_its_map_refuses_an_observation():
    with pytest.raises(ValueError, match="observation: expected None"):
        build_planner(PlannerSpec(options=SMALL)).plan(*maps(), torch.zeros(2, 96, 96))


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="kernel: expected 'auto' or 'reference', got 'refrence'"):
        build_planner(PlannerSpec(), kernel="refrence")


def test_building_a_planner_switches_tf32_off():
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    build_planner(PlannerSpec(options=SMALL))
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("core", ["vin", "symvin", "conv_gppn", "contractive", "spt"])
def test_all_that_a_core_computes_with_moves_with_it(core):
    """On another device a constant that stays behind costs a copy, and a wait, at every call."""
    planner = build_planner(PlannerSpec(core=core, options={"q_channels": 8} if core == "contractive" else {}))
    for place, module in planner.named_modules():
        for name, value in vars(module).items():
            assert not isinstance(value, torch.Tensor), f"{place}.{name} is neither parameter nor buffer"
    meta = planner.to("meta")
    assert all(tensor.is_meta for tensor in (*meta.parameters(), *meta.buffers()))
    assert set(planner.state_dict()) == {name for name, _ in planner.named_parameters()}


def test_a_steerable_basis_keeps_double_precision_through_single():
    planner = build_planner(PlannerSpec(core="symvin", q_channels=2))
    exact = planner.core.double().action_filter.basis.clone()
    assert exact.dtype == torch.float64 and torch.equal(planner.core.float().double().action_filter.basis, exact)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"core": "spt", "mapper": "unet"}, "no gradient would reach it through core 'spt'"),
        ({"core": "spt", "mapper": "panorama", "adjoint": "one_step"}, "no gradient would reach it"),
    ],
)
def test_what_can_not_be_trained_is_refused_when_it_is_read(fields, message):
    with pytest.raises(ValueError, match=message):
        PlannerSpec(**fields)
    for change in ({"adjoint": "unrolled"}, {"inject_map": True}):
        PlannerSpec(**fields | change)


def test_batches_are_not_compared_number_by_number():
    plan = build_planner(PlannerSpec(options=SMALL)).plan(*maps())
    assert plan == plan and plan != build_planner(PlannerSpec(options=SMALL)).plan(*maps())
