"""Plan a route with numpy and onnxruntime alone: no package of this project, no torch.

    idp export-model reachability planner.onnx --format onnx
    python onnx_route.py planner.onnx [MAP.txt]

A map is text: '#' an obstacle, 'S' the start, 'G' the goal, all else free.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

MAP = """
..........
.S.#####..
...#...#..
.###.#.##.
.....#..G.
..........
"""


def read_map(text):
    """Return the map as zeros and ones [h, w], start and goal."""
    rows = text.split()
    if len({len(row) for row in rows}) > 1:
        raise SystemExit("expected rows of one length on the map")
    letters = np.array([list(row) for row in rows])
    places = {mark: np.argwhere(letters == mark) for mark in "SG"}
    if any(len(found) != 1 for found in places.values()):
        raise SystemExit("expected one S and one G on the map")
    return (letters != "#").astype(np.float32), tuple(places["S"][0].tolist()), tuple(places["G"][0].tolist())


def plan(session, free, goal):
    """Return the number of the move to make in each cell, [h, w]."""
    goals = np.zeros_like(free)
    goals[goal] = 1
    given = {"map": free[None, None], "goal": goals[None, None], "max_steps": np.array(0, np.int64)}
    return session.run(["actions"], given)[0][0]


def follow(actions, free, start, goal, moves):
    """Return the cells from the start on, as far as the moves lead without a bump or a circle."""
    cells = [start]
    while cells[-1] != goal:
        row, column = np.add(cells[-1], moves["offsets"][actions[cells[-1]]])
        if moves["wrap"]:
            row, column = row % free.shape[0], column % free.shape[1]
        inside = 0 <= row < free.shape[0] and 0 <= column < free.shape[1]
        if not inside or not free[row, column] or (row, column) in cells:
            break
        cells.append((int(row), int(column)))
    return cells


def main(model, map_file=None):
    """Draw the route on the map; the exit status is 0 where it arrives."""
    free, start, goal = read_map(MAP if map_file is None else Path(map_file).read_text())
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["idp.json"])
    cells = follow(plan(session, free, goal), free, start, goal, about["moves"])
    drawn = np.where(free == 1, ".", "#")
    for cell in cells:
        drawn[cell] = "o"
    drawn[start], drawn[goal] = "S", "G"
    print("\n".join("".join(row) for row in drawn))
    print(f"{len(cells) - 1} moves, {'arrives' if cells[-1] == goal else 'does not arrive'}")
    return 0 if cells[-1] == goal else 1


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
