"""Runs what is missing of a study: trains, measures what lies on disk, runs episodes, saves after every part."""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from chordflow import stopping
from chordflow.console import bar, say
from chordflow.errors import UserError
from chordflow.evaluation.measure import Held, Yardstick
from chordflow.experiments.measured import held_out
from chordflow.experiments.provenance import weights_sha256
from chordflow.experiments.run_folder import new_folder, only_run
from chordflow.experiments.study.config import StudyConfig
from chordflow.experiments.study.episodes import Episodes
from chordflow.experiments.study.plan import Plan, begun, make_plan, resumed
from chordflow.experiments.train import train_student
from chordflow.policies import FlowPolicy, load_flow_policy
from chordflow.results.schema import STUDENT
from chordflow.results.study import STUDY, Figures, Look, Study, Trial, Untrained


def run_study(
    config: StudyConfig,
    command: list[str],
    on_trial: Callable[[Study], None] = lambda study: None,
) -> Study:
    """Runs what is missing of a study; its file is written after every part of a trial.

    Args:
        config: all settings.
        command: the command line, for the file.
        on_trial: called with what is measured so far after the teacher and after every trial.

    Raises:
        UserError: for input that cannot be used.
    """
    output, resume = config.output_dir, resume_command(config.output_dir)
    there = (output / STUDY).is_file()
    if not config.resume and output.exists():
        also = f", or resume it with: {resume}" if there else ""
        raise UserError(f"output_dir={output} exists already; name a new folder{also}.")
    plan = make_plan(config)
    study = begun(plan, command)
    if config.resume:
        study = resumed(study, Study.load(output / STUDY), config.ADDABLE)
    for arm in study.left_out:
        say(f"Left out: {arm.name}: {arm.reason}")

    def how() -> str:
        return (
            f"resume with: {resume}"
            if (output / STUDY).is_file()
            else "nothing was done yet, so start again."
        )

    folder = contextlib.nullcontext() if config.resume else new_folder(output)
    episodes = Episodes(config, plan.teacher, plan.teacher_steps) if config.env is not None else None
    with stopping.says(how), folder, only_run(output):
        for part in _Run(plan, study, episodes).parts(on_trial):
            study = part
            study.save(output / STUDY)
    return study


def resume_command(output_dir: Path) -> str:
    """The command line that resumes a study."""
    return f"chordflow study --resume=true --config_path={shlex.quote(str(output_dir / STUDY))}"


class _Run:
    """A study on its way."""

    def __init__(self, plan: Plan, study: Study, episodes: Episodes | None) -> None:
        self.plan, self.study, self.episodes = plan, study, episodes
        self.output = plan.config.output_dir

    def parts(self, on_trial: Callable[[Study], None]) -> Iterator[Study]:
        """The study after each of its parts; whoever asks for the next one has saved it."""
        trials = self.plan.trials
        missing = [(arm, seed) for arm, seed in trials if not self._done(self.study.trial(arm, seed))]
        config = self.plan.config
        budget = f"{config.steps:,} steps" if config.steps is not None else f"{config.seconds:g} s"
        say(f"Study: {len(missing)} of {len(trials)} trials to go, {budget} each, on {self.study.device}")
        if missing or self.study.untrained is None:
            with bar("teacher") as progress:
                yardstick = Yardstick(
                    self.plan.teacher,
                    self.plan.split.held_out,
                    config.measure.full(),
                    self.plan.teacher_steps,
                    progress.update,
                )
            yield from self._without_training(yardstick)
            on_trial(self.study)
            for arm, seed in missing:
                yield from self._trial(yardstick, arm, seed)
                on_trial(self.study)
        yield self.study

    def _done(self, trial: Trial | None) -> bool:
        return trial is not None and all(self._measured(look) for look in trial.looks)

    def _measured(self, look: Look) -> bool:
        return look.figures is not None and (self.episodes is None or bool(look.success))

    def _without_training(self, yardstick: Yardstick) -> Iterator[Study]:
        """The teacher's own figures."""
        plan, config = self.plan, self.plan.config
        if self.study.untrained is None:
            measured_on = held_out(
                plan.split,
                yardstick.num_observations,
                config.measure.noises_per_observation,
                dataset=config.dataset,
                teacher_dir=plan.teacher_dir,
            )
            untrained = Untrained(plan.teacher_steps, _figures(yardstick, yardstick.teacher))
            self.study = replace(self.study, held_out=measured_on, untrained=untrained)
            yield self.study
        assert self.study.untrained is not None
        if self.episodes is not None and not self.study.untrained.success:
            untrained = replace(self.study.untrained, success=self.episodes.teacher())
            self.study = replace(self.study, untrained=untrained)
            yield self.study

    def _trial(self, yardstick: Yardstick, arm: str, seed: int) -> Iterator[Study]:
        """Trains where that is missing, and measures every look that is not measured."""
        label = f"{arm}, seed {seed}"
        trial = self.study.trial(arm, seed)
        if trial is None:
            with self._names(arm, label):
                trial = self._trained(arm, seed)
            yield self._with(trial)
        for place, look in enumerate(trial.looks):
            if not self._measured(look):
                at = label if look is trial.last else f"{label}, look {look.mark:g}"
                student = None
                if look.figures is None:
                    with self._names(arm, label), bar(f"{at}, gaps") as progress:
                        student = self._reloaded(look)
                        held = yardstick.of(STUDENT, student, progress.update)
                        look = replace(look, figures=_figures(yardstick, held))
                    trial = _with_look(trial, place, look)
                    yield self._with(trial)
                if self.episodes is not None and not look.success:
                    with self._names(arm, label):
                        student = student or self._reloaded(look)
                    folder = (self.output / look.student).parent
                    look = replace(look, success=self.episodes.student(STUDENT, student, folder, at))
                    trial = _with_look(trial, place, look)
                    yield self._with(trial)
            if look is not trial.last and not self.plan.config.keep_looks:
                # Only now, when its figures are on disk. Its folder holds the records of episodes, if there are any.
                folder = self.output / look.student
                shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(OSError):
                    folder.parent.rmdir()

    def _with(self, trial: Trial) -> Study:
        others = [t for t in self.study.trials if (t.arm, t.seed) != (trial.arm, trial.seed)]
        self.study = replace(self.study, trials=[*others, trial])
        return self.study

    def _trained(self, arm: str, seed: int) -> Trial:
        plan, config, folder = self.plan, self.plan.config, self.plan.folder(arm, seed)
        # Of a trial that was interrupted before it was written down; what it collects is written there.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        teacher = teacher_dir = None
        if (name := plan.planned[arm].arm.teacher) is not None:
            taught_by = self.study.trial(name, seed)
            assert taught_by is not None
            teacher, teacher_dir = self._reloaded(taught_by.last), self.output / taught_by.last.student
        return train_student(
            plan.job(arm, seed, teacher, teacher_dir),
            arm,
            seed,
            self.output,
            looks=plan.looks(arm),
            seconds=config.seconds,
            digest=config.SAME_COUPLINGS,
        )

    def _reloaded(self, look: Look) -> FlowPolicy:
        """A student as it lies on disk."""
        folder, config = self.output / look.student, self.plan.config
        if not folder.is_dir() or weights_sha256(folder) != look.weights_sha256:
            raise UserError(
                f"output_dir={self.output}: {look.student} is not there or not what was trained; restore it, or start "
                "a new study."
            )
        student = load_flow_policy(folder, device=config.device, rename_map=config.rename_map, field=STUDENT)
        student.module.requires_grad_(False)
        return student

    @contextlib.contextmanager
    def _names(self, arm: str, label: str) -> Iterator[None]:
        """Around a part of a trial: where it fails, the message names the arm and says how to leave it out."""
        try:
            yield
        except UserError as error:
            option = {"methods": "methods", "beginnings": "arms"}.get(self.plan.config.PRESET)
            ways = [
                one.arm.way.partition(",")[0] for one in self.plan.planned.values() if one.arm.name != arm
            ]
            others = ",".join(dict.fromkeys(ways))
            without = f" To resume without it: {resume_command(self.output)} --{option}='[{others}]'"
            raise UserError(f"arms: {label}: {error}{without if option and others else ''}") from error


def _with_look(trial: Trial, place: int, look: Look) -> Trial:
    return replace(trial, looks=[*trial.looks[:place], look, *trial.looks[place + 1 :]])


def _figures(yardstick: Yardstick, held: Held) -> Figures:
    """What was measured of a policy, as results keep it."""
    row = held.curvature
    return Figures(row.s, row.curvature, row.interval, held.gaps, yardstick.diversity(held))
