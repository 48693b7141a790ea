"""2-DOF manipulation: plan in the configuration space of a planar arm among random polygons (section 5.1)."""

# UNSPECIFIED(5.1): the paper does not tell the sizes of arm and obstacles; they follow the authors' public generator.
# DEVIATION(authors): their joint angles are linspace(0, 2 pi, n), whose last bin is the first configuration again
# although the torus joins the two; ours leave the end out, 20 (10) degrees a bin as in the paper. `inclusive_angles` is
# theirs. Their workspace image is what a plotting library draws, edges half a pixel wider.

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from datagen.expert.grid import breadth_first, neighbours, solve
from datagen.jit import kernel
from datagen.options import IMAGE_SIZE, ArmOptions
from datagen.problem import FOUR_WRAP, Problems
from datagen.sampling.splitmix import below, label_seeds, problem_seeds, uniform
from datagen.sampling.symmetry import shape_hash
from datagen.sampling.unique_maps import AGAIN, NONE, UNUSABLE, Claims, admit, draw_in_order, owner
from datagen.tasks.arm import direction_table, draw_polygons, free_configurations
from datagen.tasks.distinct import ways_of_reading
from datagen.tasks.registry import SPLITS, DatasetSpec, Split

_SLOTS = 5
_CORNERS = 7

Scenes = tuple[NDArray[np.uint8], NDArray[np.int16], NDArray[np.float32], NDArray[np.int64]]


@kernel
def _shuffle(items: NDArray[np.float64], state: NDArray[np.uint64]) -> None:
    for last in range(len(items) - 1, 0, -1):
        other = below(state, last + 1)
        items[last], items[other] = items[other], items[last]


@kernel
def _scene(polygons: NDArray[np.float32], vertices: NDArray[np.int64], state: NDArray[np.uint64]) -> int:
    """Draw obstacles into `polygons` [5, 7, 2] and `vertices` [5]; return how many, 0 to 5."""
    count = below(state, _SLOTS + 1)
    width, radius, order = np.empty(_SLOTS), np.empty(_SLOTS), np.arange(_SLOTS).astype(np.float64)
    for k in range(_SLOTS):
        width[k], radius[k] = 3.0 + 2.0 * uniform(state), 3.0 + 2.0 * uniform(state)
    turn = uniform(state)
    angle = 2.0 * math.pi * (turn + np.cumsum(width / width.sum()))
    reach = np.cumsum(radius)
    distance = 2.5 + 2.5 * (reach - reach[0]) / (reach[-1] - reach[0])
    _shuffle(distance, state)
    _shuffle(order, state)
    vertices[:] = 0
    for k in range(count):
        slot = np.int64(order[k])
        x, y = 5.0 + distance[slot] * math.cos(angle[slot]), 5.0 + distance[slot] * math.sin(angle[slot])
        size = distance[slot] - 1.75
        n = 4 + below(state, 4)
        around = np.empty(n)
        for v in range(n):
            around[v] = 2.0 * math.pi * uniform(state)
        around.sort()
        for v in range(n):
            away = size * (0.3 + 0.7 * uniform(state))
            polygons[k, v, 0] = x + away * math.cos(around[v])
            polygons[k, v, 1] = y + away * math.sin(around[v])
        vertices[k] = n
    return count


@kernel
def _pick(free: NDArray[np.uint8], n: int, state: NDArray[np.uint64]) -> int:
    """Return the flat index of a random one of the `n` free cells."""
    left = below(state, n)
    for cell in range(len(free)):
        if free[cell] != 0:
            if left == 0:
                return cell
            left -= 1
    return -1


@kernel
def _scenes(
    size: int,
    split: int,
    seeds: NDArray[np.uint64],
    start: int,
    cosines: NDArray[np.float64],
    sines: NDArray[np.float64],
    sources: NDArray[np.int32],
    directions: NDArray[np.int64],
    keys: NDArray[np.uint64],
    holders: NDArray[np.int64],
) -> tuple[NDArray[np.uint8], NDArray[np.int16], NDArray[np.float32], NDArray[np.int64], int]:
    """Return maps, goals, polygons, vertices, and the first problem for which there is no map, or -1."""
    maps = np.empty((len(seeds), size, size), np.uint8)
    goals = np.empty((len(seeds), 2), np.int16)
    polygons = np.zeros((len(seeds), _SLOTS, _CORNERS, 2), np.float32)
    vertices = np.zeros((len(seeds), _SLOTS), np.int64)
    distance = np.empty(size * size, np.float32)
    queue = np.empty(size * size + 1, np.int32)
    state, draws = np.empty(1, np.uint64), np.empty(2, np.int64)
    for i in range(len(seeds)):
        state[0] = seeds[i]
        map_ = maps[i]
        cells = map_.reshape(-1)
        draws[:] = 0
        verdict = AGAIN
        while verdict == AGAIN:
            count = _scene(polygons[i], vertices[i], state)
            free_configurations(polygons[i, :count], vertices[i, :count], cosines, sines, map_)
            hash_ = shape_hash(map_, directions, True)
            free = np.int64(cells.sum())
            accepted = False
            if owner(hash_) == split and free >= 2:
                # Start and goal, distinct and connected; only the goal is kept.
                first, goal = _pick(cells, free, state), _pick(cells, free, state)
                if first != goal:
                    breadth_first(cells, goal, sources, queue, distance)
                    accepted = distance[first] < np.inf
                    goals[i, 0] = goal // size
                    goals[i, 1] = goal % size
            verdict = admit(hash_ if accepted else UNUSABLE, split, start + i, draws, keys, holders)
        if verdict == NONE:
            return maps, goals, polygons, vertices, start + i
        for k in range(_SLOTS):
            polygons[i, k, vertices[i, k] :] = 0.0
    return maps, goals, polygons, vertices, -1


def scenes(spec: DatasetSpec, split: Split, start: int, stop: int) -> Scenes:
    """Draw the obstacles, configuration spaces and goals of problems `start` to `stop` of a split.

    The number of obstacles is uniform in 0 .. 5, their places are a random choice among five angular slots, whose
    widths are U(3, 5) scaled to a full turn, turned by U(0, 1) turns; the slots' radii are cumulated U(3, 5) scaled to
    [2.5, 5] and shuffled. A polygon has 4 to 7 corners around its slot's centre, at sorted uniform angles and
    distances U(0.3 R, R), R = radius - 1.75. Start and goal are distinct free configurations with a path between them;
    else all is drawn again. No map comes twice in the whole set, so at most one is without obstacles in reach.

    Args:
        spec: Uses `map_size`, `seed`, `distinct` and `options.inclusive_angles`.
        split: Which split.
        start: First problem.
        stop: One past the last problem.

    Returns:
        Maps, uint8 [n, size, size], row = first joint; goals, int16 [n, 2]; corners of polygons, float32 [n, 5, 7, 2],
        workspace coordinates; numbers of corners, int64 [n, 5], 0 = no polygon.

    Raises:
        ValueError: The split owns no map of this size.
    """
    assert isinstance(spec.options, ArmOptions)
    size, number, inclusive = spec.map_size, SPLITS.index(split), spec.options.inclusive_angles
    angles, sources = direction_table(size, inclusive), neighbours(size, size, FOUR_WRAP, -1)
    directions = ways_of_reading(spec).directions

    def turn(first: int, end: int, claims: Claims) -> Scenes:
        seeds = problem_seeds(spec.seed, number, first, end)
        tables = (*angles, sources, directions, claims.keys, claims.holders)
        *result, failed = _scenes(size, number, seeds, first, *tables)
        if failed >= 0:
            raise ValueError(f"map_size: no scene of size {size} belongs to split {split!r}; choose a larger size")
        maps, goals, polygons, vertices = result
        return maps, goals, polygons, vertices

    return draw_in_order(("manipulation", size, inclusive, spec.seed, spec.distinct, split), turn, start, stop)


def draw(spec: DatasetSpec, split: Split, start: int, stop: int) -> Problems:
    """Make the manipulation problems `start` to `stop` of a split, labels and obstacle polygons included.

    Args:
        spec: See `scenes`; the task `workspace_manipulation` adds the workspace image as observation.
        split: Which split.
        start: First problem.
        stop: One past the last problem.

    Returns:
        The problems; observation uint8 [n, 1, 96, 96] of 0 and 1 (1 = obstacle, row 0 at the top), or None.
    """
    maps, goals, polygons, vertices = scenes(spec, split, start, stop)
    seeds = problem_seeds(spec.seed, SPLITS.index(split), start, stop)
    solved = solve(maps, goals, FOUR_WRAP, label_seeds(seeds))
    observation = None
    if spec.task == "workspace_manipulation":
        images = np.empty((len(maps), IMAGE_SIZE, IMAGE_SIZE), np.uint8)
        draw_polygons(polygons, vertices, images)
        observation = images[:, None]
    return Problems(
        map=solved.map,
        goal=solved.goal,
        distance=solved.distance,
        optimal_actions=solved.optimal_actions,
        label=solved.label,
        observation=observation,
        obstacles=[
            [polygon[:n] for polygon, n in zip(scene, corners, strict=True) if n]
            for scene, corners in zip(polygons, vertices.tolist(), strict=True)
        ],
    )
