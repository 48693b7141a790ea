"""Differentiable fixed points and roots, for any map and any solver.

Legend: v* solution, f step, F optimality condition, J = dF/dv, g = dl/dv* incoming gradient, w adjoint vector, B
samples.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .adjoints import Implicit, Unrolled
from .derivatives import Applied, Inverse, follow, linearised, linearised_below, reaches_more_than
from .gmres import GMRES
from .roots import find, judge, solves, value_and_pull
from .solution import Adjoint, AdjointRecord, NotSolved, Result, Solution, Solver, Step
from .solvers import ForwardIteration, apply, stops
from .structures import Joined, Structure
from .transforms import Lowered, active, bare, below, constants, vmap_levels

__all__ = ["Adjoint", "AdjointRecord", "Result", "Solution", "Solver", "Step", "fixed_point", "root"]


def fixed_point(
    f: Callable[[Any], Any],
    v0: Structure | Solution,
    *,
    solver: Solver | None = None,
    adjoint: Adjoint | None = None,
    throw: bool = False,
    states: Sequence[int] = (),
) -> Solution:
    """Return v* = f(v*) for each sample, differentiable in every tensor that f captures.

    v* = f(v*), dv*/d(.) = (I - df/dv)^{-1} df/d(.), Eqs. 2-4. The same value comes out of `ForwardIteration` whichever
    adjoint differentiates it: max_steps counts all applications of f that make the value, the one that attaches the
    graph included. `planners.fixed_points.solution` says what a verdict promises. A solver of tolerance 0 says that
    its K steps are wanted, and so does `Unrolled`; otherwise a tolerance that was not reached warns, as does a gradient
    whose adjoint system was not solved, unless `Implicit(..., inexact=True)` asks for one.

    Args:
        f: One step, [B, ...] -> [B, ...], the samples independent of each other; it gives a new tensor. It may have
            `take(rows)`, the same step for those rows [n] of the batch; then samples that have converged stop costing.
        v0: [B, ...] where to start. One system of n unknowns is [1, n]: entries of a [n] are n samples of their own,
            and an f that couples them is refused. A tuple, list or dict of such tensors is one state, which f takes and
            gives. An earlier solution starts where that ended, and the adjoint's solve where its own did.
        solver: Finds v*; `ForwardIteration()` when not given.
        adjoint: Differentiates it; `Implicit()` when not given.
        throw: Raise NotSolved where it would warn.
        states: Numbers of applications of f, from 1, whose images `Solution.states` is to have, for losses along the
            way; the implicit adjoints differentiate each as if it were the fixed point. Where the solve ended before,
            the last one stands in.

    Returns:
        The solution with residual, steps and result per sample.

    Warns:
        RuntimeWarning: When a sample ran out of steps or diverged; and, in the backward pass, when the adjoint system
            was left unsolved.

    Raises:
        NotSolved: In place of the warnings, with `throw`.
        TypeError: When solver or adjoint is none, or f gives no real tensor.
        ValueError: When v0 has no batch dimension, f changes its shape or its argument, or the adjoint cannot
            differentiate the solver.
    """
    if torch.compiler.is_dynamo_compiling():  # the loop is Python: f alone can be compiled
        eager = torch.compiler.disable(fixed_point)
        return eager(f, v0, solver=solver, adjoint=adjoint, throw=throw, states=states)
    solver, adjoint = ForwardIteration() if solver is None else solver, Implicit() if adjoint is None else adjoint
    _check_solver("solver", solver)
    _check_adjoint(adjoint)
    if isinstance(adjoint, Implicit):
        adjoint = _told(adjoint, v0, throw)
    layout, start, f = _as_one("v0", f, v0)
    _check_vector("fixed_point", f, start)
    watched = _Watched(f, states) if _some(states) else f
    found = adjoint.solve(watched, start, solver)
    if isinstance(watched, _Watched):
        found = replace(found, states=watched.images(adjoint))
    if stops(solver):
        advice = "; does f contract, or are max_steps too few? A solver of tolerance 0 says that its steps are wanted"
        wanted = (Result.MAX_STEPS,) if isinstance(adjoint, Unrolled) else ()
        _report_failed("fixed_point: no fixed point was found for", found, advice, throw, wanted)
    return _as_given(layout, found)


def root(
    F: Callable[[Any], Any],
    v0: Structure | Solution | None = None,
    *,
    solver: Solver | None = None,
    adjoint: Implicit | None = None,
    solution: Structure | None = None,
    throw: bool = False,
) -> Solution:
    """Return v* with F(v*) = 0 for each sample, differentiable in every tensor that F captures.

    (dF/dv)^T w = g, dl/d(.) = -w^T dF/d(.), the implicit function theorem (section 4.1, for any optimality condition).
    How v* was found does not matter: by a solver here, on v = v - F(v), or by anything at all outside torch.
    Blondel et al., Efficient and modular implicit differentiation, 2022.

    Args:
        F: The optimality condition, [B, ...] -> [B, ...], the samples independent of each other; dF/dv must be
            non-singular at v*. Its units are free: neither the search nor a verdict depends on a factor before F.
        v0: [B, ...] where to start; one system of n unknowns is [1, n]. A tuple, list or dict of tensors is one state,
            and an earlier solution a start for the value and for the adjoint, as in `fixed_point`.
        solver: Finds v* as the fixed point of v - F(v). When not given, on v - c F(v), c = ||F|| / ||J^T F|| at v0,
            `Broyden(max_steps=100, tolerance=1e-6, depth=100)`.
        adjoint: Solver of the linear system; `Implicit(GMRES())` when not given, which needs no contraction. Any
            other solver iterates w = w - (dF/dv)^T w + g.
        solution: [B, ...] v* from elsewhere, in place of v0 and solver. Its value is returned unchanged, in memory of
            its own; CONVERGED when the distance to the root is at most 1e-6: of each number, by a step of Newton's
            method (up to 32 unknowns), and of its length by ||F||^2 / ||J^T F||, a bound from below if F is linear.
        throw: Raise NotSolved where it would warn.

    Returns:
        The solution with residual per sample (of a given one the estimated distance, relative); `Solution.adjoint` says
        after the backward pass how well the linear system was solved.

    Warns:
        RuntimeWarning: When a root was not found, or is none; and, in the backward pass, when a linear system was left
            unsolved, unless the adjoint is `inexact`.

    Raises:
        NotSolved: In place of the warnings, with `throw`.
        TypeError: When solver or adjoint is of another kind, or F gives no real tensor.
        ValueError: When neither or both of v0 and solution are given, or F changes the shape or its argument.
    """
    if torch.compiler.is_dynamo_compiling():
        eager = torch.compiler.disable(root)
        return eager(F, v0, solver=solver, adjoint=adjoint, solution=solution, throw=throw)
    if (v0 is None) == (solution is None):
        raise ValueError("root needs either v0, where to start solving, or solution, a value found elsewhere")
    adjoint = Implicit(GMRES()) if adjoint is None else adjoint
    if not isinstance(adjoint, Implicit):
        raise TypeError(f"adjoint: expected Implicit(solver), which root differentiates by, got {_described(adjoint)}")
    _check_solver("adjoint.solver", adjoint.solver)
    if solver is not None:
        if solution is not None:
            raise ValueError("solver: expected none beside solution, which is not solved for again")
        _check_solver("solver", solver)
    adjoint = _told(adjoint, v0, throw)
    layout, start, F = _as_one("v0" if solution is None else "solution", F, v0 if solution is None else solution)
    _check_vector("root", F, start)

    def solved(F: Step, start: Tensor) -> Solution:
        return find(F, start, solver) if solution is None else judge(F, start.detach().clone())

    found = _attached_root(F, start, solved, adjoint)
    if solution is not None:
        _report_failed("root: the given solution is no root of F for", found, "", throw)
    elif solver is None or stops(solver):
        advice = "; is there one, does v0 lead to it, or are max_steps too few?"
        _report_failed("root: no root was found for", found, advice, throw)
    return _as_given(layout, found)


def _attached_root(F: Step, start: Tensor, solved: Callable[[Step, Tensor], Solution], adjoint: Implicit) -> Solution:
    """Return the root that `solved` gives, with its derivatives."""

    def residual(v: Tensor) -> Tensor:
        return -apply(F, v, forward_mode=True)

    if not active():
        with constants():
            found = solved(F, start)
        forward_mode = forward_ad._current_level >= 0
        if not torch.is_grad_enabled() and not forward_mode:
            return found
        v, condition = linearised(F, found.value)
        differentiated = torch.is_grad_enabled() and reaches_more_than(condition, v)
        if not differentiated and not (forward_mode and forward_ad.unpack_dual(condition).tangent is not None):
            return found
        orders = max(adjoint.orders, 1 + forward_mode) if differentiated else 1
        inverse = Inverse(condition, v, solves(adjoint, found.slot), orders)
        with torch.set_grad_enabled(differentiated):
            value = Applied.apply(-condition, inverse, found.value)
        return replace(found, value=follow(residual, value, inverse, orders - 1))
    lowered = Lowered(F, start)
    with lowered.entered() as step:
        plain = solved(step, lowered.start)
        v, condition = linearised_below(step, plain.value)
    found = replace(lowered.lifted(plain), value=lowered.lift(plain.value))
    image = residual(found.value)
    limited = lowered.reaches_ground(image)
    orders = lowered.orders(image) + (adjoint.orders if limited else 0)
    inverse = Inverse(condition, v, solves(adjoint, found.slot), orders if limited else None, lowered.spread)
    return replace(found, value=follow(residual, found.value, inverse, orders))


def _told(adjoint: Implicit, v0: Structure | Solution | None, throw: bool) -> Implicit:
    """Return the adjoint as the caller of a solve wants it: to raise, and to start where an earlier one ended."""
    start = v0.adjoint.value if isinstance(v0, Solution) and v0.adjoint is not None else None
    if start is None or adjoint.start is not None:
        return replace(adjoint, throw=True) if throw else adjoint
    return replace(adjoint, throw=throw or adjoint.throw, start=start)


def _as_one(name: str, f: Callable[[Any], Any], v: Structure | Solution) -> tuple[Joined | None, Tensor, Step]:
    """Return the layout of a structure, None for one tensor, and state and step in one tensor."""
    if isinstance(v, Solution):
        v = v.value
    if isinstance(v, tuple | list | dict):
        layout = Joined(name, v)
        return layout, layout.join(v), layout.step(f)
    _check_value(name, v)
    return None, v, f


def _as_given(layout: Joined | None, found: Solution) -> Solution:
    if layout is None:
        return found
    return replace(found, value=layout.split(found.value), states=tuple(layout.split(state) for state in found.states))


def _some(states: Any) -> bool:
    """Return whether any are asked for; raise ValueError for what no applications of f are counted by."""
    whole = isinstance(states, Sequence) and all(isinstance(n, Integral) and not isinstance(n, bool) for n in states)
    if not whole or min(states, default=1) < 1:
        raise ValueError(f"states: expected numbers of applications of f, from 1, such as (3, 10); got {states!r}")
    return len(states) > 0


class _Watched:
    """A step that keeps, for some of its applications, its argument and image."""

    def __init__(self, f: Step, numbers: Sequence[int]) -> None:
        self.f, self.numbers, self.seen = f, tuple(numbers), dict[int, tuple[Tensor, Tensor]]()
        self.last: tuple[Tensor, Tensor] | None = None
        self.count = -1 if vmap_levels() else 0  # the first one is to see what vmap spreads out

    def __call__(self, v: Tensor) -> Tensor:
        image = self.f(v)
        self.count += 1
        if self.count >= 1:
            self.last = (v, image)
        if self.last is not None and self.count in self.numbers:
            self.seen[self.count] = self.last
        return image

    def images(self, adjoint: Adjoint) -> tuple[Tensor, ...]:
        """Return the images, as the adjoint differentiates them."""
        assert self.last is not None
        pairs = [self.seen.get(number, self.last) for number in self.numbers]
        if isinstance(adjoint, Unrolled):
            return tuple(image for _, image in pairs)
        once = ForwardIteration(1, 0.0)
        return tuple(adjoint.solve(self.f, v.detach(), once).value for v, _ in pairs)


def _report_failed(what: str, found: Solution, advice: str, throw: bool, wanted: tuple[Result, ...] = ()) -> None:
    """Warn, in the name of the caller's caller, or raise, of samples that ended otherwise than well or as wanted."""
    with constants(), below():
        given, residual = bare(found.result), bare(found.residual)
        failed = torch.ones_like(given, dtype=torch.bool)
        for result in (Result.CONVERGED, Result.SETTLED, *wanted):
            failed &= given != int(result)
        count = int(failed.sum())
        if not count:
            return
        message = (
            f"{what} {count} of {failed.numel()} samples (relative residual up to "
            f"{float(residual[failed].max()):.1e}){advice}"
        )
    if throw:
        raise NotSolved(message, found)
    warnings.warn(message, RuntimeWarning, stacklevel=3)


def _described(thing: Any) -> str:
    return f"the class {thing.__name__}, not an object of it" if isinstance(thing, type) else type(thing).__name__


def _check_solver(name: str, solver: Any) -> None:
    parts = ("max_steps", "tolerance", "solve")
    if isinstance(solver, type) or not all(hasattr(solver, part) for part in parts):
        raise TypeError(
            f"{name}: expected a solver such as Anderson(max_steps=30), with {', '.join(parts)}; got "
            f"{_described(solver)}"
        )
    if not is_dataclass(solver):
        raise TypeError(
            f"{name}: expected a dataclass, whose max_steps `dataclasses.replace` can change (see "
            f"`planners.fixed_points.solution.Solver`); {type(solver).__name__} is none"
        )


def _check_adjoint(adjoint: Any) -> None:
    if isinstance(adjoint, type) or not hasattr(adjoint, "solve") or hasattr(adjoint, "max_steps"):
        hint = f"; a solver of the adjoint system is Implicit({type(adjoint).__name__}(...))"
        raise TypeError(
            f"adjoint: expected an adjoint such as Implicit(), got {_described(adjoint)}"
            + (hint if hasattr(adjoint, "max_steps") and not isinstance(adjoint, type) else "")
        )
    if hasattr(adjoint, "solver"):
        _check_solver("adjoint.solver", adjoint.solver)


def _check_value(name: str, v: Any) -> None:
    if not isinstance(v, Tensor):
        raise TypeError(f"{name}: expected a tensor [B, ...], got {_described(v)}")
    if v.ndim < 1 or not v.is_floating_point():
        raise ValueError(f"{name}: expected a floating point tensor [B, ...], got {v.dtype} {tuple(v.shape)}")


def _check_vector(name: str, f: Step, v: Tensor) -> None:
    """Refuse an f that couples the entries of a [n]: they are samples, and each would be solved as if alone."""
    if v.ndim != 1 or len(v) < 2:
        return
    if active():
        lowered = Lowered(f, v)
        with lowered.entered() as step:
            _check_vector(name, step, lowered.start)
        return
    even = torch.arange(len(v), device=v.device) % 2 == 0
    weights = torch.rand(len(v), generator=torch.Generator().manual_seed(0), dtype=torch.float64).add(0.5).to(v)
    for asked in (even, ~even):
        _, moved = value_and_pull(f, v.detach(), torch.where(asked, weights, 0.0))
        if bool((moved[~asked] != 0.0).any()):
            raise ValueError(
                f"{name}: f couples the {len(v)} entries of a vector [{len(v)}], which are {len(v)} samples of one "
                f"unknown each; one system of {len(v)} unknowns has the shape [1, {len(v)}] (v0[None])"
            )
