"""Annotated shapes are checked where tests run, and cost nothing elsewhere."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from datagen.expert.grid import goal_distances, solve
from datagen.problem import FOUR
from planners.cores import BoundStep, Injected
from planners.training.rollout import evaluate_policy


def one_map():
    return solve(np.ones((1, 4, 5), np.uint8), np.array([[1, 2]]), FOUR, np.zeros(1, np.uint64))


def test_an_argument_of_another_shape_is_named():
    problems = one_map()
    facts = (problems.label, problems.map, problems.goal, problems.distance, problems.optimal_actions)
    tensors = [torch.from_numpy(fact) for fact in facts]
    tensors[0] = tensors[0].long()
    assert evaluate_policy(*tensors, FOUR).success_rate == 1.0
    tensors[2] = tensors[2].flatten()
    with pytest.raises(TypeError, match=r"evaluate_policy: goal: expected Integer\[Tensor, .n 2.\], got int16 \[2\]"):
        evaluate_policy(*tensors, FOUR)


def test_a_letter_is_one_number_in_a_call():
    with pytest.raises(TypeError, match=r"Problems\.__init__: label: expected UInt8.*, got uint8 \[1, 4, 4\]"):
        replace(one_map(), label=np.zeros((1, 4, 4), np.uint8))


def test_a_step_that_returns_another_shape_is_told():
    class Core:
        def step(self, v, r):
            return v[..., :-1]

    with pytest.raises(TypeError, match=r"BoundStep\.__call__: return: expected .*, got float32 \[1, 2, 4, 4\]"):
        BoundStep(Core(), Injected(()))(torch.zeros(1, 2, 4, 5))


def test_what_a_function_refuses_it_refuses_in_its_own_words():
    with pytest.raises(ValueError, match=r"^goal: expected \[1, 2\], got \[2\]$"):
        goal_distances(np.ones((1, 4, 5), np.uint8), np.array([1, 2]), FOUR)


@pytest.mark.slow
def test_without_the_variable_a_function_is_itself():
    program = """
import sys
from datagen.shapes import shaped
def function(x: 'Float[Tensor, "n"]'): ...
assert shaped(function) is function
class Fields: ...
init = Fields.__init__
assert shaped(Fields) is Fields and Fields.__init__ is init
import planners.planner
assert not {"jaxtyping", "beartype"} & sys.modules.keys()
"""
    environment = {name: value for name, value in os.environ.items() if name != "IDP_CHECK_SHAPES"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
