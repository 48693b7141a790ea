"""Forward iteration that looks at its residual every few steps alone, for steps that cost less than a look.

A look takes some forty operations on small tensors, which for a small f is most of the time of a solve.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .solution import Solution, Step
from .solvers import _Answers, apply, check_options
from .stopping import Norm, ResidualRule


@dataclass(frozen=True)
class StridedIteration:
    """v_{k+1} = f(v_k), Eq. 2, each sample until the first look that finds its residual within the tolerance.

    It looks at the first step, at every `stride`-th after that, and at the last, by the residual rule
    (`planners.fixed_points.solution`). A sample takes up to `stride` - 1 steps more than `ForwardIteration` would, and
    what has stopped is computed on for as long as others go on; its answer stays. One that diverges keeps what the look
    before saw.

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
        rule = ResidualRule(self.tolerance, self.absolute, self.norm)
        z = v0.detach().clone()
        answers, steps = _Answers(z, record=False), torch.zeros(len(z), dtype=torch.int64, device=z.device)
        trace, taken = [], 0
        while taken < self.max_steps:
            count = min(self.stride, self.max_steps - taken) if taken else 1
            for _ in range(count - 1):
                z = f(z).to(z.dtype)
            fz = apply(f, z)
            taken, steps = taken + count, steps + count * answers.live
            answers.judge(rule.judge(z, fz), rule.success, fz, best=False)
            z = answers.value
            if self.record:
                trace += [answers.residual] * count
            if not bool(answers.live.any()):
                break
        answers.steps = steps
        found = answers.solution(self.max_steps)
        if not self.record:
            return found
        kept = torch.stack(trace + trace[-1:] * (self.max_steps - len(trace)))
        return Solution(found.value, found.residual, found.steps, found.result, kept)
