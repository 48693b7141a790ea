"""The example of games: are its equilibria equilibria, are their derivatives right, do controllers meet fairly?"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datagen.plugins import PluginError
from datagen.storage.dataset import make_dataset
from orchestrator.storage.layout import Storage
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.plugins import load_plugins
from orchestrator.sweep.specs import SweepError, expand
from orchestrator.trial.system import Setting
from orchestrator.trial.train import run_trial
from planners import TrainingSpec

EXAMPLES = Path(__file__).parents[1] / "examples"
STEPS, SECONDS = 6, 0.25


@pytest.fixture
def games():
    """The plug-in's modules."""
    load_plugins(["games"], beside=[EXAMPLES])
    import games.control
    import games.equilibrium
    import games.scene
    import games.starts
    import games.trial

    return games


def begun(games, name="race", count=3, way=2.0):
    scene = games.scene.SCENES[name]
    start, top = games.starts.begun(scene, count, np.random.default_rng(0))
    return games.equilibrium.Game(scene, start, top, STEPS, SECONDS, way=way)


def test_a_car_at_rest_relative_to_the_ground_turns_as_physics_says(games):
    """Accelerations along a curve against those of the car's place on the plane, by differences."""
    scene = games.scene.SCENES["race"]
    s, v, a, n, w, m = car = np.array([17.0, 3.0, 0.7, 0.3, -0.4, 0.9])
    fine, h = np.linspace(0.0, 40.0, 400_001), 1e-3
    turned = np.concatenate(([0.0], np.cumsum(scene.curvature(torch.tensor(fine[:-1] + 5e-5))[0].numpy() * 1e-4)))
    along = np.exp(1j * turned)
    centre = np.concatenate(([0.0], np.cumsum(0.5 * (along[1:] + along[:-1]) * 1e-4)))

    def place(t):
        at, side = s + v * t + a * t * t / 2, n + w * t + m * t * t / 2
        heading, middle = (np.interp(at, fine, part) for part in (turned, centre))
        return middle + 1j * side * np.exp(1j * heading), heading

    acceleration = (place(h)[0] - 2.0 * place(0.0)[0] + place(-h)[0]) / h**2 / np.exp(1j * place(0.0)[1])
    limits = scene.limits(torch.tensor(car), torch.tensor(4.0))
    assert scene.power - float(limits[4]) == pytest.approx(acceleration.real, abs=0.02)
    assert (1.0 - float(limits[5])) * scene.grip**2 == pytest.approx(abs(acceleration) ** 2, rel=0.02)


@pytest.mark.parametrize("name", ["race", "crossing"])
def test_newtons_matrix_is_that_of_the_conditions(games, name):
    game, generator = begun(games, name), torch.Generator().manual_seed(0)
    u = torch.randn(3, 4 * STEPS, generator=generator, dtype=torch.float64, requires_grad=True)
    other = torch.randn(u.shape, generator=generator, dtype=torch.float64)
    g = game.constraints(game.driven(u))
    weights, pushed = torch.rand(g.shape, generator=generator, dtype=torch.float64), torch.zeros_like(g)
    lagrangian = game.cost(u, game.driven(u)) - (weights * g).sum(1)
    (slope,) = torch.autograd.grad(lagrangian.sum(), u, create_graph=True)
    (twice,) = torch.autograd.grad((slope * other).sum(), u)
    with torch.no_grad():
        at = game.linearised(u, game.driven(u), weights)
        pushed = at.pushed(other)
        torch.testing.assert_close(at.gradient - at.pulled(weights), slope.detach())
        torch.testing.assert_close((at.matrix(weights) @ other[..., None])[..., 0], twice + at.pulled(weights * pushed))
        ahead = game.constraints(game.driven(u + 1e-6 * other)) - game.constraints(game.driven(u - 1e-6 * other))
        torch.testing.assert_close(pushed, ahead / 2e-6, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "way"), [("race", 2.0), ("race", 0.0), ("crossing", 0.0)])
def test_no_car_gains_by_deviating_and_none_breaks_a_limit(games, name, way):
    game = begun(games, name, way=way)
    found = games.starts.played(game)
    assert found.converged.all()
    g = game.constraints(game.driven(found.controls))
    assert g.min() > 0.0
    torch.testing.assert_close(
        g * found.multipliers, torch.full_like(g, games.equilibrium.CENTRAL_PATH), rtol=0, atol=2e-8
    )
    _, answers, gain = games.starts.answered(game, found)
    assert answers.converged.all() and gain.max() < 2e-3
    # What is no equilibrium is told: a car that drives more gently than it might would gain by its answer.
    _, _, gain = games.starts.answered(game, replace(found, controls=0.5 * found.controls))
    assert gain.min() > 0.01


def test_outcomes_have_the_derivatives_of_equilibria_solved_again(games):
    game = begun(games, count=2)
    found = games.starts.played(game)
    _, slope = games.starts.outcome(game, found)
    step = 1e-5
    for number in (1, 2, 4, 8):
        ends = []
        for sign in (1.0, -1.0):
            given = torch.cat((game.start.flatten(2), game.top[..., None]), 2).flatten(1)
            given[:, number] += sign * step
            cars = given.unflatten(1, (2, 5))
            moved = replace(game, start=cars[..., :4].unflatten(2, (2, 2)), top=cars[..., 4])
            again = games.starts.played(moved, found.controls[None])
            assert again.converged.all()
            ends.append(moved.driven(again.controls)[:, :, -1, 0] - moved.start[:, :, 0, 0])
        torch.testing.assert_close(slope[..., number], (ends[0] - ends[1]) / (2.0 * step), rtol=1e-3, atol=1e-4)


def test_a_controller_meets_itself_fairly(games):
    game = begun(games, count=2)
    start, top = torch.cat((game.start, game.start.flip(1))), torch.cat((game.top, game.top.flip(1)))
    one, other = (games.control.Controller(game.scene, SECONDS, 3) for _ in range(2))
    found = games.control.met(one, other, start, top, 3, lambda: None)
    torch.testing.assert_close(found.lead[:2], -found.lead[2:])
    assert games.trial.judged(found)["wins"] == 0.5 and not found.collided.any()


def test_what_has_collided_is_won_by_nobody(games):
    start = torch.tensor([[[[5.0, 3.0], [0.0, 0.0]], [[5.5, 3.0], [0.0, 0.0]]]], dtype=torch.float64)
    one, other = (games.control.Controller(games.scene.SCENES["race"], SECONDS, 2) for _ in range(2))
    found = games.control.met(one, other, start, torch.full((1, 2), 4.0, dtype=torch.float64), 1, lambda: None)
    told = games.trial.judged(found)
    assert (told["wins"], told["losses"], told["collisions"]) == (0.0, 0.0, 1.0)


def test_the_smoke_profile_trains_and_races(games, tmp_path):
    storage = Storage(tmp_path)
    trials = {trial.axes["planner"]: trial for trial in expand(load_sweep(EXAMPLES / "games.yaml", "smoke"))}
    assert set(trials) == {"short", "long", "alone", "game", "game-long"}
    for row in ("short", "game"):
        make_dataset(trials[row].spec.data, storage.datasets)
        result = run_trial(trials[row].spec, storage)
        assert result.status == "COMPLETED" and result.metrics["gain"] < 2e-3
        assert ("error" in result.metrics) == (row == "game")


@pytest.mark.parametrize("value", ["alone", "game"])
def test_a_network_learns_and_goes_on_where_it_was_put_down(games, value):
    data = games.GameOptions(games=2, steps=4)
    made = {
        name: values[None]
        for name, values in games.starts.sample(data, np.random.default_rng(0)).items()
        if name != "drawn"
    }
    options, training = games.ControllerOptions(value=value, width=8), TrainingSpec(batch_size=1, learning_rate=0.01)

    def begun():
        torch.manual_seed(0)
        return games.trial.Controllers(Setting(options, data, training, made, made, made, 0, "cpu", lambda: None))

    straight, resumed = begun(), begun()
    told = [straight.run_epoch(1)]
    resumed.load_state_dict(deepcopy(straight.state_dict()))
    told += [straight.run_epoch(number) for number in range(2, 20)]
    assert [resumed.run_epoch(number) for number in range(2, 20)] == told[1:]
    assert told[-1]["loss"] < 0.5 * told[0]["loss"]


def test_what_can_not_be_played_is_one_message(games, monkeypatch):
    with pytest.raises(SweepError, match=r"scene: .*'race' or 'crossing'"):
        load_sweep(EXAMPLES / "games.yaml", "smoke", ["tasks=[{task: games, options: {scene: chess}}]"])
    monkeypatch.setattr(games.starts, "_ROUNDS", 1)
    monkeypatch.setattr(games.equilibrium, "_ITERATIONS", 2)
    with pytest.raises(PluginError, match="games: 0 of 2 starts have an equilibrium that was found"):
        games.starts.sample(games.GameOptions(games=2, steps=4), np.random.default_rng(0))
