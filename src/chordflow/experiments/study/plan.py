"""What a study trains: arms by seeds, teachers first; each arm's job is built once, to refuse early."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path

from draccus.utils import flatten

from chordflow.couplings import Split, open_split
from chordflow.errors import UserError, named
from chordflow.experiments.config import RECIPES, ReflowJobConfig, TrainingSettings, env_name
from chordflow.experiments.provenance import device_name, load_teacher, processors_sha256, weights_sha256
from chordflow.experiments.rounds import check_teaches, settings_of_round
from chordflow.experiments.study.config import ArmSettings, StudyConfig
from chordflow.experiments.study.presets import OWN, STUDIES
from chordflow.experiments.train import Job, make_buffer, refuse_unused_points
from chordflow.options import build, plain
from chordflow.policies import FlowPolicy
from chordflow.results.files import same_where_known
from chordflow.results.schema import installed_versions
from chordflow.results.study import Arm, LeftOut, Study
from chordflow.training.distributed import fsdp_is_asked_for

SHARED = [f.name for f in fields(TrainingSettings) if f.name not in ("output_dir", "resume", "env")]
"""Options of a study that are those of `chordflow reflow`, for every arm."""

ADDABLE = ("seeds", "level", "least_gain", "output_dir", "resume", "tolerance_s")
"""Settings of any study that may be another when it is resumed, beside those of its preset."""


@dataclass(frozen=True)
class Plan:
    """What all trials share.

    Attributes:
        teacher: loaded and frozen.
        teacher_steps: its Euler steps as deployed.
        arms: by name, teachers first.
        jobs: the settings that train each arm, in its folder; seed and teacher are put in for each trial.
        trials: arm and seed of each, seed by seed: a study that is stopped has whole seeds.
        left_out: arms that this teacher cannot have.
        splits: the observations, with and without actions, as far as an arm needs them.
    """

    teacher: FlowPolicy
    teacher_dir: Path
    teacher_steps: int
    arms: dict[str, Arm]
    jobs: dict[str, ReflowJobConfig]
    trials: list[tuple[str, int]]
    left_out: list[LeftOut]
    splits: dict[bool, Split]

    @property
    def split(self) -> Split:
        """The observations; those that are held out are the same in all."""
        return next(iter(self.splits.values()))

    def folder(self, arm: str, seed: int) -> Path:
        """Where a trial lies."""
        return self.jobs[arm].output_dir / f"seed_{seed}"

    def round(self, arm: str) -> int:
        """How many trainings lead to an arm's student, its own included."""
        teacher = self.arms[arm].teacher
        return 1 if teacher is None else self.round(teacher) + 1

    def job(self, arm: str, seed: int, teacher: FlowPolicy | None = None, folder: Path | None = None) -> Job:
        """What a trial begins with; `teacher` and its `folder` are of the student that teaches it, if one does."""
        config = replace(self.jobs[arm], seed=seed)
        own = settings_of_round(config, self.round(arm), self.folder(arm, seed), folder)
        split = self.splits[config.method.build().needs.actions]
        teacher_dir = folder or self.teacher_dir
        return Job(replace(own, student=config.student), teacher or self.teacher, teacher_dir, split)


def make_plan(config: StudyConfig) -> Plan:
    """Loads what all trials share, and makes sure that each arm can begin.

    Raises:
        UserError: for input that cannot be used.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    if count != "1" or fsdp_is_asked_for():
        given = f"WORLD_SIZE={count}" if count != "1" else "ACCELERATE_USE_FSDP=true"
        raise UserError(
            f"{given}: a study trains in one process; start it without torchrun or accelerate launch, or train each "
            "arm by chordflow reflow."
        )
    teacher_dir, teacher = load_teacher(config.teacher, config.device, config.rename_map)
    teacher_steps = config.teacher.deployed_steps(teacher)
    arms: dict[str, Arm] = {}
    jobs: dict[str, ReflowJobConfig] = {}
    left_out: list[LeftOut] = []
    for arm in config.arms_for(teacher, teacher_dir):
        if isinstance(arm, LeftOut):
            left_out.append(arm)
            continue
        job = job_of(config, arm)
        if arm.teacher is not None:
            check_teaches(jobs[arm.teacher].method, f"arms: {arm.name!r}: teacher={arm.teacher}: ")
        # As many steps in every round: a student that teaches is saved with a single one.
        job.coupling.settle(teacher_steps)
        jobs[arm.name], arms[arm.name] = job, _described(arm, job)
    methods = [job.method.build() for job in jobs.values()]
    splits = {
        actions: open_split(config.dataset, teacher, tolerance_s=config.tolerance_s, actions=actions)
        for actions in sorted({method.needs.actions for method in methods})
    }
    trials = [(name, seed) for seed in config.seeds for name in arms]
    plan = Plan(teacher, teacher_dir, teacher_steps, arms, jobs, trials, left_out, splits)
    for name, job in jobs.items():
        with named(f"arms: {name!r}"):
            # States of the trajectory that all arms keep are for those that train on them.
            if job.buffer.path_points != config.buffer.path_points or not any(m.needs.paths for m in methods):
                refuse_unused_points(job)
            first = plan.job(name, 0, folder=teacher_dir)
            make_buffer(first, first.split.train)
    return plan


def job_of(config: StudyConfig, arm: ArmSettings) -> ReflowJobConfig:
    """The settings of `chordflow reflow` that train an arm.

    Raises:
        UserError: for settings that it would not take.
    """
    settings = plain(config)
    base = {name: settings[name] for name in SHARED}
    base |= {"output_dir": str(config.output_dir / arm.name), "steps": arm.steps or config.steps or 1}
    if arm.teacher is not None:
        # What students begin as is for the first round: the others begin as their teachers.
        base["student"] = {"train": base["student"]["train"]}
    if arm.settings.get("observations") == "rollout" and "env" not in arm.settings:
        # Observations are collected where episodes are run, unless the arm names another environment.
        base["env"] = settings["env"]
    own = flatten(arm.settings).items()
    with named(f"arms: {arm.name!r}"):
        values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in own}
        job = build(ReflowJobConfig, values, base)
        if config.seconds is not None and job.scheduler.num_warmup_steps is not None:
            raise UserError(
                f"scheduler.num_warmup_steps={job.scheduler.num_warmup_steps}: the budget is in seconds; leave it out, "
                "or give --steps."
            )
    job.recipe = arm.name if RECIPES.get(arm.name) == arm.settings else None  # type: ignore[assignment]
    return job


def _described(arm: ArmSettings, job: ReflowJobConfig) -> Arm:
    method, settings = job.method.build(), plain(job)
    return Arm(
        name=arm.name,
        way=arm.way or arm.name,
        differs=flatten(arm.settings),
        settings={name: settings[name] for name in OWN},
        method=job.method_name,
        stock_checkpoint=method.stock_checkpoint,
        step_counts=list(method.step_counts) if method.step_counts is not None else None,
        teacher=arm.teacher,
        steps=arm.steps,
    )


def begun(config: StudyConfig, plan: Plan, command: list[str]) -> Study:
    """A study of which nothing is measured."""
    return Study(
        preset=config.PRESET,
        command=command,
        settings=plain(config),
        versions=installed_versions(),
        device=device_name(plan.teacher.device),
        teacher=config.teacher.path,
        teacher_sha256=weights_sha256(plan.teacher_dir),
        teacher_processors_sha256=processors_sha256(plan.teacher_dir),
        arms=list(plan.arms.values()),
        left_out=plan.left_out,
        seeds=config.seeds,
        steps=config.steps,
        seconds=config.seconds,
        looks=config.looks or [],
        level=config.level,
        least_gain=config.least_gain,
        env=env_name(config.env),
    )


def resumed(now: Study, before: Study) -> Study:
    """A study of which nothing is measured, with what was measured before.

    Raises:
        UserError: if it was not measured in the same way.
    """
    own = {f.name for f in fields(STUDIES[now.preset])} - {f.name for f in fields(StudyConfig)}
    free = {*ADDABLE, *own, *(("env", "eval") if before.settings.get("env") is None else ())}
    changed = [name for name, value in now.settings.items() if before.settings.get(name) != value]
    for name in changed:
        if name not in free:
            raise UserError(
                f"{name}: the study began with {before.settings.get(name)} and resuming cannot change it; leave the "
                "option out, or start a new study."
            )
    if now.device != before.device:
        raise UserError(
            f"the study began on {before.device} and this is {now.device}: seconds of two machines cannot be compared; "
            "start a new study."
        )
    processors = (now.teacher_processors_sha256, before.teacher_processors_sha256)
    if now.teacher_sha256 != before.teacher_sha256 or not same_where_known(*processors):
        raise UserError(
            f"teacher.path={now.teacher}: its weights or its processors' statistics are not those that the study "
            "began with; restore them or start a new study."
        )
    # What a table calls an arm depends on the others.
    known = {arm.name: replace(arm, way="") for arm in before.arms}
    for arm in now.arms:
        if known.get(arm.name) not in (None, replace(arm, way="")):
            raise UserError(
                f"arms: {arm.name!r} had other settings when the study began; give these another name, or start a new "
                "study."
            )
    if now.env and not before.env and before.looks_often and not before.settings.get("keep_looks"):
        raise UserError(
            "env: the study began without one, and of its students the last alone are kept; start a new study, with "
            "--env.type or with --keep_looks=true."
        )
    # What is measured stays in the table, whatever is asked for now.
    trained = {trial.arm for trial in before.trials} - {arm.name for arm in now.arms}
    seeds = [s for s in before.seeds if s not in now.seeds and any(t.seed == s for t in before.trials)]
    return replace(
        now,
        command=now.command if {*changed} - {"resume", "output_dir"} else before.command,
        arms=[*now.arms, *(arm for arm in before.arms if arm.name in trained)],
        seeds=[*now.seeds, *seeds],
        held_out=before.held_out,
        untrained=before.untrained,
        trials=before.trials,
    )
