"""Settings of every study; each preset adds its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from chordflow.checks import check_range, number, once
from chordflow.errors import UserError
from chordflow.evaluation.paired import MeasureConfig
from chordflow.experiments.config import TrainingSettings
from chordflow.experiments.evaluate_config import ActingConfig
from chordflow.policies import FlowPolicy
from chordflow.results.paying import LEAST_GAIN
from chordflow.results.study import STEP_COUNTS, LeftOut, Preset

DEFAULT_STEPS = 2000


@dataclass
class StudyMeasureConfig:
    """How gaps, curvature and spread are measured; the same observations and noises for all.

    Attributes:
        num_observations: held-out observations; fewer if the held-out episodes have fewer frames.
        noises_per_observation: noises of each, on which one, two and ten steps are compared and from which the
            teacher's modes are found; at least 16.
        converged_noises: noises of each on which gaps to the converged ODE are measured.
        converged_num_steps: Euler steps of the teacher's converged ODE; at least 100, and never less than twice the
            teacher's as deployed.
        batch_size: noises that go through the network together.
        seed: of the observations and noises chosen.
    """

    num_observations: int = 200
    noises_per_observation: int = 16
    converged_noises: int = 4
    converged_num_steps: int = 100
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        self.full()

    def full(self) -> MeasureConfig:
        """The settings of `chordflow reflow` that say the same.

        Raises:
            UserError: for values that cannot be used.
        """
        return MeasureConfig(**vars(self), num_steps=list(STEP_COUNTS), solvers=["euler"])


@dataclass
class EpisodesConfig(ActingConfig):
    """Episodes, as in `chordflow evaluate`.

    Attributes:
        n_episodes: episodes of every task for each student.
        seed: of the first episode; the others follow.
    """

    seed: int = number(1000, at_least=0)

    @property
    def seeds(self) -> list[int]:
        """The seed of every episode of a task."""
        return list(range(self.seed, self.seed + self.n_episodes))


@dataclass(frozen=True)
class ArmSettings:
    """One way to train, as a preset or a file says it.

    Attributes:
        name: of its folder.
        settings: of `chordflow reflow`, nested, in which it differs from the shared ones.
        way: what a table calls it, where that is not its name.
        teacher: the arm that teaches it; None for the study's teacher.
        steps: its budget, where it is not the study's.
    """

    name: str
    settings: dict[str, Any]
    way: str = ""
    teacher: str | None = None
    steps: int | None = None


@dataclass
class StudyConfig(TrainingSettings):
    """Train several arms the same way but for what the question is about, and measure all of them alike.

    Attributes:
        output_dir: new folder for study.json, its table, its page and the students.
        seeds: a trial of every arm for each.
        steps: optimiser steps of each trial; 2000 where seconds are not given either.
        seconds: the budget of each trial in the place of steps, the making of couplings included.
        looks: after how many steps, or seconds, students are measured, rising; the last is the whole budget, and by
            default the only one.
        keep_looks: keep all students that were looked at on disk; otherwise the last of each trial is kept, and the
            others until they are measured.
        level: the gap at one step of which a table says after how many steps an arm falls under it, a share.
        least_gain: another round pays where it reduces curvature, or the gap at one step to the teacher's converged
            ODE, by this share or more, and the gap does not grow.
        log_freq: steps between entries of the loss curve.
        rename_map: observation keys of dataset and environment to keys of the policy, as JSON.
        resume: resume the study whose study.json --config_path names; arms and seeds may be added, and an environment
            where there was none.
        env: environment to run episodes in, with the options that lerobot-eval has for it; without it none are run.
        eval: how episodes are run.
        measure: how gaps, curvature and spread are measured.
    """

    PRESET: ClassVar[Preset]

    seeds: list[int] = once([0, 1, 2], at_least=0, note=", such as [0,1,2]")
    steps: int | None = number(None, at_least=1)
    seconds: float | None = number(None, above=0)
    looks: list[float] | None = None
    keep_looks: bool = False
    level: float = number(0.05, above=0)
    least_gain: float = number(LEAST_GAIN, at_least=0, below=1)
    eval: EpisodesConfig = field(default_factory=EpisodesConfig)
    measure: StudyMeasureConfig = field(default_factory=StudyMeasureConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and self.seconds is not None:
            raise UserError(f"steps={self.steps} and seconds={self.seconds}: give one of the two.")
        if self.seconds is None and self.steps is None:
            self.steps = DEFAULT_STEPS
        if self.looks is None:
            self.looks = self.default_looks()
        check_range("looks", self.looks, at_least=0)
        if sorted(set(self.looks)) != self.looks or self.looks[-1:] != [self.budget]:
            raise UserError(
                f"looks={self.looks}: give them rising, the last of them the budget, {self.budget:g}."
            )
        if self.env is None and self.eval != EpisodesConfig():
            raise UserError(
                "eval: these options are about episodes; give --env.type as well, or leave them out."
            )

    @property
    def budget(self) -> float:
        """Of a trial, in steps or in seconds."""
        budget = self.steps if self.steps is not None else self.seconds
        assert budget is not None
        return budget

    def default_looks(self) -> list[float]:
        """When students are measured, unless the user says so."""
        return [self.budget]

    @abstractmethod
    def arms_for(self, teacher: FlowPolicy, folder: Path) -> Iterator[ArmSettings | LeftOut]:
        """The arms, teachers before the arms that they teach, and those that this teacher cannot have.

        Args:
            teacher: the study's.
            folder: of its checkpoint.

        Raises:
            UserError: for an arm that the user names and that cannot be.
        """
