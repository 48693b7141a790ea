"""Contact's picture and numbers: `python docs/related_contact_picture.py` takes a minute, draws and prints them again.

How a box that rests takes a push, and its derivative, by the central path's parameter; a push and a stride that are
found; and, printed, how far scenes are from penetration and how their energy goes from 10 Hz to 1,000 Hz, and what
derivatives differ from differences by.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from contact import MotionOptions, TrajectoryOptions
from contact.dynamics import HARD, Scene, step
from contact.scenes import Box, Hopper, Puck, Push, numbers
from contact.trajectories import Trajectories, motion

from orchestrator.trial.system import Setting
from planners import TrainingSpec

PICTURE = Path(__file__).parent / "images" / "related-contact.png"
KAPPAS, SECONDS, ITERATIONS, SHIFT = (1e-6, 1e-3, 1e-2, 1e-1), 0.05, 15, 1e-6
FRICTION = numbers(0.4).squeeze()


def thrown(count: int = 8) -> dict[str, tuple[Scene, Tensor, Tensor]]:
    """Return each scene, and places and velocities that it is thrown with."""
    generator = torch.Generator().manual_seed(0)

    def drawn(low: list[float], high: list[float]) -> Tensor:
        return numbers(*low) + (numbers(*high) - numbers(*low)) * torch.rand(
            count, len(low), generator=generator, dtype=torch.float64
        )

    push = Push(Box(numbers(0.3, 0.2), FRICTION), 0.2)
    return {
        "box": (Box(numbers(0.5, 0.3), FRICTION), drawn([0, 0.7, -3], [0, 1.2, 3]), drawn([-3, -2, -3], [3, 0, 3])),
        "puck": (Puck(numbers(0.2).squeeze(), 1.0, FRICTION), drawn([-0.5] * 3, [0.5] * 3), drawn([-4] * 3, [4] * 3)),
        "push": (push, drawn([0, 0.21, 0, -0.8], [0, 0.3, 0, -0.4]), drawn([0, 0, 0, 1], [0, 0, 0, 3])),
        "hopper": (Hopper(FRICTION), drawn([0, 0.8, 0, 0.3], [0.2, 1.0, 0, 0.4]), drawn([-2] * 4, [2] * 4)),
    }


def energy(scene: Scene, q: Tensor, v: Tensor) -> Tensor:
    """Return kinetic and potential energy [B]."""
    return (0.5 * scene.inertia * v.square() - scene.inertia * scene.gravity * q).sum(1)


def stable(hertz: int, name: str, seconds: float = 1.0) -> str:
    """Return a row: the least gap, the most and the last energy over the first, and steps that are not solved."""
    scene, q, v = thrown()[name]
    least, unsolved = torch.inf, 0
    most = now = first = energy(scene, q, v)
    for _ in range(round(seconds * hertz)):
        after = step(scene, q, v, seconds=1.0 / hertz, central_path=HARD)
        q, v = after.q.detach(), after.v.detach()
        now = energy(scene, q, v)
        least, most = min(least, float(scene.contacts(q).gap.min())), torch.maximum(most, now)
        unsolved += int((~after.converged).sum())
    high, last = float((most / first).max()), float((now / first).mean())
    return f"| {name} | {hertz:,} | {least * 1e6:.2f} | {high:.4f} | {last:.2f} | {unsolved} |"


def differs(name: str, kappa: float) -> float:
    """Return how far a step's derivatives are from central differences, the largest over the largest."""
    scene, q, v = thrown(4)[name]
    for _ in range(8):
        after = step(scene, q, v, seconds=SECONDS, central_path=kappa)
        q, v = after.q.detach(), after.v.detach()
    q.requires_grad_(), v.requires_grad_()
    moved = step(scene, q, v, seconds=SECONDS, central_path=kappa).v
    exact = torch.stack([torch.autograd.grad(part.sum(), v, retain_graph=True)[0] for part in moved.unbind(1)], 1)
    columns = []
    with torch.no_grad():
        for shift in SHIFT * torch.eye(v.shape[1], dtype=v.dtype):
            high, low = (step(scene, q, v + sign * shift, seconds=SECONDS, central_path=kappa).v for sign in (1, -1))
            columns.append((high - low) / (2.0 * SHIFT))
    return float((exact - torch.stack(columns, 2)).abs().max() / exact.abs().max())


def draw_push(values: Axes, slopes: Axes) -> None:
    """Draw the velocity that a box at rest takes from a force in one step, and its derivative."""
    box = Box(numbers(0.5, 0.3), FRICTION)
    push = torch.linspace(0.0, 5.0, 101, dtype=torch.float64)
    for kappa in KAPPAS:
        q = torch.zeros(len(push), 3, dtype=torch.float64) + numbers(0.0, 0.3 + kappa**0.5, 0.0)
        v = torch.zeros_like(q)
        for _ in range(10):
            rested = step(box, q, v, seconds=SECONDS, central_path=kappa)
            q, v = rested.q.detach(), rested.v.detach()
        pushed = push.clone().requires_grad_()
        force = pushed[:, None] * numbers(1.0, 0.0, 0.0)
        after = step(box, q, v, seconds=SECONDS, central_path=kappa, force=force).v[:, 0]
        (slope,) = torch.autograd.grad(after.sum(), pushed)
        values.plot(push, after.detach() * 100, label=f"{kappa:g}")
        slopes.plot(push, slope * 100, label=f"{kappa:g}")
        print(f"kappa {kappa:g}: derivative under half of friction's limit {float(slope[24]):.1e} m/s per N")
    values.set(xlabel="force, N", ylabel="velocity after a step, cm/s", title="A box at rest is pushed")
    slopes.set(xlabel="force, N", ylabel="its derivative, cm/s per N", title="Its derivative")
    slopes.legend(title="kappa", fontsize="small")


def draw_motion(axes: Axes, scene: str) -> None:
    """Draw a motion that is found by the derivatives at 0.001, over time, and print its last place."""
    problem = MotionOptions(scene=scene, seconds=0.1, steps=10)
    made = motion(problem, np.random.default_rng(0))
    samples = {name: np.array([value]) for name, value in made.items()}
    options = TrajectoryOptions(central_path=1e-3)
    setting = Setting(options, problem, TrainingSpec(), samples, samples, samples, 0, "cpu", lambda: None)
    found = Trajectories(setting)
    for epoch in range(1, ITERATIONS + 1):
        found.run_epoch(epoch)
    with torch.no_grad():
        way = torch.cat([found.start, *(one.q for one in found.steps())])
    time = np.arange(len(way)) * problem.seconds
    lines = (
        {"box": way[:, 0] - 0.3, "pusher": way[:, 3]}
        if scene == "push"
        else {"body, right": way[:, 0], "body, up": way[:, 1], "foot, right": way[:, 2], "foot, up": way[:, 3]}
    )
    for label, line in lines.items():
        axes.plot(time, line, label=label, marker=".")
    goal = float(made["target"]) - (0.3 if scene == "push" else 0.0)
    axes.axhline(goal, color="black", linestyle=":", linewidth=1, label="target")
    axes.set(xlabel="second", ylabel="metre", title=f"A {'push' if scene == 'push' else 'stride'} that is found")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.4 * (high - low))  # lines are everywhere below
    axes.legend(fontsize="x-small", loc="upper center", ncols=2)


def draw(path: Path) -> None:
    """Write the picture."""
    figure = Figure(figsize=(11, 3), layout="constrained")
    axes = figure.subplots(1, 4)
    draw_push(axes[0], axes[1])
    for panel, scene in zip(axes[2:], ("push", "stride"), strict=True):
        draw_motion(panel, scene)
    figure.savefig(path, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE)
    for name in thrown():
        print(name, [f"{kappa:g}: {differs(name, kappa):.0e}" for kappa in (1e-2, 1e-4, 1e-6)])
    for name in thrown():
        for hertz in (10, 100, 1000):
            print(stable(hertz, name), flush=True)
