"""What `chordflow compare` measures: methods of training side by side, at one budget, over several seeds.

One file, written whole after each run, so that a comparison can be stopped and gone on with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from chordflow.results.files import RecordFile
from chordflow.results.schema import GapRow, HeldOut, Reference, RolloutObservations, SuccessRow
from chordflow.results.statistics import Interval

STEP_COUNTS = (1, 2, 10)
"""Euler steps at which every policy's gap is measured."""

Origin = Literal["own", "recipe", "method"]
"""``own``: settings that the user gave; ``recipe``: one of chordflow's; ``method``: a method as it is by default."""


@dataclass(frozen=True)
class Entry:
    """One way to train.

    Attributes:
        name: as `--methods` names it.
        origin: where its settings are from.
        about: what it is, in a sentence; empty for the user's own.
        method: its `method.type`.
        settings: all settings of its training but budget and seed, nested.
        stock_checkpoint: whether its students are checkpoints of LeRobot's own class, inputs and keys.
        step_counts: the Euler steps that its students are trained for; None where it is any number.
    """

    name: str
    origin: Origin
    about: str
    method: str
    settings: dict[str, Any]
    stock_checkpoint: bool
    step_counts: list[int] | None


@dataclass(frozen=True)
class Figures:
    """What was measured of a policy on held-out observations.

    Attributes:
        s: integral of the squared deviation of the velocity from the chord, over the real dimensions.
        curvature: relative to the chords, a fraction.
        curvature_interval: over held-out episodes; None where they are too few.
        gaps: at each number of Euler steps, to the teacher as deployed and to its converged ODE.
    """

    s: float
    curvature: float
    curvature_interval: Interval | None
    gaps: list[GapRow]

    def gap(self, num_steps: int, reference: Reference = "converged") -> GapRow | None:
        """The row of a number of steps, or None."""
        for row in self.gaps:
            if (row.num_steps, row.reference) == (num_steps, reference):
                return row
        return None


@dataclass(frozen=True)
class Run:
    """One method trained once.

    Attributes:
        method: name of the entry.
        seed: of everything random in training.
        student: its `pretrained_model` folder, relative to the file.
        weights_sha256: of the student's weights file.
        training_s: seconds of training, the making of couplings included.
        ready_s: of these, until the first step could begin; None where none did.
        steps: optimiser steps.
        samples: couplings or demonstrations trained on, repeats counted.
        loss: of the last step; None where there was none.
        buffer_bytes: the most memory of couplings and encoded observations.
        rollouts: the observations of episodes that it was trained on; None where all were the dataset's.
        figures: of the student as reloaded from disk; None until it is measured.
        success: of the student at one step, all episodes first, then by instruction; empty until they are run.
    """

    method: str
    seed: int
    student: str
    weights_sha256: str
    training_s: float
    ready_s: float | None
    steps: int
    samples: int
    loss: float | None
    buffer_bytes: int
    rollouts: RolloutObservations | None = None
    figures: Figures | None = None
    success: list[SuccessRow] = field(default_factory=list)


@dataclass(frozen=True)
class Untrained:
    """The teacher, which is there for nothing.

    Attributes:
        num_steps: Euler steps as deployed.
        figures: at the steps of all and as deployed; the latter to its converged ODE is the floor.
        success: at one step, at two and as deployed; empty without an environment.
    """

    num_steps: int
    figures: Figures
    success: list[SuccessRow] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison(RecordFile):
    """What `compare.json` holds.

    Attributes:
        command: the command line that made it, or that added to it last.
        settings: all of them.
        versions: of Python, torch, LeRobot and chordflow.
        device: its name.
        teacher: the checkpoint.
        teacher_sha256: of its weights file.
        methods: in the order in which they are shown.
        seeds: of the runs.
        steps: the budget, optimiser steps; None where it is seconds.
        seconds: the budget, seconds; None where it is steps.
        env: the environment that episodes were run in; empty where none were.
        held_out: the observations measured on; None until they were.
        untrained: the teacher; None until it was measured.
        runs: one for each method and seed that is trained.
    """

    VERB: ClassVar[str] = "chordflow compare"
    GIVE: ClassVar[str] = "a comparison's compare.json"

    command: list[str]
    settings: dict[str, Any]
    versions: dict[str, str]
    device: str
    teacher: str
    teacher_sha256: str
    methods: list[Entry]
    seeds: list[int]
    steps: int | None
    seconds: float | None
    env: str = ""
    held_out: HeldOut | None = None
    untrained: Untrained | None = None
    runs: list[Run] = field(default_factory=list)
    kind: Literal["compare"] = "compare"

    def runs_of(self, method: str) -> list[Run]:
        """The measured runs of a method with the seeds that are asked for, by seed."""
        runs = [r for r in self.runs if r.method == method and r.seed in self.seeds and r.figures is not None]
        return sorted(runs, key=lambda run: self.seeds.index(run.seed))
