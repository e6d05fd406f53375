"""What a round of several has of its own: teacher, seed, episodes, and how its student begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from chordflow.experiments.collect_config import CollectConfig
from chordflow.experiments.config import AutoRoundsConfig, ReflowJobConfig, StudentConfig, TeacherConfig
from chordflow.experiments.stored_couplings import CouplingsConfig
from chordflow.flow.seeds import derive_seed

EPISODES_OF_A_ROUND = 10_000_000
"""By how much the seeds of collecting episodes lie apart between rounds."""


def round_seed(seed: int, number: int) -> int:
    """The seed of a round: the job's own for the first, others for the rest."""
    return seed if number == 1 else derive_seed(seed, "round", number) % 2**31


def settings_of_round(
    config: ReflowJobConfig, number: int, output_dir: Path, teacher: Path | None
) -> ReflowJobConfig:
    """The settings of a round, as those of a job of one round.

    Args:
        config: of the whole job.
        number: of the round, from 1.
        output_dir: its folder.
        teacher: the student of the round before, which teaches it and which its student begins as; None for the first.
    """
    config = replace(config, rounds=1, auto_rounds=AutoRoundsConfig(), output_dir=output_dir)
    if number == 1:
        return config
    return replace(
        config,
        teacher=TeacherConfig(str(teacher)),
        student=StudentConfig(train=config.student.train),
        # A store holds the first teacher's.
        couplings=CouplingsConfig(),
        collect=_other_episodes(config, number),
        seed=round_seed(config.seed, number),
    )


def _other_episodes(config: ReflowJobConfig, number: int) -> CollectConfig:
    """How a round collects observations: in other episodes than the rounds before."""
    if config.env is None:
        return config.collect
    return replace(config.collect, seed=config.collect.seed + (number - 1) * EPISODES_OF_A_ROUND)
