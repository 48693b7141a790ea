"""Steps on tile registers equal those on vector registers: to rounding, and quick ones to a hundred-thousandth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from planners import Anderson, ForwardIteration, Implicit, Planner, PlannerSpec, Unrolled, build_planner
from planners.compiled import tile_registers
from planners.compiled.conv_gru import autograd as conv_gru
from planners.compiled.value_iteration import autograd as value_iteration
from planners.mappers import Identity
from planners.options import NoOptions

pytestmark = pytest.mark.skipif(not tile_registers.available(), reason="this processor has no tile registers")

OPTIONS = {"symvin": {"q_channels": 6, "hidden_channels": 5}, "conv_gppn": {"q_channels": 17, "hidden_channels": 5}}
ADJOINTS = {"implicit": lambda tolerance: Implicit(Anderson(7, tolerance, rule="residual"), inexact=True)}
ADJOINTS["unrolled"] = lambda tolerance: Unrolled()


def found(core: torch.nn.Module, adjoint: str, tolerance: float, shape: tuple[int, int]) -> tuple[Tensor, Tensor, str]:
    """The logits of two maps, all gradients of their squares, and the kernel."""
    torch.manual_seed(1)
    map, goal = (torch.rand(2, 1, *shape) > 0.3).float(), torch.zeros(2, 1, *shape)
    goal[:, :, 1, 2] = 1
    solver = ForwardIteration(8, tolerance, rule="residual")
    planner = Planner(core, Identity(NoOptions(), wrap=False), solver, ADJOINTS[adjoint](tolerance))
    core.zero_grad()
    plan = planner.plan(map, goal)
    plan.logits.square().sum().backward()
    gradients = [parameter.grad.flatten() for parameter in core.parameters() if parameter.grad is not None]
    return plan.logits.detach(), torch.cat(gradients), plan.kernel


@pytest.mark.parametrize("tolerance, bound", [(0.0, 2e-6), (1e-5, 2e-5)])
@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("name", OPTIONS)
def test_tiles_give_what_floats_give(name, adjoint, wrap, tolerance, bound, monkeypatch):
    torch.manual_seed(0)
    core = build_planner(PlannerSpec(core=name, options=OPTIONS[name], wrap=wrap)).core
    for shape in ((7, 5), (9, 13)):
        logits, gradients, kernel = found(core, adjoint, tolerance, shape)
        with monkeypatch.context() as patch:
            for module in (conv_gru, value_iteration):
                patch.setattr(module, "tiles_available", lambda: False)
            expected, expected_gradients, _ = found(core, adjoint, tolerance, shape)
        assert kernel == "compiled"
        for actual, wanted in ((logits, expected), (gradients, expected_gradients)):
            torch.testing.assert_close(actual, wanted, rtol=0.0, atol=bound * float(wanted.abs().max()))


def test_quick_products_are_for_tolerances_that_leave_room(monkeypatch):
    """Who asks for exactly K steps gets float32's rounding; the ConvGRU then has no use for tiles."""
    torch.manual_seed(0)
    step = build_planner(PlannerSpec(core="conv_gppn", options=OPTIONS["conv_gppn"])).core.encode(
        torch.rand(1, 2, 5, 5)
    )
    assert conv_gru._PackedStep(step, quick=False).tiles is None
    assert conv_gru._PackedStep(step, quick=True).tiles is not None
    monkeypatch.setattr(conv_gru, "tiles_available", lambda: False)
    assert conv_gru._PackedStep(step, quick=True).tiles is None
