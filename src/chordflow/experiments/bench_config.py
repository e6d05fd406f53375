"""Settings of `chordflow bench training`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from chordflow.couplings import TOLERANCE_S, BufferConfig, CouplingConfig, DatasetConfig, Needs
from chordflow.errors import UserError
from chordflow.evaluation.paired import MeasureConfig
from chordflow.experiments.config import TeacherConfig
from chordflow.results.bench import NAIVE, BenchLoop
from chordflow.training.methods import MethodConfig, ReflowMethodConfig
from chordflow.training.optimizers import OptimizerConfig, SOAPConfig


class Anneal(StrEnum):
    """When the learning rate of a run has fallen to zero."""

    EACH = "each"
    LAST = "last"


class ClockName(StrEnum):
    """Whose seconds count."""

    WALL = "wall"
    OWN = "own"


@dataclass
class Schedule:
    """How often what is made for training is used.

    Attributes:
        batch_size: couplings looked at in one go.
        gradient_accumulation_steps: how often that is done in a step.
        buffer: as in `chordflow reflow`.
        budgets: of the benchmark's, those at which this one is run; by default all.
    """

    batch_size: int = 64
    gradient_accumulation_steps: int = 1
    buffer: BufferConfig = field(default_factory=BufferConfig)
    budgets: list[float] | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"schedules: {name}={getattr(self, name)}: give at least 1.")

    def described(self, name: str) -> BenchLoop:
        """The schedule as results name it."""
        return BenchLoop(
            name,
            self.batch_size,
            self.gradient_accumulation_steps,
            self.buffer.noises_per_observation,
            self.buffer.uses_per_coupling,
            self.buffer.num_observations,
            self.buffer.block_size,
            self.buffer.adaptive_share,
            self.buffer.start_observations,
            self.budgets,
        )


@dataclass
class BenchMeasureConfig:
    """How a student's one-step gap is measured; the same pairs for all.

    Attributes:
        num_observations: held-out observations; fewer if the held-out episodes have fewer frames.
        noises_per_observation: noises of each, from which the teacher's modes are found; at least 16.
        converged_noises: noises of each on which gaps are measured.
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
        return MeasureConfig(
            num_observations=self.num_observations,
            noises_per_observation=self.noises_per_observation,
            converged_noises=self.converged_noises,
            converged_num_steps=self.converged_num_steps,
            batch_size=self.batch_size,
            seed=self.seed,
        )


@dataclass
class TrainingBenchConfig:
    """Train with and without reuse of couplings, side by side: samples a second, and gap by wall-clock time.

    Attributes:
        teacher: the checkpoint to reflow.
        dataset: LeRobot dataset whose observations are used (its actions are not).
        output_dir: new folder for bench.json and its tables.
        budgets: seconds at which students are compared.
        seeds: a run of every loop for each.
        schedules: ways to reuse couplings, by name, such as {"default": {}, "small": {"batch_size": 32, "buffer":
            {"num_observations": 512, "noises_per_observation": 4, "uses_per_coupling": 8}}}; what is left out is as in
            chordflow reflow, and by default there is one, with all of its defaults.
        naive_batch_size: couplings a step of the loop without reuse.
        anneal: each (every budget has a run of its own, whose learning rate falls to zero at its end) or last (one
            run, whose rate falls to zero at the last budget, is looked at as it passes the others).
        clock: wall, or own (the processor seconds of a process that has one thread, for a machine that does
            something else as well).
        num_workers: processes that read observations ahead.
        device: cuda, mps or cpu; by default the checkpoint's, or what is available.
        tolerance_s: seconds by which a video's frame may miss its timestamp, as in LeRobot.
        rename_map: observation keys of the dataset to keys of the policy, as JSON.
        resume: go on with the benchmark whose bench.json --config_path names; budgets, seeds and schedules may be
            added.
        method: how students are trained; one that looks at noises and endpoints alone.
        coupling: how the teacher's ODE is solved for buffers; the loop without reuse takes the Euler steps of the
            teacher as deployed.
        optimizer: what makes steps of gradients.
        measure: how the gap is measured.
    """

    teacher: TeacherConfig
    dataset: DatasetConfig
    output_dir: Path
    budgets: list[float] = field(default_factory=lambda: [30.0, 60.0, 120.0, 180.0])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    schedules: dict[str, Schedule] = field(default_factory=dict)
    naive_batch_size: int = 64
    anneal: Anneal = Anneal.EACH
    clock: ClockName = ClockName.WALL
    num_workers: int = 0
    device: str | None = None
    tolerance_s: float = TOLERANCE_S
    rename_map: dict[str, str] = field(default_factory=dict)
    resume: bool = False
    method: MethodConfig = field(default_factory=ReflowMethodConfig)
    coupling: CouplingConfig = field(default_factory=CouplingConfig)
    optimizer: OptimizerConfig = field(default_factory=SOAPConfig)
    measure: BenchMeasureConfig = field(default_factory=BenchMeasureConfig)

    def __post_init__(self) -> None:
        if not self.budgets or not all(b > 0 and math.isfinite(b) for b in self.budgets):
            raise UserError(f"budgets={self.budgets}: give seconds above 0, such as [30,60].")
        self.budgets = sorted(set(self.budgets))
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds={self.seeds}: give at least one, each once, such as [0,1,2].")
        if not self.schedules:
            self.schedules = {"default": Schedule()}
        for name in self.schedules:
            if name == NAIVE or not name.strip():
                raise UserError(
                    f"schedules holds the name {name!r}, which is taken or empty; choose another."
                )
            own = self.schedules[name].budgets
            if own is not None and not (own and set(own) <= set(self.budgets)):
                raise UserError(f"schedules: {name!r} has budgets={own}; give some of {self.budgets}.")
        if self.naive_batch_size < 1:
            raise UserError(f"naive_batch_size={self.naive_batch_size}: give at least 1.")
        if self.num_workers < 0:
            raise UserError(f"num_workers={self.num_workers}: give 0 or more.")
        if self.method.build().needs != Needs():
            name = self.method.get_choice_name(type(self.method))
            raise UserError(
                f"method.type={name}: with these settings it looks at more than noises and endpoints, which the loop "
                "without reuse does not give; choose reflow, with its loss on the straight path."
            )
        if self.clock == ClockName.OWN and self.num_workers > 0:
            raise UserError(
                f"num_workers={self.num_workers}: clock=own does not see what other processes work; give 0."
            )
