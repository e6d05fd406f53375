"""The loop without reuse of couplings, which others are compared with, and training against a clock.

For every training sample the naive loop's teacher encodes an observation and carries one noise to its endpoint, its
student encodes the same observation again, and the sample is dropped after its one step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from chordflow.couplings import BufferConfig, CouplingBuffer, CouplingConfig, Observations
from chordflow.errors import UserError
from chordflow.flow.seeds import generator
from chordflow.policies import FlowPolicy, VelocityModule
from chordflow.training.methods import ReflowMethodConfig
from chordflow.training.optimizers import OptimizerConfig

NAIVE = "naive"
"""The loop without reuse, as results and tables name it."""

WARM_UP = 0.05
"""Share of a run in which the learning rate rises, as in `chordflow reflow`."""


def naive_couplings(
    teacher: FlowPolicy, observations: Observations, coupling: CouplingConfig, seed: int, batch_size: int
) -> CouplingBuffer:
    """The couplings of the loop without reuse: one noise an observation, each coupling used once.

    The student is given the raw observations, which it encodes at its step.
    """
    once = BufferConfig(batch_size, 1, 1, batch_size, adaptive_share=0.0)
    return CouplingBuffer(
        teacher, observations, coupling, once, seed=seed, batch_size=batch_size, student_context=False
    )


class TrainingStep:
    """One step of a student, as `chordflow reflow` makes it in one process.

    Args:
        student: with only `trainable` requiring gradients.
        trainable: float32 parameters by name.
        optimizer: its settings.
        seed: of the times.
    """

    def __init__(
        self, student: FlowPolicy, trainable: Mapping[str, nn.Parameter], optimizer: OptimizerConfig, *, seed: int
    ) -> None:  # fmt: skip
        self._module, self._trainable = VelocityModule(student), trainable
        self._method, self._config, self._seed = ReflowMethodConfig().build(), optimizer, seed
        self._optimizer = optimizer.build(dict(trainable), student)

    def __call__(self, source: CouplingBuffer, step: int, rate: float) -> float:
        """Trains on the couplings of a step, which have been made; returns their mean loss.

        Args:
            source: of couplings.
            step: its number.
            rate: factor of the peak learning rate.

        Raises:
            UserError: if the loss or the gradient is not finite.
        """
        total = 0.0
        for part in range(source.parts):
            batch = source.batch(step, part)
            loss = self._method.loss(self._module, batch, generator(self._seed, "times", step))
            (loss * batch.weight).backward()
            total += loss.item() * batch.weight
        norm = nn.utils.clip_grad_norm_(list(self._trainable.values()), self._config.grad_clip_norm)
        if not (math.isfinite(total) and norm.isfinite()):
            raise UserError(
                f"lr={self._config.lr}: the loss is not finite at step {step + 1}; give a lower one."
            )
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.lr * rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        return total


def rate_at(share: float) -> float:
    """Factor of the peak learning rate after a share of the run: a linear rise, then a cosine to zero."""
    if share < WARM_UP:
        return share / WARM_UP
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (share - WARM_UP) / (1.0 - WARM_UP))))


def train_for(
    seconds: float,
    step: Callable[[CouplingBuffer, int, float], float],
    source: CouplingBuffer,
    clock: Callable[[], float],
    on_work: Callable[[float], None] = lambda gone: None,
) -> dict[str, Any]:
    """Trains until the clock has moved by `seconds`, the making of couplings included.

    The learning rate runs its course in the time that is left when the first couplings are ready. A step that has
    begun is ended.

    Args:
        seconds: of the run.
        step: trains on one step.
        source: of couplings.
        clock: gives seconds from any beginning.
        on_work: told after every piece of work the seconds gone.

    Returns:
        `seconds` gone, `steps`, `samples`, `ready_s` when the first step began and the last `loss`, both None
        without a step.
    """
    began, steps, ready, loss = clock(), 0, None, None

    def over() -> bool:
        on_work(gone := clock() - began)
        return gone >= seconds

    while not any(over() for _ in source.fill(steps)):
        now = clock() - began
        ready = now if ready is None else ready
        loss = step(source, steps, rate_at((now - ready) / max(seconds - ready, 1e-9)))
        steps += 1
        if over():
            break
    samples = steps * source.step_size
    return {"seconds": clock() - began, "steps": steps, "samples": samples, "ready_s": ready, "loss": loss}
