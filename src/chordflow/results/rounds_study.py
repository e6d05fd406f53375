"""What `chordflow study rounds` measures: students of one, two, three rounds, several ways, over several seeds.

One file, written whole after each part of a run, so that a study can be stopped and gone on with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from chordflow.results.compare import Figures, Untrained
from chordflow.results.files import RecordFile
from chordflow.results.paying import Standing
from chordflow.results.schema import HeldOut, SuccessRow

Start = Literal["last", "first", "fresh", "once"]
"""What the student of a round begins as: that of the round before, the first teacher, or the teacher's vision-language
model with a fresh action head. ``once`` is one round alone, of the steps of all rounds together."""

Began = Literal["last", "first", "fresh", "once", "teacher"]
"""What one student began as: ``teacher`` in the first round of arms that begin as a policy."""

USUAL_SOLVER = "adams_bashforth"
"""The solver of couplings that an arm's name does not mention."""


@dataclass(frozen=True)
class Diversity:
    """How far a policy's endpoints still spread over noise, beside the first teacher's as deployed.

    Attributes:
        num_steps: Euler steps of the policy.
        spread: root-mean-square distance of the endpoints to the mean of their observation, divided by the first
            teacher's from the same noises.
        modes_kept: share of the observations with several modes of the first teacher at which the policy's own modes
            lie at all of them; None where there is no such observation.
        several: the number of those observations.
    """

    num_steps: int
    spread: float
    modes_kept: float | None
    several: int


@dataclass(frozen=True)
class RoundArm:
    """One way to go on from round to round.

    Attributes:
        start: what the student of each round begins as.
        solver: of the couplings.
        real_data_share: share of every batch that is demonstrations.
        name: *Derived.* What tells arms apart, without what is usual.
    """

    start: Start
    solver: str
    real_data_share: float
    name: str = field(init=False)

    def __post_init__(self) -> None:
        solver = "" if self.solver == USUAL_SOLVER else f", {self.solver}"
        share = f", real {self.real_data_share:g}" if self.real_data_share else ""
        object.__setattr__(self, "name", f"{self.start}{solver}{share}")

    def start_of(self, round: int) -> Began:
        """What the student of a round begins as; the first one is the same whether from the last or the first."""
        return "teacher" if round == 1 and self.start in ("last", "first") else self.start

    def rounds_of(self, rounds: int) -> int:
        """The rounds of this arm in a study of so many."""
        return 1 if self.start == "once" else rounds

    def steps_of(self, steps: int, rounds: int) -> int:
        """The optimiser steps of each of its rounds in a study of so many rounds of so many steps."""
        return steps * rounds if self.start == "once" else steps


@dataclass(frozen=True)
class RoundRun:
    """One round trained once; the first one may be of several arms.

    Attributes:
        start: what the student began as.
        solver: of the couplings.
        real_data_share: share of every batch that was demonstrations.
        round: from 1.
        seed: of the whole run of rounds.
        steps: optimiser steps.
        student: its `pretrained_model` folder, relative to the file.
        weights_sha256: of its weights file.
        training_s: seconds of training, the making of couplings included.
        samples: couplings and demonstrations trained on, repeats counted.
        loss: of the last step.
        figures: against the *first* teacher, of the student as reloaded from disk; None until it is measured.
        diversity: of its endpoints at the same steps as its gaps; empty until it is measured.
        success: of the student at one step, all episodes first, then by instruction; empty until they are run.
    """

    start: Began
    solver: str
    real_data_share: float
    round: int
    seed: int
    steps: int
    student: str
    weights_sha256: str
    training_s: float
    samples: int
    loss: float | None
    figures: Figures | None = None
    diversity: list[Diversity] = field(default_factory=list)
    success: list[SuccessRow] = field(default_factory=list)

    def diversity_at(self, num_steps: int) -> Diversity | None:
        """The row of a number of steps, or None."""
        return next((row for row in self.diversity if row.num_steps == num_steps), None)


@dataclass(frozen=True)
class RoundsStudy(RecordFile):
    """What `rounds.json` holds.

    Attributes:
        command: the command line that made it, or that added to it last.
        settings: all of them.
        versions: of Python, torch, LeRobot and chordflow.
        device: its name.
        teacher: the first teacher.
        teacher_sha256: of its weights file.
        arms: in the order in which they are shown.
        rounds: of each arm but ``once``.
        seeds: of the runs.
        steps: optimiser steps of each round.
        least_gain: reduction of curvature or gap that makes a round worth it, a fraction.
        env: the environment that episodes were run in; empty where none were.
        held_out: the observations measured on; None until they were.
        untrained: the first teacher; None until it was measured.
        diversity: of the first teacher at few steps, beside itself as deployed.
        runs: one for each round and seed that is trained.
    """

    VERB: ClassVar[str] = "chordflow study rounds"
    GIVE: ClassVar[str] = "a study's rounds.json"

    command: list[str]
    settings: dict[str, Any]
    versions: dict[str, str]
    device: str
    teacher: str
    teacher_sha256: str
    arms: list[RoundArm]
    rounds: int
    seeds: list[int]
    steps: int
    least_gain: float
    env: str = ""
    held_out: HeldOut | None = None
    untrained: Untrained | None = None
    diversity: list[Diversity] = field(default_factory=list)
    runs: list[RoundRun] = field(default_factory=list)
    kind: Literal["study rounds"] = "study rounds"

    def run(self, arm: RoundArm, round: int, seed: int) -> RoundRun | None:
        """A run, or None where it is not trained yet."""
        steps = arm.steps_of(self.steps, self.rounds)
        wanted = (arm.start_of(round), arm.solver, arm.real_data_share, round, seed, steps)
        for run in self.runs:
            if (run.start, run.solver, run.real_data_share, run.round, run.seed, run.steps) == wanted:
                return run
        return None

    def runs_of(self, arm: RoundArm, round: int) -> list[RoundRun]:
        """The measured runs of a round of an arm, by seed."""
        found = [self.run(arm, round, seed) for seed in self.seeds]
        return [run for run in found if run is not None and run.figures is not None]


def standing(figures: Figures | None) -> Standing | None:
    """What the rule of paying rounds looks at: curvature, and the gap at one step to the converged ODE."""
    row = figures.gap(1) if figures is not None else None
    return Standing(figures.curvature, row.rms) if figures is not None and row is not None else None
