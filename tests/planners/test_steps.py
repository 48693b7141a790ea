"""A core is encoded once, and its step is one object whichever way it is solved or written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch

from planners import ForwardIteration, Implicit, build_planner
from planners.conformance.planners import small_spec
from planners.cores import Injected
from planners.cores.layers import convolve
from planners.planner import Planner
from planners.registry import CORES


def problems(batch=3):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, batch, 1, 5, 6, generator=generator)


REFUSED = [("vin", {"temperature": 0.1}), ("contractive", {"wrap": True, "options": {"kernel_size": 13}})]
"""What the compiled loop refuses once it has seen the step."""


@pytest.mark.parametrize(
    ("core", "fields"),
    [*product(CORES, ({}, {"solver": "broyden"}, {"adjoint": "unrolled"})), *REFUSED],
    ids=str,
)
def test_the_encoder_runs_once_whatever_solves(core, fields):
    for kernel in ("auto", "reference"):
        planner = build_planner(small_spec(core, k_fwd=3, **fields), kernel=kernel)
        encode, calls = planner.core.encode, []
        planner.core.encode = lambda x, encode=encode, calls=calls: calls.append(x) or encode(x)
        planner(*problems()).sum().backward()
        assert len(calls) == 1


class Methods(torch.nn.Module):
    """A step written as methods of the core."""

    def __init__(self):
        super().__init__()
        self.filter = torch.nn.Parameter(torch.full((1, 1, 3, 3), 0.1))

    def encode(self, x):
        return Injected((x[:, 1:],), (self.filter,))

    def initial_value(self, r):
        return torch.zeros_like(r.per_sample[0])

    def step(self, v, r):
        return r.per_sample[0] + convolve(v, r.shared[0], wrap=False)

    def policy(self, v, r):
        return torch.cat([v, -v, v + r.per_sample[0], 2 * v], 1)


@dataclass(frozen=True, eq=False)
class Step:
    reward: torch.Tensor
    filter: torch.Tensor

    def __call__(self, v):
        return self.reward + convolve(v, self.filter, wrap=False)

    def take(self, rows):
        return replace(self, reward=self.reward[rows])

    def initial_value(self):
        return torch.zeros_like(self.reward)

    def policy(self, v):
        return torch.cat([v, -v, v + self.reward, 2 * v], 1)


class Object(Methods):
    """The same step as an object that `encode` returns."""

    def encode(self, x):
        return Step(x[:, 1:], self.filter)


def test_both_ways_to_write_a_step_are_one():
    goal = problems(4)[1] * torch.tensor([1.0, 10.0, 0.1, 0.0])[:, None, None, None]  # some converge earlier
    found = []
    for core in (Methods(), Object()):
        planner = Planner(core, torch.nn.Identity(), ForwardIteration(40, 1e-4), Implicit())
        plan = planner.plan(torch.ones_like(goal), goal)
        plan.logits.square().sum().backward()
        assert plan.kernel.startswith("reference: ") and plan.kernel.endswith(" has no compiled loop")
        found.append((plan.logits, plan.solution.steps, core.filter.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert len(set(found[0][1].tolist())) > 1


class Old(Methods):
    """As version 0.1.0 had a core with a compiled loop."""

    def value_iteration(self, x):
        raise AssertionError("not asked for any more")

    def read_out(self, step, v):
        raise AssertionError("not asked for any more")


def test_a_core_described_twice_goes_on_working_and_is_told_how_to_be_compiled():
    map, goal = problems()
    plain, old = (Planner(core, torch.nn.Identity(), ForwardIteration(5), Implicit()) for core in (Methods(), Old()))
    with pytest.warns(DeprecationWarning, match="core Old: .* return the ValueIteration from encode"):
        logits = old(map, goal)
    assert torch.equal(logits, plain(map, goal))
