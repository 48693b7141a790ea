"""The example of preferences: is the density that its pairs are judged by exact, and do the answers lead back to it?"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datagen.storage.dataset import make_dataset
from orchestrator.storage.layout import Storage
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.plugins import load_plugins
from orchestrator.sweep.specs import expand
from orchestrator.trial.train import run_trial
from planners.specs import TrainingSpec

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def preferences():
    """The plug-in's modules."""
    load_plugins(["preferences"], beside=[EXAMPLES])
    import preferences
    import preferences.learning
    import preferences.pairs
    import preferences.world

    return preferences


def ways(preferences, start, goal, horizon, size):
    """Return the cells that each way of at most `horizon` steps enters, by trying all moves."""
    near = preferences.world.neighbours(size)
    for moves in product(range(4), repeat=horizon):
        cell, entered = start, []
        for move in moves:
            if cell != goal:
                cell = int(near[cell, move])
                entered.append(cell)
            if cell == size * size:
                break
        if cell == goal and moves[len(entered) :] == (0,) * (horizon - len(entered)):
            yield entered


def test_the_divergence_is_that_of_all_ways_one_by_one(preferences):
    size, horizon, start, goal = 4, 6, 1, 6
    generator = np.random.default_rng(3)
    true, learnt = generator.uniform(0.2, 2.0, (2, size * size))
    entered = list(ways(preferences, start, goal, horizon, size))
    log_p, log_q = (np.array([-costs[cells].sum() for cells in entered]) for costs in (true, learnt))
    log_p, log_q = (log - np.logaddexp.reduce(log) for log in (log_p, log_q))
    found = preferences.world.divergence(true, learnt, horizon)
    assert len(entered) > 20
    assert found[start, goal] == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(), rel=1e-9)
    assert np.abs(preferences.world.divergence(true, true, horizon)).max() < 1e-12


def test_roll_outs_arrive_and_answers_follow_the_annotator(preferences):
    options = preferences.PairOptions(size=5, horizon=10, careful=1.5, noisy=0.1)
    samples = [preferences.pairs.pair(options, np.random.default_rng([1, number])) for number in range(400)]
    costs = preferences.world.true_costs(5, 0)
    for sample in samples[:40]:
        visits = sample["visits"].reshape(2, -1)
        assert (visits[:, sample["goal"][0]] == 1).all() and (visits.sum(1) <= options.horizon).all()
    for annotator, rationality in enumerate((1.5, 0.1)):
        own = [sample for sample in samples if sample["annotator"] == annotator]
        saved = np.array([np.diff(sample["visits"].reshape(2, -1) @ costs)[0] for sample in own])
        chance = 1.0 / (1.0 + np.exp(-rationality * saved))
        answers = np.array([sample["first_way"] for sample in own])
        deviation = np.sqrt((chance * (1.0 - chance)).sum())
        assert len(own) > 150 and abs((answers - chance).sum()) < 3.0 * deviation


def a_trial(preferences, samples, epochs=1, **options):
    """Return a trial that was trained on samples for some epochs."""
    data_options, columns = samples
    setting = SimpleNamespace(
        options=preferences.LearningOptions(**options),
        data_options=data_options,
        training=TrainingSpec(learning_rate=0.1),
        train=columns,
        valid=columns,
        test=columns,
        advance=lambda: None,
        batches=lambda epoch: [columns],
    )
    trial = preferences.learning.Learning(setting)
    for epoch in range(1, epochs + 1):
        trial.run_epoch(epoch)
    return trial


def drawn(preferences, count, **options):
    options = preferences.PairOptions(size=4, horizon=8, **options)
    rows = [preferences.pairs.pair(options, np.random.default_rng([2, number])) for number in range(count)]
    return options, {name: np.array([row[name] for row in rows]) for name in rows[0]}


def test_costs_of_errands_have_the_derivatives_of_the_planners_values(preferences):
    samples = drawn(preferences, 6)
    trial = a_trial(preferences, samples, epochs=0, compared="errands")
    with torch.no_grad():
        trial.raw += torch.rand(16, generator=torch.Generator().manual_seed(0))
    trial._surprise(samples[1]).backward()
    slopes, step = trial.raw.grad.clone(), 1e-2
    with torch.no_grad():
        for cell in range(16):
            ends = []
            for sign in (1.0, -1.0):
                trial.raw[cell] += sign * step
                ends.append(float(trial._surprise(samples[1])))
                trial.raw[cell] -= sign * step
            assert slopes[cell] == pytest.approx((ends[0] - ends[1]) / (2.0 * step), abs=2e-4)


def test_answers_lead_back_to_the_density_unless_two_annotators_are_taken_for_one(preferences):
    samples = drawn(preferences, 1500, careful=1.5, noisy=0.1)
    found = {
        row: a_trial(preferences, samples, epochs=150, annotators=row).test() for row in ("one", "told", "mixture")
    }
    begun = a_trial(preferences, samples, epochs=0).test()
    assert found["told"]["from_careful"] < 0.2 * begun["from_careful"]
    assert found["told"]["from_noisy"] < 0.05 < found["one"]["from_noisy"]
    assert found["one"]["from_careful"] > 3.0 * max(found[row]["from_careful"] for row in ("told", "mixture"))
    assert found["told"]["excess"] < 0.05 and found["told"]["agreement"] > 0.95


@pytest.mark.parametrize("compared", ["ways", "errands"])
def test_a_trial_goes_on_where_it_was_put_down(preferences, compared):
    samples = drawn(preferences, 20)
    whole = a_trial(preferences, samples, epochs=4, compared=compared)
    parted = a_trial(preferences, samples, epochs=2, compared=compared)
    again = a_trial(preferences, samples, epochs=0, compared=compared)
    again.load_state_dict(parted.state_dict())
    assert [again.run_epoch(epoch) for epoch in (3, 4)] and torch.equal(again.costs(), whole.costs())


def test_the_smoke_profile_trains_every_row(preferences, tmp_path):
    sweep = load_sweep(EXAMPLES / "preferences.yaml", "smoke", ["training.epochs=1"])
    for trial in expand(sweep):
        make_dataset(trial.spec.data, Storage(tmp_path).datasets)
        result = run_trial(trial.spec, Storage(tmp_path))
        assert result.status == "COMPLETED" and result.metrics["from_careful"] > 0.0
