"""How far the plans of trained reachability weights are proven to arrive, and by a shortest way: by enumeration.

The encoder sees the 3x3 cells around a cell, each free or not, and the goal where it is among them. So all that it can
ever say is one of 512 patterns times the places of the goal. Where each latent action has one destination (sharp taps),
a plan is a way of least cost, and what one step of it costs is one of those numbers.

Proof. Let every step that may be part of a shortest way cost between c and C (-log of gamma times the survival of the
best latent action that makes the move), and no open move less than c; let no value leak through walls (no move into a
wall survives, or no move out of one does). A way of n steps costs at most n C. On a grid two neighbours differ by one in
their distance, so what is not a shortest way has n + 2 steps or more (n + 1 on a torus with an odd side) and costs at
least (n + 2) c. While n C < (n + 2) c, the neighbours on shortest ways are therefore those of least cost. What the head
makes of such a cell is enumerated too: each pattern with each set of neighbours that can be the nearer ones. If it
always names one of them, each step of the plan is one step nearer, from wherever it starts: it arrives, by a shortest way.
With c = C there is no limit to n.
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
from planners.cores.reachability import Reachability

if TYPE_CHECKING:
    from planners.planner import Planner

_CENTRE = 4
_MOVES = tuple(3 * (1 + dy) + 1 + dx for dy, dx in FOUR.offsets)
"""Where each move leads among the nine cells around one, row by row."""


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
    """What is proven of every plan of these weights, on every map of free cells and obstacles, of any size.

    Attributes:
        shortest: Steps up to which each plan arrives, by a shortest way, wherever it starts; math.inf for any length, 0
            for nothing.
        patterns: Local patterns that were gone through.
        decisions: Decisions of the head that were: patterns times sets of nearer neighbours.
        survival: Least and greatest survival of a move that a shortest way may need.
        worst: The pattern that limits the proof, or that stands in its way; None where nothing does.
        reason: What about it does.
    """

    shortest: float
    patterns: int
    decisions: int
    survival: tuple[float, float]
    worst: Pattern | None = None
    reason: str = ""


def patterns() -> list[Pattern]:
    """Return every pattern, with the goal nowhere in it or on any of its free cells."""
    every = []
    for number in range(512):
        free = tuple(bool(number >> cell & 1) for cell in range(9))
        every += [Pattern(free, goal) for goal in (None, *(cell for cell in range(9) if free[cell]))]
    return every


@torch.no_grad()
def certify(planner: Planner, *, bipartite: bool = True) -> Certificate:
    """Return what is proven of a planner's plans.

    Args:
        planner: A planner with the core `reachability`, the four moves and no mapper.
        bipartite: False for a torus with an odd number of rows or columns.

    Raises:
        ValueError: If the planner is another one.
    """
    core = planner.core
    if not isinstance(core, Reachability) or len(core.neighbours) != 5 or planner.channels:
        raise ValueError("certify: expected a planner with core 'reachability', the four moves and a map of 0 and 1")
    every = patterns()
    proof = _Proof(core, every)
    return proof.certificate(2 if bipartite else 1)


class _Proof:
    """The survival of each latent action in each pattern, and what follows from it."""

    def __init__(self, core: Reachability, every: list[Pattern]) -> None:
        self.core, self.every = core, every
        free = torch.tensor([pattern.free for pattern in every])
        goal = torch.tensor([[cell == pattern.goal for cell in range(9)] for pattern in every])
        x = torch.stack([free, goal], 1).unflatten(2, (3, 3)).to(core.hidden_weight)
        wrap, core.wrap = core.wrap, False
        self.survival = core.survival(x)[:, :, 1, 1].double()
        core.wrap = wrap
        self.taps = core.taps().double()
        leads = self.taps.argmax(1)
        self.moves = [[a for a in range(len(leads)) if core.neighbours[leads[a]] == cell] for cell in _MOVES]
        self.best = torch.stack([self.survival[:, rows].amax(1) if rows else free.new_zeros(len(free)).double() for rows in self.moves], 1)
        self.wall = ~free[:, _CENTRE]
        self.agent = free[:, _CENTRE] & ~goal[:, _CENTRE]
        self.open = free[:, list(_MOVES)] & self.agent[:, None]

    def certificate(self, detour: int) -> Certificate:
        blocked = self._blocked()
        gamma = self.core.discount
        needed = torch.zeros_like(self.open)
        decisions = 0
        for number in self.agent.nonzero()[:, 0].tolist():
            for nearer in self.every[number].nearer():
                needed[number, list(nearer)] = True
                decisions += 1
        least, greatest = float(self.best[needed].min()), float(self.best[needed].max())
        facts = (len(self.every), decisions, (least, greatest))
        if blocked is not None:
            return Certificate(0, *facts, *blocked)
        low = (torch.where(needed, self.best, 2.0).amin(1)).argmin()
        if least <= 0:
            return Certificate(0, *facts, self.every[low], "a move that a shortest way may need never survives")
        top = float(self.best[self.open].max())
        dear, cheap = -math.log(gamma * least), -math.log(gamma * top)
        if dear > cheap:
            limit = math.ceil(detour * cheap / (dear - cheap)) - 1
            if limit < 1:
                return Certificate(0, *facts, self.every[low], f"a move survives with {least:.4g}, another with {top:.4g}")
        else:
            limit = math.inf
        wrong = self._wrong_decision(dear, cheap, limit, detour)
        if wrong is not None:
            return Certificate(0, *facts, wrong, "the policy may leave the nearer neighbours")
        reason = "" if limit == math.inf else f"a move survives with {least:.4g}, another with {top:.4g}"
        return Certificate(limit, *facts, None if limit == math.inf else self.every[low], reason)

    def _blocked(self) -> tuple[Pattern | None, str] | None:
        """Return what lets value pass where no agent may, or mixes where a way leads; None where nothing does."""
        if not bool((self.taps.amax(1) == 1).all()):
            return None, "a latent action leads to several neighbours: the training was not finished"
        out = self.survival[self.wall].amax(1)
        free = torch.tensor([pattern.free for pattern in self.every])
        into = torch.where(~free[:, list(_MOVES)] & self.agent[:, None], self.best, 0.0).amax(1)
        if float(out.max()) > 0 and float(into.max()) > 0:
            return self.every[int(into.argmax())], "a move into a wall may survive, and one out of a wall"
        return None

    def _wrong_decision(self, dear: float, cheap: float, limit: float, detour: int) -> Pattern | None:
        """Return a pattern in which the head may name a neighbour that is not nearer."""
        core = self.core
        head = core.symmetry.acting(core.head_weight).double()
        leads = self.taps.argmax(1)
        spread = 0.0 if limit == math.inf else limit * (dear - cheap)
        numbers, nears, sets = [], [], []
        for number in self.agent.nonzero()[:, 0].tolist():
            ways = [move for move in range(4) if self.open[number, move]]
            for nearer in self.every[number].nearer():
                value = [-math.inf] * 4
                for move in ways:
                    value[move] = 0.0 if move in nearer else -detour * cheap + spread
                numbers.append(number)
                nears.append(value)
                sets.append([move in nearer for move in range(4)])
        near = torch.tensor(nears, dtype=torch.double)
        inside = torch.tensor(sets)
        by_action = torch.full((len(near), len(leads)), -math.inf, dtype=torch.double)
        for move, rows in enumerate(self.moves):
            by_action[:, rows] = near[:, [move]]
        q = self.survival[numbers].log() + by_action
        advantage = (q - q.amax(1, keepdim=True)).clamp(min=-5.0)
        chosen = (advantage @ head.T).argmax(1)
        fails = ~inside.gather(1, chosen[:, None])[:, 0]
        return self.every[numbers[int(fails.nonzero()[0, 0])]] if bool(fails.any()) else None
