"""Published planners on Maze-Unique: exact paths on its test split, after its 1,000 training mazes."""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = (
    "Maze-Unique 30x30 (EqR: Equilibrium Reasoners, Huang, Geng and Kolter, 2026; FRM: Flow Reasoning Models, 2026; "
    "FPRM: Fixed-Point Reasoning Models, Movahedi et al., 2026)"
)


@dataclass(frozen=True)
class Published:
    """A planner as others published it.

    Attributes:
        name: As it is called there.
        exact: Share of mazes whose whole path is right, percent.
        deviation: Over seeds, percent; None where none was published.
        parameters: What it learns; None where that was not published with it.
        operations: Of one plan; None where that was not published: nobody did.
    """

    name: str
    exact: float
    deviation: float | None = None
    parameters: float | None = None
    operations: float | None = None


MAZE_UNIQUE = (
    Published("TRM", 44.9),
    Published("EqR", 93.0, parameters=2.6e6),
    Published("FRM", 98.0, deviation=1.8, parameters=8e6),
    Published("FPRM", 100.0, parameters=7e6),
    Published("64 feed-forward layers", 0.0),
)
