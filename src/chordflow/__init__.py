"""chordflow: reflow LeRobot flow-matching policies into students that act in one or two steps.

The functions below are those of `chordflow.api`, which import PyTorch and LeRobot when they are called with options
that they take.
"""

from typing import Any

__version__ = "0.1.0"

__all__ = ["couple", "diagnose", "evaluate", "export", "load_policy", "reflow", "report"]


def __getattr__(name: str) -> Any:
    """A function of `chordflow.api`."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    from chordflow.keywords import checked

    globals()[name] = checked(getattr(import_module("chordflow.api"), name))
    return globals()[name]


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
