"""Settings of `chordflow study rounds`, and the arms that they name."""

from __future__ import annotations

import typing
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from lerobot.envs.configs import EnvConfig

from chordflow.couplings import TOLERANCE_S, BufferConfig, DatasetConfig
from chordflow.errors import UserError
from chordflow.experiments.compare_config import CompareMeasureConfig, EpisodesConfig
from chordflow.experiments.config import TeacherConfig
from chordflow.flow.solvers import SOLVERS
from chordflow.results.paying import LEAST_GAIN, check_least_gain
from chordflow.results.rounds_study import USUAL_SOLVER, RoundArm, Start
from chordflow.training.optimizers import OptimizerConfig, SOAPConfig

STUDY, TABLE, PAGE = "rounds.json", "rounds.md", "rounds.html"
"""What a study of rounds writes beside its students."""

ADDABLE = (
    "rounds", "starts", "solvers", "real_data_shares", "crossed", "seeds", "least_gain", "output_dir", "resume",
    "tolerance_s",
)  # fmt: skip
"""Settings that may be another when a study is gone on with."""

STARTS: tuple[Start, ...] = typing.get_args(Start)


@dataclass
class RoundsStudyConfig:
    """When does another round of reflow stop paying? Train several rounds, several ways, and measure each student.

    Attributes:
        teacher: the checkpoint to reflow, the first teacher.
        dataset: LeRobot dataset whose observations are used (its actions only by arms with a share of real data).
        output_dir: new folder for rounds.json, its table, its page and the students.
        rounds: of each arm; each student teaches the next.
        starts: what the student of a round begins as: last (that of the round before), first (the first teacher),
            fresh (the teacher's vision-language model with a fresh action head); or once, a single round of the steps
            of all rounds together.
        solvers: of the couplings. euler takes the steps of the teacher as deployed, at least ten, evenly spaced; the
            others take their defaults in chordflow reflow.
        real_data_shares: shares of every batch that are demonstrations.
        crossed: train all combinations of starts, solvers and shares; otherwise the first of each, and then one
            departure from these at a time.
        seeds: a run of every arm for each.
        steps: optimiser steps of each round.
        least_gain: a round pays where it reduces curvature, or the gap at one step to the first teacher's converged
            ODE, by this share or more, and the gap does not grow.
        batch_size: couplings that are looked at in one go.
        gradient_accumulation_steps: how often that is done in a step.
        num_workers: processes that read observations ahead while the buffer is filled.
        device: cuda, mps or cpu; by default the checkpoint's, or what is available.
        tolerance_s: seconds by which a video's frame may miss its timestamp, as in LeRobot.
        rename_map: observation keys of dataset and environment to keys of the policy, as JSON.
        resume: go on with the study whose rounds.json --config_path names; rounds, arms and seeds may be added, and an
            environment where there was none.
        buffer: how many couplings are kept in memory.
        optimizer: what makes steps of gradients.
        env: environment to run episodes in, with the options that lerobot-eval has for it; without it none are run.
        eval: how episodes are run.
        measure: how gaps, curvature and spread are measured.
    """

    teacher: TeacherConfig
    dataset: DatasetConfig
    output_dir: Path
    rounds: int = 3
    starts: list[str] = field(default_factory=lambda: ["last", "first", "once"])
    solvers: list[str] = field(default_factory=lambda: [USUAL_SOLVER, "euler"])
    real_data_shares: list[float] = field(default_factory=lambda: [0.0, 0.1])
    crossed: bool = False
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    steps: int = 2000
    least_gain: float = LEAST_GAIN
    batch_size: int = 64
    gradient_accumulation_steps: int = 1
    num_workers: int = 4
    device: str | None = None
    tolerance_s: float = TOLERANCE_S
    rename_map: dict[str, str] = field(default_factory=dict)
    resume: bool = False
    buffer: BufferConfig = field(default_factory=BufferConfig)
    optimizer: OptimizerConfig = field(default_factory=SOAPConfig)
    env: EnvConfig | None = None
    eval: EpisodesConfig = field(default_factory=EpisodesConfig)
    measure: CompareMeasureConfig = field(default_factory=CompareMeasureConfig)

    def __post_init__(self) -> None:
        if self.rounds < 2:
            raise UserError(f"rounds={self.rounds}: give at least 2; a single one is chordflow compare's.")
        for name in ("steps", "batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: give at least 1.")
        if self.num_workers < 0:
            raise UserError(f"num_workers={self.num_workers}: give 0 or more.")
        check_least_gain("least_gain", self.least_gain)
        _check_choices("starts", self.starts, STARTS)
        _check_choices("solvers", self.solvers, tuple(SOLVERS))
        shares = self.real_data_shares
        if not shares or len(set(shares)) < len(shares) or not all(0.0 <= share < 1.0 for share in shares):
            raise UserError(
                f"real_data_shares={shares}: give shares from 0 up to but not 1, each once, such as [0,0.1]."
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise UserError(f"seeds={self.seeds}: give whole numbers from 0, each once, such as [0,1,2].")
        if self.env is None and self.eval != EpisodesConfig():
            raise UserError(
                "eval: these options are about episodes; give --env.type as well, or leave them out."
            )

    @property
    def arms(self) -> list[RoundArm]:
        """The ways to go on from round to round, the one that the others depart from first."""
        factors = (self.starts, self.solvers, self.real_data_shares)
        arms = [
            RoundArm(typing.cast(Start, start), solver, share) for start, solver, share in product(*factors)
        ]
        usual = (self.starts[0], self.solvers[0], self.real_data_shares[0])

        def kept(arm: RoundArm) -> list[bool]:
            own = (arm.start, arm.solver, arm.real_data_share)
            return [a == b for a, b in zip(own, usual, strict=True)]

        # By in how many things an arm departs; of one, starts before solvers before shares.
        order = sorted(arms, key=lambda arm: (-sum(kept(arm)), kept(arm)))
        return order if self.crossed else [arm for arm in order if sum(kept(arm)) >= 2]


def _check_choices(name: str, given: list[str], known: tuple[str, ...]) -> None:
    for value in given:
        if value not in known:
            raise UserError(f"{name} holds {value!r}; choose of {', '.join(known)}.")
    if not given or len(set(given)) < len(given):
        raise UserError(f"{name}=[{','.join(given)}]: give at least one, each once, of {', '.join(known)}.")
