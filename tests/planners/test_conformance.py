"""Our own solvers and adjoints through the checks that plug-ins must pass, and what the checks say of bad ones."""

from dataclasses import dataclass

import pytest
import torch

from planners.conformance import cores, derivatives, planners, solvers
from planners.fixed_points import ForwardIteration, Result, Solution
from planners.options import VINOptions
from planners.registry import ADJOINTS, CORES, SOLVERS
from planners.specs import Entry


@pytest.mark.slow
@pytest.mark.parametrize("check", solvers.EVERY_SOLVER, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    "solver", [name for name, entry in SOLVERS.items() if not entry.cores and not entry.linear_only]
)
def test_solver(solver, check):
    check(solver)


@pytest.mark.slow
@pytest.mark.parametrize("check", solvers.EVERY_ADJOINT, ids=lambda check: check.__name__)
@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_adjoint(adjoint, check):
    check(adjoint)


def test_gmres_solves_for_derivatives():
    solvers.check_adjoint_solver_under_transformations("gmres")


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
    monkeypatch.setattr(derivatives, "named", lambda entry: Impatient)
    with pytest.raises(AssertionError, match=r"off by .* after \[1, 1, 1, 1\] steps"):
        solvers.check_finds_the_fixed_point("impatient")
    with pytest.raises(AssertionError, match="7 steps are taken"):
        solvers.check_counts_its_steps("impatient")
    with pytest.raises(AssertionError, match="where v = v"):
        solvers.check_says_when_it_diverges("impatient")
    assert Result.CONVERGED == 0


@pytest.mark.slow
def test_vin_contracts_by_the_general_rule_too(monkeypatch):
    """The rule for cores that are not ours, on one that is."""
    monkeypatch.setitem(CORES, "same_vin", Entry("planners.cores.vin:VIN", VINOptions))
    monkeypatch.setitem(CORES, "same_gppn", Entry("planners.cores.conv_gppn:ConvGPPN", CORES["conv_gppn"].options))
    for core in ("same_vin", "same_gppn"):
        cores.check_gradient_matches_finite_differences(core, "implicit")
        cores.check_unrolled_gradient_approaches_implicit(core)


@dataclass(frozen=True)
class Boastful:
    """Forward iteration by the relative residual, which it calls convergence; no record; answers with v0 at first."""

    max_steps: int
    tolerance: float

    def solve(self, f, v0):
        found = ForwardIteration(self.max_steps, self.tolerance, rule="residual").solve(f, v0)
        result = torch.where(found.result == Result.SETTLED, int(Result.CONVERGED), found.result).to(torch.int8)
        value = v0 if torch.equal(found.value, v0) else found.value
        return Solution(value, found.residual, found.steps, result)


class NoDataclass:
    def __init__(self, max_steps, tolerance):
        self.max_steps, self.tolerance = max_steps, tolerance

    def solve(self, f, v0):
        return ForwardIteration(self.max_steps, self.tolerance).solve(f, v0)


def test_a_solver_that_promises_what_it_does_not_know_is_found(monkeypatch):
    monkeypatch.setitem(SOLVERS, "own", Entry(f"{__name__}:Boastful"))
    monkeypatch.setattr(derivatives, "named", lambda entry: Boastful)
    solvers.check_finds_the_fixed_point("own")
    with pytest.raises(AssertionError, match="has no field 'record'"):
        solvers.check_can_be_told_otherwise("own")
    with pytest.raises(AssertionError, match="shares v0's memory"):
        solvers.check_keeps_to_its_own_memory("own")
    with pytest.raises(AssertionError, match=r"a tiny solution, torch.float64: .* says SETTLED"):
        solvers.check_calls_nothing_converged_that_is_not("own")
    monkeypatch.setattr(derivatives, "named", lambda entry: NoDataclass)
    with pytest.raises(AssertionError, match="is no dataclass"):
        solvers.check_can_be_told_otherwise("own")


def test_perfect_agreement_is_agreement(monkeypatch):
    """A step that forgets v at once is at its fixed point after one step, and so are its gradients."""
    spec = Entry("planners.cores.vin:VIN", VINOptions)
    monkeypatch.setitem(CORES, "forgetful", spec)
    monkeypatch.setitem(planners._CONTRACTIONS, "forgetful", lambda core: core.w_v.mul_(1e-20))
    cores.check_unrolled_gradient_approaches_implicit("forgetful")
