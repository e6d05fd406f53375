"""Environments, paired noise, and episodes as rows."""

from chordflow.rollouts.episodes import Episode, paired, success_rows
from chordflow.rollouts.noise import chunk_noise, chunk_noises
from chordflow.rollouts.runner import run_episodes

__all__ = ["Episode", "chunk_noise", "chunk_noises", "paired", "run_episodes", "success_rows"]
