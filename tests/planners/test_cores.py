"""Every registered core with every registered adjoint, through the conformance suite."""

from __future__ import annotations

import pytest
import torch

from planners.conformance import cores as conformance
from planners.conformance.planners import planner_for, problem, small_spec
from planners.cores import Core, CoreStep, encoded
from planners.registry import ADJOINTS, CORES


@pytest.mark.slow
@pytest.mark.parametrize("check", conformance.EVERY_ADJOINT, ids=lambda check: check.__name__)
@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("core", CORES)
def test_core_with_adjoint(core, adjoint, check):
    check(core, adjoint)


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", conformance.EXACT)
@pytest.mark.parametrize("core", CORES)
def test_exact_gradients_match_finite_differences(core, adjoint):
    conformance.check_gradient_matches_finite_differences(core, adjoint)


@pytest.mark.slow
@pytest.mark.parametrize("core", [name for name in CORES if "temperature" in CORES[name].options_type.model_fields])
def test_exact_gradients_of_the_smoothed_maximum(core):
    conformance.check_gradient_matches_finite_differences(core, "implicit", temperature=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("check", conformance.EVERY_CORE, ids=lambda check: check.__name__)
@pytest.mark.parametrize("core", CORES)
def test_core(core, check):
    check(core)


@pytest.mark.parametrize("core", [name for name in CORES if name not in conformance.ABSOLUTE_POSITIONS])
def test_torus_has_no_first_row(core):
    conformance.check_rolls_with_the_map(core)


@pytest.mark.parametrize("core", conformance.ABSOLUTE_POSITIONS)
def test_absolute_positions_break_the_torus(core):
    with pytest.raises(AssertionError):
        conformance.check_rolls_with_the_map(core)


@pytest.mark.parametrize("core", CORES)
def test_cores_follow_the_protocol(core):
    made = planner_for(small_spec(core)).core
    step = encoded(made, torch.cat(problem(2, 3, 4, torch.float32), 1))
    assert isinstance(made, Core) and isinstance(step, CoreStep)
    alone = step.take(torch.tensor([1]))
    assert torch.allclose(alone(step.initial_value()[1:]), step(step.initial_value())[1:], rtol=0, atol=1e-6)
