"""All settings of reflow and couple; their options are made from them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lerobot.envs.configs import EnvConfig

from chordflow.checks import Checked, check_fields, number
from chordflow.couplings import LEAST_STEPS, TOLERANCE_S, BufferConfig, CouplingConfig, DatasetConfig
from chordflow.errors import UserError
from chordflow.evaluation.paired import MeasureConfig
from chordflow.experiments.share import HubConfig, WandBConfig
from chordflow.policies import FlowPolicy, Role
from chordflow.results.paying import LEAST_GAIN
from chordflow.training.methods import MethodConfig, ReflowMethodConfig
from chordflow.training.optimizers import OptimizerConfig, SOAPConfig
from chordflow.training.steps import EMAConfig, SchedulerConfig
from chordflow.training.student import StudentInit


@dataclass
class SourceConfig:
    """Where a checkpoint is.

    Attributes:
        path: `pretrained_model` folder of a LeRobot checkpoint, a run's folder, or a Hub id.
        revision: branch, tag or commit on the Hub.
    """

    path: str
    revision: str | None = None


@dataclass
class CheckpointConfig(SourceConfig):
    """A checkpoint, and how it is deployed.

    Attributes:
        num_inference_steps: Euler steps of the policy as deployed; by default what the checkpoint is saved with. A
            teacher of `reflow` that is saved with 1 is taken at ten.
    """

    num_inference_steps: int | None = None

    def check(self, option: str) -> None:
        """Refuses a number of steps that is none.

        Args:
            option: what the checkpoint is to the command, such as `teacher`.

        Raises:
            UserError: naming the option.
        """
        check_fields(self, f"{option}.", "num_inference_steps", at_least=1)

    def deployed_steps(self, teacher: FlowPolicy) -> int:
        """A teacher's steps as deployed: what the user says, or what the checkpoint is saved with.

        A teacher that is itself a student saved with a single step is measured at ten, unless the user says otherwise.
        """
        if self.num_inference_steps is not None:
            return self.num_inference_steps
        return teacher.default_num_steps if teacher.default_num_steps > 1 else LEAST_STEPS


@dataclass
class StudentConfig:
    """How the student begins and what of it is trained.

    Attributes:
        init: teacher (its weights), teacher_vlm (its vision-language model with a fresh action head), pretrained_vlm
            (the one that the checkpoint's config names, everything else fresh), or random (everything fresh).
        init_path: a checkpoint of the teacher's family and shapes whose weights the student begins with instead, such
            as a student of an earlier run.
        train: parts that are trained, of action_head, prefix_projections, language, vision; by default what the
            family's adapter says, for most of them [action_head]. While the last three are frozen, teacher and
            student share one encoded prefix.
    """

    init: StudentInit = StudentInit.TEACHER
    init_path: str | None = None
    train: list[Role] | None = None

    def __post_init__(self) -> None:
        if self.init_path is not None and self.init != StudentInit.TEACHER:
            raise UserError(
                f"student.init_path={self.init_path}: student.init={self.init} begins with other weights; give one of "
                "the two."
            )
        if self.train == []:
            raise UserError("student.train=[]: nothing would be trained; give at least [action_head].")


AUTO: Literal["auto"] = "auto"
"""As many rounds as pay."""


@dataclass
class AutoRoundsConfig(Checked):
    """When `rounds=auto` stops.

    Attributes:
        most: rounds at most.
        least_gain: a round pays where it reduces curvature, or the gap at num_inference_steps to the first teacher's
            converged ODE, by this share or more, and the gap does not grow; the first one that does not is the last.
    """

    PREFIX = "auto_rounds."

    most: int = number(4, at_least=2, note=", or --rounds=1")
    least_gain: float = number(LEAST_GAIN, at_least=0, below=1)


RECIPES: dict[str, dict[str, Any]] = {
    # A student for any number of steps; the defaults.
    "all_steps": {"method": {"type": "reflow"}},
    # The most exact student at one step, and for that alone. What decides its error is the boundary between modes,
    # where only more couplings help.
    "one_step": {
        "method": {"type": "endpoint"},
        "buffer": {"noises_per_observation": 6, "uses_per_coupling": 3},
    },
}
"""Settings that go together, by name: nested, those that differ from the defaults."""


@dataclass
class CollectConfig(Checked):
    """Observations from episodes in an environment, with observations=rollout.

    Attributes:
        share: share of the observations that come from episodes, above 0 and at most 1; the rest is the dataset's.
        num_observations: observations that are collected at a time; the teacher acts before the first training step,
            the student as it then is from there on.
        passes: how often they are gone through before others are collected.
        between_share: share of the observations between two chunks that is kept, at random, beside those at chunks.
        batch_size: episodes side by side.
        num_workers: processes that hold the environments; 0 holds them in this one.
        seed: of the first episode, before a hundred thousand times the last two digits of the run's seed are added; the
            others follow. By default far from those of chordflow evaluate.
    """

    PREFIX = "collect."

    share: float = number(0.5, above=0, at_most=1, note=", or leave --observations=rollout out")
    num_observations: int = number(512, at_least=1)
    passes: int = number(1, at_least=1)
    between_share: float = number(0.1, at_least=0, at_most=1)
    batch_size: int = number(16, at_least=1)
    num_workers: int = number(0, at_least=0)
    seed: int = number(1_000_000_000, at_least=0)


@dataclass
class CouplingsConfig:
    """A store of couplings to train from, in place of making them.

    Attributes:
        path: folder that `chordflow couple` has made; teacher, dataset and how couplings are made are then its
            own, and need not be given again.
        num_observations: how many of its observations are used, whole blocks of them; by default all.
    """

    path: str | None = None
    num_observations: int | None = None

    def __post_init__(self) -> None:
        if self.num_observations is not None and self.path is None:
            raise UserError(
                f"couplings.num_observations={self.num_observations}: it says how much of a store is used; give "
                "--couplings.path as well, or --buffer.num_observations instead."
            )
        check_fields(self, "couplings.", "num_observations", at_least=1)


@dataclass
class TrainingSettings(Checked):
    """What every training has, that of `chordflow reflow` and that of a study's arm.

    Attributes:
        teacher: the checkpoint to reflow.
        dataset: LeRobot dataset whose observations are used (its actions only by methods that need them).
        batch_size: couplings in one forward pass of a process.
        gradient_accumulation_steps: batches of a step, which is as one of that many times batch_size, in the memory
            of one.
        num_workers: processes that read observations ahead while the buffer is filled.
        device: cuda, mps or cpu; by default the checkpoint's, or what is available.
        tolerance_s: seconds by which a video's frame may miss its timestamp, as in LeRobot.
        student: initialisation and freezing.
        method: how the student is trained.
        coupling: how the teacher's ODE is solved.
        buffer: how many couplings are kept in memory.
        optimizer: what makes steps of gradients.
        scheduler: warm-up and cosine.
        ema: moving average of the weights.
    """

    teacher: CheckpointConfig
    dataset: DatasetConfig
    output_dir: Path
    batch_size: int = number(64, at_least=1)
    gradient_accumulation_steps: int = number(1, at_least=1)
    num_workers: int = number(4, at_least=0)
    log_freq: int = number(50, at_least=1)
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

    def __post_init__(self) -> None:
        self.teacher.check("teacher")
        super().__post_init__()


@dataclass
class ReflowJobConfig(TrainingSettings):
    """Reflow a flow-matching policy: same checkpoint, same keys, acting in one or two steps.

    Attributes:
        output_dir: new folder for checkpoints, metrics, results and pictures.
        recipe: settings that go together, under all other options: all_steps (a student for every number
            of steps; the defaults) or one_step (the most exact student at one step, and for that alone). Recorded
            only if none of its settings was given another value.
        rounds: how often to reflow, or auto for as often as it pays; each round begins as the student of the round
            before and is taught by it; steps and all other options count for each round.
        steps: optimiser steps.
        num_inference_steps: Euler steps that the student is saved with.
        seed: of everything random in training.
        observations: whose observations couplings are made for: dataset, or rollout to mix them with observations of
            episodes that teacher and student run in an environment while training goes on.
        log_freq: steps between lines of metrics.jsonl.
        save_freq: steps between checkpoints that stay; 0 keeps only the last.
        save_minutes: minutes between checkpoints of which each replaces the one before, as does the one that Ctrl-C or
            SIGTERM leaves; 0 for none by the clock.
        rename_map: observation keys of the dataset to keys of the policy, as JSON; replaces the checkpoint's own.
        resume: resume from the checkpoint that --config_path names.
        auto_rounds: when rounds=auto stops.
        couplings: a store of couplings that `chordflow couple` has made, in place of making them.
        env: environment to collect observations in, with the options that lerobot-eval has for it.
        collect: how observations are collected there.
        measure: what is measured after training.
        policy: where on the Hub the student goes.
        wandb: what Weights & Biases shows of the run.
    """

    recipe: Literal["all_steps", "one_step"] | None = None
    rounds: int | Literal["auto"] = 1
    steps: int = number(20_000, at_least=1)
    num_inference_steps: int = number(1, at_least=1)
    seed: int = 1000
    observations: Literal["dataset", "rollout"] = "dataset"
    save_freq: int = number(2_000, at_least=0)
    save_minutes: float = number(10.0, at_least=0)
    auto_rounds: AutoRoundsConfig = field(default_factory=AutoRoundsConfig)
    couplings: CouplingsConfig = field(default_factory=CouplingsConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    policy: HubConfig = field(default_factory=HubConfig)
    wandb: WandBConfig = field(default_factory=WandBConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds != AUTO:
            check_fields(self, "", "rounds", at_least=1)
        if self.rounds != AUTO and self.auto_rounds != AutoRoundsConfig():
            raise UserError(
                f"auto_rounds: these options are about rounds=auto, and rounds={self.rounds}; give --rounds=auto, or "
                "leave them out."
            )
        method = self.method.build()
        if self.observations == "rollout":
            self._check_rollout(needs_actions=method.needs.actions)
        elif self.env is not None:
            raise UserError(
                f"env.type={self.env.type}: it is used with --observations=rollout alone; give both, or neither."
            )
        elif self.collect != CollectConfig():
            raise UserError(
                "collect: these options are about --observations=rollout; give it and --env.type, or leave them out."
            )
        if method.step_counts is not None and self.num_inference_steps not in method.step_counts:
            raise UserError(
                f"num_inference_steps={self.num_inference_steps}: with these settings method {self.method_name} trains "
                "for one step alone; leave the option out, or choose another method."
            )

    @property
    def method_name(self) -> str:
        """The method's `type`."""
        return self.method.get_choice_name(type(self.method))

    def _check_rollout(self, *, needs_actions: bool) -> None:
        """Makes sure that observations from episodes can be had, and lack nothing that the training needs."""
        if self.env is None:
            raise UserError(
                "observations=rollout needs an environment to run episodes in; name one with --env.type, or leave the "
                "option out."
            )
        if needs_actions:
            raise UserError(
                f"observations=rollout: method.type={self.method_name} with these settings trains on demonstrated "
                "actions, which episodes of a policy do not have; choose --method.type=reflow without real_data_share."
            )
        if self.couplings.path is not None:
            raise UserError(
                f"observations=rollout: the couplings in couplings.path={self.couplings.path} were made on a dataset's "
                "observations; leave one of the two out."
            )
        if self.buffer.uses_per_coupling is None:
            raise UserError(
                "observations=rollout: with buffer.uses_per_coupling=null every coupling is made before the first "
                "step, so that the student would never act; give a number."
            )


@dataclass
class BlocksConfig:
    """How observations are put together; the same as in training.

    Attributes:
        noises_per_observation: noises that share one encoded observation, on average.
        block_size: observations that are encoded together, and make one file.
        adaptive_share: share of the noises that goes to the observations in proportion to how far their
            endpoints spread; the rest, at least two each, goes to all alike, so that of 1 or 2
            noises_per_observation none is left for it.
    """

    noises_per_observation: int = 4
    block_size: int = 64
    adaptive_share: float = 0.5

    def __post_init__(self) -> None:
        self.of(1)

    def of(self, num_observations: int) -> BufferConfig:
        """A buffer of that many observations that is never refreshed."""
        return BufferConfig(num_observations, uses_per_coupling=None, **asdict(self))


@dataclass
class CoupleConfig(Checked):
    """Make a store of couplings: a teacher's noises and endpoints on disk, for many trainings.

    Attributes:
        teacher: the checkpoint whose couplings are made.
        dataset: LeRobot dataset whose observations are used (its actions are not).
        output_dir: folder of the store.
        num_observations: observations in the store, rounded up to whole blocks; by default every training
            observation of the dataset once. Beyond that number they are gone through again with new noises.
        store_context: store the encoded observations too, so that training reads no images and encodes nothing;
            how much room they take is printed before the first is written.
        batch_size: couplings that are solved at once; the same as in training gives the same bits.
        seed: of the order of observations and of the noises.
        num_workers: processes that read observations ahead.
        device: cuda, mps or cpu; by default the checkpoint's, or what is available.
        tolerance_s: seconds by which a video's frame may miss its timestamp, as in LeRobot.
        rename_map: observation keys of the dataset to keys of the policy, as JSON; replaces the checkpoint's own.
        resume: resume the store in output_dir: blocks that are missing or damaged are made, all others stay.
            Settings can be given by --config_path=STORE/manifest.json.
        coupling: how the teacher's ODE is solved.
        buffer: how observations are put together; the same as in training.
    """

    teacher: SourceConfig
    dataset: DatasetConfig
    output_dir: Path
    num_observations: int | None = number(None, at_least=1)
    store_context: bool = False
    batch_size: int = number(64, at_least=1)
    seed: int = 1000
    num_workers: int = number(4, at_least=0)
    device: str | None = None
    tolerance_s: float = TOLERANCE_S
    rename_map: dict[str, str] = field(default_factory=dict)
    resume: bool = False
    coupling: CouplingConfig = field(default_factory=CouplingConfig)
    buffer: BlocksConfig = field(default_factory=BlocksConfig)


def env_name(env: EnvConfig | None) -> str:
    """An environment with its task, as tables name it; empty for none."""
    if env is None:
        return ""
    return f"{env.type}, {env.task}" if env.task else str(env.type)
