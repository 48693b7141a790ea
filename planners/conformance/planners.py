"""Small planners and problems that checks are made with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from planners.cores import encoded
from planners.planner import Planner, build_planner
from planners.registry import ADJOINTS, CORES
from planners.specs import PlannerSpec

SMALL = {"hidden_channels": 8, "q_channels": 8, "embedding": 8, "heads": 2, "feedforward": 12}
_ENOUGH = {"reachability": {"hidden_channels": 32}}
"""With fewer rectified units all of one may be silent: the map then says nothing, and all cells tie."""


_device = torch.device("cpu")


@contextmanager
def checked_on(device: torch.device | str) -> Iterator[None]:
    """Have the checks made in the block on this device."""
    global _device
    before, _device = _device, torch.device(device)
    try:
        yield
    finally:
        _device = before


def small_spec(core: str, **fields: Any) -> PlannerSpec:
    """A planner of small sizes; of the fields given, those that its adjoint has no use for are left out."""
    sizes: dict[str, Any] = SMALL | _ENOUGH.get(core, {})
    options = {name: size for name, size in sizes.items() if name in CORES[core].options_type.model_fields}
    unused = ADJOINTS[str(fields.get("adjoint", "implicit"))].ignores
    fields = {name: value for name, value in fields.items() if name not in unused}
    return PlannerSpec(core=core, options=options | fields.pop("options", {}), **fields)


def problem(batch: int, height: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Random reals instead of zeros and ones: no two actions tie, so the step is differentiable where we test it."""
    generator = torch.Generator().manual_seed(height * 100 + width)
    x = torch.rand(2, batch, 1, height, width, dtype=torch.float64, generator=generator)
    return x[0].to(_device, dtype), x[1].to(_device, dtype)


def planner_for(spec: PlannerSpec, seed: int = 0) -> Planner:
    """A planner in torch's own operations; `check_compiled_loop` compares the compiled loop, where there is one."""
    torch.manual_seed(seed)
    return build_planner(spec, kernel="reference").to(_device)


def contracting(core: str, options: dict[str, Any] | None = None, **fields: Any) -> Planner:
    """A planner in float64 whose step contracts well within 100 steps, and depends on v all the same."""
    options = {"discount": 0.7} | (options or {}) if core == "contractive" else options or {}
    with checked_on("cpu"):
        spec = small_spec(core, options=options, **fields)
        planner = planner_for(spec).double()
        module = cast(nn.Module, planner.core)
        with torch.no_grad():
            if core in _CONTRACTIONS:
                _CONTRACTIONS[core](module)
            else:
                _shrink(module, spec.options)
    return planner.to(_device)


_shrunk: dict[tuple[Any, ...], dict[str, Tensor]] = {}
"""What `_shrink` has found, by all that it depends on: most checks begin with the same few cores."""


def _shrink(core: nn.Module, options: Any) -> None:
    """Scale a core's parameters down until its step contracts; a core that is not of this project is treated so."""
    begins = tuple(part.numpy().tobytes() for part in core.state_dict().values())
    key = (type(core), repr(options), *begins)
    if key not in _shrunk:
        _scale_down(core)
        _shrunk[key] = {name: part.clone() for name, part in core.state_dict().items()}
    core.load_state_dict(_shrunk[key])


def _scale_down(core: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    parameter: Tensor
    for parameter in core.parameters():  # a filter that starts at zero would hide what the step does with it
        parameter.add_(torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator), alpha=0.05)
    map, goal = problem(2, 4, 5)
    for _ in range(40):
        step = encoded(core, torch.cat([map, goal], dim=1))
        v = step.initial_value()
        for _ in range(100):
            before, v = v, step(v)
        if bool((v - before).abs().max() < 1e-12 * v.abs().max().clamp(min=1.0)):
            return
        for parameter in _parameters_of_the_jacobian(core, v, torch.cat([map, goal], dim=1)):
            parameter.mul_(0.85)
    raise AssertionError(
        "the step does not settle within 100 applications even with its parameters near zero, so its gradients can't "
        "be checked; does the step depend on something else than v and r?"
    )


@torch.enable_grad()
def _parameters_of_the_jacobian(core: nn.Module, v: Tensor, x: Tensor) -> list[Tensor]:
    """Return the parameters that df/dv depends on: those alone decide whether the step contracts."""
    generator = torch.Generator().manual_seed(1)
    v = v.detach().requires_grad_()
    out = encoded(core, x)(v)
    u, z = (torch.randn(part.shape, dtype=part.dtype, generator=generator) for part in (out, v))
    (product,) = torch.autograd.grad(out, v, u, create_graph=True)
    parameters: list[Tensor] = list(core.parameters())
    if not product.requires_grad:
        return parameters
    found = torch.autograd.grad((product * z).sum(), parameters, allow_unused=True)
    return [p for p, gradient in zip(parameters, found, strict=True) if gradient is not None and bool(gradient.any())]


def _leave(core: Any) -> None:
    """Contracts as it is."""


def _vin(core: Any) -> None:
    core.w_v.normal_()
    core.w_v *= 0.7 / core.w_v.abs().sum(dim=(1, 2, 3), keepdim=True)


def _symvin(core: Any) -> None:
    core.action_filter.coefficients[:, 1] *= 0.7


def _conv_gppn(core: Any) -> None:
    core.gates *= 0.3
    core.candidate *= 0.3


def _spt(core: Any) -> None:
    # a layer norm divides by the size of what it is given: a large constant in its input contracts the rest
    for layer in core.layers:
        layer.feedforward[-1].bias.normal_(std=6)


def _reachability(core: Any) -> None:
    core.tap_logits *= 0.2  # all neighbours above the cut, so that the step is differentiable in each


_CONTRACTIONS: dict[str, Callable[[Any], None]] = {
    "contractive": _leave,
    "reachability": _reachability,
    "vin": _vin,
    "symvin": _symvin,
    "conv_gppn": _conv_gppn,
    "spt": _spt,
}
