"""Environments, paired noise, and episodes as rows.

Names are imported when they are first used: a process that only holds environments (`rollouts.workers`) does
without the policies and the seconds that they take to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chordflow.rollouts.delay import Execution
    from chordflow.rollouts.episodes import Episode, EpisodeKey, paired
    from chordflow.rollouts.noise import chunk_noise, chunk_noises
    from chordflow.rollouts.runner import Runner, open_runner, run_episodes
    from chordflow.rollouts.store import EpisodeStore, arm_settings
    from chordflow.rollouts.success import success_rows
    from chordflow.rollouts.timing import Timing

_HOMES = {
    "Episode": "episodes",
    "EpisodeKey": "episodes",
    "EpisodeStore": "store",
    "Execution": "delay",
    "Runner": "runner",
    "Timing": "timing",
    "arm_settings": "store",
    "chunk_noise": "noise",
    "chunk_noises": "noise",
    "open_runner": "runner",
    "paired": "episodes",
    "run_episodes": "runner",
    "success_rows": "success",
}

__all__ = [
    "Episode",
    "EpisodeKey",
    "EpisodeStore",
    "Execution",
    "Runner",
    "Timing",
    "arm_settings",
    "chunk_noise",
    "chunk_noises",
    "open_runner",
    "paired",
    "run_episodes",
    "success_rows",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
