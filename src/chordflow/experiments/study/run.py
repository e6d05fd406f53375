"""Runs what is missing of a study: trains, measures what lies on disk, runs episodes, saves after every part."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from lerobot.envs.configs import EnvConfig

from chordflow import stopping
from chordflow.console import bar, say
from chordflow.errors import UserError
from chordflow.evaluation.measure import Yardstick
from chordflow.evaluation.paired import MeasureConfig
from chordflow.experiments.arms import EPISODES, Count
from chordflow.experiments.measured import held_out
from chordflow.experiments.provenance import load_frozen, weights_sha256
from chordflow.experiments.run_folder import command_to_resume, new_folder, only_run, refuse_existing
from chordflow.experiments.study.config import EpisodesConfig, StudyConfig
from chordflow.experiments.study.plan import Plan, begun, make_plan, resumed
from chordflow.experiments.train import train_student
from chordflow.policies import FlowPolicy
from chordflow.results.schema import STUDENT, TEACHER, SuccessRow
from chordflow.results.study import STUDY, Look, Study, Trial, Untrained
from chordflow.rollouts.acting import Actor
from chordflow.rollouts.episodes import Episode
from chordflow.rollouts.runner import open_runner
from chordflow.rollouts.store import EpisodeStore, arm_settings
from chordflow.rollouts.summaries import success_rows

FREE_STEPS = (1, 2)
"""Euler steps at which the teacher acts untrained."""


def run_study(
    config: StudyConfig, command: list[str], on_trial: Callable[[Study], None] = lambda study: None
) -> Study:
    """Runs what is missing of a study; its file is written after every part of a trial.

    Args:
        config: all settings.
        command: the command line, for the file.
        on_trial: called with what is measured so far, after the teacher and after every trial.

    Raises:
        UserError: for input that cannot be used.
    """
    output = config.output_dir
    file, resume = output / STUDY, f"resume with: {command_to_resume('study', output / STUDY)}"
    if not config.resume:
        refuse_existing(output, resume if file.is_file() else "")
    plan = make_plan(config)
    study = begun(config, plan, command)
    if config.resume:
        study = resumed(study, Study.load(file))
    for arm in study.left_out:
        say(f"Left out: {arm.name}: {arm.reason}")
    episodes = None
    if config.env is not None:
        episodes = _Episodes(output, plan, config.env, config.eval)
        episodes.check(f"teacher.path={config.teacher.path}")
    run = _Run(output, plan, study, config.measure.full(), config.keep_looks, episodes)

    def how() -> str:
        return resume if file.is_file() else "nothing was done yet, so start again."

    folder = contextlib.nullcontext() if config.resume else new_folder(output)
    with stopping.noting(how), folder, only_run(output):
        run.all(on_trial)
    return run.study


@dataclass
class _Run:
    """A study on its way; its own settings are taken apart before, and those of training are in the plan's jobs.

    Attributes:
        output: its folder.
        study: what is measured so far.
        measure: how policies are measured.
        keep_looks: whether students stay that were looked at on their way.
        episodes: that policies run; None without an environment.
    """

    output: Path
    plan: Plan
    study: Study
    measure: MeasureConfig
    keep_looks: bool
    episodes: _Episodes | None

    def _save(self, study: Study) -> None:
        study.save(self.output / STUDY)
        self.study = study

    def _save_trial(self, trial: Trial) -> Trial:
        others = [t for t in self.study.trials if (t.arm, t.seed) != (trial.arm, trial.seed)]
        self._save(replace(self.study, trials=[*others, trial]))
        return trial

    def all(self, on_trial: Callable[[Study], None]) -> None:
        """Does whatever is missing."""
        plan, study = self.plan, self.study
        missing = [(arm, seed) for arm, seed in plan.trials if not self._done(study.trial(arm, seed))]
        budget = f"{study.steps:,} steps" if study.steps is not None else f"{study.seconds:g} s"
        say(f"Study: {len(missing)} of {len(plan.trials)} trials to go, {budget} each, on {study.device}")
        if missing or study.untrained is None:
            with bar("teacher") as progress:
                yardstick = Yardstick(
                    plan.teacher, plan.split.held_out, self.measure, plan.teacher_steps, progress.update
                )
            self._without_training(yardstick)
            on_trial(self.study)
            for arm, seed in missing:
                self._trial(yardstick, arm, seed)
                on_trial(self.study)
        self._save(self.study)

    def _done(self, trial: Trial | None) -> bool:
        return trial is not None and all(self._measured(look) for look in trial.looks)

    def _measured(self, look: Look) -> bool:
        return look.figures is not None and (self.episodes is None or bool(look.success))

    def _without_training(self, yardstick: Yardstick) -> None:
        """The teacher's own figures and episodes."""
        plan, untrained = self.plan, self.study.untrained
        if untrained is None:
            untrained = Untrained(plan.teacher_steps, yardstick.teacher)
            noises = self.measure.noises_per_observation
            on = held_out(plan.split, yardstick.num_observations, noises, plan.teacher_dir)
            self._save(replace(self.study, held_out=on, untrained=untrained))
        if self.episodes is not None and not untrained.success:
            untrained = replace(untrained, success=self.episodes.teacher())
            self._save(replace(self.study, untrained=untrained))

    def _trial(self, yardstick: Yardstick, arm: str, seed: int) -> None:
        """Trains where that is missing, and measures every look that is not measured."""
        label = f"{arm}, seed {seed}"
        trial = self.study.trial(arm, seed)
        if trial is None:
            with self._names(arm, label):
                trial = self._save_trial(self._trained(arm, seed))
        for place, look in enumerate(trial.looks):
            if not self._measured(look):
                trial = self._measure(yardstick, trial, place, label)
            if look.mark != trial.last.mark and not self.keep_looks:
                # Only now, when its figures are on disk. Its folder holds the records of episodes, if there are any.
                folder = self.output / look.student
                shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(OSError):
                    folder.parent.rmdir()

    def _measure(self, yardstick: Yardstick, trial: Trial, place: int, label: str) -> Trial:
        """The trial with what was missing of a look."""
        look, before, after = trial.looks[place], trial.looks[:place], trial.looks[place + 1 :]
        at = f"{label}, look {look.mark:g}" if after else label
        with self._names(trial.arm, label):
            student = self._reloaded(trial.arm, look)
            if look.figures is None:
                with bar(f"{at}, gaps") as progress:
                    look = replace(look, figures=yardstick.of(STUDENT, student, progress.update))
                trial = self._save_trial(replace(trial, looks=[*before, look, *after]))
        if self.episodes is not None and not look.success:
            look = replace(look, success=self.episodes.student(student, look, at))
            trial = self._save_trial(replace(trial, looks=[*before, look, *after]))
        return trial

    def _trained(self, arm: str, seed: int) -> Trial:
        plan, folder = self.plan, self.plan.folder(arm, seed)
        # Of a trial that was interrupted before it was written down; what it collects is written there.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        teacher, teacher_dir, steps = None, None, plan.arms[arm].steps
        if (name := plan.arms[arm].teacher) is not None:
            taught_by = self.study.trial(name, seed)
            assert taught_by is not None
            teacher, teacher_dir = self._reloaded(name, taught_by.last), self.output / taught_by.last.student
        return train_student(
            plan.job(arm, seed, teacher, teacher_dir),
            arm,
            seed,
            self.output,
            looks=[steps] if steps is not None else self.study.looks,
            seconds=self.study.seconds,
            # All arms of beginnings have the same couplings, which a hash proves.
            digest=self.study.preset == "beginnings",
        )

    def _reloaded(self, arm: str, look: Look) -> FlowPolicy:
        """A student as it lies on disk."""
        folder = self.output / look.student
        if not folder.is_dir() or weights_sha256(folder) != look.weights_sha256:
            raise UserError(
                f"output_dir={self.output}: {look.student} is not there or not what was trained; restore it, or start "
                "a new study."
            )
        job = self.plan.jobs[arm]
        return load_frozen(folder, job.device, job.rename_map, STUDENT)

    @contextlib.contextmanager
    def _names(self, arm: str, label: str) -> Iterator[None]:
        """Context of a part of a trial: where it fails, the message names the arm and how to leave it out."""
        try:
            yield
        except UserError as error:
            option = {"methods": "methods", "beginnings": "arms"}.get(self.study.preset)
            ways = [one.way.partition(",")[0] for one in self.plan.arms.values() if one.name != arm]
            others = ",".join(dict.fromkeys(ways))
            resume = command_to_resume("study", self.output / STUDY)
            without = f" To resume without it: {resume} --{option}='[{others}]'"
            raise UserError(f"arms: {label}: {error}{without if option and others else ''}") from error


@dataclass
class _Episodes:
    """Episodes of a study, all with the same noise."""

    output: Path
    plan: Plan
    env: EnvConfig
    options: EpisodesConfig

    def check(self, given: str) -> None:
        """Makes sure that the teacher, `given` by an option, can act in the environment; UserError if not."""
        with open_runner(self.env, 1) as runner:
            runner.check(self.plan.teacher, self.options.seed, given)

    def teacher(self) -> list[SuccessRow]:
        """The teacher's success untrained at one and two steps, and as deployed."""
        rows: list[SuccessRow] = []
        for num_steps in sorted({*FREE_STEPS} - {self.plan.teacher_steps}):
            rows += success_rows(self._of_teacher(num_steps), TEACHER, self.deployed)
        return [*rows, *success_rows(self.deployed, TEACHER)]

    @cached_property
    def deployed(self) -> list[Episode]:
        """The episodes of the teacher as deployed."""
        return self._of_teacher(self.plan.teacher_steps)

    def student(self, policy: FlowPolicy, look: Look, label: str) -> list[SuccessRow]:
        """A student's success at one step, paired with the teacher as deployed."""
        folder = (self.output / look.student).parent
        return success_rows(self._run(label, policy, 1, folder), STUDENT, self.deployed)

    def _of_teacher(self, num_steps: int) -> list[Episode]:
        folder = self.output / TEACHER / f"{num_steps}_steps"
        return self._run(TEACHER, self.plan.teacher, num_steps, folder)

    def _run(self, label: str, policy: FlowPolicy, num_steps: int, folder: Path) -> list[Episode]:
        options = self.options
        actor = Actor(policy, self.env, num_steps, n_action_steps=options.n_action_steps)
        store = EpisodeStore(folder / EPISODES, arm_settings(actor))
        with (
            bar(f"{label}, episodes at {num_steps}") as progress,
            open_runner(self.env, options.batch_size, options.num_workers) as runner,
        ):
            episodes = runner.run(
                actor,
                options.seeds,
                store=store,
                progress=Count(progress, len(options.seeds) * len(runner.tasks())),
            )
        store.compact()
        return episodes
