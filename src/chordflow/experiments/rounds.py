"""Several rounds of reflow: each student teaches the next (k-rectified flow, Liu et al. 2022, 2209.03003, alg. 1).

    OUTPUT_DIR/round_1/                   laid out as a run of its own, and so are the others
    OUTPUT_DIR/checkpoints -> round_2/checkpoints
    OUTPUT_DIR/results.json               all rounds' students against the first teacher

A round's own `results.json` holds its student against its own teacher.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import draccus
from lerobot.utils.constants import CHECKPOINTS_DIR, LAST_CHECKPOINT_LINK, PRETRAINED_MODEL_DIR

from chordflow.console import say
from chordflow.errors import UserError
from chordflow.experiments.auto_rounds import Judge, Stopped
from chordflow.experiments.config import AUTO, ReflowJobConfig
from chordflow.experiments.provenance import Round, read_record, weights_sha256
from chordflow.experiments.reflow import RESULTS, Finished, begun, run_round, save_results
from chordflow.experiments.round_settings import check_teaches, round_seed, settings_of_round
from chordflow.experiments.run_folder import has_checkpoint, new_folder, round_folder, show_round
from chordflow.experiments.student_results import History, measured_students
from chordflow.experiments.train import Job
from chordflow.policies import load_flow_policy
from chordflow.results.schema import STUDENT, Finding, LossCurve, PolicyName, Results
from chordflow.results.wording import percent, steps
from chordflow.training.checkpoints import training_step
from chordflow.training.distributed import current


def reflow_rounds(config: ReflowJobConfig, command: list[str], resume_from: Path | None = None) -> Finished:
    """Trains and measures as many rounds as are asked for, or as pay.

    Every round has the same settings but for its seed. How the student begins and a store of couplings are for the
    first round: the others begin as their teachers, and ask them. In several processes (see
    `training.distributed.joined`) all train, and the first alone writes and measures.

    Args:
        config: all settings.
        command: the command line, for the results.
        resume_from: a checkpoint folder of any round of this run. Rounds before it stay as they are; those after it
            are kept as far as the student that taught them is still the same.

    Returns:
        The last round's student, and all rounds' results.

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
        self.job = job
        self.root = job.config.output_dir
        rounds = job.config.rounds
        self.judge = Judge(job) if rounds == AUTO else None
        self.most = job.config.auto_rounds.most if rounds == AUTO else rounds
        self.students: list[Path] = []
        self.measured: list[Results | None] = []

    def run(self, resume_from: Path | None) -> Finished:
        begin = 1 if resume_from is None else int(read_record(resume_from / PRETRAINED_MODEL_DIR)["round"])
        for number in range(1, begin):
            self._take(number)
        if resume_from is not None:
            self._check_taught(resume_from, begin)
        stopped: Stopped | None = None
        for number in range(begin, self.most + 1):
            self._round(number, resume_from if number == begin else self._found(number))
            stopped = self.judge.after(self.students) if self.judge is not None else None
            if stopped is not None:
                break
        kept = stopped.kept if stopped is not None else self.most
        student = self.students[kept - 1]
        if not current().first:
            return Finished(student, None)
        show_round(self.root, kept)
        return Finished(student, self._all_measured(kept, stopped))

    def _take(self, number: int) -> None:
        """Takes a round as it stands."""
        folder = round_folder(self.root, number)
        last = folder / CHECKPOINTS_DIR / LAST_CHECKPOINT_LINK / PRETRAINED_MODEL_DIR
        if not last.is_dir():
            raise UserError(
                f"config_path: {last}, the student of round {number}, is missing; restore it, or start a new run."
            )
        self._check_taught(last.parent.resolve(), number)
        self.students.append(last.parent.resolve() / PRETRAINED_MODEL_DIR)
        self.measured.append(_results_of(folder))

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
        """The checkpoint that a round goes on from, if an earlier process has come that far."""
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
            self.students.append(go_on / PRETRAINED_MODEL_DIR)
            self.measured.append(kept)
            return
        say(f"Round {number} of {'at most ' if self.judge is not None else ''}{self.most}")
        job = replace(self.job, config=config)
        if number > 1:
            teacher = load_flow_policy(teacher_dir, device=config.device, rename_map=config.rename_map)
            teacher.module.requires_grad_(False)
            job = replace(job, teacher=teacher, teacher_dir=teacher_dir)
        of = Round(number, self.job.config, self.job.teacher_dir)
        with self._folder(number, new=go_on is None) as shows:
            finished = run_round(job, go_on, of=of, on_step=shows)
        self.students.append(finished.student)
        self.measured.append(finished.measured)
        if finished.measured is not None and number < self.most:
            say(f"Round {number}: {finished.measured.verdict}")

    @contextlib.contextmanager
    def _folder(self, number: int, new: bool) -> Iterator[_Shows]:
        """Makes a round's folder where it is new, and the run's checkpoints those of the round once it has any."""
        shows = _Shows(self.root, number)
        if not current().first:
            yield shows
            return
        folder = round_folder(self.root, number)
        if new:
            # Of another round of this number, or one that was killed before its first checkpoint.
            shutil.rmtree(folder, ignore_errors=True)
        if number == 1:
            # The link is there before the first checkpoint, and so is the way to it at any moment.
            show_round(self.root, number)
        try:
            with new_folder(folder) if new else contextlib.nullcontext():
                shows()
                yield shows
        finally:
            shows()
            if not has_checkpoint(self.root):
                (self.root / CHECKPOINTS_DIR).unlink(missing_ok=True)

    def _all_measured(self, kept: int, stopped: Stopped | None) -> Results:
        """All rounds' students against the first teacher.

        Args:
            kept: the round whose student is the run's.
            stopped: why there are no more, where that was not known before.
        """
        config, known = self.job.config, [results for results in self.measured if results is not None]
        taken = len(self.students)
        names: list[PolicyName] = [STUDENT if n == kept else f"round_{n}" for n in range(1, taken + 1)]
        own = self.measured[kept - 1]
        history = History(
            couplings=own.couplings if own is not None else None,
            loss=_joined([results.loss for results in known if results.loss is not None]),
            training_s=sum(results.training_s or 0.0 for results in known),
            seeds={
                "training": config.seed,
                **{f"round {n}": round_seed(config.seed, n) for n in range(2, taken + 1)},
            },
        )
        say(f"All {taken} rounds against the first teacher" if taken > 1 else "The round against the teacher")
        results = measured_students(self.job, dict(zip(names, self.students, strict=True)), history)
        compared = _side_by_side(results, names, self.measured, config.num_inference_steps)
        first = [compared] if stopped is None else [stopped.finding, compared]
        results = replace(results, findings=[*first, *results.findings])
        save_results(results, self.root)
        return results


class _Shows:
    """Makes a run's checkpoints those of a round, once and as soon as it has one."""

    def __init__(self, root: Path, number: int) -> None:
        self._root, self._number, self._shown = root, number, False

    def __call__(self) -> None:
        if self._shown or not current().first or not has_checkpoint(round_folder(self._root, self._number)):
            return
        show_round(self._root, self._number)
        self._shown = True


def _finished(config: ReflowJobConfig, checkpoint: Path) -> Results | None:
    """The results of a round that needs no more training or measuring; None where it does."""
    if training_step(checkpoint) < config.steps:
        return None
    results = _results_of(config.output_dir)
    if results is None or results.settings.get("measure") != json.loads(
        json.dumps(draccus.encode(config.measure))
    ):
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
    said, gaps = [], {}
    for number, (name, of_round) in enumerate(zip(names, own, strict=True), 1):
        parts = []
        curvature, gap = results.curvature_of(name), results.gap(name, num_steps, "deployed")
        if curvature is not None:
            parts.append(f"curvature {percent(curvature.curvature)}")
        if gap is not None:
            gaps[number] = gap.rms
            parts.append(f"action gap {percent(gap.rms)} to the first teacher")
        taught = of_round.gap(STUDENT, num_steps, "deployed") if of_round and number > 1 else None
        if taught is not None:
            parts.append(f"{percent(taught.rms)} to its own teacher")
        said.append(f"round {number}: {', '.join(parts)}")
    text = f"At {steps(num_steps)}, {'; '.join(said)}"
    nearest = min(gaps, key=lambda number: gaps[number])
    return Finding("rounds", f"{text}; round {nearest} is nearest to the first teacher.")


def _joined(losses: Sequence[LossCurve]) -> LossCurve:
    """The loss of one round after the other; steps are counted on."""
    counted, values, before = [], [], 0
    for loss in losses:
        counted += [before + step for step in loss.steps]
        values += loss.losses
        before = counted[-1] if counted else 0
    return LossCurve(counted, values)
