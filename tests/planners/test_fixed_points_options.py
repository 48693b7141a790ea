"""What the library takes beside a step and a start: structures, tolerances, norms, errors, warm starts, states."""

import itertools
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from iterations import randn
from torch import Tensor, nn
from torch.func import grad, vjp, vmap

from planners import fixed_points
from planners.fixed_points import (
    GMRES,
    Anderson,
    Broyden,
    ForwardIteration,
    Implicit,
    NotSolved,
    OneStep,
    Phantom,
    Result,
    Unrolled,
    fixed_point,
    root,
)
from planners.fixed_points.adjoints import _with_last_step

ZEROS = torch.zeros(2, 3, dtype=torch.float64)
TIGHT, PLAIN = Anderson(100, 1e-12), ForwardIteration(300, 1e-8)


# Several tensors as one state


def coupled(b: Tensor):
    def step(state):
        x, y = state["x"], state["y"]
        return {
            "x": 0.3 * torch.tanh(x + y.sum((1, 2))[:, None]) + b,
            "y": 0.2 * torch.cos(y) * x.mean(1)[:, None, None],
        }

    return step


@pytest.mark.parametrize("adjoint", [Implicit(GMRES(20, 1e-12)), Unrolled(), OneStep()], ids=lambda a: type(a).__name__)
def test_a_dict_of_tensors_is_one_state(adjoint):
    b, start = randn(2, 3).requires_grad_(), {"x": ZEROS, "y": torch.zeros(2, 2, 2, dtype=torch.float64)}
    found = fixed_point(coupled(b), start, solver=ForwardIteration(60, 1e-13), adjoint=adjoint)
    assert found.value.keys() == {"x", "y"} and found.steps.shape == (2,)
    for name, part in coupled(b)(found.value).items():
        torch.testing.assert_close(found.value[name], part, rtol=1e-11, atol=1e-11)
    (gradient,) = torch.autograd.grad(found.value["y" if isinstance(adjoint, Implicit) else "x"].sum(), b)
    assert gradient.abs().min() > 0.0


def test_the_keys_of_a_state_may_come_in_any_order():
    def step(v):
        x, y = v[0]["x"], v[0]["y"]
        return [{"y": 0.5 * y + 1.0, "x": 0.5 * x + 3.0}, 0.5 * v[1] + y[:, :1]]

    found = fixed_point(step, [{"x": ZEROS, "y": ZEROS}, ZEROS]).value
    assert list(found[0]) == ["x", "y"]
    torch.testing.assert_close(found[0], {"x": ZEROS + 6.0, "y": ZEROS + 2.0}, rtol=1e-3, atol=0.0)
    torch.testing.assert_close(found[1], ZEROS + 4.0, rtol=1e-3, atol=0.0)
    zero = root(lambda v: {"y": v["y"] - 1.0, "x": v["x"] - 3.0}, {"x": ZEROS, "y": ZEROS}).value
    torch.testing.assert_close(zero, {"x": ZEROS + 3.0, "y": ZEROS + 1.0})


def test_structures_of_roots_under_torch_func():
    def solve(b: Tensor) -> tuple[Tensor, Tensor]:
        def F(v):
            x, (y,) = v
            return x.exp() - b - y.mean(1, keepdim=True), [3.0 * y - x.sin()]

        return root(F, (ZEROS, [ZEROS.clone()]), adjoint=Implicit(GMRES(20, 1e-12))).value

    b = randn(2, 3).abs() + 1.0
    x, (y,) = solve(b)
    torch.testing.assert_close(3.0 * y, x.sin())
    jacobian = torch.func.jacrev(lambda b: solve(b)[0])(b)
    forward = torch.func.jacfwd(lambda b: solve(b)[0])(b)
    torch.testing.assert_close(jacobian, forward, rtol=1e-8, atol=1e-10)
    assert torch.autograd.gradcheck(lambda b: solve(b)[1][0], b.requires_grad_(), atol=1e-4, fast_mode=True)


def test_parts_of_a_state_may_have_dtypes_of_their_own():
    start = (torch.zeros(2, 3), torch.zeros(2, dtype=torch.float64))
    x, y = fixed_point(lambda v: (0.5 * v[0] + 1.0, 0.1 * v[1] + v[0].sum(1)), start).value
    assert x.dtype == torch.float32 and y.dtype == torch.float64
    torch.testing.assert_close(y, torch.full_like(y, 6.0 / 0.9), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize(
    ("start", "f", "message"),
    [
        ((), lambda v: v, "v0: expected at least one tensor"),
        ((ZEROS, torch.zeros(3, 3)), lambda v: v, "of one batch size B"),
        ((ZEROS, torch.zeros(2, dtype=torch.int64)), lambda v: v, "floating point"),
        ((ZEROS, ZEROS), lambda v: v[0], "f must keep the structure of v"),
        ({"x": ZEROS, "y": ZEROS}, lambda v: {"y": v["y"], "z": v["x"]}, "f must keep the structure of v"),
        ([{"x": ZEROS}], lambda v: ({"x": v[0]["x"]},), "f must keep the structure of v"),
        ((ZEROS, ZEROS), lambda v: (v[0], v[1][:, :1]), r"f must keep the shapes of v.*3.*\(2, 1\)"),
    ],
)
def test_bad_structures_are_named(start, f, message):
    with pytest.raises(ValueError, match=message):
        fixed_point(f, start)


# Tolerances and norms


@pytest.mark.parametrize("rule", ["error", "residual"])
@pytest.mark.parametrize("kind", [ForwardIteration, Anderson, Broyden])
def test_an_absolute_tolerance_ends_a_solve(kind, rule):
    slow = lambda v: 0.9 * v + torch.tensor([[1e-3, 1e-3, 1e-3], [10.0, 10.0, 10.0]]).double()  # noqa: E731
    exact = torch.tensor([[1e-2], [100.0]]).double().expand(2, 3)
    relative = fixed_point(slow, ZEROS, solver=kind(500, 1e-9, rule=rule))
    absolute = fixed_point(slow, ZEROS, solver=kind(500, 0.0, rule=rule, absolute=1e-4))
    assert (absolute.result != Result.MAX_STEPS).all() and (absolute.steps <= relative.steps).all()
    off = (absolute.value - exact).abs().amax(dim=1)
    assert (off < 2e-3).all() and (rule == "residual" or (off < 1e-4).all())
    if kind is ForwardIteration:
        assert absolute.steps[0] < absolute.steps[1] and relative.steps[0] == relative.steps[1]


@pytest.mark.parametrize("norm", ["max", "rms", "l2", lambda x: x.abs().mean(dim=1)], ids=["max", "rms", "l2", "own"])
@pytest.mark.parametrize("rule", ["error", "residual"])
def test_a_norm_measures_the_sample_as_a_whole(norm, rule):
    """Beside a large number a small one need not be right; number by number it must."""
    b = torch.tensor([[1e3, 1e-3]], dtype=torch.float64)
    rate = torch.tensor([[0.1, 0.9]], dtype=torch.float64)
    solver = ForwardIteration(400, 1e-4, rule=rule, norm=norm)
    found = fixed_point(lambda v: rate * v + b, torch.zeros(1, 2).double(), solver=solver)
    assert found.result.tolist() == [Result.CONVERGED if rule == "error" else Result.SETTLED]
    strict = fixed_point(lambda v: rate * v + b, torch.zeros(1, 2).double(), solver=ForwardIteration(400, 1e-4))
    assert found.steps < strict.steps
    torch.testing.assert_close(found.value[0, 0], b[0, 0] / 0.9, rtol=1e-3, atol=0.0)


def test_bad_tolerances_and_norms_are_named():
    with pytest.raises(ValueError, match="absolute must be at least 0, got -1"):
        Anderson(absolute=-1.0)
    with pytest.raises(ValueError, match="norm must be 'max', 'rms', 'l2' or a function, got 'length'"):
        ForwardIteration(norm="length")


@pytest.mark.parametrize("norm", [lambda x: x, lambda x: x.norm(), lambda x: x[:, :1], lambda x: 3.0])
@pytest.mark.parametrize("rule", ["error", "residual"])
def test_a_norm_that_gives_no_size_of_each_sample_is_named(norm, rule):
    with pytest.raises(ValueError, match=r"norm: expected a size of each sample, \(2, 3\) -> \(2,\), got"):
        fixed_point(lambda v: 0.5 * v + 1.0, ZEROS, solver=Anderson(rule=rule, norm=norm))


# Errors in place of warnings


def test_throw_raises_where_the_solve_or_its_gradient_fails():
    with pytest.raises(NotSolved, match="no fixed point was found for 2 of 2") as caught:
        fixed_point(lambda v: 2.0 * v + 1.0, torch.ones(2, 2), throw=True)
    assert caught.value.found.result.tolist() == [Result.DIVERGED] * 2
    with pytest.raises(NotSolved, match="no root was found for 1 of 1"):
        root(lambda v: v.square() + 1.0, torch.ones(1, 1), throw=True)
    with pytest.raises(NotSolved, match="the given solution is no root"):
        root(lambda v: v - 1.0, solution=torch.zeros(1, 1), throw=True)
    b = randn(2, 3).requires_grad_()
    few = Implicit(ForwardIteration(2, 1e-8))
    for found in (
        fixed_point(lambda v: 0.9 * v.tanh() + b, ZEROS, solver=TIGHT, adjoint=few, throw=True),
        root(lambda v: 0.3 * v + v.tanh() - b, ZEROS, adjoint=few, throw=True),
    ):
        with pytest.raises(NotSolved, match="the linear system of the gradient was not solved") as caught:
            found.value.sum().backward()
        assert caught.value.found.steps.max() == 2


def test_failures_under_torch_func_are_told_too():
    few = Implicit(ForwardIteration(2, 1e-8))
    solve = lambda b: fixed_point(lambda v: 0.9 * v.tanh() + b, ZEROS, solver=TIGHT, adjoint=few).value.sum()  # noqa: E731
    with pytest.warns(RuntimeWarning, match="the linear system of the gradient was not solved"):
        torch.func.vmap(torch.func.grad(solve))(randn(4, 2, 3))
    with pytest.warns(RuntimeWarning, match="no fixed point was found for 8 of 8 samples"):
        torch.func.vmap(lambda b: fixed_point(lambda v: 2.0 * v + b, ZEROS).value)(randn(4, 2, 3).abs())


# Warm starts


def test_an_earlier_solution_is_a_start_for_the_value_and_for_the_adjoint():
    b = randn(2, 3).requires_grad_()

    def solve(start, shift):
        step = lambda v: 0.9 * torch.tanh(v + shift) + b  # noqa: E731
        return fixed_point(step, start, solver=PLAIN, adjoint=Implicit(PLAIN))

    cold = solve(ZEROS, 0.0)
    cold.value.square().sum().backward()
    nearby = [solve(start, 1e-4) for start in (ZEROS, cold)]
    for found in nearby:
        found.value.square().sum().backward()
    assert (nearby[1].steps < nearby[0].steps).all() and (nearby[1].adjoint.steps < nearby[0].adjoint.steps).all()
    torch.testing.assert_close(nearby[1].value, nearby[0].value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(nearby[1].adjoint.value, nearby[0].adjoint.value, rtol=1e-6, atol=1e-6)


def test_roots_start_warm_too():
    matrix, b = randn(20, 20) + 3.0 * torch.eye(20), randn(2, 20, seed=1).requires_grad_()

    def solve(start):
        return root(lambda v: v @ matrix.T + 0.1 * v.tanh() - b, start)

    cold = solve(torch.zeros_like(b))
    cold.value.sum().backward()
    warm = solve(cold)
    warm.value.sum().backward()
    assert (warm.steps < cold.steps).all() and (warm.adjoint.steps < cold.adjoint.steps).all()


# States along the way


@pytest.mark.parametrize(
    "adjoint", [Unrolled(), Unrolled(checkpoint=4), Implicit(GMRES(10, 1e-12)), OneStep()], ids=repr
)
def test_states_along_the_way_are_the_iterates(adjoint):
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    step = lambda v: torch.tanh(weight * v + 1.0)  # noqa: E731
    found = fixed_point(step, ZEROS, solver=ForwardIteration(30), adjoint=adjoint, states=(1, 4, 30))
    plain = list(itertools.accumulate(range(31), lambda v, _: step(v), initial=ZEROS))
    for number, state in zip((1, 4), found.states, strict=False):
        torch.testing.assert_close(state, plain[number])
    torch.testing.assert_close(found.states[2], found.value, rtol=1e-4, atol=0.0)
    (gradient,) = torch.autograd.grad(found.states[1].sum(), weight)
    (unrolled,) = torch.autograd.grad(plain[4].sum(), weight)
    if isinstance(adjoint, Unrolled):
        torch.testing.assert_close(gradient, unrolled)
    else:
        assert gradient > 0.0
    for wrong in ((0,), 0, 3, "ab", (1.5,), (True,), {2: 3}, torch.tensor([1, 2])):
        with pytest.raises(ValueError, match="states: expected numbers of applications of f, from 1"):
            fixed_point(step, ZEROS, states=wrong)


def test_states_under_torch_func():
    def loss(weight: Tensor) -> Tensor:
        found = fixed_point(lambda v: torch.tanh(weight * v + 1.0), ZEROS, solver=TIGHT, states=(2,))
        return found.states[0].sum()

    weights = torch.tensor([0.2, 0.7], dtype=torch.float64)
    expected = torch.stack([torch.tanh(weight * torch.tanh(torch.ones(())) + 1.0) * 6 for weight in weights])
    torch.testing.assert_close(torch.func.vmap(loss)(weights), expected, rtol=0.1, atol=0.0)
    assert (torch.func.vmap(torch.func.grad(loss))(weights) > 0.0).all()


# Unrolled in bounded memory


def test_a_checkpointed_unrolling_has_the_same_gradients_and_keeps_less():
    weight = randn(40, 40).mul_(0.1).requires_grad_()

    def kept_and_gradient(adjoint) -> tuple[int, Tensor]:
        kept = 0

        def pack(x: Tensor) -> Tensor:
            nonlocal kept
            kept += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            step = lambda v: torch.tanh(v @ weight + 1.0)  # noqa: E731
            value = fixed_point(step, torch.zeros(2, 40).double(), solver=ForwardIteration(36), adjoint=adjoint).value
        return kept, torch.autograd.grad(value.square().sum(), weight)[0]

    (all_kept, exact), (few_kept, found) = (kept_and_gradient(Unrolled(checkpoint=n)) for n in (0, 6))
    assert torch.equal(found, exact) and 4 * few_kept < all_kept
    with pytest.raises(ValueError, match="checkpoint must be at least 0"):
        Unrolled(checkpoint=-1)
    with pytest.raises(RuntimeError, match=r"checkpoint.*torch\.func refuses"):
        torch.func.grad(lambda w: fixed_point(lambda v: w * v, ZEROS, adjoint=Unrolled(checkpoint=2)).value.sum())(
            exact[0, 0]
        )


# Under torch.func, where others meet


def test_parameters_outside_a_transformation_get_their_gradient():
    """A gradient penalty: torch.func differentiates by the input, torch.autograd by the layer's weights afterwards."""
    layer = nn.Linear(3, 3).double()
    with torch.no_grad():
        layer.weight.mul_(0.5)

    def value(x: Tensor) -> Tensor:
        adjoint = Implicit(GMRES(10, 1e-13))
        return fixed_point(lambda v: torch.tanh(layer(v) + x), ZEROS, solver=TIGHT, adjoint=adjoint).value.sum()

    def reference(x: Tensor) -> Tensor:
        v = ZEROS
        for _ in range(80):
            v = torch.tanh(layer(v) + x)
        return v.sum()

    x = randn(2, 3)
    gradients = []
    for solved in (value, reference):
        torch.func.grad(solved)(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in layer.parameters()])
        layer.zero_grad()
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_what_is_inside_of_a_fixed_point_may_be_one_itself():
    def inner(u: Tensor, w: Tensor) -> Tensor:
        return fixed_point(
            lambda v: 0.4 * torch.tanh(v * w + u), ZEROS, solver=TIGHT, adjoint=Implicit(GMRES(9, 1e-12))
        ).value

    def outer(w: Tensor) -> Tensor:
        found = fixed_point(lambda u: 0.5 * inner(u, w) + w, ZEROS, solver=TIGHT, adjoint=Implicit(GMRES(9, 1e-12)))
        return found.value.sum()

    w = torch.tensor(0.3, dtype=torch.float64)
    step = 1e-5
    (gradient,) = torch.autograd.grad(outer(leaf := w.clone().requires_grad_()), leaf)
    torch.testing.assert_close(gradient, (outer(w + step) - outer(w - step)) / (2 * step), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(torch.func.grad(outer)(w), gradient)


def test_what_cannot_be_is_one_clear_error():
    loss = lambda b: fixed_point(lambda v: 0.5 * v.tanh() + b, ZEROS, adjoint=Phantom()).value.square().sum()  # noqa: E731
    with pytest.raises(RuntimeError, match=r"Phantom gives first derivatives alone.*Implicit"):
        torch.func.hessian(loss)(randn(2, 3))
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"inside torch.no_grad\(\).*torch.enable_grad"):
        torch.func.grad(lambda b: fixed_point(lambda v: 0.5 * v + b, ZEROS).value.sum())(randn(2, 3))
    with pytest.raises(RuntimeError, match="functionalize"):
        torch.func.functionalize(lambda b: fixed_point(lambda v: 0.5 * v + b, ZEROS).value)(randn(2, 3))
    b = randn(2, 3).requires_grad_()
    value = fixed_point(lambda v: 0.5 * v + b, ZEROS).value
    with pytest.raises(RuntimeError, match=r"is_grads_batched.*use torch\.func"):
        torch.autograd.grad(value, b, torch.ones(2, 2, 3).double(), is_grads_batched=True)
    with pytest.raises(ValueError, match="order must be at least 1, got 0"):
        Implicit(order=0)


@pytest.mark.parametrize("kind", ["fixed point", "root", "given root"])
def test_derivatives_inside_inference_mode_are_those_outside(kind):
    """torch.func leaves inference mode, but what is below its levels stays in it: gradients were those of one step."""
    b = randn(2, 3)

    def solve(b: Tensor) -> Tensor:
        if kind == "fixed point":
            return fixed_point(lambda v: 0.5 * torch.cos(v) + b, ZEROS).value
        start = {"v0": ZEROS} if kind == "root" else {"solution": given}
        return root(lambda v: v - 0.5 * torch.cos(v) - b, **start).value

    given = root(lambda v: v - 0.5 * torch.cos(v) - b, ZEROS).value
    expected_change = torch.func.jvp(solve, (b,), (b,))[1]
    for way in (torch.func.jacrev, torch.func.jacfwd, torch.func.hessian):
        expected = way(solve)(b)
        with torch.inference_mode(), torch.enable_grad():
            torch.testing.assert_close(way(solve)(b), expected)
    with torch.inference_mode():
        torch.testing.assert_close(torch.func.jvp(solve, (b,), (b,))[1], expected_change)
        with pytest.raises(RuntimeError, match=r"or torch.inference_mode\(\).*torch.enable_grad"):
            torch.func.grad(lambda b: solve(b).sum())(b)


def test_vmap_finds_what_each_alone_finds():
    weights = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)

    def solve(weight: Tensor):
        found = fixed_point(
            lambda v: torch.tanh(weight * v + 1.0), ZEROS, solver=ForwardIteration(200, 1e-8, record=True)
        )
        return found.value, found.residual, found.steps, found.result, found.trace

    together = torch.func.vmap(solve)(weights)
    for i, weight in enumerate(weights):
        for whole, alone in zip(together, solve(weight), strict=True):
            torch.testing.assert_close(whole[i], alone)


@pytest.mark.parametrize("start", [ZEROS, ZEROS[0]], ids=["matrix", "vector"])
def test_vmap_over_nothing_finds_nothing(start):
    def solve(b: Tensor):
        solver = ForwardIteration(30, record=True)
        return fixed_point(lambda v: 0.5 * torch.cos(v) + b, start, solver=solver, states=[1])

    def solve_root(b: Tensor) -> Tensor:
        return root(lambda v: v - 0.5 * torch.cos(v) - b, start).value

    none = start.new_zeros(0, *start.shape)
    found = vmap(lambda b: (solve(b).value, *solve(b).states, solve(b).result, solve(b).trace))(none)
    assert [len(part) for part in found] == [0] * 4 and found[3].shape == (0, 30, len(start))
    for solved in (lambda b: solve(b).value, solve_root):
        assert vmap(solved)(none).shape == none.shape
        assert vmap(grad(lambda b, solved=solved: solved(b).sum()))(none).shape == none.shape
        assert vmap(vjp(solved, start)[1])(none)[0].shape == none.shape


# torch.compile, and a copy of the folder


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", [Implicit(GMRES(10, 1e-12)), Unrolled(), OneStep()], ids=lambda a: type(a).__name__)
def test_a_compiled_step_has_no_graph_break(adjoint):
    weight, b = randn(3, 3).mul_(0.3).requires_grad_(), randn(2, 3).requires_grad_()

    def step(v: Tensor) -> Tensor:
        return torch.tanh(v @ weight.T + b)

    results = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own
        for f in (step, torch.compile(step, fullgraph=True, backend="eager")):  # fullgraph: a break is an error
            value = fixed_point(f, ZEROS, solver=ForwardIteration(60, 1e-12), adjoint=adjoint).value
            results.append((value.detach(), *torch.autograd.grad(value.square().sum(), (weight, b))))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-10, atol=1e-12)


def test_a_solve_inside_a_compiled_function_says_what_it_says_outside():
    A, p = randn(3, 3).mul_(0.3), torch.tensor(0.5, dtype=torch.float64)

    def solve(p: Tensor) -> tuple[Tensor, ...]:
        found = fixed_point(lambda v: torch.tanh(v @ A * p) + 0.3, ZEROS)
        zero = root(lambda v: v - torch.tanh(v @ A * p) - 0.3, ZEROS)
        return found.value, found.steps, found.result, found.residual, zero.value, zero.result

    for outside, inside in zip(solve(p), torch.compile(solve, backend="eager")(p), strict=True):
        assert torch.equal(outside, inside)


def test_verdicts_survive_compilation():
    """torch.compile takes `tensor == member of an enumeration` for False, where it does not break the graph."""
    solver = ForwardIteration(40)
    found = solver.solve(lambda v: 0.3 * v + 1.0, ZEROS)

    def told(value: Tensor) -> Tensor:
        return _with_last_step(found, 0.3 * value + 1.0, value, solver).result

    assert torch.compile(told, backend="eager")(found.value).tolist() == [Result.CONVERGED] * 2


ALONE = """
import sys
import torch
before = set(sys.modules)
import equilibria
new = {name.partition(".")[0] for name in set(sys.modules) - before}
assert "planners" not in sys.modules and "numpy" not in new, new
b = torch.ones(1, 2, requires_grad=True)
found = equilibria.fixed_point(lambda v: 0.5 * v + b, torch.zeros(1, 2), throw=True)
found.value.sum().backward()
assert torch.allclose(b.grad, torch.full_like(b, 2.0), rtol=1e-3)
solve = lambda b: equilibria.root(lambda v: v.exp() - b, torch.zeros(1, 2)).value
jacobian = torch.func.jacrev(solve)(torch.ones(1, 2))
assert torch.allclose(jacobian.reshape(2, 2), torch.eye(2), atol=1e-3)
outside = [name for name in new - {"equilibria"} if name not in sys.stdlib_module_names and name != "torch"]
print(sorted(outside))
"""


def test_the_folder_works_alone_under_another_name(tmp_path):
    shutil.copytree(Path(fixed_points.__file__).parent, tmp_path / "equilibria")
    (tmp_path / "alone.py").write_text(ALONE)
    done = subprocess.run(
        [sys.executable, "-E", "alone.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]", "imports besides torch and the standard library"
