"""What every solver, adjoint and mapper must do. Checks take a name in the registry and raise AssertionError."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from planners.registry import ADJOINTS, MAPPERS, SOLVERS, named
from planners.solution import Result, Solution
from planners.solvers import ForwardIteration
from planners.specs import PlannerSpec

DIMENSION = 6


def _solver(name: str, max_steps: int, tolerance: float) -> Any:
    spec = PlannerSpec(solver=name)
    return named(SOLVERS[name])(max_steps=max_steps, tolerance=tolerance, **spec.solver_options.model_dump())


def _contraction(batch: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return A [d, d] of spectral norm 0.6, b [batch, d] and the fixed point of v A^T + b."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(DIMENSION, DIMENSION, dtype=torch.float64, generator=generator)
    a = 0.6 * a / torch.linalg.matrix_norm(a, 2)
    b = torch.randn(batch, DIMENSION, dtype=torch.float64, generator=generator)
    eye = torch.eye(DIMENSION, dtype=torch.float64)
    return a, b, torch.linalg.solve(eye - a, b.T).T


def check_finds_the_fixed_point(solver: str) -> None:
    """Solves a linear contraction to the tolerance, for every sample, and says so."""
    a, b, exact = _contraction(4)
    solution: Solution = _solver(solver, 200, 1e-8).solve(lambda v: v @ a.T + b, torch.zeros_like(b))
    error = float((solution.value - exact).abs().max())
    assert error < 1e-6, f"off by {error:.1e} after {solution.steps.tolist()} steps"
    assert (solution.result == Result.CONVERGED).all(), f"results are {solution.result.tolist()}, not CONVERGED"
    assert (solution.residual <= 1e-8).all(), f"residuals {solution.residual.tolist()} are above the tolerance"


def check_counts_its_steps(solver: str) -> None:
    """Applies f at most max_steps times, to every sample, and reports how often."""
    a, b, _ = _contraction(3)
    applied = []

    def f(v: Tensor) -> Tensor:
        applied.append(len(v))
        return v @ a.T + b

    solution: Solution = _solver(solver, 7, 0.0).solve(f, torch.zeros_like(b))
    assert len(applied) <= 7, f"f was applied {len(applied)} times of at most 7"
    assert solution.steps.tolist() == [7, 7, 7], f"with tolerance 0, 7 steps are taken, not {solution.steps.tolist()}"
    assert (solution.result == Result.MAX_STEPS).all(), f"results are {solution.result.tolist()}, not MAX_STEPS"


def check_samples_are_alone(solver: str) -> None:
    """A sample's solution does not depend on the rest of its batch."""
    a, b, _ = _contraction(3)
    b = b * torch.tensor([[0.01], [1.0], [100.0]], dtype=b.dtype)
    together: Solution = _solver(solver, 60, 1e-6).solve(lambda v: v @ a.T + b, torch.zeros_like(b))
    for i in range(3):
        row = b[i : i + 1]
        alone: Solution = _solver(solver, 60, 1e-6).solve(lambda v, row=row: v @ a.T + row, torch.zeros_like(row))
        difference = float((alone.value[0] - together.value[i]).abs().max() / row.abs().max())
        assert difference < 1e-9, f"sample {i} alone and in its batch differ by {difference:.1e}"
        assert alone.steps[0] == together.steps[i], (
            f"sample {i} takes {alone.steps[0]} steps alone, else another number"
        )


def check_says_when_it_diverges(solver: str) -> None:
    """Where f has no fixed point to be found, no sample is called CONVERGED."""
    solution: Solution = _solver(solver, 40, 1e-6).solve(lambda v: v.square() + 1.0, torch.ones(2, 3))
    assert (solution.result != Result.CONVERGED).all(), f"results are {solution.result.tolist()} where v = v^2 + 1"


def check_gradient_points_downhill(adjoint: str) -> None:
    """At a solved fixed point the gradient of a loss descends it, and reaches all that f captures."""
    a, b, _ = _contraction(3)
    b.requires_grad_()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    spec = PlannerSpec(adjoint=adjoint)
    options: dict[str, Any] = spec.adjoint_options.model_dump()
    kind = named(ADJOINTS[adjoint])
    if "solver" in getattr(kind, "__dataclass_fields__", {}):
        options["solver"] = ForwardIteration(max_steps=80, tolerance=1e-12)
    solution: Solution = kind(**options).solve(
        lambda v: scale * (v @ a.T) + b, torch.zeros_like(b), ForwardIteration(max_steps=80, tolerance=1e-12)
    )
    loss = solution.value.square().sum()
    found, of_scale = torch.autograd.grad(loss, (b, scale))
    exact = torch.linalg.solve(torch.eye(DIMENSION, dtype=torch.float64) - a.T, 2 * solution.value.detach().T).T
    cosine = float(torch.cosine_similarity(found.flatten(), exact.flatten(), dim=0))
    assert cosine > 0.5, f"its cosine with the exact gradient is {cosine:.2f}"
    assert float(of_scale.abs()) > 0, "no gradient reaches a parameter that f captures"


def check_maps_from_observations(mapper: str, observation: Tensor, size: tuple[int, int]) -> None:
    """Makes one map logit per cell, differentiably, of a batch of observations."""
    spec = PlannerSpec(mapper=mapper)
    made = named(MAPPERS[mapper])(spec.mapper_options, wrap=False)
    logits = made(observation, size)
    expected = (len(observation), 1, *size)
    assert tuple(logits.shape) == expected, f"expected logits {expected}, got {tuple(logits.shape)}"
    logits.square().sum().backward()
    left = [name for name, p in made.named_parameters() if p.grad is None]
    assert not left, f"no gradient reaches {left}"


EVERY_SOLVER: tuple[Callable[[str], None], ...] = (
    check_finds_the_fixed_point,
    check_counts_its_steps,
    check_samples_are_alone,
    check_says_when_it_diverges,
)
EVERY_ADJOINT: tuple[Callable[[str], None], ...] = (check_gradient_points_downhill,)
