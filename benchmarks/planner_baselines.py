"""What others do with the same weights: plain loops, torchdeq, an implicit layer as the authors', a map-by-map metric.

Each is written from the definitions in the literature, in the form in which it is published: encoders layer by layer,
the step called in a Python loop, rewards and values stacked where the authors stack them.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import e2cnn
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchdeq import get_deq

from planners.cores import CompactStep, Core, encoded
from planners.cores.conv_gppn import ConvGPPN
from planners.cores.steerable import e2cnn_conditions, space
from planners.cores.symvin import SymVIN
from planners.cores.vin import VIN

Step = Callable[[Tensor], Tensor]

# v value, r reward, q action values, w adjoint vector, u and s gates, n candidate, K steps


@dataclass(frozen=True)
class Loop:
    """A planner taken apart: where to start, the step, and how logits are read off the value."""

    v0: Tensor
    step: Step
    read: Step


def loop_of(core: Core, x: Tensor) -> Loop:
    """Return the literature's form of a core, on the same parameters; of ours, which have none, the step in torch."""
    if isinstance(core, VIN):
        r_q = F.conv2d(core.reward(core.hidden(x)), core.w_r, padding=1)
        return Loop(
            torch.zeros_like(r_q[:, :1]),
            lambda v: (r_q + F.conv2d(v, core.w_v, padding=1)).max(dim=1, keepdim=True)[0],
            lambda v: core.head(r_q + F.conv2d(v, core.w_v, padding=1)),
        )
    if isinstance(core, SymVIN):
        step = core.encode(x).prepared()
        return Loop(
            step.initial_value(),
            lambda v: step.action_values(v).unflatten(1, (-1, core.order)).max(dim=1)[0],
            lambda v: step.policy(v),
        )
    if not isinstance(core, ConvGPPN):
        step = encoded(core, x)
        step = step.prepared() if isinstance(step, CompactStep) else step
        return Loop(step.initial_value(), step, step.policy)
    r = core.reward(core.hidden(x))
    state = core.candidate.shape[0]
    w_gates = torch.cat([core.from_reward.weight[: 2 * state], core.gates], dim=1)
    w_candidate = torch.cat([core.from_reward.weight[2 * state :], core.candidate], dim=1)
    b_gates, b_candidate = core.from_reward.bias.split((2 * state, state))

    def step(v: Tensor) -> Tensor:
        u, s = torch.sigmoid(F.conv2d(torch.cat([r, v], 1), w_gates, b_gates, padding=1)).chunk(2, dim=1)
        n = torch.tanh(F.conv2d(torch.cat([r, s * v], 1), w_candidate, b_candidate, padding=1))
        return (1 - u) * v + u * n

    return Loop(core.initial(r), step, core.head)


def steerable_loop_of(core: SymVIN, x: Tensor) -> Loop:
    """Return SymVIN the authors' way: e2cnn's layer, which expands its filter at each call, on [r, v] at every step."""
    regular, group = space("D4").regular_repr, space("D4")
    fields = core.action_filter.coefficients.shape[0]
    types = [e2cnn.nn.FieldType(group, n * [regular]) for n in (2, fields)]
    with e2cnn_conditions():
        layer = e2cnn.nn.R2Conv(*types, 3, padding=1, bias=False, initialize=False)
    layer = layer.float().train()
    del layer.weights
    layer.weights = core.action_filter.coefficients.flatten()
    h = F.conv2d(x, core.hidden(), core.hidden_bias, padding=1)
    r = F.conv2d(h, core.reward).expand(-1, core.order, -1, -1)

    def action_values(v: Tensor) -> Tensor:
        return layer(e2cnn.nn.GeometricTensor(torch.cat([r, v], 1), layer.in_type)).tensor

    return Loop(
        torch.zeros_like(r),
        lambda v: action_values(v).unflatten(1, (-1, core.order)).max(dim=1)[0],
        lambda v: F.conv2d(action_values(v), core.head_filter()),
    )


def unrolled(loop: Loop, steps: int) -> tuple[Tensor, float]:
    """Return logits after K steps under autograd, and the number of steps."""
    v = loop.v0
    for _ in range(steps):
        v = loop.step(v)
    return loop.read(v), steps


def in_torchdeq(loop: Loop, steps: int, backward_steps: int, tolerance: float) -> tuple[Tensor, float]:
    """Return logits of the step wrapped in torchdeq: its forward iteration and, as by default, its backward one."""
    deq = get_deq(
        f_solver="fixed_point_iter",
        b_solver="fixed_point_iter",
        f_max_iter=steps - 1,  # one more application of the step attaches the gradient
        b_max_iter=backward_steps,
        f_tol=tolerance,
        b_tol=tolerance,
        f_stop_mode="rel",
        b_stop_mode="rel",
        ift=True,
    )
    calls = 0

    def step(v: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return loop.step(v)

    found, _ = deq(step, loop.v0)
    return loop.read(found[-1]), calls


def in_authors_layer(loop: Loop, steps: int, backward_steps: int, tolerance: float) -> tuple[Tensor, float]:
    """Return logits of an implicit layer as the authors' is described.

    Forward iteration until the residual of the whole batch is small, one more application with its graph, and in the
    backward pass Anderson acceleration (m = 5) of w = J^T w + g from w = g.
    """
    used = 0
    with torch.no_grad():
        v = loop.v0
        while used < steps - 1:
            image = loop.step(v)
            used += 1
            residual = (image - v).norm() / (1e-5 + image.norm())
            v = image
            if float(residual) < tolerance:
                break
    value = loop.step(v)
    at = value.detach().requires_grad_()
    again = loop.step(at)

    def solve(g: Tensor) -> Tensor:
        return _anderson(
            lambda w: torch.autograd.grad(again, at, w, retain_graph=True)[0] + g, g, backward_steps, tolerance
        )

    value.register_hook(solve)
    return loop.read(value), used + 1


def _anderson(f: Step, start: Tensor, steps: int, tolerance: float, depth: int = 5, weight: float = 1e-4) -> Tensor:
    """Return the fixed point of f by Anderson acceleration, its stopping rule over the whole batch."""
    batch, size = start.shape[0], start[0].numel()
    x = start.new_zeros(batch, depth, size)
    fx = torch.zeros_like(x)
    x[:, 0], fx[:, 0] = start.flatten(1), f(start).flatten(1)
    x[:, 1], fx[:, 1] = fx[:, 0], f(fx[:, 0].view_as(start)).flatten(1)
    system = start.new_zeros(batch, depth + 1, depth + 1)
    system[:, 0, 1:] = system[:, 1:, 0] = 1
    right = start.new_zeros(batch, depth + 1, 1)
    right[:, 0] = 1
    k = 1
    for k in range(2, steps):
        n = min(k, depth)
        g = fx[:, :n] - x[:, :n]
        system[:, 1 : n + 1, 1 : n + 1] = g @ g.transpose(1, 2) + weight * torch.eye(n)
        alpha = torch.linalg.solve(system[:, : n + 1, : n + 1], right[:, : n + 1])[:, 1 : n + 1, 0]
        x[:, k % depth] = (alpha[:, None] @ fx[:, :n])[:, 0]
        fx[:, k % depth] = f(x[:, k % depth].view_as(start)).flatten(1)
        residual = (fx[:, k % depth] - x[:, k % depth]).norm() / (1e-5 + fx[:, k % depth].norm())
        if float(residual) < tolerance:
            break
    return x[:, k % depth].view_as(start)


def evaluate_map(logits: np.ndarray, free: np.ndarray, goal: tuple[int, int]) -> tuple[float, float]:
    """Return success and optimality of one map's greedy policy, each by Dijkstra's algorithm from the goal."""
    height, width = free.shape
    offsets = ((-1, 0), (0, -1), (1, 0), (0, 1))
    chosen = logits.argmax(axis=0)

    def costs(follows_policy: bool) -> dict[tuple[int, int], float]:
        found: dict[tuple[int, int], float] = {}
        queue = [(0.0, goal)]
        while queue:
            cost, (i, j) = heapq.heappop(queue)
            if (i, j) in found:
                continue
            found[i, j] = cost
            for action, (di, dj) in enumerate(offsets):
                at = (i - di, j - dj)
                inside = 0 <= at[0] < height and 0 <= at[1] < width
                if inside and at not in found and free[at] and (not follows_policy or chosen[at] == action):
                    heapq.heappush(queue, (cost + 1.0, at))
        return found

    best, taken = costs(False), costs(True)
    optimal = sum(taken[cell] == best[cell] for cell in taken)
    return len(taken) / len(best), optimal / len(best)
