"""Environments, paired noise, and episodes as rows.

Names are imported when they are first used: a process that only holds environments (`rollouts.workers`) does
without the policies and the seconds that they take to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chordflow.rollouts.delay import Execution as Execution
    from chordflow.rollouts.episodes import Episode as Episode
    from chordflow.rollouts.episodes import EpisodeKey as EpisodeKey
    from chordflow.rollouts.episodes import paired as paired
    from chordflow.rollouts.noise import chunk_noise as chunk_noise
    from chordflow.rollouts.noise import chunk_noises as chunk_noises
    from chordflow.rollouts.runner import Runner as Runner
    from chordflow.rollouts.runner import open_runner as open_runner
    from chordflow.rollouts.runner import run_episodes as run_episodes
    from chordflow.rollouts.store import EpisodeStore as EpisodeStore
    from chordflow.rollouts.store import arm_settings as arm_settings
    from chordflow.rollouts.summaries import success_rows as success_rows
    from chordflow.rollouts.timing import Timing as Timing

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
    "success_rows": "summaries",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
