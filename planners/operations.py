"""How many arithmetic operations a plan takes at most."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from planners.compiled.solvers import BestFirst
from planners.cores import encoded
from planners.cores.reachability import ReachabilityStep
from planners.planner import Planner


def operations(planner: Planner, size: int, k_fwd: int) -> int:
    """Return the operations of one plan on a map [size, size] that is given: encoder, K steps, policy.

    Counted are multiplications and additions of convolutions and matrix products; of `reachability`, whose step has
    none, an addition and a comparison for each latent action of each cell. Best first, each cell is settled once, which
    is one step. A mapper's are left out, and so is what stopping early or looking patterns up saves.

    Args:
        planner: The planner, on the CPU.
        size: Rows and columns of the map.
        k_fwd: Most forward steps.
    """
    x = torch.zeros(1, 2 + planner.channels, size, size)
    x[:, 0], x[0, 1, 0, 0] = 1.0, 1.0
    with torch.no_grad():
        with _counting() as encoder:
            step = encoded(planner.core, x)
            prepared = getattr(step, "prepared", None)
            step = step if prepared is None else prepared()
            start = step.initial_value()
        with _counting() as once:
            value = step(start)
        with _counting() as head:
            step.policy(value)
    steps, each = k_fwd, once.get_total_flops()
    if isinstance(step, ReachabilityStep):
        each += 2 * step.moves[0].numel()
        steps = 1 if isinstance(planner.solver, BestFirst) else k_fwd
    total: int = encoder.get_total_flops() + steps * each + head.get_total_flops()
    return total


def _counting() -> FlopCounterMode:
    return FlopCounterMode(display=False)
