"""Our own solvers and adjoints through the checks that plug-ins must pass, and what the checks say of bad ones."""

from dataclasses import dataclass

import pytest
import torch

from planners.conformance import cores, solvers
from planners.registry import ADJOINTS, CORES, SOLVERS
from planners.solution import Result, Solution
from planners.specs import Entry, VINOptions


@pytest.mark.parametrize("check", solvers.EVERY_SOLVER, ids=lambda check: check.__name__)
@pytest.mark.parametrize("solver", [name for name, entry in SOLVERS.items() if not entry.cores])
def test_solver(solver, check):
    check(solver)


@pytest.mark.parametrize("check", solvers.EVERY_ADJOINT, ids=lambda check: check.__name__)
@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_adjoint(adjoint, check):
    check(adjoint)


@pytest.mark.parametrize("core", ["vin", "conv_gppn", "spt"])
def test_actions(core):
    cores.check_actions(core)


@dataclass(frozen=True)
class Impatient:
    """Stops after one step, whatever it is asked, and calls that a solution."""

    max_steps: int
    tolerance: float
    record: bool = False

    def solve(self, f, v0):
        v = f(v0.detach())
        n = len(v)
        return Solution(v, torch.zeros(n), torch.ones(n, dtype=torch.long), torch.zeros(n, dtype=torch.int8))


def test_a_solver_that_does_not_solve_is_found(monkeypatch):
    monkeypatch.setitem(SOLVERS, "impatient", Entry(f"{__name__}:Impatient"))
    monkeypatch.setattr(solvers, "named", lambda entry: Impatient)
    with pytest.raises(AssertionError, match=r"off by .* after \[1, 1, 1, 1\] steps"):
        solvers.check_finds_the_fixed_point("impatient")
    with pytest.raises(AssertionError, match="7 steps are taken"):
        solvers.check_counts_its_steps("impatient")
    with pytest.raises(AssertionError, match="where v = v"):
        solvers.check_says_when_it_diverges("impatient")
    assert Result.CONVERGED == 0


def test_vin_contracts_by_the_general_rule_too(monkeypatch):
    """The rule for cores that are not ours, on one that is."""
    monkeypatch.setitem(CORES, "same_vin", Entry("planners.cores.vin:VIN", VINOptions))
    monkeypatch.setitem(CORES, "same_gppn", Entry("planners.cores.conv_gppn:ConvGPPN", CORES["conv_gppn"].options))
    for core in ("same_vin", "same_gppn"):
        cores.check_gradient_matches_finite_differences(core, "implicit")
        cores.check_unrolled_gradient_approaches_implicit(core)
