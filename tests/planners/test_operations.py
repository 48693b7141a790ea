"""Operations of a plan against what the shapes of its convolutions say."""

import pytest

from planners.operations import operations
from planners.planner import build_planner
from planners.specs import PlannerSpec


def counted(size=9, k=7, **fields):
    return operations(build_planner(PlannerSpec(**fields)), size, k)


@pytest.mark.parametrize("adjoint", ["unrolled", "implicit"])
def test_value_iteration_is_its_convolutions(adjoint):
    fields = {"core": "vin", "adjoint": adjoint, "q_channels": 6, "hidden_channels": 5, "kernel_size": 3}
    steps = counted(k=8, **fields) - counted(k=7, **fields)
    assert steps == 2 * 9 * 6 * 81  # two operations a tap, a channel of Q and a cell
    whole = counted(k=1, **fields) - steps
    assert whole >= 2 * 81 * (2 * 9 * 5 + 5)  # the encoder's two layers at least


def test_best_first_is_one_step_however_many_are_allowed():
    fields = {"core": "reachability", "q_channels": 8, "hidden_channels": 16}
    best_first = {**fields, "solver": "best_first", "solver_bwd": "best_first"}
    assert counted(k=7, **best_first) == counted(k=700, **best_first) == counted(k=1, **fields)
    assert counted(k=8, **fields) - counted(k=7, **fields) == 2 * 8 * 81


def test_operations_grow_with_the_cells():
    fields = {"core": "contractive", "q_channels": 8, "hidden_channels": 8}
    assert 3.5 < counted(18, **fields) / counted(9, **fields) <= 4.0
