"""How a study of rounds begins: what its runs share, how each is trained, and whether it is gone on with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from chordflow.couplings import CouplingBuffer, CouplingConfig, Split, open_split
from chordflow.experiments.compare_setup import env_name
from chordflow.experiments.compare_success import Episodes
from chordflow.experiments.config import ReflowJobConfig, StudentConfig
from chordflow.experiments.plain import plain
from chordflow.experiments.provenance import device_name, weights_sha256
from chordflow.experiments.round_settings import settings_of_round
from chordflow.experiments.rounds_study_config import ADDABLE, RoundsStudyConfig
from chordflow.experiments.side_by_side import Teacher, command_of, open_teacher, refuse_another
from chordflow.results.rounds_study import RoundArm, RoundsStudy
from chordflow.results.schema import installed_versions
from chordflow.training.methods import ReflowMethodConfig
from chordflow.training.student import StudentInit


@dataclass(frozen=True)
class RoundsBed:
    """What all runs share.

    Attributes:
        config: of the study.
        teacher: the first teacher.
        splits: the observations, with and without actions, as far as an arm needs them.
        episodes: runs policies; None without an environment.
    """

    config: RoundsStudyConfig
    teacher: Teacher
    splits: dict[bool, Split]
    episodes: Episodes | None

    @property
    def split(self) -> Split:
        """The observations; those that are held out are the same in all."""
        return next(iter(self.splits.values()))

    def job(
        self, arm: RoundArm, round: int, seed: int, folder: Path, teacher: Path | None = None
    ) -> ReflowJobConfig:
        """The settings of `chordflow reflow` that train one round of an arm.

        Args:
            arm: which.
            round: from 1.
            seed: of the whole run.
            folder: of this round.
            teacher: the student of the round before; None in the first.
        """
        config = self.config
        coupling = (
            CouplingConfig("euler", grid_power=1.0) if arm.solver == "euler" else CouplingConfig(arm.solver)
        )
        # As many steps in every round: a student that teaches is saved with a single one.
        coupling.settle(self.teacher.num_steps)
        whole = ReflowJobConfig(
            teacher=config.teacher,
            dataset=config.dataset,
            output_dir=folder,
            steps=arm.steps_of(config.steps, config.rounds),
            batch_size=config.batch_size,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            seed=seed,
            num_workers=config.num_workers,
            device=config.device,
            tolerance_s=config.tolerance_s,
            rename_map=config.rename_map,
            method=ReflowMethodConfig(real_data_share=arm.real_data_share),
            coupling=coupling,
            buffer=config.buffer,
            optimizer=config.optimizer,
        )
        job = settings_of_round(whole, round, folder, teacher)
        start = arm.start_of(round)
        if start == "first":
            return replace(job, student=StudentConfig(init_path=str(self.teacher.folder)))
        if start == "fresh":
            return replace(job, student=StudentConfig(init=StudentInit.TEACHER_VLM))
        return job


def run_folder(config: RoundsStudyConfig, arm: RoundArm, round: int, seed: int) -> Path:
    """Where a run lies; arms that begin with the same round share its folder."""
    couplings = f"{arm.solver}_real_{arm.real_data_share:g}"
    name = f"round_{round}_{arm.start_of(round)}"
    if arm.start == "once":
        name = f"once_{arm.steps_of(config.steps, config.rounds)}"
    return config.output_dir / couplings / f"seed_{seed}" / name


def made(config: RoundsStudyConfig) -> RoundsBed:
    """Loads what all runs share, and makes sure that each arm can begin.

    Raises:
        UserError: for input that cannot be used.
    """
    teacher = open_teacher(config)
    splits = {
        actions: open_split(config.dataset, teacher.policy, tolerance_s=config.tolerance_s, actions=actions)
        for actions in sorted({share > 0 for share in config.real_data_shares})
    }
    episodes = Episodes(config, teacher.policy, teacher.num_steps) if config.env is not None else None
    bed = RoundsBed(config, teacher, splits, episodes)
    for arm in config.arms:
        job = bed.job(arm, 1, 0, config.output_dir)
        CouplingBuffer(
            teacher.policy,
            splits[arm.real_data_share > 0].train,
            job.coupling,
            job.buffer,
            seed=0,
            batch_size=job.batch_size,
            parts=job.gradient_accumulation_steps,
            needs=job.method.build().needs,
        )
    return bed


def begun(bed: RoundsBed, command: list[str]) -> RoundsStudy:
    """A study of which nothing is measured."""
    config = bed.config
    return RoundsStudy(
        command=command,
        settings=plain(config),
        versions=installed_versions(),
        device=device_name(bed.teacher.policy.device),
        teacher=config.teacher.path,
        teacher_sha256=weights_sha256(bed.teacher.folder),
        arms=config.arms,
        rounds=config.rounds,
        seeds=config.seeds,
        steps=config.steps,
        least_gain=config.least_gain,
        env=env_name(config.env),
    )


def gone_on_with(now: RoundsStudy, before: RoundsStudy) -> RoundsStudy:
    """The study with what was measured before, if that was measured in the same way.

    What is asked for now is what is shown; what was trained beside it stays in the file.

    Raises:
        UserError: if it was not.
    """
    refuse_another(now, before, ADDABLE, "study")
    return replace(
        now,
        command=command_of(now, before),
        held_out=before.held_out,
        untrained=before.untrained,
        diversity=before.diversity,
        runs=before.runs,
    )
