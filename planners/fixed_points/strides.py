"""Forward iteration that looks at its residual every few steps alone, for steps that cost less than a look.

The whole judgement of a look takes some forty operations on small tensors, which for a small f is most of the time of a
solve; that no sample diverges is known after a dozen, and then little is left to do.
Legend: z iterate, g_j = f(z_j) - z_j, n steps of a stride, B samples, N numbers of each, m window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .solution import Solution, Step
from .solvers import _Answers, apply, check_options
from .stopping import GROWTH, RESIDUAL_OFFSET, Norm, ResidualRule, floored, norm_per_sample, rows
from .transfers import sent

THINNED = 0.75
"""Share of live samples among those computed on, at which the others are left out: choosing rows costs some steps."""

NEARLY_DEPENDENT = 1e-14
"""Added to the Gram matrix of a window's changes, relative to its largest entry, so that it can be solved with."""


@dataclass(frozen=True)
class StridedIteration:
    """v_{k+1} = f(v_k), Eq. 2, each sample until the first look that finds its residual within the tolerance.

    It looks at the first step, at every `stride`-th after that, and at the last, by the residual rule
    (`planners.fixed_points.solution`). A sample takes up to `stride` - 1 steps more than `ForwardIteration` would. What
    has stopped is computed on, its answer staying, for as long as others go on; where f has `take`, until a quarter has
    stopped. One that diverges keeps what the look before saw.

    With a window the next stride starts from sum_j c_j f(z_j), over the stride's latest m steps, sum_j c_j = 1 and
    ||sum_j c_j g_j|| least: reduced rank extrapolation, which gains where f contracts slowly in few directions. It is
    done where a sample's residual is the lowest so far, so that one which it has thrown back goes on by plain steps.
    Sidi, Efficient implementation of minimal polynomial and reduced rank extrapolation methods, 1991; Scieur et al.,
    Regularized nonlinear acceleration, 2016.

    Args:
        max_steps: K, most applications of f, at least 1.
        tolerance: At which a sample stops, taken for at least 4 eps of the dtype; 0 runs exactly K steps.
        stride: Steps from one look to the next.
        record: Keep the residual of each look, for all steps until the next.
        absolute: Allowed on top of the tolerance's share, in the units of v.
        norm: "max", "rms", "l2" or a function [B, N] -> [B] that measures samples; the length when not given.
        window: m, steps that are combined at each look, as far as the stride has so many; 0 or 1 for none.
    """

    max_steps: int = 30
    tolerance: float = 1e-4
    stride: int = 8
    record: bool = False
    absolute: float = 0.0
    norm: Norm | None = None
    window: int = 0

    def __post_init__(self) -> None:
        check_options(self)
        for name, least in (("stride", 1), ("window", 0)):
            number = getattr(self, name)
            if not isinstance(number, int) or isinstance(number, bool) or number < least:
                raise ValueError(f"{name} must be at least {least} and whole, got {number!r}")

    @torch.no_grad()
    def solve(self, f: Step, v0: Tensor) -> Solution:
        """Return f applied K times to v0 [B, ...], or fewer times for samples that settled or diverged."""
        take: Callable[[Tensor], Step] | None = getattr(f, "take", None)
        z, taken = v0.detach().clone(), 0
        answers = _Answers(z, self.record)
        looks = _Looks(self, answers)
        while taken < self.max_steps and (looks.count or not taken):
            count = min(self.stride, self.max_steps - taken) if taken else 1
            path = deque([z], maxlen=self.window + 1)
            for _ in range(count - 1):
                path.append(f(path[-1]).to(z.dtype))
            z = path[-1]
            fz = apply(f, z)
            taken += count
            looks.look(z, fz, taken, count)
            z = answers.value
            if self.window > 1 and count > 1 and looks.count:
                path.append(fz)
                z = looks.combined(torch.stack([*path], dim=1), z)
            if take is not None and 0 < looks.count <= THINNED * len(fz):
                staying = sent(answers.live.nonzero()[:, 0], fz.device)
                f, z = take(looks.leave(staying)), z[staying]
        return answers.solution(self.max_steps)


class _Looks:
    """The residual rule at some steps: what has changed is told to the answers, and what has not costs little.

    Attributes:
        count: Live samples.
    """

    def __init__(self, solver: StridedIteration, answers: _Answers) -> None:
        tolerance = floored(solver.tolerance, answers.value.dtype)
        self.rule = ResidualRule(tolerance, solver.absolute, solver.norm)
        self.answers, self.count, self.last, self.record = answers, len(answers.live), solver.max_steps, solver.record
        self._settled = tolerance or -1.0  # with tolerance 0 a residual of 0 ends nothing
        self._brief = not (solver.record or solver.norm is not None or solver.absolute > 0.0)
        self._seen = self._least = answers.residual

    def look(self, z: Tensor, fz: Tensor, taken: int, count: int) -> None:
        """Judge f(z) [n, ...] after so many steps in all, and since the latest look."""
        answers = self.answers
        if self._brief and self._briefly(z, fz, taken):
            return
        verdict = self.rule.judge(z, fz)
        self._seen = verdict.residual
        answers.steps = torch.where(answers.live, taken - 1, answers.steps)
        answers.judge(verdict, self.rule.success, fz, best=False)
        if self.record:
            answers._trace += answers._trace[-1:] * (count - 1)
        self.count = int(answers.live.sum())

    def _briefly(self, z: Tensor, fz: Tensor, taken: int) -> bool:
        """Do the same by the rule's own numbers where no live sample diverges; else do nothing and return False."""
        answers, live = self.answers, self.answers.live
        change, size = _length(fz - z), _length(fz)
        if self.rule.limit is None:
            self.rule.limit = GROWTH * torch.maximum(_length(z), size).clamp(min=1.0)
        residual = change / (RESIDUAL_OFFSET + size)
        bounded = (residual < torch.inf) & (size <= self.rule.limit)
        going = live & bounded & (residual > self._settled)
        quiet = torch.equal(going, live)
        if not quiet and not bool((bounded | ~live).all()):
            return False
        answers.value = fz if self.count == len(fz) else torch.where(rows(live, fz), fz, answers.value)
        self._seen = residual
        if not quiet or taken == self.last:
            answers.residual = torch.where(live, residual, answers.residual)
            answers.steps = torch.where(live, taken, answers.steps)
            answers.result = torch.where(live > going, int(self.rule.success), answers.result)
            answers.live, self.count = going, int(going.sum())
        return True

    def combined(self, path: Tensor, z: Tensor) -> Tensor:
        """Return the best combination of a stride's latest images [n, m, ...], where it may be; elsewhere z [n, ...].

        Args:
            path: [n, m + 1, ...] the iterates, each the image of the one before.
            z: [n, ...] where plain steps would go on.
        """
        path = path.flatten(2) if path.ndim > 2 else path[:, :, None]
        changes = (path[:, 1:] - path[:, :-1]).double()
        gram = torch.bmm(changes, changes.transpose(1, 2))
        entries = gram.diagonal(dim1=1, dim2=2)
        rounding = torch.finfo(path.dtype).eps * _length(path[:, -1]).double()
        entries += NEARLY_DEPENDENT * entries.amax(dim=1, keepdim=True) + rounding.square()[:, None]
        weights = torch.linalg.solve_ex(gram, torch.ones_like(gram[:, :, :1]))[0]
        weights = weights / weights.sum(dim=1, keepdim=True)
        usable = self.answers.live & (self._seen < self._least) & torch.isfinite(weights).all(dim=1)[:, 0]
        self._least = torch.minimum(self._least, self._seen)
        found = torch.bmm(weights.to(path.dtype).transpose(1, 2), path[:, 1:])[:, 0]
        return torch.where(rows(usable, z), found.view_as(z), z)

    def leave(self, staying: Tensor) -> Tensor:
        """Go on with these rows of the n alone, and return their rows in the batch."""
        self.rule.take(staying)
        self._seen, self._least = self._seen[staying], self._least[staying]
        return self.answers.leave(staying)


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=1) if x.ndim == 2 and x.dtype.itemsize > 2 else norm_per_sample(x)
