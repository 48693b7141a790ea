"""Derivatives of solutions: what every solver and adjoint must do under torch.func and in forward mode, in float64.

Each check takes a name in the registry and raises AssertionError. The problem is v = tanh(v A^T + b), with a reference
that iterates it in plain torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap

from planners.fixed_points import GMRES, Adjoint, Anderson, ForwardIteration, Implicit, Solution, fixed_point, root
from planners.registry import ADJOINTS, SOLVERS, named
from planners.specs import PlannerSpec

BATCH, SIZE = 2, 2
STEPS = 30
EXACT = Implicit(GMRES(20, 1e-13))

Solve = Callable[[Tensor, Tensor], Tensor]
"""(A, b) -> the fixed point."""


def problem() -> tuple[Tensor, Tensor]:
    """Return A [n, n], so that the step contracts by a factor of 0.15, and b [B, n]."""
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(size, SIZE, dtype=torch.float64, generator=generator) for size in (SIZE, BATCH))
    return 0.15 * a / torch.linalg.matrix_norm(a, 2), b


def reference(a: Tensor, b: Tensor) -> Tensor:
    """Return the fixed point by plain iteration, which any transformation can follow."""
    v = torch.zeros(BATCH, SIZE, dtype=torch.float64)
    for _ in range(STEPS):
        v = torch.tanh(v @ a.T + b)
    return v


def solver_named(name: str, max_steps: int, tolerance: float) -> Any:
    """Return a registered solver with its default options."""
    options = PlannerSpec(solver=name).solver_options.model_dump() if not SOLVERS[name].linear_only else {}
    return named(SOLVERS[name])(max_steps=max_steps, tolerance=tolerance, **options)


def adjoint_named(name: str, solver: Any = EXACT.solver) -> Any:
    """Return a registered adjoint with its default options, and this solver where it has one."""
    options: dict[str, Any] = PlannerSpec(adjoint=name).adjoint_options.model_dump()
    kind = named(ADJOINTS[name])
    if "solver" in getattr(kind, "__dataclass_fields__", {}):
        options["solver"] = solver
    return kind(**options)


def solve_by(solver: Any, adjoint: Adjoint) -> Solve:
    """Return (A, b) -> the fixed point by this solver and adjoint."""

    def solve(a: Tensor, b: Tensor) -> Tensor:
        start = torch.zeros(BATCH, SIZE, dtype=torch.float64)
        return fixed_point(lambda v: torch.tanh(v @ a.T + b), start, solver=solver, adjoint=adjoint).value

    return solve


def root_by(solver: Any, adjoint: Implicit) -> Solve:
    """Return (A, b) -> the same as a root."""

    def solve(a: Tensor, b: Tensor) -> Tensor:
        start = torch.zeros(BATCH, SIZE, dtype=torch.float64)
        return root(lambda v: v - torch.tanh(v @ a.T + b), start, solver=solver, adjoint=adjoint).value

    return solve


def _loss(solve: Solve) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, b: (solve(a, b).square() * torch.tensor([1.0, -2.0], dtype=torch.float64)).sum()


def _jvp(solve: Solve, at: tuple[Tensor, Tensor], along: tuple[Tensor, Tensor]) -> Tensor:
    value_and_change: tuple[Tensor, Tensor] = jvp(solve, at, along)  # type: ignore[assignment]
    return value_and_change[1]


def _pull(solve: Solve, a: Tensor, b: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return what torch.func.vjp gives to be called with a gradient, when its own level has ended."""
    return vjp(solve, a, b)[1]


def _same(found: Tensor, expected: Tensor, what: str) -> None:
    off = float((found - expected).abs().max())
    assert found.shape == expected.shape and off < 1e-7, f"{what}: off by {off:.1e}"


def transformed(solve: Solve) -> dict[str, Tensor]:
    """Return what torch.func makes of a solve, by the name of the transformation."""
    a, b = problem()
    several_a, several_b = torch.stack([a, 0.5 * a, -a]), torch.stack([b, b + 0.3, 2.0 * b])
    loss = _loss(solve)

    def mapped(a: Tensor) -> Tensor:
        return vmap(loss, (None, 0))(a, several_b).square().sum()

    pull, at = _pull(solve, a, b), torch.ones_like(b)
    return {
        "vmap of the value": vmap(solve)(several_a, several_b),
        "vmap over one argument": vmap(solve, (None, 0))(a, several_b),
        "grad": grad(loss)(a, b),
        "vmap of grad": vmap(grad(loss, 1))(several_a, several_b),
        "grad of vmap": grad(mapped)(a),
        "jacrev": jacrev(solve)(a, b),
        "jacrev row by row": jacrev(solve, chunk_size=1)(a, b),
        "vjp": pull(at)[0],
        "vjp, pulled twice": pull(b)[1],
        "vjp under vmap": vmap(pull)(several_b)[0],
        "grad of a vjp": grad(lambda a: _pull(solve, a, b)(at)[1].square().sum())(a),
        "grad by what is pulled": grad(lambda g: pull(g)[0].square().sum())(at),
        "jvp": _jvp(solve, (a, b), (b[:, :1] * a, a.sum() * b)),
        "hessian": hessian(loss)(a, b),
        "vmap of hessian": vmap(hessian(loss, 1))(several_a, several_b),
    }


@cache
def _expected() -> dict[str, Tensor]:
    return transformed(reference)


def check_transformations(solve: Solve) -> None:
    """vmap, grad, vjp, jvp, jacrev, hessian and their compositions are those of the reference."""
    for what, found in transformed(solve).items():
        _same(found, _expected()[what], what)


def check_numbers(solve: Solve) -> None:
    """First and second derivatives, reverse and forward, are those of finite differences."""
    inputs = [x.requires_grad_() for x in problem()]
    torch.autograd.gradcheck(solve, inputs, check_forward_ad=True, fast_mode=True)
    torch.autograd.gradgradcheck(solve, inputs, fast_mode=True)


def check_solver_under_transformations(solver: str) -> None:
    """Solves fixed points and roots under every transformation, with exact derivatives of first and second order."""
    made = solver_named(solver, 200, 1e-13)
    check_transformations(solve_by(made, EXACT))
    check_numbers(solve_by(made, EXACT))
    check_numbers(root_by(made, EXACT))


def check_adjoint_solver_under_transformations(solver: str) -> None:
    """Solves the linear systems of derivatives under every transformation, forward and transposed."""
    adjoint = Implicit(solver_named(solver, 200, 1e-13))
    a, b = problem()
    solve = solve_by(Anderson(200, 1e-13), adjoint)
    _same(hessian(_loss(solve))(a, b), _expected()["hessian"], "hessian")
    solve_root = root_by(Anderson(200, 1e-13), adjoint)
    for kind, solved in (("fixed point", solve), ("root", solve_root)):
        _same(_pull(solved, a, b)(torch.ones_like(b))[0], _expected()["vjp"], f"vjp of a {kind}")
    check_numbers(solve_root)


def check_first_derivatives(adjoint: str) -> None:
    """Under torch.func the gradient is torch.autograd's: alone, pulled, mapped, forward, of a module's parameters."""
    solve = solve_by(ForwardIteration(STEPS, 1e-13), adjoint_named(adjoint))
    a, b = problem()
    leaves = [x.clone().requires_grad_() for x in (a, b)]
    ordinary = torch.autograd.grad(_loss(solve)(*leaves), leaves)
    for name, found in zip(("A", "b"), grad(_loss(solve), (0, 1))(a, b), strict=True):
        _same(found, ordinary[0 if name == "A" else 1], f"grad by {name}")
    pull = _pull(_loss(solve), a, b)
    for again in (False, True):
        _same(pull(torch.ones_like(a[0, 0]))[0], ordinary[0], "vjp, pulled twice" if again else "vjp")
    twice = vmap(grad(_loss(solve)))(torch.stack([a, a]), torch.stack([b, b]))
    _same(twice, torch.stack([ordinary[0]] * 2), "vmap of grad")
    tangents = (b[:, :1] * a, a.sum() * b)
    change = _jvp(_loss(solve), (a, b), tangents)
    expected = sum((g * t).sum() for g, t in zip(ordinary, tangents, strict=True))
    _same(change, torch.as_tensor(expected), "jvp and the gradient along the same direction")
    layer = nn.Linear(SIZE, SIZE).double()
    with torch.no_grad():
        layer.weight.copy_(a)
    weights = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(weights: dict[str, Tensor]) -> Tensor:
        def step(v: Tensor) -> Tensor:
            return torch.tanh(functional_call(layer, weights, (v,)))

        return _solved(step, adjoint).value.square().sum()

    _solved(lambda v: torch.tanh(layer(v)), adjoint).value.square().sum().backward()
    for name, found in grad(loss)(weights).items():
        gradient = layer.get_parameter(name).grad
        assert gradient is not None, f"no gradient reaches {name}"
        _same(found, gradient, f"grad of functional_call by {name}")


def _solved(step: Callable[[Tensor], Tensor], adjoint: str) -> Solution:
    start = torch.zeros(BATCH, SIZE, dtype=torch.float64)
    return fixed_point(step, start, solver=ForwardIteration(STEPS, 1e-13), adjoint=adjoint_named(adjoint))


def check_second_derivatives(adjoint: str) -> None:
    """The derivative of its gradient is that of finite differences, or an error that says there is none."""
    solve = solve_by(ForwardIteration(STEPS, 1e-13), adjoint_named(adjoint))
    a, b = problem()
    try:
        found = hessian(_loss(solve))(a, b)
    except RuntimeError as error:
        assert "derivative" in str(error) and "Implicit" in str(error), f"a second derivative fails unclearly: {error}"
        return
    epsilon = 1e-5
    direction = b[:, :1] * a
    above, below = (grad(_loss(solve))(a + sign * epsilon * direction, b) for sign in (1, -1))
    along = (found * direction).sum(dim=(2, 3))
    _same(along, (above - below) / (2 * epsilon), "second derivative along a direction")
    torch.autograd.gradgradcheck(solve, [x.requires_grad_() for x in (a, b)], fast_mode=True)
