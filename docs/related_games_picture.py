"""The picture of games: `python docs/related_games_picture.py` solves some and draws it again in a few seconds.

An equilibrium on the oval, and what the game brings to who is ahead, over where on the track it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from games.equilibrium import Game
from games.scene import SCENES
from games.starts import played

PICTURE = Path(__file__).parent / "images" / "related-games.png"
RACE, STEPS, SECONDS = SCENES["race"], 16, 0.25
COLOURS = ("tab:blue", "tab:orange")


def games(along: list[float], across: np.ndarray, top: list[float], way: float) -> Game:
    """Return games whose first car is behind at n = 0.1, the other in front at each of some places across."""
    start = torch.zeros(len(across), 2, 2, 2, dtype=torch.float64)
    start[:, :, 0, 0], start[:, :, 0, 1] = torch.tensor(along), 0.9 * torch.tensor(top)
    start[:, 0, 1, 0], start[:, 1, 1, 0] = 0.1, torch.tensor(across)
    tops = torch.tensor(top, dtype=torch.float64).expand(len(across), 2)
    return Game(RACE, start, tops, STEPS, SECONDS, way=way)


def plane(s: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return places on the oval as those on the plane."""
    fine = np.linspace(0.0, 1.5 * RACE.lap, 6001)
    heading = np.cumsum(RACE.curvature(torch.tensor(fine))[0].numpy()) * fine[1]
    turned = np.interp(s, fine, heading)
    centre = (np.interp(s, fine, np.cumsum(part(heading)) * fine[1]) for part in (np.cos, np.sin))
    x, y = centre
    return x - n * np.sin(turned), y + n * np.cos(turned)


def draw(path: Path) -> None:
    """Write the picture."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    oval, leads = figure.subplots(1, 2)
    game = games([4.0, 6.0], np.array([-0.4]), [4.5, 3.5], 3.0)
    cars = game.driven(played(game).controls)[0].numpy()
    lap = np.linspace(0.0, RACE.lap, 400)
    for side in (-1.0, 1.0):
        oval.plot(*plane(lap, side * (RACE.room + 0.5 * RACE.width)), color="grey", linewidth=1)
    for car, colour, label in zip(cars, COLOURS, ("faster", "slower"), strict=True):
        oval.plot(*plane(car[:, 0], car[:, 3]), "o-", color=colour, markersize=3, linewidth=1, label=label)
    for one, other in zip(*cars[:, ::3], strict=True):
        x, y = plane(np.array([one[0], other[0]]), np.array([one[3], other[3]]))
        oval.plot(x, y, color="lightgrey", linewidth=0.8, zorder=0)
    (left, right), low = oval.get_xlim(), oval.get_ylim()[0]
    oval.plot([left, left + 2.0], [low, low], color="black", linewidth=2)
    oval.text(left + 2.3, low, "2 m", va="center", fontsize="small")
    middle = sum(oval.get_ylim()) / 2
    oval.annotate("", (right, middle + 1.5), (right, middle - 1.5), arrowprops={"arrowstyle": "->"})
    oval.set(title="an equilibrium, four seconds", aspect="equal")
    oval.axis("off")
    oval.legend(loc="center")
    across = np.linspace(-0.45, 0.45, 19)
    for way, label in ((3.0, "right of way ahead"), (0.0, "both give way alike")):
        game = games([4.0, 5.6], across, [4.5, 3.5], way)
        found = played(game)
        ends = game.driven(found.controls)[:, :, -1, 0]
        lead = torch.where(found.converged, ends[:, 1] - ends[:, 0], torch.nan)
        leads.plot(across, lead.numpy(), "o-", markersize=3, label=label)
    leads.axvline(0.1, ymax=0.77, color="grey", linestyle=":", label="the car behind")
    leads.set(
        title="what the game brings",
        xlabel="place across of the car ahead, m (left is +)",
        ylabel="its lead at the end, m",
    )
    low, high = leads.get_ylim()
    leads.set_ylim(low, high + 0.3 * (high - low))
    leads.legend(loc="upper center", ncols=2, fontsize="small")
    figure.savefig(path, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE)
