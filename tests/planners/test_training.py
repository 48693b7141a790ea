"""Training: that it learns, repeats to the bit, resumes to the bit, and says when it is no longer finite."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from datagen.problem import FOUR, FOUR_WRAP
from datagen.tasks.manipulation import draw as draw_arm
from datagen.tasks.navigation import draw
from datagen.tasks.registry import TASKS, DatasetSpec
from planners.planner import build_planner
from planners.specs import PlannerSpec, TrainingSpec
from planners.training import records as records_module
from planners.training import trainer as training_module
from planners.training.evaluation import Inputs, evaluate
from planners.training.memory import MemoryLimitExceeded
from planners.training.trainer import Trainer, flushed_denormals

SPEC = DatasetSpec(map_size=9, train=64, valid=16, test=16)
PLANNER = PlannerSpec(core="vin", hidden_channels=8, q_channels=8, k_fwd=8, k_bwd=6)
TRAINING = TrainingSpec(epochs=2, batch_size=16)
TIMES = ("forward_seconds", "backward_seconds", "train_seconds")


@pytest.fixture(scope="module")
def problems():
    return draw(SPEC, "train", 0, SPEC.train), draw(SPEC, "valid", 0, SPEC.valid)


def trainer(problems, planner=PLANNER, training=TRAINING, **settings):
    train, valid = problems
    return Trainer(planner, training, train, valid, moves=FOUR, seed=3, **settings)


def numbers(record):
    return {key: value for key, value in dataclasses.asdict(record).items() if key not in TIMES}


def same(a, b):
    """Equal to the bit, where nan equals nan."""
    return repr(a) == repr(b)


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", ["unrolled", "implicit"])
@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
def test_the_same_seed_gives_the_same_numbers_to_the_bit(problems, adjoint, optimizer):
    planner = PlannerSpec(core="vin", adjoint=adjoint, hidden_channels=8, q_channels=8, k_fwd=8)
    training = TRAINING.model_copy(update={"optimizer": optimizer})
    runs = []
    for _ in range(2):
        a = trainer(problems, planner, training)
        runs.append([numbers(a.run_epoch()) for _ in range(2)])
    assert same(*runs)
    assert runs[0][0] != runs[0][1]


def test_a_resumed_run_equals_an_undisturbed_one_to_the_bit(problems):
    training = TRAINING.model_copy(update={"epochs": 3, "jacobian_weight": 1.0, "jacobian_frequency": 0.5})
    undisturbed = trainer(problems, training=training)
    expected = [numbers(undisturbed.run_epoch()) for _ in range(3)]

    first = trainer(problems, training=training)
    first.run_epoch()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    torch.manual_seed(99)
    file.seek(0)
    second = trainer(problems, training=training)
    second.load_state_dict(torch.load(file, weights_only=True))
    resumed = [numbers(second.run_epoch()) for _ in range(2)]
    assert same(resumed, expected[1:])
    for a, b in zip(undisturbed.planner.parameters(), second.planner.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_discount_is_drawn_for_every_training_step_and_for_none_of_testing(problems):
    planner = PlannerSpec(core="contractive", adjoint="implicit", hidden_channels=8, q_channels=8, k_fwd=8, k_bwd=8)
    training = TRAINING.model_copy(update={"discount_from": 0.9})
    one = trainer(problems, planner, training)
    seen, plan = [], one.planner.plan
    one.planner.plan = lambda *inputs, **options: (
        seen.append((one.planner.training, one.planner.core.discount)), plan(*inputs, **options)
    )[1]  # fmt: skip
    records = [numbers(one.run_epoch()) for _ in range(2)]
    drawn = [discount for training, discount in seen if training]
    assert len(set(drawn)) == len(drawn) == 8 and all(0.9 <= discount < 0.99 for discount in drawn)
    assert {discount for training, discount in seen if not training} == {0.99}
    again = trainer(problems, planner, training)
    assert same(records, [numbers(again.run_epoch()) for _ in range(2)])
    assert not same(records, [numbers(trainer(problems, planner).run_epoch()) for _ in range(2)])


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["one_hot", "all_optimal"])
def test_training_lowers_the_loss_and_raises_success(problems, labels):
    training = TrainingSpec(epochs=12, batch_size=16, optimizer="adam", learning_rate=1e-2, labels=labels)
    learner = trainer(problems, training=training)
    records = [learner.run_epoch() for _ in range(12)]
    assert learner.finished
    assert records[-1].train_loss < 0.8 * records[0].train_loss
    assert records[-1].valid_success_rate > records[0].valid_success_rate + 0.1


def test_labels_with_all_optimal_actions_do_not_look_at_the_goal_or_at_walls(problems):
    train, _ = problems
    learner = trainer(problems, training=TRAINING.model_copy(update={"labels": "all_optimal"}))
    inputs = Inputs.of(train, torch.device("cpu"))
    perfect = torch.full((len(train), 4, 9, 9), -50.0)
    for action in range(4):
        perfect[:, action][(inputs.optimal_actions >> action & 1).bool()] = 50.0
    ties = torch.tensor([bin(int(bits)).count("1") for bits in inputs.optimal_actions.flatten()]).float()
    expected = ties[ties > 0].log().mean()
    assert float(learner._cross_entropy(perfect, inputs)) == pytest.approx(float(expected), abs=1e-5)


def test_the_best_checkpoint_is_the_one_that_is_tested(problems):
    training = TrainingSpec(epochs=4, batch_size=16, learning_rate=3e-2, tested_checkpoint="best")
    learner = trainer(problems, training=training)
    records = [learner.run_epoch() for _ in range(4)]
    best = max(record.valid_success_rate for record in records)
    assert learner.test(problems[1]).success_rate == best
    last = evaluate(learner.planner, problems[1], moves=FOUR)
    assert last.success_rate == records[-1].valid_success_rate


def test_training_ends_before_an_update_that_is_not_finite(problems):
    learner = trainer(problems)
    with torch.no_grad():
        learner.planner.core.w_v.fill_(float("nan"))
    before = [parameter.clone() for parameter in learner.planner.parameters()]
    record = learner.run_epoch()
    assert record.not_finite and record.forward_diverged and learner.finished
    for a, b in zip(before, learner.planner.parameters(), strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


def test_peak_memory_is_flat_in_k_when_implicit_and_grows_when_unrolled(problems):
    def peak(adjoint, k):
        planner = PlannerSpec(core="vin", adjoint=adjoint, hidden_channels=8, q_channels=8, k_fwd=k)
        learner = trainer(problems, planner, TrainingSpec(epochs=1, batch_size=16))
        return learner.run_epoch().peak_bytes

    assert peak("implicit", 40) <= 1.02 * peak("implicit", 10)
    assert peak("unrolled", 40) > 1.5 * peak("unrolled", 10)


def test_the_memory_limit_is_enforced(problems):
    peak = trainer(problems, training=TrainingSpec(epochs=1, batch_size=16)).run_epoch().peak_bytes
    with pytest.raises(MemoryLimitExceeded):
        trainer(problems, memory_limit_bytes=peak - 1).run_epoch()
    trainer(problems, memory_limit_bytes=peak).run_epoch()


@pytest.mark.parametrize(
    ("limit", "steps"), [({"most_steps": 5}, 5), ({"most_applications": 100}, 7), ({"most_seconds": 1e-9}, 1), ({}, 12)]
)
def test_the_first_limit_that_is_reached_ends_training(problems, limit, steps):
    planner = PlannerSpec(core="vin", adjoint="unrolled", hidden_channels=8, q_channels=8, k_fwd=8)
    training = TRAINING.model_copy(update={"epochs": 3, **limit})
    found = trainer(problems, planner, training)
    records = []
    while not found.finished:
        records.append(found.run_epoch())
    # 64 maps in batches of 16; a step of the unrolled planner applies f 8 times and pulls back through all 8.
    assert [record.steps for record in records] == [min(4 * (n + 1), steps) for n in range(math.ceil(steps / 4))]
    assert found.spent.steps == steps and found.spent.applications == 16 * steps
    assert found.spent.seconds == pytest.approx(sum(record.train_seconds for record in records))


def test_an_implicit_step_costs_its_solves_and_one_product(problems):
    planner = PLANNER.model_copy(update={"tolerance": 0.0, "tolerance_bwd": 0.0})
    assert trainer(problems, planner).run_epoch().applications == 4 * (8 + 6 + 1)
    one_step = PlannerSpec(core="vin", adjoint="one_step", hidden_channels=8, q_channels=8, k_fwd=8, tolerance=0.0)
    assert trainer(problems, one_step).run_epoch().applications == 4 * (8 + 1)


def test_a_resumed_run_keeps_to_its_budget(problems):
    training = TRAINING.model_copy(update={"epochs": 9, "most_steps": 6})
    undisturbed, first, second = (trainer(problems, training=training) for _ in range(3))
    expected = [numbers(undisturbed.run_epoch()) for _ in range(2)]
    records = [numbers(first.run_epoch())]
    second.load_state_dict(first.state_dict())
    records.append(numbers(second.run_epoch()))
    assert same(records, expected) and second.finished and second.spent.steps == 6


def test_evaluation_does_not_depend_on_the_batch(problems):
    learner = trainer(problems)
    learner.run_epoch()
    results = {evaluate(learner.planner, problems[1], moves=FOUR, batch_size=size) for size in (1, 5, 16)}
    assert len(results) == 1


def test_without_validation_maps_the_record_says_nan(problems):
    train, valid = problems
    learner = Trainer(PLANNER, TRAINING, train, valid[:0], moves=FOUR, seed=0)
    assert math.isnan(learner.run_epoch().valid_success_rate)


@pytest.mark.slow
def test_mapper_and_planner_learn_apart_and_then_together():
    """D.1: first each from the truth, then the loss of the plan reaches the mapper through the implicit planner."""
    spec = DatasetSpec(task="workspace_manipulation", map_size=9, train=16, valid=8, test=8)
    train, valid = draw_arm(spec, "train", 0, 16), draw_arm(spec, "valid", 0, 8)
    planner = PlannerSpec(
        core="vin",
        mapper="unet",
        mapper_options={"channels": (4, 8)},
        wrap=True,
        hidden_channels=8,
        q_channels=8,
        k_fwd=6,
    )
    training = TrainingSpec(epochs=2, batch_size=8, mapper_pretrain_epochs=1)
    learner = Trainer(planner, training, train, valid, moves=FOUR_WRAP, seed=0)
    seen = []
    plan = learner.planner.plan

    def watched(map, goal, observation=None, **rest):
        if learner.planner.training:
            seen.append((map is not None, observation is not None))
        return plan(map, goal, observation, **rest)

    learner.planner.plan = watched
    before = {name: p.clone() for name, p in learner.planner.mapper.named_parameters()}
    learner.run_epoch()
    assert seen == [(True, False)] * 2
    apart = {name: p.clone() for name, p in learner.planner.mapper.named_parameters()}
    assert any(not torch.equal(before[name], apart[name]) for name in before)
    learner.run_epoch()
    assert seen[2:] == [(False, True)] * 2
    assert any(not torch.equal(apart[name], p) for name, p in learner.planner.mapper.named_parameters())
    assert 0 <= learner.test(valid).success_rate <= 1


def arms():
    spec = DatasetSpec(task="workspace_manipulation", map_size=9, train=8, valid=0, test=0)
    planner = PlannerSpec(
        core="contractive", mapper="unet", mapper_options={"channels": (4, 8)}, wrap=True, q_channels=8, k_fwd=6
    )
    return draw_arm(spec, "train", 0, 8), planner


def test_the_loss_of_joint_training_holds_the_map_to_the_weight_that_is_asked_for():
    problems, planner = arms()
    losses = []
    for weight in (0.0, 2.0):
        training = TrainingSpec(epochs=1, batch_size=8, mapper_pretrain_epochs=0, mapper_weight=weight)
        learner = Trainer(planner, training, problems, problems[:0], moves=FOUR_WRAP, seed=0)
        inputs = Inputs.of(problems, torch.device("cpu"))
        logits = learner.planner.mapper(inputs.observation, (9, 9)).double().detach()
        losses.append(learner.run_epoch().train_loss)
    probability = logits.sigmoid()
    by_hand = -(inputs.map * probability.log() + (1 - inputs.map) * (1 - probability).log()).mean()
    assert losses[1] - losses[0] == pytest.approx(2 * float(by_hand), rel=1e-5)


def test_the_mapper_may_have_a_step_size_of_its_own_that_falls_like_the_planners():
    problems, planner = arms()
    training = TrainingSpec(
        epochs=2,
        batch_size=8,
        optimizer="adam",
        learning_rate=0.01,
        learning_rate_decay=0.5,
        mapper_pretrain_epochs=0,
        mapper_learning_rate=1e-4,
        mapper_weight=1.0,
    )
    learner = Trainer(planner, training, problems, problems[:0], moves=FOUR_WRAP, seed=0)

    def moved() -> list[float]:
        parts = (learner.planner.core, learner.planner.mapper)
        before = [torch.cat([p.detach().flatten() for p in part.parameters()]).clone() for part in parts]
        learner.run_epoch()
        after = [torch.cat([p.detach().flatten() for p in part.parameters()]) for part in parts]
        return [float((b - a).abs().max()) for b, a in zip(before, after, strict=True)]

    # Adam's first step is the step size itself; the second is at most a little more than half of that here.
    assert moved() == pytest.approx([0.01, 1e-4], rel=0.02)
    assert [group["lr"] for group in learner.optimizer.param_groups] == [0.01, 1e-4]
    moved()
    assert [group["lr"] for group in learner.optimizer.param_groups] == [0.005, 5e-5]


def test_training_steps_count_denormals_as_zero_and_nobody_else_does(problems):
    tiny = torch.tensor(torch.finfo(torch.float32).tiny)
    seen = []

    class Watched(Trainer):
        def on_step(self, plan, random_state):
            seen.append(bool(tiny / 2 == 0))

    Watched(PLANNER, TRAINING, *problems, moves=FOUR, seed=0).run_epoch()
    assert seen == [True] * 4 and bool(tiny / 2 != 0)
    with pytest.raises(ValueError, match="from inside"), flushed_denormals(), flushed_denormals():
        raise ValueError("from inside")
    assert bool(tiny / 2 != 0)
    with flushed_denormals():
        with flushed_denormals():
            pass
        assert bool(tiny / 2 == 0)


def test_denormals_are_flushed_in_every_thread_that_computes():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        tiny = torch.full((1 << 18,), torch.finfo(torch.float32).tiny)
        assert float((tiny / 2 == 0).float().mean()) == 0.0  # torch's threads exist from here on
        for _ in range(2):
            with flushed_denormals():
                assert float((tiny / 2 == 0).float().mean()) == 1.0
            assert float((tiny / 2 == 0).float().mean()) == 0.0
    finally:
        torch.set_num_threads(threads)


WARM = """
import sys
import torch
from numba.core.registry import CPUDispatcher
from datagen.tasks.navigation import draw
from datagen.problem import FOUR
from datagen.tasks.registry import DatasetSpec
from planners.specs import PlannerSpec, TrainingSpec
from planners.training import trainer as training


def compiled():
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "planners"]
    kernels = [value for module in modules for value in vars(module).values() if isinstance(value, CPUDispatcher)]
    return {(kernel.py_func.__qualname__, str(signature)) for kernel in kernels for signature in kernel.signatures}


class Watched(training.Trainer):
    def _warm_up(self):
        super()._warm_up()
        self.warm = compiled()


problems = draw(DatasetSpec(map_size=7, train=8, valid=0, test=0), "train", 0, 8)
for threads, core, adjoint, solver, solver_bwd in CASES:
    torch.set_num_threads(threads)
    fields = {} if adjoint != "implicit" else {"solver_bwd": solver_bwd}
    planner = PlannerSpec(
        core=core, adjoint=adjoint, solver=solver, hidden_channels=8, q_channels=8, k_fwd=3, **fields
    )
    found = Watched(planner, TrainingSpec(epochs=1, batch_size=4), problems, problems, moves=FOUR, seed=0)
    found.run_epoch()
    assert found.warm, "nothing is compiled"
    assert compiled() == found.warm, (core, adjoint, compiled() - found.warm)
print("all warm")
"""


@pytest.mark.slow
def test_nothing_is_compiled_once_the_clock_runs():
    cases = [
        (1, "vin", "implicit", "forward", "anderson"),
        (2, "contractive", "implicit", "gauss_seidel", "forward"),
        (2, "vin", "unrolled", "forward", ""),
        (1, "conv_gppn", "implicit", "anderson", "gauss_seidel"),
        (2, "conv_gppn", "unrolled", "forward", ""),
    ]
    code = WARM.replace("CASES", repr(cases))
    environment = {**os.environ, "IDP_CHECK_SHAPES": ""}  # the shapes of training are checked by the tests beside
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "all warm", done.stderr


def test_warming_up_changes_nothing(problems, monkeypatch):
    planner = PlannerSpec(core="contractive", adjoint="implicit", hidden_channels=8, q_channels=8, k_fwd=8, k_bwd=8)
    training = TRAINING.model_copy(
        update={"optimizer": "adam", "discount_from": 0.9, "jacobian_weight": 1.0, "jacobian_frequency": 0.5}
    )
    runs = []
    for warm in (True, False):
        if not warm:
            monkeypatch.setattr(Trainer, "_warm_up", lambda self: None)
        one = trainer(problems, planner, training)
        record = numbers(one.run_epoch())
        runs.append((record, one.state_dict()["optimizer"], one.planner.state_dict(), torch.get_rng_state()))
    assert repr(runs[0]) == repr(runs[1])
    for a, b in zip(runs[0][2].values(), runs[1][2].values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(runs[0][3], runs[1][3])


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for what a test adds to it."""

    class Clock:
        seconds = 0.0

        def perf_counter(self):
            return self.seconds

    stopped = Clock()
    for module in (training_module, records_module):
        monkeypatch.setattr(module, "time", stopped)
    return stopped


def test_compilation_is_no_part_of_a_budget(problems, monkeypatch, clock):
    """A kernel that takes its time at the first call, as one that isn't compiled yet does, costs no training step."""
    build, first = training_module.build_planner, []

    def build_slowly(*arguments, **options):
        planner = build(*arguments, **options)
        plan = planner.plan

        def slow_at_first(*inputs, **more):
            clock.seconds += 1 if first else 60
            first.append(True)
            return plan(*inputs, **more)

        planner.plan = slow_at_first
        return planner

    monkeypatch.setattr(training_module, "build_planner", build_slowly)
    record = trainer(problems, training=TRAINING.model_copy(update={"most_seconds": 4.0})).run_epoch()
    assert (record.steps, record.train_seconds, record.forward_seconds) == (4, 4.0, 1.0)


def test_less_than_a_batch_is_refused_in_words(problems):
    train, valid = problems
    with pytest.raises(ValueError, match=r"train: expected at least one batch of 16 problems \(batch_size\), got 15"):
        Trainer(PLANNER, TRAINING, train[:15], valid, moves=FOUR, seed=0)
    with pytest.raises(ValueError, match="problems: expected at least one to plan, got none"):
        evaluate(trainer(problems).planner, valid[:0], moves=FOUR)


def test_an_error_leaves_the_planner_as_it_was(problems, monkeypatch):
    planner = PlannerSpec(core="contractive", adjoint="implicit", hidden_channels=8, q_channels=8, k_fwd=8, k_bwd=8)
    training = TRAINING.model_copy(update={"discount_from": 0.9, "tested_checkpoint": "best"})
    one = trainer(problems, planner, training)
    one.run_epoch()
    one.planner.core.head_weight.data += 1  # so that the best weights are others
    before = {name: tensor.clone() for name, tensor in one.planner.state_dict().items()}

    def fail(*inputs, **options):
        raise RuntimeError("no")

    one.planner.plan = fail
    one.planner.train()
    for act in (one.run_epoch, lambda: one.test(problems[1])):
        with pytest.raises(RuntimeError, match="no"):
            act()
    assert one.planner.core.discount == 0.99 and one.planner.training
    assert all(torch.equal(before[name], tensor) for name, tensor in one.planner.state_dict().items())


def test_the_time_of_the_forward_pass_leaves_out_how_the_batch_got_there(problems, monkeypatch, clock):
    of = Inputs.of

    def slowly(batch, device):
        clock.seconds += 1
        return of(batch, device)

    monkeypatch.setattr(training_module.Inputs, "of", slowly)
    record = trainer(problems).run_epoch()
    assert (record.forward_seconds, record.backward_seconds, record.train_seconds) == (0.0, 0.0, 4.0)


def test_a_mapper_that_nothing_teaches_is_refused_before_training():
    """Here by a core that cuts the gradient; ours that do are refused when a spec is read."""
    problems, planner = arms()
    training = TrainingSpec(epochs=2, batch_size=8, mapper_pretrain_epochs=1)

    class Cut(torch.nn.Module):
        def __init__(self, core):
            super().__init__()
            self.core = core

        def encode(self, x):
            return self.core.encode(x.detach())

    build = training_module.build_planner

    def cut(*arguments, **options):
        planner = build(*arguments, **options)
        planner.core = Cut(planner.core)
        return planner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_module, "build_planner", cut)
        learner = Trainer(planner, training, problems, problems[:0], moves=FOUR_WRAP, seed=0)
        with pytest.raises(ValueError, match="no gradient reaches the mapper 'unet' through core 'contractive'"):
            learner.run_epoch()
    assert learner.spent.steps == 0


def test_draws_are_the_processors_on_every_device(problems, monkeypatch):
    devices = []
    rand = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *size, **options: (devices.append(options), rand(*size, **options))[1])
    planner = PlannerSpec(core="contractive", hidden_channels=8, q_channels=8, k_fwd=4)
    training = TRAINING.model_copy(update={"discount_from": 0.9, "jacobian_weight": 1.0, "jacobian_frequency": 0.5})
    trainer(problems, planner, training).run_epoch()
    assert devices and all(options["generator"].device.type == "cpu" for options in devices if "generator" in options)
    assert not any("device" in options for options in devices)


def test_an_error_says_in_which_phase_it_happened(problems):
    peak = trainer(problems, training=TrainingSpec(epochs=1, batch_size=16)).run_epoch().peak_bytes
    for limit, expected in ((1, "update"), (peak // 2, "forward")):
        with pytest.raises(MemoryLimitExceeded) as error:
            trainer(problems, memory_limit_bytes=limit).run_epoch()
        assert error.value.phase == expected
    one = trainer(problems)
    one.run_epoch()

    def fail(*inputs, **options):
        raise MemoryError

    one.planner.plan = fail
    with pytest.raises(MemoryError) as failed:
        one.test(problems[1])
    assert failed.value.phase == "test"


class _Drawn(torch.nn.Module):
    """A mapper that draws what it is shown, so that tests decide what is on its map."""

    def forward(self, observation, size):
        return 10 * (observation.float() - 0.5)


def test_a_search_on_the_map_that_a_mapper_drew_arrives_as_far_as_the_map_is_right():
    spec = DatasetSpec(task="workspace_manipulation", map_size=9, train=1, valid=1, test=6)
    problems = TASKS[spec.task].draw()(spec, "test", 0, 6)
    planner = build_planner(PlannerSpec(core="vin", k_fwd=2, wrap=True, mapper="unet", q_channels=8))
    planner.mapper = _Drawn()
    moves = TASKS[spec.task].moves

    def found(drawn):
        seen = dataclasses.replace(problems, observation=drawn[:, None])
        return evaluate(planner, seen, moves=moves).searched

    everything, nothing = np.ones_like(problems.map), np.zeros_like(problems.map)
    assert found(problems.map) == 1, "on the true map a search arrives from everywhere"
    # Where nothing is free a search still sees the goal beside it; where all is, it walks into the first obstacle.
    assert 1 / 81 < found(nothing) < found(everything) < 1
    given = build_planner(PlannerSpec(core="vin", k_fwd=2, wrap=True, q_channels=8))
    bare = dataclasses.replace(problems, observation=None)
    assert evaluate(given, bare, moves=moves).searched is None, "there is nothing that a mapper drew"
