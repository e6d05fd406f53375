"""How much it matters what a student begins with: several beginnings, the same couplings, looked at on the way."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from chordflow.console import bar, say
from chordflow.couplings import CouplingBatch
from chordflow.evaluation.yardstick import Yardstick
from chordflow.experiments.compare_setup import refuse_several_processes
from chordflow.experiments.compare_training import Budget, train_student
from chordflow.experiments.init_study_config import STUDY, InitStudyConfig
from chordflow.experiments.init_study_setup import InitBed, begun, gone_on_with, made
from chordflow.experiments.provenance import weights_sha256
from chordflow.experiments.side_by_side import (
    figures,
    open_yardstick,
    or_without,
    refuse_existing,
    reloaded,
    run_in,
    without_training,
)
from chordflow.results.init_study import Arm, Checkpoint, InitRun, InitStudy
from chordflow.results.schema import LossCurve
from chordflow.training.timed import Passed, Source

STUDENTS = "students"
"""Folder of all runs; beside it lie the teacher's episodes."""


def study_init(
    config: InitStudyConfig,
    command: list[str],
    on_run: Callable[[InitStudy], None] = lambda study: None,
) -> InitStudy:
    """Runs what is missing of a study; its file is written after every part of a run.

    Args:
        config: all settings.
        command: the command line, for the file.
        on_run: called with what is measured so far after the teacher and after every run.

    Raises:
        UserError: for input that cannot be used.
    """
    refuse_several_processes("a study", "train each student by chordflow reflow --student.init")
    output = config.output_dir
    if not config.resume:
        refuse_existing(output, STUDY, resume_command(output))
    before = InitStudy.load(output / STUDY) if config.resume else None
    bed = made(config)
    study = begun(bed, command)
    if before is not None:
        study = gone_on_with(study, before)
    for arm in study.left_out:
        say(f"Left out: {arm.beginning}: {arm.reason}")
    with run_in(output, STUDY, resume_command(output), resume=config.resume):
        return _run(bed, study, on_run)


def resume_command(output_dir: Path) -> str:
    """The command line that goes on with a study."""
    return f"chordflow study init --resume=true --config_path={shlex.quote(str(output_dir / STUDY))}"


def run_folder(output_dir: Path, arm: Arm, seed: int) -> Path:
    """Where a run of a study lies."""
    return output_dir / STUDENTS / arm.beginning / f"lr_{arm.learning_rate:g}" / f"seed_{seed}"


def _run(bed: InitBed, study: InitStudy, on_run: Callable[[InitStudy], None]) -> InitStudy:
    # Whatever else the machine does meets all arms alike, and an interrupted study has all of a seed.
    pairs = [(arm, seed) for seed in bed.config.seeds for arm in bed.arms]
    done = {(run.arm, run.seed) for run in study.runs if all(_measured(bed, c) for c in run.checkpoints)}
    missing = [(arm, seed) for arm, seed in pairs if (arm.name, seed) not in done]
    say(
        f"Study: {len(missing)} of {len(pairs)} runs to go, {study.steps:,} steps each, looked at after "
        f"{', '.join(f'{step:,}' for step in study.at)}, on {study.device}"
    )
    path = bed.config.output_dir / STUDY
    if missing or study.untrained is None:
        yardstick = open_yardstick(bed.config, bed.teacher, bed.split)
        study = _without_training(bed, study, yardstick)
        on_run(study)
        for arm, seed in missing:
            for further in _one(bed, study, yardstick, arm, seed):
                study = further
                study.save(path)
            on_run(study)
    study.save(path)
    return study


def _measured(bed: InitBed, checkpoint: Checkpoint) -> bool:
    return checkpoint.figures is not None and (bed.episodes is None or bool(checkpoint.success))


def _without_training(bed: InitBed, study: InitStudy, yardstick: Yardstick) -> InitStudy:
    """The study with the teacher's own figures."""
    if study.untrained is None:
        held_out, untrained = without_training(bed.config, bed.teacher, bed.split, yardstick)
        study = replace(study, held_out=held_out, untrained=untrained)
        study.save(bed.config.output_dir / STUDY)
    assert study.untrained is not None
    if bed.episodes is not None and not study.untrained.success:
        study = replace(study, untrained=replace(study.untrained, success=bed.episodes.teacher()))
        study.save(bed.config.output_dir / STUDY)
    return study


def _one(bed: InitBed, study: InitStudy, yardstick: Yardstick, arm: Arm, seed: int) -> Iterator[InitStudy]:
    """The study with one run more, after each of its parts."""
    label = f"{arm.name}, seed {seed}"
    run = next((r for r in study.runs if (r.arm, r.seed) == (arm.name, seed)), None)
    others = dict.fromkeys(other.beginning for other in bed.arms if other.beginning != arm.beginning)
    fails = partial(or_without, label, others, resume_command(bed.config.output_dir), "arms")
    if run is None:
        with fails():
            run = _trained(bed, arm, seed, label)
        yield _with(study, run)
    for place, checkpoint in enumerate(run.checkpoints):
        if not _measured(bed, checkpoint):
            checkpoint = _looked_at(bed, yardstick, checkpoint, label, fails)
            checkpoints = [*run.checkpoints[:place], checkpoint, *run.checkpoints[place + 1 :]]
            run = replace(run, checkpoints=checkpoints)
            yield _with(study, run)
        if checkpoint is not run.checkpoints[-1] and not bed.config.keep_checkpoints:
            # Only now, when its figures are on disk.
            folder = bed.config.output_dir / checkpoint.student
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                # It holds the records of episodes where there were some.
                folder.parent.rmdir()


def _with(study: InitStudy, run: InitRun) -> InitStudy:
    others = [r for r in study.runs if (r.arm, r.seed) != (run.arm, run.seed)]
    return replace(study, runs=[*others, run])


def _looked_at(
    bed: InitBed,
    yardstick: Yardstick,
    checkpoint: Checkpoint,
    label: str,
    fails: Callable[[], AbstractContextManager[None]],
) -> Checkpoint:
    """A checkpoint with what was not measured of it."""
    config, label = bed.config, f"{label}, step {checkpoint.step}"
    with fails():
        student = reloaded(config, checkpoint.student, checkpoint.weights_sha256, "study")
    if checkpoint.figures is None:
        with fails(), bar(f"{label}, gaps") as progress:
            checkpoint = replace(
                checkpoint, figures=figures(yardstick.of("student", student, progress.update))
            )
    if bed.episodes is not None and not checkpoint.success:
        folder = (config.output_dir / checkpoint.student).parent
        success = bed.episodes.student("student", student, folder, label)
        checkpoint = replace(checkpoint, success=success)
    return checkpoint


class Digest:
    """Couplings on their way to a student, and a hash of all that have passed.

    Args:
        source: of the couplings.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._hash = hashlib.sha256()

    @property
    def parts(self) -> int:
        """Micro-batches of a step."""
        return self._source.parts

    @property
    def step_size(self) -> int:
        """Couplings of a step."""
        return self._source.step_size

    @property
    def num_bytes(self) -> int:
        """Memory of what is kept, in bytes."""
        return self._source.num_bytes

    @property
    def sha256(self) -> str:
        """Of the noises and endpoints so far, in their order."""
        return self._hash.hexdigest()

    def fill(self, step: int) -> Iterator[int]:
        """Makes what `step` needs, piece by piece."""
        return self._source.fill(step)

    def batch(self, step: int, part: int = 0) -> CouplingBatch:
        """A micro-batch of `step`."""
        batch = self._source.batch(step, part)
        for tensor in (batch.noise, batch.endpoint):
            # As bytes: numpy has no bfloat16.
            self._hash.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return batch


class LossLog:
    """The loss by step: that of the first step, then means since the entry before.

    Args:
        every: steps between entries.
        last: the last step, which has one in any case.
    """

    def __init__(self, every: int, last: int) -> None:
        self._every, self._last, self._since = every, last, 0
        self._sum = 0.0
        self.curve = LossCurve([], [])

    def add(self, passed: Passed) -> None:
        """Takes down a step; whatever else is told between steps is passed over."""
        steps = self.curve.steps
        if passed.loss is None or passed.steps != (steps[-1] if steps else 0) + self._since + 1:
            return
        self._since += 1
        self._sum += passed.loss
        if not steps or passed.steps % self._every == 0 or passed.steps == self._last:
            steps.append(passed.steps)
            self.curve.losses.append(self._sum / self._since)
            self._since, self._sum = 0, 0.0


def _trained(bed: InitBed, arm: Arm, seed: int, label: str) -> InitRun:
    config, folder = bed.config, run_folder(bed.config.output_dir, arm, seed)
    # Of a run that was interrupted before it was written down.
    shutil.rmtree(folder, ignore_errors=True)
    digests: list[Digest] = []
    log = LossLog(config.log_freq, config.steps)

    def seen_by(source: Source) -> Digest:
        digests.append(Digest(source))
        return digests[-1]

    trained = train_student(
        bed.job(arm, seed, folder),
        Budget(config.steps, None),
        bed.teacher.policy,
        bed.teacher.folder,
        bed.split,
        label=label,
        look_at=config.checkpoints or [],
        on_step=log.add,
        seen_by=seen_by,
    )
    return InitRun(
        arm=arm.name,
        seed=seed,
        training_s=trained.passed.seconds,
        samples=trained.passed.samples,
        couplings_sha256=digests[0].sha256,
        loss=log.curve,
        checkpoints=[
            Checkpoint(step, os.path.relpath(student, config.output_dir), weights_sha256(student))
            for step, student in sorted(trained.looks.items())
        ],
    )
