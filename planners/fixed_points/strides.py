"""Forward iteration that looks at its residual every few steps alone, for steps that cost less than a look.

The whole judgement of a look takes some forty operations on small tensors, which for a small f is most of the time of a
solve; that nothing has changed since the look before is known after a dozen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .solution import Solution, Step
from .solvers import _Answers, apply, check_options
from .stopping import GROWTH, RESIDUAL_OFFSET, Norm, ResidualRule, norm_per_sample, rows
from .transfers import sent

THINNED = 0.75
"""Share of live samples among those computed on, below which the others are left out: taking rows costs some steps."""


@dataclass(frozen=True)
class StridedIteration:
    """v_{k+1} = f(v_k), Eq. 2, each sample until the first look that finds its residual within the tolerance.

    It looks at the first step, at every `stride`-th after that, and at the last, by the residual rule
    (`planners.fixed_points.solution`). A sample takes up to `stride` - 1 steps more than `ForwardIteration` would. What
    has stopped is computed on, its answer staying, for as long as others go on; where f has `take`, until a quarter has
    stopped. One that diverges keeps what the look before saw.

    Args:
        max_steps: K, most applications of f, at least 1.
        tolerance: At which a sample stops; 0 runs exactly K steps.
        stride: Steps from one look to the next.
        record: Keep the residual of each look, for all steps until the next.
        absolute: Allowed on top of the tolerance's share, in the units of v.
        norm: "max", "rms", "l2" or a function [B, N] -> [B] that measures samples; the length when not given.
    """

    max_steps: int = 30
    tolerance: float = 1e-4
    stride: int = 8
    record: bool = False
    absolute: float = 0.0
    norm: Norm | None = None

    def __post_init__(self) -> None:
        check_options(self)
        if not isinstance(self.stride, int) or isinstance(self.stride, bool) or self.stride < 1:
            raise ValueError(f"stride must be at least 1 and whole, got {self.stride!r}")

    @torch.no_grad()
    def solve(self, f: Step, v0: Tensor) -> Solution:
        """Return f applied K times to v0 [B, ...], or fewer times for samples that settled or diverged."""
        take: Callable[[Tensor], Step] | None = getattr(f, "take", None)
        z, taken = v0.detach().clone(), 0
        answers = _Answers(z, self.record)
        looks = _Looks(self, answers)
        while taken < self.max_steps and (looks.count or not taken):
            count = min(self.stride, self.max_steps - taken) if taken else 1
            for _ in range(count - 1):
                z = f(z).to(z.dtype)
            fz = apply(f, z)
            taken += count
            looks.look(z, fz, taken, count)
            if take is not None and 0 < looks.count <= THINNED * len(fz):
                f = take(looks.leave())
            z = answers.value
        return answers.solution(self.max_steps)


class _Looks:
    """The residual rule at some steps: what has changed is told to the answers, and what has not costs little."""

    def __init__(self, solver: StridedIteration, answers: _Answers) -> None:
        self.rule = ResidualRule(solver.tolerance, solver.absolute, solver.norm)
        self.answers, self.count = answers, len(answers.live)
        self.last, self.record = solver.max_steps, solver.record
        self.brief = not (solver.record or solver.norm is not None or solver.absolute > 0.0)

    def look(self, z: Tensor, fz: Tensor, taken: int, count: int) -> None:
        """Judge f(z) after so many steps in all, and since the latest look."""
        answers, live = self.answers, self.answers.live
        if not self.brief or not self._briefly(z, fz, taken):
            answers.steps = torch.where(live, taken - 1, answers.steps)
            answers.judge(self.rule.judge(z, fz), self.rule.success, fz, best=False)
            if self.record:
                answers._trace += answers._trace[-1:] * (count - 1)
            self.count = int(answers.live.sum())

    def _briefly(self, z: Tensor, fz: Tensor, taken: int) -> bool:
        """Take over f(z) where no live sample diverges, by the rule's own numbers; else return False."""
        answers, live = self.answers, self.answers.live
        change, size = _length(fz - z), _length(fz)
        if self.rule.limit is None:
            self.rule.limit = GROWTH * torch.maximum(_length(z), size).clamp(min=1.0)
        residual = change / (RESIDUAL_OFFSET + size)
        bounded = (residual < torch.inf) & (size <= self.rule.limit)
        going = live & bounded & (residual > self.rule.tolerance)
        ended = taken == self.last
        if not ended and torch.equal(going, live):
            answers.value = fz if self.count == len(fz) else torch.where(rows(live, fz), fz, answers.value)
            return True
        if not bool((bounded | ~live).all()):
            return False
        answers.value = fz if self.count == len(fz) else torch.where(rows(live, fz), fz, answers.value)
        answers.residual = torch.where(live, residual, answers.residual)
        answers.steps = torch.where(live, taken, answers.steps)
        answers.result = torch.where(live > going, int(self.rule.success), answers.result)
        answers.live, self.count = going, int(going.sum())
        return True

    def leave(self) -> Tensor:
        """Go on with the live samples alone, and return their rows in the batch."""
        staying = sent(self.answers.live.nonzero()[:, 0], self.answers.live.device)
        self.rule.take(staying)
        return self.answers.leave(staying)


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=1) if x.ndim == 2 and x.dtype.itemsize > 2 else norm_per_sample(x)
