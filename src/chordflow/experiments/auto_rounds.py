"""Whether `chordflow reflow --rounds=auto` goes on: the students of two rounds against the first teacher."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from chordflow.console import bar, say
from chordflow.couplings.memory import enough_memory_at
from chordflow.evaluation.measure import Held, Yardstick
from chordflow.experiments.measured import deployed_steps
from chordflow.experiments.run_folder import resumable
from chordflow.experiments.train import Job
from chordflow.policies import load_flow_policy
from chordflow.results.findings import ROUNDS_AUTO
from chordflow.results.paying import Gain, Standing, gain
from chordflow.results.schema import STUDENT, Finding
from chordflow.results.wording import number as in_words
from chordflow.training.distributed import current


@dataclass(frozen=True)
class Stopped:
    """How a run of as many rounds as pay has ended.

    Attributes:
        taken: rounds that were trained.
        kept: the round whose student is the run's: the last one, or the one before where the last one drifted away.
        finding: how many were taken and why no more, for the results.
    """

    taken: int
    kept: int
    finding: Finding


class Judge:
    """Measures students against the teacher of the first round, on episodes that are not those of the results.

    Args:
        job: the run, with its first teacher.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._standings: dict[int, Standing] = {}

    def after(self, students: list[Path]) -> Stopped | None:
        """Whether the last of some rounds was the last one; every process has to ask, and the first one measures.

        Args:
            students: `pretrained_model` folders of all rounds so far.

        Returns:
            Why the run ends, or None where another round may pay.
        """
        gains = [0.0, 0.0]
        if current().first:
            found = self._gain(students)
            gains = [found.curvature, found.gap]
        curvature, gap = current().sum(gains)
        return self._stopped(Gain(curvature, gap, self._job.config.auto_rounds.least_gain), len(students))

    def _stopped(self, found: Gain, taken: int) -> Stopped | None:
        most = self._job.config.auto_rounds.most
        if found.pays and taken < most:
            say(f"Round {taken} pays: {found.reason}")
            return None
        kept = taken - 1 if found.drifted and taken > 1 else taken
        because = f"in round {taken} {found.reason}"
        if found.pays:
            because = f"auto_rounds.most={most} allows no more, though {because}"
        text = (
            f"--rounds=auto took {in_words(taken)} round{'' if taken == 1 else 's'} and stopped because {because}; "
            f"the student is that of round {kept}."
        )
        say(text)
        return Stopped(taken, kept, Finding(ROUNDS_AUTO, text))

    def _gain(self, students: list[Path]) -> Gain:
        last = len(students)
        missing = [number for number in (last - 1, last) if number not in self._standings]
        if missing:
            self._measure({number: students[number - 1] for number in missing if number > 0})
        return gain(self._standings[last - 1], self._standings[last], self._job.config.auto_rounds.least_gain)

    def _measure(self, students: dict[int, Path]) -> None:
        """Nothing of it stays in memory while the next round trains."""
        config, teacher, split = self._job.config, self._job.teacher, self._job.split
        # A run that began with a number of rounds, or an older chordflow, has no such episodes.
        observations = split.judged or split.held_out
        steps = config.num_inference_steps
        size = config.measure.batch_size
        with (
            resumable(config.output_dir),
            enough_memory_at("measure.batch_size", size, "noises were measured", teacher.device),
        ):
            with bar("first teacher") as progress:
                yardstick = Yardstick(
                    teacher,
                    observations,
                    replace(config.measure, num_steps=[steps]),
                    deployed_steps(config.teacher, teacher),
                    progress.update,
                )
            self._standings[0] = _standing(yardstick.teacher, steps)
            for number, folder in students.items():
                student = load_flow_policy(
                    folder, device=config.device, rename_map=config.rename_map, field="student"
                )
                with bar(f"round {number} against it") as progress:
                    held = yardstick.of(STUDENT, student, progress.update)
                self._standings[number] = _standing(held, steps)


def _standing(held: Held, num_steps: int) -> Standing:
    (rms,) = (row.rms for row in held.gaps if (row.num_steps, row.reference) == (num_steps, "converged"))
    return Standing(held.curvature.curvature, rms)
