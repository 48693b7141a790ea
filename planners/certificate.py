"""Proof that every plan of trained reachability weights arrives, by a shortest way, on every map: by enumeration.

The encoder sees the 3x3 cells around a cell, each free or not: all that it can ever say is what it says of 512
patterns. Where each latent action has one destination (sharp taps), a plan is a way of least cost, and what one step of
it costs is one of those numbers, -log(gamma m).

Let no value pass through walls: no latent action leads into a wall with m > 0, or none out of one. Let every step into
a free cell cost at least c, and every step that may be part of a shortest way at most C <= log 4 (so that no value of
such a way comes near the floor). Write D = -log v for the cost of arriving.

Theorem. At n steps from the goal let the head name a nearer neighbour, in each pattern with each set of neighbours that
can be the nearer ones, whatever the neighbours' costs of arriving, as long as D(k) - D(i) lies in [-e, e] for nearer
ones i and k, and in [l c - e, l C + e] for a nearer one i and one k that is l steps farther, e = (n - 1) (C - c). Let
that be so for n = 1..N. Then every plan from every cell at most N steps from the goal arrives, by a shortest way, on
every map of free cells and obstacles with one goal, of any size.

Proof. A way of n steps costs at least n c, a shortest one at most n C, and nothing else has a way. So n c <= D <= n C
at distance n. The nearer neighbours of a cell n steps away are at n - 1, the others at n - 1 + l: subtract. On a flat
grid neighbours differ by one in distance, so l = 2; on a torus with odd sides l = 1 occurs too. What a cell sees is its
pattern, which neighbours are nearer, and costs in these intervals: all of that is enumerated (the difference of two
logits is a sum, over neighbours, of functions of one cost each, linear between corners: the least is at an end of the
interval or a corner), and each step of the plan is one step nearer.

Where all moves that are needed survive with m = 1, c = C = -log gamma and e = 0: the length has no limit. Else e grows
by log(max m / min m) a step, and the proof goes as far as the n at which the first decision could turn. Beyond, nothing
is said: the limit is that of the worst case, every step of one way at C and every step of another at c.

What is 0 or 1 must be so by a margin that no order of summation in float32 takes away (`SLACK`); other survivals are
known as well as float32 sums are (`_rounding`), and a logit must be larger by `_LEAST_MARGIN` and what that makes of
it. The values themselves are float64 (`best_first`), exact to a part in 10^15 of the longest way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import combinations, product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datagen.problem import FOUR
from planners.cores.reachability import LEAST_LOG_ADVANTAGE, MARGIN, SLACK, Reachability

if TYPE_CHECKING:
    from planners.planner import Planner

_CENTRE = 4
_MOVES = tuple(3 * (1 + dy) + 1 + dx for dy, dx in FOUR.offsets)
"""Where each move leads among the nine cells around one, row by row."""
_LEAST_MARGIN = 0.01
"""By which a logit must exceed another to count as larger."""
_DEAREST = math.log(4)
"""What a needed step may cost: the floor is -log(4) (cells + 1), and around the cells of a way lie others."""
_FARTHEST = 2**40
"""Steps beyond which nobody asks."""
_FAR = (2,)
_FAR_ON_A_TORUS = (1, 2)
"""Steps by which a neighbour may be farther than a nearer one."""


@dataclass(frozen=True)
class Pattern:
    """The 3x3 cells around one, as the encoder sees them.

    Attributes:
        free: Nine flags, row by row.
    """

    free: tuple[bool, ...]

    def __str__(self) -> str:
        cells = ["." if free else "#" for free in self.free]
        return "/".join("".join(cells[row : row + 3]) for row in (0, 3, 6))

    def nearer(self) -> Iterator[tuple[int, ...]]:
        """Yield each set of moves that may be the ones that lead nearer to the goal."""
        ways = tuple(move for move, cell in enumerate(_MOVES) if self.free[cell])
        for count in range(1, len(ways) + 1):
            yield from combinations(ways, count)


@dataclass(frozen=True)
class Certificate:
    """What is proven of every plan of these weights, on every map of cells with one goal, of any size.

    Attributes:
        shortest: Steps from the goal up to which each plan is proven to arrive, by a shortest way: math.inf for all
            lengths, 0 where nothing is proven.
        patterns: Local patterns that were gone through.
        decisions: Decisions of the head that were: patterns times steps that each neighbour may be farther.
        survival: Least survival of a move that a shortest way may need.
        margin: Least margin, in logits, by which the head prefers a nearer neighbour within that length.
        worst: The pattern that stands in the way of more; None where nothing does.
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

    On the torus (`wrap`) that is of maps with at least three rows and columns.

    Raises:
        ValueError: If the planner is another one.
    """
    core = planner.core
    if not isinstance(core, Reachability) or len(core.neighbours) != 5 or core.in_channels != 2:
        raise ValueError(
            "certify: expected a planner with core 'reachability', the four moves, and a map of zeros and ones; "
            "nothing can be enumerated for another one"
        )
    return _Proof(core).certificate()


def pattern_of(row: int) -> Pattern:
    """Return the pattern of a row of `Reachability.patterns_survival`."""
    return Pattern(tuple(bool(row >> cell & 1) for cell in range(9)))


@dataclass(frozen=True)
class _Case:
    """A pattern, and how much farther than the nearest each neighbour is.

    Attributes:
        number: The pattern's, among all.
        farther: By move: 0 for a nearer neighbour, 1 or 2 for another, None for an obstacle.
    """

    number: int
    farther: tuple[int | None, ...]


def _cases(number: int, pattern: Pattern, far: tuple[int, ...]) -> Iterator[_Case]:
    ways = [move for move, cell in enumerate(_MOVES) if pattern.free[cell]]
    for nearer in pattern.nearer():
        others = [move for move in ways if move not in nearer]
        for steps in product(far, repeat=len(others)):
            known = dict.fromkeys(nearer, 0) | dict(zip(others, steps, strict=True))
            yield _Case(number, tuple(known.get(move) for move in range(4)))


class _Proof:
    """The survival of each latent action in each pattern, and what follows from it."""

    def __init__(self, core: Reachability) -> None:
        self.core = core
        uncut = deepcopy(core).double().patterns_survival()
        self.every = [pattern_of(row) for row in range(len(uncut))]
        # The margin is half of that by which training decides: the rest is left for float32.
        self.shut, self.survival = uncut <= -SLACK / 2, uncut.clamp(0, 1)
        self.survival = torch.where(uncut >= 1 + SLACK / 2, 1.0, self.survival.clamp(max=1 - SLACK / 2))
        known = (self.survival == 1) | (self.survival == 0)
        self.doubt = _rounding(core, self.every).masked_fill(known, 0.0)
        self.taps = core.taps().double()
        leads = [core.neighbours[n] for n in self.taps.argmax(1).tolist()]
        self.moves = [[a for a, cell in enumerate(leads) if cell == move] for move in _MOVES]
        self.staying = [a for a, cell in enumerate(leads) if cell == _CENTRE]
        self.agents = [n for n, p in enumerate(self.every) if p.free[_CENTRE]]
        far = _FAR_ON_A_TORUS if core.wrap else _FAR
        self.cases = [case for number in self.agents for case in _cases(number, self.every[number], far)]

    def certificate(self) -> Certificate:
        """Return how far the proof goes."""
        needed = {(c.number, move) for c in self.cases for move, steps in enumerate(c.farther) if steps == 0}
        least, worst = min(((self._best(*place, -1), place[0]) for place in needed), default=(0.0, 0))
        most = max(self._best(*place, 1) for place in self._open())
        enumerated = (len(self.every), len(self.cases), least)
        gamma = self.core.discount
        stands = self._leak()
        if stands is None and gamma * least < math.exp(-_DEAREST):
            stands = worst, f"a move that a shortest way may need survives with {least:.4g}, not 1"
        if stands is not None:
            pattern = None if stands[0] is None else self.every[stands[0]]
            return Certificate(0, *enumerated, 0.0, pattern, stands[1])
        margins = _Margins(self, -math.log(gamma * most), -math.log(gamma * least))
        length = _longest(margins)
        margin = margins.at(1 if length == math.inf else max(1, length))[0]
        if length == math.inf:
            return Certificate(math.inf, *enumerated, margin)
        doubtful = self.cases[margins.at(length + 1)[1]]
        reason = "the policy may leave the nearer neighbours"
        if least < most:
            reason += f" {length + 1:,} steps away: needed moves survive with {least:.4g} to {most:.4g}, not 1"
        return Certificate(length, *enumerated, margin, self.every[doubtful.number], reason)

    def _open(self) -> Iterator[tuple[int, int]]:
        for number in self.agents:
            yield from ((number, move) for move, cell in enumerate(_MOVES) if self.every[number].free[cell])

    def _best(self, number: int, move: int, sign: int) -> float:
        """Return the survival of the best latent action along a move, at least (sign -1) or at most (1)."""
        actions = self.moves[move]
        found = self.survival[number, actions] + sign * self.doubt[number, actions]
        return min(1.0, float(found.max())) if actions else 0.0

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


class _Margins:
    """By how much the head prefers a nearer neighbour, in each case, as costs of arriving spread with the distance."""

    def __init__(self, proof: _Proof, cheapest: float, dearest: float) -> None:
        core, cases = proof.core, proof.cases
        self.cheapest, self.dearest, self.moves, self.staying = cheapest, dearest, proof.moves, proof.staying
        self.head = (core.options.advantage_scale * core.symmetry.acting(core.head_weight)).double()
        in_costs = float((proof.doubt / proof.survival.clamp(min=math.exp(-_DEAREST)))[proof.agents].max())
        self.least = _LEAST_MARGIN + 4 * in_costs * float(self.head.abs().sum(1).max())
        farther = [[-1 if steps is None else steps for steps in case.farther] for case in cases]
        self.farther = torch.tensor(farther).reshape(-1, 4)
        self.cost = -(core.discount * proof.survival[[case.number for case in cases]]).log()
        none = torch.full((len(cases), 1), math.inf, dtype=torch.double)
        self.best = torch.cat([self.cost[:, m].amin(1, keepdim=True) if m else none for m in self.moves], 1)
        self.best[self.farther < 0] = math.inf

    def at(self, distance: float) -> tuple[float, int]:
        """Return the least margin in logits so many steps from the goal, and its case."""
        least, case = self._each(distance).min(0)
        return float(least), int(case)

    def _each(self, distance: float) -> Tensor:
        spread = (distance - 1) * (self.dearest - self.cheapest) if self.dearest > self.cheapest else 0.0
        low, high = self.farther * self.cheapest - spread, self.farther * self.dearest + spread
        found = torch.full((len(self.farther),), math.inf, dtype=torch.double)
        for first in range(4):
            found = torch.minimum(found, self._of_best(first, low, high))
        return found

    def _of_best(self, first: int, low: Tensor, high: Tensor) -> Tensor:
        """Return the margin of each case where the nearer neighbour `first` has the best way; inf where it can't."""
        # Of each neighbour k, D(k) - D(first), such that its best way is no better than that through `first`.
        least = torch.maximum(low, self.best[:, first, None] - self.best)
        least[:, first] = 0.0
        high = high.clone()
        high[:, first] = 0.0
        near, possible = self.farther == 0, (self.farther >= 0) & self.best.isfinite()
        cannot = ~near[:, first] | (near & possible & (least > high)).any(1)
        overtaken = (possible & ~near & (low < self.best[:, first, None] - self.best)).any(1)
        gaps = self._gaps(first, least, high).masked_fill(near[:, None, :], math.inf)
        margin = gaps.amin(2).masked_fill(~near, -math.inf).amax(1)
        return margin.masked_fill(overtaken, -math.inf).masked_fill(cannot, math.inf)

    def _gaps(self, first: int, least: Tensor, most: Tensor) -> Tensor:
        """Return by how much each logit exceeds each other at least, [cases, 4, 4], costs in their intervals."""
        ahead = (self.head[:, None] - self.head).flatten(0, 1).T  # [latent actions, 4 * 4]
        own = self.best[:, first, None]
        total = _cut(-self.cost[:, self.staying]) @ ahead[self.staying]
        for move, actions in enumerate(self.moves):
            if not actions:
                continue
            reached = (self.farther[:, move] >= 0)[:, None]
            lead = torch.where(reached, own - self.cost[:, actions], -math.inf)
            low, high = least[:, move, None].nan_to_num(0, 0, 0), most[:, move, None]
            corners = (lead - LEAST_LOG_ADVANTAGE).nan_to_num(0, 0, 0).clamp(low, torch.maximum(low, high))
            found = [_cut(lead - at) @ ahead[actions] for at in (low, high, *corners.split(1, 1))]
            total = total + torch.stack(found).amin(0)
        return total.unflatten(1, (4, 4))


def _cut(advantage: Tensor) -> Tensor:
    """Return what the policy reads of log advantages."""
    return advantage.clamp(LEAST_LOG_ADVANTAGE, 0.0).nan_to_num(LEAST_LOG_ADVANTAGE)


def _longest(margins: _Margins) -> float:
    """Return the distance up to which every decision has a margin; math.inf where that has no end."""

    def holds(distance: int) -> bool:
        return margins.at(distance)[0] >= margins.least

    if not all(holds(near) for near in (1, 2, 3)):
        return next(near for near in (0, 1, 2) if not holds(near + 1))
    if margins.dearest == margins.cheapest:
        return math.inf
    low, high = 3, 4
    while high < _FARTHEST and holds(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _rounding(core: Reachability, patterns: list[Pattern]) -> Tensor:
    """Return how far a survival in float32, summed in any order, is from the exact one at most, [patterns, actions]."""
    unit, order = torch.finfo(torch.float32).eps / 2, core.symmetry.order
    x = torch.tensor([p.free for p in patterns], dtype=torch.double)
    filters, bias = (
        core.symmetry.images(core.hidden_weight).double().flatten(1),
        core.hidden_bias.double().repeat(order),
    )
    mixing = core.symmetry.mixed(core.survival_weight).double().abs()
    # The error of a sum of n terms is at most n units of the sum of their sizes; at most 10 terms here are not 0.
    of_hidden = 10 * unit * (x @ filters.abs().T + bias.abs())
    terms = (x @ filters.T + bias).relu() @ mixing.T + core.survival_bias.double().abs().repeat(order)
    of_logits = of_hidden @ mixing.T + (mixing.shape[1] + 1) * unit * terms
    return core.steepness * (of_logits * (1 + 2 * MARGIN) / 4 + 8 * unit)
