"""Trains one student, for `chordflow reflow` and for studies alike."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from lerobot.utils.constants import PRETRAINED_MODEL_DIR
from torch import Tensor

from chordflow.console import bar, say
from chordflow.couplings import CouplingBatch, CouplingBuffer, Split
from chordflow.couplings.store import CouplingStore
from chordflow.errors import UserError
from chordflow.experiments.collect import RunObservations, run_observations
from chordflow.experiments.config import ReflowJobConfig
from chordflow.experiments.provenance import (
    COLLECTED,
    HELD_OUT,
    JUDGED,
    STORE,
    Round,
    weights_sha256,
    write_configs,
)
from chordflow.experiments.stored_couplings import open_couplings
from chordflow.policies import FlowPolicy, resolve_checkpoint, save_student
from chordflow.policies.base import PREFIX_ROLES
from chordflow.results.schema import LossCurve
from chordflow.results.study import Look, Trial
from chordflow.training.checkpoints import load_weights, training_step
from chordflow.training.distributed import current
from chordflow.training.methods import Method
from chordflow.training.steps import LoopConfig, Passed, Stopwatch, Training
from chordflow.training.student import Student, make_student, shares_prefix


@dataclass(frozen=True)
class Job:
    """What a training begins with.

    Attributes:
        config: its settings.
        teacher: the loaded teacher, frozen.
        teacher_dir: its local folder.
        split: the observations, with actions where the method looks at them.
        command: the command line, for the results.
    """

    config: ReflowJobConfig
    teacher: FlowPolicy
    teacher_dir: Path
    split: Split
    command: list[str] = field(default_factory=list)

    def loop_config(self, seconds: float | None = None) -> LoopConfig:
        """What the loop needs to know.

        Args:
            seconds: the budget, in place of steps.
        """
        config = self.config
        return LoopConfig(
            steps=config.steps if seconds is None else None,
            seconds=seconds,
            seed=config.seed,
            log_freq=config.log_freq,
            save_freq=config.save_freq,
            save_minutes=config.save_minutes,
            optimizer=config.optimizer,
            scheduler=config.scheduler,
            ema=config.ema,
        )


@dataclass(frozen=True)
class Ready:
    """A student before its first step, and what it is trained on.

    Attributes:
        job: which.
        method: the loss.
        student: itself.
        observations: that couplings are made for.
        buffer: of couplings.
        store: that they come from, if it is not the teacher.
        start: the step that it begins at.
        shared: whether teacher and student share one encoded prefix.
        prefix_trains: whether the student's prefix trains.
    """

    job: Job
    method: Method
    student: Student
    observations: RunObservations
    buffer: CouplingBuffer
    store: CouplingStore | None
    start: int
    shared: bool
    prefix_trains: bool

    def write(self, folder: Path, weights: dict[str, Tensor], of: Round | None = None) -> None:
        """Writes a `pretrained_model` folder.

        Args:
            folder: where.
            weights: the trained ones, by name.
            of: the round of a job of several, for the student's record.
        """
        config, teacher_dir, student = self.job.config, self.job.teacher_dir, self.student
        save_student(
            student.policy, teacher_dir, folder, {**student.fresh, **weights}, config.num_inference_steps
        )
        split = self.job.split
        trained_on = {
            STORE: self.store.manifest.made_with_sha256 if self.store is not None else None,
            HELD_OUT: split.held_out_episodes,
            JUDGED: split.judged_episodes,
            COLLECTED: self.observations.ranges(),
        }
        write_configs(config, teacher_dir, folder, of, trained_on)


@contextlib.contextmanager
def ready(job: Job, resume_from: Path | None = None) -> Iterator[Ready]:
    """Makes the student and opens what it is trained on; environments stay open until the end.

    Args:
        job: which; the parts that are trained are written into its config, so that the student's record names them.
        resume_from: a checkpoint folder of this run.

    Raises:
        UserError: for settings that cannot be used.
    """
    config, teacher = job.config, job.teacher
    roles = config.student.train = config.student.train or list(teacher.default_train_roles)
    init_path = config.student.init_path
    student = make_student(
        teacher,
        job.teacher_dir,
        config.student.init,
        roles,
        seed=config.seed,
        rename_map=config.rename_map,
        init_dir=resolve_checkpoint(init_path, None, "student.init_path") if init_path is not None else None,
    )
    method = config.method.build()
    shared = shares_prefix(teacher, student.policy, roles)
    prefix_trains = bool(set(roles) & set(PREFIX_ROLES))
    store = open_couplings(config, teacher, job.split, with_context=shared)
    start = training_step(resume_from) if resume_from is not None else 0
    if start > config.steps:
        raise UserError(f"steps={config.steps}: the run has done {start} already; give at least that many.")
    with run_observations(config, job.split.train, teacher, student.policy, start) as observations:
        if resume_from is not None:
            # The student may have to act before the first step.
            load_weights(resume_from, student.trainable)
        buffer = CouplingBuffer(
            teacher,
            observations.train,
            config.coupling,
            config.buffer,
            seed=config.seed,
            batch_size=config.batch_size,
            parts=config.gradient_accumulation_steps,
            share=current(),
            num_workers=config.num_workers,
            student_encode=None if shared else student.policy.encode,
            student_context=not prefix_trains,
            source=store,
            needs=method.needs,
        )
        yield Ready(job, method, student, observations, buffer, store, start, shared, prefix_trains)


def check(job: Job) -> None:
    """Makes sure that a training can begin, before others have run for hours.

    Raises:
        UserError: if its buffer does not fit its steps.
    """
    config = job.config
    CouplingBuffer(
        job.teacher,
        job.split.train,
        config.coupling,
        config.buffer,
        seed=0,
        batch_size=config.batch_size,
        parts=config.gradient_accumulation_steps,
        needs=config.method.build().needs,
    )


def train_student(
    job: Job,
    arm: str,
    seed: int,
    root: Path,
    *,
    looks: Sequence[float],
    seconds: float | None = None,
    digest: bool = False,
) -> Trial:
    """Trains within a budget and writes `pretrained_model` into the trial's folder, whole or not at all.

    With a budget of steps it is the student of the same job of `chordflow reflow`.

    Args:
        job: of the trial, with its folder, which is there.
        arm: its name.
        seed: of the trial; a later round of a chain has one of its own in its job.
        root: folder of the study.
        looks: after how much of the budget, in its unit, the student is written, rising; the last is the budget.
        seconds: the budget, in place of the job's steps.
        digest: whether to hash the couplings.

    Returns:
        The trial, of which nothing is measured.

    Raises:
        UserError: for settings that cannot be used, a loss that is not finite, or a file that cannot be written.
    """
    job = replace(job, config=deepcopy(job.config))
    config, watch, label = job.config, Stopwatch(job.teacher.device), f"{arm}, seed {seed}"
    found: list[Look] = []
    hashed, losses = hashlib.sha256(), _LossLog(config.log_freq)

    def hash_batch(batch: CouplingBatch) -> None:
        for tensor in (batch.noise, batch.endpoint) if digest else ():
            # As bytes: numpy has no bfloat16.
            hashed.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())

    with ready(job) as begun, bar(label) as progress, begun.buffer.enough_memory():
        if not begun.shared:
            say(f"{label}: {own_prefix(begun.prefix_trains)}")
        largest = 0

        def show(step: int, samples: int, gone: float) -> None:
            nonlocal largest
            largest = max(largest, begun.buffer.num_bytes)
            note = f"{samples:,} samples" if step else "couplings"
            done = step if seconds is None else min(gone, seconds)
            progress.update(done, config.steps if seconds is None else seconds, note)

        training = Training(
            job.loop_config(seconds),
            begun.student.policy,
            begun.student.trainable,
            begun.buffer,
            begun.method,
            watch=watch,
            on_fill=lambda gone: show(training.passed.step, training.passed.samples, gone),
            on_batch=hash_batch,
        )

        def write(passed: Passed, folder: Path) -> None:
            student = _write(begun, folder, training.state.student)
            place, sha256 = os.path.relpath(student, root), weights_sha256(student)
            found.append(Look(looks[len(found)], passed.step, passed.seconds, place, sha256))

        def look(passed: Passed) -> None:
            """Writes the student for every mark but the last that has been passed."""
            gone = passed.step if seconds is None else passed.seconds
            with watch.stopped():
                while len(found) < len(looks) - 1 and gone >= (mark := looks[len(found)]):
                    write(passed, config.output_dir / f"look_{mark:g}")

        look(training.passed)
        for passed in training.run():
            losses.add(passed, last=passed.step == training.config.steps)
            begun.observations.step = passed.step
            show(passed.step, passed.samples, passed.seconds)
            look(passed)
        passed = training.passed
        look(passed)
        if passed.step:
            # A clock that ended it may have begun to make what the next step needs.
            for _ in begun.buffer.fill(passed.step - 1):
                pass
            training.check()
        config.steps = max(1, passed.step)
        write(passed, config.output_dir)
        rollouts = begun.observations.summary()
    return Trial(
        arm=arm,
        seed=seed,
        training_s=passed.seconds,
        ready_s=passed.ready_s,
        steps=passed.step,
        samples=passed.samples,
        loss=passed.loss,
        losses=losses.curve,
        buffer_bytes=largest,
        looks=found,
        couplings_sha256=hashed.hexdigest() if digest else "",
        rollouts=rollouts,
    )


class _LossLog:
    """The loss by step: that of the first step, then means since the entry before."""

    def __init__(self, every: int) -> None:
        self._every = every
        self.curve = LossCurve([], [])
        self._since: list[float] = []

    def add(self, passed: Passed, last: bool) -> None:
        """Takes down a step."""
        assert passed.loss is not None
        self._since.append(passed.loss)
        if passed.step == 1 or passed.step % self._every == 0 or last:
            self.curve.steps.append(passed.step)
            self.curve.losses.append(sum(self._since) / len(self._since))
            self._since = []


def _write(begun: Ready, run_folder: Path, weights: dict[str, Tensor]) -> Path:
    """Writes the checkpoint into a folder that appears whole or not at all."""
    folder = run_folder / PRETRAINED_MODEL_DIR
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        begun.write(temporary, weights)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except OSError as error:
        raise UserError(
            f"output_dir={run_folder}: the student cannot be written ({error.strerror}); make room and resume."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def own_prefix(trains: bool) -> str:
    """What it means that teacher and student do not share one prefix, where the student's `trains` or not."""
    if trains:
        return "the student's prefix trains, so every step encodes its observations anew, which is slow"
    return "the student encodes its own prefix"
