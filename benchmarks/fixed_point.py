"""`fixed_point` and `root` beside torchdeq, jaxopt and optimistix, in one run: what each can do, and how fast.

    python -m benchmarks.fixed_point [--json] [--quick]

Features are tried, not looked up: each is a small problem with a known answer, and "no" is an error, a wrong answer or
silence where a failure should be told. Speed is the processor time, on one thread, of solving v = tanh(A v + b) and of
the gradient by A and b, each library by its own rule at tolerance 1e-5 in float64, compiled where it compiles (the
compilation left out) and f written as its framework takes it best; errors are those against 2,000 steps in float64.
Libraries that are not installed are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import numpy as np
import torch

if not __package__:  # run as a script: this file must not hide the package of its name
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.fixed_point_peers import PEERS, SIZES, Library, Ours

FEATURES: dict[str, Callable[[Library], bool]] = {}
"""By the words of the table in docs/fixed_points.md."""


def feature(words: str) -> Callable[[Callable[[Any], bool]], Callable[[Any], bool]]:
    """Add what tries a feature to the table."""

    def add(tried: Callable[[Any], bool]) -> Callable[[Any], bool]:
        FEATURES[words] = tried
        return tried

    return add


def half(library: Library) -> Callable[[Any], Any]:
    """Return b -> the fixed point of v = tanh(v) / 2 + b, b handed over as the library likes it best."""
    return lambda b: library.solve(lambda v, b: 0.5 * library.tanh(v) + b, library.zeros(1, 3), b)


def exact(order: int, b: float = 1.0) -> float:
    """Return the value, the slope or the curvature by b of that fixed point."""
    v = 0.0
    for _ in range(200):
        v = 0.5 * np.tanh(v) + b
    slope = 1.0 - np.tanh(v) ** 2
    first = 1.0 / (1.0 - 0.5 * slope)
    return (v, first, -np.tanh(v) * slope * first**3)[order]


def near(found: Any, expected: float, within: float = 1e-3) -> bool:
    """Return whether every number is near the expected one."""
    return bool(np.all(np.abs(np.asarray(found, dtype=np.float64) - expected) <= within * abs(expected)))


@feature("gradients of what f captures")
def _captured(library: Library) -> bool:
    def loss(b: Any) -> Any:
        return library.solve(lambda v: 0.5 * library.tanh(v) + b, library.zeros(1, 3)).sum()

    return near(library.number(library.grad(loss)(library.ones(1, 3))), exact(1))


@feature("vmap")
def _vmap(library: Library) -> bool:
    solved = library.vmap(half(library))(library.ones(4, 1, 3))
    gradient = library.vmap(library.grad(lambda b: half(library)(b).sum()))(library.ones(4, 1, 3))
    return near(library.number(solved), exact(0)) and near(library.number(gradient), exact(1))


@feature("forward mode")
def _forward(library: Library) -> bool:
    one = library.ones(1, 3)
    return near(library.number(library.jvp(half(library), (one,), (one,))[1]), exact(1))


@feature("second derivatives")
def _second(library: Library) -> bool:
    twice = library.grad(lambda b: library.grad(lambda b: half(library)(b).sum())(b).sum())
    return near(library.number(twice(library.ones(1, 3))), exact(2))


@feature("several tensors as one state")
def _structures(library: Library) -> bool:
    def step(state: Any) -> Any:
        x, y = state
        return 0.5 * library.tanh(x) + 1.0, 0.1 * y + x

    x, y = library.solve(step, (library.zeros(1, 3), library.zeros(1, 3)))
    return near(library.number(x), exact(0)) and near(library.number(y), exact(0) / 0.9)


@feature("a sample's solution does not depend on its batch")
def _alone(library: Library) -> bool:
    rate = library.array([[0.1], [0.95]])
    whole = library.solve_batch(lambda v, rate: rate * v + 1.0, library.zeros(2, 3), rate)
    alone = library.solve_batch(lambda v, rate: rate * v + 1.0, library.zeros(1, 3), rate[:1])
    return bool(np.array_equal(library.number(whole)[0], library.number(alone)[0])) and near(
        library.number(whole)[1], 20.0, 0.05
    )


@feature("absolute and relative tolerance together")
def _tolerances(library: Library) -> bool:
    return near(library.number(library.solve_with(half_step(library), absolute=1e-6, relative=1e-6)), exact(0))


@feature("a norm of choice")
def _norm(library: Library) -> bool:
    return near(library.number(library.solve_with(half_step(library), norm=True)), exact(0))


def half_step(library: Library) -> Callable[[Any], Any]:
    """Return the step with b = 1."""
    return lambda v: 0.5 * library.tanh(v) + 1.0


def told(call: Callable[[], Any]) -> bool:
    """Return whether a failure ends in an error or a warning that is its own."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call()
        except Exception as error:
            return any(word in str(error).lower() for word in ("steps", "solve", "solution", "converge", "fixed point"))
    return any("solv" in str(one.message) or "found" in str(one.message) for one in caught)


@feature("a solve that fails is told")
def _failure(library: Library) -> bool:
    return told(lambda: library.number(library.solve(lambda v: v * v + 1.0, library.ones(1, 3))))


@feature("a slow map is not called solved")
def _slow(library: Library) -> bool:
    """At a rate of 0.9999 a small change says little: the solution is 10,000."""
    found: list[Any] = []
    failed = told(lambda: found.append(library.number(library.solve(lambda v: 0.9999 * v + 1.0, library.zeros(1, 3)))))
    return failed or near(found[0], 1e4, 0.01)


@feature("a gradient whose system is not solved is told")
def _gradient_failure(library: Library) -> bool:
    def step(v: Any, b: Any) -> Any:  # v = 0 is a fixed point, where the slope is 0.99 and a turn
        return 0.99 * library.turned(library.tanh(v)) + 0.0 * b

    def loss(b: Any) -> Any:
        return (library.weights(8) * library.solve_short(step, library.zeros(1, 8), b)).sum()

    return told(lambda: library.number(library.grad(loss)(library.ones(1, 8))))


@feature("a solution found elsewhere is differentiated")
def _elsewhere(library: Library) -> bool:
    v = library.ones(1, 3) * exact(0)
    gradient = library.grad(lambda b: library.root_at(lambda v, b: v - 0.5 * library.tanh(v) - b, v, b).sum())
    return near(library.number(gradient(library.ones(1, 3))), exact(1))


@feature("warm starts of the adjoint")
def _warm(library: Library) -> bool:
    cold, warm = library.adjoint_steps_cold_and_warm()
    return warm < cold


@feature("states along the way, with gradients")
def _states(library: Library) -> bool:
    value, gradient = library.state_after_two(lambda v, b: 0.5 * library.tanh(v) + b)
    return near(value, 0.5 * np.tanh(1.0) + 1.0, 0.05) and bool(np.all(gradient > 0.1))


@feature("exact unrolled gradients in bounded memory")
def _bounded(library: Library) -> bool:
    gradient = library.grad(lambda b: library.solve_checkpointed(lambda v, b: 0.5 * library.tanh(v) + b, b).sum())
    return near(library.number(gradient(library.ones(1, 3))), exact(1))


def tried(library: Library) -> dict[str, bool]:
    """Return which features a library has."""
    found = {}
    for words, trial in FEATURES.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[words] = bool(trial(library))
        except Exception:  # a library without a feature fails in ways of its own
            found[words] = False
    return found


@dataclass(frozen=True)
class Row:
    """One library's solver on the timed problem; errors are relative."""

    method: str
    solve_ms: float
    gradient_ms: float
    value_error: float
    gradient_error: float


def problem(batch: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return A of spectral radius 0.9, b and the weights of the loss."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(size, size))
    a *= 0.9 / np.abs(np.linalg.eigvals(a)).max()
    return a, 0.3 * rng.normal(size=(batch, size)), rng.normal(size=(batch, size))


def reference(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return value and gradient by A, in float64."""
    v = np.zeros_like(b)
    for _ in range(2000):
        v = np.tanh(v @ a.T + b)
    slope = 1.0 - v**2
    systems = np.eye(len(a)) - slope[:, :, None] * a
    w = np.linalg.solve(systems.transpose(0, 2, 1), c[:, :, None])[:, :, 0]
    return v, (w * slope).T @ v


def measured(libraries: list[Library], batch: int, size: int, rounds: int) -> list[Row]:
    """Return the rows of every solver; the methods run in turn, round after round."""
    arrays = problem(batch, size)
    value, gradient = reference(*arrays)
    works = [
        (f"{library.name}: {name}", *made) for library in libraries for name, made in library.timed(*arrays).items()
    ]
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name, *_ in works}
    answers = {name: (solve(), differentiate()) for name, solve, differentiate in works}  # compiles, too
    for _ in range(rounds):
        for name, *calls in works:
            for call, kept in zip(calls, times[name], strict=True):
                start = time.process_time()
                call()
                kept.append(1e3 * (time.process_time() - start))

    def off(found: np.ndarray, expected: np.ndarray) -> float:
        return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))

    return [
        Row(name, *(statistics.median(kept) for kept in times[name]), off(found[0], value), off(found[1], gradient))
        for name, found in answers.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    libraries = [Ours(), *(made() for made in PEERS if made.available())]
    features = {library.name: tried(library) for library in libraries}
    tables = {(batch, size): measured(libraries, batch, size, rounds) for batch, size, rounds in SIZES[options.quick]}
    if options.json:
        rows = [{"samples": batch, "numbers": size, **vars(row)} for (batch, size), of in tables.items() for row in of]
        print(json.dumps({"features": features, "rows": rows}))
        return
    names = list(features)
    print("| |" + "".join(f" {name} |" for name in names) + "\n|---|" + "---|" * len(names))
    for words in FEATURES:
        print(f"| {words} |" + "".join(f" {'yes' if features[name][words] else 'no'} |" for name in names))
    for (batch, size), rows in tables.items():
        print(f"\nv = tanh(A v + b), {batch} samples of {size} numbers\n")
        print("| | solve, ms | with gradient, ms | error of v | error of the gradient |\n|---|---|---|---|---|")
        for row in rows:
            errors = f"{row.value_error:.0e} | {row.gradient_error:.0e}"
            print(f"| {row.method} | {row.solve_ms:.1f} | {row.gradient_ms:.1f} | {errors} |")


if __name__ == "__main__":
    main()
