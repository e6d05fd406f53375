"""What a training method is: a loss on couplings, drawn with an explicit generator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import draccus
import torch
from torch import Tensor

from chordflow.couplings import CouplingBatch

VelocityFunction = Callable[..., Tensor]


@dataclass
class MethodConfig(draccus.ChoiceRegistry):
    """Settings of a training method; `--method.type` chooses which."""

    def build(self) -> Method:
        """The method with these settings."""
        raise NotImplementedError(f"{type(self).__name__} does not name its method")


class Method(ABC):
    """A way to train a student's velocity.

    Attributes:
        needs_actions: whether it looks at demonstrated actions.
    """

    needs_actions: ClassVar[bool] = False

    @abstractmethod
    def loss(
        self, velocity: VelocityFunction, couplings: CouplingBatch, generator: torch.Generator
    ) -> Tensor:
        """The scalar loss of one batch.

        Args:
            velocity: the student's module, called as `velocity(x_t, t, context=..., batch=...)`.
            couplings: B couplings.
            generator: the only source of randomness, on the CPU.
        """
