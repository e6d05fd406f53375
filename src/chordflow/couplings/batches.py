"""What a training step is handed: couplings, and which of the step's they are.

Shapes: B couplings in a batch, K solver steps, H chunk size, D padded action dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from chordflow.couplings.generate import Path
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
class Needs:
    """What a training method asks of its batches.

    Attributes:
        couplings: noises with the endpoints to which the teacher carries them; without, its ODE is never solved.
        actions: the demonstrated actions of the same observations.
        paths: the teacher's states on the way from each noise to its endpoint.
    """

    couplings: bool = True
    actions: bool = False
    paths: bool = False


@dataclass(frozen=True)
class Demonstrations:
    """Demonstrated actions, coupled with noise that was drawn apart from them: what flow matching trains on.

    Attributes:
        noise: by the family's own law, of this training step alone, (B, H, D).
        actions: zero-padded as the family's own loss sees them, (B, H, D).
        valid: where that loss counts, (B, H, D), true or false: in the real dimensions, inside the episode.
    """

    noise: Tensor
    actions: Tensor
    valid: Tensor


@dataclass(frozen=True)
class CouplingBatch:
    """The couplings of a training step, or those of them that one process looks at in one go.

    Attributes:
        noise: x_1, (B, H, D).
        endpoint: x_0, (B, H, D); without rows where a method does without couplings.
        context: the student's encoded observations, or None where it has to encode them anew.
        batch: the preprocessed observations, where `context` is None.
        rows: which of the whole step's couplings these are, (B,); None where they are all of them.
        total: how many the whole step has; None where these are all of them.
        weight: their part in the step's loss, which is a mean over all of its couplings: B / total.
        demonstrations: of the same observations, where a method asks for them.
        path: the teacher's way from `noise` to `endpoint`, where a method asks for it.
        real: the entries of a chunk that mean something to the robot, (H, D), true or false: the real dimensions
            of the actions that can be run. None where all do.
    """

    noise: Tensor
    endpoint: Tensor
    context: Context | None
    batch: dict[str, Any] | None
    rows: Tensor | None = None
    total: int | None = None
    weight: float = 1.0
    demonstrations: Demonstrations | None = None
    path: Path | None = None
    real: Tensor | None = None

    def per_row(self, draw: Callable[[int], Tensor]) -> Tensor:
        """What `draw(n)` draws for the n couplings of the whole step, cut to these of them.

        So what is drawn for a coupling does not depend on how a step is spread over processes and micro-batches.
        """
        if self.rows is None or self.total is None:
            return draw(len(self.noise))
        drawn = draw(self.total)
        return drawn[self.rows.to(drawn.device)]

    def demonstrated(self) -> Demonstrations:
        """The demonstrations, for a method that has asked for them.

        Raises:
            ValueError: if there are none.
        """
        if self.demonstrations is None:
            raise ValueError(
                "the batch holds no demonstrations: the buffer was not told that they are needed"
            )
        return self.demonstrations

    def travelled(self) -> Path:
        """The path, for a method that has asked for it.

        Raises:
            ValueError: if there is none.
        """
        if self.path is None:
            raise ValueError("the batch holds no paths: the buffer was not told that they are needed")
        return self.path
