"""The training loop: couplings in, a student out."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from lerobot.optim.schedulers import CosineAnnealingWithWarmupSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from chordflow import stopping
from chordflow.couplings import CouplingBuffer
from chordflow.errors import UserError
from chordflow.flow.seeds import generator
from chordflow.policies import FlowPolicy
from chordflow.training.checkpoints import (
    TrainingState,
    begin_from,
    checkpoint_folder,
    keep,
    load_checkpoint,
    save_checkpoint,
)
from chordflow.training.memory import enough_memory, enough_memory_to_step
from chordflow.training.methods import Method
from chordflow.training.metrics import METRICS as METRICS
from chordflow.training.metrics import append_metrics, cut_metrics, last_good
from chordflow.training.metrics import read_metrics as read_metrics
from chordflow.training.optimizers import AdamWConfig, OptimizerConfig
from chordflow.training.wrapping import Wrapped


@dataclass
class SchedulerConfig:
    """Linear warm-up, then a cosine to zero.

    Attributes:
        num_warmup_steps: steps until the peak; by default a twentieth of all steps, at most 1000.
    """

    num_warmup_steps: int | None = None

    def __post_init__(self) -> None:
        if self.num_warmup_steps is not None and self.num_warmup_steps < 0:
            raise UserError(f"scheduler.num_warmup_steps={self.num_warmup_steps}: give 0 or more.")

    def warmup(self, steps: int) -> int:
        """Warm-up steps of a run of `steps`."""
        return min(1000, steps // 20) if self.num_warmup_steps is None else self.num_warmup_steps


@dataclass
class EMAConfig:
    """An exponential moving average of the trained weights, saved as the student.

    Attributes:
        enable: whether to average.
        decay: weight of the old average at every step.
    """

    enable: bool = False
    decay: float = 0.999

    def __post_init__(self) -> None:
        if not 0.0 < self.decay < 1.0:
            raise UserError(f"ema.decay={self.decay}: give a number between 0 and 1.")


@dataclass
class LoopConfig:
    """What the loop itself needs to know; names as in LeRobot."""

    steps: int
    batch_size: int
    seed: int
    log_freq: int
    save_freq: int
    save_minutes: float = 0.0
    gradient_accumulation_steps: int = 1
    optimizer: OptimizerConfig = field(default_factory=AdamWConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)


@dataclass(frozen=True)
class Progress:
    """What an observer of the loop is told after every step."""

    step: int
    loss: float
    lr: float
    samples_per_second: float


@dataclass(frozen=True)
class Trained:
    """What the loop leaves behind.

    Attributes:
        checkpoint: the last checkpoint's folder.
        seconds: of training, couplings included, of this process.
        samples: couplings trained on, repeats counted.
    """

    checkpoint: Path
    seconds: float
    samples: int


@stopping.held("Stopping as soon as the step is done and saved; once more stops at once and saves nothing.")
def train(
    config: LoopConfig,
    student: FlowPolicy,
    trainable: dict[str, nn.Parameter],
    buffer: CouplingBuffer,
    method: Method,
    output_dir: Path,
    write_student: Callable[[Path, dict[str, Tensor]], None],
    *,
    resume_from: Path | None = None,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> Trained:
    """Trains the student on the buffer's couplings.

    The couplings, times and order of a step depend on the seed and the step alone, so a resumed run ends in
    the same weights as one that was never stopped. A signal stops it after a whole step, with a checkpoint that all
    processes have agreed on.

    Args:
        config: steps, rates and sizes.
        student: with only `trainable` requiring gradients.
        trainable: float32 parameters by name.
        buffer: of couplings.
        method: the loss.
        output_dir: of the run.
        write_student: called as `write_student(folder, weights)` to write a `pretrained_model` folder.
        resume_from: a checkpoint folder of this run.
        on_step: told of every step.

    Raises:
        UserError: if a loss or gradient is not finite, memory runs out, a checkpoint cannot be written, or the
            launcher asks for what cannot be had.
        Stopped: where a signal has stopped it.
    """
    wrapped = Wrapped(student, trainable, config.gradient_accumulation_steps)
    processes, trainable = wrapped.processes, wrapped.trainable
    _check(config, buffer, wrapped)
    with enough_memory_to_step(config.optimizer, trainable.values(), buffer.teacher.device):
        optimizer = config.optimizer.build(trainable, student)
    warmup = config.scheduler.warmup(config.steps)
    scheduler = CosineAnnealingWithWarmupSchedulerConfig(num_warmup_steps=warmup).build(
        optimizer, config.steps
    )
    averages = {k: v.detach().clone() for k, v in trainable.items()} if config.ema.enable else None
    state = TrainingState(trainable, averages, optimizer, scheduler)
    start = 0
    losses: list[float] = []
    if resume_from is not None:
        start, losses = load_checkpoint(resume_from, state)
        _use_settings(state, config.optimizer)
    if processes.first:
        if resume_from is not None:
            begin_from(resume_from)
        cut_metrics(output_dir, start, resume_from)
    optimizer, scheduler = wrapped.prepare(optimizer, scheduler)

    def loss_of(step: int, backward: bool) -> tuple[float, bool, bool]:
        """The mean loss over the couplings of a step, of all processes and parts; whether to save, and to stop."""
        total = 0.0
        for part in range(buffer.parts):
            with wrapped.part(last=part == buffer.parts - 1):
                batch = buffer.batch(step, part)
                loss = method.loss(wrapped, batch, generator(config.seed, "times", step))
                if backward:
                    # Gradients are averaged over the processes, where a loss is a sum of what they have.
                    wrapped.backward(loss * (batch.weight * processes.count))
                total += loss.item() * batch.weight
        late = processes.first and 0.0 < 60.0 * config.save_minutes <= time.perf_counter() - saved_at
        # The first process's clock and anybody's signal count for all, in a sum that is made anyway.
        total, due, stop = processes.sum([total, late, stopping.asked() > 0])
        return total, due > 0, stop > 0

    def check(step: int) -> None:
        # The loss that was looked at came before the update: weights that the update destroyed must not become
        # the checkpoint that a run is told to go back to.
        with torch.no_grad():
            again, *_ = loss_of(step - 1, backward=False)
        if not math.isfinite(again):
            raise _not_finite(step, f"loss {again} after the update", checkpoint)

    def save(step: int, timed: bool = False) -> Path:
        whole = state.whole()
        weights = {name: tensor.detach() for name, tensor in whole.student_weights.items()}
        if not processes.first:
            return checkpoint_folder(output_dir, step, config.steps)
        return save_checkpoint(
            output_dir,
            step,
            config.steps,
            whole,
            lambda folder: write_student(folder, weights),
            num_processes=processes.count,
            batch_size=config.batch_size * config.gradient_accumulation_steps,
            losses=losses,
            timed=timed,
        )

    def fill(step: int) -> stopping.Stopped | None:
        # Of several processes none may leave the others alone.
        alone = processes.count == 1
        try:
            # It may run episodes, for minutes.
            with stopping.at_once() if alone else contextlib.nullcontext(), enough_memory(buffer):
                for _ in buffer.fill(step):
                    pass
        except stopping.Stopped as stopped:
            return stopped
        return None

    checkpoint, unsaved = resume_from, False
    began = logged_at = saved_at = time.perf_counter()
    carried = len(losses)
    for step in range(start, config.steps):
        if (stopped := fill(step)) is not None:
            # What the loss after the last update would need may be gone from the buffer.
            if unsaved and all(bool(weights.isfinite().all()) for weights in trainable.values()):
                save(step, timed=True)
            raise stopped
        with enough_memory(buffer):
            if step == start:
                logged_at = time.perf_counter()
            value, due, stop = loss_of(step, backward=True)
        with enough_memory_to_step(config.optimizer, trainable.values(), buffer.teacher.device):
            norm = wrapped.clip(config.optimizer.grad_clip_norm)
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise _not_finite(step + 1, f"loss {value}, gradient norm {norm}", checkpoint)
        lr = float(scheduler.get_last_lr()[0])
        with enough_memory_to_step(config.optimizer, trainable.values(), buffer.teacher.device):
            optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if averages is not None:
            _average(averages, trainable, config.ema.decay)
        losses.append(value)
        done_steps = step + 1
        now = time.perf_counter()
        rate = (len(losses) - carried) * buffer.step_size / max(now - logged_at, 1e-9)
        on_step(Progress(done_steps, value, lr, rate))
        if done_steps % config.log_freq == 0 or done_steps == config.steps:
            mean = sum(losses) / len(losses)
            line: dict[str, float] = {
                "step": done_steps,
                "loss": mean,
                "grad_norm": norm,
                "lr": lr,
                "samples_per_s": rate,
            }
            if processes.first:
                append_metrics(output_dir, line, checkpoint)
            losses, logged_at, carried = [], now, 0
        regular = done_steps == config.steps or (config.save_freq > 0 and done_steps % config.save_freq == 0)
        unsaved = True
        if regular or due or stop:
            check(done_steps)
            checkpoint, unsaved, saved_at = save(done_steps, timed=not regular), False, time.perf_counter()
        if stop and done_steps < config.steps:
            processes.wait()
            raise stopping.Stopped(stopping.asked() or signal.SIGTERM)
    assert checkpoint is not None
    if processes.first:
        # It may be a timed one, where fewer steps are asked for than before.
        keep(checkpoint)
    # The others go on to read what the first has written.
    processes.wait()
    samples = (config.steps - start) * buffer.step_size
    return Trained(checkpoint, time.perf_counter() - began, samples)


def check_sharding(optimizer: OptimizerConfig, sharded: bool) -> None:
    """Raises UserError for an optimiser that cannot step parts of a matrix, where FSDP2 makes such parts."""
    if sharded and not isinstance(optimizer, AdamWConfig):
        name = optimizer.get_choice_name(type(optimizer))
        raise UserError(
            f"optimizer.type={name}: it needs whole matrices, of which FSDP2 leaves each process a part; choose adamw, "
            "or train without FSDP2."
        )


def _check(config: LoopConfig, buffer: CouplingBuffer, wrapped: Wrapped) -> None:
    check_sharding(config.optimizer, wrapped.sharded)
    given = (buffer.batch_size, buffer.parts, buffer.share)
    expected = (config.batch_size, config.gradient_accumulation_steps, wrapped.processes.share)
    if given != expected:
        raise ValueError(
            f"the buffer hands out {given} (batch_size, parts, share), the loop takes {expected}"
        )


def _use_settings(state: TrainingState, config: OptimizerConfig) -> None:
    """Puts the settings of this start over those that a checkpoint brings along: they may have been changed.

    Where they were not, every number stays what it was.
    """
    state.scheduler.base_lrs = [config.lr for _ in state.scheduler.base_lrs]
    config.put_over(state.optimizer)
    assert isinstance(state.scheduler, LambdaLR)
    factors = [rule(state.scheduler.last_epoch) for rule in state.scheduler.lr_lambdas]
    state.scheduler._last_lr = [config.lr * factor for factor in factors]
    for group, lr in zip(state.optimizer.param_groups, state.scheduler._last_lr, strict=True):
        group["lr"] = lr


def _not_finite(step: int, what: str, checkpoint: Path | None) -> UserError:
    advice = (
        "lower --optimizer.lr and resume from it" if checkpoint else "start again with a lower --optimizer.lr"
    )
    return UserError(f"the loss is not finite at step {step} ({what}); {last_good(checkpoint)}; {advice}.")


@torch.no_grad()
def _average(averages: dict[str, Tensor], parameters: dict[str, nn.Parameter], decay: float) -> None:
    for name, parameter in parameters.items():
        averages[name].lerp_(parameter.detach(), 1.0 - decay)
