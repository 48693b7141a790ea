"""A ROS 2 node that plans with a trained planner: `ComputePathToPose` on an occupancy grid, again when the map changes.

    python examples/ros2_planner/planner_node.py --ros-args -p planner:=reachability -p radius:=0.2 -p inflation:=0.6

All that is not messages is in `planners.robot`.
"""

from __future__ import annotations

import math
import time
from threading import Lock

import rclpy
from geometry_msgs.msg import PoseStamped
from nav2_msgs.action import ComputePathToPose
from nav_msgs.msg import OccupancyGrid as OccupancyGridMessage
from nav_msgs.msg import Path as PathMessage
from rclpy.action import ActionServer, CancelResponse
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.time import Time
from tf2_ros import Buffer, TransformException, TransformListener

from planners import SearchPlanner, load_planner
from planners.replanning import Replanner
from planners.robot import Navigator, NoPath, OccupancyGrid, Path, Point, Rules
from planners.search import ALGORITHMS
from planners.trial_files import PlannerError

CODES = {"INVALID_MAP": "UNKNOWN"}
"""Reasons of ours that the action has no code of its own for; the others are called the same."""


class PlannerNode(Node):
    """Serves `compute_path_to_pose`, and publishes a path on `plan` anew when the map changes it."""

    def __init__(self) -> None:
        super().__init__("idp_planner")
        rules = Rules(
            occupied_from=self._asked("occupied_from", 65),
            unknown_is_free=self._asked("unknown_is_free", False),
            radius=self._asked("radius", 0.0),
            inflation=self._asked("inflation", 0.0),
            penalty=self._asked("penalty", 10.0),
        )
        name = self._asked("planner", "reachability")
        if name == "breadth_first" and rules.priced:
            raise PlannerError("inflation: makes cells cost more, and breadth_first takes no costs; a_star does")
        self._frame = self._asked("robot_frame", "base_link")
        self._navigator = Navigator(SearchPlanner(name) if name in ALGORITHMS else Replanner(load_planner(name)), rules)
        self._lock = Lock()
        self._map_frame = "map"
        self._followed: tuple[Path, Point] | None = None
        self._transforms = Buffer()
        self._listener = TransformListener(self._transforms, self)
        self._paths = self.create_publisher(PathMessage, "plan", 1)
        # Map servers publish once and keep it for who comes later.
        kept = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.create_subscription(OccupancyGridMessage, "map", self.on_map, kept)
        self._server = ActionServer(
            self,
            ComputePathToPose,
            "compute_path_to_pose",
            self.on_goal,
            cancel_callback=lambda _: CancelResponse.ACCEPT,
        )

    def _asked(self, name, default):
        return self.declare_parameter(name, default).value

    def on_map(self, message: OccupancyGridMessage) -> None:
        """Take a map, and plan again to the last goal where the map has changed."""
        with self._lock:
            try:
                changed = self._navigator.see(grid_of(message))
            except (PlannerError, ValueError) as error:
                self.get_logger().error(f"the map is left out: {error}")
                return
            self._map_frame = message.header.frame_id or "map"
            if not changed or self._followed is None:
                return
            path, goal = self._followed
            try:
                path = self._navigator.plan(self._robot(), goal)
            except (PlannerError, TransformException) as error:
                self.get_logger().warning(f"no path any more: {error}")
                return
            self._followed = path, goal
            self._paths.publish(self._message(path))

    def on_goal(self, handle) -> ComputePathToPose.Result:
        """Plan to a goal; the result has the path, how long it took, and what is wrong where there is none."""
        began, request, result = time.monotonic(), handle.request, ComputePathToPose.Result()
        with self._lock:
            try:
                if request.viapoints:
                    raise NoPath("NO_VALID_PATH", "viapoints: this planner takes none")
                start = self._point(request.start, "start") if request.use_start else self._robot()
                goal = self._point(request.goal, "goal")
                path = self._navigator.plan(start, goal)
            except TransformException as error:
                return self._failed(handle, result, "TF_ERROR", str(error))
            except NoPath as error:
                return self._failed(handle, result, CODES.get(error.reason, error.reason), str(error))
            except PlannerError as error:  # of the planner itself; raised any further, it would end the node
                return self._failed(handle, result, "UNKNOWN", str(error))
            if handle.is_cancel_requested:
                handle.canceled()
                return result
            self._followed = path, goal
            result.path = self._message(path)
        result.planning_time = Duration(seconds=time.monotonic() - began).to_msg()
        self._paths.publish(result.path)
        handle.succeed()
        return result

    def _failed(self, handle, result, code: str, message: str):
        result.error_code, result.error_msg = getattr(ComputePathToPose.Result, code), message
        self._followed = None
        handle.abort()
        return result

    def _point(self, pose: PoseStamped, name: str) -> Point:
        """Return where a pose is on the map; one in another frame is refused, not guessed at."""
        if pose.header.frame_id not in ("", self._map_frame):
            raise TransformException(f"{name}: is in frame {pose.header.frame_id!r}, the map in {self._map_frame!r}")
        return pose.pose.position.x, pose.pose.position.y

    def _robot(self) -> Point:
        found = self._transforms.lookup_transform(self._map_frame, self._frame, Time()).transform.translation
        return found.x, found.y

    def _message(self, path: Path) -> PathMessage:
        message = PathMessage()
        message.header.frame_id, message.header.stamp = self._map_frame, self.get_clock().now().to_msg()
        for (x, y), heading in zip(path.points.tolist(), path.headings.tolist(), strict=True):
            pose = PoseStamped()
            pose.header = message.header
            pose.pose.position.x, pose.pose.position.y = x, y
            pose.pose.orientation.z, pose.pose.orientation.w = math.sin(heading / 2), math.cos(heading / 2)
            message.poses.append(pose)
        return message


def grid_of(message: OccupancyGridMessage) -> OccupancyGrid:
    """Return a message's map; its data are rows along x, the first at the origin.

    Raises:
        NoPath: The message is no map.
        ValueError: It has not as many cells as it says.
    """
    import numpy as np

    info, turn = message.info, message.info.origin.orientation
    heading = math.atan2(2 * (turn.w * turn.z + turn.x * turn.y), 1 - 2 * (turn.y**2 + turn.z**2))
    data = np.array(message.data, np.int8).reshape(info.height, info.width)
    return OccupancyGrid(data, float(info.resolution), (info.origin.position.x, info.origin.position.y, heading))


def main() -> None:
    """Run the node until it is stopped."""
    rclpy.init()
    rclpy.spin(PlannerNode())


if __name__ == "__main__":
    main()
