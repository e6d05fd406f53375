"""Several rounds of reflow: each student teaches the next (k-rectified flow, Liu et al. 2022, 2209.03003, alg. 1).

    OUTPUT_DIR/round_1/                   laid out as a run of its own, and so are the others
    OUTPUT_DIR/checkpoints -> round_2/checkpoints
    OUTPUT_DIR/results.json               all rounds' students against the first teacher

A round's own `results.json` compares its student with its own teacher.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from lerobot.utils.constants import CHECKPOINTS_DIR, LAST_CHECKPOINT_LINK, PRETRAINED_MODEL_DIR

from chordflow.console import bar, say
from chordflow.couplings.memory import enough_memory_at
from chordflow.errors import UserError
from chordflow.evaluation.measure import Yardstick
from chordflow.experiments.config import (
    AUTO,
    AutoRoundsConfig,
    CheckpointConfig,
    CouplingsConfig,
    ReflowJobConfig,
    StudentConfig,
)
from chordflow.experiments.measured import measured_students
from chordflow.experiments.provenance import Round, load_frozen, read_record, weights_sha256
from chordflow.experiments.reflow import Finished, begun, run_round, save_results
from chordflow.experiments.run_folder import has_checkpoint, new_folder, resumable, round_folder, show_round
from chordflow.experiments.train import Job
from chordflow.flow.seeds import derive_seed
from chordflow.options import plain
from chordflow.results.findings import ROUNDS_AUTO
from chordflow.results.paying import Gain, Standing, gain
from chordflow.results.schema import RESULTS, STUDENT, Finding, LossCurve, PolicyName, Results
from chordflow.results.study import Figures
from chordflow.results.wording import number as in_words
from chordflow.results.wording import percent, steps
from chordflow.training.checkpoints import training_step
from chordflow.training.distributed import current
from chordflow.training.methods import MethodConfig

EPISODES_OF_A_ROUND = 10_000_000
"""By how much the seeds of collecting episodes lie apart between rounds."""


def round_seed(seed: int, number: int) -> int:
    """The seed of a round: the job's own for the first, others for the rest."""
    return seed if number == 1 else derive_seed(seed, "round", number) % 2**31


def settings_of_round(
    config: ReflowJobConfig, number: int, output_dir: Path, teacher: Path | None
) -> ReflowJobConfig:
    """The settings of a round, as those of a job of one round.

    Args:
        config: of the whole job.
        number: of the round, from 1.
        output_dir: its folder.
        teacher: the student of the round before, which its student begins as; None for the first.
    """
    config = replace(config, rounds=1, auto_rounds=AutoRoundsConfig(), output_dir=output_dir)
    if number == 1:
        return config
    collect = config.collect
    if config.env is not None:
        collect = replace(collect, seed=collect.seed + (number - 1) * EPISODES_OF_A_ROUND)
    return replace(
        config,
        teacher=CheckpointConfig(str(teacher)),
        student=StudentConfig(train=config.student.train),
        # A store holds the first teacher's.
        couplings=CouplingsConfig(),
        collect=collect,
        seed=round_seed(config.seed, number),
    )


def check_teaches(config: MethodConfig, where: str) -> None:
    """Makes sure that a method's students can teach.

    Raises:
        UserError: beginning with `where`, if there is no teacher in the method, or its students are no flows.
    """
    method, name = config.build(), config.get_choice_name(type(config))
    if not method.needs.couplings:
        raise UserError(
            f"{where}method.type={name} has no teacher, so that a second round would be more of the first; give more "
            "steps instead, or choose method.type=reflow."
        )
    if method.step_counts is not None:
        trained = " or ".join(steps(count) for count in method.step_counts)
        raise UserError(
            f"{where}a student of method.type={name} with these settings is trained for {trained} alone, and its "
            "velocity elsewhere leads nowhere that another student could learn; choose method.type=reflow with times "
            "of all kinds."
        )


def reflow_rounds(config: ReflowJobConfig, command: list[str], resume_from: Path | None = None) -> Finished:
    """Trains and measures as many rounds as are asked for, or as pay.

    Every round has the same settings but for its seed. How the student begins and a store of couplings are for the
    first round: the others begin as their teachers, which make their couplings. In several processes (see
    `training.distributed.joined`) all train, and the first alone writes and measures.

    Args:
        config: all settings.
        command: the command line, for the results.
        resume_from: a checkpoint folder of any round of this run. Rounds before it stay as they are; those after it
            are kept as far as the student that taught them is still the same.

    Raises:
        UserError: for input that cannot be used.
    """
    if config.rounds != 1:
        check_teaches(config.method, f"rounds={config.rounds}: ")
    with begun(config, command, resume_from) as job:
        return run_round(job, resume_from) if config.rounds == 1 else _Rounds(job).run(resume_from)


class _Rounds:
    """The rounds of a run, one after the other."""

    def __init__(self, job: Job) -> None:
        self.job, self.root = job, job.config.output_dir
        rounds = job.config.rounds
        self.judge = Judge(job) if rounds == AUTO else None
        self.most = job.config.auto_rounds.most if rounds == AUTO else rounds
        self.students: list[Path] = []
        self.measured: list[Results | None] = []

    def run(self, resume_from: Path | None) -> Finished:
        """Resumes from a checkpoint, or begins."""
        begin = 1 if resume_from is None else int(read_record(resume_from / PRETRAINED_MODEL_DIR)["round"])
        for number in range(1, begin):
            self._take(number)
        if resume_from is not None:
            self._check_taught(resume_from, begin)
        kept, why = self.most, None
        for number in range(begin, self.most + 1):
            self._round(number, resume_from if number == begin else self._found(number))
            stopped = self.judge.after(self.students) if self.judge is not None else None
            if stopped is not None:
                kept, why = stopped
                break
        student = self.students[kept - 1]
        if not current().first:
            return Finished(student, None)
        show_round(self.root, kept)
        return Finished(student, self._all_measured(kept, why), self.job.log)

    def _take(self, number: int) -> None:
        """Takes a round as it stands."""
        folder = round_folder(self.root, number)
        last = folder / CHECKPOINTS_DIR / LAST_CHECKPOINT_LINK / PRETRAINED_MODEL_DIR
        if not last.is_dir():
            raise UserError(
                f"config_path: {last}, the student of round {number}, is missing; restore it, or start a new run."
            )
        self._check_taught(last.parent.resolve(), number)
        self._add(last.parent.resolve(), _results_of(folder))

    def _add(self, checkpoint: Path, measured: Results | None) -> None:
        self.students.append(checkpoint / PRETRAINED_MODEL_DIR)
        self.measured.append(measured)

    def _check_taught(self, checkpoint: Path, number: int) -> None:
        if number > 1 and not self._taught(checkpoint):
            raise UserError(
                f"config_path: {checkpoint} was not taught by {self.students[-1]}, the student of round {number - 1}; "
                f"restore that one, or resume from a checkpoint of round {number - 1}."
            )

    def _taught(self, checkpoint: Path) -> bool:
        """Whether a checkpoint was taught by the student of the round before."""
        teachers = read_record(checkpoint / PRETRAINED_MODEL_DIR).get("lineage") or [None]
        return bool(teachers[-1] == weights_sha256(self.students[-1]))

    def _found(self, number: int) -> Path | None:
        """The checkpoint that a round resumes from, if an earlier process has made one."""
        folder = round_folder(self.root, number)
        if not has_checkpoint(folder):
            return None
        last = (folder / CHECKPOINTS_DIR / LAST_CHECKPOINT_LINK).resolve()
        if self._taught(last):
            return last
        say(f"Round {number}: what is in {folder} was taught by another student, so it is made anew")
        return None

    def _round(self, number: int, go_on: Path | None) -> None:
        teacher_dir = self.students[-1] if number > 1 else self.job.teacher_dir
        config = settings_of_round(self.job.config, number, round_folder(self.root, number), teacher_dir)
        kept = _finished(config, go_on) if go_on is not None else None
        # All processes have looked at the folder before one of them changes it.
        current().wait()
        if kept is not None and go_on is not None:
            if current().first:
                show_round(self.root, number)
            self._add(go_on, kept)
            return
        say(f"Round {number} of {'at most ' if self.judge is not None else ''}{self.most}")
        job = replace(self.job, config=config)
        if number > 1:
            teacher = load_frozen(teacher_dir, config.device, config.rename_map)
            job = replace(job, teacher=teacher, teacher_dir=teacher_dir)
        of = Round(number, self.job.config, self.job.teacher_dir)
        with self._folder(number, new=go_on is None) as shows:
            finished = run_round(job, go_on, of=of, on_step=shows)
        self._add(finished.student.parent, finished.measured)
        if finished.measured is not None and number < self.most:
            say(f"Round {number}: {finished.measured.verdict}")

    @contextlib.contextmanager
    def _folder(self, number: int, new: bool) -> Iterator[Callable[[], None]]:
        """Makes a round's folder where it is new; what it yields makes the run's checkpoints those of the round."""
        folder, first, shown = round_folder(self.root, number), current().first, False

        def show() -> None:
            """Once, and as soon as the round has any."""
            nonlocal shown
            if first and not shown and has_checkpoint(folder):
                show_round(self.root, number)
                shown = True

        if not first:
            yield show
            return
        if new:
            # Of another round of this number, or one that was killed before its first checkpoint.
            shutil.rmtree(folder, ignore_errors=True)
        if number == 1:
            # The link is there before the first checkpoint, and so is the way to it at any moment.
            show_round(self.root, number)
        try:
            with new_folder(folder) if new else contextlib.nullcontext():
                show()
                yield show
        finally:
            show()
            if not has_checkpoint(self.root):
                (self.root / CHECKPOINTS_DIR).unlink(missing_ok=True)

    def _all_measured(self, kept: int, why: Finding | None) -> Results:
        """All rounds' students against the first teacher, that of round `kept` as the run's."""
        config, known = self.job.config, [results for results in self.measured if results is not None]
        taken, own = len(self.students), self.measured[kept - 1]
        names: list[PolicyName] = [STUDENT if n == kept else f"round_{n}" for n in range(1, taken + 1)]
        seeds = {f"round {n}": round_seed(config.seed, n) for n in range(2, taken + 1)}
        say(f"All {taken} rounds against the first teacher" if taken > 1 else "The round against the teacher")
        results = measured_students(
            self.job,
            dict(zip(names, self.students, strict=True)),
            seeds={"training": config.seed, **seeds},
            couplings=own.couplings if own is not None else None,
            loss=_joined([results.loss for results in known if results.loss is not None]),
            training_s=sum(results.training_s or 0.0 for results in known),
        )
        compared = _side_by_side(results, names, self.measured, config.num_inference_steps)
        first = [compared] if why is None else [why, compared]
        results = replace(results, findings=[*first, *results.findings])
        save_results(results, self.root)
        return results


def _finished(config: ReflowJobConfig, checkpoint: Path) -> Results | None:
    """The results of a round that needs no more training or measuring; None where it does."""
    results = _results_of(config.output_dir) if training_step(checkpoint) >= config.steps else None
    if results is None or results.settings.get("measure") != plain(config)["measure"]:
        return None
    sha256 = weights_sha256(checkpoint / PRETRAINED_MODEL_DIR)
    measured = any(info.name == STUDENT and info.weights_sha256 == sha256 for info in results.policies)
    return results if measured else None


def _results_of(folder: Path) -> Results | None:
    try:
        return Results.load(folder / RESULTS)
    except UserError:
        return None


def _side_by_side(
    results: Results, names: Sequence[PolicyName], own: Sequence[Results | None], num_steps: int
) -> Finding:
    """The rounds beside one another.

    Args:
        results: all students against the first teacher.
        names: of the rounds' students in them, the first round's first.
        own: of each round, its student against its own teacher.
        num_steps: Euler steps of the students.
    """
    texts, gaps = [], {}
    for number, (name, of_round) in enumerate(zip(names, own, strict=True), 1):
        parts = []
        curvature, gap = results.curvature_of(name), results.gap(name, num_steps, "deployed")
        if curvature is not None:
            parts.append(f"curvature {percent(curvature.curvature)}")
        if gap is not None:
            gaps[number] = gap.rms
            parts.append(f"action gap {percent(gap.rms)} to the deployed first teacher")
        taught = of_round.gap(STUDENT, num_steps, "deployed") if of_round and number > 1 else None
        if taught is not None:
            parts.append(f"{percent(taught.rms)} to its own teacher")
        texts.append(f"round {number}: {', '.join(parts)}")
    text = f"At {steps(num_steps)}, {'; '.join(texts)}"
    nearest = min(gaps, key=lambda number: gaps[number])
    return Finding("rounds", f"{text}; round {nearest} is nearest to the first teacher.")


def _joined(losses: Sequence[LossCurve]) -> LossCurve:
    """The loss of one round after the other; steps are counted on."""
    ends = accumulate((loss.steps[-1] if loss.steps else 0 for loss in losses), initial=0)
    counted = [end + step for end, loss in zip(ends, losses, strict=False) for step in loss.steps]
    return LossCurve(counted, [value for loss in losses for value in loss.losses])


class Judge:
    """Whether `--rounds=auto` continues: students against the first teacher, not on the episodes of the results."""

    def __init__(self, job: Job) -> None:
        self._job, self._rule = job, job.config.auto_rounds
        self._standings: dict[int, Standing] = {}

    def after(self, students: list[Path]) -> tuple[int, Finding] | None:
        """Whether the run ends with these students; every process has to ask, and the first one measures.

        Returns:
            The round whose student is the run's, the last one or the one before where the last one drifted away, and
            why the run ends; None where another round may pay.
        """
        gains, taken = [0.0, 0.0], len(students)
        if current().first:
            measured = self._gain(students)
            gains = [measured.curvature, measured.gap]
        curvature, gap = current().sum(gains)
        found = Gain(curvature, gap, self._rule.least_gain)
        if found.pays and taken < self._rule.most:
            say(f"Round {taken} pays: {found.reason}")
            return None
        kept = taken - 1 if found.drifted and taken > 1 else taken
        because = f"in round {taken} {found.reason}"
        if found.pays:
            because = f"auto_rounds.most={self._rule.most} allows no more, though {because}"
        text = (
            f"--rounds=auto took {in_words(taken)} round{'' if taken == 1 else 's'} and stopped because {because}; "
            f"the student is that of round {kept}."
        )
        say(text)
        return kept, Finding(ROUNDS_AUTO, text)

    def _gain(self, students: list[Path]) -> Gain:
        last = len(students)
        if missing := [number for number in (last - 1, last) if number not in self._standings]:
            self._measure({number: students[number - 1] for number in missing if number > 0})
        return gain(self._standings[last - 1], self._standings[last], self._rule.least_gain)

    def _measure(self, students: dict[int, Path]) -> None:
        """Nothing of it stays in memory while the next round trains."""
        config, teacher, split = self._job.config, self._job.teacher, self._job.split
        # A run that began with a number of rounds, or an older chordflow, has no such episodes.
        observations = split.judged or split.held_out
        steps, size = config.num_inference_steps, config.measure.batch_size
        with (
            resumable(config.output_dir),
            enough_memory_at("measure.batch_size", size, "noises were measured", teacher.device),
        ):
            measure = replace(config.measure, num_steps=[steps])
            deployed = config.teacher.deployed_steps(teacher)
            with bar("first teacher") as progress:
                yardstick = Yardstick(teacher, observations, measure, deployed, progress.update)
            self._standings[0] = _standing(yardstick.teacher, steps)
            for number, folder in students.items():
                student = load_frozen(folder, config.device, config.rename_map, STUDENT)
                with bar(f"round {number} against it") as progress:
                    self._standings[number] = _standing(
                        yardstick.of(STUDENT, student, progress.update), steps
                    )


def _standing(figures: Figures, num_steps: int) -> Standing:
    (rms,) = (row.rms for row in figures.gaps if (row.num_steps, row.reference) == (num_steps, "converged"))
    return Standing(figures.curvature, rms)
