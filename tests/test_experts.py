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
from orchestrator.trial.train import run_trial

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
