"""Environments, paired noise, and episodes as rows."""

from chordflow.rollouts.delay import Execution
from chordflow.rollouts.episodes import Episode, EpisodeKey, paired, success_rows
from chordflow.rollouts.noise import chunk_noise, chunk_noises
from chordflow.rollouts.runner import Runner, open_runner, run_episodes
from chordflow.rollouts.store import EpisodeStore, arm_settings
from chordflow.rollouts.timing import Timing

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
