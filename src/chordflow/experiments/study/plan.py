"""What a study trains: arms by seeds, teachers first; each arm's job is built once, to refuse early."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lerobot.envs.configs import EnvConfig

from chordflow.couplings import Split, open_split
from chordflow.errors import UserError
from chordflow.experiments.config import ObservationSource, ReflowJobConfig
from chordflow.experiments.measured import deployed_steps
from chordflow.experiments.plain import plain
from chordflow.experiments.provenance import device_name, load_teacher, weights_sha256
from chordflow.experiments.round_settings import check_teaches, settings_of_round
from chordflow.experiments.study.config import ArmSettings, StudyConfig
from chordflow.experiments.study.presets import OWN
from chordflow.experiments.train import Job, check
from chordflow.options import build
from chordflow.policies import FlowPolicy
from chordflow.results.schema import installed_versions
from chordflow.results.study import Arm, LeftOut, Study
from chordflow.training.distributed import fsdp_is_asked_for

SHARED = (
    "teacher", "dataset", "device", "tolerance_s", "rename_map", "num_workers", "log_freq", "batch_size",
    "gradient_accumulation_steps", "student", "method", "coupling", "buffer", "optimizer", "scheduler", "ema",
)  # fmt: skip
"""Options of a study that are those of `chordflow reflow`, for every arm."""

ADDABLE = ("seeds", "level", "least_gain", "output_dir", "resume", "tolerance_s")
"""Settings that may be another when a study is resumed."""


@dataclass(frozen=True)
class Planned:
    """An arm with the job that trains it.

    Attributes:
        arm: as results name it.
        config: of the job; seed, folder and teacher are put in for each trial.
        round: how many teachers lead to it, itself included.
    """

    arm: Arm
    config: ReflowJobConfig
    round: int


@dataclass(frozen=True)
class Plan:
    """What all trials share.

    Attributes:
        config: of the study.
        teacher: loaded and frozen.
        teacher_dir: its folder.
        teacher_steps: its Euler steps as deployed.
        planned: the arms by name, teachers first.
        left_out: arms that this teacher cannot have.
        splits: the observations, with and without actions, as far as an arm needs them.
    """

    config: StudyConfig
    teacher: FlowPolicy
    teacher_dir: Path
    teacher_steps: int
    planned: dict[str, Planned]
    left_out: list[LeftOut]
    splits: dict[bool, Split]

    @property
    def split(self) -> Split:
        """The observations; those that are held out are the same in all."""
        return next(iter(self.splits.values()))

    @property
    def trials(self) -> list[tuple[str, int]]:
        """Arm and seed of every trial, seed by seed: a study that is stopped has whole seeds."""
        return [(name, seed) for seed in self.config.seeds for name in self.planned]

    def folder(self, arm: str, seed: int) -> Path:
        """Where a trial lies."""
        return self.config.output_dir / arm / f"seed_{seed}"

    def looks(self, arm: str) -> list[float]:
        """When the students of an arm are written and measured."""
        steps = self.planned[arm].arm.steps
        return [steps] if steps is not None else self.config.looks or []

    def job(self, arm: str, seed: int, teacher: FlowPolicy | None = None, folder: Path | None = None) -> Job:
        """What a trial begins with.

        Args:
            arm: its name.
            seed: of the trial.
            teacher: the student that teaches it; None for the study's teacher.
            folder: of that student.
        """
        planned = self.planned[arm]
        config = replace(planned.config, seed=seed)
        if planned.round > 1:
            config = settings_of_round(config, planned.round, self.folder(arm, seed), folder)
            config = replace(config, student=planned.config.student)
        config = replace(config, output_dir=self.folder(arm, seed))
        split = self.splits[config.method.build().needs.actions]
        return Job(config, teacher or self.teacher, folder or self.teacher_dir, split)


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
    teacher_steps = deployed_steps(config.teacher, teacher)
    wanted, left_out = config.arms_for(teacher, teacher_dir)
    planned: dict[str, Planned] = {}
    for arm in wanted:
        job = job_of(config, arm)
        # As many steps in every round: a student that teaches is saved with a single one.
        job.coupling.settle(teacher_steps)
        round = 1 + (planned[arm.teacher].round if arm.teacher is not None else 0)
        planned[arm.name] = Planned(_described(arm, job), job, round)
    _check_chains(planned)
    _check_paths(config, planned)
    splits = {
        actions: open_split(config.dataset, teacher, tolerance_s=config.tolerance_s, actions=actions)
        for actions in sorted({one.config.method.build().needs.actions for one in planned.values()})
    }
    plan = Plan(config, teacher, teacher_dir, teacher_steps, planned, left_out, splits)
    for name in planned:
        try:
            check(plan.job(name, 0, folder=teacher_dir))
        except UserError as error:
            raise UserError(f"arms: {name!r} cannot be trained: {error}") from error
    return plan


def job_of(config: StudyConfig, arm: ArmSettings) -> ReflowJobConfig:
    """The settings of `chordflow reflow` that train an arm.

    Raises:
        UserError: for settings that it would not take.
    """
    settings = plain(config)
    base = {name: settings[name] for name in SHARED}
    base |= {"output_dir": str(config.output_dir), "steps": arm.steps or config.steps or 1}
    if arm.teacher is not None:
        # What students begin as is for the first round: the others begin as their teachers.
        base["student"] = {"train": base["student"]["train"]}
    if arm.settings.get("observations") == ObservationSource.ROLLOUT and "env" not in arm.settings:
        # Observations are collected where episodes are run, unless the arm names another environment.
        base["env"] = settings["env"]
    try:
        own = dotted(arm.settings).items()
        values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in own}
        job = build(ReflowJobConfig, values, base)
        if config.seconds is not None and job.scheduler.num_warmup_steps is not None:
            raise UserError(
                f"scheduler.num_warmup_steps={job.scheduler.num_warmup_steps}: the budget is in seconds; leave it out, "
                "or give --steps."
            )
    except UserError as error:
        raise UserError(f"arms: {arm.name!r}: {error}") from error
    job.recipe = arm.recipe
    return job


def _described(arm: ArmSettings, job: ReflowJobConfig) -> Arm:
    method, settings = job.method.build(), plain(job)
    return Arm(
        name=arm.name,
        way=arm.way,
        differs=dotted(arm.settings),
        settings={name: settings[name] for name in OWN},
        method=job.method.get_choice_name(type(job.method)),
        stock_checkpoint=method.stock_checkpoint,
        step_counts=list(method.step_counts) if method.step_counts is not None else None,
        teacher=arm.teacher,
        steps=arm.steps,
    )


def dotted(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name, as options have them."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        found |= dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _check_chains(planned: dict[str, Planned]) -> None:
    """Makes sure that the students of arms that teach others can do so."""
    for one in planned.values():
        if (teacher := one.arm.teacher) is not None:
            check_teaches(planned[teacher].config.method, f"arms: {one.arm.name!r} has teacher={teacher}: ")


def _check_paths(config: StudyConfig, planned: dict[str, Planned]) -> None:
    """Makes sure that states of the trajectory are kept where an arm trains on them alone."""
    shared = config.buffer.path_points
    needing = [one for one in planned.values() if one.config.method.build().needs.paths]
    if shared is not None and not needing:
        raise UserError(
            f"buffer.path_points={shared}: no arm trains on states of the trajectory; leave it out."
        )
    for one in planned.values():
        points = one.config.buffer.path_points
        if points not in (None, shared) and one not in needing:
            raise UserError(
                f"arms: {one.arm.name!r} sets buffer.path_points={points}, and its method does not train on states of "
                "the trajectory; leave it out, or set method.path_share with reflow or endpoint."
            )


def begun(plan: Plan, command: list[str]) -> Study:
    """A study of which nothing is measured."""
    config = plan.config
    return Study(
        preset=config.PRESET,
        command=command,
        settings=plain(config),
        versions=installed_versions(),
        device=device_name(plan.teacher.device),
        teacher=config.teacher.path,
        teacher_sha256=weights_sha256(plan.teacher_dir),
        arms=[one.arm for one in plan.planned.values()],
        left_out=plan.left_out,
        seeds=config.seeds,
        steps=config.steps,
        seconds=config.seconds,
        looks=config.looks or [],
        level=config.level,
        least_gain=config.least_gain,
        env=env_name(config.env),
    )


def env_name(env: EnvConfig | None) -> str:
    """An environment with its task, as tables name it; empty for none."""
    if env is None:
        return ""
    return f"{env.type}, {env.task}" if env.task else str(env.type)


def resumed(now: Study, before: Study, addable: tuple[str, ...] = ()) -> Study:
    """The study with what was measured before, if that was measured in the same way.

    Args:
        now: a study of which nothing is measured.
        before: the one that is resumed.
        addable: settings of its preset that may be another.

    Raises:
        UserError: if it was not measured in the same way.
    """
    first_env = before.settings.get("env") is None
    free = {*ADDABLE, *addable, *(("env", "eval") if first_env else ())}
    added = False
    for name, value in now.settings.items():
        if before.settings.get(name) == value:
            continue
        if name not in free:
            raise UserError(
                f"{name}: the study began with {before.settings.get(name)} and resuming cannot change it; leave the "
                "option out, or start a new study."
            )
        added |= name not in ("resume", "output_dir")
    if now.device != before.device:
        raise UserError(
            f"the study began on {before.device} and this is {now.device}: seconds of two machines cannot be compared; "
            "start a new study."
        )
    if now.teacher_sha256 != before.teacher_sha256:
        raise UserError(
            f"teacher.path={now.teacher}: its weights are not those that the study began with; restore them or start a "
            "new study."
        )
    # What a table calls an arm depends on the others.
    known = {arm.name: replace(arm, way="") for arm in before.arms}
    for arm in now.arms:
        if known.get(arm.name) not in (None, replace(arm, way="")):
            raise UserError(
                f"arms: {arm.name!r} had other settings when the study began; give these another name, or start a new "
                "study."
            )
    if now.env and not before.env and any(look.student for look in _gone(before)):
        raise UserError(
            "env: the study began without one, and of its students the last alone are kept; start a new study, with "
            "--env.type or with --keep_looks=true."
        )
    # What is measured stays in the table, whatever is asked for now.
    trained = {trial.arm for trial in before.trials} - {arm.name for arm in now.arms}
    seeds = [s for s in before.seeds if s not in now.seeds and any(t.seed == s for t in before.trials)]
    return replace(
        now,
        command=now.command if added else before.command,
        arms=[*now.arms, *(arm for arm in before.arms if arm.name in trained)],
        seeds=[*now.seeds, *seeds],
        held_out=before.held_out,
        untrained=before.untrained,
        trials=before.trials,
    )


def _gone(study: Study) -> Iterator[Any]:
    """The looks whose students are not kept."""
    for trial in study.trials:
        if not study.settings.get("keep_looks"):
            yield from trial.looks[:-1]
