"""The only loop that trains: couplings in, one step after the other, within a budget of steps or of seconds."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from lerobot.optim.schedulers import CosineAnnealingWithWarmupSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from chordflow import stopping
from chordflow.checks import Checked, number
from chordflow.couplings import CouplingBatch, CouplingBuffer
from chordflow.couplings.memory import ShortOfMemoryError, enough_memory
from chordflow.errors import UserError
from chordflow.flow.seeds import generator
from chordflow.policies import FlowPolicy
from chordflow.threads import is_small, one_thread
from chordflow.training.checkpoints import TrainingState, last_good, load_checkpoint
from chordflow.training.distributed import Wrapped
from chordflow.training.methods import Method
from chordflow.training.optimizers import AdamWConfig, OptimizerConfig, SOAPConfig

WARM_UP = 0.05
"""Share of a budget in seconds in which the learning rate rises, as over steps."""

_NO_STEPS = 1_000_000
"""For the schedule of a budget in seconds, which does not step it."""


@dataclass
class SchedulerConfig(Checked):
    """Linear warm-up, then a cosine to zero.

    Attributes:
        num_warmup_steps: steps until the peak; by default a twentieth of all steps, at most 1000.
    """

    PREFIX = "scheduler."

    num_warmup_steps: int | None = number(None, at_least=0)

    def warmup(self, steps: int) -> int:
        """Warm-up steps of a run of `steps`."""
        return min(1000, steps // 20) if self.num_warmup_steps is None else self.num_warmup_steps


@dataclass
class EMAConfig(Checked):
    """An exponential moving average of the trained weights, saved as the student.

    Attributes:
        enable: whether to average.
        decay: weight of the old average at every step.
    """

    PREFIX = "ema."

    enable: bool = False
    decay: float = number(0.999, above=0, below=1)


@dataclass
class LoopConfig:
    """The settings of the loop; names as in LeRobot.

    Its budget is in steps, or in seconds where `steps` is None.
    """

    steps: int | None
    seed: int
    log_freq: int = 50
    save_freq: int = 0
    save_minutes: float = 0.0
    optimizer: OptimizerConfig = field(default_factory=AdamWConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    seconds: float | None = None


class Stopwatch:
    """Seconds since it was made, but for those in which it was stopped.

    It waits for the work of `device`, if there is one, before it looks at the clock.
    """

    def __init__(
        self, device: torch.device | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._device, self._clock, self._stood = device, clock, 0.0
        self._began = clock()

    @property
    def seconds(self) -> float:
        """Seconds gone."""
        if self._device is not None and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._clock() - self._began - self._stood

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Time within it does not count."""
        before = self.seconds
        yield
        self._stood += self.seconds - before


@dataclass(frozen=True)
class Passed:
    """Where a training stands after a step.

    Attributes:
        step: optimiser steps done, those before a resume included.
        seconds: gone in this process.
        samples: couplings trained on in this process, repeats counted.
        ready_s: when the first step could begin; None where it has not.
        loss: of the step, over all processes; None before the first.
        grad_norm: before it was clipped.
        lr: of the step.
        due: whether the caller's `due` held in the first process.
        stop: whether a signal has asked any process to stop.
    """

    step: int
    seconds: float = 0.0
    samples: int = 0
    ready_s: float | None = None
    loss: float | None = None
    grad_norm: float = 0.0
    lr: float = 0.0
    due: bool = False
    stop: bool = False


class Training:
    """The steps of a student; what happens between them is the caller's.

    The couplings, times and order of a step depend on the seed and the step alone, so that a resumed run ends in the
    same weights as one that was never stopped.

    Args:
        config: budget, rates and sizes.
        student: with only `trainable` requiring gradients.
        trainable: float32 parameters by name.
        buffer: of couplings.
        method: the loss.
        watch: of the budget in seconds.
        resume_from: a checkpoint folder of this run.
        on_fill: called after every piece of the couplings of a step, with the seconds gone.
        on_batch: called with every micro-batch that is trained on.

    Attributes:
        wrapped: the student as processes share it.
        state: what a checkpoint holds; with FSDP2 parts of it in each process.
        start: the step to begin at.
        losses: of the steps since the last line of the log.
        passed: where it stands.
        checkpoint: the last one on disk, for messages.
        due: called after every step, in the first process.
        between_steps: whether the last step is whole and no other has begun: while couplings are made.
    """

    def __init__(
        self,
        config: LoopConfig,
        student: FlowPolicy,
        trainable: dict[str, nn.Parameter],
        buffer: CouplingBuffer,
        method: Method,
        *,
        watch: Stopwatch | None = None,
        resume_from: Path | None = None,
        on_fill: Callable[[float], None] = lambda seconds: None,
        on_batch: Callable[[CouplingBatch], None] = lambda batch: None,
    ) -> None:
        self.config, self.buffer, self._method = config, buffer, method
        self._small = is_small(student.module)
        self._watch, self._on_fill, self._on_batch = watch or Stopwatch(), on_fill, on_batch
        self.wrapped = wrapped = Wrapped(student, trainable, buffer.parts)
        masters = wrapped.trainable
        check_sharding(config.optimizer, wrapped.sharded)
        with self._enough_memory():
            optimizer = config.optimizer.build(masters.values())
        steps = config.steps or _NO_STEPS
        warmup = config.scheduler.warmup(steps)
        scheduler = CosineAnnealingWithWarmupSchedulerConfig(num_warmup_steps=warmup).build(optimizer, steps)
        ema = {name: p.detach().clone() for name, p in masters.items()} if config.ema.enable else None
        self.state = TrainingState(masters, ema, optimizer, scheduler)
        self.start, self.checkpoint = 0, resume_from
        self.losses: list[float] = []
        if resume_from is not None:
            self.start, self.losses = load_checkpoint(resume_from, self.state)
            _use_settings(self.state, config.optimizer)
        self._optimizer, self._scheduler = wrapped.prepare(optimizer, scheduler)
        self.passed = Passed(self.start)
        self.due: Callable[[], bool] = lambda: False
        self.between_steps = True

    def run(self) -> Iterator[Passed]:
        """Trains until the budget is used up, and yields after every step.

        A budget in seconds breaks off no step, but the making of couplings; the learning rate runs its course in the
        time that is left when the first couplings are ready.

        Raises:
            UserError: if a loss or gradient is not finite, or memory runs out.
            Stopped: where a signal stops the making of couplings.
        """
        try:
            yield from self._steps()
        finally:
            self.buffer.wait()

    def _steps(self) -> Iterator[Passed]:
        config, wrapped, ready = self.config, self.wrapped, None
        for step in itertools.count(self.start):
            if (config.steps is not None and step >= config.steps) or not self._fill(step):
                return
            self.between_steps = False
            now = self._watch.seconds
            ready = now if ready is None else ready
            with self.buffer.enough_memory(), one_thread(self._small):
                value, due, stop = self._loss(step, backward=True)
            with self._enough_memory():
                norm = wrapped.clip(config.optimizer.grad_clip_norm)
            if not (math.isfinite(value) and math.isfinite(norm)):
                raise _not_finite(step + 1, f"loss {value}, gradient norm {norm}", self.checkpoint)
            if config.seconds is not None:
                lr = config.optimizer.lr * rate_at((now - ready) / max(config.seconds - ready, 1e-9))
                for group in self._optimizer.param_groups:
                    group["lr"] = lr
            else:
                lr = float(self._scheduler.get_last_lr()[0])
            with self._enough_memory(), one_thread(self._small):
                self._optimizer.step()
            if config.seconds is None:
                self._scheduler.step()
            self._optimizer.zero_grad()
            if self.state.ema is not None:
                _average(self.state.ema, self.state.masters, config.ema.decay)
            samples = (step + 1 - self.start) * self.buffer.step_size
            now = self._watch.seconds
            self.passed = Passed(step + 1, now, samples, ready, value, norm, lr, due > 0, stop > 0)
            self.between_steps = True
            yield self.passed
            if config.seconds is not None and now >= config.seconds:
                return

    def check(self) -> None:
        """Raises UserError unless the last update has left weights that can be used.

        The loss of a step comes before its update: weights that the update destroyed must not become a checkpoint.
        """
        step = self.passed.step
        with torch.no_grad():
            again, *_ = self._loss(step - 1, backward=False)
        if not math.isfinite(again):
            raise _not_finite(step, f"loss {again} after the update", self.checkpoint)

    def _fill(self, step: int) -> bool:
        """Makes the couplings of a step; returns whether there was time for them."""
        seconds = self.config.seconds
        # Of several processes none may leave the others alone; it may run episodes, for minutes.
        alone = self.wrapped.processes.count == 1
        with stopping.at_once() if alone else contextlib.nullcontext(), self.buffer.enough_memory():
            for _ in self.buffer.fill(
                step, _NO_STEPS if self.config.steps is None else self.config.steps - 1
            ):
                now = self._watch.seconds
                self._on_fill(now)
                if seconds is not None and now >= seconds:
                    self.passed = replace(self.passed, seconds=now)
                    return False
        return True

    def _loss(self, step: int, backward: bool) -> list[float]:
        """The mean loss over the couplings of a step, of all processes and parts; whether to save, and to stop."""
        wrapped, total = self.wrapped, 0.0
        processes = wrapped.processes
        for part in range(self.buffer.parts):
            with wrapped.part(last=part == self.buffer.parts - 1):
                batch = self.buffer.batch(step, part)
                loss = self._method.loss(wrapped, batch, generator(self.config.seed, "times", step))
                if backward:
                    self._on_batch(batch)
                    # Gradients are averaged over the processes, where a loss is a sum of what they have.
                    wrapped.accelerator.backward(loss * (batch.weight * processes.count))
                total += loss.item() * batch.weight
        # The first process's clock and anybody's signal count for all, in a sum that is made anyway.
        return processes.sum([total, processes.first and self.due(), stopping.requested() > 0])

    def _enough_memory(self) -> contextlib.AbstractContextManager[None]:
        device = self.buffer.teacher.device
        return enough_memory_to_step(self.config.optimizer, self.wrapped.trainable.values(), device)


def enough_memory_to_step(
    config: OptimizerConfig, parameters: Iterable[Tensor], device: torch.device
) -> contextlib.AbstractContextManager[None]:
    """Context of an optimiser's step: out of memory, a UserError says what takes less."""

    def advice(_: ShortOfMemoryError | None) -> str:
        less = "train less with --student.train, or use a larger device"
        if isinstance(config, SOAPConfig):
            sides = [side for p in parameters for side in p.shape if side <= config.max_precondition_dim]
            half = max(sides, default=1) // 2
            less = f"give --optimizer.max_precondition_dim={half} or " if half else "give "
            less += "--optimizer.type=adamw"
        return f"for the state of the optimiser {config.get_choice_name(type(config))}; {less}"

    return enough_memory(device, advice)


def rate_at(share: float) -> float:
    """Factor of the peak learning rate after a share of the time: a linear rise, then a cosine to zero."""
    if share < WARM_UP:
        return share / WARM_UP
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (share - WARM_UP) / (1.0 - WARM_UP))))


def check_sharding(optimizer: OptimizerConfig, sharded: bool) -> None:
    """Raises UserError for an optimiser that cannot step parts of a matrix, where FSDP2 makes such parts."""
    if sharded and not isinstance(optimizer, AdamWConfig):
        name = optimizer.get_choice_name(type(optimizer))
        raise UserError(
            f"optimizer.type={name}: it needs whole matrices, of which FSDP2 leaves each process a part; choose adamw, "
            "or train without FSDP2."
        )


def _use_settings(state: TrainingState, config: OptimizerConfig) -> None:
    """Puts the settings of this start, which may have been changed, over those that a checkpoint brings along."""
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
