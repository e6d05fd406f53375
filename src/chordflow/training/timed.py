"""Training against a clock instead of a number of steps, for comparing ways to make couplings at equal time.

A step is what the training loop does: the same losses, gradients, clipping and optimiser.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from chordflow.couplings import CouplingBatch
from chordflow.errors import UserError
from chordflow.flow.seeds import generator
from chordflow.policies import FlowPolicy
from chordflow.training.memory import enough_memory_to_step
from chordflow.training.methods import Method
from chordflow.training.optimizers import OptimizerConfig
from chordflow.training.wrapping import Wrapped

WARM_UP = 0.05
"""Share of a run in which the learning rate rises, as in the training loop."""


class Source(Protocol):
    """Where the couplings of a step come from, with reuse or without."""

    @property
    def parts(self) -> int:
        """Micro-batches of a step."""

    @property
    def step_size(self) -> int:
        """Couplings of a step."""

    @property
    def num_bytes(self) -> int:
        """Memory of what is kept, in bytes."""

    def fill(self, step: int) -> Iterator[int]:
        """Makes what `step` needs, piece by piece."""

    def batch(self, step: int, part: int = 0) -> CouplingBatch:
        """A micro-batch of `step`."""


class Stopwatch:
    """Seconds since it was made, but for those in which it was stopped.

    Args:
        device: whose work is waited for before the clock is looked at.
        clock: seconds from any beginning.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self._device = device
        self._clock = clock
        self._stood = 0.0
        self._began = clock()

    @property
    def seconds(self) -> float:
        """Seconds gone."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._clock() - self._began - self._stood

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Time within it does not count."""
        before = self.seconds
        yield
        self._stood += self.seconds - before


class TrainingStep:
    """One step of a student.

    Args:
        student: with only `trainable` requiring gradients.
        trainable: float32 parameters by name.
        method: the loss.
        optimizer: what makes steps of gradients.
        seed: of the times, as in the training loop.
        parts: micro-batches of a step.
    """

    def __init__(
        self,
        student: FlowPolicy,
        trainable: Mapping[str, nn.Parameter],
        method: Method,
        optimizer: OptimizerConfig,
        *,
        seed: int,
        parts: int = 1,
    ) -> None:
        self._wrapped = Wrapped(student, trainable, parts)
        self._method = method
        self._config = optimizer
        self._optimizer = optimizer.build(self._wrapped.trainable, student)
        self._seed = seed

    def __call__(self, source: Source, step: int, rate: float) -> float:
        """Trains on the couplings of a step, which have been made; returns their mean loss.

        Args:
            source: of couplings.
            step: its number.
            rate: factor of the peak learning rate.

        Raises:
            UserError: if loss or gradient is not finite.
        """
        total = self._loss(source, step, backward=True)
        with self._enough_memory():
            norm = self._wrapped.clip(self._config.grad_clip_norm)
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise UserError(
                f"optimizer.lr={self._config.lr}: the loss is not finite at step {step + 1} (loss {total}, gradient "
                f"norm {norm}); give a lower one."
            )
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.lr * rate
        with self._enough_memory():
            self._optimizer.step()
        self._optimizer.zero_grad()
        return total

    @torch.no_grad()
    def check(self, source: Source, step: int) -> None:
        """Makes sure that the update of a step, the last one, has left weights that can be used.

        The loss that a step looks at comes before its update.

        Args:
            source: of couplings.
            step: its number.

        Raises:
            UserError: if the loss after it is not finite.
        """
        # A run that its clock ended may have begun to make what the next step needs in their place.
        for _ in source.fill(step):
            pass
        total = self._loss(source, step, backward=False)
        if not math.isfinite(total):
            raise UserError(
                f"optimizer.lr={self._config.lr}: the loss is not finite after step {step + 1}, the last (loss "
                f"{total}); give a lower one."
            )

    def _loss(self, source: Source, step: int, backward: bool) -> float:
        total = 0.0
        for part in range(source.parts):
            batch = source.batch(step, part)
            loss = self._method.loss(self._wrapped, batch, generator(self._seed, "times", step))
            if backward:
                self._wrapped.backward(loss * batch.weight)
            total += loss.item() * batch.weight
        return total

    def _enough_memory(self) -> contextlib.AbstractContextManager[None]:
        parameters = list(self._wrapped.trainable.values())
        return enough_memory_to_step(self._config, parameters, parameters[0].device)


@dataclass(frozen=True)
class Passed:
    """Where a run stands.

    Attributes:
        mark: the mark in seconds that it has come to.
        seconds: gone, at least `mark`: a step is not broken off.
        steps: done.
        samples: couplings trained on, repeats counted.
        ready_s: when the first step could begin; None where it has not.
        loss: of the last step; None before the first.
    """

    mark: float
    seconds: float
    steps: int
    samples: int
    ready_s: float | None
    loss: float | None


def rate_at(share: float) -> float:
    """Factor of the peak learning rate after a share of the run: a linear rise, then a cosine to zero."""
    if share < WARM_UP:
        return share / WARM_UP
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (share - WARM_UP) / (1.0 - WARM_UP))))


def train_for(
    seconds: float,
    marks: Sequence[float],
    training_step: Callable[[Source, int, float], float],
    source: Source,
    watch: Stopwatch,
    *,
    look: Callable[[Passed], None],
    on_step: Callable[[Passed], None] = lambda passed: None,
) -> None:
    """Trains until the watch shows `seconds`, the making of couplings included.

    The learning rate runs its course in the time that is left when the first couplings are ready.

    Args:
        seconds: of the run.
        marks: seconds at which `look` is called, the watch being stopped; none later than `seconds`.
        training_step: of the student.
        source: of couplings.
        watch: just started.
        look: told of every mark, in their order.
        on_step: told of every piece of work; `mark` is then the next one.

    Raises:
        UserError: if a loss or an endpoint is not finite.
    """
    left = sorted(marks)
    steps, ready, loss = 0, None, None

    def goes_on() -> bool:
        now = watch.seconds
        passed = Passed(left[0] if left else seconds, now, steps, steps * source.step_size, ready, loss)
        on_step(passed)
        while left and now >= left[0]:
            with watch.stopped():
                look(Passed(left.pop(0), now, steps, passed.samples, ready, loss))
        return now < seconds

    while True:
        for _ in source.fill(steps):
            if not goes_on():
                return
        now = watch.seconds
        ready = now if ready is None else ready
        loss = training_step(source, steps, rate_at((now - ready) / max(seconds - ready, 1e-9)))
        steps += 1
        if not goes_on():
            return


def train_steps(
    steps: int,
    rates: Callable[[int], float],
    training_step: Callable[[Source, int, float], float],
    source: Source,
    watch: Stopwatch,
    *,
    on_step: Callable[[Passed], None] = lambda passed: None,
) -> Passed:
    """Trains a number of steps, to the same weights as the training loop.

    Args:
        steps: of the run, at least 1.
        rates: factor of the peak learning rate by step, from 0.
        training_step: of the student.
        source: of couplings.
        watch: just started.
        on_step: told of every piece of work.

    Returns:
        Where the run ended; its `mark` is the same as its `seconds`.

    Raises:
        UserError: if a loss or an endpoint is not finite.
    """
    ready: float | None = None
    loss: float | None = None

    def passed(done: int) -> Passed:
        now = watch.seconds
        return Passed(now, now, done, done * source.step_size, ready, loss)

    for step in range(steps):
        for _ in source.fill(step):
            on_step(passed(step))
        if ready is None:
            ready = watch.seconds
        loss = training_step(source, step, rates(step))
        on_step(passed(step + 1))
    return passed(steps)
