"""The demo: the main job on the tiny teacher, then paired episodes and a moving picture.

OUTPUT/vlm, OUTPUT/teacher    the teacher, shipped or made from scratch
OUTPUT/dataset                the expert's demonstrations
OUTPUT/student                what `chordflow reflow` leaves
OUTPUT/results.json, report.html, table.md, figures, demo.gif
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import shlex
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import draccus
from draccus.utils import deflatten
from lerobot.utils.constants import CHECKPOINTS_DIR, LAST_CHECKPOINT_LINK, PRETRAINED_MODEL_DIR

from chordflow import stopping
from chordflow.checks import Checked, number
from chordflow.console import bar, say
from chordflow.demo.flips import TeacherStarts
from chordflow.demo.teacher import (
    DATASET_FOLDER,
    DATASET_REPO_ID,
    TEACHER_FOLDER,
    make_teacher,
    place_teacher,
    record_demonstrations,
)
from chordflow.errors import UserError
from chordflow.experiments.config import ReflowJobConfig
from chordflow.experiments.measured import with_findings
from chordflow.experiments.provenance import read_record
from chordflow.experiments.rounds import reflow_rounds
from chordflow.experiments.run_folder import has_checkpoint, new_folder, refuse_existing
from chordflow.policies import FlowPolicy, load_flow_policy
from chordflow.reporting.pictures import MAX_BYTES, save_clip
from chordflow.results.schema import RESULTS, Clip, PolicyName, Results, Rollouts
from chordflow.results.wording import plural
from chordflow.rollouts.acting import Actor
from chordflow.rollouts.episodes import Episode, Timing
from chordflow.rollouts.runner import run_episodes
from chordflow.rollouts.summaries import motion_rows, success_rows, timing_row
from lerobot_env_detour import DetourEnvConfig

ANY_WAY = "go any way"
CHECKED = 100
"""Episodes for which flips are compared with sides."""
SHOWN = 3
"""Episodes in the moving picture."""
MARGIN = 0.02
"""Of the non-inferiority statement."""
BATCH_SIZE = 64
STUDENT_FOLDER = "student"


@dataclass
class DemoConfig(Checked):
    """Run the whole job on a tiny SmolVLA that has to go round an obstacle, by the left or the right.

    Attributes:
        output_dir: new folder for everything.
        from_scratch: record the demonstrations and train the teacher too, by what made the shipped one.
        demonstrations: episodes to record for the shipped teacher's dataset; from scratch takes the recipe's.
        steps: optimiser steps of the student.
        episodes: paired episodes of "go any way"; half as many run under each of "go left" and "go right".
        seed: of training.
        resume: resume a demo that was stopped, with the same options.
    """

    output_dir: Path
    from_scratch: bool = False
    demonstrations: int = number(400, at_least=10)
    steps: int = number(2_000, at_least=1)
    episodes: int = number(500, at_least=2)
    seed: int = 1000
    resume: bool = False


def run_demo(config: DemoConfig) -> Results:
    """Runs the demo; raises UserError if the output folder exists, or there is nothing in it to resume."""
    with stopping.noting(lambda: _how_to_resume(config)), _folder(config) as checkpoint:
        return _run(config, checkpoint)


@contextlib.contextmanager
def _folder(config: DemoConfig) -> Iterator[Path | None]:
    """The demo's folder, which a demo that is stopped before it trains removes; yields what to resume from."""
    output, student = config.output_dir, config.output_dir / STUDENT_FOLDER
    if config.resume:
        if not has_checkpoint(student):
            raise UserError(f"output_dir={output}: it holds no demo to resume; leave --resume out.")
        checkpoint = (student / CHECKPOINTS_DIR / LAST_CHECKPOINT_LINK).resolve()
        began = read_record(checkpoint / PRETRAINED_MODEL_DIR)["seed"]
        if began != config.seed:
            raise UserError(f"seed={config.seed}: the demo began with {began}; give that one.")
        yield checkpoint
        return
    refuse_existing(output, _how_to_resume(config) if has_checkpoint(student) else "")
    with new_folder(output):
        try:
            yield None
        except KeyboardInterrupt:
            # Training a teacher takes long.
            if not has_checkpoint(student) and not config.from_scratch:
                for left in output.iterdir():
                    shutil.rmtree(left)
            raise


def _how_to_resume(config: DemoConfig) -> str:
    output = config.output_dir
    if not has_checkpoint(output / STUDENT_FOLDER):
        return "the student has no checkpoint yet, so start again, in a new folder if this one is there."
    given = {name: getattr(config, name) for name in ("steps", "episodes", "seed")}
    options = [f"--{name}={value}" for name, value in given.items() if value != getattr(DemoConfig, name)]
    command = ["chordflow", "demo", "--resume=true", f"--output_dir={output}", *options]
    return f"resume with: {shlex.join(command)}"


def _run(config: DemoConfig, checkpoint: Path | None) -> Results:
    started = time.perf_counter()
    output = config.output_dir
    teacher_dir = _teacher_and_data(config) if checkpoint is None else output / TEACHER_FOLDER
    options = reflow_options(config, teacher_dir)
    command = ["chordflow", "reflow", *(f"--{name}={value}" for name, value in options.items())]
    say(shlex.join(command))
    job = draccus.decode(ReflowJobConfig, deflatten(options, sep="."))
    finished = reflow_rounds(job, command, checkpoint)
    policies: dict[PolicyName, FlowPolicy] = {
        "teacher": load_flow_policy(teacher_dir, device="cpu"),
        "student": load_flow_policy(finished.student, device="cpu", field="student"),
    }
    steps = finished.results.teacher_num_steps
    runs: dict[tuple[PolicyName, int], list[Episode]] = {}
    success, motion, timing = [], [], []
    for name, n in (("teacher", steps), ("teacher", 2), ("teacher", 1), ("student", 1)):
        reference, spent = runs.get(("teacher", steps)), Timing()
        episodes = _episodes(policies[name], n, config.episodes, f"{name}, {plural(n, 'step')}", spent)
        runs[name, n] = episodes
        timing.append(timing_row(name, n, spent))
        success += success_rows(episodes, name, reference, margin=MARGIN)
        motion += motion_rows(episodes, name, reference, config.seed)
    free = [episode for episode in runs["teacher", steps] if episode.task == ANY_WAY]
    starts = TeacherStarts(policies["teacher"], steps, free[:CHECKED])
    compared: tuple[tuple[PolicyName, int], ...] = (("teacher", 2), ("student", 1))
    results = dataclasses.replace(
        finished.results,
        # As it is found from the demo's own folder.
        student=os.path.relpath(finished.student, output),
        success=success,
        motion=motion,
        flip_checks=[starts.check(name, policies[name], n, runs[name, n]) for name, n in compared],
        rollouts=Rollouts("detour", "paired", 0, BATCH_SIZE, 0, MARGIN),
        timing=timing,
        clips=[_moving_picture(output, runs, steps)],
    )
    results = with_findings(results)
    results.save(output / RESULTS)
    say(f"The demo took {time.perf_counter() - started:.0f} s.")
    return results


def reflow_options(config: DemoConfig, teacher_dir: Path) -> dict[str, Any]:
    """The main job's options, where they differ from its defaults: a tiny model needs a hundredfold learning rate."""
    return {
        "teacher.path": str(teacher_dir),
        "dataset.repo_id": DATASET_REPO_ID,
        "dataset.root": str(config.output_dir / DATASET_FOLDER),
        "output_dir": str(config.output_dir / STUDENT_FOLDER),
        "device": "cpu",
        "steps": config.steps,
        "optimizer.lr": 2e-3,
        "num_workers": 0,
        # Half of the default: what an interval spans follows from the episodes.
        "measure.converged_noises": 2,
        "seed": config.seed,
    }


def _teacher_and_data(config: DemoConfig) -> Path:
    output = config.output_dir
    if config.from_scratch:
        with bar("demonstrations") as recording, bar("teacher") as training:
            return make_teacher(output, record_progress=recording.update, train_progress=training.update)
    teacher_dir = place_teacher(output)
    with bar("demonstrations") as progress:
        record_demonstrations(output / DATASET_FOLDER, config.demonstrations, progress.update)
    return teacher_dir


def _episodes(policy: FlowPolicy, num_steps: int, count: int, name: str, timing: Timing) -> list[Episode]:
    """`count` episodes of "go any way" and half as many of each side, the same seeds for every policy."""
    half, left, right = count // 2, 10**4, 2 * 10**4
    plan = {
        ANY_WAY: range(count),
        "go left": range(left, left + half),
        "go right": range(right, right + half),
    }
    episodes: list[Episode] = []
    done = itertools.count(1)
    with bar(f"episodes of the {name}") as progress:
        for instruction, seeds in plan.items():
            episodes += run_episodes(
                Actor(policy, DetourEnvConfig(instruction=instruction), num_steps),
                seeds,
                batch_size=BATCH_SIZE,
                timing=timing,
                record_frames=seeds[:SHOWN] if instruction == ANY_WAY else (),
                progress=lambda _: progress.update(next(done), count + 2 * half),
            )
    return episodes


def _moving_picture(output: Path, runs: dict[tuple[PolicyName, int], list[Episode]], steps: int) -> Clip:
    """The same starts side by side, the first ones by seed: the picture shows the run, not a choice from it."""
    filmed = {
        f"{name}, {plural(n, 'step')}": [(e.seed, e.success, e.frames) for e in runs[name, n]]
        for name, n in (("teacher", steps), ("teacher", 1), ("student", 1))
    }
    return save_clip(filmed, output, "demo.gif", MAX_BYTES)
