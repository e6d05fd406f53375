"""Pictures of a simulator: small, without shadows, reflections and multisampling.

What costs time is to hand a task's meshes to OpenGL, half a second, and that is done once for all environments
of a task in a process.
"""

import atexit
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from lerobot_env_metaworld_light.machine import open_context

OFF = (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION)
MAX_GEOMS = 2000


class Painter:
    """Draws all environments of one task; see `painter`."""

    def __init__(self, model: mujoco.MjModel, size: int) -> None:
        """Hand the model's meshes and textures to OpenGL.

        Args:
            model: of the task.
            size: largest side of a picture, in pixels.
        """
        self._context = open_context(size)
        self._context.make_current()
        model.vis.quality.offsamples = 0
        # The shadow map is made even where no shadow is drawn.
        model.vis.quality.shadowsize = 16
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        self._drawing = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._drawing)
        self._scene = mujoco.MjvScene(model, MAX_GEOMS)
        for flag in OFF:
            self._scene.flags[flag] = 0
        self._option = mujoco.MjvOption()
        self._perturbation = mujoco.MjvPerturb()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED

    def draw(self, model: mujoco.MjModel, data: mujoco.MjData, camera: str, size: int) -> NDArray[np.uint8]:
        """A picture, shape (size, size, 3).

        Args:
            model: of one environment of the task.
            data: of that environment.
            camera: name of the camera.
            size: side of the picture, in pixels.
        """
        self._context.make_current()
        self._camera.fixedcamid = model.camera(camera).id
        mujoco.mjv_updateScene(
            model,
            data,
            self._option,
            self._perturbation,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL.value,
            self._scene,
        )
        view = mujoco.MjrRect(0, 0, size, size)
        mujoco.mjr_render(view, self._scene, self._drawing)
        picture = np.empty((size, size, 3), np.uint8)
        mujoco.mjr_readPixels(picture, None, view, self._drawing)
        return picture[::-1]

    def free(self) -> None:
        """Give up what OpenGL holds."""
        self._context.make_current()
        self._drawing.free()


_painters: dict[tuple[str, int], Painter] = {}


def painter(task: str, model: mujoco.MjModel, size: int) -> Painter:
    """The painter of a task, for pictures of up to `size` pixels; that of the task before is given up.

    Args:
        task: name of the task.
        model: of any of its environments.
        size: largest side of a picture, in pixels.
    """
    if (task, size) not in _painters:
        # A suite of fifty tasks would fill the memory with meshes.
        _free_painters()
        _painters[task, size] = Painter(model, size)
        atexit.register(_free_painters)
    return _painters[task, size]


def _free_painters() -> None:
    while _painters:
        _painters.popitem()[1].free()


class Observation(dict[str, Any]):
    """An observation whose picture is drawn when it is first looked at.

    Most observations of an episode are never looked at: a policy executes several actions of a chunk in between,
    and drawing takes ten times as long as a step. The picture must be asked for before the environment moves on.
    """

    def __init__(self, values: dict[str, Any], draw: Any) -> None:
        """Keep what is known.

        Args:
            values: all but `pixels`.
            draw: gives `pixels`; raises if the environment has moved on.
        """
        super().__init__(values, pixels=None)
        self._draw = draw

    def look(self) -> "Observation":
        """Draw the picture, unless that is done."""
        if self._draw is not None:
            super().__setitem__("pixels", self._draw())
            self._draw = None
        return self

    def __getitem__(self, key: str) -> Any:
        """One part of it."""
        return super(Observation, self.look() if key == "pixels" else self).__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """One part of it, or `default`."""
        return super(Observation, self.look() if key == "pixels" else self).get(key, default)

    def items(self) -> Any:
        """All parts with their names."""
        return super(Observation, self.look()).items()

    def values(self) -> Any:
        """All parts."""
        return super(Observation, self.look()).values()

    def copy(self) -> dict[str, Any]:
        """A plain dictionary."""
        return dict(self.items())

    def __reduce__(self) -> Any:
        """Copied and sent to other processes as a plain dictionary."""
        return dict, (self.copy(),)
