"""Panoramas of grid worlds with MiniWorld's textures, lights and camera, drawn many at a time.

What MiniWorld's `render_obs` draws through a display list of the whole world is drawn here from the walls that a view
can see, the corners of all rooms of a size being in OpenGL's memory once. Each view is resolved into its tile of a
sheet, and a sheet is read back at once. `datagen.rendering.miniworld_reference` is MiniWorld itself: pixels are the
same or differ by 1 of 255. (With other options than the defaults a rare sample at the foot of a wall may differ, where
MiniWorld's 16-bit depths tie and the floor behind the wall wins.)

Importing this module opens OpenGL: it is imported where pictures are made, and nowhere else.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datagen.options import VisualOptions
from datagen.problem import ACTIONS
from datagen.rendering.visibility import quads, visible_walls

PACKAGES = "libegl1 libgl1 libglu1-mesa libopengl0 libgl1-mesa-dri"


class RendererError(RuntimeError):
    """OpenGL cannot be used on this machine; the message says what to install."""


def _missing(cause: object) -> RendererError:
    return RendererError(
        f"task 'visual_navigation' draws its pictures with OpenGL and no display (EGL), which is not there ({cause}). "
        f"On Debian or Ubuntu: apt-get install --no-install-recommends {PACKAGES}"
    )


def _start_headless() -> Any:
    """Return pyglet, told to do without a display before it looks for one."""
    # Many processes make panoramas at a time, one per core: threads within one only get in the way.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    import pyglet

    if "pyglet.gl" in sys.modules and not pyglet.options["headless"]:
        raise RendererError(
            "pyglet was imported before and uses a display; set pyglet.options['headless'] = True first"
        )
    pyglet.options["headless"] = True
    pyglet.options["debug_gl"] = False  # Asks for errors after every call; we ask once per sheet.
    try:
        from pyglet.libs.egl import egl, eglext
    except ImportError as error:
        raise _missing(error) from error
    pyglet.options["headless_device"] = _software_device(egl, eglext)
    return pyglet


def _software_device(egl: Any, eglext: Any) -> int:
    """Return the number of Mesa's software renderer among EGL's devices, so that a GPU nearby changes no pixels."""
    count = egl.EGLint()
    eglext.eglQueryDevicesEXT(0, None, ctypes.byref(count))
    devices = (eglext.EGLDeviceEXT * count.value)()
    eglext.eglQueryDevicesEXT(count.value, devices, ctypes.byref(count))
    query = ctypes.CDLL("libEGL.so.1").eglGetProcAddress
    query.restype, query.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    address = query(b"eglQueryDeviceStringEXT")
    if not address:
        raise _missing("eglQueryDeviceStringEXT is not offered")
    describe = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int32)(address)
    for number, device in enumerate(devices):
        if b"EGL_MESA_device_software" in (describe(device, 0x3055) or b""):  # EGL_EXTENSIONS
            return number
    raise _missing(f"none of {count.value} EGL devices is Mesa's software renderer")


_PROCESS = os.getpid()
pyglet = _start_headless()
try:
    from miniworld.miniworld import TEX_DENSITY
    from miniworld.opengl import Texture
    from miniworld.params import DEFAULT_PARAMS
    from miniworld.utils import get_file_path
    from pyglet import gl
except ImportError as error:
    raise _missing(error) from error

PARAMETERS = DEFAULT_PARAMS.no_random()
_Z_NEAR, _Z_FAR = 0.04, 100.0
"""MiniWorld's clip planes, metres."""
_LIGHT = (*(PARAMETERS.sample(None, "light_pos") + 1), 0)
"""MiniWorld adds [1] to an array of three, so its light at (0, 2.5, 0) is a direction, (1, 3.5, 1, 0)."""
_MINIWORLD_SAMPLES = 8
_SHEET = 256
"""Pixels along a sheet's side."""
_SLACK = 1e-6
"""Metres; rounding never hides a floor."""
_TO_CAMERA = {
    "north": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "west": [[0, 0, -1], [0, 1, 0], [1, 0, 0]],
    "south": [[-1, 0, 0], [0, 1, 0], [0, 0, -1]],
    "east": [[0, 0, 1], [0, 1, 0], [-1, 0, 0]],
}
"""World to camera (right, up, backwards), as gluLookAt has it."""


def _texture(field: str, name: str) -> Any:
    if not Path(get_file_path("textures", f"{name}_1", "png")).is_file():
        known = sorted(
            p.name[: -len("_1.png")] for p in Path(get_file_path("textures", "x", "png")).parent.glob("*_1.png")
        )
        raise ValueError(f"{field}: MiniWorld has no texture {name!r}; known: {', '.join(known)}")
    return Texture.get(name)


def _framebuffer(side: int, color: int, depth: int | None, samples: int) -> Any:
    buffer = gl.GLuint()
    gl.glGenFramebuffers(1, ctypes.byref(buffer))
    gl.glBindFramebuffer(gl.GL_FRAMEBUFFER, buffer)
    for storage, attachment in ((color, gl.GL_COLOR_ATTACHMENT0), (depth, gl.GL_DEPTH_ATTACHMENT)):
        if storage is not None:
            part = gl.GLuint()
            gl.glGenRenderbuffers(1, ctypes.byref(part))
            gl.glBindRenderbuffer(gl.GL_RENDERBUFFER, part)
            gl.glRenderbufferStorageMultisample(gl.GL_RENDERBUFFER, samples, storage, side, side)
            gl.glFramebufferRenderbuffer(gl.GL_FRAMEBUFFER, attachment, gl.GL_RENDERBUFFER, part)
    if gl.glCheckFramebufferStatus(gl.GL_FRAMEBUFFER) != gl.GL_FRAMEBUFFER_COMPLETE:
        raise RendererError(f"OpenGL offers no framebuffer of {side} x {side} pixels with {samples} samples")
    return buffer


def _vertices(size: int, options: VisualOptions, textures: tuple[Any, Any, Any]) -> NDArray[np.float32]:
    """Return x, y, z, normal and texture coordinates of every corner, [quads, 4, 8]: walls, floor, ceiling."""
    corners, normals, along = quads(size, options.gap, options.wall_height)
    walls, floor, ceiling = (np.array([texture.width, texture.height]) for texture in textures)
    texels = np.stack([walls] * (len(corners) - 2) + [floor, ceiling])
    result = np.empty((len(corners), 4, 8), np.float32)
    result[..., :3] = corners
    result[..., 3:6] = normals[:, None]
    result[..., 6:] = along * (TEX_DENSITY / texels)[:, None]
    return result


def _camera_matrices(size: int, options: VisualOptions) -> NDArray[np.float32]:
    """Return the model-view matrix of every view, [h, w, views, 16], column by column."""
    middle = np.arange(size) * (1 + options.gap) + 0.5
    x, z = np.meshgrid(middle, middle)
    eye = np.stack([x, np.full_like(x, options.camera_height), z], axis=-1)
    matrices = np.zeros((size, size, len(options.views), 4, 4))
    for k, view in enumerate(options.views):
        turn = np.array(_TO_CAMERA[view], float)
        matrices[:, :, k, :3, :3] = turn
        matrices[:, :, k, :3, 3] = -(eye @ turn.T)
    matrices[..., 3, 3] = 1
    return np.ascontiguousarray(matrices.swapaxes(-1, -2).astype(np.float32)).reshape(size, size, -1, 16)


class PanoramaRenderer:
    """Draws the panoramas of maps of one size; a process holds one OpenGL context for all of them."""

    _window: Any = None

    def __init__(self, size: int, options: VisualOptions):
        """Open OpenGL and place all rooms of a size x size map.

        Args:
            size: Rows and columns of the maps.
            options: What the pictures look like.

        Raises:
            RendererError: OpenGL cannot be used here.
            ValueError: MiniWorld has no such texture.
        """
        if os.getpid() != _PROCESS:
            raise RendererError("OpenGL does not outlive a fork; start processes that draw with 'spawn'")
        if PanoramaRenderer._window is None:
            try:
                PanoramaRenderer._window = pyglet.window.Window(width=1, height=1, visible=False)
            except (ImportError, gl.ContextException, pyglet.window.NoSuchConfigException) as error:
                raise _missing(error) from error
        self._window.switch_to()
        self._size, self._options = size, options
        self._textures = (
            _texture("wall_texture", options.wall_texture),
            _texture("floor_texture", options.floor_texture),
            _texture("ceiling_texture", options.ceiling_texture),
        )
        self._tiles = max(1, _SHEET // options.resolution)
        side = self._tiles * options.resolution
        most = gl.GLint()
        gl.glGetIntegerv(gl.GL_MAX_SAMPLES, ctypes.byref(most))
        samples = min(_MINIWORLD_SAMPLES, most.value)
        self._samples = _framebuffer(options.resolution, gl.GL_RGBA32F, gl.GL_DEPTH_COMPONENT16, samples)
        self._sheet = _framebuffer(side, gl.GL_RGBA8, None, 0)
        vertices = _vertices(size, options, self._textures)
        self._vertex_buffer, self._index_buffer = gl.GLuint(), gl.GLuint()
        gl.glGenBuffers(1, ctypes.byref(self._vertex_buffer))
        gl.glGenBuffers(1, ctypes.byref(self._index_buffer))
        gl.glBindBuffer(gl.GL_ARRAY_BUFFER, self._vertex_buffer)
        gl.glBufferData(gl.GL_ARRAY_BUFFER, vertices.nbytes, vertices.ctypes.data, gl.GL_STATIC_DRAW)
        self._corners = 4 * len(vertices)
        self._matrices = _camera_matrices(size, options)
        self._slope = math.tan(math.radians(options.field_of_view / 2))
        self._nearest = np.array([options.camera_height, options.wall_height - options.camera_height]) / self._slope
        self._actions = np.array([ACTIONS.index(view) for view in options.views], np.int64)

    def render(self, map_: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the views from every free cell of a map.

        Args:
            map_: uint8 [h, w], 1 = free; the border is obstacles.

        Returns:
            uint8 [h, w, views, resolution, resolution, 3]; 0 on obstacles.

        Raises:
            ValueError: The map has another size, or a free cell on its border.
            RendererError: OpenGL reports an error.
        """
        size, pixels = self._size, self._options.resolution
        if map_.shape != (size, size):
            raise ValueError(f"map: expected [{size}, {size}], got {list(map_.shape)}")
        if map_[[0, -1]].any() or map_[:, [0, -1]].any():
            raise ValueError("map: expected obstacles all along the border, got a free cell there")
        free = map_.astype(bool)
        walls, ends, farthest = visible_walls(map_, self._actions, self._slope, self._options.gap)
        corners = np.uint32(4) * walls[:, None] + np.arange(4, dtype=np.uint32)
        matrices = np.ascontiguousarray(self._matrices[free].reshape(-1, 16))
        views = self._draw(corners, 4 * ends, farthest[:, None] + _SLACK >= self._nearest, matrices)
        result = np.zeros((size, size, len(self._actions), pixels, pixels, 3), np.uint8)
        result[free] = views.reshape(-1, len(self._actions), pixels, pixels, 3)
        return result

    def _draw(
        self,
        corners: NDArray[np.uint32],
        ends: NDArray[np.int64],
        flats: NDArray[np.bool_],
        matrices: NDArray[np.float32],
    ) -> NDArray[np.uint8]:
        """Draw views and read them back.

        Args:
            corners: uint32 [total, 4], the corners of the walls of all views.
            ends: int64 [n], where each view's corners end.
            flats: bool [n, 2], whether a view sees the floor, and the ceiling.
            matrices: float32 [n, 16], its model-view matrix.

        Returns:
            uint8 [n, resolution, resolution, 3].
        """
        pixels, tiles, kinds = self._options.resolution, self._tiles, len(self._actions)
        wall, floor, ceiling = (texture.tex.id for texture in self._textures)
        counts, offsets = np.diff(ends, prepend=0).tolist(), (4 * np.append(0, ends)).tolist()
        see_floor, see_ceiling = flats[:, 0].tolist(), flats[:, 1].tolist()
        pointer = ctypes.POINTER(gl.GLfloat)
        matrix = [ctypes.cast(matrices.ctypes.data + 64 * i, pointer) for i in range(len(matrices))]
        light = (gl.GLfloat * 4)(*_LIGHT)
        result = np.empty((len(matrices), pixels, pixels, 3), np.uint8)
        self._prepare()
        gl.glBufferData(gl.GL_ELEMENT_ARRAY_BUFFER, corners.nbytes, corners.ctypes.data, gl.GL_STREAM_DRAW)
        # Views are drawn at the origin, as MiniWorld does, and only then put into their tile: drawn in place, corners
        # would round otherwise, and a whole row of samples may fall on the other side of an edge.
        gl.glViewport(0, 0, pixels, pixels)
        for first in range(0, len(matrices), tiles * tiles):
            last = min(first + tiles * tiles, len(matrices))
            # One direction after the other: the light, fixed to the world, is turned into the camera's axes by OpenGL.
            for kind in range(kinds):
                lit = False
                for i in range(first + (kind - first) % kinds, last, kinds):
                    gl.glBindFramebuffer(gl.GL_FRAMEBUFFER, self._samples)
                    gl.glClear(gl.GL_COLOR_BUFFER_BIT | gl.GL_DEPTH_BUFFER_BIT)
                    gl.glLoadMatrixf(matrix[i])
                    if not lit:
                        gl.glLightfv(gl.GL_LIGHT0, gl.GL_POSITION, light)
                        lit = True
                    gl.glBindTexture(gl.GL_TEXTURE_2D, wall)
                    gl.glDrawElements(gl.GL_QUADS, counts[i], gl.GL_UNSIGNED_INT, offsets[i])
                    if see_floor[i] or see_ceiling[i]:
                        self._draw_flats(floor if see_floor[i] else None, ceiling if see_ceiling[i] else None)
                    row, column = divmod(i - first, tiles)
                    x, y = column * pixels, row * pixels
                    gl.glBindFramebuffer(gl.GL_DRAW_FRAMEBUFFER, self._sheet)
                    gl.glBlitFramebuffer(
                        0, 0, pixels, pixels, x, y, x + pixels, y + pixels, gl.GL_COLOR_BUFFER_BIT, gl.GL_NEAREST
                    )
            result[first:last] = self._read_sheet(last - first)
        self._finish()
        return result

    def _draw_flats(self, floor: int | None, ceiling: int | None) -> None:
        """Draw floor and ceiling, given by their textures, behind the walls of the current view."""
        # No wall is ever behind them: as far away as can be, they lose to every wall, however depths are rounded.
        gl.glDepthRange(1.0, 1.0)
        gl.glDepthFunc(gl.GL_LEQUAL)
        for texture, corner in ((floor, self._corners - 8), (ceiling, self._corners - 4)):
            if texture is not None:
                gl.glBindTexture(gl.GL_TEXTURE_2D, texture)
                gl.glDrawArrays(gl.GL_QUADS, corner, 4)
        gl.glDepthRange(0.0, 1.0)
        gl.glDepthFunc(gl.GL_LESS)

    def _prepare(self) -> None:
        """Set up the state in which MiniWorld draws."""
        self._window.switch_to()
        for capability in (
            gl.GL_MULTISAMPLE,
            gl.GL_DEPTH_TEST,
            gl.GL_CULL_FACE,
            gl.GL_TEXTURE_2D,
            gl.GL_LIGHTING,
            gl.GL_LIGHT0,
            gl.GL_COLOR_MATERIAL,
        ):
            gl.glEnable(capability)
        gl.glShadeModel(gl.GL_SMOOTH)
        gl.glColorMaterial(gl.GL_FRONT_AND_BACK, gl.GL_AMBIENT_AND_DIFFUSE)
        gl.glColor3f(1, 1, 1)
        for light, name in ((gl.GL_AMBIENT, "light_ambient"), (gl.GL_DIFFUSE, "light_color")):
            # MiniWorld gives three numbers where OpenGL takes four; the fourth is alpha, which nobody sees.
            gl.glLightfv(gl.GL_LIGHT0, light, (gl.GLfloat * 4)(*PARAMETERS.sample(None, name)))
        gl.glClearColor(*PARAMETERS.sample(None, "sky_color"), 1.0)
        gl.glClearDepth(1.0)
        gl.glPixelStorei(gl.GL_PACK_ALIGNMENT, 1)
        gl.glMatrixMode(gl.GL_PROJECTION)
        gl.glLoadIdentity()
        gl.gluPerspective(self._options.field_of_view, 1.0, _Z_NEAR, _Z_FAR)
        gl.glMatrixMode(gl.GL_MODELVIEW)
        gl.glBindBuffer(gl.GL_ARRAY_BUFFER, self._vertex_buffer)
        gl.glBindBuffer(gl.GL_ELEMENT_ARRAY_BUFFER, self._index_buffer)
        for array in (gl.GL_VERTEX_ARRAY, gl.GL_NORMAL_ARRAY, gl.GL_TEXTURE_COORD_ARRAY):
            gl.glEnableClientState(array)
        gl.glVertexPointer(3, gl.GL_FLOAT, 32, 0)
        gl.glNormalPointer(gl.GL_FLOAT, 32, 12)
        gl.glTexCoordPointer(2, gl.GL_FLOAT, 32, 24)

    def _finish(self) -> None:
        """Leave nothing bound, and ask once whether all went well."""
        gl.glBindBuffer(gl.GL_ARRAY_BUFFER, 0)
        gl.glBindBuffer(gl.GL_ELEMENT_ARRAY_BUFFER, 0)
        gl.glBindFramebuffer(gl.GL_FRAMEBUFFER, 0)
        error = gl.glGetError()
        if error:
            raise RendererError(f"OpenGL reports error {error:#06x} after drawing a map")

    def _read_sheet(self, count: int) -> NDArray[np.uint8]:
        """Return the first `count` tiles of the sheet, [count, resolution, resolution, 3]."""
        pixels, tiles = self._options.resolution, self._tiles
        width, height = tiles * pixels, -(-count // tiles) * pixels
        gl.glBindFramebuffer(gl.GL_READ_FRAMEBUFFER, self._sheet)
        sheet = np.empty((height // pixels, pixels, tiles, pixels, 3), np.uint8)
        gl.glReadPixels(0, 0, width, height, gl.GL_RGB, gl.GL_UNSIGNED_BYTE, sheet.ctypes.data)
        # OpenGL's rows grow upwards.
        return sheet.swapaxes(1, 2).reshape(-1, pixels, pixels, 3)[:count, ::-1]
