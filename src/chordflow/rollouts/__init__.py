"""Environments, paired noise, and episodes as rows.

Names are imported when they are first used: a process that only holds environments (`rollouts.workers`) does
without the policies and the seconds that they take to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chordflow.rollouts.acting import chunk_noise as chunk_noise
    from chordflow.rollouts.acting import chunk_noises as chunk_noises
    from chordflow.rollouts.delay import Execution as Execution
    from chordflow.rollouts.episodes import Episode as Episode
    from chordflow.rollouts.episodes import EpisodeKey as EpisodeKey
    from chordflow.rollouts.episodes import Timing as Timing
    from chordflow.rollouts.episodes import paired as paired
    from chordflow.rollouts.runner import Runner as Runner
    from chordflow.rollouts.runner import open_runner as open_runner
    from chordflow.rollouts.runner import run_episodes as run_episodes
    from chordflow.rollouts.store import EpisodeStore as EpisodeStore
    from chordflow.rollouts.store import arm_settings as arm_settings
    from chordflow.rollouts.summaries import success_rows as success_rows

_HOMES = {
    "acting": ("chunk_noise", "chunk_noises"),
    "delay": ("Execution",),
    "episodes": ("Episode", "EpisodeKey", "Timing", "paired"),
    "runner": ("Runner", "open_runner", "run_episodes"),
    "store": ("EpisodeStore", "arm_settings"),
    "summaries": ("success_rows",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
