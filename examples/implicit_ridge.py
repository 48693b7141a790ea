"""Implicit differentiation of ridge regression: how validation loss changes with the regularisation weight.

The weights come from a direct solver that autograd cannot see; the optimality condition alone is differentiated.
Run: python examples/implicit_ridge.py
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from planners.fixed_points import root


def fit(x: np.ndarray, y: np.ndarray, weight: float) -> np.ndarray:
    """Return the ridge solution by a dense solve; any solver would do."""
    return np.linalg.solve(x.T @ x / len(x) + weight * np.eye(x.shape[1]), x.T @ y / len(x))


def main() -> tuple[float, float]:
    """Print and return d(validation loss)/d(log weight), implicit and in closed form."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=8)
    x, x_val = rng.normal(size=(20, 8)), rng.normal(size=(50, 8))
    y, y_val = x @ truth + rng.normal(size=20), x_val @ truth + rng.normal(size=50)
    log_weight = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    xt, yt = torch.from_numpy(x), torch.from_numpy(y)

    def gradient(w: Tensor) -> Tensor:  # F(w) = 0 at the optimum; one sample, so the batch dimension is 1
        return (w @ xt.T - yt) @ xt / len(xt) + log_weight.exp() * w

    weight = float(log_weight.detach().exp())
    found = fit(x, y, weight)
    solution = root(gradient, solution=torch.from_numpy(found)[None])
    residual = solution.value[0] @ torch.from_numpy(x_val).T - torch.from_numpy(y_val)
    loss = residual.square().mean()
    loss.backward()
    assert log_weight.grad is not None and solution.adjoint is not None

    hessian = x.T @ x / len(x) + weight * np.eye(8)
    slope = -weight * np.linalg.solve(hessian, found)
    closed_form = float(2.0 * (x_val @ found - y_val) @ (x_val @ slope) / len(x_val))
    print(f"validation loss {float(loss.detach()):.6f}")
    print(f"d loss / d log weight: implicit {float(log_weight.grad):+.10f}, closed form {closed_form:+.10f}")
    print(f"adjoint system: residual {float(solution.adjoint.residual):.1e} in {int(solution.adjoint.steps)} steps")
    return float(log_weight.grad), closed_form


if __name__ == "__main__":
    main()
