"""Which environments there are by name (`--env.type`)."""

from __future__ import annotations

from importlib import import_module

from lerobot.utils.import_utils import register_third_party_plugins


def register_environments() -> None:
    """Registers what is installed as lerobot_env_*, as LeRobot's own commands find it, and the demo's environment.

    LeRobot looks for distributions, and chordflow's wheel holds the demo's without one.
    """
    register_third_party_plugins()
    import_module("lerobot_env_detour")
