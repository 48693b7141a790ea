"""What every core must do with every adjoint.

Each check takes the name of a core and raises AssertionError; its docstring says what is asked. Sizes are cut down by
`planners.conformance.planners.small_spec`.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from planners.conformance.planners import contracting, planner_for, problem, small_spec
from planners.cores import encoded
from planners.cores.steps import GRUIteration, ValueIteration
from planners.fixed_points import jacobian_penalty
from planners.planner import Planner, build_planner

EXACT = ("unrolled", "implicit")
CONSTANT_JACOBIANS = ("shortest_path",)
"""Cores whose df/dv is zeros and ones whatever the parameters, so that there is nothing to regularise."""
ABSOLUTE_POSITIONS = ("spt",)
"""Cores that know where on the map a cell is, and so do not commute with shifts of the torus."""


def loss_of(planner: Planner, map: Tensor, goal: Tensor) -> Tensor:
    """Return a sum of the logits with weights of either sign."""
    logits = planner(map, goal)
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).reshape(logits.shape).sin()
    return (weights.to(logits.device) * logits).sum()


def gradients(planner: Planner, map: Tensor, goal: Tensor) -> dict[str, Tensor]:
    """Return the gradient of `loss_of` by the parameter's name; zeros where there is none."""
    planner.zero_grad()
    loss_of(planner, map, goal).backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in planner.named_parameters()}


def reached_at_fixed_point(planner: Planner, map: Tensor, goal: Tensor) -> set[str]:
    """Names of the parameters that step or policy depends on, the initial value held constant."""
    step = encoded(planner.core, torch.cat([map, goal], dim=1))
    v = step.initial_value().detach()
    for _ in range(3):
        v = step(v)
    named = dict(planner.named_parameters())
    found = torch.autograd.grad(step.policy(v).square().sum(), list(named.values()), allow_unused=True)
    return {name for name, gradient in zip(named, found, strict=True) if gradient is not None}


def _close(found: Tensor, expected: Tensor, relative: float, absolute: float, what: str) -> None:
    assert found.shape == expected.shape, f"{what}: shapes {tuple(found.shape)} and {tuple(expected.shape)}"
    difference = float((found - expected).detach().abs().max())
    assert torch.allclose(found, expected, rtol=relative, atol=absolute), f"{what} differ by up to {difference:.1e}"


def check_actions(core: str) -> None:
    """As many logits per cell as the task has moves."""
    map, goal = problem(2, 5, 6, torch.float32)
    for actions in (4, 8):
        planner = build_planner(small_spec(core, k_fwd=2), actions=actions, kernel="reference").to(map.device)
        found = planner(map, goal).shape[1]
        assert found == actions, f"built with actions={actions}, the policy gives {found} logits"


def check_shapes(core: str, adjoint: str) -> None:
    """Logits for square and other maps, one planner for all sizes, with and without wrap."""
    for wrap in (False, True):
        planner = planner_for(small_spec(core, adjoint=adjoint, k_fwd=3, wrap=wrap))
        for height, width in ((5, 5), (4, 7), (9, 3)):
            map, goal = problem(2, height, width, torch.float32)
            plan = planner.plan(map, goal, k_fwd=4)
            start = plan.step.initial_value()
            where = f"on a {height} x {width} map, wrap={wrap}"
            found = tuple(plan.logits.shape)
            assert found == (2, 4, height, width), f"policy gave logits {found}, not (2, 4, {height}, {width}), {where}"
            assert plan.solution.value.shape == start.shape, (
                f"step gave {tuple(plan.solution.value.shape)} from an initial value {tuple(start.shape)}, {where}"
            )
            assert plan.solution.steps.max() <= 4, f"{plan.solution.steps.max()} steps were taken of at most 4"
            assert torch.isfinite(plan.logits).all(), f"logits are not finite after 4 steps {where}"


def check_gradients_reach_all_parameters(core: str, adjoint: str) -> None:
    """Unrolled: every parameter. Otherwise: every one that step or policy depends on, and no other."""
    planner = contracting(core, adjoint=adjoint, k_fwd=6, tolerance=0.0)
    map, goal = problem(2, 5, 6)
    names = {name for name, gradient in gradients(planner, map, goal).items() if gradient.abs().max() > 0}
    everything = {name for name, _ in planner.named_parameters()}
    expected = everything if adjoint == "unrolled" else reached_at_fixed_point(planner, map, goal)
    assert names == expected, (
        f"no gradient reaches {sorted(expected - names)}" if expected - names else f"unexpected: {names - expected}"
    )


def check_gradient_reaches_a_mapper(core: str, adjoint: str) -> None:
    """The loss teaches the mapper in front of the core; or the core's options refuse one, in a `check_mapper`."""
    fields: dict[str, Any] = {"mapper": "unet", "mapper_options": {"channels": (2, 4)}, "k_fwd": 3}
    try:
        planner = planner_for(small_spec(core, adjoint=adjoint, **fields))
    except ValueError as error:
        assert "mapper" in str(error), f"refused behind a mapper, but not for it: {error}"
        return
    generator = torch.Generator().manual_seed(2)
    _, goal = problem(2, 6, 5, torch.float32)
    with torch.no_grad():  # a value's filter that starts at zero would hide what the step does
        for parameter in cast(nn.Module, planner.core).parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.device))
    observation = torch.rand(2, 1, 96, 96, generator=generator).to(goal.device)
    planner.plan(None, goal, observation).logits.square().sum().backward()
    taught = [p.grad is not None and bool(p.grad.any()) for p in planner.mapper.parameters()]
    assert any(taught), (
        "no gradient reaches a mapper: does the map enter the step, or the initial value alone? A core "
        "that can't teach a mapper says so by a method check_mapper(self, mapper, adjoint) of its options"
    )


def check_batch_equals_samples(core: str, adjoint: str) -> None:
    """A sample's logits and gradients do not depend on the rest of its batch, even when others converge earlier."""
    planner = contracting(core, adjoint=adjoint, k_fwd=40, tolerance=1e-6, k_bwd=40)
    map, goal = problem(4, 5, 5)
    goal = goal * torch.tensor([0.0, 1.0, 10.0, 0.1]).to(goal)[:, None, None, None]
    map = map.requires_grad_()
    planner(map, goal).square().sum().backward()
    whole = planner(map, goal).detach()
    gradient = torch.zeros_like(map) if map.grad is None else map.grad.clone()
    for i in range(len(map)):
        row = map[i : i + 1].detach().requires_grad_()
        logits = planner(row, goal[i : i + 1])
        logits.square().sum().backward()
        _close(logits.detach(), whole[i : i + 1], 1e-9, 1e-9, f"logits of sample {i} alone and in its batch")
        own = torch.zeros_like(row) if row.grad is None else row.grad
        _close(own, gradient[i : i + 1], 1e-8, 1e-8, f"gradient of sample {i} alone and in its batch")


def check_float32_matches_float64(core: str, adjoint: str) -> None:
    """Single precision agrees with double, values and gradients."""
    planner = contracting(core, adjoint=adjoint, k_fwd=30, tolerance=0.0)
    map, goal = problem(2, 5, 6)
    exact_logits, exact = planner(map, goal).detach(), gradients(planner, map, goal)
    planner = planner.float()
    single_logits, single = planner(map.float(), goal.float()).detach(), gradients(planner, map.float(), goal.float())
    largest = float(exact_logits.abs().max())
    _close(single_logits.double(), exact_logits, 1e-4, 1e-4 * largest, "logits in float32 and in float64")
    # A gradient that is zero at a fixed point, such as that of a step size, is noise beside the others.
    noise = 1e-6 * max(float(gradient.abs().max()) for gradient in exact.values())
    for name, gradient in exact.items():
        allowed = 1e-3 * float(gradient.abs().max()) + noise
        _close(single[name].double(), gradient, 1e-3, allowed, f"gradients of {name} in float32 and in float64")


def check_same_value_for_every_adjoint(core: str, adjoint: str) -> None:
    """The adjoint does not change the value, which is that of K plain steps."""
    map, goal = problem(2, 5, 6)
    planner = contracting(core, adjoint=adjoint, k_fwd=7, tolerance=0.0)
    plan = planner.plan(map, goal)
    step = encoded(planner.core, torch.cat([map, goal], dim=1))
    v = step.initial_value()
    for _ in range(7):
        v = step(v)
    _close(plan.solution.value, v, 1e-12, 1e-12, "the planner's value and that of 7 plain steps")
    _close(plan.logits, step.policy(v), 1e-12, 1e-12, "the planner's logits and the policy's")


def check_gradient_matches_finite_differences(core: str, adjoint: str, **options: Any) -> None:
    """At a solved fixed point exact adjoints give the derivative along a random direction of each parameter."""
    assert adjoint in EXACT, adjoint
    solved: dict[str, Any] = {
        "k_fwd": 100,
        "tolerance": 0.0,
        "solver_bwd": "forward",
        "k_bwd": 100,
        "tolerance_bwd": 1e-14,
    }
    planner = contracting(core, options, adjoint=adjoint, **solved)
    map, goal = problem(2, 4, 5)
    plan = planner.plan(map, goal)
    assert plan.solution.residual.max() < 1e-11, f"not at a fixed point: {plan.solution.residual}"
    assert (plan.step(plan.solution.value + 0.1) - plan.solution.value).abs().max() > 1e-3, "the step ignores v"
    exact = gradients(planner, map, goal)
    named = dict(planner.named_parameters())
    generator = torch.Generator().manual_seed(1)
    epsilon = 1e-6
    for name, parameter in named.items():
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=generator).to(parameter.device)
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * epsilon)
                losses.append(float(loss_of(planner, map, goal)))
                parameter.sub_(direction, alpha=sign * epsilon)
        numeric = (losses[0] - losses[1]) / (2 * epsilon)
        analytic = float((exact[name] * direction).sum())
        scale = max(1.0, float(exact[name].abs().sum()))
        assert abs(numeric - analytic) < 1e-6 * scale, f"{name}: {numeric} by differences, {analytic} by {adjoint}"


def check_unrolled_gradient_approaches_implicit(core: str) -> None:
    """As K grows, differentiating through the iteration and differentiating at its limit become one."""
    map, goal = problem(2, 4, 5)
    fields: dict[str, Any] = {"tolerance": 0.0, "solver_bwd": "forward", "k_bwd": 100, "tolerance_bwd": 1e-14}
    limit = gradients(contracting(core, adjoint="implicit", k_fwd=100, **fields), map, goal)
    errors = []
    for steps in (4, 16, 64):
        found = gradients(contracting(core, adjoint="unrolled", k_fwd=steps, tolerance=0.0), map, goal)
        errors.append(max(float((found[name] - limit[name]).abs().max()) for name in limit))
    rounding = 1e-12 * max(float(gradient.abs().max()) for gradient in limit.values())
    # Nothing is left to approach where they agree to rounding after 4 steps, as with a step that forgets v at once.
    approaches = all(after <= max(before / 2, rounding) for before, after in pairwise(errors))
    assert approaches, f"differences after 4, 16 and 64 steps: {errors}"


def check_rolls_with_the_map(core: str) -> None:
    """On the torus there is no first row: rolling map and goal rolls the logits. A core with positions fails this."""
    planner = planner_for(small_spec(core, k_fwd=6, tolerance=0.0, wrap=True)).double()
    map, goal = problem(2, 6, 5)
    logits = planner(map, goal)
    rolled = planner(map.roll((2, 3), (2, 3)), goal.roll((2, 3), (2, 3)))
    _close(rolled, logits.roll((2, 3), (2, 3)), 1e-10, 1e-10, "logits of the rolled map and the rolled logits")


def check_state_dict_round_trip(core: str) -> None:
    """A checkpoint holds tensors alone, loads with weights_only, and brings the logits back."""
    spec = small_spec(core, k_fwd=4)
    planner, other = planner_for(spec, seed=0), planner_for(spec, seed=1)
    map, goal = problem(2, 5, 5, torch.float32)
    assert not torch.equal(planner(map, goal), other(map, goal)), "two seeds give the same logits"
    state = planner.state_dict()
    for name, value in state.items():
        assert isinstance(value, Tensor), f"{name} is a {type(value).__name__}, not a tensor"
    stored = io.BytesIO()
    torch.save(state, stored)
    stored.seek(0)
    other.load_state_dict(torch.load(stored, weights_only=True))
    assert torch.equal(planner(map, goal), other(map, goal)), "the checkpoint gives other logits than its planner"


def saved_bytes(planner: Planner, map: Tensor, goal: Tensor) -> int:
    """Bytes of distinct storages that the forward pass keeps for the backward pass, parameters left out."""
    held = {p.untyped_storage().data_ptr() for p in planner.parameters()}
    sizes: dict[int, int] = {}
    kept = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x)  # a storage that is freed could give its address to another
        if x.untyped_storage().data_ptr() not in held:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        planner(map, goal)
    return sum(sizes.values())


def check_saved_memory(core: str, adjoint: str) -> None:
    """What the backward pass needs grows linearly with K when unrolled, and else not at all (section 4.3)."""
    map, goal = problem(2, 6, 6, torch.float32)
    planner = planner_for(small_spec(core, adjoint=adjoint, tolerance=0.0))
    used = []
    for steps in (10, 20, 40):
        planner.solver = replace(planner.solver, max_steps=steps)
        used.append(saved_bytes(planner, map, goal))
    if adjoint == "unrolled":
        linear = used[2] - used[1] == 2 * (used[1] - used[0]) > 0
    else:
        linear = used[0] == used[1] == used[2] > 0
    assert linear, f"bytes kept for 10, 20 and 40 steps: {used}"


def check_compiled_loop(core: str, adjoint: str) -> None:
    """Where a core has a compiled loop, it gives the reference's values, steps and gradients."""
    planner = contracting(core, adjoint=adjoint, k_fwd=12, tolerance=1e-4, k_bwd=30).float()
    map, goal = problem(3, 6, 5, torch.float32)
    reference, expected = planner.plan(map, goal), gradients(planner, map, goal)
    planner.kernel = "auto"
    plan, found = planner.plan(map, goal), gradients(planner, map, goal)
    compiled = isinstance(plan.step, ValueIteration | GRUIteration) and map.device.type == "cpu"
    assert (plan.kernel == "compiled") == compiled, plan.kernel
    _close(plan.logits, reference.logits, 1e-4, 1e-4, "logits of the compiled loop and of the reference")
    assert torch.equal(plan.solution.steps, reference.solution.steps), "the compiled loop takes other steps"
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        _close(found[name], gradient, 1e-3, 1e-3 * scale, f"gradients of {name}, compiled and reference")


def check_jacobian_penalty(core: str) -> None:
    """The penalty on df/dv at the equilibrium (E.5) is positive and has a gradient: steps are twice differentiable."""
    planner = contracting(core, k_fwd=10, tolerance=0.0)
    plan = planner.plan(*problem(2, 5, 6))
    penalty = jacobian_penalty(plan.step, plan.solution.value, torch.Generator().manual_seed(0))
    assert penalty.item() > 0, "the step's Jacobian is zero: it ignores v"
    if core in CONSTANT_JACOBIANS:
        assert not penalty.requires_grad, "the step's Jacobian depends on the parameters after all"
        return
    penalty.backward()
    reached = [p.grad for p in planner.parameters() if p.grad is not None]
    assert any(gradient.abs().max() > 0 for gradient in reached), "the penalty has no gradient"
    assert all(torch.isfinite(gradient).all() for gradient in reached), "the penalty's gradient is not finite"


EVERY_ADJOINT: tuple[Callable[[str, str], None], ...] = (
    check_shapes,
    check_gradients_reach_all_parameters,
    check_gradient_reaches_a_mapper,
    check_batch_equals_samples,
    check_float32_matches_float64,
    check_same_value_for_every_adjoint,
    check_saved_memory,
    check_compiled_loop,
)
EVERY_CORE: tuple[Callable[[str], None], ...] = (
    check_unrolled_gradient_approaches_implicit,
    check_state_dict_round_trip,
    check_jacobian_penalty,
)
