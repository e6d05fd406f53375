"""What the machine must have: a MuJoCo that Meta-World works with, and something to render with."""

import atexit
import ctypes.util
import os
from functools import cache
from typing import Any

WELD_NUMBERS = 11
"""Numbers of a weld constraint that metaworld 3.0.0 writes."""

CHECKED_SIZE = 64

_WELD = """<mujoco><worldbody><body name="a"><joint/><geom size="1"/></body></worldbody>
<equality><weld body1="a"/></equality></mujoco>"""


def check_machine() -> None:
    """Make sure that environments can be made here, in some milliseconds.

    Raises:
        RuntimeError: if MuJoCo's version does not work, or nothing is there to render with.
    """
    check_mujoco()
    _check_drawing()


@cache
def _check_drawing() -> None:
    import mujoco

    context = open_context(CHECKED_SIZE)
    try:
        # GLFW without a display fails no sooner than here.
        context.make_current()
        model = mujoco.MjModel.from_xml_string(_WELD)
        mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value).free()
    except Exception as error:
        raise _cannot_render(error) from error


@cache
def check_mujoco() -> None:
    """Make sure that MuJoCo's weld constraints are as Meta-World writes them.

    Raises:
        RuntimeError: if not, or if MuJoCo cannot be imported with what it is to render with.
    """
    backend()
    try:
        import mujoco
    except ModuleNotFoundError:
        raise
    except Exception as error:
        raise _cannot_render(error) from error

    numbers = mujoco.MjModel.from_xml_string(_WELD).eq_data.shape[1]
    if numbers != WELD_NUMBERS:
        raise RuntimeError(
            f"metaworld does not work with MuJoCo {mujoco.__version__}, whose weld constraints have {numbers} numbers "
            f'instead of {WELD_NUMBERS}: install one that does, pip install "mujoco==3.3.7".'
        )


@cache
def backend() -> str:
    """Choose what MuJoCo renders with, before it is imported: `MUJOCO_GL` if set, else EGL, else OSMesa.

    Raises:
        RuntimeError: if neither is there, naming the packages to install.
    """
    # One thread renders a small picture nine times as fast as Mesa's default of one per core.
    os.environ.setdefault("LP_NUM_THREADS", "1")
    wanted = os.environ.get("MUJOCO_GL", "").lower()
    if wanted:
        return wanted
    for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        if ctypes.util.find_library(library):
            os.environ["MUJOCO_GL"] = name
            return name
    raise RuntimeError(nothing_to_render_with("neither library is there"))


def nothing_to_render_with(reason: str) -> str:
    """The sentence for a machine without EGL and OSMesa, or where the one that is there fails."""
    return (
        f"Meta-World cannot render here ({reason}): install EGL (Debian and Ubuntu: apt-get install libegl1 "
        "libgl1-mesa-dri) or OSMesa (apt-get install libosmesa6), or set MUJOCO_GL to what this machine has."
    )


def open_context(size: int) -> Any:
    """The OpenGL context of this process for pictures of up to `size` pixels, made once and kept to its end.

    Raises:
        RuntimeError: if it cannot be made.
    """
    if size not in _contexts:
        _contexts[size] = _make_context(size)
        # Exits run backwards: this one comes before MuJoCo closes the display.
        atexit.register(lambda: _contexts.pop(size).free())
    return _contexts[size]


_contexts: dict[int, Any] = {}


def _make_context(size: int) -> Any:
    name = backend()
    try:
        if name == "egl":
            from mujoco.egl import GLContext
        elif name == "osmesa":
            from mujoco.osmesa import GLContext
        else:
            from mujoco.glfw import GLContext
        return GLContext(size, size)
    except Exception as error:
        raise _cannot_render(error) from error


def _cannot_render(error: Exception) -> RuntimeError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return RuntimeError(nothing_to_render_with(f"MUJOCO_GL={backend()}: {first}"))
