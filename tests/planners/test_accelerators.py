"""A GPU's rules, on a device that is none (tests/pretended.py): same numbers, nothing of the host's, no waiting."""

from __future__ import annotations

import dataclasses
import io
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from pretended import DEVICE, OnDevice, Waited, no_waiting, pretended_device

from datagen.problem import FOUR
from datagen.tasks.navigation import draw
from datagen.tasks.registry import DatasetSpec
from orchestrator.trial.divergence import WatchedTrainer
from planners import Anderson, Broyden, ForwardIteration, PlannerSpec, TrainingSpec, build_planner

CORES = {
    "vin": {"hidden_channels": 6, "q_channels": 8},
    "symvin": {"hidden_channels": 6, "q_channels": 8, "group": "D4"},
    "conv_gppn": {"hidden_channels": 6, "q_channels": 6},
    "spt": {"embedding": 8, "heads": 2, "layers": 1, "feedforward": 8},
    "contractive": {"hidden_channels": 8, "q_channels": 8},
    "reachability": {"hidden_channels": 8, "q_channels": 8},
}
ADJOINTS = {
    "unrolled": {"adjoint": "unrolled"},
    "implicit": {"adjoint": "implicit", "k_bwd": 6, "tolerance": 1e-2},
    "broyden": {"adjoint": "implicit", "k_bwd": 6, "tolerance": 1e-2, "solver_bwd": "broyden"},
    "phantom": {"adjoint": "phantom", "tolerance": 1e-2},
    "one_step": {"adjoint": "one_step", "tolerance": 1e-2},
}
CASES = [*((core, adjoint) for core in CORES for adjoint in ("unrolled", "implicit")), *(("vin", a) for a in ADJOINTS)]


def _numbers(planner, free, goal):
    plan = planner.plan(free, goal)
    plan.logits.square().mean().backward()
    gradients = [weights.grad for weights in planner.parameters() if weights.grad is not None]
    solution = plan.solution
    return [plan.logits.detach(), solution.residual, solution.steps, solution.result, *gradients]


@pytest.fixture
def problem():
    torch.manual_seed(0)
    free = (torch.rand(3, 1, 9, 9) > 0.3).float()
    goal = torch.zeros(3, 1, 9, 9)
    goal[:, 0, 4, 4] = 1.0
    return free, goal


@pytest.mark.parametrize(("core", "adjoint"), dict.fromkeys(CASES))
def test_a_planner_solves_on_the_device_as_on_the_host_and_is_never_waited_for(core, adjoint, problem):
    spec = PlannerSpec(core=core, k_fwd=20, options=CORES[core], **ADJOINTS[adjoint])
    planner = build_planner(spec, kernel="reference")
    here = _numbers(planner, *problem)
    planner.zero_grad()
    with pretended_device():
        planner.to(DEVICE)
        given = [part.to(DEVICE) for part in problem]
        with no_waiting():
            there = _numbers(planner, *given)
    assert len(here) == len(there) and all(isinstance(part, OnDevice) for part in there)
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(one, other.raw, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solver", [ForwardIteration, Anderson, Broyden])
def test_what_has_stopped_leaves_the_batch_on_the_device_too(solver):
    rates = torch.tensor([0.0, 0.1, 0.5, 0.8])

    class Step:
        def __init__(self, rates, sizes):
            self.rates, self.sizes = rates, sizes

        def __call__(self, v):
            self.sizes.append(len(v))
            return self.rates[:, None] * v + 1.0

        def take(self, rows):
            return Step(self.rates[rows], self.sizes)

    method = solver(max_steps=200, tolerance=1e-4, rule="residual", record=True)
    here = method.solve(Step(rates, sizes := []), torch.zeros(4, 3))
    with pretended_device():
        v0, given = torch.zeros(4, 3, device=DEVICE), rates.to(DEVICE)
        with no_waiting():
            there = method.solve(Step(given, late := []), v0)
    for part in ("value", "residual", "steps", "result", "trace"):
        torch.testing.assert_close(getattr(here, part), getattr(there, part).raw, rtol=1e-6, atol=1e-7)
    assert len(sizes) <= len(late) < 200
    if solver is ForwardIteration:
        assert late[0] == 4 and late[-1] == 1


@pytest.fixture(scope="module")
def problems():
    return tuple(draw(DatasetSpec(map_size=9, train=64, valid=8, test=8), split, 0, 32) for split in ("train", "valid"))


def _trained(problems, device, *, spoilt=False, **settings):
    planner = PlannerSpec(core="contractive", hidden_channels=8, q_channels=8, k_fwd=8, k_bwd=6)
    training = TrainingSpec(
        epochs=2, batch_size=8, jacobian_weight=1.0, jacobian_frequency=0.5, optimizer="adam", **settings
    )
    kept, (train, valid) = [], problems
    kind = _Spoiling if spoilt else WatchedTrainer
    learner = kind(planner, training, train, valid[:0], moves=FOUR, seed=3, device=device, kernel="reference")
    learner.keep = kept.append
    with no_waiting() if device != "cpu" else nullcontext():
        for batch in learner.train.batches(8, 3, 0):
            learner._step(batch, torch.Generator().manual_seed(1))
    return learner.run_epoch(), learner, kept


class _Spoiling(WatchedTrainer):
    """Training whose weights are no numbers any more at the third step of an epoch."""

    def _step(self, batch, generator):
        if self.step == 2:
            with torch.no_grad():
                self.planner.core.transition_logits.fill_(torch.nan)
        return super()._step(batch, generator)


@pytest.mark.parametrize("spoilt", [False, True])
def test_training_on_the_device_is_that_on_the_host_and_is_waited_for_once_an_epoch(problems, spoilt, monkeypatch):
    here, one, kept = _trained(problems, "cpu", spoilt=spoilt)
    with pretended_device():
        there, other, late = _trained(problems, "pretended:0", spoilt=spoilt)
    times = {"forward_seconds", "backward_seconds", "train_seconds", "peak_bytes"}
    assert here.kernel == "reference: asked for" == there.kernel
    for name in {field.name for field in dataclasses.fields(here)} - times - {"kernel"}:
        assert getattr(there, name) == pytest.approx(getattr(here, name), rel=1e-4, nan_ok=True), name
    assert here.not_finite == spoilt and other.finished == one.finished == spoilt and there.forward_seconds > 0.0
    for mine, its in zip(one.planner.parameters(), other.planner.parameters(), strict=True):
        torch.testing.assert_close(mine.data, its.data.raw, rtol=1e-4, atol=1e-6, equal_nan=True)
    assert len(kept) == len(late) == spoilt
    if spoilt:
        before, after = (torch.load(io.BytesIO(content[0]), weights_only=True) for content in (kept, late))
        assert before["step"] == after["step"] == 2 and before["indices"] == after["indices"]
        for name, weights in before["weights"].items():
            torch.testing.assert_close(weights, after["weights"][name], rtol=1e-4, atol=1e-6, equal_nan=True)


def test_the_device_tells_who_waits():
    with pretended_device(), no_waiting():
        x = torch.ones(3, device=DEVICE)
        assert (x + 1).sum().device == DEVICE
        for wait in (lambda: float(x.sum()), lambda: bool(x.any()), lambda: x.cpu(), lambda: x[x > 0]):
            with pytest.raises(Waited):
                wait()
        with pytest.raises(Waited):
            torch.ones(3).to(DEVICE)
        with pytest.raises(RuntimeError, match="of the host's"):
            x + torch.ones(3)
        assert isinstance(torch.ones(3).pin_memory().to(DEVICE, non_blocking=True), OnDevice)
