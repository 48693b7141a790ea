"""Two networks on graphs: fixed points of contracting maps, decoded, and layers that pass messages.

The convergent one builds from a graph, for each of its heads, a linear map of all nodes at once,

    z_i <- sum_j A_ij z_j + b_i        A_ij = c g_i softmax_j(s_ij)    an average of what comes in, or
                                       A_ij = c g_j softmax_i(s_ij)    a share of what goes out

with scores s, gates 0 < g < 1 and b of the graph's features, and c < 1. Its rows, or its columns, sum to at most c, so
that in the largest number, or in the sum of numbers, it contracts by c: whatever was learnt, and however large the
graph, there is one fixed point, and iteration finds it (Banach). A decoder reads it at each node, or pooled.
Park, Choo, Park, Convergent graph solvers, 2022. DEVIATION: half the heads share out, beside the paper's averages; the
features that maps are made of come from one round of messages; gradients by `planners.fixed_points`, matrix-free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from graphs import SolverOptions
from planners.fixed_points import ForwardIteration, Implicit, Result, Solution, fixed_point

SOLVER = ForwardIteration(max_steps=1000, tolerance=1e-4, rule="residual")
"""The residual is rule enough where the contraction c is known: in the norm in which the maps contract, `_norm`, it
falls from step to step, and the error is at most c / (1 - c) times as large."""

_FEATURES = 2


@dataclass(frozen=True, eq=False)
class Graphs:
    """A batch of graphs, as one with B N nodes.

    Attributes:
        node: Features [B, N, 2].
        edge: Those of all edges [E, 2].
        source: Which node of the B N each edge leaves [E].
        target: Which it enters [E].
        present: Which nodes are no padding [B, N].
    """

    node: Tensor
    edge: Tensor
    source: Tensor
    target: Tensor
    present: Tensor

    @classmethod
    def of(cls, samples: Mapping[str, Any]) -> Graphs:
        """Return samples as a batch, padded to the largest of them."""
        nodes, edges = samples["size"].astype(np.int64).T
        most = int(nodes.max())
        real = np.arange(samples["ends"].shape[1]) < edges[:, None]
        ends = samples["ends"].astype(np.int64) + (np.arange(len(nodes)) * most)[:, None, None]
        source, target = torch.as_tensor(ends[real]).unbind(1)
        present = torch.as_tensor(np.arange(most) < nodes[:, None])
        node = torch.as_tensor(samples["node"][:, :most])
        return cls(node, torch.as_tensor(samples["edge"][real]), source, target, present)

    def gathered(self, messages: Tensor) -> Tensor:
        """Return for each node the sum of the messages [E, d] of the edges that enter it, [B N, d]."""
        return messages.new_zeros(self.present.numel(), messages.shape[1]).index_add(0, self.target, messages)


@dataclass(frozen=True, eq=False)
class Settled:
    """What a network says.

    Attributes:
        answer: Of each node [B, N], or of each graph [B, classes].
        steps: Applications of the maps, of each graph [B]; 0 where there are none.
        converged: Whether all have settled.
    """

    answer: Tensor
    steps: Tensor
    converged: bool


class Encoder(nn.Module):
    """Features of nodes [B N, width] and of edges [E, width], after one round of messages."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.node = nn.Linear(_FEATURES, width)
        self.edge = nn.Linear(2 * width + _FEATURES, width)
        self.mixed = nn.Linear(2 * width, width)

    def forward(self, graphs: Graphs) -> tuple[Tensor, Tensor]:
        """Encode graphs."""
        node = self.node(graphs.node.flatten(0, 1)).relu()
        edge = self.edge(torch.cat((node[graphs.source], node[graphs.target], graphs.edge), 1)).relu()
        return self.mixed(torch.cat((node, graphs.gathered(edge)), 1)).relu(), edge


class Decoder(nn.Module):
    """Answers of nodes, or of graphs by the mean over their nodes, from features."""

    def __init__(self, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        self.classes, self.hidden, self.answer = classes, nn.Linear(inputs, width), nn.Linear(width, classes or 1)

    def forward(self, features: Tensor, graphs: Graphs) -> Tensor:
        """Decode features [B N, inputs]."""
        hidden = self.hidden(features).relu().unflatten(0, graphs.present.shape)
        if not self.classes:
            return self.answer(hidden)[..., 0]
        present = graphs.present[..., None].to(hidden.dtype)
        return self.answer((hidden * present).sum(1) / present.sum(1))


class Maps(nn.Module):
    """Contracting maps of a graph from features of its nodes and edges, and their fixed points."""

    def __init__(self, options: SolverOptions) -> None:
        super().__init__()
        self.options, width = options, options.width
        self.score, self.gate = nn.Linear(width, options.heads), nn.Linear(width, options.heads)
        self.bias = nn.Linear(width, options.heads * options.features)
        nn.init.constant_(self.gate.bias, 2.0)

    def built(self, graphs: Graphs, node: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
        """Return A [B, heads, N, N] and b [B, heads, N, features]."""
        batch, most = graphs.present.shape
        averaging = torch.arange(self.options.heads) < self.options.heads // 2
        end = torch.where(averaging, graphs.target[:, None], graphs.source[:, None])  # whose edges' weights sum to 1
        score, gate = self.score(edge), self.options.contraction * self.gate(node).sigmoid()
        peak = score.new_full(gate.shape, -torch.inf).scatter_reduce(0, end, score.detach(), "amax")
        weight = (score - peak.gather(0, end)).exp()
        whole = torch.zeros_like(gate).scatter_add(0, end, weight)
        entry = (gate / whole.clamp(min=1e-30)).gather(0, end) * weight
        where = graphs.target * most + graphs.source % most
        flat = entry.new_zeros(batch * most * most, self.options.heads).index_add(0, where, entry)
        bias = self.bias(node) * graphs.present.flatten()[:, None]
        b = bias.reshape(batch, most, self.options.heads, self.options.features).transpose(1, 2)
        return flat.reshape(batch, most, most, self.options.heads).permute(0, 3, 1, 2).contiguous(), b.contiguous()

    def forward(self, graphs: Graphs, node: Tensor, edge: Tensor) -> tuple[Tensor, Solution]:
        """Return the fixed points [B N, heads features], and how they were found."""
        a, b = self.built(graphs, node, edge)
        found = fixed_point(
            lambda z: torch.matmul(a, z) + b,
            torch.zeros_like(b),
            solver=replace(SOLVER, norm=_norm(b.shape[1:])),
            adjoint=Implicit(replace(SOLVER, norm=_norm(b.shape[1:], transposed=True)), order=1),
        )
        return found.value.transpose(1, 2).flatten(2).flatten(0, 1), found


def _norm(shape: Sequence[int], *, transposed: bool = False) -> Callable[[Tensor], Tensor]:
    """Return the norm in which A contracts, or its transpose: averages in the largest number, shares in the sum."""

    def norm(z: Tensor) -> Tensor:
        first, second = z.reshape(len(z), *shape).abs().chunk(2, 1)
        averages, shares = (second, first) if transposed else (first, second)
        return torch.maximum(averages.flatten(1).amax(1), shares.sum(2).flatten(1).amax(1))

    return norm


class Convergent(nn.Module):
    """Contracting maps of a graph, their fixed points, decoded; in a second round of what the first has settled at."""

    def __init__(self, options: SolverOptions, classes: int) -> None:
        super().__init__()
        width, each = options.width, options.heads * options.features
        self.encoder = Encoder(width)
        self.maps = nn.ModuleList(Maps(options) for _ in range(options.rounds))
        self.node = nn.ModuleList(nn.Linear(width + each, width) for _ in range(options.rounds - 1))
        self.edge = nn.ModuleList(nn.Linear(3 * width, width) for _ in range(options.rounds - 1))
        self.decoder = Decoder(width + each, width, classes)

    def forward(self, graphs: Graphs) -> Settled:
        """Settle and decode graphs."""
        node, edge = self.encoder(graphs)
        settled, found = self.maps[0](graphs, node, edge)
        rounds = [found]
        for maps, of_node, of_edge in zip(self.maps[1:], self.node, self.edge, strict=True):
            node = of_node(torch.cat((node, settled), 1)).relu()
            edge = of_edge(torch.cat((node[graphs.source], node[graphs.target], edge), 1)).relu()
            settled, found = maps(graphs, node, edge)
            rounds.append(found)
        answer = self.decoder(torch.cat((node, settled), 1), graphs)
        steps = torch.stack([found.steps for found in rounds]).sum(0)
        return Settled(answer, steps, all(bool((found.result == Result.SETTLED).all()) for found in rounds))


class MessagePassing(nn.Module):
    """Layers of their own weights each, in which every node hears its neighbours once."""

    def __init__(self, options: SolverOptions, classes: int) -> None:
        super().__init__()
        width = options.width
        self.encoder = Encoder(width)
        self.message = nn.ModuleList(nn.Linear(3 * width, width) for _ in range(options.layers))
        self.update = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(options.layers))
        self.decoder = Decoder(width, width, classes)

    def forward(self, graphs: Graphs) -> Settled:
        """Pass messages and decode graphs."""
        node, edge = self.encoder(graphs)
        for message, update in zip(self.message, self.update, strict=True):
            said = message(torch.cat((node[graphs.source], node[graphs.target], edge), 1)).relu()
            node = node + update(torch.cat((node, graphs.gathered(said)), 1)).relu()
        return Settled(self.decoder(node, graphs), torch.zeros(len(graphs.present)), True)


NETWORKS = {"convergent": Convergent, "message_passing": MessagePassing}
