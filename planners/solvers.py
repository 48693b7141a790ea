"""Solvers for v = f(v), each sample on its own: forward iteration, Anderson, Broyden.

Legend: z iterate, g = f(z) - z, K steps, B samples, m history depth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from planners.solution import Result, Solution, Step
from planners.stopping import GROWTH as GROWTH
from planners.stopping import RESIDUAL_OFFSET as RESIDUAL_OFFSET
from planners.stopping import ErrorRule, ResidualRule, Rule, flat, norm_per_sample, rows, safe_norm_per_sample
from planners.stopping import relative_residual as relative_residual

CHECK_INTERVAL = {"cpu": 1}
"""Steps between looks at the residuals; on a GPU, where a look waits for the device, 8. Stopping is exact all the same:
a sample is frozen on the device at its own step, and only stops costing at the next look."""

GROWTH_OF_A_STEP = 2.0
"""Broyden's steps may make ||g|| this many times larger before a step counts as too long."""

RuleName = Literal["error", "residual"]
"""When a sample stops; `planners.solution` says what each promises."""


def apply(f: Step, z: Tensor, *, forward_mode: bool = False) -> Tensor:
    """Return f(z) in the dtype of z, which autocast may have changed.

    Raises:
        TypeError: f gives no real tensor.
        ValueError: f gives another shape, or changes z in place.
        NotImplementedError: f carries a tangent of forward-mode differentiation, unless that is asked for.
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
            "forward-mode differentiation of a solution is not implemented (f carries a tangent): use reverse mode, or "
            "the Unrolled adjoint, whose steps forward mode can follow"
        )
    return fz.to(z.dtype)


class Acceleration(Protocol):
    """A rule for the next iterate, with the memory it needs."""

    def propose(self, z: Tensor, g: Tensor) -> Tensor:
        """Return the next iterate after z [B, ...] whose fixed-point residual is g = f(z) - z."""

    def take(self, rows: Tensor) -> None:
        """Keep only these rows of the batch."""


@dataclass(frozen=True)
class ForwardIteration:
    """Forward iteration v_{k+1} = f(v_k), Eq. 2.

    The answer is f of the last iterate. A sample stops at its first step whose residual is at most the tolerance, and
    costs nothing more when f has `take`; a sample that diverges keeps its last iterate within bounds.

    Args:
        max_steps: K, most applications of f, at least 1.
        tolerance: At which a sample stops, by the rule; 0 runs exactly K steps.
        record: Keep the residual after each step.
        rule: "error" bounds the solution's error, "residual" is the paper's; see `planners.solution`.
    """

    max_steps: int = 30
    tolerance: float = 1e-4
    record: bool = False
    rule: RuleName = "error"

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
    action the iterates are equivariant too. The answer is the iterate of lowest residual.
    Walker and Ni, Anderson acceleration for fixed-point iterations, 2011.

    Args:
        max_steps: Most applications of f, at least 1.
        tolerance: At which a sample stops, by the rule; 0 runs all steps.
        depth: m, differences remembered.
        mixing: Damping of the step in (0, 1].
        regularisation: Weight that holds the gammas back, relative to the length of each dg; combinations of
            differences shorter than this share of their length are taken for noise.
        record: Keep the residual after each step.
        rule: "error" bounds the solution's error, "residual" is the paper's; see `planners.solution`.
    """

    max_steps: int = 30
    tolerance: float = 1e-4
    depth: int = 5
    mixing: float = 1.0
    regularisation: float = 1e-4
    record: bool = False
    rule: RuleName = "error"

    def __post_init__(self) -> None:
        check_options(self)
        if not 0.0 < self.mixing <= 1.0:
            raise ValueError(f"mixing must be in (0, 1], got {self.mixing}")
        if not self.regularisation >= 0.0:
            raise ValueError(f"regularisation must be at least 0, got {self.regularisation}")

    def solve(self, f: Step, v0: Tensor) -> Solution:
        """Return the iterate of lowest residual found from v0 [B, ...]."""
        memory = _AndersonMemory(self.depth, self.mixing, self.regularisation)
        return _iterate(f, v0, self, memory)


@dataclass(frozen=True)
class Broyden:
    """Broyden's (good) method on g(z) = f(z) - z with a limited memory of rank-one updates per sample.

    The inverse Jacobian starts at -I, so the first step is a forward iteration; when `depth` updates are stored the
    approximation starts again from -I. The answer is the iterate of lowest residual.
    Broyden, A class of methods for solving nonlinear simultaneous equations, 1965; Bai et al., 2019.

    Args:
        max_steps: Most applications of f, at least 1.
        tolerance: At which a sample stops, by the rule; 0 runs all steps.
        depth: Rank-one updates remembered.
        record: Keep the residual after each step.
        rule: "error" bounds the solution's error, "residual" is the paper's; see `planners.solution`.
    """

    max_steps: int = 30
    tolerance: float = 1e-4
    depth: int = 10
    record: bool = False
    rule: RuleName = "error"

    def __post_init__(self) -> None:
        check_options(self)

    def solve(self, f: Step, v0: Tensor) -> Solution:
        """Return the iterate of lowest residual found from v0 [B, ...]."""
        return _iterate(f, v0, self, _BroydenMemory(self.depth))


def check_options(solver: Any) -> None:
    """Raise ValueError for options that no solver can have."""
    steps, tolerance = solver.max_steps, solver.tolerance
    if not isinstance(steps, Integral) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"max_steps must be at least 1 and whole, got {steps!r}")
    if not isinstance(tolerance, Real) or not tolerance >= 0.0:
        raise ValueError(f"tolerance must be at least 0, got {tolerance!r}")
    rule = getattr(solver, "rule", "error")
    if rule not in ("error", "residual"):
        raise ValueError(f"rule must be 'error' or 'residual', got {rule!r}")
    depth = getattr(solver, "depth", 1)
    if not isinstance(depth, Integral) or depth < 1:
        raise ValueError(f"depth must be at least 1 and whole, got {depth!r}")


def rule_of(solver: Any) -> Rule:
    """Return the rule by which this solver stops, at its beginning."""
    if solver.rule == "residual":
        return ResidualRule(solver.tolerance)
    return ErrorRule(solver.tolerance, window=1 if isinstance(solver, ForwardIteration) else 5)


def _choose(mask: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    """Return `chosen` in the rows where mask [B] is true, else `other`; free on the CPU when all or none are."""
    if mask.device.type == "cpu":
        if bool(mask.all()):
            return chosen
        if not bool(mask.any()):
            return other
    return torch.where(rows(mask, chosen), chosen, other)


@torch.no_grad()
def _iterate(f: Step, v0: Tensor, solver: Any, memory: Acceleration | None) -> Solution:
    """Run plain iteration (keeping the last iterate) or an accelerated one (keeping the best)."""
    max_steps, record, rule = solver.max_steps, solver.record, rule_of(solver)
    take: Callable[[Tensor], Step] | None = getattr(f, "take", None)
    interval = CHECK_INTERVAL.get(v0.device.type, 8)
    z = v0.detach().clone()  # the caller may use its memory again
    batch, device = z.shape[0], z.device
    dtype = torch.promote_types(z.dtype, torch.float32)
    value = z
    residual = torch.full((batch,), torch.inf, dtype=dtype, device=device)
    steps = torch.zeros(batch, dtype=torch.int64, device=device)
    result = torch.full((batch,), int(Result.MAX_STEPS), dtype=torch.int8, device=device)
    live = torch.ones(batch, dtype=torch.bool, device=device)
    left_in: Tensor | None = None  # rows of the batch still iterated, once some have left it
    stopped: tuple[Tensor, ...] = ()
    trace: list[Tensor] = []

    for k in range(1, max_steps + 1):
        fz = apply(f, z)
        now, done, diverged = rule.look(z, fz)
        diverged, done = live & diverged, live & done & ~diverged
        moving = live & ~diverged
        if memory is None:
            value = _choose(moving, fz, value)
            residual = torch.where(live, now, residual)
        else:
            better = moving & ((now < residual) | done)
            value = _choose(better, z, value)
            residual = torch.where(better, now, residual)
        steps = steps + live
        result = torch.where(diverged, int(Result.DIVERGED), result)
        result = torch.where(done, int(rule.success), result)
        if record:
            row = trace[-1].clone() if trace else torch.full((batch,), torch.inf, dtype=dtype, device=device)
            at = slice(None) if left_in is None else left_in
            row[at] = torch.where(live, now, row[at])
            trace.append(row)
        live = moving & ~done
        if k == max_steps:
            result = torch.where(live & rule.grown(), int(Result.DIVERGED), result)
            break
        z = value if memory is None else _choose(live, memory.propose(z, fz - z), z)
        if k % interval == 0:
            count = int(live.sum())
            if count == 0:
                break
            if take is not None and count < live.shape[0]:
                left = live.nonzero()[:, 0]
                state = (value, residual, steps, result)
                if left_in is None:
                    stopped, left_in = state, left
                else:
                    stopped = _put(stopped, left_in, state)
                    left_in = left_in[left]
                z, live = z[left], live[left]
                value, residual, steps, result = (part[left] for part in state)
                rule.take(left)
                if memory is not None:
                    memory.take(left)
                f = take(left_in)

    if left_in is not None:
        value, residual, steps, result = _put(stopped, left_in, (value, residual, steps, result))
    trace += trace[-1:] * (max_steps - len(trace)) if record else []
    return Solution(value, residual, steps, result, torch.stack(trace) if record else None)


def _put(whole: tuple[Tensor, ...], rows: Tensor, part: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(w.index_copy(0, rows, p.to(w.dtype)) for w, p in zip(whole, part, strict=True))


def _inner(history: Tensor, vectors: Tensor) -> Tensor:
    """Return inner products [B, m, n] of history [B, m, N] and vectors [B, n, N], in float64."""
    # In pieces that fit the cache: a float64 copy of the whole history made this twice as slow on a CPU.
    piece = 2048 if history.device.type == "cpu" else max(history.shape[2], 1)
    total = history.new_zeros(*history.shape[:2], vectors.shape[1], dtype=torch.float64)
    for start in range(0, history.shape[2], piece):
        part = slice(start, start + piece)
        total += torch.bmm(history[:, :, part].double(), vectors[:, :, part].double().transpose(1, 2))
    return total


class _AndersonMemory:
    """The last moves dz + mixing dg and residual differences dg, and the Gram matrix of these in float64."""

    def __init__(self, depth: int, mixing: float, regularisation: float) -> None:
        self.depth, self.mixing = depth, mixing
        # Squared because the Gram matrix holds squared lengths; the floor keeps a singular system solvable.
        self.weight = max(regularisation**2, 1e-15)
        self.count = 0
        self.state: tuple[Tensor, ...] | None = None

    def propose(self, z: Tensor, g: Tensor) -> Tensor:
        z_flat, g_flat = flat(z), flat(g)
        if self.state is None:
            batch, size = z_flat.shape
            history = z_flat.new_zeros(batch, self.depth, size)
            gram = torch.zeros(batch, self.depth, self.depth, dtype=torch.float64, device=z.device)
            self.state = (z_flat, g_flat, history, torch.zeros_like(history), gram)
            return z + self.mixing * g
        z_old, g_old, moves, dg, gram = self.state
        slot = self.count % self.depth
        self.count += 1
        dg[:, slot] = g_flat - g_old
        moves[:, slot] = z_flat - z_old + self.mixing * dg[:, slot]
        products = _inner(dg, torch.stack((dg[:, slot], g_flat), dim=1))
        gram[:, slot, :] = gram[:, :, slot] = products[:, :, 0]
        self.state = (z_flat, g_flat, moves, dg, gram)

        length = gram.diagonal(dim1=1, dim2=2).sqrt()
        scale = torch.where(length > 0.0, 1.0 / length, 0.0)
        system = scale[:, :, None] * gram * scale[:, None, :]
        system.diagonal(dim1=1, dim2=2).add_(self.weight)
        gamma, _ = torch.linalg.solve_ex(system, (scale * products[:, :, 1])[:, :, None])
        gamma = scale[:, :, None] * gamma
        # A plain step where the weights are no numbers: the sample's history, not its iterate, is at fault.
        gamma = torch.where(torch.isfinite(gamma).all(dim=1, keepdim=True), gamma, 0.0).to(z.dtype)
        correction = torch.bmm(moves.transpose(1, 2), gamma)[:, :, 0]
        return z + self.mixing * g - correction.view_as(z)

    def take(self, rows: Tensor) -> None:
        if self.state is not None:
            self.state = tuple(part[rows] for part in self.state)


class _BroydenMemory:
    """The inverse Jacobian of g as -alpha I + sum_i u_i v_i^T, and the point that steps start from.

    alpha is 1 until a step makes ||g|| larger. Then it is the step that the last secant asks for, and the next step
    starts at the best point again, half as long (and twice as long after each success, up to the full step): without
    that, f(v) = v - c (A v - b) with c = 10 runs away before the updates know A.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.count = 0
        self.state: tuple[Tensor, ...] | None = None

    def propose(self, z: Tensor, g: Tensor) -> Tensor:
        z_flat, g_flat = flat(z), flat(g)
        size = safe_norm_per_sample(g)
        if self.state is None:
            batch, n = z_flat.shape
            u = z_flat.new_zeros(batch, self.depth, n)
            one = torch.ones_like(size)
            self.state = (z_flat, g_flat, size, one, one, u, torch.zeros_like(u))
            return z + g
        z_old, g_old, least, alpha, length, u, v = self.state
        dz, dg = z_flat - z_old, g_flat - g_old
        worse = ~(size <= GROWTH_OF_A_STEP * least)
        if self.count == self.depth:
            self.count = 0
        alpha, started = self._rescaled(worse & (alpha == 1.0), dz, dg, alpha)
        u[started], v[started] = 0.0, 0.0
        dz_inverse = self._times(v, u, dz) - alpha[:, None].to(z.dtype) * dz
        denominator = _dot(dz_inverse, dg)
        bound = 1e-12 * norm_per_sample(dz_inverse).double() * norm_per_sample(dg).double()
        inverse = torch.where(denominator.abs() > bound, 1.0 / denominator, 0.0).to(z.dtype)
        u[:, self.count] = inverse[:, None] * (dz - (self._times(u, v, dg) - alpha[:, None].to(z.dtype) * dg))
        v[:, self.count] = dz_inverse
        self.count += 1
        length = torch.where(worse, 0.5 * length, (2.0 * length).clamp(max=1.0))
        z_flat, g_flat = (torch.where(worse[:, None], old, new) for old, new in ((z_old, z_flat), (g_old, g_flat)))
        self.state = (z_flat, g_flat, torch.where(worse, least, size), alpha, length, u, v)
        step = alpha[:, None].to(z.dtype) * g_flat - self._times(u, v, g_flat)
        return (z_flat + length[:, None].to(z.dtype) * step).view_as(z)

    def _rescaled(self, at: Tensor, dz: Tensor, dg: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha with the secant's own in the rows `at`, and those rows."""
        square = _dot(dg, dg)
        wanted = (_dot(dz, dg).abs() / square).to(alpha.dtype)
        at = at & torch.isfinite(wanted) & (wanted > 0.0)
        return torch.where(at, wanted, alpha), at

    def _times(self, left: Tensor, right: Tensor, x: Tensor) -> Tensor:
        """Return sum_i left_i (right_i . x), [B, N], over the updates stored."""
        weights = _inner(right[:, : self.count], x[:, None]).to(x.dtype)
        return torch.bmm(left[:, : self.count].transpose(1, 2), weights)[:, :, 0]

    def take(self, rows: Tensor) -> None:
        if self.state is not None:
            self.state = tuple(part[rows] for part in self.state)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each row, [B] in float64."""
    return (a.double() * b.double()).sum(dim=1)
