"""Settings of `chordflow study init`, and what its arms are."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field
from pathlib import Path

from lerobot.envs.configs import EnvConfig

from chordflow.couplings import TOLERANCE_S, BufferConfig, CouplingConfig, DatasetConfig
from chordflow.errors import UserError
from chordflow.experiments.compare_config import CompareMeasureConfig, EpisodesConfig
from chordflow.experiments.config import TeacherConfig
from chordflow.training.methods import MethodConfig, ReflowMethodConfig
from chordflow.training.optimizers import OptimizerConfig, SOAPConfig
from chordflow.training.student import StudentInit

STUDY, TABLE, PAGE = "study.json", "study.md", "study.html"
"""What a study writes beside the folders of its arms."""

ADDABLE = ("arms", "learning_rates", "seeds", "level", "output_dir", "resume", "tolerance_s")
"""Settings that may be another when a study is gone on with."""

LOOKS = 8
"""By default the last of the checkpoints but one is at half of the steps, then at a quarter, down to this part."""


@dataclass(frozen=True)
class Beginning:
    """What a student begins with and what of it is trained.

    Attributes:
        init: its `student.init`.
        everything: whether all its parts are trained, not those alone that the family's adapter says.
        about: what it is, in a few words.
    """

    init: StudentInit
    everything: bool
    about: str


ARMS = {
    "teacher": Beginning(StudentInit.TEACHER, False, "the teacher, its action head trained"),
    "teacher_full": Beginning(StudentInit.TEACHER, True, "the teacher, everything trained"),
    "teacher_vlm": Beginning(StudentInit.TEACHER_VLM, False, "the teacher's VLM, frozen, with a fresh action head"),
    "teacher_vlm_full": Beginning(
        StudentInit.TEACHER_VLM, True, "the teacher's VLM with a fresh action head, everything trained"
    ),
    "pretrained_vlm": Beginning(
        StudentInit.PRETRAINED_VLM, False, "the VLM that the config names, frozen, with a fresh action head"
    ),
    "pretrained_vlm_full": Beginning(
        StudentInit.PRETRAINED_VLM,
        True,
        "the VLM that the config names with a fresh action head, everything trained",
    ),
    "random": Beginning(StudentInit.RANDOM, False, "all at random, the VLM frozen"),
    "random_full": Beginning(StudentInit.RANDOM, True, "all at random, everything trained"),
}  # fmt: skip
"""Every arm that there is, by name."""

DEFAULT_ARMS = ["teacher", "teacher_full", "teacher_vlm", "pretrained_vlm", "random", "random_full"]


@dataclass
class InitStudyConfig:
    """How much does it matter what the student begins with? Train from several beginnings with the same couplings.

    Attributes:
        teacher: the checkpoint to reflow.
        dataset: LeRobot dataset whose observations are used (its actions only by methods that need them).
        output_dir: new folder for study.json, its table, its page and the students.
        arms: beginnings: teacher, teacher_vlm (its vision-language model with a fresh action head), pretrained_vlm (the
            one that the checkpoint's config names, all else fresh) and random train what the family's adapter trains
            by default, for most the action head; with _full behind the name everything is trained. By default
            teacher, teacher_full, teacher_vlm, pretrained_vlm, random and random_full, as far as the teacher has them.
        learning_rates: peak learning rates; every arm is trained with each.
        seeds: a run of every arm and learning rate for each.
        steps: optimiser steps of each run.
        checkpoints: steps at which students are looked at, the last being steps; by default 0, an eighth, a quarter,
            half and all of steps.
        level: the gap at one step of which is told after how many steps an arm falls under it, a share.
        log_freq: steps between entries of the loss curve.
        keep_checkpoints: keep all checkpoints on disk; otherwise the last of each run is kept, and the others until
            they are measured.
        batch_size: couplings that are looked at in one go.
        gradient_accumulation_steps: how often that is done in a step.
        num_workers: processes that read observations ahead while the buffer is filled.
        device: cuda, mps or cpu; by default the checkpoint's, or what is available.
        tolerance_s: seconds by which a video's frame may miss its timestamp, as in LeRobot.
        rename_map: observation keys of dataset and environment to keys of the policy, as JSON.
        resume: go on with the study whose study.json --config_path names; arms, learning rates and seeds may be added,
            and an environment where there was none and checkpoints were kept.
        method: how students are trained.
        coupling: how the teacher's ODE is solved.
        buffer: how many couplings are kept in memory.
        optimizer: what makes steps of gradients; its rate is one of learning_rates.
        env: environment to run episodes in, with the options that lerobot-eval has for it; without it none are run.
        eval: how episodes are run.
        measure: how gaps and curvature are measured.
    """

    teacher: TeacherConfig
    dataset: DatasetConfig
    output_dir: Path
    arms: list[str] | None = None
    learning_rates: list[float] = field(default_factory=lambda: [1e-4, 2e-5])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    steps: int = 2000
    checkpoints: list[int] | None = None
    level: float = 0.05
    log_freq: int = 50
    keep_checkpoints: bool = False
    batch_size: int = 64
    gradient_accumulation_steps: int = 1
    num_workers: int = 4
    device: str | None = None
    tolerance_s: float = TOLERANCE_S
    rename_map: dict[str, str] = field(default_factory=dict)
    resume: bool = False
    method: MethodConfig = field(default_factory=ReflowMethodConfig)
    coupling: CouplingConfig = field(default_factory=CouplingConfig)
    buffer: BufferConfig = field(default_factory=BufferConfig)
    optimizer: OptimizerConfig = field(default_factory=SOAPConfig)
    env: EnvConfig | None = None
    eval: EpisodesConfig = field(default_factory=EpisodesConfig)
    measure: CompareMeasureConfig = field(default_factory=CompareMeasureConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "log_freq", "batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: give at least 1.")
        if self.num_workers < 0:
            raise UserError(f"num_workers={self.num_workers}: give 0 or more.")
        if not 0.0 < self.level < math.inf:
            raise UserError(f"level={self.level:g}: give a share above 0, such as 0.05 for 5 %.")
        _check_seeds(self.seeds)
        _check_rates(self.learning_rates, self.optimizer)
        _check_arms(self.arms)
        if self.checkpoints is None:
            parts = (LOOKS // 2**i for i in range(LOOKS.bit_length()))
            self.checkpoints = sorted({0, *(self.steps // part for part in parts)})
        if sorted(set(self.checkpoints)) != self.checkpoints or self.checkpoints[-1:] != [self.steps]:
            raise UserError(
                f"checkpoints={self.checkpoints}: give steps in rising order, the last of them steps={self.steps}."
            )
        if self.checkpoints[0] < 0:
            raise UserError(f"checkpoints={self.checkpoints}: give steps from 0.")
        if self.env is None and self.eval != EpisodesConfig():
            raise UserError(
                "eval: these options are about episodes; give --env.type as well, or leave them out."
            )
        if not self.method.build().needs_couplings:
            raise UserError(
                f"method.type={self.method.get_choice_name(type(self.method))}: the method does not look at couplings, "
                "which are what all arms have in common; choose another."
            )


def _check_seeds(seeds: list[int]) -> None:
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"seeds={seeds}: give whole numbers from 0, each once, such as [0,1,2].")


def _check_rates(rates: list[float], optimizer: OptimizerConfig) -> None:
    if not rates or len(set(rates)) < len(rates) or not all(0 < rate < math.inf for rate in rates):
        raise UserError(
            f"learning_rates={rates}: give numbers above 0, at least one, each once, such as [1e-4,2e-5]."
        )
    if optimizer.lr != OptimizerConfig.lr and optimizer.lr not in rates:
        raise UserError(f"optimizer.lr={optimizer.lr:g}: give --learning_rates='[{optimizer.lr:g}]' instead.")


def _check_arms(arms: list[str] | None) -> None:
    if arms is None:
        return
    if not arms or len(set(arms)) < len(arms):
        raise UserError(
            f"arms=[{','.join(arms)}]: give at least one, each once, such as [teacher,teacher_vlm]."
        )
    for name in arms:
        if name not in ARMS:
            close = difflib.get_close_matches(name, ARMS, n=2, cutoff=0.6)
            hint = f"did you mean {' or '.join(close)}?" if close else f"choose of {', '.join(ARMS)}."
            raise UserError(f"arms holds {name!r}, which is no arm; {hint}")
