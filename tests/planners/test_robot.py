"""From an occupancy grid in metres to a path in metres, and the ROS 2 node on stand-ins for ROS's own modules."""

import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import ros_stand_in
from ros_stand_in import CODES, MESSAGES, Buffer, Handle, Node

from planners import SearchPlanner, load_planner
from planners.inference import PlannerError
from planners.robot import Navigator, NoPath, OccupancyGrid, Rules

NODE = Path(__file__).parents[2] / "examples" / "ros2_planner" / "planner_node.py"


def room(height=8, width=12):
    """A wall across, with a door at the top end."""
    data = np.zeros((height, width), np.int8)
    data[:-1, width // 2] = 100
    return data


@pytest.mark.parametrize("origin", [(0.0, 0.0, 0.0), (-3.0, 7.5, 0.0), (2.0, -1.0, 0.7), (0.5, 0.5, math.pi)])
def test_metres_and_cells(origin):
    grid = OccupancyGrid(room(), 0.25, origin)
    cells = np.argwhere(np.ones(grid.data.shape))
    points = grid.points(cells)
    assert [grid.cell(tuple(point)) for point in points] == [tuple(cell) for cell in cells]
    x, y, heading = origin
    first = 0.125 * np.array([math.cos(heading) - math.sin(heading), math.sin(heading) + math.cos(heading)])
    np.testing.assert_allclose(points[0], [x + first[0], y + first[1]])
    step = points[1] - points[0]  # the second cell is the next along the grid's x
    np.testing.assert_allclose(step, [0.25 * math.cos(heading), 0.25 * math.sin(heading)], atol=1e-12)
    assert grid.cell((x + 1e4, y)) is None and grid.cell((math.nan, 0.0)) is None


@pytest.mark.parametrize(("resolution", "x"), [(1e-320, 0.0), (0.05, 1e308), (1e-300, -1e300)])
def test_points_beyond_any_number_of_cells_are_outside(resolution, x):
    grid = OccupancyGrid(np.zeros((3, 3), np.int8), resolution, (x, 0.0, 0.0))
    assert grid.cell((0.1, 0.1)) is None


def test_thresholds_unknown_radius_and_inflation():
    data = np.array([[0, 64, 65, 100, -1, 0, 0, 0]], np.int8)
    grid = OccupancyGrid(data, 0.5)
    assert Rules().read(grid)[0].tolist() == [[1, 1, 0, 0, 0, 1, 1, 1]]
    assert Rules(unknown_is_free=True).read(grid)[0].tolist() == [[1, 1, 0, 0, 1, 1, 1, 1]]
    assert Rules(occupied_from=10).read(grid)[0].tolist() == [[1, 0, 0, 0, 0, 1, 1, 1]]
    free, costs = Rules(radius=0.6).read(grid)
    assert free.tolist() == [[1, 0, 0, 0, 0, 0, 1, 1]] and costs is None
    free, costs = Rules(inflation=1.0, penalty=8.0).read(grid)
    assert free.tolist() == [[1, 1, 0, 0, 0, 1, 1, 1]]
    assert costs[0].tolist() == [1.0, 5.0, 0.0, 0.0, 0.0, 5.0, 1.0, 1.0]
    assert Rules(inflation=1.0, penalty=0.0).read(grid)[1] is None
    assert Rules(radius=1.0).read(OccupancyGrid(np.zeros((3, 3), np.int8), 0.5))[0].all()


@pytest.mark.parametrize("solver", [SearchPlanner(), load_planner("reachability")], ids=["a_star", "reachability"])
def test_a_path_in_metres(solver):
    navigator = Navigator(solver)
    assert navigator.see(OccupancyGrid(room(), 0.5, (10.0, 20.0, 0.0)))
    start, goal = (10.2, 20.3), (15.8, 20.1)
    path = navigator.plan(start, goal)
    assert tuple(path.points[0]) == start and tuple(path.points[-1]) == goal and len(path.cells) == path.cost + 1
    steps = np.linalg.norm(np.diff(path.points, axis=0), axis=1)
    assert steps[1:-1] == pytest.approx(0.5) and steps.max() < 1.0
    assert path.cost == 11 + 2 * 7  # up to the door and down again
    assert len(path.headings) == len(path.points) and path.headings[-1] == path.headings[-2]
    here = navigator.plan(start, start)
    assert len(here.points) == 2 and here.cost == 0


def test_costs_keep_it_away_from_walls():
    data = np.zeros((9, 20), np.int8)
    data[0], data[-1] = 100, 100
    near, far = Navigator(load_planner("reachability")), Navigator(load_planner("reachability"), Rules(inflation=4.0))
    paths = []
    for navigator in (near, far):
        navigator.see(OccupancyGrid(data, 1.0))
        paths.append(navigator.plan((0.5, 1.5), (19.5, 1.5)))
    assert near.plan((0.5, 1.5), (19.5, 1.5)).cells[:, 0].max() == 1 and paths[1].cells[:, 0].max() == 4


def test_it_plans_again_when_the_map_changes():
    navigator = Navigator(SearchPlanner())
    open_map, walled = np.zeros((8, 12), np.int8), room()
    assert navigator.see(OccupancyGrid(open_map, 0.5))
    path = navigator.plan((0.2, 0.2), (5.8, 0.2))
    noise = open_map.copy()
    noise[3, 3] = 40  # likelier free than not: nothing that is planned on changes
    assert not navigator.see(OccupancyGrid(noise, 0.5)) and not navigator.blocks(path)
    assert navigator.see(OccupancyGrid(walled, 0.5)) and navigator.blocks(path)
    again = navigator.plan((0.2, 0.2), (5.8, 0.2))
    assert again.cost == path.cost + 14 and not navigator.blocks(again)
    assert navigator.see(OccupancyGrid(walled, 0.25)) and navigator.see(OccupancyGrid(walled, 0.25, (1.0, 0.0, 0.0)))
    assert navigator.see(OccupancyGrid(walled[:4, :4], 0.25, (1.0, 0.0, 0.0))) and navigator.blocks(again)


def test_what_is_wrong_is_told():
    navigator = Navigator(SearchPlanner())
    with pytest.raises(NoPath, match="none was seen yet"):
        navigator.plan((0, 0), (1, 1))
    shut = room()
    shut[:, 6] = 100
    navigator.see(OccupancyGrid(shut, 0.5))
    for start, goal, reason in (
        ((-1, 0), (1, 1), "START_OUTSIDE_MAP"),
        ((1, 1), (99, 1), "GOAL_OUTSIDE_MAP"),
        ((3.2, 0.2), (1, 1), "START_OCCUPIED"),
        ((1, 1), (3.2, 0.2), "GOAL_OCCUPIED"),
        ((1, 1), (5, 1), "NO_VALID_PATH"),
    ):
        with pytest.raises(NoPath) as told:
            navigator.plan(start, goal)
        assert told.value.reason == reason and str(told.value)
    for start, goal, name in (((1, 1, 0.5), (5, 1), "start"), ((1, 1), ("5", "1"), "goal"), (None, (5, 1), "start")):
        with pytest.raises(PlannerError, match=f"{name}: expected x and y in metres, got"):
            navigator.plan(start, goal)
    assert OccupancyGrid([[0, 100]], 1.0).data.shape == (1, 2)
    for data, resolution in (([0, 0, 0], 1), (np.full((2, 2), 101), 1), (np.zeros((2, 2), int), 0), ([["a"]], 1)):
        with pytest.raises(NoPath, match="map: "):
            OccupancyGrid(data, resolution)
    with pytest.raises(NoPath, match=r"map: 2 cells are masked; data.filled\(-1\) says that they are not known"):
        OccupancyGrid(np.ma.masked_array(np.zeros((2, 2), np.int8), [[0, 1], [0, 1]]), 1.0)
    with pytest.raises(NoPath, match="map: expected integers"):
        OccupancyGrid([[0], [0, 0]], 1.0)
    for resolution in ("a", None, math.nan, [1.0]):
        with pytest.raises(NoPath, match="map: resolution: expected metres above 0, got"):
            OccupancyGrid(room(), resolution)
    for origin in ((0, 0), (0, 0, "a"), (0, 0, math.inf), None, "abc", np.zeros((1, 3))):
        with pytest.raises(NoPath, match="map: origin: expected x, y and heading, got"):
            OccupancyGrid(room(), 1.0, origin)
    assert OccupancyGrid(room(), np.float32(0.5), np.zeros(3)).cell((0.6, 0.1)) == (0, 1)
    for rule in (
        {"occupied_from": 0},
        {"occupied_from": "65"},
        {"unknown_is_free": "no"},
        {"radius": -1.0},
        {"radius": "a"},
        {"inflation": math.nan},
        {"penalty": None},
    ):
        with pytest.raises(PlannerError, match=next(iter(rule)) + ": expected"):
            Rules(**rule)


def test_distances_are_from_centre_to_centre_and_unknown_cells_count():
    grid = OccupancyGrid([[0, 0, 100, 0, 0, 0, -1, 0, 0]], 0.1)
    assert Rules(radius=0.09).read(grid)[0].tolist() == [[1, 1, 0, 1, 1, 1, 0, 1, 1]]
    assert Rules(radius=0.1).read(grid)[0].tolist() == [[1, 0, 0, 0, 1, 0, 0, 0, 1]]
    for cells in range(1, 21):  # a robot as wide as whole cells, whose sum in floating point is at times a bit more
        wall = OccupancyGrid(np.r_[100, np.zeros(30)].astype(np.int8)[None], 0.05)
        for radius in (0.05 * cells, cells / 20):
            assert Rules(radius=radius).read(wall)[0].sum() == 30 - cells
    assert Rules(radius=0.1, unknown_is_free=True).read(grid)[0].tolist() == [[1, 0, 0, 0, 1, 1, 1, 1, 1]]


@pytest.fixture
def node(monkeypatch):
    for name, module in ros_stand_in.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(Node, "parameters", {"planner": "reachability"})
    monkeypatch.setattr(Buffer, "at", (0.3, 0.3))
    return runpy.run_path(str(NODE))["PlannerNode"]()


def map_message(data, frame="map"):
    message = MESSAGES["OccupancyGrid"]()
    message.header.frame_id, message.info.resolution = frame, 0.5
    message.info.height, message.info.width = data.shape
    message.data = data.ravel().tolist()
    return message


def pose(x, y, frame="map"):
    made = MESSAGES["PoseStamped"]()
    made.header.frame_id, made.pose.position.x, made.pose.position.y = frame, x, y
    return made


def asked(node, **fields):
    handle = Handle(MESSAGES["Goal"](**fields))
    return node.on_goal(handle), handle.ended


def test_the_node_plans_to_a_pose(node):
    _, callback, qos = node.subscriptions_["map"]
    assert qos == {"depth": 1, "durability": 1}
    callback(map_message(room()))
    result, ended = asked(node, goal=pose(5.8, 0.2), start=pose(0.2, 0.2), use_start=True)
    assert ended == ["succeeded"] and result.error_code == CODES["NONE"]
    poses = result.path.poses
    assert (poses[0].pose.position.x, poses[-1].pose.position.x) == (0.2, 5.8) and len(poses) == 26
    assert result.path.header.frame_id == "map" and result.path.header.stamp.sec == 1
    turn = poses[1].pose.orientation
    assert turn.z**2 + turn.w**2 == pytest.approx(1) and result.planning_time.nanosec >= 0
    assert [topic for topic, _ in node.published] == ["plan"]


def test_the_node_plans_again_from_where_the_robot_is(node):
    node.on_map(map_message(np.zeros((8, 12), np.int8)))
    result, _ = asked(node, goal=pose(5.8, 0.2))
    assert result.path.poses[0].pose.position.x == 0.3 and len(node.published) == 1
    node.on_map(map_message(np.zeros((8, 12), np.int8)))
    assert len(node.published) == 1
    node.on_map(map_message(room()))
    assert len(node.published) == 2 and len(node.published[1][1].poses) == len(result.path.poses) + 14
    shut = room()
    shut[:, 6] = 100
    node.on_map(map_message(shut))
    assert len(node.published) == 2 and "no path any more" in node.logged[-1]


def test_the_node_s_errors_have_the_action_s_codes(node, monkeypatch):
    assert asked(node, goal=pose(1.0, 1.0))[0].error_code == CODES["UNKNOWN"]
    node.on_map(map_message(room()))
    for fields, code in (
        ({"goal": pose(99.0, 0.0)}, "GOAL_OUTSIDE_MAP"),
        ({"goal": pose(3.2, 0.2)}, "GOAL_OCCUPIED"),
        ({"goal": pose(1.0, 1.0), "start": pose(-1.0, 0.0), "use_start": True}, "START_OUTSIDE_MAP"),
        ({"goal": pose(1.0, 1.0, "odom")}, "TF_ERROR"),
        ({"goal": pose(1.0, 1.0), "viapoints": [pose(0.0, 0.0)]}, "NO_VALID_PATH"),
    ):
        result, ended = asked(node, **fields)
        assert ended == ["aborted"] and result.error_code == CODES[code] and result.error_msg and not result.path.poses
    monkeypatch.setattr(Buffer, "at", None)
    assert asked(node, goal=pose(1.0, 1.0))[0].error_code == CODES["TF_ERROR"]
    broken = map_message(room())
    broken.data = broken.data[:-1]
    node.on_map(broken)
    assert "the map is left out" in node.logged[-1]


def test_a_planner_that_fails_does_not_end_the_node(node, monkeypatch):
    def fails(*given, **named):
        raise PlannerError("fast_marching needs scikit-fmm")

    node.on_map(map_message(np.zeros((8, 12), np.int8)))
    assert asked(node, goal=pose(5.8, 0.2))[1] == ["succeeded"]
    monkeypatch.setattr(type(node._navigator.solver), "solve", fails)
    node.on_map(map_message(room()))
    assert "needs scikit-fmm" in node.logged[-1] and len(node.published) == 1
    result, ended = asked(node, goal=pose(1.0, 1.0))
    assert ended == ["aborted"] and result.error_code == CODES["UNKNOWN"] and "needs scikit-fmm" in result.error_msg


@pytest.mark.parametrize("asked_for", [{"inflation": 0.6}, {"inflation": 0.6, "radius": 0.7}, {}], ids=str)
def test_a_search_without_costs_is_refused_at_the_start_where_cells_have_some(node, monkeypatch, asked_for):
    monkeypatch.setattr(Node, "parameters", {"planner": "breadth_first", **asked_for})
    if asked_for == {"inflation": 0.6}:
        with pytest.raises(PlannerError, match="inflation: makes cells cost more, and breadth_first takes no costs"):
            type(node)()
    else:
        searching = type(node)()
        searching.on_map(map_message(room()))
        assert asked(searching, goal=pose(1.0, 1.0))[1] == ["succeeded"]


def test_a_goal_that_is_cancelled_moves_nobody(node):
    node.on_map(map_message(room()))
    handle = Handle(MESSAGES["Goal"](goal=pose(1.0, 1.0)), cancelled=True)
    assert not node.on_goal(handle).path.poses and handle.ended == ["cancelled"] and not node.published
