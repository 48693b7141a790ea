from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planners import Anderson, PlannerSpec, build_planner
from planners.cores.contractive import Contractive
from planners.options import ContractiveOptions


def planner_of(seed=0, wrap=False, **options):
    torch.manual_seed(seed)
    made = build_planner(
        PlannerSpec(core="contractive", hidden_channels=16, q_channels=16, wrap=wrap, options=options)
    ).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(3)  # no parameter value breaks the contraction
    return made


def step_of(planner, height, width):
    generator = torch.Generator().manual_seed(height + 10 * width)
    map, goal = torch.rand(2, 3, 1, height, width, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        return planner.plan(map, goal, k_fwd=1).step


def size(v):
    return v.abs().amax(dim=(1, 2, 3))


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    wrap=st.booleans(),
    discount=st.sampled_from([0.5, 0.9, 0.99]),
    temperature=st.sampled_from([0.0, 0.5]),
    shape=st.tuples(st.integers(1, 7), st.integers(1, 7)),
)
@torch.no_grad()
def test_a_step_contracts_by_the_discount(seed, wrap, discount, temperature, shape):
    planner = planner_of(seed, wrap, discount=discount, temperature=temperature)
    f = step_of(planner, *shape)
    generator = torch.Generator().manual_seed(seed)
    u, v = 5 * torch.randn(2, 3, 1, *shape, dtype=torch.float64, generator=generator)
    assert (size(f(u) - f(v)) <= discount * size(u - v) * (1 + 1e-12)).all()


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.5])
@torch.no_grad()
def test_banachs_bounds(wrap, temperature):
    gamma = 0.9
    f = step_of(planner_of(wrap=wrap, discount=gamma, temperature=temperature), 6, 5)
    v0 = torch.zeros(3, 1, 6, 5, dtype=torch.float64)
    limit = v0
    for _ in range(500):
        limit = f(limit)
    first = size(f(v0) - v0)
    assert (first > 0.01).all()
    v, slack = v0, 1 + 1e-9
    for k in range(60):
        assert (size(f(v) - v) <= gamma**k * first * slack).all()
        assert (size(v - limit) <= gamma**k / (1 - gamma) * first * slack).all()
        v = f(v)


@torch.no_grad()
def test_the_fixed_point_is_unique():
    planner = planner_of(discount=0.9)
    f = step_of(planner, 5, 5)
    start = 100 * torch.randn(3, 1, 5, 5, dtype=torch.float64)
    v = start
    for _ in range(400):
        v = f(v)
    found = Anderson(max_steps=100, tolerance=1e-13).solve(f, torch.zeros_like(v)).value
    torch.testing.assert_close(found, v, rtol=1e-9, atol=1e-9)


def test_transitions_are_discounted_probabilities():
    core = Contractive(ContractiveOptions(q_channels=8, discount=0.95), wrap=False)
    filters = core.transitions().detach()
    assert filters.shape == (8, 1, 3, 3) and (filters > 0).all()
    torch.testing.assert_close(filters.sum(dim=(1, 2, 3)), torch.full((8,), 0.95))


def test_a_discount_of_one_is_refused():
    with pytest.raises(ValueError, match="discount"):
        PlannerSpec(core="contractive", discount=1.0)


@pytest.mark.parametrize("wrap", [False, True])
def test_a_constant_on_the_value_changes_no_policy_but_beside_an_edge(wrap):
    torch.manual_seed(0)
    step = build_planner(PlannerSpec(core="contractive", wrap=wrap)).core.encode(torch.rand(1, 2, 7, 7))
    value = torch.rand(1, 1, 7, 7)
    changed = (step.policy(value + 5) - step.policy(value)).abs().amax(1)[0]
    inside = changed if wrap else changed[1:-1, 1:-1]
    assert inside.max() < 1e-3 and (wrap or changed.max() > 1)
