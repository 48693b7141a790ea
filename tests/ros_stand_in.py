"""Stand-ins for ROS 2's modules, strict about fields: messages have those of the definitions below and no others.

The lists are of names and types alone, as the packages std_msgs, geometry_msgs, nav_msgs and nav2_msgs have them.
"""

from __future__ import annotations

import math
from types import ModuleType

FIELDS = {
    "Time": "int32 sec, uint32 nanosec",
    "Duration": "int32 sec, uint32 nanosec",
    "Header": "Time stamp, string frame_id",
    "Point": "float64 x, float64 y, float64 z",
    "Quaternion": "float64 x 0, float64 y 0, float64 z 0, float64 w 1",
    "Pose": "Point position, Quaternion orientation",
    "PoseStamped": "Header header, Pose pose",
    "MapMetaData": "Time map_load_time, float32 resolution, uint32 width, uint32 height, Pose origin",
    "OccupancyGrid": "Header header, MapMetaData info, int8[] data",
    "Path": "Header header, PoseStamped[] poses",
    "Goal": "PoseStamped goal, PoseStamped start, PoseStamped[] viapoints, string planner_id, bool use_start",
    "Result": "Path path, Duration planning_time, uint16 error_code, string error_msg",
}
CODES = {
    "NONE": 0, "GOAL_REJECTED": 1, "SEND_GOAL_FAILURE": 2, "UNKNOWN": 200, "INVALID_PLANNER": 201, "TF_ERROR": 202,
    "START_OUTSIDE_MAP": 203, "GOAL_OUTSIDE_MAP": 204, "START_OCCUPIED": 205, "GOAL_OCCUPIED": 206, "TIMEOUT": 207,
    "NO_VALID_PATH": 208,
}  # fmt: skip
_PLAIN = {"string": str, "bool": bool, "float32": float, "float64": float}


def _fields(name):
    for text in FIELDS[name].split(", "):
        kind, field, *default = text.split(" ")
        yield kind, field, default


class Message:
    """A message; setting a field that it has not, or to another type, fails as ROS's own do."""

    def __init__(self, **given):
        for kind, field, default in _fields(type(self).__name__):
            setattr(self, field, _value(kind, default))
        for field, value in given.items():
            setattr(self, field, value)

    def __setattr__(self, field, value):
        kinds = {name: kind for kind, name, _ in _fields(type(self).__name__)}
        assert field in kinds, f"{type(self).__name__} has no field {field!r}"
        kind = kinds[field]
        if kind.endswith("[]"):
            assert hasattr(value, "__len__"), field
        elif kind in FIELDS:
            assert type(value).__name__ == kind, f"{field}: expected {kind}, got {type(value).__name__}"
        else:
            expected = _PLAIN.get(kind, int)
            assert type(value) is expected, f"{field}: expected {expected.__name__}, got {type(value).__name__}"
            assert kind != "uint16" or 0 <= value < 2**16
        object.__setattr__(self, field, value)


def _value(kind, default):
    if kind.endswith("[]"):
        return []
    if kind in FIELDS:
        return MESSAGES[kind]()
    plain = _PLAIN.get(kind, int)
    return plain(default[0]) if default else plain()


MESSAGES = {name: type(name, (Message,), CODES if name == "Result" else {}) for name in FIELDS}


class TransformException(Exception):
    pass


class Stamped:
    """What `now()`, and a duration, turn into."""

    def __init__(self, *, seconds=0.0):
        self.seconds = seconds

    def to_msg(self):
        whole = math.floor(self.seconds)
        return MESSAGES["Duration"](sec=whole, nanosec=int((self.seconds - whole) * 1e9))


class Node:
    """Keeps what is asked of it, for tests to look at."""

    parameters: dict = {}

    def __init__(self, name):
        self.name, self.subscriptions_, self.published, self.logged = name, {}, [], []

    def declare_parameter(self, name, default):
        return type("Parameter", (), {"value": self.parameters.get(name, default)})

    def create_subscription(self, kind, topic, callback, qos):
        self.subscriptions_[topic] = (kind, callback, qos)

    def create_publisher(self, kind, topic, depth):
        return type("Publisher", (), {"publish": lambda _, message: self.published.append((topic, message))})()

    def get_logger(self):
        log = lambda _, text: self.logged.append(text)  # noqa: E731
        return type("Logger", (), {"error": log, "warning": log})()

    def get_clock(self):
        now = type("Now", (), {"to_msg": lambda _: MESSAGES["Time"](sec=1)})
        return type("Clock", (), {"now": lambda _: now()})()


class Buffer:
    """Where the robot is; None for nowhere."""

    at: tuple[float, float] | None = (0.0, 0.0)

    def lookup_transform(self, target, source, when):
        if self.at is None:
            raise TransformException(f"{source} is not known in {target}")
        place = type("Vector3", (), {"x": self.at[0], "y": self.at[1], "z": 0.0})
        return type("TransformStamped", (), {"transform": type("Transform", (), {"translation": place})})


class Handle:
    """A goal's handle."""

    def __init__(self, request, cancelled=False):
        self.request, self.is_cancel_requested, self.ended = request, cancelled, []

    def succeed(self):
        self.ended.append("succeeded")

    def abort(self):
        self.ended.append("aborted")

    def canceled(self):
        self.ended.append("cancelled")


def modules():
    """Return ROS 2's modules by name, as far as the node imports them."""

    def module(name, **parts):
        made = ModuleType(name)
        vars(made).update(parts)
        return made

    action = type("ComputePathToPose", (), {"Goal": MESSAGES["Goal"], "Result": MESSAGES["Result"]})
    server = lambda *given, **named: (given, named)  # noqa: E731
    plain = lambda **given: given  # noqa: E731
    made = [
        module("rclpy"),
        module("rclpy.action", ActionServer=server, CancelResponse=type("CancelResponse", (), {"ACCEPT": 2})),
        module("rclpy.duration", Duration=Stamped),
        module("rclpy.node", Node=Node),
        module("rclpy.qos", QoSProfile=plain, DurabilityPolicy=type("DurabilityPolicy", (), {"TRANSIENT_LOCAL": 1})),
        module("rclpy.time", Time=Stamped),
        module("tf2_ros", Buffer=Buffer, TransformException=TransformException, TransformListener=server),
        module("geometry_msgs"),
        module("geometry_msgs.msg", PoseStamped=MESSAGES["PoseStamped"]),
        module("nav_msgs"),
        module("nav_msgs.msg", OccupancyGrid=MESSAGES["OccupancyGrid"], Path=MESSAGES["Path"]),
        module("nav2_msgs"),
        module("nav2_msgs.action", ComputePathToPose=action),
    ]
    return {part.__name__: part for part in made}
