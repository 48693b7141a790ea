"""A planner's value map as terminal cost of a model predictive controller, for the two-link arm.

As in implicit game-theoretic MPC (IGT-MPC), a learned value tells the controller what lies beyond its short horizon.
The arm does not do quite what it is told. Three ways to drive it meet the same scenes and disturbances and may take as
many steps: the planner's route and the controller's own plan, both made once and followed blindly, and the controller,
which looks at the joint angles again at every step. `python examples/arm_mpc.py` (a minute and a half on one core;
100 scenes from each of the seeds 100 to 104, on which nothing was trained or chosen) prints

    arrivals in %, mean and standard deviation over 5 sets of 100 scenes
     noise    route, blindly   own plan, blindly     looking again
       0.0        66.0 ± 4.6          84.2 ± 3.1        84.2 ± 3.1
       0.1        63.4 ± 4.0          37.4 ± 3.3        82.4 ± 3.0
       0.2        51.2 ± 2.9          33.6 ± 4.2        80.4 ± 3.8
       0.3        37.8 ± 3.6          28.2 ± 4.0        77.2 ± 4.7

Without disturbances the controller gains over the route by what it knows beside (collisions between the bins, both
joints at once); what disturbances cost a blind plan and not the controller is the worth of looking again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datagen.problem import FOUR_WRAP, Problems
from datagen.tasks.arm import configuration_space
from datagen.tasks.manipulation import draw
from datagen.tasks.registry import DatasetSpec
from planners import PlannerSpec, Route, RoutePlanner, TrainingSpec
from planners.training.trainer import Trainer

FINE = 180
"""Bins per turn, of 2 degrees, of the map in which the arm really moves."""

HORIZON = 2
CONTROLS = np.array([*itertools.product((-1.0, 0.0, 1.0), repeat=2)])
"""Turns of both joints in one step, in bins of the planner's map."""

CANDIDATES = np.array([*itertools.product(CONTROLS, repeat=HORIZON)])
"""Every sequence of controls within the horizon, [81, HORIZON, 2]."""

STEPS_PER_BIN = 6
"""Most steps of every way of driving, per bin of the planner's map."""

Angles = NDArray[np.float64]
Controls = Callable[[int, Angles], Angles | None]


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


def drive(scene: Scene, controls: Controls, noise: float, chance: np.random.Generator) -> list[Angles] | None:
    """Drive the arm until it arrives, and return the controls it was given; None where it does not arrive.

    Args:
        scene: The problem.
        controls: What to do at a step, from its number and the joint angles then; None to give up.
        noise: How unlike the model the arm is.
        chance: Draws the disturbances.
    """
    angles, given = scene.start, list[Angles]()
    for step in range(STEPS_PER_BIN * scene.size):
        if scene.arrived(angles):
            return given
        control = controls(step, angles)
        if control is None:
            return None
        following = disturbed(angles, control, noise, chance)
        if not scene.clear(angles, following):
            return None
        angles = following
        given.append(control)
    return given if scene.arrived(angles) else None


def blindly(planned: list[Angles]) -> Controls:
    """Return controls that were planned once, whatever the arm does."""
    return lambda step, angles: planned[step] if step < len(planned) else None


def along(route: Route, size: int) -> list[Angles]:
    """Return the controls that a planner's route stands for, one joint a step."""
    turns = (np.diff(route.cells, axis=0) + size // 2) % size - size // 2
    return list(turns.astype(float))


def looking_ahead(scene: Scene, value: NDArray[np.floating]) -> Controls:
    """Return a controller that looks HORIZON steps ahead, from where the arm is, and takes the first of the best steps.

    Args:
        scene: The problem.
        value: [size, size], the planner's value of each configuration, lowest in obstacles; its negative is the
            terminal cost.
    """

    def control(step: int, angles: Angles) -> Angles | None:
        ahead = angles + np.cumsum(CANDIDATES, axis=1)
        origins = np.concatenate([np.broadcast_to(angles, ahead[:, :1].shape), ahead[:, :-1]], axis=1)
        safe = scene.clear(origins, ahead).all(axis=1)
        # A sequence that arrives within the horizon is worth the goal, earlier ones more.
        there = scene.arrived(ahead)
        soonest = np.where(there.any(axis=1), HORIZON - there.argmax(axis=1), 0)
        # The first step counts a little too: of two ways to one place, the one that does not wait.
        worth = interpolated(value, ahead[:, -1]) + 0.1 * interpolated(value, ahead[:, 0])
        worth += soonest * 2 * (np.ptp(value) + 1.0)
        best: Angles = CANDIDATES[np.where(safe, worth, -np.inf).argmax(), 0]
        return best if safe.any() else None

    return control


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


def compare(
    planner: RoutePlanner, problems: Problems, noises: tuple[float, ...] = (0.15,), seed: int = 0
) -> NDArray[np.float64]:
    """Return success rates [noise, 3]: the planner's route, the controller's own plan, and the controller.

    The first two are made once, without disturbances, and followed blindly; the third looks again at every step. All
    three meet the same scenes and disturbances, and may take as many steps.
    """
    size = problems.map.shape[1]
    arrivals = np.zeros((len(noises), 3))
    every = scenes(problems, size, np.random.default_rng(seed))
    for number, (scene, grid) in enumerate(zip(every, problems.map, strict=True)):
        goal, start = ((int(angles[0]), int(angles[1])) for angles in (scene.goal, scene.start))
        route = planner.solve(grid, start=start, goal=goal)
        controller = looking_ahead(scene, terminal_value(route))
        own_plan = drive(scene, controller, 0.0, np.random.default_rng(0)) or []
        for row, noise in enumerate(noises):
            for column, controls in enumerate((blindly(along(route, size)), blindly(own_plan), controller)):
                done = drive(scene, controls, noise, np.random.default_rng([seed, number]))
                arrivals[row, column] += done is not None
    return arrivals / len(every)


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


def main(maps: int = 1024, epochs: int = 4, tests: int = 100, seeds: range = range(100, 105)) -> NDArray[np.float64]:
    """Train a planner, print how often the arm arrives, and return it, [seed, noise, 3]; no seed is trained on."""
    data = DatasetSpec(task="manipulation", map_size=18, train=maps, valid=32, test=tests)
    planner, noises = trained(data, epochs), (0.0, 0.1, 0.2, 0.3)
    found = np.array(
        [
            compare(planner, draw(data.model_copy(update={"seed": seed}), "test", 0, tests), noises, seed)
            for seed in seeds
        ]
    )
    print(f"arrivals in %, mean and standard deviation over {len(seeds)} sets of {tests} scenes")
    print(f"{'noise':>6}{'route, blindly':>18}{'own plan, blindly':>20}{'looking again':>18}")
    for row, noise in enumerate(noises):
        cells = [f"{100 * part.mean():.1f} ± {100 * part.std(ddof=1):.1f}" for part in found[:, row].T]
        print(f"{noise:>6.1f}{cells[0]:>18}{cells[1]:>20}{cells[2]:>18}")
    return found


if __name__ == "__main__":
    main()
