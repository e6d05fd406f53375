"""What `chordflow study init` measures: students that begin differently, looked at on the way, over several seeds.

One file, written whole after each part of a run, so that a study can be stopped and gone on with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from chordflow.results.compare import Figures, Untrained
from chordflow.results.files import RecordFile
from chordflow.results.schema import GapRow, HeldOut, LossCurve, SuccessRow


@dataclass(frozen=True)
class Arm:
    """One way to begin, at one learning rate.

    Attributes:
        beginning: as `--arms` names it.
        init: its `student.init`.
        train: the parts that are trained, its `student.train`.
        learning_rate: its `optimizer.lr`.
        name: *Derived.* The two that tell arms apart.
    """

    beginning: str
    init: str
    train: list[str]
    learning_rate: float
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"{self.beginning}, lr {self.learning_rate:g}")


@dataclass(frozen=True)
class LeftOut:
    """An arm that was not asked for by name and cannot be trained.

    Attributes:
        beginning: as `--arms` would name it.
        reason: in a sentence.
    """

    beginning: str
    reason: str


@dataclass(frozen=True)
class Checkpoint:
    """A student on its way.

    Attributes:
        step: optimiser steps that it has made.
        student: its `pretrained_model` folder, relative to the file.
        weights_sha256: of its weights file.
        figures: of the student as reloaded from disk; None until it is measured.
        success: of the student at one step, all episodes first, then by instruction; empty until they are run.
    """

    step: int
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
class InitRun:
    """One arm trained once.

    Attributes:
        arm: its name.
        seed: of everything random in training.
        training_s: seconds of training, the making of couplings included.
        samples: couplings trained on, repeats counted.
        couplings_sha256: of all noises and endpoints that it was trained on, in their order.
        loss: the loss of the first step, then means since the entry before.
        checkpoints: by step.
    """

    arm: str
    seed: int
    training_s: float
    samples: int
    couplings_sha256: str
    loss: LossCurve
    checkpoints: list[Checkpoint]


@dataclass(frozen=True)
class InitStudy(RecordFile):
    """What `study.json` holds.

    Attributes:
        command: the command line that made it, or that added to it last.
        settings: all of them.
        versions: of Python, torch, LeRobot and chordflow.
        device: its name.
        teacher: the checkpoint.
        teacher_sha256: of its weights file.
        arms: in the order in which they are shown.
        left_out: what the teacher has no such arm for.
        seeds: of the runs.
        steps: optimiser steps of each run.
        at: steps at which students are looked at.
        level: gap of which is told after how many steps a student falls under it, a fraction.
        env: the environment that episodes were run in; empty where none were.
        held_out: the observations measured on; None until they were.
        untrained: the teacher; None until it was measured.
        runs: one for each arm and seed that is trained.
    """

    VERB: ClassVar[str] = "chordflow study init"
    GIVE: ClassVar[str] = "a study's study.json"

    command: list[str]
    settings: dict[str, Any]
    versions: dict[str, str]
    device: str
    teacher: str
    teacher_sha256: str
    arms: list[Arm]
    left_out: list[LeftOut]
    seeds: list[int]
    steps: int
    at: list[int]
    level: float
    env: str = ""
    held_out: HeldOut | None = None
    untrained: Untrained | None = None
    runs: list[InitRun] = field(default_factory=list)
    kind: Literal["study init"] = "study init"

    def runs_of(self, arm: str) -> list[InitRun]:
        """The runs of an arm with the seeds that are asked for, by seed."""
        runs = [run for run in self.runs if run.arm == arm and run.seed in self.seeds]
        return sorted(runs, key=lambda run: self.seeds.index(run.seed))
