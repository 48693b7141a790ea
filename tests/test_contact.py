"""The example of a system: is its simulator's step right, are its derivatives, and does it learn through them?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datagen.storage.dataset import make_dataset
from orchestrator.storage.layout import Storage
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.plugins import load_plugins
from orchestrator.sweep.specs import expand
from orchestrator.trial.train import run_trial

EXAMPLES = Path(__file__).parents[1] / "examples"
SECONDS, GRAVITY = 0.05, 9.81


@pytest.fixture
def contact():
    """The simulator."""
    load_plugins(["contact"], beside=[EXAMPLES])
    import contact.dynamics
    import contact.scenes

    return contact


def numbers(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def a_box(contact, friction=0.4):
    return contact.scenes.Box(numbers(0.5, 0.3), numbers(friction).squeeze())


def steps(contact, box, q, v, count, central_path=1e-8):
    for _ in range(count):
        after = contact.dynamics.step(box, q, v, seconds=SECONDS, central_path=central_path)
        assert after.converged.all()
        q, v = after.q, after.v
    return q, v


def test_it_falls_slides_sticks_and_tips(contact):
    falling, v = steps(contact, a_box(contact), numbers([0.0, 5.0, 0.3]), numbers([1.0, 0.0, 2.0]), 4)
    assert torch.allclose(v, numbers([1.0, -GRAVITY * 4 * SECONDS, 2.0]), atol=1e-6) and falling[0, 1] < 5.0
    flat, moving = numbers([0.0, 0.3 + 1e-6, 0.0]), numbers([2.0, 0.0, 0.0])
    _, v = steps(contact, a_box(contact, friction=0.4), flat, moving, 4)
    assert v[0, 0].item() == pytest.approx(2.0 - 0.4 * GRAVITY * 4 * SECONDS, abs=1e-4)
    _, v = steps(contact, a_box(contact, friction=0.4), flat, moving, 14)
    assert v.abs().max() < 1e-4
    upright = torch.pi / 2.0
    _, v = steps(
        contact, a_box(contact, friction=2.0), numbers([0.0, 0.5 + 1e-6, upright]), numbers([3.0, 0.0, 0.0]), 6
    )
    assert v[0, 2] < -0.5  # it trips over its edge, clockwise


def test_tossed_boxes_stay_above_the_ground_and_come_to_rest(contact):
    torch.manual_seed(0)
    box, count = a_box(contact), 8
    q = torch.stack((torch.zeros(count), 0.7 + 0.4 * torch.rand(count), 6.0 * torch.rand(count)), 1).double()
    q, v = steps(contact, box, q, 2.0 * torch.randn(count, 3).double(), 45, central_path=1e-6)
    _, up = box.corners(q)
    assert (q[:, 1:2] + up).min() > 0 and v.abs().amax() < 1e-3
    assert torch.allclose(q[:, 1] % 0.2, torch.full((count,), 0.1, dtype=torch.float64), atol=1e-3)  # 0.3 or 0.5


@pytest.mark.parametrize("central_path", [1e-2, 1e-6])
def test_the_step_has_the_derivatives_of_its_values(contact, central_path):
    places = numbers([0.0, 0.35, 0.1], [0.3, 0.8, 0.4], [0.0, 0.31, 0.001])
    speeds = numbers([1.0, -2.0, 0.3], [0.1, 0.0, 0.0], [0.3, 0.0, 0.0])
    inputs = (places, speeds, torch.tensor([0.5, 0.3], dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64))

    def after(q, v, half, friction):
        box = contact.scenes.Box(half, friction)
        found = contact.dynamics.step(box, q, v, seconds=SECONDS, central_path=central_path)
        return found.q, found.v

    inputs = tuple(part.clone().requires_grad_() for part in inputs)
    assert torch.autograd.gradcheck(after, inputs, eps=1e-7, atol=1e-4, rtol=1e-3)


def scenes(contact):
    """Each scene, and where its bodies are near to what they may meet."""
    of = contact.scenes
    friction = numbers(0.4).squeeze()
    return {
        "box": (a_box(contact), numbers([0.1, 0.33, 0.05])),
        "puck": (of.Puck(numbers(0.2).squeeze(), 1.0, friction), numbers([0.75, -0.78, 0.3])),
        "push": (of.Push(of.Box(numbers(0.3, 0.2), friction), 0.2), numbers([0.0, 0.21, 0.02, -0.32])),
        "hopper": (of.Hopper(friction), numbers([0.1, 0.75, 0.0, 0.01])),
    }


@pytest.mark.parametrize("name", ["box", "puck", "push", "hopper"])
def test_every_scene_keeps_its_gaps_and_gains_no_energy(contact, name):
    scene, q = scenes(contact)[name]
    gap = torch.func.jacrev(lambda place: scene.contacts(place[None]).gap[0])(q[0])
    assert torch.allclose(gap, scene.contacts(q).normal[0], atol=1e-12)
    v = numbers([2.0, -1.0, 1.0, 3.0])[:, : q.shape[1]]
    energy = []
    for _ in range(6):
        energy.append((0.5 * scene.inertia * v.square() - scene.inertia * scene.gravity * q).sum().item())
        after = contact.dynamics.step(scene, q, v, seconds=SECONDS, central_path=1e-6)
        q, v = after.q, after.v
        assert after.converged.all() and scene.contacts(q).gap.min() > 0
    assert max(energy) <= energy[0] * (1.0 + 1e-4) and energy[-1] < 0.95 * energy[0]


def test_a_hard_step_may_have_the_derivatives_of_a_softer_one(contact):
    scene, q = scenes(contact)["push"]
    q, v, force = numbers([0.0, 0.2001, 0.0, -0.5]), numbers([0.0] * 4), numbers([0.0, 0.0, 0.0, 1.0]).requires_grad_()
    hard = contact.dynamics.step(scene, q, v, seconds=SECONDS, central_path=1e-6, force=force)
    relaxed = contact.dynamics.relaxed_step(scene, q, v, seconds=SECONDS, central_path=1e-2, force=force)
    assert torch.allclose(hard.q, relaxed.q, atol=1e-9) and torch.allclose(hard.v, relaxed.v, atol=1e-7)
    slope, smooth = (torch.autograd.grad(one.v[0, 0], force)[0][0, 3] for one in (hard, relaxed))
    assert smooth > 1e-6 > 1e3 * slope.abs()  # the pusher is far from the box
    soft = contact.dynamics.step(scene, q, v, seconds=SECONDS, central_path=1e-2, force=force)
    assert torch.allclose(torch.autograd.grad(soft.v[0, 0], force)[0][0, 3], smooth)


def test_a_push_is_found_by_softer_derivatives_and_not_by_hard_ones(contact, tmp_path):
    changes = ["tasks=[{task: motions, options: {steps: 6}}]", "training.epochs=4", "data.test=1"]
    sweep = load_sweep(
        EXAMPLES / "contact_motions.yaml", "smoke", [*changes, "grid={system.central_path: [1e-6, 1e-2]}"]
    )
    found = {}
    for trial in expand(sweep):
        make_dataset(trial.spec.data, Storage(tmp_path).datasets)
        result = run_trial(trial.spec, Storage(tmp_path))
        assert result.status == "COMPLETED" and not result.forward_diverged, result.reason
        found[trial.axes["system.central_path"]] = result.metrics["distance"]
    assert found[1e-2] < 0.02 and found[1e-6] > 0.25


def test_it_learns_through_implicit_gradients_as_through_differences(contact, tmp_path):
    changes = ["data.train=4", "data.valid=1", "data.test=1", "tasks=[{task: tosses, options: {steps: 4}}]"]
    sweep = load_sweep(EXAMPLES / "contact.yaml", "smoke", [*changes, "training.epochs=2"])
    results = {}
    for trial in expand(sweep):
        make_dataset(trial.spec.data, Storage(tmp_path).datasets)
        results[trial.axes["planner"]] = run_trial(trial.spec, Storage(tmp_path))
    implicit, differences = results["implicit"], results["differences"]
    assert implicit.status == differences.status == "COMPLETED" and not implicit.forward_diverged
    assert implicit.metrics == pytest.approx(differences.metrics, rel=1e-3)
    assert implicit.metrics["size"] < 0.5 * (0.1 / 0.5 + 0.1 / 0.3)  # what is believed at first
