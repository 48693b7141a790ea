"""A planner's value map as terminal cost of a model predictive controller, for the two-link arm.

As in implicit game-theoretic MPC (IGT-MPC), a learned value tells the controller what lies beyond its short horizon.
The arm does not do quite what it is told: a plan that is followed blindly drifts off, a controller that looks at the
joint angles again at every step does not.
Run: python examples/arm_mpc.py
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datagen.arm import configuration_space
from datagen.manipulation import draw
from datagen.problem import FOUR_WRAP, Problems
from datagen.task import DatasetSpec
from planners import PlannerSpec, Route, RoutePlanner, TrainingSpec
from planners.training import Trainer

FINE = 180
"""Bins per turn, of 2 degrees, of the map in which the arm really moves."""

HORIZON = 2
CONTROLS = np.array([*itertools.product((-1.0, 0.0, 1.0), repeat=2)])
"""Turns of both joints in one step, in bins of the planner's map."""

CANDIDATES = np.array([*itertools.product(CONTROLS, repeat=HORIZON)])
"""Every sequence of controls within the horizon, [81, HORIZON, 2]."""

Angles = NDArray[np.float64]


@dataclass(frozen=True)
class Scene:
    """One problem as the arm meets it; angles are counted in bins of the planner's map, a full turn is `size`.

    Attributes:
        fine: uint8 [FINE, FINE], 1 where the arm is free of collisions.
        size: Bins per turn of the planner's map.
        start: Both joint angles at the start.
        goal: Both joint angles to be reached.
    """

    fine: NDArray[np.uint8]
    size: int
    start: Angles
    goal: Angles

    def free(self, angles: Angles) -> NDArray[np.bool_]:
        """Return whether configurations [..., 2] are free of collisions."""
        cells = np.rint(angles * FINE / self.size).astype(int) % FINE
        result: NDArray[np.bool_] = self.fine[cells[..., 0], cells[..., 1]] == 1
        return result

    def clear(self, before: Angles, after: Angles) -> NDArray[np.bool_]:
        """Return whether the ways from `before` to `after` [..., 2] are free of collisions."""
        shares = np.linspace(0, 1, 7)[1:].reshape(-1, *[1] * after.ndim)
        return self.free(before + shares * (after - before)).all(axis=0)

    def arrived(self, angles: Angles) -> NDArray[np.bool_]:
        """Return whether configurations are at the goal, to within a bin."""
        away = np.abs((angles - self.goal + self.size / 2) % self.size - self.size / 2)
        result: NDArray[np.bool_] = (away <= 1.0).all(axis=-1)
        return result


def disturbed(angles: Angles, control: Angles, noise: float, chance: np.random.Generator) -> Angles:
    """Return where the arm really is after a control: motors turn too far or too little, and tremble."""
    moved = control * (1 + noise * chance.standard_normal(2))
    return angles + moved + noise * chance.standard_normal(2) * (control != 0).any()


def open_loop(scene: Scene, route: Route, noise: float, chance: np.random.Generator) -> bool:
    """Return whether the arm arrives by the plan alone, made once and followed blindly."""
    angles = scene.start
    for before, after in itertools.pairwise(route.cells):
        control = (after - before + scene.size // 2) % scene.size - scene.size // 2
        following = disturbed(angles, control.astype(float), noise, chance)
        if not scene.clear(angles, following):
            return False
        angles = following
    return bool(scene.arrived(angles))


def closed_loop(
    scene: Scene, value: NDArray[np.floating], steps: int, noise: float, chance: np.random.Generator
) -> bool:
    """Return whether the arm arrives by looking HORIZON steps ahead, again at every step.

    Args:
        scene: The problem.
        value: [size, size], the planner's value of each configuration, lowest in obstacles; its negative is the
            terminal cost.
        steps: Most steps.
        noise: How unlike the model the arm is.
        chance: Draws the disturbances.
    """
    angles = scene.start
    for _ in range(steps):
        if scene.arrived(angles):
            return True
        ahead = angles + np.cumsum(CANDIDATES, axis=1)
        origins = np.concatenate([np.broadcast_to(angles, ahead[:, :1].shape), ahead[:, :-1]], axis=1)
        safe = scene.clear(origins, ahead).all(axis=1)
        # A sequence that arrives within the horizon is worth the goal, earlier ones more.
        there = scene.arrived(ahead)
        soonest = np.where(there.any(axis=1), HORIZON - there.argmax(axis=1), 0)
        # The first step counts a little too: of two ways to one place, the one that does not wait.
        worth = interpolated(value, ahead[:, -1]) + 0.1 * interpolated(value, ahead[:, 0])
        worth += soonest * 2 * (np.ptp(value) + 1.0)
        if not safe.any():
            return False
        control = CANDIDATES[np.where(safe, worth, -np.inf).argmax(), 0]
        following = disturbed(angles, control, noise, chance)
        if not scene.clear(angles, following):
            return False
        angles = following
    return bool(scene.arrived(angles))


def interpolated(value: NDArray[np.floating], angles: Angles) -> NDArray[np.floating]:
    """Return the value between bins [n], bilinear on the torus, at angles [n, 2]."""
    size = len(value)
    low = np.floor(angles).astype(int)
    part = angles - low
    total = np.zeros(len(angles))
    for corner in itertools.product((0, 1), repeat=2):
        weight = np.prod(np.where(corner, part, 1 - part), axis=1)
        row, column = ((low + corner) % size).T
        total += weight * value[row, column]
    return total


def terminal_value(route: Route) -> NDArray[np.floating]:
    """Return a planner's values so that its own policy climbs them, obstacles lowest of all.

    Nothing in training says which way up values are: the policy is a layer of its own on top of them.
    """
    free = route.grid == 1
    after = np.indices(free.shape) + np.moveaxis(np.array(FOUR_WRAP.offsets)[route.actions], 2, 0)
    row, column = after % np.array(free.shape).reshape(2, 1, 1)
    climbs = (route.values[row, column] - route.values)[free & free[row, column]]
    value = route.values if (climbs > 0).mean() > 0.5 else -route.values
    low, high = value[free].min(), value[free].max()
    return np.where(free, value, low - 0.5 * (high - low))


def scenes(problems: Problems, size: int, chance: np.random.Generator) -> list[Scene]:
    """Return the problems as scenes, each with a random start that can reach its goal."""
    assert problems.obstacles is not None
    found = []
    for polygons, distance, goal in zip(problems.obstacles, problems.distance, problems.goal, strict=True):
        start = chance.choice(np.argwhere(np.isfinite(distance) & (distance >= 4)))
        fine = configuration_space(polygons, FINE)
        found.append(Scene(fine, size, start.astype(float), goal.astype(float)))
    return found


def compare(planner: RoutePlanner, problems: Problems, noise: float = 0.15, seed: int = 0) -> tuple[float, float]:
    """Return the success rates of the open-loop plan and of the closed loop, on the same scenes and disturbances."""
    size = problems.map.shape[1]
    arrivals = np.zeros(2)
    chance = np.random.default_rng(seed)
    every = scenes(problems, size, chance)
    for number, (scene, grid) in enumerate(zip(every, problems.map, strict=True)):
        cells = [(int(a[0]), int(a[1])) for a in (scene.goal, scene.start)]
        route = planner.solve(grid, *cells)
        value = terminal_value(route)
        arrivals[0] += open_loop(scene, route, noise, np.random.default_rng([seed, number]))
        arrivals[1] += closed_loop(scene, value, 6 * size, noise, np.random.default_rng([seed, number]))
    rates = arrivals / len(every)
    return float(rates[0]), float(rates[1])


def trained(data: DatasetSpec, epochs: int) -> RoutePlanner:
    """Return a planner that was trained on configuration spaces."""
    spec = PlannerSpec(core="contractive", wrap=True, k_fwd=40, hidden_channels=64, discount=0.97)
    training = TrainingSpec(epochs=epochs, batch_size=16, optimizer="adam", learning_rate=5e-3, labels="all_optimal")
    train, valid = draw(data, "train", 0, data.train), draw(data, "valid", 0, data.valid)
    trainer = Trainer(spec, training, train, valid, moves=FOUR_WRAP, seed=0)
    while not trainer.finished:
        trainer.run_epoch()
    trainer.planner.eval()
    return RoutePlanner(trainer.planner, FOUR_WRAP)


def main(maps: int = 1024, epochs: int = 4, tests: int = 100) -> None:
    """Train a planner and print how often the arm arrives, without and with disturbances."""
    data = DatasetSpec(task="manipulation", map_size=18, train=maps, valid=32, test=tests)
    planner = trained(data, epochs)
    problems = draw(data, "test", 0, tests)
    print(f"{'noise':>6}{'open loop %':>13}{'closed loop %':>15}")
    for noise in (0.0, 0.1, 0.2, 0.3):
        plan, control = compare(planner, problems, noise)
        print(f"{noise:>6.1f}{100 * plan:>13.1f}{100 * control:>15.1f}")


if __name__ == "__main__":
    main()
