"""All settings of `chordflow evaluate`; the command line is made from them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lerobot.envs.configs import EnvConfig

from chordflow.couplings import TOLERANCE_S, DatasetConfig
from chordflow.errors import UserError
from chordflow.experiments.config import TeacherConfig
from chordflow.experiments.diagnose import DiagnoseMeasureConfig
from chordflow.results.schema import STUDENT, TEACHER

NOISES = ("paired", "lerobot")
DELAY_MODES = ("sync", "async", "rtc")
HOLDS = ("zeros", "last")


@dataclass
class CandidateConfig:
    """The checkpoint in question.

    Attributes:
        path: `pretrained_model` folder of a LeRobot checkpoint, a run's folder, or a Hub id.
        revision: branch, tag or commit on the Hub.
        num_inference_steps: Euler steps; by default what the checkpoint is saved with.
    """

    path: str
    revision: str | None = None
    num_inference_steps: int | None = None

    def __post_init__(self) -> None:
        if self.num_inference_steps is not None and self.num_inference_steps < 1:
            raise UserError(f"student.num_inference_steps={self.num_inference_steps}: give at least 1.")


@dataclass
class RolloutConfig:
    """Episodes, with LeRobot's names.

    Attributes:
        n_episodes: episodes of every task for each policy; where the run is sequential, at most.
        batch_size: episodes side by side; for speed, results depend on it by rounding alone.
        num_workers: processes that hold the environments; 0 holds them in this one.
        n_action_steps: executed actions of each chunk; by default the checkpoint's.
        teacher_num_steps: further step counts at which the untrained teacher runs, beside its own and the
            student's.
        num_clips: episodes in the moving picture; 0 for none.
    """

    n_episodes: int = 50
    batch_size: int = 16
    num_workers: int = 0
    n_action_steps: int | None = None
    teacher_num_steps: list[int] = field(default_factory=list)
    num_clips: int = 3

    def __post_init__(self) -> None:
        least = {"n_episodes": 1, "batch_size": 1, "num_workers": 0, "num_clips": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise UserError(f"eval.{name}={getattr(self, name)}: give at least {value}.")
        if self.n_action_steps is not None and self.n_action_steps < 1:
            raise UserError(f"eval.n_action_steps={self.n_action_steps}: give at least 1.")
        if any(steps < 1 for steps in self.teacher_num_steps):
            raise UserError(
                f"eval.teacher_num_steps={self.teacher_num_steps}: give step counts of at least 1."
            )


@dataclass
class SequentialConfig:
    """Stop as soon as the pairs decide.

    Attributes:
        enable: look after every block of episodes, and stop when each policy is decided to be non-inferior or
            inferior to the teacher at the margin; at the latest after eval.n_episodes.
        min_episodes: never stop before this many episodes of every task.
    """

    enable: bool = False
    min_episodes: int = 30

    def __post_init__(self) -> None:
        if self.min_episodes < 1:
            raise UserError(f"sequential.min_episodes={self.min_episodes}: give at least 1.")


@dataclass
class DelayConfig:
    """Rollouts under an inference delay.

    Attributes:
        control_steps: delays to inject, in control steps; empty for none.
        modes: what the robot does meanwhile: sync (it waits), async (it goes on with the old chunk) or rtc (as
            async, with LeRobot's real-time chunking).
        num_steps: Euler steps at which every policy runs.
        hold: what a waiting robot is sent: zeros, for actions that are moves or velocities, or the last action, for
            actions that are positions.
        reference_weight: guidance weight of real-time chunking that is shown beside the one that follows the number
            of steps; LeRobot's default is 10 at every number.
        n_episodes: episodes of every task; by default eval.n_episodes.
    """

    control_steps: list[int] = field(default_factory=list)
    modes: list[str] = field(default_factory=lambda: ["sync", "rtc"])
    num_steps: list[int] = field(default_factory=lambda: [1, 2, 10])
    hold: str = "zeros"
    reference_weight: float = 10.0
    n_episodes: int | None = None

    def __post_init__(self) -> None:
        if any(delay < 1 for delay in self.control_steps):
            raise UserError(
                f"delay.control_steps={self.control_steps}: give delays of at least 1 control step."
            )
        wrong = [mode for mode in self.modes if mode not in DELAY_MODES]
        if wrong or not self.modes:
            raise UserError(f"delay.modes={self.modes}: choose from {', '.join(DELAY_MODES)}.")
        if not self.num_steps or min(self.num_steps) < 1:
            raise UserError(
                f"delay.num_steps={self.num_steps}: give step counts of at least 1, such as [1,2,10]."
            )
        if self.hold not in HOLDS:
            raise UserError(f"delay.hold={self.hold}: choose {' or '.join(HOLDS)}.")
        if not self.reference_weight > 0:
            raise UserError(f"delay.reference_weight={self.reference_weight}: give a weight above 0.")
        if self.n_episodes is not None and self.n_episodes < 1:
            raise UserError(f"delay.n_episodes={self.n_episodes}: give at least 1.")


@dataclass
class EvaluateConfig:
    """Compare few-step policies with their teacher: gaps on a dataset, paired episodes in an environment.

    Attributes:
        teacher: the checkpoint as deployed, against which all is measured.
        output_dir: new folder for results, episodes, pictures and the report.
        policies: further checkpoints, each a column of its own, as NAME=PATH or NAME=PATH@STEPS.
        noise: paired gives every policy the same noise in the same episode; lerobot draws it as lerobot-eval does, to
            reproduce its episodes (with the same seed and batch size; they are not paired).
        margin: by how many points success may be lower for a policy to count as non-inferior.
        seed: of the first episode; the others follow. As LeRobot's --seed.
        device: cuda, mps or cpu; by default the checkpoint's, or what is available.
        tolerance_s: seconds by which a video's frame may miss its timestamp, as in LeRobot.
        rename_map: observation keys of dataset and environment to keys of the policy, as JSON; replaces the
            checkpoint's own.
        resume: go on with the run whose evaluate_config.json --config_path names; no episode is run twice.
        student: the checkpoint in question.
        dataset: LeRobot dataset to measure gaps, curvature and latency on; without it they are left out.
        env: environment to run episodes in, with the options that lerobot-eval has for it; without it none are run.
        eval: how episodes are run.
        sequential: whether the run may stop early.
        delay: inference delays to inject.
        measure: how much is measured on the dataset; defaults are those of diagnose.
    """

    teacher: TeacherConfig
    output_dir: Path
    policies: list[str] = field(default_factory=list)
    noise: str = "paired"
    margin: float = 2.0
    seed: int = 1000
    device: str | None = None
    tolerance_s: float = TOLERANCE_S
    rename_map: dict[str, str] = field(default_factory=dict)
    resume: bool = False
    student: CandidateConfig | None = None
    dataset: DatasetConfig | None = None
    env: EnvConfig | None = None
    eval: RolloutConfig = field(default_factory=RolloutConfig)
    sequential: SequentialConfig = field(default_factory=SequentialConfig)
    delay: DelayConfig = field(default_factory=DelayConfig)
    measure: DiagnoseMeasureConfig = field(default_factory=DiagnoseMeasureConfig)

    def __post_init__(self) -> None:
        if self.noise not in NOISES:
            raise UserError(f"noise={self.noise}: choose {' or '.join(NOISES)}.")
        if not 0 < self.margin < 100:
            raise UserError(f"margin={self.margin}: give percentage points above 0 and below 100, such as 2.")
        if self.seed < 0:
            raise UserError(f"seed={self.seed}: give 0 or more.")
        if self.student is None and not self.policies:
            raise UserError(
                "student.path is missing: give the checkpoint in question, or --policies=[NAME=PATH]."
            )
        if self.dataset is None and self.env is None:
            raise UserError(
                "neither a dataset nor an environment is given; give --dataset.repo_id to measure gaps and latency, "
                "--env.type to run episodes, or both."
            )
        if self.noise == "lerobot" and (self.sequential.enable or self.delay.control_steps):
            raise UserError(
                "noise=lerobot does not pair episodes, so sequential.enable and delay.control_steps cannot be used "
                "with it; leave them out, or noise=paired."
            )
        if self.env is None and (self.sequential.enable or self.delay.control_steps):
            raise UserError("sequential and delay are about episodes; name an environment with --env.type.")
        self.candidates()

    @property
    def margin_fraction(self) -> float:
        """The margin as a fraction."""
        return self.margin / 100

    def candidates(self) -> dict[str, CandidateConfig]:
        """The policies held against the teacher, by name, the student first.

        Raises:
            UserError: if a name or path cannot be used.
        """
        found: dict[str, CandidateConfig] = {}
        if self.student is not None:
            found[STUDENT] = self.student
        for text in self.policies:
            name, candidate = _parse_policy(text)
            if name in (TEACHER, *found):
                raise UserError(f"policies={text}: the name {name!r} is taken; give another.")
            found[name] = candidate
        return found


def _parse_policy(text: str) -> tuple[str, CandidateConfig]:
    name, equals, path = text.partition("=")
    if not equals or not re.fullmatch(r"[\w.+-]+", name) or not path:
        raise UserError(
            f"policies={text}: write NAME=PATH or NAME=PATH@STEPS, a name of letters, digits, '.', '+', '-' or '_'."
        )
    steps: Any = None
    match = re.fullmatch(r"(.+)@(\d+)", path)
    if match:
        path, steps = match.group(1), int(match.group(2))
        if steps < 1:
            raise UserError(f"policies={text}: give at least 1 step.")
    return name, CandidateConfig(path, num_inference_steps=steps)
