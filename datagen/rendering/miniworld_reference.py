"""MiniWorld's own panoramas, one `render_obs` per view: what `PanoramaRenderer` is compared with."""

from __future__ import annotations

import contextlib
import io
import math
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from datagen.options import VisualOptions
from datagen.rendering.panorama import PARAMETERS

_HEADING = {"east": 0.0, "north": math.pi / 2, "west": math.pi, "south": 3 * math.pi / 2}
"""MiniWorld's angle of each direction: x grows eastwards, z southwards."""


def room_world(map_: NDArray[np.uint8], options: VisualOptions) -> tuple[Any, dict[tuple[int, int], Any]]:
    """Return MiniWorld's world of a map, one room per free cell, and the rooms by row and column."""
    from miniworld import miniworld  # Only now: the renderer, imported first, opens OpenGL without a display.

    rooms: dict[tuple[int, int], Any] = {}

    class RoomWorld(miniworld.MiniWorldEnv):
        def _gen_world(self) -> None:
            pitch = 1 + options.gap
            rooms.clear()
            for i, j in np.argwhere(map_).tolist():
                rooms[i, j] = self.add_rect_room(
                    min_x=j * pitch,
                    max_x=j * pitch + 1,
                    min_z=i * pitch,
                    max_z=i * pitch + 1,
                    wall_height=options.wall_height,
                    wall_tex=options.wall_texture,
                    floor_tex=options.floor_texture,
                    ceil_tex=options.ceiling_texture,
                )
            for (i, j), room in rooms.items():
                if (i, j + 1) in rooms:
                    self.connect_rooms(room, rooms[i, j + 1], min_z=room.min_z, max_z=room.max_z)
                if (i + 1, j) in rooms:
                    self.connect_rooms(room, rooms[i + 1, j], min_x=room.min_x, max_x=room.max_x)
            room = next(iter(rooms.values()))
            self.place_agent(pos=np.array([room.mid_x, 0.0, room.mid_z]), dir=0.0)

    parameters = PARAMETERS.copy()
    parameters.set("cam_height", options.camera_height)
    parameters.set("cam_fov_y", options.field_of_view)
    # MiniWorld makes a label for a window that is never opened, which would need fonts, and prints how many samples it
    # settled for.
    with mock.patch.dict(miniworld.pyglet.__dict__, text=mock.MagicMock()), contextlib.redirect_stdout(io.StringIO()):
        side = options.resolution
        world = RoomWorld(obs_width=side, obs_height=side, window_width=side, window_height=side, params=parameters)
    return world, rooms


def render_view(world: Any, room: Any, view: str) -> NDArray[np.uint8]:
    """Return what MiniWorld's camera sees from the middle of a room."""
    world.agent.pos = np.array([room.mid_x, 0.0, room.mid_z])
    world.agent.dir = _HEADING[view]
    image: NDArray[np.uint8] = world.render_obs()
    return image


def reference_panorama(map_: NDArray[np.uint8], options: VisualOptions) -> NDArray[np.uint8]:
    """Return what `PanoramaRenderer.render` returns, by MiniWorld's `render_obs`, view by view."""
    world, rooms = room_world(map_, options)
    pixels = options.resolution
    result = np.zeros((*map_.shape, len(options.views), pixels, pixels, 3), np.uint8)
    for (i, j), room in rooms.items():
        for k, view in enumerate(options.views):
            result[i, j, k] = render_view(world, room, view)
    return result
