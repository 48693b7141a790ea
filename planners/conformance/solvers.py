"""What every solver, adjoint and mapper must do. Checks take a name in the registry and raise AssertionError."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace

import torch
from torch import Tensor

from planners.conformance.derivatives import (
    adjoint_named,
    check_adjoint_solver_under_transformations,
    check_first_derivatives,
    check_second_derivatives,
    check_solver_under_transformations,
    solver_named,
)
from planners.fixed_points import ForwardIteration, Result, Solution
from planners.registry import MAPPERS, named
from planners.specs import PlannerSpec

DIMENSION = 6


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
    solution: Solution = solver_named(solver, 200, 1e-8).solve(lambda v: v @ a.T + b, torch.zeros_like(b))
    error = float((solution.value - exact).abs().max())
    assert error < 1e-6, f"off by {error:.1e} after {solution.steps.tolist()} steps"
    solved = (solution.result == Result.CONVERGED) | (solution.result == Result.SETTLED)
    assert solved.all(), f"results are {solution.result.tolist()}, not CONVERGED ({int(Result.CONVERGED)}) or SETTLED"
    assert (solution.residual <= 1e-8).all(), f"residuals {solution.residual.tolist()} are above the tolerance"


def check_counts_its_steps(solver: str) -> None:
    """Applies f at most max_steps times, to every sample, and reports how often."""
    a, b, _ = _contraction(3)
    applied = []

    def f(v: Tensor) -> Tensor:
        applied.append(len(v))
        return v @ a.T + b

    solution: Solution = solver_named(solver, 7, 0.0).solve(f, torch.zeros_like(b))
    assert len(applied) <= 7, f"f was applied {len(applied)} times of at most 7"
    assert solution.steps.tolist() == [7, 7, 7], f"with tolerance 0, 7 steps are taken, not {solution.steps.tolist()}"
    assert (solution.result == Result.MAX_STEPS).all(), f"results are {solution.result.tolist()}, not MAX_STEPS"


def check_samples_are_alone(solver: str) -> None:
    """A sample's solution does not depend on the rest of its batch."""
    a, b, _ = _contraction(3)
    b = b * torch.tensor([[0.01], [1.0], [100.0]], dtype=b.dtype)
    together: Solution = solver_named(solver, 60, 1e-6).solve(lambda v: v @ a.T + b, torch.zeros_like(b))
    for i in range(3):
        row = b[i : i + 1]
        alone: Solution = solver_named(solver, 60, 1e-6).solve(lambda v, row=row: v @ a.T + row, torch.zeros_like(row))
        difference = float((alone.value[0] - together.value[i]).abs().max() / row.abs().max())
        assert difference < 1e-9, f"sample {i} alone and in its batch differ by {difference:.1e}"
        assert alone.steps[0] == together.steps[i], (
            f"sample {i} takes {alone.steps[0]} steps alone, else another number"
        )


def check_says_when_it_diverges(solver: str) -> None:
    """Where f has no fixed point to be found, no sample is called CONVERGED."""
    solution: Solution = solver_named(solver, 40, 1e-6).solve(lambda v: v.square() + 1.0, torch.ones(2, 3))
    assert (solution.result != Result.CONVERGED).all(), f"results are {solution.result.tolist()} where v = v^2 + 1"


def check_can_be_told_otherwise(solver: str) -> None:
    """Is a dataclass whose max_steps, tolerance and record `dataclasses.replace` changes: planners do."""
    made = solver_named(solver, 200, 1e-8)
    assert is_dataclass(type(made)), f"{type(made).__name__} is no dataclass, so no planner can shorten its solves"
    names = {field.name for field in fields(type(made))}
    missing = sorted({"max_steps", "tolerance", "record"} - names)
    assert not missing, f"{type(made).__name__} has no field {missing[0]!r}"
    a, b, _ = _contraction(3)
    start = torch.zeros_like(b)
    kept: Solution = replace(made, max_steps=4, tolerance=0.0, record=True).solve(lambda v: v @ a.T + b, start)
    shape = None if kept.trace is None else tuple(kept.trace.shape)
    assert shape == (4, 3), f"with record=True and max_steps=4 the trace of 3 samples has shape {shape}, not (4, 3)"
    plain: Solution = replace(made, max_steps=4, tolerance=0.0, record=False).solve(lambda v: v @ a.T + b, start)
    assert plain.trace is None, "with record=False there is a trace"
    for name, part in (("residual", plain.residual), ("steps", plain.steps), ("result", plain.result)):
        assert tuple(part.shape) == (3,), f"{name} has shape {tuple(part.shape)} for 3 samples, not (3,)"
    assert plain.value.shape == b.shape and not plain.value.requires_grad, "the value is no plain tensor like v0"


def check_keeps_to_its_own_memory(solver: str) -> None:
    """Neither changes v0 nor answers with v0's own memory, not even where v0 is the solution."""
    for start in (torch.full((2, 3), 2.0), torch.zeros(2, 3)):
        before = start.clone()
        solution: Solution = solver_named(solver, 30, 1e-4).solve(lambda v: 0.5 * v + 1.0, start)
        assert torch.equal(start, before), "v0 was changed"
        solution.value.add_(1.0)
        assert torch.equal(start, before), "the value shares v0's memory"


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

HARD: dict[str, tuple[tuple[float, ...], tuple[float, ...], float]] = {
    # name: rates a, injections b, start; the step is a v + b and its solution b / (1 - a)
    "a tiny solution": ((0.5, 0.5, 0.5), (5e-10, 5e-10, 5e-10), 0.0),
    "a small solution, from far": ((0.9, 0.9, 0.9), (1e-4, 2e-4, 3e-4), 100.0),
    "a slow map": ((0.9999, 0.9999, 0.9999), (1.0, 1.0, 1.0), 0.0),
    "a slow part behind a fast one": ((0.9999, 0.5, 0.1), (1e-4, 0.5, 0.9), 0.0),
    "descent on an ill-conditioned quadratic": ((0.0, 0.99, 0.9999), (1.0, 0.01, 0.0001), 0.0),
    "a part that alternates and one that creeps": ((0.999, -0.999, 0.0), (1e-3, 1.999, 1.0), 0.0),
    "mixed magnitudes": ((0.1, 0.9, 0.5), (9e3, 0.1, 0.5), 0.0),
    "mixed magnitudes, slow": ((0.5, 0.5, 1 - 2**-6), (5e3, 0.5, 2**-6), 0.0),
    "a long way in small steps": ((0.99999, 0.99999, 0.99999), (0.3, 0.3, 0.3), 0.0),
    "no solution": ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), 0.0),
    "steps ten times too long": ((-9.0, -8.0, -7.0), (10.0, 9.0, 8.0), 0.0),
    "large numbers": ((0.5, 0.5, 0.5), (1e4, 2e4, 3e4), 0.0),
}


def check_calls_nothing_converged_that_is_not(solver: str) -> None:
    """Where solving is hard, in any dtype, a sample is right or is not called CONVERGED."""
    rates, injections, starts = (
        torch.tensor(rows, dtype=torch.float64)
        for rows in zip(*((a, b, (start,) * 3) for a, b, start in HARD.values()), strict=True)
    )
    tolerance = 1e-4
    for dtype in DTYPES:
        a, b, start = rates.to(dtype), injections.to(dtype), starts.to(dtype)
        exact = b.double() / (1.0 - a.double())
        solution: Solution = solver_named(solver, 300, tolerance).solve(lambda v, a=a, b=b: a * v + b, start)
        eps = torch.finfo(dtype).eps
        error = (solution.value.double() - exact).abs()
        # Ten times what is promised: the estimate is one of first order.
        allowed = 10.0 * max(tolerance, 4.0 * eps) * exact.abs() + 2.0 * eps * exact.abs().amax(dim=1, keepdim=True)
        right = torch.isfinite(exact).all(dim=1) & (error <= allowed).all(dim=1)
        if eps > 1e-4:  # where a half-precision a rounds to 1, z + b = z is true of large z, and a solution
            right |= ((a * solution.value + b == solution.value) & (a == 1.0)).any(dim=1)
        for i, name in enumerate(HARD):
            assert right[i] or solution.result[i] != Result.CONVERGED, (
                f"{name}, {dtype}: {solution.value[i].tolist()} is called CONVERGED, the solution is "
                f"{exact[i].tolist()}; a solver that has not judged its error says SETTLED"
            )


def check_gradient_keeps_its_size(adjoint: str) -> None:
    """The gradient is linear in the incoming one in every dtype, however small; what is not finite stays so."""
    for dtype in DTYPES:
        small = {torch.float64: 1e-200, torch.float32: 1e-25, torch.bfloat16: 1e-25, torch.float16: 2.0**-9}[dtype]
        found = []
        for size in (1.0, small):
            b = torch.ones(2, 3, dtype=dtype, requires_grad=True)
            solution = adjoint_named(adjoint, ForwardIteration(60, 1e-6)).solve(
                lambda v, b=b: 0.5 * v + b, torch.zeros(2, 3, dtype=dtype), ForwardIteration(60, 1e-6)
            )
            (gradient,) = torch.autograd.grad(solution.value, b, torch.full_like(b, size))
            found.append(gradient.double() / size)
        off = float((found[1] / found[0] - 1.0).abs().max())
        allowed = 16.0 * torch.finfo(dtype).eps
        assert off <= allowed, f"{dtype}: incoming gradients of {small:.0e} give another gradient, by {off:.1e}"
    b = torch.ones(1, 3, requires_grad=True)
    solution = adjoint_named(adjoint, ForwardIteration(60, 0.0)).solve(
        lambda v: 0.5 * v + b, torch.zeros(1, 3), ForwardIteration(60, 1e-6)
    )
    (gradient,) = torch.autograd.grad(solution.value, b, torch.tensor([[torch.inf, 1.0, 1.0]]))
    assert not torch.isfinite(gradient[0, 0]), "an incoming gradient of inf becomes a finite one"


def check_wants_gradients_only_where_some_are(adjoint: str) -> None:
    """Where nothing that f captures requires a gradient, neither does the value."""
    solution: Solution = adjoint_named(adjoint, ForwardIteration(60, 1e-6)).solve(
        lambda v: 0.5 * v + 1.0, torch.zeros(2, 3), ForwardIteration(60, 1e-6)
    )
    assert not solution.value.requires_grad, "the value of constants requires a gradient"


def check_gradient_points_downhill(adjoint: str) -> None:
    """At a solved fixed point the gradient of a loss descends it, and reaches all that f captures."""
    a, b, _ = _contraction(3)
    b.requires_grad_()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    solution: Solution = adjoint_named(adjoint, ForwardIteration(80, 1e-12)).solve(
        lambda v: scale * (v @ a.T) + b, torch.zeros_like(b), ForwardIteration(80, 1e-12)
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
    check_can_be_told_otherwise,
    check_keeps_to_its_own_memory,
    check_calls_nothing_converged_that_is_not,
    check_solver_under_transformations,
    check_adjoint_solver_under_transformations,
)
EVERY_ADJOINT: tuple[Callable[[str], None], ...] = (
    check_gradient_points_downhill,
    check_gradient_keeps_its_size,
    check_wants_gradients_only_where_some_are,
    check_first_derivatives,
    check_second_derivatives,
)
