"""A planar arm with two links among polygons: where its links are, which configurations collide, what a camera sees.

The workspace is 10 x 10; the base is in its centre; both links are 2.1 long and have no width; the second joint's angle
is relative to the first link. The links may cross each other.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from datagen.jit import kernel

WORKSPACE = 10.0
BASE = 5.0
LINK = 2.1


def joint_angles(size: int, inclusive: bool = False) -> NDArray[np.float64]:
    """Return the angles of a joint's bins in radians, float64 [size].

    Args:
        size: Number of bins.
        inclusive: As the authors' generator, whose last bin is the first configuration once more.
    """
    return 2.0 * math.pi * np.arange(size) / (size - 1 if inclusive else size)


def link_positions(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return base, elbow and hand.

    Args:
        angles: [..., 2], first and second joint in radians.

    Returns:
        float64 [..., 3, 2], workspace coordinates x and y.
    """
    heading = np.cumsum(np.asarray(angles, np.float64), axis=-1)
    steps = LINK * np.stack([np.cos(heading), np.sin(heading)], axis=-1)
    base = np.full((*steps.shape[:-2], 1, 2), BASE)
    return np.concatenate([base, BASE + np.cumsum(steps, axis=-2)], axis=-2)


@kernel
def _inside(x: float, y: float, polygon: NDArray[np.float32], vertices: int) -> bool:
    """Return whether a point lies inside a polygon [>= vertices, 2] (even-odd rule)."""
    inside = False
    for k in range(vertices):
        ax, ay = (
            np.float64(polygon[k - 1 if k else vertices - 1, 0]),
            np.float64(polygon[k - 1 if k else vertices - 1, 1]),
        )
        bx, by = np.float64(polygon[k, 0]), np.float64(polygon[k, 1])
        if (ay > y) != (by > y) and x < ax + (bx - ax) * (y - ay) / (by - ay):
            inside = not inside
    return inside


@kernel
def _segments_meet(px: float, py: float, qx: float, qy: float, ax: float, ay: float, bx: float, by: float) -> bool:
    """Return whether the closed segments pq and ab have a point in common."""
    a_side = (qx - px) * (ay - py) - (qy - py) * (ax - px)
    b_side = (qx - px) * (by - py) - (qy - py) * (bx - px)
    if a_side * b_side > 0:
        return False
    p_side = (bx - ax) * (py - ay) - (by - ay) * (px - ax)
    q_side = (bx - ax) * (qy - ay) - (by - ay) * (qx - ax)
    if p_side * q_side > 0:
        return False
    if a_side == 0 and b_side == 0:  # on one line: they meet where their boxes do
        return max(min(px, qx), min(ax, bx)) <= min(max(px, qx), max(ax, bx)) and max(min(py, qy), min(ay, by)) <= min(
            max(py, qy), max(ay, by)
        )
    return True


@kernel
def _link_hits(
    px: float,
    py: float,
    qx: float,
    qy: float,
    polygons: NDArray[np.float32],
    vertices: NDArray[np.int64],
    boxes: NDArray[np.float64],
    near: NDArray[np.int64],
    count: int,
) -> bool:
    """Return whether the segment pq crosses the edge of any of the first `count` polygons that `near` lists."""
    low_x, high_x, low_y, high_y = min(px, qx), max(px, qx), min(py, qy), max(py, qy)
    for item in range(count):
        k = near[item]
        if boxes[k, 0] > high_x or boxes[k, 1] < low_x or boxes[k, 2] > high_y or boxes[k, 3] < low_y:
            continue
        n = vertices[k]
        ax, ay = np.float64(polygons[k, n - 1, 0]), np.float64(polygons[k, n - 1, 1])
        for v in range(n):
            bx, by = np.float64(polygons[k, v, 0]), np.float64(polygons[k, v, 1])
            if _segments_meet(px, py, qx, qy, ax, ay, bx, by):
                return True
            ax, ay = bx, by
    return False


@kernel
def free_configurations(
    polygons: NDArray[np.float32],
    vertices: NDArray[np.int64],
    cosines: NDArray[np.float64],
    sines: NDArray[np.float64],
    map_: NDArray[np.uint8],
) -> None:
    """Write which configurations are free of collisions into `map_` [n, n]: 1 = free; row = first joint.

    The arm is one connected line from the base, so it meets a polygon where it crosses the edge, or where the base is
    inside.

    Args:
        polygons: float32 [k, v, 2], corners, unused ones last; inside by the even-odd rule.
        vertices: int64 [k], corners used of each.
        cosines: float64 [2 n - 1], entry i + j is the cosine of the sum of bins i and j.
        sines: The same of the sine.
        map_: uint8 [n, n], the result.
    """
    n = map_.shape[0]
    map_[:] = 1
    boxes = np.empty((len(vertices), 4), np.float64)
    everyone = np.arange(len(vertices))
    near = np.empty(len(vertices), np.int64)
    for k in range(len(vertices)):
        if _inside(BASE, BASE, polygons[k], vertices[k]):
            map_[:] = 0
            return
        corners = polygons[k, : vertices[k]]
        boxes[k, 0], boxes[k, 1] = corners[:, 0].min(), corners[:, 0].max()
        boxes[k, 2], boxes[k, 3] = corners[:, 1].min(), corners[:, 1].max()
    for i in range(n):
        elbow_x, elbow_y = BASE + LINK * cosines[i], BASE + LINK * sines[i]
        if _link_hits(BASE, BASE, elbow_x, elbow_y, polygons, vertices, boxes, everyone, len(vertices)):
            map_[i] = 0
            continue
        count = 0
        for k in range(len(vertices)):
            dx = max(boxes[k, 0] - elbow_x, 0.0, elbow_x - boxes[k, 1])
            dy = max(boxes[k, 2] - elbow_y, 0.0, elbow_y - boxes[k, 3])
            if dx * dx + dy * dy <= LINK * LINK:
                near[count] = k
                count += 1
        if count == 0:
            continue
        for j in range(n):
            hand_x, hand_y = elbow_x + LINK * cosines[i + j], elbow_y + LINK * sines[i + j]
            if _link_hits(elbow_x, elbow_y, hand_x, hand_y, polygons, vertices, boxes, near, count):
                map_[i, j] = 0


def padded(polygons: list[NDArray[np.float32]]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return polygons as one array [k, most vertices, 2] and their numbers of vertices [k]."""
    vertices = np.array([len(polygon) for polygon in polygons], np.int64)
    corners = np.zeros((len(polygons), int(vertices.max(initial=1)), 2), np.float32)
    for k, polygon in enumerate(polygons):
        corners[k, : len(polygon)] = polygon
    return corners, vertices


def direction_table(size: int, inclusive: bool = False) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return cosine and sine of every sum of two bins' angles, each float64 [2 size - 1]."""
    step = joint_angles(size, inclusive)[1]
    headings = step * np.arange(2 * size - 1)
    return np.cos(headings), np.sin(headings)


def configuration_space(polygons: list[NDArray[np.float32]], size: int, inclusive: bool = False) -> NDArray[np.uint8]:
    """Return which configurations of the arm are free of collisions.

    Args:
        polygons: Polygons, each float32 [vertices, 2] in workspace coordinates.
        size: Bins per joint.
        inclusive: See `joint_angles`.

    Returns:
        uint8 [size, size], 1 = free; row = first joint, column = second joint.
    """
    map_ = np.empty((size, size), np.uint8)
    free_configurations(*padded(polygons), *direction_table(size, inclusive), map_)
    return map_


@kernel
def _covered(polygon: NDArray[np.float32], vertices: int, image: NDArray[np.uint8]) -> None:
    """Set the pixels of `image` [p, p] that a polygon touches; row 0 is at the top."""
    size = image.shape[0]
    pixel = WORKSPACE / size
    # Pixels along the edge: those whose closed square the edge meets.
    for k in range(vertices):
        before = k - 1 if k else vertices - 1
        ax, ay = np.float64(polygon[before, 0]) / pixel, np.float64(polygon[before, 1]) / pixel
        bx, by = np.float64(polygon[k, 0]) / pixel, np.float64(polygon[k, 1]) / pixel
        first_x, last_x = max(0, math.floor(min(ax, bx))), min(size - 1, math.floor(max(ax, bx)))
        first_y, last_y = max(0, math.floor(min(ay, by))), min(size - 1, math.floor(max(ay, by)))
        for y in range(first_y, last_y + 1):
            for x in range(first_x, last_x + 1):
                # The square lies on both sides of the line through the edge; the boxes overlap by construction.
                across, along = bx - ax, by - ay
                middle = across * (y + 0.5 - ay) - along * (x + 0.5 - ax)
                if abs(middle) <= 0.5 * (abs(across) + abs(along)):
                    image[size - 1 - y, x] = 1
    # The others are inside or outside as a whole, as their centres are.
    low_x, high_x = polygon[:vertices, 0].min() / pixel, polygon[:vertices, 0].max() / pixel
    low_y, high_y = polygon[:vertices, 1].min() / pixel, polygon[:vertices, 1].max() / pixel
    for y in range(max(0, int(low_y)), min(size - 1, int(high_y)) + 1):
        for x in range(max(0, int(low_x)), min(size - 1, int(high_x)) + 1):
            if image[size - 1 - y, x] == 0 and _inside((x + 0.5) * pixel, (y + 0.5) * pixel, polygon, vertices):
                image[size - 1 - y, x] = 1


@kernel
def draw_polygons(polygons: NDArray[np.float32], vertices: NDArray[np.int64], images: NDArray[np.uint8]) -> None:
    """Draw scenes into `images` uint8 [n, p, p]: 1 where a pixel touches an obstacle, row 0 at the top.

    Args:
        polygons: float32 [n, k, v, 2].
        vertices: int64 [n, k], 0 where there is no polygon.
        images: The result.
    """
    images[:] = 0
    for i in range(len(images)):
        for k in range(vertices.shape[1]):
            if vertices[i, k] > 0:
                _covered(polygons[i, k], vertices[i, k], images[i])


def workspace_image(polygons: list[NDArray[np.float32]], size: int) -> NDArray[np.uint8]:
    """Return the obstacles seen from above, uint8 [size, size]: 1 where a pixel touches one, row 0 at the top."""
    corners, vertices = padded(polygons)
    image = np.empty((1, size, size), np.uint8)
    draw_polygons(corners[None], vertices[None], image)
    return image[0]
