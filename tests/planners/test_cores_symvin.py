from __future__ import annotations

import itertools

import e2cnn.nn
import e2cnn.nn.init
import pytest
import torch
import torch.nn.functional as F

from planners import PlannerSpec, build_planner
from planners.cores.steerable import (
    SteerableFilter,
    e2cnn_conditions,
    group_order,
    space,
    steerable_basis,
)
from planners.cores.symvin import SymVIN, growth_rate
from planners.options import SymVINOptions

SMALL = {"hidden_channels": 6, "q_channels": 5}
D4 = list(itertools.product(range(4), (False, True)))


def turn(x, quarters, flipped):
    """A map turned counter-clockwise and then mirrored east-west."""
    x = torch.rot90(x, quarters, (2, 3))
    return x.flip(3) if flipped else x


def turn_logits(logits, quarters, flipped):
    """The same for action logits: cells move, and north, west, south, east become one another."""
    logits = turn(logits, quarters, flipped).roll(quarters, dims=1)
    return logits[:, [0, 3, 2, 1]] if flipped else logits


def problem(batch=3, size=7, dtype=torch.float32):
    generator = torch.Generator().manual_seed(5)
    map = (torch.rand(batch, 1, size, size, generator=generator) > 0.4).to(dtype)
    goal = torch.zeros(batch, 1, size, size, dtype=dtype)
    for i in range(batch):
        goal[i, 0, 1 + i, 2] = 1
    return map, goal


def steepened(planner, factor=6.0):
    """Let the value count for more than it does at the start, where it contracts fast."""
    with torch.no_grad():
        planner.core.action_filter.coefficients[:, 1] *= factor
    return planner


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("solver", ["forward", "anderson"])
@pytest.mark.parametrize(("quarters", "flipped"), D4)
def test_turning_or_flipping_the_map_turns_or_flips_the_policy(quarters, flipped, solver, wrap):
    torch.manual_seed(1)
    planner = build_planner(
        PlannerSpec(core="symvin", options=SMALL, solver=solver, k_fwd=12, tolerance=0.0, wrap=wrap)
    )
    planner = steepened(planner, 3.0)
    map, goal = problem()
    with torch.no_grad():
        expected = planner.plan(map, goal)
        plan = planner.plan(turn(map, quarters, flipped), turn(goal, quarters, flipped))
    scale = float(expected.logits.abs().max())
    error = (plan.logits - turn_logits(expected.logits, quarters, flipped)).abs().max()
    assert error <= 1e-5 * scale
    values = plan.solution.value.sum(1, keepdim=True) - turn(
        expected.solution.value.sum(1, keepdim=True), quarters, flipped
    )
    assert values.abs().max() <= 1e-5 * expected.solution.value.sum(1).abs().max()


@pytest.mark.parametrize("group", ["C4", "D4"])
def test_every_symmetry_of_the_group_and_no_other(group):
    torch.manual_seed(1)
    planner = build_planner(PlannerSpec(core="symvin", options=SMALL | {"group": group}, k_fwd=8, tolerance=0.0))
    planner = steepened(planner).double()
    map, goal = problem(dtype=torch.float64)
    logits = planner(map, goal).detach()
    for quarters, flipped in D4:
        turned = planner(turn(map, quarters, flipped), turn(goal, quarters, flipped)).detach()
        error = float((turned - turn_logits(logits, quarters, flipped)).abs().max() / logits.abs().max())
        if flipped and group == "C4":
            assert error > 1e-3
        else:
            assert error < 1e-12


def test_the_plain_head_breaks_the_symmetry():
    torch.manual_seed(1)
    options = SMALL | {"equivariant_policy": False}
    planner = build_planner(PlannerSpec(core="symvin", options=options, k_fwd=8, tolerance=0.0))
    map, goal = problem()
    error = planner(turn(map, 1, False), turn(goal, 1, False)) - turn_logits(planner(map, goal), 1, False)
    assert error.abs().max() > 1e-3


def test_a_group_without_four_actions_is_refused():
    with pytest.raises(ValueError, match="equivariant_policy: expected false for group 'C8'"):
        PlannerSpec(core="symvin", group="C8")
    with pytest.raises(ValueError, match="expected 4 actions"):
        SymVIN(SymVINOptions(), wrap=False, actions=8)


def test_eighth_turns_run_with_the_plain_head():
    options = SMALL | {"group": "C8", "equivariant_policy": False}
    planner = build_planner(PlannerSpec(core="symvin", options=options, k_fwd=4))
    assert planner(*problem()).shape == (3, 4, 7, 7)


def library_layer(group, fields_in, fields_out, bias=False):
    regular = space(group).regular_repr
    with e2cnn_conditions():
        return e2cnn.nn.R2Conv(
            e2cnn.nn.FieldType(space(group), fields_in * [regular]),
            e2cnn.nn.FieldType(space(group), fields_out * [regular]),
            3,
            padding=1,
            bias=bias,
            initialize=False,
        )


@pytest.mark.parametrize("group", ["C4", "D4", "C8"])
def test_a_filter_is_the_librarys(group):
    torch.manual_seed(2)
    ours = SteerableFilter(group, "regular", 2, "regular", 3, 3).double()
    layer = library_layer(group, 2, 3)
    with torch.no_grad():
        layer.weights.copy_(ours.coefficients.flatten())
    expected, _ = layer.expand_parameters()
    torch.testing.assert_close(ours(), expected, rtol=1e-12, atol=1e-12)


def test_the_start_is_the_librarys():
    layer = library_layer("D4", 2, 3)
    expected = e2cnn.nn.init._generalized_he_init_variances(layer.basisexpansion).view(3, 2, -1)
    ours = steerable_basis("D4", "regular", "regular", 3).he_deviation / 2**0.5
    torch.testing.assert_close(expected.double(), ours.expand(3, 2, -1), rtol=1e-6, atol=0)


def test_a_step_is_the_librarys_layer_called_at_every_step():
    """The reference way: e2cnn's layer expands its filter at each call and sees [r, v] as two fields."""
    torch.manual_seed(3)
    core = SymVIN(SymVINOptions(**SMALL), wrap=False).double()
    map, goal = problem(dtype=torch.float64)
    x = torch.cat([map, goal], 1)
    layer = library_layer("D4", 2, 5)
    assert layer.training
    layer.weights = torch.nn.Parameter(core.action_filter.coefficients.detach().flatten().clone())
    h = F.conv2d(x, core.hidden(), core.hidden_bias, padding=1)
    r = F.conv2d(h, core.reward).expand(-1, 8, -1, -1)
    step = core.encode(x)
    v = reference = step.initial_value()
    for _ in range(5):
        v = step(v)
        q = layer(e2cnn.nn.GeometricTensor(torch.cat([r, reference], 1), layer.in_type)).tensor
        reference = q.unflatten(1, (5, 8)).max(dim=1).values
    torch.testing.assert_close(v, reference, rtol=1e-10, atol=1e-12)
    (ours,) = torch.autograd.grad(v.square().sum(), core.action_filter.coefficients)
    (theirs,) = torch.autograd.grad(reference.square().sum(), layer.weights)
    torch.testing.assert_close(ours.flatten(), theirs, rtol=1e-9, atol=1e-9)


def test_the_filter_is_expanded_once_per_solve(monkeypatch):
    planner = build_planner(PlannerSpec(core="symvin", options=SMALL, k_fwd=20, tolerance=0.0))
    calls = []
    expand = SteerableFilter.forward
    monkeypatch.setattr(SteerableFilter, "forward", lambda self: calls.append(self) or expand(self))
    planner(*problem())
    assert len(calls) == 3 and len(set(map(id, calls))) == 3  # encoder, Q, head


def iterate(core, size, steps):
    map, goal = problem(1, size)
    with torch.no_grad():
        step = core.encode(torch.cat([map, goal], 1)).prepared()
        first = v = step(step.initial_value())
        for _ in range(steps - 1):
            before, v = v, step(v)
    return float(v.norm() / first.norm()), float((v - before).norm() / v.norm())


@pytest.mark.slow
def test_the_stable_start_settles_where_the_librarys_explodes():
    """K = 120 on 49x49 at the paper's sizes; one map, whose size is what matters."""
    torch.manual_seed(0)
    growth, residual = iterate(SymVIN(SymVINOptions(), wrap=False), 49, 120)
    assert growth < 10 and residual < 1e-4
    growth, residual = iterate(SymVIN(SymVINOptions(initialisation="library"), wrap=False), 49, 12)
    assert growth > 1.3**12 and residual > 0.1


@pytest.mark.parametrize("group", ["C4", "D4", "C8"])
@pytest.mark.parametrize("fields", [5, 100])
@pytest.mark.parametrize("seed", range(3))
def test_every_group_starts_settling(group, fields, seed):
    torch.manual_seed(seed)
    options = SymVINOptions(group=group, q_channels=fields, hidden_channels=4, equivariant_policy=False)
    growth, residual = iterate(SymVIN(options, wrap=True), 9, 120)
    assert growth < 10 and residual < 1e-4


def test_the_growth_rate_of_a_known_filter():
    """Each of two actions scales a constant value: the larger factor wins."""
    w_v = torch.zeros(2, 1, 3, 3)
    w_v[0, 0], w_v[1, 0, 1, 1] = 1 / 6, 0.5
    assert growth_rate(w_v) == pytest.approx(1.5, rel=1e-3)


def test_the_papers_and_the_authors_number_of_fields():
    assert SymVIN(SymVINOptions(), wrap=False).action_filter().shape == (800, 16, 3, 3)
    divided = SymVIN(SymVINOptions(fields_divided_by_group=True), wrap=False)
    assert divided.action_filter().shape == (96, 16, 3, 3)
    with pytest.raises(ValueError, match="leaves no field"):
        SymVINOptions(q_channels=7, fields_divided_by_group=True)


def test_a_checkpoint_holds_coefficients_alone():
    core = SymVIN(SymVINOptions(**SMALL), wrap=False)
    assert set(core.state_dict()) == {name for name, _ in core.named_parameters()}


def test_orders():
    assert [group_order(group) for group in ("C4", "D4", "C8")] == [4, 8, 8]


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["forward", "anderson"])
def test_the_symmetry_survives_training(solver):
    """Trained weights, whose iteration no longer settles at once, in single precision."""
    torch.manual_seed(2)
    planner = build_planner(PlannerSpec(core="symvin", options=SMALL, solver=solver, k_fwd=20, tolerance=0.0))
    map, goal = problem(8, 9)
    target = torch.randint(0, 4, (8, 9, 9), generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.Adam(planner.parameters(), lr=1e-2)
    for _ in range(25):
        loss = F.cross_entropy(planner(map, goal), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        logits = planner(map, goal)
        for quarters, flipped in D4:
            turned = planner(turn(map, quarters, flipped), turn(goal, quarters, flipped))
            error = (turned - turn_logits(logits, quarters, flipped)).abs().max()
            assert error <= 1e-5 * logits.abs().max()
