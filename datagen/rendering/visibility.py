"""What a camera in a grid world of 1x1 rooms can see: which walls, and where their corners are.

The geometry is that of MiniWorld's rooms and portals: one room per free cell, and, where a gap separates the rooms of
two free neighbours, a connector as wide as a room and as deep as the gap. Every cell has the same `WALLS` walls,
whatever the map, so corners are computed once per size and a map only chooses among them. Floor and ceiling are one
quad each: under obstacles they are hidden by the walls around.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datagen.jit import kernel

WALLS = 8
"""Walls per cell: the room's to the east, north, west and south; to the north and south of the connector to the east;
to the east and west of the connector to the south."""

_NORMALS = ((-1, 0, 0), (0, 0, 1), (1, 0, 0), (0, 0, -1))
"""Of a room's four walls, pointing inwards: x grows eastwards, y upwards, z southwards."""

_EPSILON = 1e-6
"""Slopes are widened by it, so that rounding never hides what grazes an edge."""


def quads(size: int, gap: float, height: float) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return all walls of a size x size world, then its floor and its ceiling.

    Corners are in MiniWorld's order, counter-clockwise seen from the free side. x grows eastwards, y upwards, z
    southwards.

    Args:
        size: Rows and columns.
        gap: Distance between neighbouring rooms, metres.
        height: Wall height, metres.

    Returns:
        corners: [quads, 4, 3], metres; quads = size * size * WALLS + 2.
        normals: [quads, 3].
        along: [quads, 4, 2], metres along the surface, from which texture coordinates follow.
    """
    pitch = 1 + gap
    low = np.arange(size + 1) * pitch
    west, east, beyond_east = (np.tile(a, (size, 1)) for a in (low[:-1], low[:-1] + 1, low[1:]))
    north, south, beyond_south = west.T, east.T, beyond_east.T
    room = [(east, south), (east, north), (west, north), (west, south)]
    to_east = [(beyond_east, north), (east, north), (east, south), (beyond_east, south)]
    to_south = [(east, beyond_south), (east, south), (west, south), (west, beyond_south)]
    walls = [(room[k], room[(k + 1) % 4], _NORMALS[k]) for k in range(4)]
    walls += [(to_east[0], to_east[1], _NORMALS[1]), (to_east[2], to_east[3], _NORMALS[3])]
    walls += [(to_south[0], to_south[1], _NORMALS[0]), (to_south[2], to_south[3], _NORMALS[2])]

    corners = np.zeros((size, size, WALLS, 4, 3))
    along = np.zeros((size, size, WALLS, 4, 2))
    normals = np.empty((size, size, WALLS, 3))
    for k, (start, stop, normal) in enumerate(walls):
        for corner, (x, z) in enumerate((start, start, stop, stop)):
            corners[:, :, k, corner, 0], corners[:, :, k, corner, 2] = x, z
        corners[:, :, k, 1:3, 1] = along[:, :, k, 1:3, 1] = height
        length = np.abs(stop[0] - start[0]) + np.abs(stop[1] - start[1])
        along[:, :, k, 2:, 0] = length[..., None]
        normals[:, :, k] = normal

    far = low[-1]
    ground = np.array([[far, 0, far], [far, 0, 0], [0, 0, 0], [0, 0, far]])
    flat = np.stack([ground, ground[::-1] + np.array([0, height, 0])])
    return (
        np.concatenate([corners.reshape(-1, 4, 3), flat]),
        np.concatenate([normals.reshape(-1, 3), [(0, 1, 0), (0, -1, 0)]]),
        np.concatenate([along.reshape(-1, 4, 2), flat[..., [0, 2]]]),
    )


@kernel
def _push(stack: NDArray[np.float64], top: int, forward: int, side: int, low: float, high: float) -> int:
    if low > high:
        return top
    stack[top, 0] = forward
    stack[top, 1] = side
    stack[top, 2] = low
    stack[top, 3] = high
    return top + 1


@kernel
def _see(
    map_: NDArray[np.uint8],
    row: int,
    column: int,
    action: int,
    slope: float,
    gap: float,
    stack: NDArray[np.float64],
    seen: NDArray[np.uint8],
) -> float:
    """Mark in `seen` [h, w, WALLS] what the camera in the middle of a cell sees looking along `action`.

    A fan of rays enters each room through an opening and leaves by its forward, left and right side, where it is cut to
    the opening; a ray is its slope, sideways over forward. Distances are from the camera, forward and sideways.

    Returns the forward distance of the farthest free place that is seen.
    """
    # Forward and to the right, in rows and columns.
    f_row, f_column = (-1, 0, 1, 0)[action], (0, -1, 0, 1)[action]
    r_row, r_column = f_column, -f_row
    # Walls by compass: 0 east, 1 north, 2 west, 3 south.
    ahead, right, left = (1, 2, 3, 0)[action], (0, 1, 2, 3)[action], (2, 3, 0, 1)[action]
    pitch = 1.0 + gap
    farthest = 0.0
    top = _push(stack, 0, 0, 0, -slope, slope)
    while top > 0:
        top -= 1
        forward, side = int(stack[top, 0]), int(stack[top, 1])
        low, high = stack[top, 2], stack[top, 3]
        i, j = row + forward * f_row + side * r_row, column + forward * f_column + side * r_column
        near, far = forward * pitch - 0.5, forward * pitch + 0.5
        edge_left, edge_right = side * pitch - 0.5, side * pitch + 0.5
        farthest = max(farthest, far)
        # Ahead: a ray of slope t is t * f to the side where it is f ahead.
        a, b = max(low, edge_left / far - _EPSILON), min(high, edge_right / far + _EPSILON)
        if a <= b:
            ni, nj = i + f_row, j + f_column
            if not map_[ni, nj]:
                seen[i, j, ahead] = 1
            else:
                if gap > 0:
                    # The connector belongs to its northern or western room; a wall is seen from its free side.
                    ci, cj = min(i, ni), min(j, nj)
                    farthest = max(farthest, far + gap)
                    if edge_left < 0:
                        seen[ci, cj, _connector_wall(left)] = 1
                    if edge_right > 0:
                        seen[ci, cj, _connector_wall(right)] = 1
                a = max(a, edge_left / (far + gap) - _EPSILON)
                b = min(b, edge_right / (far + gap) + _EPSILON)
                top = _push(stack, top, forward + 1, side, a, b)
        for sign in (-1, 1):
            edge = edge_right if sign > 0 else -edge_left
            # Rays leave a room sideways only away from the camera's own lane.
            if edge <= 0:
                continue
            # Mirrored to the right; a ray that leaves between near and far has a slope from edge / far to edge / near.
            fan_low, fan_high = (low, high) if sign > 0 else (-high, -low)
            a = max(fan_low, edge / far - _EPSILON)
            b = fan_high if near <= 0 else min(fan_high, edge / near + _EPSILON)
            if a > b:
                continue
            ni, nj = i + sign * r_row, j + sign * r_column
            if not map_[ni, nj]:
                seen[i, j, right if sign > 0 else left] = 1
            else:
                if gap > 0:
                    seen[min(i, ni), min(j, nj), _connector_wall(ahead)] = 1
                a = max(a, (edge + gap) / far - _EPSILON)
                b = b if near <= 0 else min(b, (edge + gap) / near + _EPSILON)
                if sign > 0:
                    top = _push(stack, top, forward, side + 1, a, b)
                else:
                    top = _push(stack, top, forward, side - 1, -b, -a)
    return farthest


@kernel
def _connector_wall(compass: int) -> int:
    """Return the place of a connector's wall: to the north and south eastwards, to the east and west southwards."""
    return (6, 4, 7, 5)[compass]


@kernel
def visible_walls(
    map_: NDArray[np.uint8], actions: NDArray[np.int64], slope: float, gap: float
) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.float64]]:
    """List the walls that every view of a map sees, in the order in which MiniWorld draws them.

    Nothing that can be seen is left out; a wall that only grazes the field of view may be listed.

    Args:
        map_: uint8 [h, w], 1 = free; the border must be obstacles.
        actions: int64 [k], the directions looked at, as places in `ACTIONS`.
        slope: Tangent of half the horizontal field of view.
        gap: Distance between neighbouring rooms, metres.

    Returns:
        walls: uint32 [total], numbers of walls, view by view.
        ends: int64 [views], where each view's walls end in `walls`. Views are the free cells, row by row, times
            `actions`.
        farthest: float64 [views], forward distance of the farthest free place in view, metres.
    """
    height, width = map_.shape
    stack = np.empty((4 * height * width + 64, 4))
    views = len(actions) * np.count_nonzero(map_)
    ends = np.empty(views, np.int64)
    farthest = np.empty(views, np.float64)
    found = np.empty(64 * views + height * width * WALLS, np.uint32)
    seen = np.zeros((height * width, WALLS), np.uint8)
    total = 0
    view = 0
    for row in range(height):
        for column in range(width):
            if not map_[row, column]:
                continue
            for action in actions:
                seen[:] = 0
                farthest[view] = _see(map_, row, column, action, slope, gap, stack, seen.reshape(height, width, WALLS))
                if total + seen.size > len(found):
                    more = np.empty(2 * len(found) + seen.size, np.uint32)
                    more[:total] = found[:total]
                    found = more
                # MiniWorld draws all rooms, then all connectors.
                for first, last in ((0, 4), (4, WALLS)):
                    for cell in range(height * width):
                        for wall in range(first, last):
                            if seen[cell, wall]:
                                found[total] = cell * WALLS + wall
                                total += 1
                ends[view] = total
                view += 1
    return found[:total], ends, farthest
