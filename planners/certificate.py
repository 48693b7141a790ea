"""Proof that every plan of trained reachability weights arrives, by a shortest way, on every map: by enumeration.

The encoder sees the 3x3 cells around a cell, each free or not: all that it can ever say is what it says of 512
patterns. Where each latent action has one destination (sharp taps), a plan is a way of least cost, and what one step of
it costs is one of those numbers, -log(gamma m).

A task has four moves or eight, to the neighbours; what lies beside a diagonal does not block it. Let the distance of a
cell be the moves of a way of fewest moves to the goal.

Let no value pass through walls: no latent action leads into a wall with m > 0, or none out of one. Let every step into
a free cell cost at least c, and every move between free cells at most C <= log 4 (so that no value of a way of fewest
moves comes near the floor). Write D = -log v for the cost of arriving.

Theorem 1. At n moves from the goal let the head name a nearer neighbour, in each pattern with each set of distances
that its free neighbours can have, whatever their costs of arriving, as long as D(k) - D(i) lies in [-e, e] for nearer
ones i and k, and in [l c - e, l C + e] for a nearer one i and one k that is l moves farther, e = (n - 1) (C - c). Let
that be so for n = 1..N. Then every plan from every cell at most N moves from the goal arrives, by a way of fewest
moves, on every map of free cells and obstacles with one goal, of any size.

Proof. A way of n moves costs at least n c, one of fewest moves at most n C, and nothing else has a way. So n c <= D <=
n C at distance n. The nearer neighbours of a cell at distance n are at n - 1, the others at n - 1 + l: subtract. Moves
lead back as well, so l <= 2, and neighbours that one move parts differ by one at most. On a flat grid with four moves
distances have the parity of row + column, so l = 2; on a torus with odd sides, and with eight moves, l = 1 occurs too.
What a cell sees is its pattern, how far its neighbours are, and costs in these intervals: all of that is enumerated
(the difference of two logits is a sum, over neighbours, of functions of one cost each, linear between corners: the
least is at an end of the interval or a corner), and each step of the plan is one nearer.

Theorem 2. If moves cost the agent a_1 <= a <= a_2, such a way costs at most a_2 / a_1 times the cheapest: exactly the
least where all moves cost the same.

Proof. A cheapest way has n moves or more and costs n a_1 at least, one of n moves n a_2 at most.

Theorem 3. Let each move between free cells survive with m = 1 or not at all, with -log gamma <= log 4, and for each
that does not let there be two that do and lead to the same cell, in each pattern that the cell between them can then
have. Let the head name a nearest neighbour along a move that survives, in each pattern with each set of such, however
much farther the others are. Then every plan arrives, with at most twice the fewest moves, whatever the length.

Proof. Two moves for each that does not survive make of a way of n moves one of 2 n at most by moves that do. D counts
those, and each step of the plan leaves one fewer.

Where diagonals cost sqrt(2), Theorem 2 gives a factor of sqrt(2), and exactly cheapest ways can't be proven so: the
costs of two ways then differ by numbers as near to 0 as one likes, and no margin of a head is left.

Where all moves survive with m = 1, c = C = -log gamma and e = 0: the length has no limit. Else e grows by log(max m /
min m) a step, and the proof goes as far as the n at which the first decision could turn. Beyond, nothing is said: the
limit is that of the worst case, every step of one way at C and every step of another at c.

What is 0 or 1 must be so by a margin that no order of summation in float32 takes away (`SLACK`); other survivals are
known as well as float32 sums are (`_rounding`), and a logit must be larger by `_LEAST_MARGIN`, by what that makes of
it, and by what the sums of the head in float32 may lose. The values themselves are float64 (`best_first`), exact to a
part in 10^15 of the longest way.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from itertools import combinations, product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datagen.problem import FOUR, Moves
from planners.compiled.solvers import BestFirst
from planners.cores.reachability import LEAST_LOG_ADVANTAGE, MARGIN, SLACK, Reachability
from planners.mappers import Identity

if TYPE_CHECKING:
    from planners.planner import Planner

_CENTRE = 4
"""Of the nine cells around one, row by row, that one itself."""
_LEAST_MARGIN = 0.01
"""By which a logit must exceed another to count as larger."""
_DEAREST = math.log(4)
"""What a needed step may cost: the floor is -log(4) (cells + 1), and around the cells of a way lie others."""
_FARTHEST = 2**40
"""Steps beyond which nobody asks."""
_UNIT = torch.finfo(torch.float32).eps / 2


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


@dataclass(frozen=True)
class Certificate:
    """What is proven of every plan of these weights, on every map of cells with one goal, of any size.

    Attributes:
        shortest: Moves from the goal up to which each plan is proven to arrive, by a way of fewest moves: math.inf for
            all lengths, 0 where nothing is proven.
        patterns: Local patterns that were gone through.
        decisions: Decisions of the head that were: patterns times moves that each neighbour may be farther.
        survival: Least survival of a move that a shortest way may need.
        margin: Least margin, in logits, by which the head prefers a nearer neighbour within that length.
        arrives: The same for plans that are proven to arrive, by a shortest way or not.
        suboptimality: By which factor a way that is proven to arrive may cost more than a cheapest one; 1 where it is
            one of fewest moves and all cost the same.
        worst: The pattern that stands in the way of more; None where nothing does.
        reason: What about it does.
    """

    shortest: float
    patterns: int
    decisions: int
    survival: float
    margin: float
    arrives: float = 0
    suboptimality: float = 1.0
    worst: Pattern | None = None
    reason: str = ""


@torch.no_grad()
def certify(planner: Planner, moves: Moves = FOUR) -> Certificate:
    """Return what is proven of a planner's plans, as `plan_walled` makes them, solved best first.

    On the torus (`wrap`) that is of maps with at least three rows and columns.

    Args:
        planner: The planner.
        moves: What its actions do; whether maps wrap is the planner's.

    Raises:
        ValueError: If nothing can be enumerated for the planner, or it has other moves.
    """
    if not hasattr(planner, "core"):
        hint = "; load_planner's has it as its attribute `planner`" if hasattr(planner, "planner") else ""
        raise ValueError(f"certify: expected a Planner, got {type(planner).__name__}{hint}")
    core = planner.core
    if not isinstance(core, Reachability) or core.in_channels != 2:
        raise ValueError(
            "certify: expected a planner with core 'reachability' that sees a map of zeros and ones and nothing else; "
            "nothing can be enumerated for another one"
        )
    if not isinstance(planner.mapper, Identity):
        raise ValueError(
            "certify: expected a planner that is given its map; this one's mapper draws it, in probabilities and not "
            "in zeros and ones, so nothing can be enumerated"
        )
    if not isinstance(planner.solver, BestFirst):
        raise ValueError(
            "certify: expected a planner that is solved best first, whatever the length; this one takes "
            f"{planner.solver.max_steps} steps at most by {type(planner.solver).__name__}, and ends before that where "
            "its residual is small: of its plans nothing is proven"
        )
    reached = sorted(_cell(*offset) for offset in moves.offsets)
    if moves.links or reached != sorted(core.neighbours[1:]):
        raise ValueError(
            "certify: expected the four moves north, west, south and east, or all eight to the cells around, each "
            f"once; got {', '.join(moves.names)}"
        )
    return _Proof(core, moves).certificate()


def pattern_of(row: int) -> Pattern:
    """Return the pattern of a row of `Reachability.patterns_survival`."""
    return Pattern(tuple(bool(row >> cell & 1) for cell in range(9)))


def _cell(row: int, column: int) -> int:
    """Return which of the nine cells around one lies so many rows and columns away, -1 for none."""
    return 3 * (1 + row) + 1 + column if max(abs(row), abs(column)) < 2 else -1


def _cases(moves: Moves, levels: tuple[int, ...], related: bool = True) -> tuple[Tensor, Tensor]:
    """Return all that a cell may meet.

    Args:
        moves: The moves.
        levels: By how many moves a neighbour can be farther than the nearest, 0 among them; -1 for an obstacle.
        related: Whether neighbours that one move parts differ by one at most.

    Returns:
        The numbers of patterns, [cases], and the level of each neighbour, [cases, moves].
    """
    cells = [_cell(*offset) for offset in moves.offsets]
    farther = torch.cartesian_prod(*[torch.tensor(levels)] * len(cells))
    possible = (farther == 0).any(1)
    for i, k in combinations(range(len(cells)), 2):
        (row, column), (other_row, other_column) = moves.offsets[i], moves.offsets[k]
        if related and _cell(row - other_row, column - other_column) in cells:
            one, other = farther[:, i], farther[:, k]
            possible &= (one < 0) | (other < 0) | ((one - other).abs() <= 1)
    farther = farther[possible]
    number = (farther >= 0).long() @ torch.tensor([1 << cell for cell in cells]) + (1 << _CENTRE)
    for cell in range(9):  # those that no move reaches are free or not
        if cell not in (*cells, _CENTRE):
            number, farther = torch.cat([number, number + (1 << cell)]), farther.repeat(2, 1)
    return number, farther


class _Proof:
    """The survival of each latent action in each pattern, and what follows from it."""

    def __init__(self, core: Reachability, moves: Moves) -> None:
        self.core, self.task = core, moves
        uncut = deepcopy(core).double().patterns_survival()
        self.free = torch.arange(len(uncut))[:, None] >> torch.arange(9) & 1 > 0
        # The margin is half of that by which training decides: the rest is left for float32.
        self.shut, self.survival = uncut <= -SLACK / 2, uncut.clamp(0, 1)
        self.survival = torch.where(uncut >= 1 + SLACK / 2, 1.0, self.survival.clamp(max=1 - SLACK / 2))
        known = (self.survival == 1) | (self.survival == 0)
        self.doubt = _rounding(core, self.free.double()).masked_fill(known, 0.0)
        self.taps = core.taps().double()
        leads = [core.neighbours[n] for n in self.taps.argmax(1).tolist()]
        self.cells = [_cell(*offset) for offset in moves.offsets]
        self.moves = [[a for a, cell in enumerate(leads) if cell == entered] for entered in self.cells]
        self.staying = [a for a, cell in enumerate(leads) if cell == _CENTRE]
        self.between = self.free[:, self.cells] & self.free[:, [_CENTRE]]

    def certificate(self) -> Certificate:
        """Return how far the proof goes."""
        parity = len(self.cells) == 4 and not self.core.wrap
        cases = _cases(self.task, (-1, 0, 2) if parity else (-1, 0, 1, 2))
        low, high = (self._best(sign).masked_fill(~self.between, -sign) for sign in (-1, 1))
        least, most, worst = float(low.min()), float(high.max()), int(low.amin(1).argmin())
        enumerated = (len(self.free), len(cases[0]), least)
        gamma, dearer = self.core.discount, max(self.task.costs) / min(self.task.costs)
        if (leak := self._leak()) is not None:
            pattern = None if leak[0] is None else pattern_of(leak[0])
            return Certificate(0, *enumerated, 0.0, 0, dearer, pattern, leak[1])
        if gamma < math.exp(-_DEAREST):
            reason = f"at discount {gamma:.4g} a long way may be worth less than what has no way counts for"
            return Certificate(0, *enumerated, 0.0, 0, dearer, None, reason)
        if gamma * least < math.exp(-_DEAREST):
            margin = self._roundabout((low > 0) & self.between)
            arrives, factor = (0, 1) if margin is None else (math.inf, 2)
            reason = f"a move that a shortest way may need survives with {least:.4g}, not 1"
            return Certificate(0, *enumerated, margin or 0.0, arrives, factor * dearer, pattern_of(worst), reason)
        margins = _Margins(self, cases, -math.log(gamma * most), -math.log(gamma * least))
        length = _longest(margins)
        if length is None:
            return Certificate(math.inf, *enumerated, margins.at(1)[0], math.inf, dearer)
        margin = margins.at(max(1, length))[0]
        doubtful = pattern_of(int(cases[0][margins.at(length + 1)[1]]))
        reason = "the policy may leave the nearer neighbours"
        if least < most:
            reason += f" {length + 1:,} steps away: needed moves survive with {least:.4g} to {most:.4g}, not 1"
        return Certificate(length, *enumerated, margin, length, dearer, doubtful, reason)

    def _roundabout(self, survives: Tensor) -> float | None:
        """Return the least margin of plans that go round moves which are shut (Theorem 3), None where they may not."""
        decided = (self.survival == 1) | self.shut
        shut = self.between & ~survives
        if not bool(decided[self.free[:, _CENTRE]].all()) or bool((shut & ~self._detours(survives)).any()):
            return None
        number, farther = _cases(self.task, (-1, 0, 1), related=False)
        led = ((farther != 0) | survives[number]).all(1)
        cost = -math.log(self.core.discount)
        margins = _Margins(self, (number[led], farther[led]), cost, cost, bounded=False)
        return margins.at(1)[0] if _longest(margins) is None else None

    def _detours(self, survives: Tensor) -> Tensor:
        """Return along which moves two others surely lead to the same cell, bool [patterns, moves]."""
        found, bits = torch.zeros_like(survives), self.free.long()
        offsets = [tuple(offset) for offset in self.task.offsets]
        for (j, (row, column)), (k, (to_row, to_column)) in product(enumerate(offsets), repeat=2):
            if (second := (to_row - row, to_column - column)) not in offsets:
                continue
            # Cells that both the one here and the one between see: what they hold tells which patterns go together.
            shared = [(_cell(r + row, c + column), _cell(r, c)) for r, c in product((-1, 0, 1), repeat=2)]
            shared = [pair for pair in shared if pair[0] >= 0]
            weights = torch.tensor([1 << n for n in range(len(shared))])
            here, there = (bits[:, list(cells)] @ weights for cells in zip(*shared, strict=True))
            fails = torch.zeros(1 << len(shared), dtype=torch.long)
            fails.index_add_(0, there, (~survives[:, offsets.index(second)]).long())
            found[:, k] |= survives[:, j] & (fails[here] == 0)
        return found

    def _best(self, sign: int) -> Tensor:
        """Return the survival of the best latent action along each move, at least (sign -1) or at most (1)."""
        found = (self.survival + sign * self.doubt).clamp(max=1.0)
        none = torch.zeros(len(found), 1, dtype=torch.double)
        return torch.cat([found[:, actions].amax(1, keepdim=True) if actions else none for actions in self.moves], 1)

    def _leak(self) -> tuple[int | None, str] | None:
        """Return what lets value pass through walls, or mixes where a way leads; None where nothing does."""
        if not bool((self.taps.amax(1) == 1).all()):
            return None, "a latent action leads to several neighbours: the training was not finished"
        agent = self.free[:, _CENTRE]
        out = ~agent & ~self.shut.all(1)
        into = torch.zeros_like(agent)
        for cell, actions in zip(self.cells, self.moves, strict=True):
            into |= agent & ~self.free[:, cell] & ~self.shut[:, actions].all(1)
        if not (out.any() and into.any()):
            return None
        undecided = "" if self.core.options.decided else " (trained with decided: false, which leaves moves open)"
        return int(into.int().argmax()), f"a move into a wall may survive, and one out of a wall{undecided}"


class _Margins:
    """By how much the head prefers a nearer neighbour, in each case, as costs of arriving spread with the distance."""

    def __init__(
        self, proof: _Proof, cases: tuple[Tensor, Tensor], cheapest: float, dearest: float, bounded: bool = True
    ) -> None:
        core, (number, self.farther), self.bounded = proof.core, cases, bounded
        self.cheapest, self.dearest, self.moves, self.staying = cheapest, dearest, proof.moves, proof.staying
        self.head = (core.options.advantage_scale * core.symmetry.acting(core.head_weight)).double()
        in_costs = float((proof.doubt / proof.survival.clamp(min=math.exp(-_DEAREST)))[proof.free[:, _CENTRE]].max())
        summed = (self.head.shape[1] + 2) * _UNIT * -LEAST_LOG_ADVANTAGE
        self.least = _LEAST_MARGIN + (4 * in_costs + 2 * summed) * float(self.head.abs().sum(1).max())
        self.cost = -(core.discount * proof.survival[number]).log()
        none = torch.full((len(self.cost), 1), math.inf, dtype=torch.double)
        self.best = torch.cat([self.cost[:, m].amin(1, keepdim=True) if m else none for m in self.moves], 1)
        self.best[self.farther < 0] = math.inf
        self._found: dict[int, tuple[float, int]] = {}

    def at(self, distance: int) -> tuple[float, int]:
        """Return the least margin in logits so many moves from the goal, and its case."""
        if distance not in self._found:
            self._found[distance] = self._least(distance)
        return self._found[distance]

    def _least(self, distance: int) -> tuple[float, int]:
        spread = (distance - 1) * (self.dearest - self.cheapest) if self.dearest > self.cheapest else 0.0
        found = torch.full((len(self.farther),), math.inf, dtype=torch.double)
        for first in range(len(self.moves)):
            rows = (self.farther[:, first] == 0).nonzero().squeeze(1)
            found[rows] = torch.minimum(found[rows], self._of_best(first, rows, spread))
        least, case = found.min(0)
        return float(least), int(case)

    def _of_best(self, first: int, rows: Tensor, spread: float) -> Tensor:
        """Return the margin of cases where the nearer neighbour `first` has the best way; inf where it can't."""
        # Of each neighbour k, D(k) - D(first), such that its best way is no better than that through `first`.
        farther, best = self.farther[rows], self.best[rows]
        low, high = farther * self.cheapest - spread, farther * self.dearest + spread
        if not self.bounded:
            high[farther > 0] = math.inf
        ahead = best[:, first, None] - best
        least = torch.maximum(low, ahead)
        least[:, first] = high[:, first] = 0.0
        near, possible = farther == 0, (farther >= 0) & best.isfinite()
        cannot = (near & possible & (least > high)).any(1)
        overtaken = (possible & ~near & (low < ahead)).any(1)
        gaps = self._gaps(first, rows, least, high).masked_fill(near[:, None, :], math.inf)
        margin = gaps.amin(2).masked_fill(~near, -math.inf).amax(1)
        return margin.masked_fill(overtaken, -math.inf).masked_fill(cannot, math.inf)

    def _gaps(self, first: int, rows: Tensor, least: Tensor, most: Tensor) -> Tensor:
        """Return by how much each logit exceeds each other at least, [rows, moves, moves], costs in their intervals."""
        ahead = (self.head[:, None] - self.head).flatten(0, 1).T  # [latent actions, moves * moves]
        cost, own = self.cost[rows], self.best[rows, first, None]
        total = _cut(-cost[:, self.staying]) @ ahead[self.staying]
        for move, actions in enumerate(self.moves):
            if not actions:
                continue
            reached = (self.farther[rows, move] >= 0)[:, None]
            lead = torch.where(reached, own - cost[:, actions], -math.inf)
            low, high = least[:, move, None].nan_to_num(0, 0, 0), most[:, move, None]
            corners = (lead - LEAST_LOG_ADVANTAGE).nan_to_num(0, 0, 0).clamp(low, torch.maximum(low, high))
            found = [_cut(lead - at) @ ahead[actions] for at in (low, high, *corners.split(1, 1))]
            total = total + torch.stack(found).amin(0)
        return total.unflatten(1, (len(self.head), len(self.head)))


def _cut(advantage: Tensor) -> Tensor:
    """Return what the policy reads of log advantages."""
    return advantage.clamp(LEAST_LOG_ADVANTAGE, 0.0).nan_to_num(LEAST_LOG_ADVANTAGE)


def _longest(margins: _Margins) -> int | None:
    """Return the distance up to which every decision has a margin; None where that has no end."""

    def holds(distance: int) -> bool:
        return margins.at(distance)[0] >= margins.least

    if margins.dearest == margins.cheapest:
        return None if holds(1) else 0
    if not all(holds(near) for near in (1, 2, 3)):
        return next(near for near in (0, 1, 2) if not holds(near + 1))
    low, high = 3, 4
    while high < _FARTHEST and holds(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _rounding(core: Reachability, patterns: Tensor) -> Tensor:
    """Return how far a survival in float32, summed in any order, is from the exact one at most, [patterns, actions]."""
    order = core.symmetry.order
    filters, bias = (
        core.symmetry.images(core.hidden_weight).double().flatten(1),
        core.hidden_bias.double().repeat(order),
    )
    mixing = core.symmetry.mixed(core.survival_weight).double().abs()
    # The error of a sum of n terms is at most n units of the sum of their sizes; at most 10 terms here are not 0.
    of_hidden = 10 * _UNIT * (patterns @ filters.abs().T + bias.abs())
    terms = (patterns @ filters.T + bias).relu() @ mixing.T + core.survival_bias.double().abs().repeat(order)
    of_logits = of_hidden @ mixing.T + (mixing.shape[1] + 1) * _UNIT * terms
    return core.steepness * (of_logits * (1 + 2 * MARGIN) / 4 + 8 * _UNIT)
