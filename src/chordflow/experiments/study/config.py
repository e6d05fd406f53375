"""Settings of every study; each preset adds its own."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from lerobot.envs.configs import EnvConfig

from chordflow.checks import check_fields, check_once, check_range
from chordflow.couplings import TOLERANCE_S, BufferConfig, CouplingConfig, DatasetConfig
from chordflow.errors import UserError
from chordflow.evaluation.paired import MeasureConfig
from chordflow.experiments.config import CheckpointConfig, StudentConfig
from chordflow.policies import FlowPolicy
from chordflow.results.paying import LEAST_GAIN
from chordflow.results.study import STEP_COUNTS, LeftOut, Preset
from chordflow.training.methods import MethodConfig, ReflowMethodConfig
from chordflow.training.optimizers import OptimizerConfig, SOAPConfig
from chordflow.training.steps import EMAConfig, SchedulerConfig

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
class EpisodesConfig:
    """Episodes, as in `chordflow evaluate`.

    Attributes:
        n_episodes: episodes of every task for each student.
        batch_size: episodes side by side; for speed, results depend on it by rounding alone.
        num_workers: processes that hold the environments; 0 holds them in this one.
        n_action_steps: executed actions of each chunk; by default the checkpoint's.
        seed: of the first episode; the others follow.
    """

    n_episodes: int = 50
    batch_size: int = 16
    num_workers: int = 0
    n_action_steps: int | None = None
    seed: int = 1000

    def __post_init__(self) -> None:
        check_fields(self, "eval.", "n_episodes", "batch_size", "n_action_steps", at_least=1)
        check_fields(self, "eval.", "num_workers", "seed", at_least=0)

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
        way: what a table calls it.
        teacher: the arm that teaches it; None for the study's teacher.
        steps: its budget, where it is not the study's.
        recipe: the name of chordflow's recipe that it is.
    """

    name: str
    settings: dict[str, Any]
    way: str = ""
    teacher: str | None = None
    steps: int | None = None
    recipe: str | None = None


@dataclass
class StudyConfig:
    """Train several arms the same way but for what the question is about, and measure all of them alike.

    Attributes:
        teacher: the checkpoint to reflow.
        dataset: LeRobot dataset whose observations are used (its actions only by methods that need them).
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
        batch_size: couplings that are looked at in one go.
        gradient_accumulation_steps: how often that is done in a step.
        num_workers: processes that read observations ahead while the buffer is filled.
        log_freq: steps between entries of the loss curve.
        device: cuda, mps or cpu; by default the checkpoint's, or what is available.
        tolerance_s: seconds by which a video's frame may miss its timestamp, as in LeRobot.
        rename_map: observation keys of dataset and environment to keys of the policy, as JSON.
        resume: resume the study whose study.json --config_path names; arms and seeds may be added, and an environment
            where there was none.
        student: how students begin and what of them is trained.
        method: how students are trained.
        coupling: how the teacher's ODE is solved.
        buffer: how many couplings are kept in memory.
        optimizer: what makes steps of gradients.
        scheduler: warm-up and cosine.
        ema: moving average of the weights.
        env: environment to run episodes in, with the options that lerobot-eval has for it; without it none are run.
        eval: how episodes are run.
        measure: how gaps, curvature and spread are measured.
    """

    PRESET: ClassVar[Preset]
    ADDABLE: ClassVar[tuple[str, ...]] = ()
    """Settings of the preset that may be another when a study is resumed."""
    SAME_COUPLINGS: ClassVar[bool] = False
    """Whether the couplings of all arms are the same, which a hash then proves."""

    teacher: CheckpointConfig
    dataset: DatasetConfig
    output_dir: Path
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    steps: int | None = None
    seconds: float | None = None
    looks: list[float] | None = None
    keep_looks: bool = False
    level: float = 0.05
    least_gain: float = LEAST_GAIN
    batch_size: int = 64
    gradient_accumulation_steps: int = 1
    num_workers: int = 4
    log_freq: int = 50
    device: str | None = None
    tolerance_s: float = TOLERANCE_S
    rename_map: dict[str, str] = field(default_factory=dict)
    resume: bool = False
    student: StudentConfig = field(default_factory=StudentConfig)
    method: MethodConfig = field(default_factory=ReflowMethodConfig)
    coupling: CouplingConfig = field(default_factory=CouplingConfig)
    buffer: BufferConfig = field(default_factory=BufferConfig)
    optimizer: OptimizerConfig = field(default_factory=SOAPConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    env: EnvConfig | None = None
    eval: EpisodesConfig = field(default_factory=EpisodesConfig)
    measure: StudyMeasureConfig = field(default_factory=StudyMeasureConfig)

    def __post_init__(self) -> None:
        self.teacher.check("teacher")
        if self.steps is not None and self.seconds is not None:
            raise UserError(f"steps={self.steps} and seconds={self.seconds}: give one of the two.")
        if self.seconds is None and self.steps is None:
            self.steps = DEFAULT_STEPS
        check_fields(self, "", "steps", "batch_size", "gradient_accumulation_steps", "log_freq", at_least=1)
        check_fields(self, "", "seconds", "level", above=0)
        check_fields(self, "", "num_workers", at_least=0)
        check_once("seeds", self.seeds, at_least=0, note=", such as [0,1,2]")
        check_fields(self, "", "least_gain", at_least=0, below=1)
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
    def arms_for(self, teacher: FlowPolicy, folder: Path) -> tuple[list[ArmSettings], list[LeftOut]]:
        """The arms, teachers before the arms that they teach, and those that this teacher cannot have.

        Args:
            teacher: the study's.
            folder: of its checkpoint.

        Raises:
            UserError: for an arm that the user names and that cannot be.
        """
