"""The example of hard constraints: does the layer solve its PDE, with the derivatives of what it gives?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from datagen.storage.dataset import make_dataset
from orchestrator.storage.layout import Storage
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.plugins import load_plugins
from orchestrator.sweep.specs import expand
from orchestrator.trial.conformance import check_goes_on
from orchestrator.trial.system import Setting
from orchestrator.trial.train import run_trial
from planners.specs import TrainingSpec

EXAMPLES = Path(__file__).parents[1] / "examples"
CELLS, REACTION = 16, 20.0


@pytest.fixture
def experts():
    """The plug-in's modules."""
    load_plugins(["experts"], beside=[EXAMPLES])
    import experts
    import experts.diffusion
    import experts.layer

    return experts


def problems(experts, count=2):
    options = experts.DiffusionOptions(cells=CELLS, reaction=REACTION)
    rows = [experts.diffusion.sample(options, np.random.default_rng(number)) for number in range(count)]
    return {name: torch.tensor(np.array([row[name] for row in rows])) for name in rows[0]}


def test_samples_solve_the_equation_to_second_order(experts):
    """Against a solution that is known: u = sin(pi x), kappa = 1 + x."""
    errors = []
    for cells in (32, 64):
        x, middles = np.linspace(0.0, 1.0, cells + 1), (np.arange(cells) + 0.5) / cells
        u = np.sin(np.pi * x)
        source = np.pi**2 * (1.0 + x) * u - np.pi * np.cos(np.pi * x) + REACTION * u**3
        errors.append(np.abs(experts.diffusion.solved(1.0 + middles, source, REACTION) - u).max())
    assert errors[0] < 1e-2 and errors[0] / errors[1] == pytest.approx(4.0, rel=0.05)


@pytest.mark.parametrize("parts", [1, 4])
def test_with_right_ends_and_a_function_for_each_node_the_layer_solves_the_equation(experts, parts):
    given = problems(experts)
    width = CELLS // parts
    bases = torch.eye(width - 1, dtype=torch.float64)
    bases = torch.cat([bases, torch.zeros(width - 1, 1, dtype=torch.float64)], 1).repeat(1, parts)
    bases = torch.nn.functional.pad(bases, (1, 0)).expand(2, -1, -1)
    u, solved = experts.layer.satisfied(
        given["solution"], bases, given["conductivity"], given["source"], experts=parts, reaction=REACTION
    )
    assert solved and torch.allclose(u, given["solution"], atol=1e-8)


def test_the_layer_has_the_derivatives_of_its_values(experts):
    given, generator = problems(experts), torch.Generator().manual_seed(0)
    guess = 0.3 * torch.randn(2, CELLS + 1, generator=generator, dtype=torch.float64)
    bases = torch.randn(2, 3, CELLS + 1, generator=generator, dtype=torch.float64)

    def layer(guess, bases):
        return experts.layer.satisfied(
            guess, bases, given["conductivity"], given["source"], experts=2, reaction=REACTION
        )[0]

    inputs = (guess.requires_grad_(), bases.requires_grad_())
    assert torch.autograd.gradcheck(layer, inputs, eps=1e-6, atol=1e-4, rtol=1e-3)


def on_a_square(experts, sides, bases=2):
    """Two problems on a square, basis functions, and the layer for so many parts of a side."""
    options = experts.DiffusionOptions(dimensions=2, cells=16, reaction=REACTION)
    given = [experts.diffusion.sample(options, np.random.default_rng(number)) for number in range(2)]
    given = {name: torch.tensor(np.array([one[name] for one in given])) for name in given[0]}
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, bases, 17, 17, generator=generator, dtype=torch.float64)

    def layer(guess, bases, **options):
        equation = (given["conductivity"], given["source"])
        return experts.layer.satisfied(guess, bases, *equation, experts=sides, reaction=REACTION, **options)

    return given, drawn, layer


def test_samples_on_a_square_solve_the_equation_that_the_layer_knows(experts):
    given, _, _ = on_a_square(experts, 1)
    u, source = given["solution"], given["source"][:, 1:-1, 1:-1]
    left = experts.layer.diffusion(u, given["conductivity"], 16, 2) + REACTION * u[:, 1:-1, 1:-1] ** 3 - source
    assert left.abs().max() < 1e-8 * source.abs().max() and u.abs().max() > 0.1


def test_with_right_edges_and_its_rest_as_a_function_the_layer_solves_the_equation_on_a_square(experts):
    given, drawn, layer = on_a_square(experts, 2)
    solution, by_part = given["solution"], experts.layer.parts(given["solution"][:, None], 2, 2)
    assert torch.equal(experts.layer.glued(by_part[:, :, 0], 2, 2), solution)
    lift, bubble = experts.layer._from_edges(by_part[:, :, 0].flatten(0, 1), 2)
    rest = (by_part[:, :, 0].flatten(0, 1) - lift) / bubble.where(bubble > 0, 1.0)
    rest = experts.layer.glued(rest.unflatten(0, (2, 4)), 2, 2)
    u, solved = layer(solution, torch.stack((rest, drawn[:, 0]), 1))
    assert solved and torch.allclose(u, solution, atol=1e-8)


def test_experts_that_are_sent_away_return_the_values_and_derivatives_of_those_that_are_not(experts):
    """Where there is no cluster they are sent to this process: as arrays, and differentiated by a second call."""
    _, drawn, layer = on_a_square(experts, 2)
    guess = (0.3 * drawn[:, 0]).requires_grad_()
    bases = drawn.clone().requires_grad_()
    found = {}
    for away in (False, True):
        u, solved = layer(guess, bases, away=away)
        found[away] = (u.detach(), *torch.autograd.grad(u.square().sum(), (guess, bases)))
        assert solved
    for here, there in zip(found[False], found[True], strict=True):
        assert torch.allclose(here, there, rtol=1e-7, atol=1e-9) and here.abs().max() > 0


def test_a_coarse_constraint_gives_the_values_on_edges(experts):
    from experts.training import Training

    given, _, _ = on_a_square(experts, 2)
    options = experts.SolverOptions(experts=2, bases=3, coarse=True, channels=4)
    of = experts.DiffusionOptions(dimensions=2, cells=16, reaction=REACTION)
    torch.manual_seed(0)
    trial = Training(Setting(options, of, TrainingSpec(), given, given, given, 0, "cpu", lambda: None))
    equation = (given["conductivity"], given["source"])
    with torch.no_grad():
        guess, bases = trial.network(*equation)
        whole, _ = experts.layer.satisfied(guess, bases[:, 3:], *equation, experts=1, reaction=REACTION)
    u = trial.solved(given)
    assert torch.equal(u[:, 8], whole[:, 8]) and torch.equal(u[:, :, 8], whole[:, :, 8])
    mine, its = (trial.residual(one, given).view(2, 15, 15)[:, :7, :7].square().sum() for one in (u, whole))
    assert mine < its


@pytest.mark.parametrize("parts", [2, 5])
def test_a_map_in_parts_has_the_values_of_the_whole_bit_for_bit(experts, parts):
    import experts.maps

    options = experts.MapOptions(cells=33, walls=0.3)
    made = experts.maps.terrain(options, np.random.default_rng(1))
    costs, goal = np.where(made["wall"], np.inf, made["costs"]), tuple(map(int, made["goal"]))
    whole, found = experts.maps.planned(costs, goal, 1), experts.maps.planned(costs, goal, parts)
    assert np.array_equal(whole.arriving, found.arriving) and found.solves > parts**2 > whole.solves
    inside = np.pad(whole.arriving + costs, 1, constant_values=np.inf)
    ways = [
        inside[1 + row : 34 + row, 1 + column : 34 + column] + np.hypot(row, column)
        for row in (-1, 0, 1)
        for column in (-1, 0, 1)
        if row or column
    ]
    least = np.minimum.reduce(ways)
    least[goal] = 0.0
    assert np.allclose(whole.arriving, least, rtol=1e-12) and whole.arriving[np.isfinite(costs)].max() > 10.0


def test_an_experts_part_is_its_own(experts):
    given, generator = problems(experts), torch.Generator().manual_seed(0)
    guess = torch.zeros(2, CELLS + 1, dtype=torch.float64)
    bases = torch.randn(2, 2, CELLS + 1, generator=generator, dtype=torch.float64)
    bases.requires_grad_()
    u, _ = experts.layer.satisfied(guess, bases, given["conductivity"], given["source"], experts=4, reaction=REACTION)
    (slope,) = torch.autograd.grad(u[0, 5:8].square().sum(), bases)
    assert slope[0, :, 5:8].abs().min() > 0.0 and not slope[1].any()
    assert not slope[0, :, :4].any() and not slope[0, :, 9:].any()


def test_the_smoke_profile_trains_with_either_constraint(experts, tmp_path):
    trials = {trial.axes["planner"]: trial for trial in expand(load_sweep(EXAMPLES / "experts.yaml", "smoke"))}
    for row in ("soft", "experts-4"):
        make_dataset(trials[row].spec.data, Storage(tmp_path).datasets)
        result = run_trial(trials[row].spec, Storage(tmp_path))
        assert result.status == "COMPLETED" and result.metrics["kept"] > 0.0 and not result.forward_diverged


def test_experts_that_can_not_share_the_mesh_are_one_message(experts, tmp_path):
    sweep = load_sweep(EXAMPLES / "experts.yaml", "smoke", ["planners={odd: {system: experts, experts: 5}}"])
    trial = next(trial for trial in expand(sweep) if trial.axes["planner"] == "odd")
    make_dataset(trial.spec.data, Storage(tmp_path).datasets)
    assert "5 experts share 128 cells" in run_trial(trial.spec, Storage(tmp_path)).reason


def test_a_trial_goes_on_where_it_was_put_down_but_for_times(experts):
    check_goes_on("experts", "diffusion")
    with pytest.raises(AssertionError, match="after an interruption"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("experts.training.Training.load_state_dict", lambda self, state: setattr(self, "measured", {}))
        check_goes_on("experts", "diffusion")
