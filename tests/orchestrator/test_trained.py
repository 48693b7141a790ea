"""Looking inside a planner: every registered core, solver and adjoint, put together in every way a sweep may."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from pydantic import ValidationError

from datagen.tasks import navigation
from datagen.tasks.registry import DatasetSpec
from orchestrator.trial.trained import convergence, solve
from planners.planner import build_planner
from planners.registry import ADJOINTS, CORES, SOLVERS
from planners.specs import PlannerSpec
from planners.training.evaluation import Inputs

K_FWD, K_BWD = 4, 3
NARROW = {"hidden_channels": 8, "q_channels": 8}
SIZES = {"spt": {"embedding": 8, "heads": 2, "feedforward": 8}, "shortest_path": {}}


def specs():
    """Yield each planner that can be put together of registered parts."""
    for core, solver, adjoint, backward in product(CORES, SOLVERS, ADJOINTS, SOLVERS):
        if adjoint != "implicit" and backward != "anderson":
            continue
        fields = SIZES.get(core, NARROW) | ({"solver_bwd": backward, "k_bwd": K_BWD} if adjoint == "implicit" else {})
        try:
            yield PlannerSpec(core=core, solver=solver, adjoint=adjoint, k_fwd=K_FWD, **fields)
        except ValidationError:  # some parts do not go together, and a spec says so
            continue


def test_every_registered_part_is_among_them():
    every = list(specs())
    assert {s.core for s in every} == set(CORES) and {s.adjoint for s in every} == set(ADJOINTS)
    assert {s.solver for s in every} == {name for name, entry in SOLVERS.items() if not entry.linear_only}
    assert {s.solver_bwd for s in every} == set(SOLVERS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    list(specs()),
    ids=lambda s: "-".join((s.core, s.solver, s.adjoint, *[s.solver_bwd] * (s.adjoint == "implicit"))),
)
def test_both_solves_of_every_planner_are_recorded_as_the_planner_runs_them(spec):
    torch.manual_seed(0)
    planner = build_planner(spec)
    problems = navigation.draw(DatasetSpec(map_size=7, test=3), "test", 0, 3)
    inputs = Inputs.of(problems)
    found = convergence(planner, problems)
    settled = spec.solver == "best_first" and found.forward[-1] < 1e-9  # cells once settled leave nothing to do
    assert (settled or len(found.forward) == K_FWD) and None not in found.forward
    products = 1 if spec.solver_bwd == "best_first" else K_BWD  # a flow down the tree of best ways needs one pass
    assert len(found.backward) == (products if spec.adjoint == "implicit" else 0) and None not in found.backward
    plan = solve(planner, problems, k=2)
    assert plan.solution.trace is not None
    assert plan.solution.trace.shape == (len(plan.solution.trace) if settled else 2, 3)
    easy = planner.recording(tolerance=0.9).plan(inputs.map, inputs.goal).solution
    assert easy.trace is not None
    torch.testing.assert_close(easy.trace[easy.steps - 1, torch.arange(3)], easy.residual)
    torch.testing.assert_close(easy.trace[-1], easy.residual)
    assert planner.solver.max_steps == K_FWD and planner.solver.tolerance == spec.tolerance
    with torch.no_grad():  # as `solve` plans: with gradients the adjoint may ask for the generic operations
        assert not planner.solver.record and plan.kernel == planner.plan(inputs.map, inputs.goal).kernel
