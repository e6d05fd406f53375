"""How a study of beginnings begins: what its runs share, which arms the teacher has, and whether it is gone on with."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

from chordflow.couplings import CouplingBuffer, Split, open_split
from chordflow.errors import UserError
from chordflow.experiments.compare_setup import env_name
from chordflow.experiments.compare_success import Episodes
from chordflow.experiments.config import ReflowJobConfig, StudentConfig
from chordflow.experiments.init_study_config import ADDABLE, ARMS, DEFAULT_ARMS, InitStudyConfig
from chordflow.experiments.plain import plain
from chordflow.experiments.provenance import device_name, weights_sha256
from chordflow.experiments.side_by_side import Teacher, command_of, open_teacher, refuse_another
from chordflow.policies import FlowPolicy, Role
from chordflow.results.init_study import Arm, InitStudy, LeftOut
from chordflow.results.schema import installed_versions
from chordflow.training.student import StudentInit


@dataclass(frozen=True)
class InitBed:
    """What all runs share.

    Attributes:
        config: of the study.
        teacher: the teacher.
        split: the observations, with actions where the method looks at them.
        episodes: runs policies; None without an environment.
        arms: what is trained.
        left_out: arms that were not asked for by name and that the teacher has not.
    """

    config: InitStudyConfig
    teacher: Teacher
    split: Split
    episodes: Episodes | None
    arms: list[Arm]
    left_out: list[LeftOut]

    def job(self, arm: Arm, seed: int, folder: Path) -> ReflowJobConfig:
        """The settings of `chordflow reflow` that train one run."""
        config = self.config
        job = ReflowJobConfig(
            teacher=config.teacher,
            dataset=config.dataset,
            output_dir=folder,
            steps=config.steps,
            batch_size=config.batch_size,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            seed=seed,
            num_workers=config.num_workers,
            log_freq=config.log_freq,
            device=config.device,
            tolerance_s=config.tolerance_s,
            rename_map=config.rename_map,
            student=StudentConfig(init=StudentInit(arm.init), train=[Role(role) for role in arm.train]),
            method=config.method,
            coupling=deepcopy(config.coupling),
            buffer=config.buffer,
            optimizer=replace(config.optimizer, lr=arm.learning_rate),
        )
        # Of its own copy: what a solver takes by default must not stand among the settings for going on.
        job.coupling.settle(self.teacher.num_steps)
        return job


def made(config: InitStudyConfig) -> InitBed:
    """Loads what all runs share, and makes sure that they can begin.

    Raises:
        UserError: for input that cannot be used.
    """
    teacher = open_teacher(config)
    arms, left_out = arms_of(config, teacher.policy)
    method = config.method.build()
    split = open_split(
        config.dataset,
        teacher.policy,
        tolerance_s=config.tolerance_s,
        actions=method.needs_actions,
    )
    episodes = Episodes(config, teacher.policy, teacher.num_steps) if config.env is not None else None
    bed = InitBed(config, teacher, split, episodes, arms, left_out)
    job = bed.job(arms[0], 0, config.output_dir)
    CouplingBuffer(
        teacher.policy,
        split.train,
        job.coupling,
        job.buffer,
        seed=0,
        batch_size=job.batch_size,
        parts=job.gradient_accumulation_steps,
        needs=method.needs,
    )
    return bed


def arms_of(config: InitStudyConfig, teacher: FlowPolicy) -> tuple[list[Arm], list[LeftOut]]:
    """The arms that are trained, and those of the default ones that this teacher has not.

    Raises:
        UserError: if one that was asked for by name cannot be trained.
    """
    arms: list[Arm] = []
    left_out: list[LeftOut] = []
    has = [role for role, named in teacher.parameters_by_role().items() if named]
    known: dict[tuple[StudentInit, frozenset[Role]], str] = {}
    for name in config.arms or DEFAULT_ARMS:
        beginning = ARMS[name]
        train = has if beginning.everything else list(teacher.default_train_roles)
        same = known.setdefault((beginning.init, frozenset(train)), name)
        reason = ""
        if same != name:
            reason = f"a {teacher.family} trains everything by default, so this is {same}"
        elif beginning.init == StudentInit.PRETRAINED_VLM:
            reason = _missing(teacher)
        if reason and config.arms is not None:
            raise UserError(f"arms: {name}: {reason}")
        if reason:
            left_out.append(LeftOut(name, reason))
        else:
            arms += _at_rates(config, name, train)
    return arms, left_out


def _at_rates(config: InitStudyConfig, name: str, train: list[Role]) -> Iterator[Arm]:
    for rate in config.learning_rates:
        yield Arm(name, ARMS[name].init.value, [role.value for role in train], rate)


def _missing(teacher: FlowPolicy) -> str:
    """Why a teacher's config names no vision-language model to begin with; empty where it does."""
    try:
        teacher.pretrained_vlm()
    except UserError as error:
        return str(error)
    return ""


def begun(bed: InitBed, command: list[str]) -> InitStudy:
    """A study of which nothing is measured."""
    config = bed.config
    return InitStudy(
        command=command,
        settings=plain(config),
        versions=installed_versions(),
        device=device_name(bed.teacher.policy.device),
        teacher=config.teacher.path,
        teacher_sha256=weights_sha256(bed.teacher.folder),
        arms=bed.arms,
        left_out=bed.left_out,
        seeds=config.seeds,
        steps=config.steps,
        at=config.checkpoints or [],
        level=config.level,
        env=env_name(config.env),
    )


def gone_on_with(now: InitStudy, before: InitStudy) -> InitStudy:
    """The study with what was measured before, if that was measured in the same way.

    Raises:
        UserError: if it was not.
    """
    refuse_another(now, before, ADDABLE, "study")
    if now.env and not before.env and before.runs and not before.settings.get("keep_checkpoints"):
        raise UserError(
            "env: the study began without one, and of its students the last alone are kept; start a new one, with "
            "--env.type or with --keep_checkpoints=true."
        )
    # What is measured stays in the table, whatever is asked for now.
    named = {arm.name for arm in now.arms}
    trained = {run.arm for run in before.runs}
    kept = [arm for arm in before.arms if arm.name in trained - named]
    seeds = [s for s in before.seeds if s not in now.seeds and any(run.seed == s for run in before.runs)]
    return replace(
        now,
        command=command_of(now, before),
        arms=[*now.arms, *kept],
        seeds=[*now.seeds, *seeds],
        held_out=before.held_out,
        untrained=before.untrained,
        runs=before.runs,
    )
