"""Trains one student, for `chordflow reflow` and for studies alike."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lerobot.utils.constants import PRETRAINED_MODEL_DIR
from torch import Tensor

from chordflow.console import bar, say
from chordflow.couplings import CouplingBatch, CouplingBuffer, Observations, Split
from chordflow.couplings.store import CouplingStore
from chordflow.disk import whole_folder
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
from chordflow.experiments.share import RunLogger
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
    """What a training begins with: settings, the frozen teacher with its folder, and the observations.

    Attributes:
        split: with actions where the method looks at them.
        command: the command line, for the results.
        log: what Weights & Biases is told; None where it is not asked for.
    """

    config: ReflowJobConfig
    teacher: FlowPolicy
    teacher_dir: Path
    split: Split
    command: list[str] = field(default_factory=list)
    log: RunLogger | None = None

    def loop_config(self, seconds: float | None = None) -> LoopConfig:
        """What the loop needs to know; with `seconds` as the budget in place of steps, where they are given."""
        names = {f.name for f in fields(LoopConfig)} & vars(self.config).keys()
        config = LoopConfig(**{name: getattr(self.config, name) for name in names})
        return config if seconds is None else replace(config, steps=None, seconds=seconds)


@dataclass(frozen=True)
class Ready:
    """A student before its first step, and what it is trained on.

    Attributes:
        observations: that couplings are made for.
        store: that they come from, if it is not the teacher.
        start: the step that the student begins at.
        own_prefix: why teacher and student do not share one encoded prefix; empty where they do.
    """

    job: Job
    method: Method
    student: Student
    observations: RunObservations
    buffer: CouplingBuffer
    store: CouplingStore | None
    start: int
    own_prefix: str

    def write(self, folder: Path, weights: dict[str, Tensor], of: Round | None = None) -> None:
        """Writes a `pretrained_model` folder of these trained weights; `of` is the round, of a job of several."""
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

    The parts that are trained are written into the job's config, so that the student's record names them.

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
        buffer = make_buffer(
            job,
            observations.train,
            share=current(),
            num_workers=config.num_workers,
            student_encode=None if shared else student.policy.encode,
            student_context=not prefix_trains,
            source=store,
        )
        own_prefix = ""
        if prefix_trains:
            own_prefix = (
                "the student's prefix trains, so every step encodes its observations anew, which is slow"
            )
        elif not shared:
            own_prefix = "the student encodes its own prefix"
        method = config.method.build()
        yield Ready(job, method, student, observations, buffer, store, start, own_prefix)


def make_buffer(job: Job, observations: Observations, **options: Any) -> CouplingBuffer:
    """The buffer of a job, empty; `options` are those of `CouplingBuffer` that other parts of the job decide.

    Raises:
        UserError: if it does not fit the job's steps.
    """
    config = job.config
    return CouplingBuffer(
        job.teacher,
        observations,
        config.coupling,
        config.buffer,
        seed=config.seed,
        batch_size=config.batch_size,
        parts=config.gradient_accumulation_steps,
        needs=config.method.build().needs,
        **options,
    )


def refuse_unused_points(config: ReflowJobConfig) -> None:
    """Not among the settings' own checks: several methods that are compared share them.

    Raises:
        UserError: if states of the trajectory are kept that the method does not train on.
    """
    points = config.buffer.path_points
    if points is not None and not config.method.build().needs.paths:
        raise UserError(
            f"buffer.path_points={points}: with these settings method {config.method_name} does not train on states of "
            "the trajectory; leave it out, or give --method.path_share with reflow or endpoint."
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
    """Trains within a budget; with one of steps it is the student of the same job of `chordflow reflow`.

    Args:
        job: of the trial, with its folder, which is there.
        arm: its name.
        seed: of the trial; a later round of a chain has one of its own in its job.
        root: folder of the study.
        looks: after how much of the budget the student is written, rising; the last is the budget.
        seconds: the budget, in place of the job's steps.
        digest: whether to hash the couplings.

    Raises:
        UserError: for settings that cannot be used, a loss that is not finite, or a file that cannot be written.
    """
    job = replace(job, config=deepcopy(job.config))
    config, watch, label = job.config, Stopwatch(job.teacher.device), f"{arm}, seed {seed}"
    found: list[Look] = []
    hashed, losses = hashlib.sha256(), list[float]()

    def hash_batch(batch: CouplingBatch) -> None:
        for tensor in (batch.noise, batch.endpoint) if digest else ():
            # As bytes: numpy has no bfloat16.
            hashed.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())

    with ready(job) as begun, bar(label) as progress, begun.buffer.enough_memory():
        if begun.own_prefix:
            say(f"{label}: {begun.own_prefix}")
        largest = 0

        def show(passed: Passed, gone: float) -> None:
            nonlocal largest
            largest = max(largest, begun.buffer.num_bytes)
            note = f"{passed.samples:,} samples" if passed.step else "couplings"
            if seconds is None:
                progress.update(passed.step, config.steps, note)
            else:
                progress.update(min(gone, seconds), seconds, note)

        training = Training(
            job.loop_config(seconds),
            begun.student.policy,
            begun.student.trainable,
            begun.buffer,
            begun.method,
            watch=watch,
            on_fill=lambda gone: show(training.passed, gone),
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
            assert passed.loss is not None
            losses.append(passed.loss)
            begun.observations.step = passed.step
            show(passed, passed.seconds)
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
        losses=_curve(losses, config.log_freq, ends=seconds is None),
        buffer_bytes=largest,
        looks=found,
        couplings_sha256=hashed.hexdigest() if digest else "",
        rollouts=rollouts,
    )


def _curve(losses: list[float], every: int, *, ends: bool) -> LossCurve:
    """The first loss, then means since the entry before; the last entry is the end where training `ends` by steps."""
    last = len(losses)
    steps = [n for n in range(1, last + 1) if n == 1 or n % every == 0 or (ends and n == last)]
    means = [sum(losses[start:stop]) / (stop - start) for start, stop in pairwise([0, *steps])]
    return LossCurve(steps, means)


def _write(begun: Ready, run_folder: Path, weights: dict[str, Tensor]) -> Path:
    """Writes the checkpoint into a folder that appears whole or not at all."""
    folder = run_folder / PRETRAINED_MODEL_DIR
    try:
        with whole_folder(folder) as temporary:
            begun.write(temporary, weights)
    except OSError as error:
        raise UserError(
            f"output_dir={run_folder}: the student cannot be written ({error.strerror}); make room and resume."
        ) from error
    return folder
