"""What `chordflow study` measures: arms trained over seeds within one budget, and looked at on the way.

One file, written whole after each part of a trial, so that a study can be stopped and resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from chordflow.errors import UserError
from chordflow.results.actions import GapRow, HeldOut, Reference
from chordflow.results.episodes import SuccessRow
from chordflow.results.files import RecordFile, same_where_known
from chordflow.results.old_studies import check_layout
from chordflow.results.schema import LossCurve, RolloutObservations
from chordflow.results.statistics import Interval

SCHEMA_VERSION = 2
"""Version of the file's layout; raised whenever a field is added, dropped or changes its meaning."""

STUDY = "study.json"
"""Name of the file."""

STEP_COUNTS = (1, 2, 10)
"""Euler steps at which every policy's gap is measured."""

Preset = Literal["methods", "beginnings", "rounds", "reuse", "file"]
"""The question: which preset made the arms, or a file that names them."""


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: of its folder and its rows.
        way: what a table calls it; all rounds of one chain share it, but the rounds that several chains share.
        differs: the settings in which it differs from the shared ones, by dotted name.
        settings: all settings of its training but budget and seed, nested.
        method: its `method.type`.
        stock_checkpoint: whether its students are checkpoints of LeRobot's own class, inputs and keys.
        step_counts: the Euler steps that its students are trained for; None where it is any number.
        teacher: the arm whose student of the same seed teaches it; None for the study's teacher.
        steps: its budget in optimiser steps, where it is not the study's.
    """

    name: str
    way: str
    differs: dict[str, Any]
    settings: dict[str, Any]
    method: str
    stock_checkpoint: bool
    step_counts: list[int] | None
    teacher: str | None = None
    steps: int | None = None


@dataclass(frozen=True)
class LeftOut:
    """An arm that the user did not name and that this teacher cannot have.

    Attributes:
        name: as the option of the preset would name it.
        reason: in a sentence.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Diversity:
    """How far a policy's endpoints spread over noise, compared with the teacher as deployed.

    Attributes:
        num_steps: Euler steps of the policy.
        spread: root-mean-square distance of the endpoints to the mean of their observation, divided by the teacher's
            from the same noises.
        modes_kept: share of the observations with several modes of the teacher at which the policy's own modes lie at
            all of them; None where there is no such observation.
        several: the number of those observations.
    """

    num_steps: int
    spread: float
    modes_kept: float | None
    several: int


@dataclass(frozen=True)
class Figures:
    """What was measured of a policy on held-out observations, compared with the study's teacher.

    Attributes:
        s: integral of the squared deviation of the velocity from the chord, over the real dimensions.
        curvature: relative to the chords, a fraction.
        curvature_interval: over held-out episodes; None where they are too few.
        gaps: at each number of Euler steps, to the teacher as deployed and to its converged ODE.
        diversity: of its own endpoints at each number of Euler steps; empty where the file is older than that.
    """

    s: float
    curvature: float
    curvature_interval: Interval | None
    gaps: list[GapRow]
    diversity: list[Diversity] = field(default_factory=list)

    def gap(self, num_steps: int, reference: Reference = "converged") -> GapRow | None:
        """The row of a number of steps, or None."""
        rows = (row for row in self.gaps if (row.num_steps, row.reference) == (num_steps, reference))
        return next(rows, None)


@dataclass(frozen=True)
class Look:
    """A student on its way, or at the end of its training.

    Attributes:
        mark: which of the study's looks it is, in the unit of the budget.
        step: optimiser steps that it has made.
        seconds: of training so far, the making of couplings included; None where the file is older than that.
        student: its `pretrained_model` folder, relative to the file.
        weights_sha256: of its weights file.
        figures: of the student as reloaded from disk; None until it is measured.
        success: at one step, all episodes first, then by instruction; empty until they are run.
    """

    mark: float
    step: int
    seconds: float | None
    student: str
    weights_sha256: str
    figures: Figures | None = None
    success: list[SuccessRow] = field(default_factory=list)

    def gap(self, num_steps: int) -> GapRow | None:
        """The gap to the teacher's converged ODE at a number of Euler steps."""
        return self.figures.gap(num_steps) if self.figures is not None else None

    def rms(self, num_steps: int) -> float | None:
        """Its RMS."""
        row = self.gap(num_steps)
        return row.rms if row is not None else None


@dataclass(frozen=True)
class Trial:
    """One arm trained once.

    Attributes:
        arm: its name.
        seed: of the trial; of everything random in training, but in later rounds of a chain, which derive theirs.
        training_s: seconds of training, the making of couplings included.
        ready_s: of these, until the first step could begin; None where none did, or the file is older than that.
        steps: optimiser steps.
        samples: couplings or demonstrations trained on, repeats counted.
        loss: of the last step; None where there was none.
        losses: the loss of the first step, then means since the entry before; None where the file is older than that.
        buffer_bytes: the most memory of couplings and encoded observations; None likewise.
        couplings_sha256: of all noises and endpoints that it was trained on, in their order; empty where the study
            did not ask for it.
        rollouts: the observations of episodes that it was trained on; None where all were the dataset's.
        looks: in their order, the last at the end.
    """

    arm: str
    seed: int
    training_s: float
    ready_s: float | None
    steps: int
    samples: int
    loss: float | None
    losses: LossCurve | None
    buffer_bytes: int | None
    looks: list[Look]
    couplings_sha256: str = ""
    rollouts: RolloutObservations | None = None

    @property
    def last(self) -> Look:
        """The student at the end of its training."""
        return self.looks[-1]

    def look(self, mark: float) -> Look | None:
        """The look at a mark, or None."""
        return next((look for look in self.looks if look.mark == mark), None)


@dataclass(frozen=True)
class Untrained:
    """The study's teacher, which takes no training.

    Attributes:
        num_steps: Euler steps as deployed.
        figures: at the steps of all and as deployed; the latter to its converged ODE is the floor.
        success: at one step, at two and as deployed; empty without an environment.
    """

    num_steps: int
    figures: Figures
    success: list[SuccessRow] = field(default_factory=list)


@dataclass(frozen=True)
class Study(RecordFile):
    """What `study.json` holds.

    Attributes:
        preset: the question.
        command: the command line that made it, or that added to it last.
        settings: all of them.
        versions: of Python, torch, LeRobot and chordflow.
        device: its name.
        teacher: the checkpoint.
        teacher_sha256: of its weights file.
        arms: in the order in which they are shown.
        seeds: of the trials.
        steps: the budget of a trial, optimiser steps; None where it is seconds.
        seconds: the budget, seconds; None where it is steps.
        looks: after how much of the budget, in its unit, students are measured; the last is the whole budget.
        left_out: arms that this teacher cannot have.
        level: the gap at one step of which a table says after how many steps an arm falls under it, a fraction.
        least_gain: reduction of curvature or gap that makes another round worth it, a fraction.
        env: the environment that episodes were run in; empty where none were.
        held_out: the observations measured on; None until they were.
        untrained: the teacher; None until it was measured.
        teacher_processors_sha256: of what the teacher's processors do; None in older files.
        trials: one for each arm and seed that is trained.
        kind: marks the file as a study.
        schema_version: layout of the file.
    """

    VERB: ClassVar[str] = "chordflow study"
    GIVE: ClassVar[str] = "a study's study.json"
    VERSION: ClassVar[int] = SCHEMA_VERSION

    preset: Preset
    command: list[str]
    settings: dict[str, Any]
    versions: dict[str, str]
    device: str
    teacher: str
    teacher_sha256: str
    arms: list[Arm]
    seeds: list[int]
    steps: int | None
    seconds: float | None
    looks: list[float]
    left_out: list[LeftOut] = field(default_factory=list)
    level: float = 0.05
    least_gain: float = 0.1
    env: str = ""
    held_out: HeldOut | None = None
    untrained: Untrained | None = None
    teacher_processors_sha256: str | None = None
    trials: list[Trial] = field(default_factory=list)
    kind: Literal["study"] = "study"
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a file that `save` wrote.

        Raises:
            UserError: if it is missing, damaged, of an older or a newer layout, or something else.
        """
        check_layout(Path(path))
        return super().load(path)

    def arm(self, name: str) -> Arm:
        """The arm of a name."""
        return next(arm for arm in self.arms if arm.name == name)

    def trial(self, arm: str, seed: int) -> Trial | None:
        """A trial, or None where it is not trained yet."""
        return next((t for t in self.trials if (t.arm, t.seed) == (arm, seed)), None)

    def planned(self, arm: Arm) -> int:
        """How many seeds an arm is to have."""
        return len(self.seeds)

    @property
    def looks_often(self) -> bool:
        """Whether students are measured on their way, too."""
        return any(len(trial.looks) > 1 for trial in self.trials)

    def chain(self, arm: Arm) -> list[Arm]:
        """The arms that lead to an arm, each taught by the one before, itself last: round 1, round 2 and so on."""
        return [*(self.chain(self.arm(arm.teacher)) if arm.teacher is not None else []), arm]

    def label(self, arm: Arm, *, by_round: bool = True) -> str:
        """What tells an arm from the others: its way, and where they share it the round, or else its own budget."""
        if arm.name != arm.way and (arm.teacher is not None or any(a.teacher == arm.name for a in self.arms)):
            return f"{arm.way}, round {len(self.chain(arm))}" if by_round else arm.way
        if sum(one.way == arm.way for one in self.arms) == 1:
            return arm.way
        return f"{arm.way} after {arm.steps} steps" if arm.steps is not None else arm.name

    @property
    def chains(self) -> list[list[Arm]]:
        """Every chain whole, ending in an arm that teaches no other."""
        teachers = {arm.teacher for arm in self.arms}
        return [self.chain(arm) for arm in self.arms if arm.name not in teachers]


@dataclass(frozen=True)
class Joined(Study):
    """Several studies as one, without a file.

    Attributes:
        own_seeds: of the studies that have an arm, by its name.
    """

    own_seeds: dict[str, set[int]] = field(default_factory=dict)

    def planned(self, arm: Arm) -> int:
        """How many seeds an arm is to have in its own studies."""
        return len(self.own_seeds[arm.name])


def joined(studies: Sequence[Study]) -> Joined:
    """Several studies of one teacher, measured alike, as one.

    Arms of one name, settings and budget are one arm with the seeds of both; an arm that only shares its name gets the
    number of its study behind it. The first study says how the others are shown.

    Raises:
        UserError: if their figures cannot be compared.
    """
    first = studies[0]
    arms, trials = list(first.arms), list(first.trials)
    seeds = {arm.name: set(first.seeds) for arm in arms}
    for number, study in enumerate(studies[1:], 2):
        for name, what in (
            ("teacher_sha256", "of another teacher"), ("held_out", "measured on other observations"),
            ("env", "measured in another environment"), ("seconds", "of another budget in seconds"),
        ):  # fmt: skip
            if getattr(study, name) != getattr(first, name):
                raise UserError(
                    f"study {number} is {what} than the first; join studies of one teacher and budget that were "
                    "measured on the same observations and episodes."
                )
        if not same_where_known(study.teacher_processors_sha256, first.teacher_processors_sha256):
            raise UserError(f"study {number} has a teacher of other processors; join studies of one teacher.")
        names: dict[str | None, str | None] = {None: None}
        for arm in study.arms:
            steps = arm.steps or study.steps
            own = replace(arm, teacher=names[arm.teacher], steps=None if steps == first.steps else steps)
            if own not in arms:
                if own.name in seeds:
                    own = replace(own, name=f"{arm.name} ({number})", way=f"{arm.way} ({number})")
                arms.append(own)
            seeds.setdefault(own.name, set()).update(study.seeds)
            names[arm.name] = own.name
        for trial in study.trials:
            if names[trial.arm] not in {t.arm for t in trials if t.seed == trial.seed}:
                trials.append(replace(trial, arm=str(names[trial.arm])))
    whole = replace(
        first,
        preset=first.preset if len({study.preset for study in studies}) == 1 else "file",
        arms=arms,
        trials=trials,
        seeds=list(dict.fromkeys(seed for study in studies for seed in study.seeds)),
        looks=sorted({look for study in studies for look in study.looks}),
    )
    return Joined(**vars(whole), own_seeds=seeds)
