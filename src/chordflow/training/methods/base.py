"""What a training method is: a loss on couplings or demonstrations, drawn with an explicit generator.

Shapes: B batch, H chunk size, D padded action dimension.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import draccus
import torch
from torch import Tensor

from chordflow.checks import Checked
from chordflow.couplings import CouplingBatch, Needs
from chordflow.training.objective import LossConfig, MeanSquaredError

VelocityFunction = Callable[..., Tensor]


@dataclass
class MethodConfig(Checked, draccus.ChoiceRegistry):
    """Settings of a training method; `--method.type` chooses which.

    Attributes:
        loss: distance of the student's velocity to its target.
    """

    PREFIX = "method."

    loss: LossConfig = field(default_factory=MeanSquaredError)

    @classmethod
    def get_known_choices(cls) -> dict[str, Any]:
        """By name, in whatever order the methods are imported."""
        return dict(sorted(super().get_known_choices().items()))

    def build(self) -> Method:
        """The method with these settings."""
        raise NotImplementedError(f"{type(self).__name__} does not name its method")


class Method(ABC):
    """A way to train a student's velocity.

    A loss is a mean over the batch's rows of what each row has alone, and what it draws for them it draws by
    `CouplingBatch.per_row`, so that a step can be spread over processes.

    Attributes:
        needs: what its batches have to hold.
        stock_checkpoint: whether the student stays a checkpoint of LeRobot's own class, inputs and keys.
        step_counts: the Euler steps that the student is trained for; None where it is for any number.
    """

    needs: Needs = Needs()
    stock_checkpoint: bool = True
    step_counts: tuple[int, ...] | None = None

    @abstractmethod
    def loss(
        self, velocity: VelocityFunction, couplings: CouplingBatch, generator: torch.Generator
    ) -> Tensor:
        """The scalar loss of one batch.

        Args:
            velocity: the student's module, called as `velocity(x_t, t, context=..., batch=...)`.
            couplings: B rows.
            generator: the only source of randomness, on the CPU.
        """


def chosen_rows(couplings: CouplingBatch, share: float, generator: torch.Generator) -> Tensor:
    """Which of the B rows belong to a share of a step's rows, (B,), true or false, on the device of the batch.

    What is left of a row is made one by chance, so that a small share of a small batch is not nothing.
    """

    def draw(total: int) -> Tensor:
        extra = torch.rand((), generator=generator, dtype=torch.float64)
        count = int(share * total + extra)
        return torch.randperm(total, generator=generator) < count

    return couplings.per_row(draw).to(couplings.noise.device)


def on_rows(
    velocity: VelocityFunction, x_t: Tensor, t: Tensor, couplings: CouplingBatch, rows: Tensor
) -> Tensor:
    """The velocity at some rows of a batch.

    Args:
        velocity: as for `Method.loss`.
        x_t: states of the n rows, (n, H, D).
        t: their times, (n,).
        couplings: the whole batch.
        rows: which n of its B rows, int64.
    """
    if couplings.context is not None:
        return velocity(x_t, t, context=couplings.context.index(rows), batch=None)
    # A preprocessed batch has no rows that could be taken out for every family: the others are thrown away.
    states, times = couplings.noise.clone(), t.new_ones(len(couplings.noise))
    states[rows], times[rows] = x_t, t
    return velocity(states, times, context=None, batch=couplings.batch)[rows]
