"""The same training steps in JAX: jit, lax loops, an adjoint of its own; each as XLA compiles it for this processor.

Written as a user of JAX would to be fast: channels last, the encoder's two linear layers and the reward's part of every
step computed once, the loop inside one compiled function. The implicit gradient solves w = J^T w + g by Anderson's
method (m = 5) as ours does, all samples until the last is done.

Legend: v value, r reward, q action values, w adjoint vector, u and s gates, n candidate, A actions, G value channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from torch import Tensor

from planners.cores.conv_gppn import ConvGPPN
from planners.cores.symvin import SymVIN
from planners.cores.vin import VIN

Arrays = dict[str, Any]
DEPTH, WEIGHT = 5, 1e-4


@dataclass(frozen=True)
class Steps:
    """A training step of one core: compiled forward pass, and forward with backward pass.

    Attributes:
        forward: parameters -> (loss, logits, steps).
        both: parameters -> gradients.
        parameters: The core's, channels last.
        peak_bytes: What XLA takes for itself in `both`.
    """

    forward: Callable[[Arrays], Any]
    both: Callable[[Arrays], Any]
    parameters: Arrays
    peak_bytes: int


def _array(x: Tensor) -> Any:
    return jnp.asarray(x.detach().numpy())


def _filter(w: Tensor) -> Any:
    """Return filters [out, in, F, F] as XLA reads them, [F, F, in, out]."""
    return _array(w.permute(2, 3, 1, 0))


def _convolve(x: Any, w: Any) -> Any:
    """Convolve as one matrix product: the backward pass of XLA's own takes up to twenty times as long here."""
    size, (_, height, width, _) = w.shape[0], x.shape
    around = jnp.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    taps = [around[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
    return jnp.concatenate(taps, axis=-1) @ w.reshape(-1, w.shape[3])


def _directly(x: Any, w: Any) -> Any:
    """Convolve by XLA's own convolution: of many channels faster, where no gradient is wanted."""
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def parameters_of(core: VIN | SymVIN | ConvGPPN) -> Arrays:
    """Return the parameters; of SymVIN the plain filters, which spares it their expansion."""
    if isinstance(core, SymVIN):
        w_r, w_v = core.filters()
        hidden, bias, reward, head = core.hidden(), core.hidden_bias, core.reward, core.head_filter()
        return {
            "hidden": _filter(hidden),
            "bias": _array(bias),
            "reward": _array(reward[0, :, 0, 0]),
            "w_r": _filter(w_r),
            "w_v": _filter(w_v),
            "head": _filter(head),
        }
    assert core.hidden.bias is not None
    common = {
        "hidden": _filter(core.hidden.weight),
        "bias": _array(core.hidden.bias),
        "reward": _array(core.reward.weight[0, :, 0, 0]),
        "head": _filter(core.head.weight),
    }
    if isinstance(core, VIN):
        return common | {"w_r": _filter(core.w_r), "w_v": _filter(core.w_v)}
    assert core.from_reward.bias is not None
    return common | {
        "initial": _filter(core.initial.weight),
        "from_reward": _filter(core.from_reward.weight),
        "from_bias": _array(core.from_reward.bias),
        "gates": _filter(core.gates),
        "candidate": _filter(core.candidate),
    }


def _rewards(p: Arrays, x: Any) -> Any:
    return _convolve(x, (p["hidden"] @ p["reward"])[..., None]) + p["bias"] @ p["reward"]


def _value_iteration(p: Arrays, x: Any) -> tuple[Any, Arrays]:
    """Return v_0 and what the steps need."""
    part = _convolve(_rewards(p, x), p["w_r"])
    return jnp.zeros((*part.shape[:3], p["w_v"].shape[2])), {"part": part, "w_v": p["w_v"]}


def _bellman(given: Arrays, v: Any) -> Any:
    q = given["part"] + _convolve(v, given["w_v"])
    return q.reshape(*q.shape[:3], -1, v.shape[3]).max(3)


def _read_q(p: Arrays, given: Arrays, v: Any) -> Any:
    return _convolve(given["part"] + _convolve(v, given["w_v"]), p["head"])


def _recurrence(p: Arrays, x: Any) -> tuple[Any, Arrays]:
    r = _rewards(p, x)
    part = _convolve(r, p["from_reward"]) + p["from_bias"]
    return _convolve(r, p["initial"]), {"part": part, "gates": p["gates"], "candidate": p["candidate"]}


def _gated(given: Arrays, v: Any, convolve: Callable = _convolve) -> Any:
    state = v.shape[3]
    both = jax.nn.sigmoid(given["part"][..., : 2 * state] + convolve(v, given["gates"]))
    u, s = both[..., :state], both[..., state:]
    n = jnp.tanh(given["part"][..., 2 * state :] + convolve(s * v, given["candidate"]))
    return (1 - u) * v + u * n


def _norm(x: Any) -> Any:
    return jnp.sqrt(jnp.sum(x * x, axis=(1, 2, 3)))


def _residual(z: Any, fz: Any) -> Any:
    return jnp.max(_norm(fz - z) / (1e-5 + _norm(fz)))


def _iterate(f: Callable, v: Any, steps: int, tolerance: float) -> tuple[Any, Any]:
    """Return v after at most so many steps, fewer where the worst residual is at most the tolerance."""
    if tolerance == 0.0:
        return lax.fori_loop(0, steps, lambda _, v: f(v), v), jnp.asarray(steps)

    def step(state: tuple) -> tuple:
        v, k, _ = state
        image = f(v)
        return image, k + 1, _residual(v, image)

    v, k, _ = lax.while_loop(lambda state: (state[1] < steps) & (state[2] > tolerance), step, (v, 0, jnp.inf))
    return v, k


def _anderson(f: Callable, g: Any, steps: int, tolerance: float) -> Any:
    """Return the fixed point of f from g, each sample with weights of its own."""
    batch = g.shape[0]
    flat = g.reshape(batch, -1)

    def apply(w: Any) -> Any:
        return f(w.reshape(g.shape)).reshape(batch, -1)

    def step(state: tuple) -> tuple:
        w, old, old_change, dw, dc, k, _ = state
        image = apply(w)
        change = image - w
        slot = jnp.maximum(k - 1, 0) % DEPTH
        first = k == 0
        dw = dw.at[:, slot].set(jnp.where(first, dw[:, slot], w - old))
        dc = dc.at[:, slot].set(jnp.where(first, dc[:, slot], change - old_change))
        gram = dc @ dc.swapaxes(1, 2)
        size = jnp.sqrt(jnp.diagonal(gram, axis1=1, axis2=2))
        scale = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 0)
        system = gram * scale[:, :, None] * scale[:, None] + WEIGHT**2 * jnp.eye(DEPTH)
        system = system + jnp.where(size > 0, 0, 1)[:, :, None] * jnp.eye(DEPTH)
        right = scale * (dc @ change[:, :, None])[..., 0]
        gamma = scale * jnp.linalg.solve(system, right[..., None])[..., 0]
        gamma = jnp.where(jnp.isfinite(gamma), gamma, 0)  # all differences are zero, or nearly
        new = image - (gamma[:, None] @ (dw + dc))[:, 0]
        residual = jnp.max(jnp.linalg.norm(change, axis=1) / (1e-5 + jnp.linalg.norm(image, axis=1)))
        return new, w, change, dw, dc, k + 1, residual

    history = jnp.zeros((batch, DEPTH, flat.shape[1]))
    start = (flat, flat, flat, history, history, 0, jnp.inf)
    done = lax.while_loop(lambda state: (state[5] < steps) & (state[6] > tolerance), step, start)
    return done[1].reshape(g.shape)  # the last iterate that was looked at


@partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4, 5))
def _fixed_point(f: Callable, given: Arrays, v0: Any, steps: int, steps_bwd: int, tolerance: float) -> Any:
    return _solve(f, given, v0, steps, steps_bwd, tolerance)[0]


def _solve(f: Callable, given: Arrays, v0: Any, steps: int, steps_bwd: int, tolerance: float) -> Any:
    undifferentiated = partial(f, convolve=_directly) if f is _gated else f
    v, k = _iterate(partial(undifferentiated, given), v0, steps - 1, tolerance)
    value = f(given, v)
    return (value, k + 1), (given, v)


def _adjoin(f: Callable, steps: int, steps_bwd: int, tolerance: float, kept: tuple, cotangent: tuple) -> Any:
    given, v = kept
    g = cotangent[0]
    _, pull_back = jax.vjp(f, given, v)
    w = _anderson(lambda w: pull_back(w)[1] + g, g, steps_bwd, tolerance)
    return pull_back(w)[0], jnp.zeros_like(v)


_fixed_point.defvjp(_solve, _adjoin)


def _unrolled(f: Callable, given: Arrays, v0: Any, steps: int) -> Any:
    v, _ = lax.scan(lambda v, _: (f(given, v), None), v0, None, steps)
    return v, jnp.asarray(steps)


def steps_of(
    core: VIN | SymVIN | ConvGPPN,
    x: Tensor,
    label: Tensor,
    steps: int,
    steps_bwd: int,
    tolerance: float,
    unrolled: bool,
) -> Steps:
    """Return the training step of a core on inputs [B, 2, h, w] and labels [B, h, w], compiled."""
    gru = isinstance(core, ConvGPPN)
    prepare, f = (_recurrence, _gated) if gru else (_value_iteration, _bellman)
    images, labels = _array(x.permute(0, 2, 3, 1)), _array(label)

    def loss(p: Arrays) -> tuple[Any, tuple[Any, Any]]:
        v0, given = prepare(p, images)
        if unrolled:
            v, k = _unrolled(f, given, v0, steps)
        else:
            v, k = _fixed_point(f, given, v0, steps, steps_bwd, tolerance)
        logits = _convolve(v, p["head"]) if gru else _read_q(p, given, v)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)
        return -jnp.mean(picked), (logits, k)

    parameters = parameters_of(core)
    forward = jax.jit(loss).lower(parameters).compile()
    both = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(parameters).compile()
    analysis = both.memory_analysis()
    return Steps(forward, both, parameters, int(analysis.temp_size_in_bytes) if analysis else 0)


def logits_of(steps: Steps) -> tuple[Tensor, float]:
    """Return logits [B, actions, h, w] and how many steps were taken."""
    _, (logits, k) = steps.forward(steps.parameters)
    return torch.from_numpy(np.array(logits)).permute(0, 3, 1, 2), float(k)


def run_forward(steps: Steps) -> None:
    """Compute the loss."""
    jax.block_until_ready(steps.forward(steps.parameters))


def run_both(steps: Steps) -> None:
    """Compute the loss and all gradients."""
    jax.block_until_ready(steps.both(steps.parameters))
