"""Graphs and what they settle at: walkers that come and go, traffic at equilibrium; and families of graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra, minimum_spanning_tree

from datagen.plugins import PluginError
from graphs import EDGES_PER_NODE, GraphOptions

Numbers = NDArray[np.float64]
Pairs = NDArray[np.int64]

LEAVE = 0.1
"""Probability that a walker leaves the graph at a step."""

DEMAND = 0.25
"""Most that sets out from a node of a graph of traffic."""

MARKED = {"sources": 0.15, "destinations": 0.08}
"""Shares of the nodes; there is one at least."""

BRIDGES = 3
"""Edges between the two communities of a graph of the last family."""


def walks(options: GraphOptions, generator: np.random.Generator) -> dict[str, Any]:
    """Return a weighted graph, and how many walkers are at each node once as many leave as come.

    v = arrivals + (1 - LEAVE) P^T v, where P_ij is the share that edge ij has of the weights of i's edges.
    """
    size = _size(options, generator)
    _, ends = _roads(size, generator)
    weight = generator.uniform(0.2, 1.0, len(ends))
    arrivals = generator.uniform(0.5, 1.0, size) * _marked(size, MARKED["sources"], generator)
    leaving = np.bincount(ends[:, 0], weight, size)
    shares = coo_array((weight / leaving[ends[:, 0]], (ends[:, 1], ends[:, 0])), (size, size)).toarray()
    walkers = np.linalg.solve(np.eye(size) - (1.0 - LEAVE) * shares, arrivals)
    return _sample(options, np.stack((arrivals, np.ones(size)), 1), ends, np.stack((weight, weight), 1), walkers)


def traffic(options: GraphOptions, generator: np.random.Generator) -> dict[str, Any]:
    """Return roads to some destinations, and the time that each node's drivers need once none gains by another way."""
    size = _size(options, generator)
    lengths, ends = _roads(size, generator)
    slope = lengths * generator.uniform(0.5, 3.0, len(ends))
    destinations = _marked(size, MARKED["destinations"], generator)
    demand = np.where(destinations, 0.0, DEMAND * generator.uniform(0.2, 1.0, size))
    node = np.stack((demand, destinations), 1)
    times = equilibrium(ends, lengths, slope, demand, destinations)
    return _sample(options, node, ends, np.stack((lengths, slope), 1), times)


def equilibrium(
    ends: Pairs, free: Numbers, slope: Numbers, demand: Numbers, destinations: NDArray[np.bool_]
) -> Numbers:
    """Return the time from each node to the best destination at Wardrop's equilibrium, to 1e-8 of the demand.

    A road takes free + slope f with a flow of f, and is used where that is the difference u_i - u_j of the times at its
    ends: f_ij = max(0, u_i - u_j - free_ij) / slope_ij, and what leaves a node less what enters it is its demand.
    These are the conditions of a convex minimum, sum slope f^2 / 2 - demand u, which Newton's method finds.

    Args:
        ends: The nodes that each road leaves and enters [E, 2].
        free: Its time when it is empty [E].
        slope: What a unit of flow adds to that.
        demand: Of each node [N], positive but at destinations.
        destinations: Where drivers go, any of them [N].
    """
    size, (source, target) = len(demand), ends.T
    others = ~destinations
    empty = coo_array((free, (source, target)), (size, size)).tocsr()
    times = 3.0 * np.asarray(dijkstra(empty.T, indices=np.flatnonzero(destinations), min_only=True))

    def judged(times: Numbers) -> tuple[float, Numbers, Numbers]:
        flow = np.maximum(times[source] - times[target] - free, 0.0) / slope
        left = np.bincount(source, flow, size) - np.bincount(target, flow, size) - demand
        return float(0.5 * (slope * flow**2).sum() - demand @ times), flow, np.where(others, left, 0.0)

    value, flow, left = judged(times)
    for _ in range(200):
        if np.abs(left).max() <= 1e-8 * DEMAND:
            return times
        used = (flow > 0) / slope
        curvature = np.diag(np.bincount(source, used, size) + np.bincount(target, used, size) + 1e-9)
        np.add.at(curvature, (source, target), -used)
        np.add.at(curvature, (target, source), -used)
        move = np.zeros(size)
        move[others] = np.linalg.solve(curvature[np.ix_(others, others)], -left[others])
        share = 1.0
        while share > 1e-12 and judged(times + share * move)[0] > value + 1e-4 * share * float(left @ move):
            share *= 0.5
        times = times + share * move
        value, flow, left = judged(times)
    raise PluginError("graphs: an equilibrium of traffic is not found")


def families(options: GraphOptions, generator: np.random.Generator) -> dict[str, Any]:
    """Return a graph of two edges a node: by chance, along a ring, to whom many know, or within two communities."""
    size, family = _size(options, generator), int(generator.integers(4))
    if family == 0:
        pairs = _random_pairs(range(size), 2 * size, generator)
    elif family == 1:
        pairs = _small_world(size, generator)
    elif family == 2:
        pairs = _preferential(size, generator)
    else:
        half = size // 2
        pairs = _random_pairs(range(half), 2 * half - 1, generator)
        pairs |= _random_pairs(range(half, size), 2 * (size - half) - 2, generator)
        pairs |= {(int(generator.integers(half)), int(generator.integers(half, size))) for _ in range(BRIDGES)}
    names = generator.permutation(size)
    one_way = names[np.array(sorted(pairs), np.int64)]
    ends = np.concatenate((one_way, one_way[:, ::-1]))
    degree = np.bincount(ends[:, 0], minlength=size) / 4.0
    return _sample(options, np.stack((degree, np.ones(size)), 1), ends, np.zeros((len(ends), 2)), family)


def _size(options: GraphOptions, generator: np.random.Generator) -> int:
    if generator.random() < options.share:
        return options.larger
    return int(generator.integers(options.fewest, options.most + 1))


def _marked(size: int, share: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    marked = generator.random(size) < share
    marked[generator.integers(size)] = True
    return marked


def _roads(size: int, generator: np.random.Generator) -> tuple[Numbers, Pairs]:
    """Return lengths and ends of roads, both ways, between places about one apart: a tree, and the shortest others."""
    place = generator.uniform(0.0, np.sqrt(size), (size, 2))
    distance = np.linalg.norm(place[:, None] - place, axis=-1) + 0.05
    tree = {(min(pair), max(pair)) for pair in zip(*minimum_spanning_tree(distance).nonzero(), strict=True)}
    first, second = np.triu_indices(size, 1)
    order = np.argsort(distance[first, second])
    others = [pair for pair in zip(first[order], second[order], strict=True) if pair not in tree]
    one_way = np.array([*sorted(tree), *others[: round(0.6 * size)]], np.int64)
    ends = np.concatenate((one_way, one_way[:, ::-1]))
    return distance[ends[:, 0], ends[:, 1]], ends


def _random_pairs(nodes: range, count: int, generator: np.random.Generator) -> set[tuple[int, int]]:
    count, found = min(count, len(nodes) * (len(nodes) - 1) // 2), set[tuple[int, int]]()
    while len(found) < count:
        first, second = sorted(int(node) for node in generator.integers(nodes.start, nodes.stop, 2))
        if first != second:
            found.add((first, second))
    return found


def _small_world(size: int, generator: np.random.Generator) -> set[tuple[int, int]]:
    """Return a ring whose nodes know the next two, one edge in seven elsewhere."""
    ring = [(node, (node + step) % size) for node in range(size) for step in (1, 2)]
    kept = {(min(pair), max(pair)) for pair in ring if generator.random() > 1 / 7}
    while len(kept) < min(2 * size, size * (size - 1) // 2):
        kept |= _random_pairs(range(size), 1, generator)
    return kept


def _preferential(size: int, generator: np.random.Generator) -> set[tuple[int, int]]:
    """Return the edges of nodes that come one by one and take up with two, the likelier the more these have."""
    found, known = {(0, 1), (0, 2), (1, 2)}, [0, 1, 0, 2, 1, 2]
    for node in range(3, size):
        chosen: set[int] = set()
        while len(chosen) < 2:
            chosen.add(known[generator.integers(len(known))])
        found |= {(other, node) for other in chosen}
        known += [*chosen, node, node]
    return found


def _sample(options: GraphOptions, node: Numbers, ends: Pairs, edge: Numbers, answer: Any) -> dict[str, Any]:
    rows, most = options.larger, EDGES_PER_NODE * options.larger
    whole = answer if isinstance(answer, int) else _padded(answer, rows)
    return {
        "node": _padded(node, rows),
        "edge": _padded(edge, most),
        "ends": _padded(ends, most),
        "size": np.array([len(node), len(ends)]),
        "answer": whole,
    }


def _padded(values: NDArray[Any], rows: int) -> NDArray[Any]:
    whole = np.zeros((rows, *values.shape[1:]), values.dtype)
    whole[: len(values)] = values
    return whole
