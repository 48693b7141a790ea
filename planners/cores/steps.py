"""Steps as data: value iteration and the convolutional GRU, in torch's own operations.

What is data can be taken by a compiled loop (`planners.compiled`) as well; these operations are the reference that it
is tested against.

Legend: B samples, A actions, G value channels, C reward channels, S state channels; v value, r reward, q action values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datagen.shapes import shaped
from planners.cores.layers import convolve, maximum, merged

if TYPE_CHECKING:
    from jaxtyping import Float


@shaped
@dataclass(frozen=True, eq=False)
class ValueIteration:
    """The step v' = max_a (W_r,a * r + W_v,a * v), Eq. 1.

    Attributes:
        reward: r [B, C, h, w]; or, when w_r is None, the reward's part of Q itself, [B, A x G, h, w].
        w_r: [A x G, C, R, R] or None; its size may be another than w_v's.
        w_v: [A x G, G, F, F]; filters are ordered by action and then by value channel, as Q's channels are.
        wrap: True pads circularly.
        temperature: 0 is the maximum; T > 0 its smoothing, which compiled loops do not have.
        head: How logits are read off Q [B, A x G, h, w]: a filter [actions, A x G, 1, 1], or any function of Q. None
            where no policy is asked for.
    """

    reward: Float[Tensor, "B C h w"]
    w_r: Float[Tensor, "AG C R R"] | None
    w_v: Float[Tensor, "AG G F F"]
    wrap: bool
    temperature: float = 0.0
    head: Float[Tensor, "actions AG 1 1"] | Callable[[Tensor], Tensor] | None = None

    @property
    def channels(self) -> int:
        """G."""
        return self.w_v.shape[1]

    def prepared(self) -> ValueIteration:
        """Return the same step with the reward's part of Q computed once."""
        if self.w_r is None:
            return self
        return replace(self, reward=convolve(self.reward, self.w_r, wrap=self.wrap), w_r=None)

    @shaped
    def initial_value(self) -> Float[Tensor, "B G h w"]:
        """Return zeros, [B, G, h, w]."""
        return self.reward.new_zeros(self.reward.shape[0], self.channels, *self.reward.shape[2:])

    @shaped
    def action_values(self, v: Float[Tensor, "B G h w"]) -> Float[Tensor, "B AG h w"]:
        """Return Q, [B, A x G, h, w]."""
        return self.prepared().reward + convolve(v, self.w_v, wrap=self.wrap)

    @shaped
    def __call__(self, v: Float[Tensor, "B G h w"]) -> Float[Tensor, "B G h w"]:
        """Return f(v), [B, G, h, w]."""
        return maximum(self.action_values(v).unflatten(1, (-1, self.channels)), 1, self.temperature).squeeze(1)

    @shaped
    def policy(self, v: Float[Tensor, "B G h w"]) -> Float[Tensor, "B actions h w"]:
        """Return logits at v, [B, actions, h, w].

        Before the reward's part of Q is there, a head that is a filter reads them without Q: a 1x1 layer after a linear
        one is one small convolution.
        """
        assert self.head is not None
        if not isinstance(self.head, Tensor):
            return self.head(self.action_values(v))
        if self.w_r is None:
            return convolve(self.action_values(v), self.head, wrap=self.wrap)
        w_r, w_v = (merged(w, None, self.head)[0] for w in (self.w_r, self.w_v))
        return convolve(self.reward, w_r, wrap=self.wrap) + convolve(v, w_v, wrap=self.wrap)

    def take(self, rows: Tensor) -> ValueIteration:
        """Return the same step for those samples."""
        return replace(self, reward=self.reward[rows])


@shaped
@dataclass(frozen=True, eq=False)
class GRUIteration:
    """The step f(v) = ConvGRU(v, r): u, s = sigmoid(W_us * [r, v]), n = tanh(W_n * [r, s v]), v' = (1 - u) v + u n.

    Attributes:
        initial: v_0 [B, S, h, w].
        reward: r [B, 1, h, w].
        gates: Filters of update and reset gate, [2 S, S, F, F].
        candidate: [S, S, F, F].
        from_reward: What of gates and candidate reads r, [3 S, 1, F, F].
        bias: [3 S].
        wrap: True pads circularly.
        head: [actions, S, 1, 1], or None where no policy is asked for.
        part: The reward's part of gates and candidate, [B, 3 S, h, w], where it has been computed ahead.
    """

    initial: Float[Tensor, "B S h w"]
    reward: Float[Tensor, "B 1 h w"]
    gates: Float[Tensor, "2*S S F F"]
    candidate: Float[Tensor, "S S F F"]
    from_reward: Float[Tensor, "3*S 1 F F"]
    bias: Float[Tensor, " 3*S"]
    wrap: bool
    head: Float[Tensor, "actions S 1 1"] | None = None
    part: Float[Tensor, "B 3*S h w"] | None = None

    @shaped
    def reward_part(self) -> Float[Tensor, "B _ h w"]:
        """Return the reward's part of gates and candidate, [B, 3 S, h, w]."""
        if self.part is not None:
            return self.part
        return convolve(self.reward, self.from_reward, self.bias, wrap=self.wrap)

    def prepared(self) -> GRUIteration:
        """Return the same step with the reward's part of gates and candidate computed once."""
        return replace(self, part=self.reward_part())

    @shaped
    def initial_value(self) -> Float[Tensor, "B S h w"]:
        """Return v_0, [B, S, h, w]."""
        return self.initial

    @shaped
    def __call__(self, v: Float[Tensor, "B S h w"]) -> Float[Tensor, "B S h w"]:
        """Return f(v), [B, S, h, w]."""
        state = self.candidate.shape[0]
        gates, candidate = self.reward_part().split((2 * state, state), dim=1)
        u, s = torch.sigmoid(gates + convolve(v, self.gates, wrap=self.wrap)).chunk(2, dim=1)
        n = torch.tanh(candidate + convolve(s * v, self.candidate, wrap=self.wrap))
        return torch.lerp(v, n, u)

    @shaped
    def policy(self, v: Float[Tensor, "B S h w"]) -> Float[Tensor, "B actions h w"]:
        """Return logits, a linear map of each cell's state, [B, actions, h, w]."""
        assert self.head is not None
        return convolve(v, self.head, wrap=self.wrap)

    def take(self, rows: Tensor) -> GRUIteration:
        """Return the same step for those samples."""
        part = None if self.part is None else self.part[rows]
        return replace(self, initial=self.initial[rows], reward=self.reward[rows], part=part)
