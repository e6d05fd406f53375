"""What a round of several has of its own: teacher, seed, episodes, and how its student begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from chordflow.errors import UserError
from chordflow.experiments.config import (
    AutoRoundsConfig,
    CheckpointConfig,
    CollectConfig,
    CouplingsConfig,
    ReflowJobConfig,
    StudentConfig,
)
from chordflow.flow.seeds import derive_seed
from chordflow.results.wording import steps
from chordflow.training.methods import MethodConfig

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
        teacher=CheckpointConfig(str(teacher)),
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


def check_teaches(config: MethodConfig, where: str) -> None:
    """Makes sure that a method's students can teach.

    Args:
        config: of the method.
        where: what the sentence begins with.

    Raises:
        UserError: if there is no teacher in the method, or its students are no flows.
    """
    method, name = config.build(), config.get_choice_name(type(config))
    if not method.needs.couplings:
        raise UserError(
            f"{where}method.type={name} has no teacher, so that a second round would be more of the first; give more "
            "steps instead, or choose method.type=reflow."
        )
    if method.step_counts is not None:
        trained = " or ".join(steps(count) for count in method.step_counts)
        raise UserError(
            f"{where}a student of method.type={name} with these settings is trained for {trained} alone, and its "
            "velocity elsewhere leads nowhere that another student could learn; choose method.type=reflow with times "
            "of all kinds."
        )
