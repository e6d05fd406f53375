"""The loop without reuse of couplings, which others are compared with, and one training step.

For every training sample the naive loop's teacher encodes an observation and carries one noise to its endpoint, its
student encodes the same observation again, and the sample is dropped after its one step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from chordflow.couplings import BufferConfig, CouplingBuffer, CouplingConfig, Observations
from chordflow.errors import UserError
from chordflow.flow.seeds import generator
from chordflow.policies import FlowPolicy, VelocityModule
from chordflow.training.methods import ReflowMethodConfig
from chordflow.training.optimizers import OptimizerConfig

NAIVE = "naive"
"""The loop without reuse, as results and tables name it."""


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
        self._optimizer = optimizer.build(trainable.values())

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
