"""The main job: a teacher's checkpoint in, a one-step student and its measures out."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import draccus
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.configs.default import DatasetConfig as LeRobotDatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.optim import AdamWConfig
from lerobot.optim.schedulers import CosineAnnealingWithWarmupSchedulerConfig
from lerobot.utils.constants import PRETRAINED_MODEL_DIR
from torch import Tensor

from chordflow import __version__
from chordflow.console import bar, say
from chordflow.couplings import (
    BufferConfig,
    CouplingBuffer,
    CouplingConfig,
    DatasetConfig,
    Split,
    open_split,
)
from chordflow.errors import UserError
from chordflow.evaluation.measure import measure
from chordflow.evaluation.paired import MeasureConfig
from chordflow.experiments.run_folder import (
    REFLOW_CONFIG,
    how_to_go_on,
    new_folder,
    refuse_existing,
    resume_command,
)
from chordflow.policies import FlowPolicy, Role, load_flow_policy, resolve_checkpoint, save_student
from chordflow.policies.base import PREFIX_ROLES
from chordflow.policies.checkpoint import TRAIN_CONFIG, WEIGHTS, write_json
from chordflow.quiet import quiet_stdout
from chordflow.results.schema import CouplingSummary, HeldOut, LossCurve, Results, installed_versions
from chordflow.results.verdict import verdict
from chordflow.training.checkpoints import training_step
from chordflow.training.loop import (
    METRICS,
    EMAConfig,
    LoopConfig,
    OptimizerConfig,
    Progress,
    SchedulerConfig,
    Trained,
    read_metrics,
    train,
)
from chordflow.training.methods import MethodConfig, ReflowMethodConfig
from chordflow.training.student import StudentInit, make_student, shares_prefix

RESULTS = "results.json"


@dataclass
class TeacherConfig:
    """The checkpoint to reflow.

    Attributes:
        path: `pretrained_model` folder of a LeRobot checkpoint, or a Hub id.
        revision: branch, tag or commit on the Hub.
        num_inference_steps: Euler steps of the teacher as deployed, against which gaps are measured; by
            default what the checkpoint is saved with.
    """

    path: str
    revision: str | None = None
    num_inference_steps: int | None = None

    def __post_init__(self) -> None:
        if self.num_inference_steps is not None and self.num_inference_steps < 1:
            raise UserError(f"teacher.num_inference_steps={self.num_inference_steps}: give at least 1.")


@dataclass
class StudentConfig:
    """How the student begins and what of it is trained.

    Attributes:
        init: teacher (its weights), teacher_vlm (its vision-language model with a fresh action head), or
            random (everything fresh).
        train: parts that are trained, of action_head, prefix_projections, language, vision. While the last
            three are frozen, teacher and student share one encoded prefix.
    """

    init: StudentInit = StudentInit.TEACHER
    train: list[Role] = field(default_factory=lambda: [Role.ACTION_HEAD])

    def __post_init__(self) -> None:
        if not self.train:
            raise UserError("student.train=[]: nothing would be trained; give at least [action_head].")


@dataclass
class ReflowJobConfig:
    """Reflow a flow-matching policy: same checkpoint, same keys, acting in one or two steps.

    Attributes:
        teacher: the checkpoint to reflow.
        dataset: LeRobot dataset whose observations are used (its actions are not).
        output_dir: new folder for checkpoints, metrics, results and pictures.
        steps: optimiser steps.
        batch_size: couplings a step.
        num_inference_steps: Euler steps that the student is saved with.
        seed: of everything random in training.
        num_workers: processes that read observations ahead while the buffer is filled.
        log_freq: steps between lines of metrics.jsonl.
        save_freq: steps between checkpoints; 0 keeps only the last.
        device: cuda, mps or cpu; by default the checkpoint's, or what is available.
        rename_map: observation keys of the dataset to keys of the policy, as JSON.
        resume: go on from the checkpoint that --config_path names.
        student: initialisation and freezing.
        method: how the student is trained.
        coupling: how the teacher's ODE is solved.
        buffer: how many couplings are kept in memory.
        optimizer: AdamW.
        scheduler: warm-up and cosine.
        ema: moving average of the weights.
        eval: what is measured after training.
    """

    teacher: TeacherConfig
    dataset: DatasetConfig
    output_dir: Path
    steps: int = 20_000
    batch_size: int = 64
    num_inference_steps: int = 1
    seed: int = 1000
    num_workers: int = 4
    log_freq: int = 50
    save_freq: int = 2_000
    device: str | None = None
    rename_map: dict[str, str] = field(default_factory=dict)
    resume: bool = False
    student: StudentConfig = field(default_factory=StudentConfig)
    method: MethodConfig = field(default_factory=ReflowMethodConfig)
    coupling: CouplingConfig = field(default_factory=CouplingConfig)
    buffer: BufferConfig = field(default_factory=BufferConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    eval: MeasureConfig = field(default_factory=MeasureConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "num_inference_steps", "log_freq"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: give at least 1.")
        for name in ("save_freq", "num_workers"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: give 0 or more.")


@dataclass(frozen=True)
class Finished:
    """What a run leaves behind.

    Attributes:
        student: the student's `pretrained_model` folder.
        results: what was measured.
    """

    student: Path
    results: Results


def reflow(config: ReflowJobConfig, command: list[str], resume_from: Path | None = None) -> Finished:
    """Trains and measures a student.

    Args:
        config: all settings.
        command: the command line, for the results.
        resume_from: a checkpoint folder of this run.

    Raises:
        UserError: for input that cannot be used.
    """
    started = time.perf_counter()
    if resume_from is None:
        refuse_existing(config.output_dir)
    teacher_dir = resolve_checkpoint(config.teacher.path, config.teacher.revision)
    teacher = load_flow_policy(teacher_dir, device=config.device, rename_map=config.rename_map)
    teacher.module.requires_grad_(False)
    split = open_split(config.dataset, teacher, config.rename_map)
    with contextlib.nullcontext() if resume_from is not None else new_folder(config.output_dir):
        try:
            finished = _run(config, command, teacher, teacher_dir, split, resume_from)
        except KeyboardInterrupt as interrupt:
            interrupt.add_note(how_to_go_on(config.output_dir))
            raise
    say(f"Done in {time.perf_counter() - started:.0f} s.")
    return finished


def _run(
    config: ReflowJobConfig,
    command: list[str],
    teacher: FlowPolicy,
    teacher_dir: Path,
    split: Split,
    resume_from: Path | None,
) -> Finished:
    say(
        f"Teacher: {config.teacher.path} ({teacher.family}, {_millions(teacher)} parameters, "
        f"on {device_name(teacher.device)})"
    )
    say(
        f"Data:    {config.dataset.repo_id}, {len(split.train):,} observations to train on, "
        f"{len(split.held_out_episodes)} episodes held out"
    )
    trained, couplings = _train(config, teacher, teacher_dir, split, resume_from)
    student_dir = trained.checkpoint / PRETRAINED_MODEL_DIR
    say(f"Student: {student_dir}")
    results = _measure(config, command, teacher, teacher_dir, student_dir, split, trained, couplings)
    try:
        results.save(config.output_dir / RESULTS)
    except UserError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise UserError(
            f"output_dir={config.output_dir}: {RESULTS} cannot be written ({error.__cause__.strerror}); the "
            f"checkpoints are whole: make room and go on with: {resume_command(config.output_dir)}"
        ) from error
    return Finished(student_dir, results)


def check_same_teacher(config: ReflowJobConfig, sha256: str | None) -> None:
    """Makes sure that a run goes on with the teacher that it began with.

    Raises:
        UserError: if the weights at `teacher.path` have changed.
    """
    if (
        sha256 is not None
        and _sha256(resolve_checkpoint(config.teacher.path, config.teacher.revision)) != sha256
    ):
        raise UserError(
            f"teacher.path={config.teacher.path}: its weights are not those that the run began with; restore them "
            "or start a new run."
        )


def _train(
    config: ReflowJobConfig, teacher: FlowPolicy, teacher_dir: Path, split: Split, resume_from: Path | None
) -> tuple[Trained, CouplingSummary]:
    student = make_student(
        teacher,
        teacher_dir,
        config.student.init,
        config.student.train,
        seed=config.seed,
        rename_map=config.rename_map,
    )
    shared = shares_prefix(teacher, student.policy, config.student.train)
    prefix_trains = bool(set(config.student.train) & set(PREFIX_ROLES))
    buffer = CouplingBuffer(
        teacher,
        split.train,
        config.coupling,
        config.buffer,
        seed=config.seed,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        student_encode=None if shared else student.policy.encode,
        student_context=not prefix_trains,
    )
    trained_millions = sum(p.numel() for p in student.trainable.values()) / 1e6
    say(
        f"Method:  {config.method.get_choice_name(type(config.method))}, {config.steps:,} steps of "
        f"{config.batch_size}, lr {config.optimizer.lr:g}, {trained_millions:.2f} M trained parameters; "
        + ("one prefix for teacher and student" if shared else "the student encodes its own prefix")
    )

    def write(folder: Path, weights: dict[str, Tensor]) -> None:
        save_student(
            student.policy, teacher_dir, folder, {**student.fresh, **weights}, config.num_inference_steps
        )
        _write_configs(config, teacher_dir, folder)

    start = training_step(resume_from) if resume_from is not None else 0
    if start > config.steps:
        raise UserError(f"steps={config.steps}: the run has done {start} already; give at least that many.")
    with bar("couplings") as progress:
        for done in buffer.fill(min(start, config.steps - 1)):
            progress.update(done, buffer.num_blocks, _megabytes(buffer.num_bytes))
    say(
        f"Buffer:  {buffer.num_blocks * buffer.block_size:,} observations x {config.buffer.noises_per_observation} "
        f"noises by {config.coupling.num_steps} {config.coupling.solver} steps, {_megabytes(buffer.num_bytes)}"
    )
    with bar("training") as progress:

        def on_step(step: Progress) -> None:
            note = f"loss {step.loss:.5f}, lr {step.lr:.1e}, {step.samples_per_second:,.0f} samples/s"
            progress.update(step.step, config.steps, note)

        trained = train(
            _loop_config(config),
            student.policy,
            student.trainable,
            buffer,
            config.method.build(),
            config.output_dir,
            write,
            resume_from=resume_from,
            on_step=on_step,
        )
    return trained, CouplingSummary(
        observations=(buffer.first_block(config.steps - 1) + buffer.num_blocks) * buffer.block_size,
        noises_per_observation=config.buffer.noises_per_observation,
        solver=config.coupling.solver,
        num_steps=config.coupling.num_steps,
        buffer_bytes=buffer.num_bytes,
    )


def _measure(
    config: ReflowJobConfig,
    command: list[str],
    teacher: FlowPolicy,
    teacher_dir: Path,
    student_dir: Path,
    split: Split,
    trained: Trained,
    couplings: CouplingSummary,
) -> Results:
    """Measures the checkpoint as stock LeRobot reloads it, never the weights in memory."""
    student = load_flow_policy(
        student_dir, device=config.device, rename_map=config.rename_map, field="student"
    )
    teacher_steps = deployed_steps(config, teacher)
    with bar("measuring") as progress:
        measures = measure(
            teacher,
            student,
            split.held_out,
            config.eval,
            teacher_num_steps=teacher_steps,
            student_num_steps=config.num_inference_steps,
            on_progress=progress.update,
        )
    metrics = read_metrics(config.output_dir / METRICS)
    results = Results(
        command=command,
        settings=draccus.encode(config),
        versions=installed_versions(),
        device=device_name(teacher.device),
        seeds={"training": config.seed, "measuring": config.eval.seed},
        teacher=config.teacher.path,
        student=os.path.relpath(student_dir, config.output_dir),
        teacher_num_steps=teacher_steps,
        held_out=HeldOut(
            episodes=split.held_out_episodes,
            observations=measures.num_observations,
            noises=config.eval.noises_per_observation,
            maybe_seen_by_teacher=teacher_may_have_seen(teacher_dir, config.dataset, split.held_out_episodes),
        ),
        curvature=measures.curvature,
        gaps=measures.gaps,
        latency=measures.latency,
        trajectories=measures.trajectories,
        trajectory_axes=measures.trajectory_axes,
        couplings=couplings,
        loss=LossCurve([int(line["step"]) for line in metrics], [line["loss"] for line in metrics]),
        training_s=trained.seconds,
    )
    return dataclasses.replace(results, verdict=verdict(results))


def deployed_steps(config: ReflowJobConfig, teacher: FlowPolicy) -> int:
    """The teacher's steps as deployed: what the user says, or what the checkpoint is saved with.

    A teacher that is itself a student saved with a single step is measured at ten, its couplings' number,
    unless the user says otherwise.
    """
    if config.teacher.num_inference_steps is not None:
        return config.teacher.num_inference_steps
    return teacher.default_num_steps if teacher.default_num_steps > 1 else config.coupling.num_steps


def teacher_may_have_seen(teacher_dir: Path, dataset: DatasetConfig, held_out: list[int]) -> bool:
    """Whether the held-out episodes may have been in the teacher's own training.

    False only where its `train_config.json` shows that they were not: another dataset, a list of episodes
    without them, or the same share held out by LeRobot's own rule.
    """
    try:
        trained_on = json.loads((teacher_dir / TRAIN_CONFIG).read_text(encoding="utf-8"))["dataset"]
        if trained_on["repo_id"] != dataset.repo_id:
            return False
        episodes = trained_on.get("episodes")
        if episodes is not None and not set(episodes) & set(held_out):
            return False
        same_episodes = episodes == dataset.episodes
        return not (same_episodes and trained_on.get("eval_split", 0.0) >= dataset.eval_split)
    except (OSError, ValueError, KeyError, TypeError):
        return True


def device_name(device: torch.device) -> str:
    """The device as a person would name it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def _write_configs(config: ReflowJobConfig, teacher_dir: Path, folder: Path) -> None:
    """`train_config.json` as stock tools read it, and chordflow's own settings beside it."""
    with quiet_stdout():
        policy = PreTrainedConfig.from_pretrained(folder)
    policy.pretrained_path = Path(config.teacher.path)
    warmup = config.scheduler.warmup(config.steps)
    stock = TrainPipelineConfig(
        dataset=LeRobotDatasetConfig(
            repo_id=config.dataset.repo_id,
            root=config.dataset.root,
            revision=config.dataset.revision,
            episodes=config.dataset.episodes,
            eval_split=config.dataset.eval_split,
            video_backend=config.dataset.video_backend or "pyav",
        ),
        policy=policy,
        output_dir=config.output_dir,
        job_name="reflow",
        seed=config.seed,
        num_workers=config.num_workers,
        batch_size=config.batch_size,
        steps=config.steps,
        env_eval_freq=0,
        log_freq=config.log_freq,
        save_freq=config.save_freq,
        use_policy_training_preset=False,
        optimizer=AdamWConfig(
            lr=config.optimizer.lr,
            betas=config.optimizer.betas,
            eps=config.optimizer.eps,
            weight_decay=config.optimizer.weight_decay,
            grad_clip_norm=config.optimizer.grad_clip_norm,
        ),
        scheduler=CosineAnnealingWithWarmupSchedulerConfig(num_warmup_steps=warmup),
        rename_map=config.rename_map,
    )
    stock.save_pretrained(folder)
    write_json(
        folder / REFLOW_CONFIG,
        {"chordflow_version": __version__, "teacher_sha256": _sha256(teacher_dir), **draccus.encode(config)},
    )


@cache
def _sha256(teacher_dir: Path) -> str:
    digest = hashlib.sha256()
    with (teacher_dir / WEIGHTS).open("rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    return digest.hexdigest()


def _loop_config(config: ReflowJobConfig) -> LoopConfig:
    return LoopConfig(
        steps=config.steps,
        batch_size=config.batch_size,
        seed=config.seed,
        log_freq=config.log_freq,
        save_freq=config.save_freq,
        optimizer=config.optimizer,
        scheduler=config.scheduler,
        ema=config.ema,
    )


def _millions(policy: FlowPolicy) -> str:
    return f"{sum(p.numel() for p in policy.module.parameters()) / 1e6:.2f} M"


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MB in memory"
