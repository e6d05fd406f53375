"""Rounds of reflow studied: how the student begins, what it is taught, and when another round stops paying."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from chordflow.console import bar, say
from chordflow.errors import UserError
from chordflow.evaluation.yardstick import Yardstick
from chordflow.experiments.compare_setup import refuse_several_processes
from chordflow.experiments.compare_training import Budget, train_student
from chordflow.experiments.provenance import weights_sha256
from chordflow.experiments.rounds_study_config import STUDY, RoundsStudyConfig
from chordflow.experiments.rounds_study_setup import RoundsBed, begun, gone_on_with, made, run_folder
from chordflow.experiments.side_by_side import (
    figures,
    open_yardstick,
    refuse_existing,
    reloaded,
    run_in,
    without_training,
)
from chordflow.results.rounds_study import RoundArm, RoundRun, RoundsStudy

WHOSE = "student"
"""Name of every student in its rows; which one it is says the run."""


def study_rounds(
    config: RoundsStudyConfig,
    command: list[str],
    on_run: Callable[[RoundsStudy], None] = lambda study: None,
) -> RoundsStudy:
    """Runs what is missing of a study; its file is written after every part of a run.

    Args:
        config: all settings.
        command: the command line, for the file.
        on_run: called with what is measured so far after the teacher and after every run.

    Raises:
        UserError: for input that cannot be used.
    """
    refuse_several_processes("a study", "train rounds by chordflow reflow")
    output = config.output_dir
    if not config.resume:
        refuse_existing(output, STUDY, resume_command(output))
    before = RoundsStudy.load(output / STUDY) if config.resume else None
    bed = made(config)
    study = begun(bed, command)
    if before is not None:
        study = gone_on_with(study, before)
    with run_in(output, STUDY, resume_command(output), resume=config.resume):
        return _run(bed, study, on_run)


def resume_command(output_dir: Path) -> str:
    """The command line that goes on with a study."""
    return f"chordflow study rounds --resume=true --config_path={shlex.quote(str(output_dir / STUDY))}"


def _run(bed: RoundsBed, study: RoundsStudy, on_run: Callable[[RoundsStudy], None]) -> RoundsStudy:
    wanted = list(_wanted(bed.config))
    missing = [
        (arm, round, seed) for arm, round, seed in wanted if not _done(bed, study.run(arm, round, seed))
    ]
    say(f"Study: {len(missing)} of {len(wanted)} rounds to go, {study.steps:,} steps each, on {study.device}")
    path = bed.config.output_dir / STUDY
    if missing or study.untrained is None:
        yardstick = open_yardstick(bed.config, bed.teacher, bed.split)
        study = _without_training(bed, study, yardstick)
        on_run(study)
        for arm, round, seed in missing:
            for further in _one(bed, study, yardstick, arm, round, seed):
                study = further
                study.save(path)
            on_run(study)
    study.save(path)
    return study


def _wanted(config: RoundsStudyConfig) -> Iterator[tuple[RoundArm, int, int]]:
    """Every run once, seed by seed, so that a study that is stopped has all of a seed; teachers before students."""
    seen = set()
    for seed in config.seeds:
        for arm in config.arms:
            for round in range(1, arm.rounds_of(config.rounds) + 1):
                folder = run_folder(config, arm, round, seed)
                if folder not in seen:
                    seen.add(folder)
                    yield arm, round, seed


def _done(bed: RoundsBed, run: RoundRun | None) -> bool:
    return run is not None and run.figures is not None and (bed.episodes is None or bool(run.success))


def _without_training(bed: RoundsBed, study: RoundsStudy, yardstick: Yardstick) -> RoundsStudy:
    """The study with the first teacher's own figures."""
    path = bed.config.output_dir / STUDY
    if study.untrained is None:
        held_out, untrained = without_training(bed.config, bed.teacher, bed.split, yardstick)
        spread = yardstick.diversity(yardstick.teacher)
        study = replace(study, held_out=held_out, untrained=untrained, diversity=spread)
        study.save(path)
    assert study.untrained is not None
    if bed.episodes is not None and not study.untrained.success:
        study = replace(study, untrained=replace(study.untrained, success=bed.episodes.teacher()))
        study.save(path)
    return study


def _one(
    bed: RoundsBed, study: RoundsStudy, yardstick: Yardstick, arm: RoundArm, round: int, seed: int
) -> Iterator[RoundsStudy]:
    """The study with one run more, after each of its parts."""
    label = f"{arm.name}, round {round}, seed {seed}"
    run = study.run(arm, round, seed)
    if run is None:
        run = _trained(bed, study, arm, round, seed, label)
        yield _with(study, run)
    student = reloaded(bed.config, run.student, run.weights_sha256, "study")
    if run.figures is None:
        with bar(f"{label}, gaps") as progress:
            held = yardstick.of(WHOSE, student, progress.update)
        run = replace(run, figures=figures(held), diversity=yardstick.diversity(held))
        yield _with(study, run)
    if bed.episodes is not None and not run.success:
        folder = run_folder(bed.config, arm, round, seed)
        run = replace(run, success=bed.episodes.student(WHOSE, student, folder, label))
        yield _with(study, run)


def _with(study: RoundsStudy, run: RoundRun) -> RoundsStudy:
    return replace(study, runs=[*(other for other in study.runs if other.student != run.student), run])


def _trained(
    bed: RoundsBed, study: RoundsStudy, arm: RoundArm, round: int, seed: int, label: str
) -> RoundRun:
    config, folder = bed.config, run_folder(bed.config, arm, round, seed)
    # Of a run that was interrupted before it was written down.
    shutil.rmtree(folder, ignore_errors=True)
    teacher, teacher_dir = bed.teacher.policy, bed.teacher.folder
    if round > 1:
        taught_by = study.run(arm, round - 1, seed)
        assert taught_by is not None
        teacher = reloaded(config, taught_by.student, taught_by.weights_sha256, "study")
        teacher_dir = config.output_dir / taught_by.student
    job = bed.job(arm, round, seed, folder, teacher_dir)
    try:
        trained = train_student(
            job,
            Budget(job.steps, None),
            teacher,
            teacher_dir,
            bed.splits[arm.real_data_share > 0],
            label=label,
        )
    except UserError as error:
        raise UserError(f"{label}: {error}") from error
    return RoundRun(
        start=arm.start_of(round),
        solver=arm.solver,
        real_data_share=arm.real_data_share,
        round=round,
        seed=seed,
        steps=trained.passed.steps,
        student=os.path.relpath(trained.student, config.output_dir),
        weights_sha256=weights_sha256(trained.student),
        training_s=trained.passed.seconds,
        samples=trained.passed.samples,
        loss=trained.passed.loss,
    )
