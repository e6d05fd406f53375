"""What comparisons and studies have in common: a teacher measured once, students measured from disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lerobot.envs.configs import EnvConfig

from chordflow import stopping
from chordflow.console import bar
from chordflow.couplings import DatasetConfig, Split
from chordflow.errors import UserError
from chordflow.evaluation.paired import MeasureConfig
from chordflow.evaluation.yardstick import Held, Yardstick
from chordflow.experiments.config import TeacherConfig
from chordflow.experiments.measured import held_out
from chordflow.experiments.provenance import refuse_student_of_few_steps, weights_sha256
from chordflow.experiments.run_folder import new_folder, only_run
from chordflow.experiments.student_results import deployed_steps
from chordflow.policies import FlowPolicy, load_flow_policy, resolve_checkpoint
from chordflow.results.compare import Figures, Untrained
from chordflow.results.schema import HeldOut


class Measures(Protocol):
    """Settings of how gaps are measured."""

    def full(self) -> MeasureConfig:
        """The settings of `chordflow reflow` that say the same."""


class Common(Protocol):
    """The settings that are read here, of whatever trains students side by side."""

    @property
    def teacher(self) -> TeacherConfig:
        """The checkpoint."""

    @property
    def dataset(self) -> DatasetConfig:
        """The observations."""

    @property
    def output_dir(self) -> Path:
        """Where all of it lies."""

    @property
    def device(self) -> str | None:
        """Where it runs."""

    @property
    def rename_map(self) -> dict[str, str]:
        """Keys of observations."""

    @property
    def env(self) -> EnvConfig | None:
        """The environment of episodes."""

    @property
    def measure(self) -> Measures:
        """How gaps are measured."""


@dataclass(frozen=True)
class Teacher:
    """The teacher of all.

    Attributes:
        policy: loaded and frozen.
        folder: where it lies.
        num_steps: its Euler steps as deployed.
    """

    policy: FlowPolicy
    folder: Path
    num_steps: int


def open_teacher(config: Common) -> Teacher:
    """Loads and freezes the teacher.

    Raises:
        UserError: if it cannot be loaded, or is for one step alone.
    """
    folder = resolve_checkpoint(config.teacher.path, config.teacher.revision)
    refuse_student_of_few_steps(folder, config.teacher.path)
    policy = load_flow_policy(folder, device=config.device, rename_map=config.rename_map)
    policy.module.requires_grad_(False)
    return Teacher(policy, folder, deployed_steps(config.teacher, policy))


def open_yardstick(config: Common, teacher: Teacher, split: Split) -> Yardstick:
    """Solves the teacher on the held-out observations."""
    with bar("teacher") as progress:
        return Yardstick(
            teacher.policy, split.held_out, config.measure.full(), teacher.num_steps, progress.update
        )


def figures(held: Held) -> Figures:
    """What was measured of a policy, as results keep it."""
    curvature = held.curvature
    return Figures(curvature.s, curvature.curvature, curvature.interval, held.gaps)


def without_training(
    config: Common, teacher: Teacher, split: Split, yardstick: Yardstick
) -> tuple[HeldOut, Untrained]:
    """What is measured on, and the teacher's own figures, without episodes."""
    measured_on = held_out(
        split,
        yardstick.num_observations,
        config.measure.full().noises_per_observation,
        dataset=config.dataset,
        teacher_dir=teacher.folder,
    )
    return measured_on, Untrained(teacher.num_steps, figures(yardstick.teacher))


def reloaded(config: Common, student: str, sha256: str, what: str = "comparison") -> FlowPolicy:
    """A student as it lies on disk.

    Args:
        config: of the whole.
        student: its folder, relative to `output_dir`.
        sha256: of its weights when it was written.
        what: is gone on with, for the message.

    Raises:
        UserError: if it is not the one that was trained.
    """
    folder = config.output_dir / student
    if not folder.is_dir() or weights_sha256(folder) != sha256:
        raise UserError(
            f"output_dir={config.output_dir}: {student} is not there or not what was trained; restore it, or start a "
            f"new {what}."
        )
    policy = load_flow_policy(folder, device=config.device, rename_map=config.rename_map, field="student")
    policy.module.requires_grad_(False)
    return policy


@contextlib.contextmanager
def or_without(label: str, others: Iterable[str], resume_command: str, option: str) -> Iterator[None]:
    """Around a part of a run: where it fails, the message says how to go on without what is trained there.

    Args:
        label: of the run.
        others: names of all else that is trained.
        resume_command: which goes on.
        option: that names what is trained.

    Raises:
        UserError: the one that is raised within, with what it is about.
    """
    try:
        yield
    except UserError as error:
        named = ",".join(others)
        without = f" To go on without it: {resume_command} --{option}='[{named}]'" if named else ""
        raise UserError(f"{option}: {label}: {error}{without}") from error


def refuse_existing(output_dir: Path, file: str, resume_command: str) -> None:
    """Makes sure that a new folder is named.

    Args:
        output_dir: of the settings.
        file: that such a folder can be gone on with.
        resume_command: which does so.

    Raises:
        UserError: if the folder exists.
    """
    if (output_dir / file).is_file():
        raise UserError(
            f"output_dir={output_dir} exists already; name a new folder, or go on with: {resume_command}"
        )
    if output_dir.exists():
        raise UserError(f"output_dir={output_dir} exists already; name a new folder.")


@contextlib.contextmanager
def run_in(output_dir: Path, file: str, resume_command: str, *, resume: bool) -> Iterator[None]:
    """Around what runs in a folder: it is made or locked, and an interruption says how to go on.

    Args:
        output_dir: the folder.
        file: that says what was done.
        resume_command: which goes on with it.
        resume: whether the folder is there.

    Raises:
        UserError: if it cannot be made, or another run is at work in it.
    """

    def how() -> str:
        done = (output_dir / file).is_file()
        return f"go on with: {resume_command}" if done else "nothing was done yet, so start again."

    folder = contextlib.nullcontext() if resume else new_folder(output_dir)
    with stopping.says(how), folder, only_run(output_dir):
        yield


class Begun(Protocol):
    """What is compared of a record when it is gone on with."""

    @property
    def command(self) -> list[str]:
        """The command line that made it, or that added to it last."""

    @property
    def settings(self) -> dict[str, Any]:
        """All of them."""

    @property
    def device(self) -> str:
        """Its name."""

    @property
    def teacher(self) -> str:
        """The checkpoint."""

    @property
    def teacher_sha256(self) -> str:
        """Of its weights."""


def refuse_another(now: Begun, before: Begun, addable: tuple[str, ...], what: str = "comparison") -> None:
    """Makes sure that what is gone on with was begun with the same settings.

    Args:
        now: a record of which nothing is measured.
        before: the one that is gone on with.
        addable: settings that may be another; env and eval may where there was no environment.
        what: it is, for messages.

    Raises:
        UserError: naming the setting.
    """
    first_env = before.settings.get("env") is None
    for name, value in now.settings.items():
        if name in addable or (first_env and name in ("env", "eval")):
            continue
        if before.settings.get(name) != value:
            raise UserError(
                f"{name}: the {what} began with {before.settings.get(name)} and going on cannot change it; leave the "
                "option out, or start a new one."
            )
    if now.device != before.device:
        raise UserError(
            f"the {what} began on {before.device} and this is {now.device}: seconds of two machines are not side "
            "by side; start a new one."
        )
    if now.teacher_sha256 != before.teacher_sha256:
        raise UserError(
            f"teacher.path={now.teacher}: its weights are not those that the {what} began with; restore them or "
            "start a new one."
        )


def command_of(now: Begun, before: Begun) -> list[str]:
    """What makes a record that is gone on with: the command that it had, unless this one adds to it.

    Args:
        now: a record of which nothing is measured.
        before: the one that is gone on with.
    """
    names = now.settings.keys() - {"resume", "output_dir"}
    added = any(before.settings.get(name) != now.settings[name] for name in names)
    return now.command if added else before.command
