"""What a training step is handed: couplings, and which of the step's they are.

Shapes: B couplings in a batch, H chunk size, D padded action dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from chordflow.policies import Context


@dataclass(frozen=True)
class Share:
    """Which of the blocks one of several processes makes, holds and trains on: every `count`-th.

    Attributes:
        index: of this process, from 0.
        count: of processes.
    """

    index: int = 0
    count: int = 1

    def holds(self, block: int) -> bool:
        """Whether a block is this process's."""
        return block % self.count == self.index


@dataclass(frozen=True)
class CouplingBatch:
    """The couplings of a training step, or those of them that one process looks at in one go.

    Attributes:
        noise: x_1, (B, H, D).
        endpoint: x_0, (B, H, D).
        context: the student's encoded observations, or None where it has to encode them anew.
        batch: the preprocessed observations, where `context` is None.
        rows: which of the whole step's couplings these are, (B,); None where they are all of them.
        total: how many the whole step has; None where these are all of them.
        weight: their part in the step's loss, which is a mean over all of its couplings: B / total, or 0 for a
            stand-in where a process holds none of them.
    """

    noise: Tensor
    endpoint: Tensor
    context: Context | None
    batch: dict[str, Any] | None
    rows: Tensor | None = None
    total: int | None = None
    weight: float = 1.0

    def per_row(self, draw: Callable[[int], Tensor]) -> Tensor:
        """What `draw(n)` draws for the n couplings of the whole step, cut to these of them.

        So what is drawn for a coupling does not depend on how a step is spread over processes and micro-batches.
        """
        if self.rows is None or self.total is None:
            return draw(len(self.noise))
        drawn = draw(self.total)
        return drawn[self.rows.to(drawn.device)]
