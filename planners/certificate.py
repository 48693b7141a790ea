"""Proof that every plan of trained reachability weights arrives, by a shortest way, on every map: by enumeration.

The encoder sees the 3x3 cells around a cell, each free or not, and the goal where it is among them. So all that it can
ever say is one of 512 patterns times the places of the goal. Where each latent action has one destination (sharp taps),
a plan is a way of least cost, and what one step of it costs is one of those numbers.

Theorem. Let (1) no value pass through walls: no latent action leads into a wall with m > 0, or none out of one; (2) m =
1 for the best latent action along each move that may be part of a shortest way; (3) the head name one of the nearer
neighbours, in each pattern with each set of neighbours that can be the nearer ones. Then every plan, on every map of
free cells and obstacles with one goal, of any size, arrives from every cell that has a way, by a shortest one.

Proof. A shortest way of n steps survives with gamma^n by (2), and nothing survives with more than gamma a step; by (1)
nothing else has a way. So u = n log gamma at distance n, exactly. Neighbours on a flat grid differ by one in distance,
so what a cell sees is its pattern and which neighbours are the nearer ones: all of that is enumerated, and by (3) each
step of the plan is one step nearer.

What is 0 or 1 must be so by a margin that no order of summation in float32 takes away (`SLACK`), and so must the head's
choice; the values themselves are float64 (`best_first`), exact to a part in 10^15 of the longest way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datagen.problem import FOUR
from planners.cores.reachability import LEAST_LOG_ADVANTAGE, SLACK, Reachability

if TYPE_CHECKING:
    from planners.planner import Planner

_CENTRE = 4
_MOVES = tuple(3 * (1 + dy) + 1 + dx for dy, dx in FOUR.offsets)
"""Where each move leads among the nine cells around one, row by row."""
_LEAST_MARGIN = 0.01
"""By which a logit must exceed another to count as larger."""


@dataclass(frozen=True)
class Pattern:
    """The 3x3 cells around one, as the encoder sees them.

    Attributes:
        free: Nine flags, row by row.
        goal: Which of the nine is the goal; None where none is.
    """

    free: tuple[bool, ...]
    goal: int | None = None

    def __str__(self) -> str:
        cells = ["G" if n == self.goal else "." if free else "#" for n, free in enumerate(self.free)]
        return "/".join("".join(cells[row : row + 3]) for row in (0, 3, 6))

    def nearer(self) -> Iterator[tuple[int, ...]]:
        """Yield each set of moves that may be the ones that lead nearer to the goal."""
        ways = tuple(move for move, cell in enumerate(_MOVES) if self.free[cell])
        if self.goal is not None:
            if self.goal in _MOVES:
                yield (_MOVES.index(self.goal),)
                return
            row, column = divmod(self.goal, 3)
            between = tuple(move for move in ways if _MOVES[move] in (3 * row + 1, 3 + column))
            if between:
                yield between
                return
        for count in range(1, len(ways) + 1):
            yield from combinations(ways, count)


@dataclass(frozen=True)
class Certificate:
    """What is proven of every plan of these weights, on every map of cells with one goal, of any size.

    Attributes:
        shortest: Steps up to which each plan is proven to arrive, by a shortest way, wherever it starts: math.inf where
            the proof goes through, 0 where it does not.
        patterns: Local patterns that were gone through.
        decisions: Decisions of the head that were: patterns times sets of nearer neighbours.
        survival: Least survival of a move that a shortest way may need.
        margin: Least margin, in logits, by which the head prefers a nearer neighbour.
        worst: The pattern that stands in the way; None where nothing does.
        reason: What about it does.
    """

    shortest: float
    patterns: int
    decisions: int
    survival: float
    margin: float
    worst: Pattern | None = None
    reason: str = ""


@torch.no_grad()
def certify(planner: Planner) -> Certificate:
    """Return what is proven of a planner's plans, as `plan_walled` makes them, solved best first.

    Raises:
        ValueError: If the planner is another one.
    """
    core = planner.core
    if not isinstance(core, Reachability) or len(core.neighbours) != 5 or core.in_channels != 2 or core.wrap:
        raise ValueError(
            "certify: expected a planner with core 'reachability', the four moves, a map of zeros and ones, and walls "
            "round it; nothing can be enumerated for another one"
        )
    return _Proof(core).certificate()


def pattern_of(row: int) -> Pattern:
    """Return the pattern of a row of `Reachability.patterns_survival`."""
    free = tuple(bool(row % 512 >> cell & 1) for cell in range(9))
    return Pattern(free, row // 512 - 1 if row >= 512 else None)


class _Proof:
    """The survival of each latent action in each pattern, and what follows from it."""

    def __init__(self, core: Reachability) -> None:
        self.core = core
        survival = core.patterns_survival().double()
        rows = [row for row in range(len(survival)) if row < 512 or pattern_of(row).free[row // 512 - 1]]
        self.every = [pattern_of(row) for row in rows]
        # The margin is half of that by which training decides: the rest is left for the conversion to float64.
        uncut = survival[rows]
        self.shut, self.survival = uncut <= -SLACK / 2, uncut.clamp(0, 1)
        self.survival = torch.where(uncut >= 1 + SLACK / 2, 1.0, self.survival.clamp(max=1 - SLACK / 2))
        self.taps = core.taps().double()
        leads = [core.neighbours[n] for n in self.taps.argmax(1).tolist()]
        self.moves = [[a for a, cell in enumerate(leads) if cell == move] for move in _MOVES]
        self.staying = [a for a, cell in enumerate(leads) if cell == _CENTRE]
        self.agents = [n for n, p in enumerate(self.every) if p.free[_CENTRE] and p.goal != _CENTRE]

    def certificate(self) -> Certificate:
        cases = [(number, nearer) for number in self.agents for nearer in self.every[number].nearer()]
        least, worst = min(
            ((self._best(number, move), number) for number, near in cases for move in near), default=(0, 0)
        )
        margins = self._margins(cases)
        margin, doubtful = margins.min(0)
        facts = (len(self.every), len(cases), float(least), float(margin))
        stands = self._leak()
        if stands is None and least < 1:
            stands = worst, f"a move that a shortest way may need survives with {least:.4g}, not 1"
        if stands is None and margin < _LEAST_MARGIN:
            stands = cases[int(doubtful)][0], "the policy may leave the nearer neighbours"
        if stands is None:
            return Certificate(math.inf, *facts)
        return Certificate(0, *facts, None if stands[0] is None else self.every[stands[0]], stands[1])

    def _best(self, number: int, move: int) -> float:
        actions = self.moves[move]
        return float(self.survival[number, actions].max()) if actions else 0.0

    def _leak(self) -> tuple[int | None, str] | None:
        """Return what lets value pass through walls, or mixes where a way leads; None where nothing does."""
        if not bool((self.taps.amax(1) == 1).all()):
            return None, "a latent action leads to several neighbours: the training was not finished"
        out = [n for n, p in enumerate(self.every) if not p.free[_CENTRE] and not bool(self.shut[n].all())]
        into = [
            n
            for n in self.agents
            for move, cell in enumerate(_MOVES)
            if not self.every[n].free[cell] and not bool(self.shut[n, self.moves[move]].all())
        ]
        return (into[0], "a move into a wall may survive, and one out of a wall") if out and into else None

    def _margins(self, cases: list[tuple[int, tuple[int, ...]]]) -> Tensor:
        """Return by how much the best logit of a nearer neighbour exceeds that of any other action, by case."""
        head = self.core.symmetry.acting(self.core.head_weight).double()
        step = math.log(self.core.discount)
        near = torch.full((len(cases), self.survival.shape[1]), -math.inf, dtype=torch.double)
        inside = torch.zeros(len(cases), 4, dtype=torch.bool)
        for case, (number, nearer) in enumerate(cases):
            near[case, self.staying] = step
            inside[case, list(nearer)] = True
            for move, cell in enumerate(_MOVES):
                if self.every[number].free[cell]:
                    near[case, self.moves[move]] = 0.0 if move in nearer else 2 * step
        q = self.survival[[number for number, _ in cases]].log() + near
        advantage = (q - q.amax(1, keepdim=True)).clamp(min=LEAST_LOG_ADVANTAGE).nan_to_num(LEAST_LOG_ADVANTAGE)
        logits = self.core.options.advantage_scale * advantage @ head.T
        right = logits.masked_fill(~inside, -math.inf).amax(1)
        return right - logits.masked_fill(inside, -math.inf).amax(1)
