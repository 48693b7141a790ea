"""Solvers for v = f(v), each sample on its own: forward iteration, Anderson, Broyden.

Legend: z iterate, g = f(z) - z, K steps, B samples, m history depth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .acceleration import Acceleration, AndersonMemory, BroydenMemory
from .solution import Result, Solution, Step
from .stopping import GROWTH as GROWTH
from .stopping import RESIDUAL_OFFSET as RESIDUAL_OFFSET
from .stopping import (
    ErrorRule,
    Norm,
    ResidualRule,
    Rule,
    Verdict,
    rows,
    scale_per_sample,
)
from .stopping import relative_residual as relative_residual
from .transfers import Watch, sent

CHECK_INTERVAL = {"cpu": 1}
"""Steps between looks at which samples have stopped; on a GPU 8. Stopping is exact all the same: a sample is frozen on
the device at its own step, and only stops costing once the host knows (`planners.fixed_points.transfers`)."""

RuleName = Literal["error", "residual"]
"""When a sample stops; `planners.fixed_points.solution` says what each promises."""


def apply(f: Step, z: Tensor, *, forward_mode: bool = False) -> Tensor:
    """Return f(z) in the dtype of z, which autocast may have changed.

    Raises:
        TypeError: f gives no real tensor.
        ValueError: f gives another shape, or changes z in place.
        NotImplementedError: f carries a tangent of forward-mode differentiation, and no adjoint takes it on.
    """
    version = None if z.is_inference() else z._version
    try:
        fz = f(z.clone() if version is None else z)  # an inference tensor would not tell that f changed it
    except RuntimeError as error:
        if "does not require grad" in str(error) and not torch.is_grad_enabled():
            raise RuntimeError(
                "f differentiates inside itself (torch.autograd.grad), but solvers run f without gradients: use "
                f"torch.func.grad in f, or torch.enable_grad() and a detached copy of its argument ({error})"
            ) from error
        raise
    if not isinstance(fz, Tensor):
        raise TypeError(f"f must return a tensor of the shape of v, {tuple(z.shape)}, got {type(fz).__name__}")
    if fz.shape != z.shape:
        raise ValueError(f"f must keep the shape of v, got {tuple(z.shape)} -> {tuple(fz.shape)}")
    if fz.is_complex():
        raise TypeError(f"f must return real numbers, got {fz.dtype}")
    if version is not None and z._version != version:
        raise ValueError("f must not change its argument in place (v.mul_(...), ReLU(inplace=True), out=v)")
    if not forward_mode and forward_ad.unpack_dual(fz).tangent is not None:
        raise NotImplementedError(
            "a solver alone gives no forward-mode derivative (f carries a tangent): fixed_point and root do"
        )
    return fz.to(z.dtype)


@dataclass(frozen=True)
class ForwardIteration:
    """Forward iteration v_{k+1} = f(v_k), Eq. 2.

    The answer is f of the last iterate. A sample stops at its first step whose residual is at most the tolerance, and
    costs nothing more when f has `take`; a sample that diverges keeps its last iterate within bounds.

    Args:
        max_steps: K, most applications of f, at least 1.
        tolerance: At which a sample stops, by the rule; 0 runs exactly K steps.
        record: Keep the residual after each step.
        rule: "error" bounds the solution's error, "residual" is the paper's; see `planners.fixed_points.solution`.
        absolute: Allowed on top of the tolerance's share, in the units of v; with one, tolerance 0 runs on no longer.
        norm: "max", "rms", "l2" or a function [B, N] -> [B] that measures samples; when not given the error rule looks
            at each number by itself, and the residual rule at the length.
    """

    max_steps: int = 30
    tolerance: float = 1e-4
    record: bool = False
    rule: RuleName = "error"
    absolute: float = 0.0
    norm: Norm | None = None

    def __post_init__(self) -> None:
        check_options(self)

    def solve(self, f: Step, v0: Tensor) -> Solution:
        """Return f applied K times to v0 [B, ...], or fewer times for samples that converged or diverged."""
        return _iterate(f, v0, self, None)


@dataclass(frozen=True)
class Anderson:
    """Anderson acceleration (type II), one least-squares problem per sample.

    z_{k+1} = z + mixing g - sum_i gamma_i (dz_i + mixing dg_i), where gamma minimises ||g - sum_i gamma_i dg_i|| over
    the last m differences. The weights come from inner products alone, so for f equivariant under an orthogonal group
    action the iterates are equivariant too. The answer is the iterate of lowest residual, by the error rule that of
    least ||g||.
    Walker and Ni, Anderson acceleration for fixed-point iterations, 2011.

    Args:
        max_steps: Most applications of f, at least 1.
        tolerance: At which a sample stops, by the rule; 0 runs all steps.
        depth: m, differences remembered.
        mixing: Damping of the step in (0, 1].
        regularisation: Weight that holds the gammas back, relative to the length of each dg; combinations of
            differences shorter than this share of their length are taken for noise.
        record: Keep the residual after each step.
        rule: "error" bounds the solution's error, "residual" is the paper's; see `planners.fixed_points.solution`.
        absolute: Allowed on top of the tolerance's share, in the units of v; with one, tolerance 0 runs on no longer.
        norm: "max", "rms", "l2" or a function [B, N] -> [B] that measures samples; when not given the error rule looks
            at each number by itself, and the residual rule at the length.
    """

    max_steps: int = 30
    tolerance: float = 1e-4
    depth: int = 5
    mixing: float = 1.0
    regularisation: float = 1e-4
    record: bool = False
    rule: RuleName = "error"
    absolute: float = 0.0
    norm: Norm | None = None

    def __post_init__(self) -> None:
        check_options(self)
        if not 0.0 < self.mixing <= 1.0:
            raise ValueError(f"mixing must be in (0, 1], got {self.mixing}")
        if not self.regularisation >= 0.0:
            raise ValueError(f"regularisation must be at least 0, got {self.regularisation}")

    def solve(self, f: Step, v0: Tensor) -> Solution:
        """Return the best iterate found from v0 [B, ...]."""
        memory = AndersonMemory(self.depth, self.mixing, self.regularisation)
        return _iterate(f, v0, self, memory)


@dataclass(frozen=True)
class Broyden:
    """Broyden's (good) method on g(z) = f(z) - z with a limited memory of rank-one updates per sample.

    The inverse Jacobian starts at -I, so the first step is a forward iteration; when `depth` updates are stored the
    approximation starts again, from -I or the multiple of it that a step asked for which went too far. The answer is
    the iterate of lowest residual, by the error rule that of least ||g||.
    Broyden, A class of methods for solving nonlinear simultaneous equations, 1965; Bai et al., 2019.

    Args:
        max_steps: Most applications of f, at least 1.
        tolerance: At which a sample stops, by the rule; 0 runs all steps.
        depth: Rank-one updates remembered.
        record: Keep the residual after each step.
        rule: "error" bounds the solution's error, "residual" is the paper's; see `planners.fixed_points.solution`.
        absolute: Allowed on top of the tolerance's share, in the units of v; with one, tolerance 0 runs on no longer.
        norm: "max", "rms", "l2" or a function [B, N] -> [B] that measures samples; when not given the error rule looks
            at each number by itself, and the residual rule at the length.
    """

    max_steps: int = 30
    tolerance: float = 1e-4
    depth: int = 10
    record: bool = False
    rule: RuleName = "error"
    absolute: float = 0.0
    norm: Norm | None = None

    def __post_init__(self) -> None:
        check_options(self)

    def solve(self, f: Step, v0: Tensor) -> Solution:
        """Return the best iterate found from v0 [B, ...]."""
        return _iterate(f, v0, self, BroydenMemory(self.depth))


def check_options(solver: Any) -> None:
    """Raise ValueError for options that no solver can have."""
    steps, tolerance = solver.max_steps, solver.tolerance
    if not isinstance(steps, Integral) or isinstance(steps, bool):
        raise TypeError(f"max_steps must be a whole number, got {steps!r}")
    if steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {steps}")
    if not isinstance(tolerance, int | float) or not tolerance >= 0.0:
        raise ValueError(f"tolerance must be at least 0, got {tolerance!r}")
    rule = getattr(solver, "rule", "error")
    absolute, norm = getattr(solver, "absolute", 0.0), getattr(solver, "norm", None)
    if not isinstance(absolute, int | float) or not absolute >= 0.0:
        raise ValueError(f"absolute must be at least 0, got {absolute!r}")
    if norm is not None and norm not in ("max", "rms", "l2") and not callable(norm):
        raise ValueError(f"norm must be 'max', 'rms', 'l2' or a function, got {norm!r}")
    if rule not in ("error", "residual"):
        raise ValueError(f"rule must be 'error' or 'residual', got {rule!r}")
    depth = getattr(solver, "depth", 1)
    if not isinstance(depth, Integral) or depth < 1:
        raise ValueError(f"depth must be at least 1 and whole, got {depth!r}")


def rule_of(solver: Any) -> Rule:
    """Return the rule by which this solver stops, at its beginning."""
    if solver.rule == "residual":
        return ResidualRule(solver.tolerance, solver.absolute, solver.norm)
    return ErrorRule(solver.tolerance, absolute=solver.absolute, norm=solver.norm)


def stops(solver: Any) -> bool:
    """Return whether the solver has a tolerance to reach; one that has none is asked for its steps."""
    return solver.tolerance > 0.0 or getattr(solver, "absolute", 0.0) > 0.0


def _choose(mask: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    """Return `chosen` in the rows where mask [B] is true, else `other`; free on the CPU when all or none are."""
    if mask.device.type == "cpu":
        if bool(mask.all()):
            return chosen
        if not bool(mask.any()):
            return other
    return torch.where(rows(mask, chosen), chosen, other)


class _Answers:
    """What is known so far of each sample, some of which may have left the iteration with their answers.

    Attributes:
        value: [n, ...] of the n samples that are still iterated, in their order; so are `residual`, `steps`, `result`.
        live: [n] bool, samples that have not stopped.
        rows: [n] their rows in the batch, None while it is all of them.
    """

    def __init__(self, z: Tensor, record: bool) -> None:
        dtype, (batch, device) = torch.promote_types(z.dtype, torch.float32), (z.shape[0], z.device)
        self.value = z
        self.residual = torch.full((batch,), torch.inf, dtype=dtype, device=device)
        self.steps = torch.zeros(batch, dtype=torch.int64, device=device)
        self.result = torch.full((batch,), int(Result.MAX_STEPS), dtype=torch.int8, device=device)
        self.live = torch.ones(batch, dtype=torch.bool, device=device)
        self.rows: Tensor | None = None
        self._least = self.residual.double()
        self._before: tuple[Tensor, ...] = ()
        self._record, self._trace = record, [self.residual]

    def judge(self, look: Verdict, success: Result, candidate: Tensor, *, best: bool) -> None:
        """Take over what a rule saw of the live samples, and the candidate [n, ...] where it is the better answer.

        Args:
            look: What it saw.
            success: What a sample that is done is called.
            candidate: The answer of a sample that did not diverge, or with `best` of one that never was better.
            best: Whether the answer is the iterate of least merit, not the last.
        """
        diverged, done = self.live & look.diverged, self.live & look.done & ~look.diverged
        moving = self.live & ~diverged
        better, measured = moving, self.live
        if best:
            better = measured = moving & ((look.merit < self._least) | done)
            self._least = torch.where(better, look.merit.double(), self._least)
        self.value = _choose(better, candidate, self.value)
        self.residual = torch.where(measured, look.residual, self.residual)
        self.steps = self.steps + self.live
        self.result = torch.where(diverged, int(Result.DIVERGED), self.result)
        self.result = torch.where(done, int(success), self.result)
        if self._record:
            row, at = self._trace[-1].clone(), slice(None) if self.rows is None else self.rows
            row[at] = torch.where(self.live, look.residual, row[at])
            self._trace.append(row)
        self.live = moving & ~done

    def end(self, grown: Tensor) -> None:
        """Call diverged what has grown [n] and is live when the steps run out."""
        self.result = torch.where(self.live & grown, int(Result.DIVERGED), self.result)

    def leave(self, staying: Tensor) -> Tensor:
        """Go on with these rows of the n alone, and return their rows in the batch."""
        self._before = self._whole()
        self.rows = staying if self.rows is None else self.rows[staying]
        self.live, self._least = self.live[staying], self._least[staying]
        self.value, self.residual, self.steps, self.result = (part[staying] for part in self._state())
        return self.rows

    def solution(self, max_steps: int) -> Solution:
        """Return the answers of the whole batch; its trace is as long as the steps that were allowed."""
        trace = None
        if self._record:
            trace = torch.stack(self._trace[1:] + self._trace[-1:] * (max_steps + 1 - len(self._trace)))
        return Solution(*self._whole(), trace)

    def _state(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.value, self.residual, self.steps, self.result

    def _whole(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self.rows is None:
            return self._state()
        pairs = zip(self._before, self._state(), strict=True)
        value, residual, steps, result = (whole.index_copy(0, self.rows, part) for whole, part in pairs)
        return value, residual, steps, result


@torch.no_grad()
def _iterate(f: Step, v0: Tensor, solver: Any, memory: Acceleration | None) -> Solution:
    """Run plain iteration (keeping the last iterate) or an accelerated one (keeping the best)."""
    rule = rule_of(solver)
    take: Callable[[Tensor], Step] | None = getattr(f, "take", None)
    interval = CHECK_INTERVAL.get(v0.device.type, 8)
    z = v0.detach().clone()  # the caller may use its memory again
    answers, watch = _Answers(z, solver.record), Watch()
    unit = torch.ones(len(z), dtype=z.dtype, device=z.device)
    for k in range(1, solver.max_steps + 1):
        fz = apply(f, z)
        if k == 1 and memory is not None:
            # A power of two: inner products of histories stay within the range of the dtype, and nothing is rounded.
            unit = scale_per_sample(z, fz).to(z.dtype)
        answers.judge(rule.judge(z, fz), rule.success, fz if memory is None else z, best=memory is not None)
        if k == solver.max_steps:
            answers.end(rule.grown())
            break
        z = answers.value if memory is None else _choose(answers.live, _proposed(memory, z, fz, rows(unit, z)), z)
        if k % interval:
            continue
        live = watch.seen(answers.live)
        if live is None:
            continue
        if not bool(live.any()):
            break
        if take is not None and not bool(live.all()):
            staying = sent(live.nonzero()[:, 0], z.device)
            watch.restart()
            f = take(answers.leave(staying))
            z, unit = z[staying], unit[staying]
            rule.take(staying)
            if memory is not None:
                memory.take(staying)
    return answers.solution(solver.max_steps)


def _proposed(memory: Acceleration, z: Tensor, fz: Tensor, unit: Tensor) -> Tensor:
    return memory.propose(z / unit, (fz - z) / unit) * unit
