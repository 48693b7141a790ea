"""A solver for linear systems A x = b that needs no contraction, each sample on its own.

Legend: A operator, r = b - A x, V orthonormal basis of the Krylov space, H = V^T A V its Hessenberg matrix, t the right
side of the small least squares, sigma the least singular value known, B samples, N unknowns, k steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .solution import Result, Solution, Step
from .solvers import apply, check_options
from .stopping import (
    at_least_single,
    flat,
    norm_per_sample,
    rows,
    safe_norm_per_sample,
    scale_per_sample,
)

_BREAKDOWN = 10.0
"""A new direction shorter than this many eps of A v is rounding: the Krylov space holds nothing more."""

_ERROR = 10.0
"""A system is solved when the estimated relative error of x is at most this many tolerances, too."""

_SMALL = 32
"""Up to so many unknowns the whole matrix is looked at, for a sigma that is that of A itself."""


@dataclass(frozen=True)
class GMRES:
    """Generalised minimal residuals: the x of least ||b - A x|| over a growing Krylov space, by Arnoldi's method.

    Works for every non-singular A, and in at most n steps (n unknowns) in exact arithmetic; keeps one vector per step.
    Each new direction is made orthogonal twice to all before, which single precision needs. Where rounding has made the
    recursive residual smaller than the true one, it starts again from x.
    Saad and Schultz, GMRES, 1986; Giraud et al., The loss of orthogonality in the Gram-Schmidt process, 2005.

    As a fixed-point solver it takes only affine maps f(x) = (I - A) x + b, such as the adjoint system of Eq. 6.

    Args:
        max_steps: Most products with A in Krylov spaces, at least 1; those that measure come on top: one at either end,
            and, of systems of up to 32 unknowns, one per unknown for their conditioning.
        tolerance: Relative residual ||b - A x|| / ||b|| at which a sample stops; 0 runs until breakdown. CONVERGED also
            takes ||r|| / (sigma ||x||) <= 10 tolerance, a bound on the error of x. Of larger systems sigma is estimated
            in the Krylov space, from above; a singular A then shows itself only where the system has no solution.
        record: Keep the residual after each step.
    """

    max_steps: int = 100
    tolerance: float = 1e-5
    record: bool = False

    def __post_init__(self) -> None:
        check_options(self)

    @torch.no_grad()
    def solve(self, f: Step, v0: Tensor) -> Solution:
        """Return x = f(x) for affine f, from v0 [B, ...]; a sample of any other f is not CONVERGED."""
        b = apply(f, torch.zeros_like(v0))
        found = self.solve_linear(lambda x: x - (apply(f, x) - b), b, v0)
        size = safe_norm_per_sample(b)
        off = safe_norm_per_sample(apply(f, found.value) - found.value) > 2.0 * self.tolerance * size
        wrong = off & (found.result == int(Result.CONVERGED))  # b - A x is f(x) - x for affine f alone
        result = torch.where(wrong, int(Result.MAX_STEPS), found.result).to(torch.int8)
        return Solution(found.value, found.residual, found.steps, result, found.trace)

    @torch.no_grad()
    def solve_linear(self, operator: Step, b: Tensor, x0: Tensor | None = None) -> Solution:
        """Return x with A x = b.

        Args:
            operator: x [B, ...] -> A x, linear, the samples independent of each other.
            b: [B, ...] right-hand side.
            x0: [B, ...] where to start; zero when not given.

        Returns:
            The solution; its residual is ||b - A x|| / ||b||, measured on the x returned. Where b is not finite, x is
            not either.
        """
        scale = rows(scale_per_sample(b), b)  # A is linear: a tiny or huge b must not leave the range of its squares
        right = flat(at_least_single(b) / scale)

        def times(x: Tensor) -> Tensor:
            return flat(at_least_single(operator((x * flat(scale)).to(b.dtype).view_as(b)) / scale))

        x = torch.zeros_like(right) if x0 is None else flat(at_least_single(x0.detach()) / scale)
        start = right if x0 is None else right - times(x)
        found = _System(times, right, self.tolerance).solved(x, start, self.max_steps)
        x, residual, steps, solved, trace = found
        finite = torch.isfinite(residual) & torch.isfinite(right).all(dim=1)
        result = torch.where(solved, int(Result.CONVERGED), int(Result.MAX_STEPS))
        result = torch.where(finite, result, int(Result.DIVERGED)).to(torch.int8)
        x = torch.where(torch.isfinite(right).all(dim=1, keepdim=True), x, torch.nan)
        value = (x * flat(scale)).to(b.dtype).view_as(b)
        kept = None
        if self.record:
            kept = torch.stack((trace + [residual] * self.max_steps)[: self.max_steps])
        return Solution(value, torch.where(finite, residual, torch.inf), steps, result, kept)


_Found = tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]


class _System:
    """One batch of systems in flat form, [B, N]."""

    def __init__(self, times: Step, b: Tensor, tolerance: float) -> None:
        self.times, self.b, self.tolerance = times, b, tolerance
        size = norm_per_sample(b)
        self.size = torch.where(size > 0.0, size, 1.0)
        self.sigma = torch.full_like(size, torch.inf, dtype=torch.float64)

    def solved(self, x: Tensor, r: Tensor, max_steps: int) -> _Found:
        """Return x, its true residual, the steps, which samples are solved, and the residual after each step."""
        residual = norm_per_sample(r) / self.size
        steps, trace = torch.zeros_like(residual, dtype=torch.int64), list[Tensor]()
        live = torch.isfinite(residual) & (residual > self.tolerance)
        solved = residual <= self.tolerance
        while bool(live.any()) and len(trace) < max_steps:
            moved, taken, history = self._cycle(x, r, live, max_steps - len(trace))
            steps = steps + taken
            trace += [torch.where(live, row, residual) for row in history]
            left = self.b - self.times(moved)
            before, after = residual, norm_per_sample(left) / self.size
            better = live & ~(after >= before)  # no number is passed on, for the verdict
            x, r = (torch.where(better[:, None], new, old) for new, old in ((moved, x), (left, r)))
            residual = torch.where(better, after, before)
            if x.shape[1] <= _SMALL and self.tolerance > 0.0:
                self.sigma = torch.where(live, self._least_singular_value(), self.sigma)
            solved = residual <= torch.minimum(self._wanted(x), self.sigma.new_tensor(self.tolerance))
            live = live & ~solved & torch.isfinite(residual) & (residual < 0.5 * before)
        nothing = (self.b == 0.0).all(dim=1) & (residual == 0.0)
        return x, residual, steps, solved & (self.sigma > 0.0) & (self.tolerance > 0.0) | nothing, trace

    def _wanted(self, x: Tensor) -> Tensor:
        """Return the relative residual at which the error of x is within bounds, [B]."""
        length = norm_per_sample(x).double() / self.size.double()
        return torch.where(torch.isfinite(self.sigma), _ERROR * self.tolerance * self.sigma * length, torch.inf)

    def _least_singular_value(self) -> Tensor:
        n = self.b.shape[1]
        columns = [self.times(unit.expand_as(self.b)) for unit in torch.eye(n, dtype=self.b.dtype).to(self.b.device)]
        values = torch.linalg.svdvals(torch.nan_to_num(torch.stack(columns, dim=2).double()))
        eps = torch.finfo(self.b.dtype).eps
        singular = values[:, -1] <= n * eps * values[:, 0]
        return torch.where(singular, 0.0, values[:, -1])

    def _cycle(self, x: Tensor, r: Tensor, live: Tensor, max_steps: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return x after one Krylov space from r, the steps of each sample, and the residual after each step."""
        batch, n = r.shape
        beta = norm_per_sample(r).double()
        eps = torch.finfo(r.dtype).eps
        small = _LeastSquares(torch.where(live, beta, 0.0), eps)
        basis = r.new_zeros(batch, min(16, max_steps + 1), n)
        basis[:, 0] = _over(r, beta, live)
        taken, history = torch.zeros_like(live, dtype=torch.int64), list[Tensor]()
        for k in range(min(max_steps, n)):
            w = self.times(basis[:, k])
            taken = taken + live
            length, known = norm_per_sample(w).double(), basis[:, : k + 1]
            column = torch.zeros(batch, k + 1, 1, dtype=r.dtype, device=r.device)
            for _again in range(2):  # once leaves a share of the old directions that the next steps would amplify
                along = torch.bmm(known, w[:, :, None])
                w = w - torch.bmm(known.transpose(1, 2), along)[:, :, 0]
                column = column + along
            rest = norm_per_sample(w).double()
            new = live & torch.isfinite(rest) & (rest > _BREAKDOWN * eps * length)
            rest = torch.where(new, rest, 0.0)
            small.append(column[:, :, 0].double(), rest, live)
            history.append((small.residual() / self.size).to(self.size.dtype))
            live = new & ~self._enough(small, x, history[-1])
            if not bool(live.any()) or k + 1 == min(max_steps, n):
                break
            if k + 1 == basis.shape[1]:
                basis = torch.cat((basis, torch.zeros_like(basis)), dim=1)
            basis[:, k + 1] = _over(w, rest, live)
        weights, sigma = small.solution()
        self.sigma = torch.minimum(self.sigma, sigma)
        weights = weights[:, None].to(r.dtype)
        return x + torch.bmm(weights, basis[:, : weights.shape[2]])[:, 0], taken, history

    def _enough(self, small: _LeastSquares, x: Tensor, residual: Tensor) -> Tensor:
        """Return which samples' residuals and errors are within bounds, as far as the Krylov space can tell."""
        if self.tolerance == 0.0:
            return residual <= torch.finfo(self.b.dtype).eps
        enough = residual <= self.tolerance
        if not bool(enough.any()):
            return enough
        weights, sigma = small.solution()
        length = torch.linalg.vector_norm(weights, dim=1) + norm_per_sample(x).double()
        sigma = torch.minimum(self.sigma, sigma)
        return enough & (residual * self.size <= _ERROR * self.tolerance * sigma * length)


class _LeastSquares:
    """min ||beta e_1 - H y|| for a Hessenberg matrix that grows by a column, by Givens rotations in float64."""

    def __init__(self, beta: Tensor, eps: float) -> None:
        self.eps = eps
        self.rotations = torch.ones(len(beta), 1, 1, dtype=torch.float64, device=beta.device)
        self.triangle = self.rotations.new_zeros(len(beta), 0, 0)
        self.t = beta[:, None]
        self.left = beta

    def append(self, column: Tensor, rest: Tensor, live: Tensor) -> None:
        """Add a column [B, k + 1] of H and the entry below it [B]; one of the identity where a sample has stopped."""
        k = column.shape[1] - 1
        column = torch.bmm(self.rotations, column[:, :, None])[:, :, 0]
        length = torch.hypot(column[:, k], rest)
        c, s = (torch.where(length > 0.0, part / length, first) for part, first in ((column[:, k], 1.0), (rest, 0.0)))
        c, s = torch.where(live, c, 1.0), torch.where(live, s, 0.0)
        grown = torch.nn.functional.pad(self.rotations, (0, 1, 0, 1))
        grown[:, k + 1, k + 1] = 1.0
        upper, lower = grown[:, k].clone(), grown[:, k + 1].clone()
        grown[:, k], grown[:, k + 1] = c[:, None] * upper + s[:, None] * lower, c[:, None] * lower - s[:, None] * upper
        self.rotations = grown
        self.triangle = torch.nn.functional.pad(self.triangle, (0, 1, 0, 1))
        self.triangle[:, :k, k] = torch.where(live[:, None], column[:, :k], 0.0)
        self.triangle[:, k, k] = torch.where(live, length, self.triangle[:, 0, 0] if k else 1.0)
        last = self.t[:, k]
        below = torch.where(live, -s * last, 0.0)
        self.t = torch.cat((self.t, below[:, None]), dim=1)
        self.t[:, k] = torch.where(live, c * last, 0.0)
        self.left = torch.where(live, below.abs(), self.left)

    def residual(self) -> Tensor:
        """Return the least residual [B]."""
        return self.left

    def solution(self) -> tuple[Tensor, Tensor]:
        """Return y [B, k], of least norm where H is singular, and the least singular value of H [B]."""
        triangle = torch.nan_to_num(self.triangle)
        u, values, vh = torch.linalg.svd(triangle)
        kept = values > self.eps * values[:, :1]  # what is smaller is rounding of A v
        right = torch.bmm(u.transpose(1, 2), torch.nan_to_num(self.t[:, :-1, None]))[:, :, 0]
        weights = torch.where(kept, right / torch.where(kept, values, 1.0), 0.0)
        return torch.bmm(vh.transpose(1, 2), weights[:, :, None])[:, :, 0], values[:, -1]


def _over(vector: Tensor, length: Tensor, mask: Tensor) -> Tensor:
    """Return vector / length in the rows of the mask, 0 elsewhere."""
    length = torch.where(mask, length, 1.0).to(vector.dtype)
    return torch.where(mask[:, None], vector / length[:, None], 0.0)
