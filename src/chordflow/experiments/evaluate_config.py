"""All settings of `chordflow evaluate`; the command line is made from them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lerobot.envs.configs import EnvConfig

from chordflow.checks import Checked, check_filled, number
from chordflow.couplings import TOLERANCE_S, DatasetConfig
from chordflow.errors import UserError
from chordflow.experiments.config import CheckpointConfig
from chordflow.experiments.diagnose import DiagnoseMeasureConfig
from chordflow.results.schema import STUDENT, TEACHER
from chordflow.rollouts.delay import Hold


@dataclass
class ActingConfig(Checked):
    """How episodes are run, with LeRobot's names.

    Attributes:
        batch_size: episodes side by side; for speed, results depend on it by rounding alone.
        num_workers: processes that hold the environments; 0 holds them in this one.
        n_action_steps: executed actions of each chunk; by default the checkpoint's.
    """

    PREFIX = "eval."

    n_episodes: int = number(50, at_least=1)
    batch_size: int = number(16, at_least=1)
    num_workers: int = number(0, at_least=0)
    n_action_steps: int | None = number(None, at_least=1)


@dataclass
class RolloutConfig(ActingConfig):
    """Episodes of an evaluation.

    Attributes:
        n_episodes: episodes of every task for each policy; where the run is sequential, at most.
        teacher_num_steps: further step counts at which the untrained teacher runs, beside its own and the
            student's.
        num_clips: episodes in the moving picture; 0 for none.
    """

    teacher_num_steps: list[int] = number([], at_least=1)
    num_clips: int = number(3, at_least=0)


@dataclass
class SequentialConfig(Checked):
    """Stop as soon as the pairs decide.

    Attributes:
        enable: look after every block of episodes, and stop when each policy is decided to be non-inferior or
            inferior to the teacher at the margin; at the latest after eval.n_episodes.
        min_episodes: never stop before this many episodes of every task.
    """

    PREFIX = "sequential."

    enable: bool = False
    min_episodes: int = number(30, at_least=1)


@dataclass
class DelayConfig(Checked):
    """Rollouts under an inference delay.

    Attributes:
        control_steps: delays to inject, in control steps; empty for none.
        modes: what the robot does meanwhile: sync (it waits), async (it continues with the old chunk) or rtc (as
            async, with LeRobot's real-time chunking).
        num_steps: Euler steps at which every policy runs.
        hold: what a waiting robot is sent: zeros, for actions that are moves or velocities, or the last action, for
            actions that are positions.
        reference_weight: guidance weight of real-time chunking that is shown beside the one that follows the number
            of steps; LeRobot's default is 10 at every number.
        n_episodes: episodes of every task; by default eval.n_episodes.
    """

    PREFIX = "delay."

    control_steps: list[int] = number([], at_least=1)
    modes: list[Literal["sync", "async", "rtc"]] = field(default_factory=lambda: ["sync", "rtc"])
    num_steps: list[int] = number([1, 2, 10], at_least=1)
    hold: Hold = "zeros"
    reference_weight: float = number(10.0, above=0)
    n_episodes: int | None = number(None, at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_filled("delay.modes", self.modes)
        check_filled("delay.num_steps", self.num_steps, note=", such as [1,2,10]")


@dataclass
class EvaluateConfig(Checked):
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
        resume: resume the run whose evaluate_config.json --config_path names; no episode is run twice.
        student: the checkpoint in question.
        dataset: LeRobot dataset to measure gaps, curvature and latency on; without it they are left out.
        env: environment to run episodes in, with the options that lerobot-eval has for it; without it none are run.
        eval: how episodes are run.
        sequential: whether the run may stop early.
        delay: inference delays to inject.
        measure: how much is measured on the dataset; defaults are those of diagnose.
    """

    teacher: CheckpointConfig
    output_dir: Path
    policies: list[str] = field(default_factory=list)
    noise: Literal["paired", "lerobot"] = "paired"
    margin: float = number(2.0, above=0, below=100, note=" (percentage points), such as 2")
    seed: int = number(1000, at_least=0)
    device: str | None = None
    tolerance_s: float = TOLERANCE_S
    rename_map: dict[str, str] = field(default_factory=dict)
    resume: bool = False
    student: CheckpointConfig | None = None
    dataset: DatasetConfig | None = None
    env: EnvConfig | None = None
    eval: RolloutConfig = field(default_factory=RolloutConfig)
    sequential: SequentialConfig = field(default_factory=SequentialConfig)
    delay: DelayConfig = field(default_factory=DelayConfig)
    measure: DiagnoseMeasureConfig = field(default_factory=DiagnoseMeasureConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.teacher.check("teacher")
        if self.student is not None:
            self.student.check("student")
        if self.student is None and not self.policies:
            raise UserError(
                "student.path is missing: give the checkpoint in question, or --policies=[NAME=PATH]."
            )
        if self.dataset is None and self.env is None:
            raise UserError(
                "neither a dataset nor an environment is given; give --dataset.repo_id to measure gaps and latency, "
                "--env.type to run episodes, or both."
            )
        if self.sequential.enable or self.delay.control_steps:
            if self.noise == "lerobot":
                raise UserError(
                    "noise=lerobot does not pair episodes, so sequential.enable and delay.control_steps cannot be used "
                    "with it; leave them out, or noise=paired."
                )
            if self.env is None:
                raise UserError(
                    "sequential and delay are about episodes; name an environment with --env.type."
                )
        self.candidates()

    @property
    def margin_fraction(self) -> float:
        """The margin as a fraction."""
        return self.margin / 100

    def candidates(self) -> dict[str, CheckpointConfig]:
        """The policies compared with the teacher, by name, the student first.

        Raises:
            UserError: if a name or path cannot be used.
        """
        found: dict[str, CheckpointConfig] = {}
        if self.student is not None:
            found[STUDENT] = self.student
        for text in self.policies:
            name, equals, path = text.partition("=")
            if not equals or not re.fullmatch(r"[\w.+-]+", name) or not path:
                raise UserError(
                    f"policies={text}: write NAME=PATH or NAME=PATH@STEPS, a name of letters, digits, '.', '+', '-' or "
                    "'_'."
                )
            if name in (TEACHER, *found):
                raise UserError(f"policies={text}: the name {name!r} is taken; give another.")
            at = re.fullmatch(r"(.+)@(\d+)", path)
            found[name] = (
                CheckpointConfig(at[1], num_inference_steps=int(at[2])) if at else CheckpointConfig(path)
            )
            found[name].check(f"policies={name}")
        return found
