"""The example of an iteration that can be run backwards: exact gradients, and memory that K does not change."""

import runpy
from pathlib import Path

import pytest
import torch
from iterations import randn

EXAMPLE = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "reversible_iteration.py"))


def test_its_gradients_are_those_of_its_steps():
    a, b, v0 = (part.requires_grad_() for part in (0.3 * randn(3, 3), randn(2, 3), randn(2, 3)))

    def solved(v0, a, b):
        return EXAMPLE["reversible"](lambda v, a, b: torch.tanh(v @ a + b), v0, (a, b), 6)

    assert torch.autograd.gradcheck(solved, (v0, a, b))


def test_it_keeps_as_little_for_many_steps_as_for_few():
    measure, solves = EXAMPLE["gradient_and_kept"], (EXAMPLE["unrolled"], EXAMPLE["reversible"])
    (exact, every), (found, few) = (measure(solve, 20) for solve in solves)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)
    assert few == measure(solves[1], 5)[1] < every / 30


def test_it_ends_at_the_fixed_point():
    found = EXAMPLE["reversible"](lambda v: 0.5 * v + 1.0, torch.zeros(1, 2, dtype=torch.float64), (), 80)
    torch.testing.assert_close(found, torch.full_like(found, 2.0), rtol=1e-8, atol=0.0)


def test_a_step_that_can_t_be_undone_is_refused():
    for damping in (0.0, 1.0):
        with pytest.raises(ValueError, match="damping must be between 0 and 1"):
            EXAMPLE["reversible"](torch.tanh, torch.zeros(1, 1), (), damping=damping)
