"""The temperature of a heated rod that radiates, as a root; its derivatives by torch.func, for many heaters at once.

conduct (T_{i-1} - 2 T_i + T_{i+1}) + power_i - emit T_i^4 = 0 in each of 6 pieces (T in hundreds of kelvin), with ends
that lose no heat by conduction. How does the hottest piece answer to a better paint, and how does that answer change?
Run: python examples/implicit_radiating_rod.py
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from planners.fixed_points import GMRES, Broyden, Implicit, root

PIECES, CONDUCT = 6, 2.0


def temperatures(emit: Tensor, power: Tensor) -> Tensor:
    """Return the steady temperatures [6] under heat `power` [6]."""

    def balance(t: Tensor) -> Tensor:  # [1, 6]
        padded = pad(t, (1, 1), mode="replicate")
        return emit * t**4 - power - CONDUCT * (padded[:, :-2] - 2.0 * t + padded[:, 2:])

    start = torch.full((1, PIECES), 3.0, dtype=torch.float64)
    solver = Broyden(max_steps=200, tolerance=1e-12, depth=200)
    scaled = root(lambda t: balance(t) / 30.0, start, solver=solver, adjoint=Implicit(GMRES(40, 1e-12)), throw=True)
    return scaled.value[0]


def hottest(emit: Tensor, power: Tensor) -> Tensor:
    """Return the highest temperature."""
    return temperatures(emit, power).max()


def main() -> tuple[Tensor, Tensor]:
    """Print and return first and second derivative of the peak by emit for 3 heaters, implicit and by differences."""
    emit, step = torch.tensor(0.05, dtype=torch.float64), 1e-5
    power = 20.0 * torch.eye(PIECES, dtype=torch.float64)[[0, 1, 2]]  # a heater at the end, and further in
    peaks, slopes, curvatures = (
        torch.func.vmap(f, (None, 0)) for f in (hottest, torch.func.grad(hottest), torch.func.hessian(hottest))
    )
    implicit = torch.stack((slopes(emit, power), curvatures(emit, power)))
    differences = torch.stack([(f(emit + step, power) - f(emit - step, power)) / (2.0 * step) for f in (peaks, slopes)])
    print(f"hottest pieces {[round(100 * t) for t in peaks(emit, power).tolist()]} K")
    for name, exact, by_differences in zip(("slopes", "curvatures"), implicit, differences, strict=True):
        print(f"{name} of the peak by emit: implicit {exact.tolist()}, differences {by_differences.tolist()}")
    return implicit, differences


if __name__ == "__main__":
    main()
