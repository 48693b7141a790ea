"""Plug-in: VIN turned into a contraction one part at a time, to see which part its success rate stalls on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from datagen.spec import Spec
from planners.specs import Entry


class PartsOptions(Spec):
    """VIN as it is where nothing is chosen; each option replaces one of its parts."""

    hidden_channels: int = Field(150, ge=1)
    q_channels: int = Field(100, ge=1)
    encoder: Literal["linear", "relu"] = "linear"
    """What stands between the encoder's two layers."""
    rewards: Literal["one", "per_action"] = "one"
    """One map of rewards that a filter spreads over the actions, or a map for each action."""
    transitions: Literal["free", "probabilities"] = "free"
    """The value's filters: any, started at zero; or a discount of 0.99 times a softmax over the taps."""
    policy: Literal["values", "advantages"] = "values"
    """What the head reads: Q, or 10 (Q - max Q)."""


CORES = {"vin_parts": Entry("vin_parts.core:VINParts", PartsOptions)}
