"""Random starts of two cars, their equilibrium, what it brings to each, and whether either could gain by deviating."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datagen.plugins import PluginError
from games import GameOptions
from games.equilibrium import Found, Game, differentiable, solve
from games.scene import SCENES, Scene

_ROUNDS, _AWAY = 20, 1000.0


def sample(options: GameOptions, generator: np.random.Generator) -> dict[str, Any]:
    """Return games from random starts, all solved at once, each with an equilibrium that was found."""
    scene, kept = SCENES[options.scene], []
    drawn, missing = 0, options.games
    for _ in range(_ROUNDS):
        start, top = begun(scene, missing, generator)
        drawn += missing
        kept.append(made := rows(Game(scene, start, top, options.steps, options.seconds, way=options.way)))
        missing -= len(made["top"])
        if not missing:
            found = {name: np.concatenate([part[name] for part in kept]) for name in made}
            return {**found, "drawn": drawn}
    raise PluginError(f"games: {options.games - missing} of {drawn} starts have an equilibrium that was found")


def begun(scene: Scene, count: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return places and speeds [count, 2, 2, 2] of cars that are near each other and apart, and their top speeds."""
    starts: list[Tensor] = []
    tops: list[Tensor] = []
    while len(starts) < count:
        top = generator.uniform(3.5, 4.5, 2)
        if scene.crosses:
            along = generator.uniform(-9.0, -3.0, 2)
        else:
            along = generator.uniform(0.0, scene.lap) + np.array([0.0, generator.uniform(-3.0, 3.0)])
        speed, across = generator.uniform(0.6, 0.9, 2) * top, generator.uniform(-0.9, 0.9, 2) * scene.room
        start = torch.tensor(np.array([[along, speed], [across, np.zeros(2)]]).transpose(2, 0, 1))
        if float(scene.apart(*at_rest(start)).norm()) > 1.1:
            starts.append(start)
            tops.append(torch.tensor(top))
    return torch.stack(starts), torch.stack(tops)


def rows(game: Game) -> dict[str, NDArray[Any]]:
    """Return what is kept of games [B, ...], those of them that have been solved."""
    found = played(game)
    game, found = game.take(found.converged), found.some(found.converged)
    single, answers, gain = answered(game, found)
    solved = answers.converged.unflatten(0, (4, -1)).all(0)
    game, found, gain = game.take(solved), found.some(solved), gain[solved]
    single, answers = single.take(solved.repeat(4)), answers.some(solved.repeat(4))
    progress, slope = outcome(game, found)
    alone, own = (part.unflatten(0, (2, 2, -1))[1, :, :, 0].transpose(0, 1) for part in outcome(single, answers))
    slope_alone = torch.zeros(len(alone), 2, 2, 5, dtype=torch.float64)
    slope_alone[:, [0, 1], [0, 1]] = own
    made = {
        "start": game.start,
        "top": game.top,
        "progress": progress,
        "slope": slope,
        "alone": alone,
        "alone_slope": slope_alone.flatten(2),
        "gain": gain,
    }
    return {name: values.numpy() for name, values in made.items()}


def answered(game: Game, found: Found) -> tuple[Game, Found, Tensor]:
    """Return what each car does on its own: its best answer to the other, and what it would do were it alone.

    Returns:
        Games of one car [4 B]: answers of the first cars and of the second ones, and either alone; their solutions,
        each the best of some that begin straight, to either side, and with the equilibrium's controls; and what a car
        gains by its answer [B, 2].
    """
    cars, own = game.driven(found.controls), found.controls.unflatten(1, (2, -1))
    near, far = cars.flip(1).transpose(0, 1).flatten(0, 1), torch.full_like(cars, _AWAY).flatten(0, 1)
    start, top = game.start.transpose(0, 1).flatten(0, 1)[:, None], game.top.T.reshape(-1, 1)
    single = replace(game, start=start.repeat(2, 1, 1, 1), top=top.repeat(2, 1), other=torch.cat((near, far)))
    kept = own.transpose(0, 1).flatten(0, 1).repeat(2, 1)
    answers = played(single, torch.cat((sides(single), kept[None])))
    gain = single.cost(kept, single.driven(kept)) - single.cost(answers.controls, single.driven(answers.controls))
    return single, answers, gain.unflatten(0, (2, 2, -1))[0].T


def at_rest(state: Tensor) -> Tensor:
    """Return places and speeds [..., 2, 2] as cars [..., 6]."""
    return torch.nn.functional.pad(state, (0, 1)).flatten(-2)


def sides(game: Game) -> Tensor:
    """Return guesses [3, B, n]: cars keep to their lines, or go to either side, the first left or right."""
    shift = torch.zeros(3, 1, game.cars, game.steps, 2, dtype=torch.float64)
    pulse, way = 0.25 / game.seconds, torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    for car in range(game.cars):
        shift[:, 0, car, :2, 1] = way[:, None] * pulse * (-1.0) ** car
        shift[:, 0, car, 2:4, 1] = -way[:, None] * pulse * (-1.0) ** car
    return shift.flatten(2).expand(-1, len(game.start), -1)


def played(game: Game, guesses: Tensor | None = None) -> Found:
    """Return the equilibrium of most reward, of those that guesses [G, B, n] lead to.

    What is best for both together by a margin is best for each beside the other: of several equilibria it is the one
    that no one leaves.
    """
    guesses = sides(game) if guesses is None else guesses
    count = len(guesses)
    wide = game.take(torch.arange(len(game.start)).repeat(count))
    found = solve(wide, guesses.flatten(0, 1))
    cost = wide.cost(found.controls, wide.driven(found.controls))
    cost = torch.where(found.converged, cost, torch.inf).unflatten(0, (count, -1))
    best = cost.argmin(0) * cost.shape[1] + torch.arange(cost.shape[1])
    return found.some(best)


def outcome(game: Game, found: Found) -> tuple[Tensor, Tensor]:
    """Return how far cars come [B, cars], and its derivatives in start and top speed, car by car [B, cars, 5 cars]."""
    given = torch.cat((game.start.flatten(2), game.top[..., None]), 2).detach().requires_grad_()
    moved = replace(game, start=given[..., :4].unflatten(2, (2, 2)), top=given[..., 4])
    controls, _ = differentiable(moved, found)
    progress = moved.driven(controls)[:, :, -1, 0] - moved.start[:, :, 0, 0]
    rows = [torch.autograd.grad(progress[:, car].sum(), given, retain_graph=True)[0] for car in range(game.cars)]
    return progress.detach(), torch.stack(rows, 1).flatten(2)
