"""The libraries of `benchmarks.fixed_point` behind one interface; what one lacks raises.

Each is used as its documentation says: torchdeq with implicit differentiation (`ift`), jaxopt and optimistix by samples
under `jax.vmap`, jitted where time is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from planners.fixed_points import GMRES, Anderson, ForwardIteration, Implicit, Unrolled, fixed_point, root
from planners.fixed_points.strides import StridedIteration

SIZES = {False: ((64, 128, 15), (256, 256, 5)), True: ((8, 16, 2),)}
"""Samples, numbers of each, and rounds of each problem, by whether it is to be quick."""
Timed = dict[str, tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]]


class Library:
    """What the trials of features ask; a method that is not there is a feature that is not."""

    name: str
    needs: tuple[str, ...] = ()

    @classmethod
    def available(cls) -> bool:
        """Whether it is installed."""
        return all(find_spec(module) is not None for module in cls.needs)

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(name)


class _Torch(Library):
    def tanh(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.float64)

    def ones(self, *shape: int) -> Tensor:
        return torch.ones(*shape, dtype=torch.float64)

    def array(self, numbers: Any) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64)

    def weights(self, count: int) -> Tensor:
        return torch.linspace(-1.0, 2.0, count, dtype=torch.float64)

    def turned(self, x: Tensor) -> Tensor:
        return torch.roll(x, 1, dims=-1)

    def number(self, x: Tensor) -> np.ndarray:
        return x.detach().numpy()

    def grad(self, f: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The gradient by torch.autograd; of a gradient, and under vmap, by torch.func."""

        def of(x: Tensor) -> Tensor:
            if torch._C._functorch.peek_interpreter_stack() is not None or x.requires_grad:
                return torch.func.grad(f)(x)
            leaf = x.detach().clone().requires_grad_()
            return torch.autograd.grad(f(leaf), leaf)[0]

        return of

    vmap = staticmethod(torch.func.vmap)
    jvp = staticmethod(torch.func.jvp)


class Ours(_Torch):
    name = "ours"

    def solve(self, f: Any, start: Any, *each: Any) -> Any:
        adjoint = Implicit(Anderson(100, 1e-8))
        return fixed_point(lambda v: f(v, *each), start, solver=Anderson(100, 1e-8), adjoint=adjoint).value

    def solve_batch(self, f: Any, start: Tensor, *each: Tensor) -> Tensor:
        return fixed_point(lambda v: f(v, *each), start, solver=ForwardIteration(1000, 1e-6)).value

    def solve_with(self, f: Any, absolute: float = 0.0, relative: float = 1e-6, norm: bool = False) -> Tensor:
        solver = ForwardIteration(100, relative, absolute=absolute, norm=(lambda x: x.abs().amax(1)) if norm else None)
        return fixed_point(f, self.zeros(1, 3), solver=solver, throw=True).value

    def solve_short(self, f: Any, start: Tensor, b: Tensor) -> Tensor:
        return fixed_point(lambda v: f(v, b), start, adjoint=Implicit(GMRES(2, 1e-8))).value

    def root_at(self, F: Any, v: Tensor, b: Tensor) -> Tensor:
        return root(lambda v: F(v, b), solution=v).value

    def adjoint_steps_cold_and_warm(self) -> tuple[int, int]:
        b, steps, start, solver = self.ones(1, 3).requires_grad_(), [], self.zeros(1, 3), ForwardIteration(200, 1e-9)
        for shift in (0.0, 1e-5):
            step = lambda v, shift=shift: 0.9 * torch.tanh(v + shift) + 0.1 * b  # noqa: E731
            start = fixed_point(step, start, solver=solver, adjoint=Implicit(solver))
            start.value.sum().backward()
            steps.append(int(start.adjoint.steps))
        return steps[0], steps[1]

    def state_after_two(self, f: Any) -> tuple[np.ndarray, np.ndarray]:
        b = self.ones(1, 3).requires_grad_()
        state = fixed_point(lambda v: f(v, b), self.zeros(1, 3), states=(2,)).states[0]
        return self.number(state), self.number(torch.autograd.grad(state.sum(), b)[0])

    def solve_checkpointed(self, f: Any, b: Tensor) -> Tensor:
        solver, adjoint = ForwardIteration(36), Unrolled(checkpoint=6)
        return fixed_point(lambda v: f(v, b), self.zeros(1, 3), solver=solver, adjoint=adjoint).value

    def timed(self, *arrays: np.ndarray) -> Timed:
        made = {
            "Anderson": Anderson(100, 1e-5),
            "iteration": ForwardIteration(200, 1e-5),
            "Anderson, residual rule": Anderson(100, 1e-5, rule="residual"),
            "iteration, residual rule": ForwardIteration(200, 1e-5, rule="residual"),
            "iteration, a look every 8 steps": StridedIteration(200, 1e-5),
            "extrapolation, a look every 8 steps": StridedIteration(200, 1e-5, window=8),
        }

        def solve(f: Any, v: Tensor, solver: Any) -> Tensor:
            return fixed_point(f, v, solver=solver, adjoint=Implicit(solver, order=1)).value

        return {name: _torch_calls(partial(solve, solver=solver), arrays) for name, solver in made.items()}


class TorchDEQ(_Torch):
    name, needs = "torchdeq", ("torchdeq",)

    def _deq(self, **options: Any) -> Any:
        from torchdeq import get_deq

        return get_deq(**{"ift": True, "f_max_iter": 100, "b_max_iter": 100, "f_tol": 1e-8, "b_tol": 1e-8, **options})

    def solve(self, f: Any, start: Any, *each: Any) -> Any:
        deq = self._deq(f_solver="anderson", b_solver="anderson")
        if isinstance(start, tuple):  # takes and gives the tensors one by one
            return deq(lambda *v: f(v, *each), start)[0][-1]
        return deq(lambda v: f(v, *each), start)[0][-1]

    def solve_batch(self, f: Any, start: Tensor, *each: Tensor) -> Tensor:
        return self._deq(f_max_iter=1000, f_tol=1e-6)(lambda v: f(v, *each), start)[0][-1]

    def solve_short(self, f: Any, start: Tensor, b: Tensor) -> Tensor:
        return self._deq(b_solver="anderson", b_max_iter=2)(lambda v: f(v, b), start)[0][-1]

    def state_after_two(self, f: Any) -> tuple[np.ndarray, np.ndarray]:
        b = self.ones(1, 3).requires_grad_()
        state = self._deq(indexing=[2], ift=False)(lambda v: f(v, b), self.zeros(1, 3))[0][0]
        return self.number(state), self.number(torch.autograd.grad(state.sum(), b)[0])

    def timed(self, *arrays: np.ndarray) -> Timed:
        options = {"f_stop_mode": "rel", "b_stop_mode": "rel", "f_tol": 1e-5, "b_tol": 1e-5}
        kinds = {"Anderson": "anderson", "iteration": "fixed_point_iter", "Broyden": "broyden"}
        made = {name: self._deq(f_solver=kind, b_solver=kind, **options) for name, kind in kinds.items()}
        return {name: _torch_calls(lambda f, v, deq=deq: deq(f, v)[0][-1], arrays) for name, deq in made.items()}


class _Affine:
    """v -> tanh(v A^T + b), in as few passes over memory as torch can make it."""

    def __init__(self, at: Tensor, b: Tensor) -> None:
        self.at, self.b = at, b

    def __call__(self, v: Tensor) -> Tensor:
        return torch.addmm(self.b, v, self.at).tanh_()

    def take(self, rows: Tensor) -> _Affine:
        """The same for some of the samples, which our solvers ask for once the others have stopped."""
        return _Affine(self.at, self.b[rows])


def _torch_calls(
    solve: Any, arrays: tuple[np.ndarray, ...]
) -> tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]:
    a, b, c = (torch.tensor(array) for array in arrays)
    start, leaves = torch.zeros_like(b), (a.requires_grad_(), b.requires_grad_())

    def value() -> np.ndarray:
        with torch.no_grad():
            return solve(_Affine(a.T.contiguous(), b), start).numpy()

    def gradient() -> np.ndarray:
        found = solve(_Affine(a.T.contiguous(), b), start)
        return torch.autograd.grad((c * found).sum(), leaves)[0].numpy()

    return value, gradient


class _Jax(Library):
    def __init__(self) -> None:
        import jax
        import jax.numpy as jnp

        jax.config.update("jax_enable_x64", True)
        self.jax, self.jnp = jax, jnp
        self.vmap, self.jvp, self.grad = jax.vmap, jax.jvp, jax.grad
        self.tanh, self.zeros, self.ones = jnp.tanh, lambda *shape: jnp.zeros(shape), lambda *shape: jnp.ones(shape)
        self.array, self.number = jnp.array, np.asarray

    def weights(self, count: int) -> Any:
        return self.jnp.linspace(-1.0, 2.0, count)

    def turned(self, x: Any) -> Any:
        return self.jnp.roll(x, 1, axis=-1)

    def solve_batch(self, f: Any, start: Any, *each: Any) -> Any:
        return self.jax.vmap(lambda v, *own: self.solve_one(lambda u: f(u, *own), v))(start, *each)

    def _calls(self, solve: Any, arrays: tuple[np.ndarray, ...]) -> tuple[Any, Any]:
        """`solve(step, start, args)` by samples."""
        jax, jnp = self.jax, self.jnp
        a, b, c = (jnp.asarray(array) for array in arrays)

        def step(v: Any, args: Any) -> Any:
            a, own = args
            return jnp.tanh(a @ v + own)

        def all_values(a: Any, b: Any) -> Any:
            return jax.vmap(lambda own: solve(step, jnp.zeros_like(own), (a, own)))(b)

        values = jax.jit(all_values)
        gradients = jax.jit(jax.grad(lambda a, b: (c * all_values(a, b)).sum(), (0, 1)))
        return lambda: np.asarray(values(a, b)), lambda: np.asarray(jax.block_until_ready(gradients(a, b))[0])


class Jaxopt(_Jax):
    name, needs = "jaxopt", ("jax", "jaxopt")

    def solve(self, f: Any, start: Any, *each: Any) -> Any:
        import jaxopt

        return jaxopt.FixedPointIteration(f, maxiter=100, tol=1e-8).run(start, *each).params

    def solve_one(self, f: Any, start: Any) -> Any:
        import jaxopt

        return jaxopt.FixedPointIteration(f, maxiter=1000, tol=1e-6).run(start).params

    def solve_short(self, f: Any, start: Any, b: Any) -> Any:
        import jaxopt
        from jaxopt.linear_solve import solve_gmres

        def short(matvec: Any, b: Any, **options: Any) -> Any:
            return solve_gmres(matvec, b, maxiter=1, restart=2, tol=1e-8, **options)

        return jaxopt.FixedPointIteration(f, maxiter=30, tol=1e-4, implicit_diff_solve=short).run(start, b).params

    def root_at(self, F: Any, v: Any, b: Any) -> Any:
        from jaxopt.implicit_diff import custom_root

        return custom_root(F)(lambda init, b: self.jax.lax.stop_gradient(v))(None, b)

    def timed(self, *arrays: np.ndarray) -> Timed:
        import jaxopt

        def by(kind: Any) -> Any:
            return self._calls(lambda f, v, args: kind(f, maxiter=200, tol=1e-5).run(v, args).params, arrays)

        return {"Anderson": by(jaxopt.AndersonAcceleration), "iteration": by(jaxopt.FixedPointIteration)}


class Optimistix(_Jax):
    name, needs = "optimistix", ("jax", "optimistix")

    def _found(
        self, f: Any, start: Any, rtol: float = 1e-8, atol: float = 1e-8, norm: Any = None, **options: Any
    ) -> Any:
        import optimistix as optx

        solver = optx.FixedPointIteration(rtol=rtol, atol=atol, **({} if norm is None else {"norm": norm}))
        return optx.fixed_point(lambda v, _: f(v), solver, start, **options).value

    def solve(self, f: Any, start: Any, *each: Any) -> Any:
        return self._found(lambda v: f(v, *each), start)

    def solve_one(self, f: Any, start: Any) -> Any:
        return self._found(f, start, 1e-6, 1e-6, max_steps=1000)

    def solve_with(self, f: Any, absolute: float = 1e-6, relative: float = 1e-6, norm: bool = False) -> Any:
        import optimistix as optx

        return self._found(f, self.zeros(1, 3), relative, absolute, optx.rms_norm if norm else None)

    def solve_short(self, f: Any, start: Any, b: Any) -> Any:
        import lineax
        import optimistix as optx

        adjoint = optx.ImplicitAdjoint(lineax.GMRES(rtol=1e-8, atol=1e-8, max_steps=2, restart=2))
        return self._found(lambda v: f(v, b), start, adjoint=adjoint)

    def solve_checkpointed(self, f: Any, b: Any) -> Any:
        import optimistix as optx

        return self._found(lambda v: f(v, b), self.zeros(1, 3), adjoint=optx.RecursiveCheckpointAdjoint())

    def timed(self, *arrays: np.ndarray) -> Timed:
        import optimistix as optx

        def solve(f: Any, v: Any, args: Any) -> Any:
            solver = optx.FixedPointIteration(rtol=1e-5, atol=1e-5)
            return optx.fixed_point(f, solver, v, args, max_steps=400).value

        return {"iteration": self._calls(solve, arrays)}


PEERS = (TorchDEQ, Jaxopt, Optimistix)
