"""A core that has a say in its training: progress, penalty and finish, in one go and resumed."""

import io
import math

import pytest
import torch

from datagen.problem import FOUR
from datagen.tasks import mazes
from datagen.tasks.registry import DatasetSpec
from planners import PlannerSpec, TrainingSpec
from planners.cores import RegularisedCore
from planners.training.trainer import Trainer

PLANNER = PlannerSpec(core="reachability", hidden_channels=16, k_fwd=20, solver="best_first", solver_bwd="best_first")
TRAINING = TrainingSpec(epochs=3, batch_size=8, optimizer="adam", learning_rate=0.01, labels="all_optimal")


@pytest.fixture(scope="module")
def problems():
    spec = DatasetSpec(task="mazes", map_size=7, train=32, valid=8, test=8)
    return mazes.draw(spec, "train", 0, 32), mazes.draw(spec, "valid", 0, 8)


def trainer(problems, **fields):
    return Trainer(PLANNER.model_copy(update=fields), TRAINING, *problems, moves=FOUR, seed=0)


@pytest.mark.slow
def test_progress_is_told_each_epoch_and_the_last_one_is_finished(problems):
    one = trainer(problems)
    core = one.planner.core
    assert isinstance(core, RegularisedCore)
    seen = []
    while not one.finished:
        record = one.run_epoch()
        seen.append(round(float(core.progress), 4))
        assert record.kernel == "compiled"
        # Of what is decided the value does not depend on weights any more: the policy alone learns.
        assert math.isnan(record.backward_residual) if core.sharp else record.backward_residual < 1e-3
    assert seen == [0.3333, 0.6667, 1.0] and core.sharp
    uncut = core.patterns_survival()
    # Three epochs on 32 mazes ask of a small encoder what it can hardly tell apart.
    assert not uncut.requires_grad and ((uncut > 0) & (uncut < 1)).float().mean() < 0.05


@pytest.mark.slow
def test_a_resumed_run_equals_an_undisturbed_one(problems):
    whole = trainer(problems)
    losses = [whole.run_epoch().train_loss for _ in range(3)]
    first = trainer(problems)
    resumed_losses = [first.run_epoch().train_loss]
    stored = io.BytesIO()
    torch.save(first.state_dict(), stored)
    stored.seek(0)
    second = trainer(problems)
    second.load_state_dict(torch.load(stored, weights_only=True))
    resumed_losses += [second.run_epoch().train_loss for _ in range(2)]
    assert resumed_losses == losses
    for a, b in zip(whole.planner.state_dict().values(), second.planner.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_penalty_is_part_of_the_loss(problems):
    plain = {"short_ways": 0.0, "few_moves": 0.0, "decided": False}
    options = type(PLANNER.options)(**(PLANNER.options.model_dump() | plain))
    assert trainer(problems).run_epoch().train_loss > trainer(problems, options=options).run_epoch().train_loss
