"""A GPU's rules, on a device that is none (tests/pretended.py): same numbers, nothing of the host's, no waiting."""

from __future__ import annotations

import dataclasses
import io
from contextlib import nullcontext

import pytest
import torch
from pretended import DEVICE, OnDevice, Waited, capture, no_waiting, pretended_device

from datagen.expert.grid import goal_distances, optimal_actions
from datagen.problem import FOUR
from datagen.tasks.navigation import draw
from datagen.tasks.registry import DatasetSpec
from orchestrator.trial.divergence import WatchedTrainer
from orchestrator.trial.trained import residual_floor
from planners import Anderson, Broyden, ForwardIteration, PlannerSpec, TrainingSpec, build_planner, registry
from planners.conformance.cores import EVERY_ADJOINT, check_saved_memory
from planners.conformance.planners import checked_on
from planners.training.evaluation import Inputs, evaluate
from planners.training.graphs import GraphedSteps, StepGraph, refusal
from planners.training.trainer import Trainer

CORES = {
    "vin": {"hidden_channels": 6, "q_channels": 8},
    "symvin": {"hidden_channels": 6, "q_channels": 8, "group": "D4"},
    "conv_gppn": {"hidden_channels": 6, "q_channels": 6},
    "spt": {"embedding": 8, "heads": 2, "layers": 1, "feedforward": 8},
    "contractive": {"hidden_channels": 8, "q_channels": 8},
    "reachability": {"hidden_channels": 8, "q_channels": 8},
    "shortest_path": {},
}
ADJOINTS = {
    "unrolled": {"adjoint": "unrolled"},
    "implicit": {"adjoint": "implicit", "k_bwd": 6, "tolerance": 1e-2},
    "broyden": {"adjoint": "implicit", "k_bwd": 6, "tolerance": 1e-2, "solver_bwd": "broyden"},
    "phantom": {"adjoint": "phantom", "tolerance": 1e-2},
    "one_step": {"adjoint": "one_step", "tolerance": 1e-2},
}
CASES = [*((core, adjoint) for core in CORES for adjoint in ("unrolled", "implicit")), *(("vin", a) for a in ADJOINTS)]


def test_every_core_and_mapper_is_among_them():
    for tried, registered in ((CORES, registry.CORES), ({"identity", *OBSERVATIONS}, registry.MAPPERS)):
        assert set(tried) == {name for name, entry in registered.items() if entry.target.startswith("planners.")}


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
    planner = build_planner(spec, kernel="reference").double()  # attention is computed otherwise there, to rounding
    problem = [part.double() for part in problem]
    here = _numbers(planner, *problem)
    planner.zero_grad()
    with pretended_device():
        planner.to(DEVICE)
        given = [part.to(DEVICE) for part in problem]
        with no_waiting():
            there = _numbers(planner, *given)
    assert len(here) == len(there) and all(isinstance(part, OnDevice) for part in there)
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(one, other.raw, rtol=1e-9, atol=1e-12)


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


def test_maps_with_and_without_a_wall_round_them_are_tested_in_one_batch(problems):
    map_ = problems[1].map.copy()
    map_[::2, :, 0] = 1
    distance = goal_distances(map_, problems[1].goal, FOUR)
    mixed = dataclasses.replace(
        problems[1], map=map_, distance=distance, optimal_actions=optimal_actions(map_, distance, FOUR)
    )
    spec = PlannerSpec(core="contractive", hidden_channels=8, q_channels=8, k_fwd=8, k_bwd=6)
    here = build_planner(spec)
    with pretended_device():
        there = build_planner(spec)
        there.load_state_dict(here.state_dict())
        found = evaluate(there.to(DEVICE), mixed, moves=FOUR, measures=("path_independence",))
    expected = evaluate(here, mixed, moves=FOUR, measures=("path_independence",))
    assert found.measured.path_independence == pytest.approx(expected.measured.path_independence, rel=1e-5)
    assert found.cells_by_distance == expected.cells_by_distance and found.maps == expected.maps == 32
    assert found.success_rate == pytest.approx(expected.success_rate, abs=1e-3) and 0 < found.success_rate < 1


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


@pytest.mark.parametrize(("core", "adjoint"), dict.fromkeys(CASES))
def test_a_training_step_can_be_captured_and_gives_the_same_numbers(core, adjoint, problem):
    spec = PlannerSpec(core=core, k_fwd=12, options=CORES[core], **ADJOINTS[adjoint])
    planner = build_planner(spec, kernel="reference").double()
    with pretended_device():
        planner.to(DEVICE)
        given = [part.double().to(DEVICE) for part in problem]
        expected = _numbers(planner, *given)
        planner.zero_grad()
        with capture():
            found = _numbers(planner, *given)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one.raw, other.raw, rtol=1e-9, atol=1e-12)


OBSERVATIONS = {
    "unet": ({"channels": (4, 8)}, (3, 1, 96, 96)),
    "panorama": ({}, (3, 9, 9, 4, 32, 32, 3)),
    "tiles": ({}, (3, 3, 72, 72)),
}


@pytest.mark.parametrize("mapper", OBSERVATIONS)
def test_so_can_one_whose_map_a_mapper_makes(mapper, problem):
    options, shape = OBSERVATIONS[mapper]
    spec = PlannerSpec(
        core="vin", k_fwd=12, options=CORES["vin"], mapper=mapper, mapper_options=options, **ADJOINTS["implicit"]
    )
    planner = build_planner(spec, kernel="reference")
    with pretended_device():
        planner.to(DEVICE)
        goal, observation = problem[1].to(DEVICE), torch.rand(shape).to(DEVICE)
        planner.plan(None, goal, observation).logits.square().mean().backward()
        expected = [weights.grad.clone() for weights in planner.parameters()]
        planner.zero_grad()
        with capture():
            planner.plan(None, goal, observation).logits.square().mean().backward()
    for one, weights in zip(expected, planner.parameters(), strict=True):
        torch.testing.assert_close(one.raw, weights.grad.raw)


def test_which_steps_go_into_graphs_and_when_a_new_one_is_captured(problems):
    cuda, planner, training = torch.device("cuda"), PlannerSpec(), TrainingSpec(batch_size=8, epochs=2)
    assert not refusal(cuda, planner, training)
    assert "CUDA" in refusal(torch.device("cpu"), planner, training)
    assert "draws" in refusal(cuda, planner, training.model_copy(update={"jacobian_weight": 1.0}))
    assert "float32" in refusal(cuda, planner, training.model_copy(update={"precision": "bfloat16"}))
    assert "gmres" in refusal(cuda, PlannerSpec(solver_bwd="gmres"), training)
    with pytest.raises(ValueError, match="graphs: there are graphs on CUDA devices only"):
        Trainer(planner, training, *problems, moves=FOUR, seed=0, graphs=True)
    captured, forgotten = [], []
    steps = GraphedSteps(
        len, lambda: forgotten.append(True), lambda compute, inputs: captured.append(inputs) or captured
    )
    inputs = Inputs.of(problems[0][:8])
    for given, stage in ((inputs, 0), (inputs, 0), (Inputs.of(problems[0][:4]), 0), (inputs, 0), (inputs, 1)):
        assert steps.graph(given, (stage,)) is captured
    assert len(captured) == len(forgotten) == 4


def test_memory_that_runs_out_while_a_backward_pass_is_captured_ran_out_there(problems, monkeypatch):
    without = {"graph": lambda *_, **__: nullcontext(), "synchronize": lambda: None}
    for name, made in (dict.fromkeys(("CUDAGraph", "Stream", "graph_pool_handle"), object) | without).items():
        monkeypatch.setattr(torch.cuda, name, made)

    class Loss:
        def backward(self):
            raise torch.OutOfMemoryError("none is left")

    with pytest.raises(torch.OutOfMemoryError) as ended:
        StepGraph(lambda inputs: (None, Loss()), Inputs.of(problems[0][:4]))
    assert ended.value.phase == "backward"


class _Replayed:
    """What a graph does, without one: the step runs again where it is replayed."""

    def __init__(self, compute, inputs):
        self.compute, self.replays, self.weights = compute, 0, compute.__self__.planner

    def forward(self, inputs):
        self.weights.zero_grad()  # a graph writes over the gradients that it made
        self.loss = self.compute(inputs)
        return self.loss

    def backward(self):
        self.replays += 1
        self.loss[1].backward()


def test_steps_from_graphs_train_as_those_without(problems):
    records = []
    for replayed in (False, True):
        learner = WatchedTrainer(
            PlannerSpec(hidden_channels=4, q_channels=4, k_fwd=4), TrainingSpec(epochs=1, batch_size=4),
            problems[0], problems[1][:0], moves=FOUR, seed=3, kernel="reference",
        )  # fmt: skip
        if replayed:
            learner._graphs = GraphedSteps(learner._captured, learner.optimizer.zero_grad, _Replayed)
        records.append(learner.run_epoch())
    assert records[0].train_loss == records[1].train_loss and learner._graphs._graph.replays == 5
    learner.forget_graphs()
    assert learner._graphs is None


@pytest.mark.parametrize("core", ["vin", "symvin", "contractive", "reachability"])
def test_half_precision_reaches_every_weight_and_has_a_floor(core, problems):
    spec = PlannerSpec(core=core, k_fwd=20, k_bwd=6, options=CORES[core])
    train = problems[0][:16]
    learners = [
        Trainer(spec, TrainingSpec(epochs=1, batch_size=8, precision=precision), train, train[:0], moves=FOUR, seed=3)
        for precision in ("float32", "bfloat16")
    ]
    exact, half = (learner.run_epoch() for learner in learners)
    assert "autocast" in half.kernel and half.train_loss == pytest.approx(exact.train_loss, rel=0.1)
    names = [{n for n, w in one.planner.named_parameters() if w.grad is not None and w.grad.any()} for one in learners]
    assert names[0] == names[1] and all(w.dtype == torch.float32 for w in learners[1].planner.parameters())
    assert residual_floor(learners[1].planner, train, "float32", FOUR) is None
    floor = residual_floor(learners[1].planner, train, "bfloat16", FOUR)
    # Moves that are decided survive for certain or not at all, in any precision.
    assert floor == 0.0 if core == "reachability" else 1e-6 < floor < 0.1


@pytest.mark.parametrize("check", [check for check in EVERY_ADJOINT if check is not check_saved_memory])
def test_conformance_can_be_checked_on_a_device(check):
    """All but what looks at addresses, which this device has none of."""
    with pretended_device(), checked_on(DEVICE):
        check("vin", "implicit")


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
