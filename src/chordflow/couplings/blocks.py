"""A block of couplings, and the batches that a training step takes from blocks.

Shapes: N couplings of a block, B in a batch, K solver steps, H chunk size, D padded action dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lerobot.utils.constants import ACTION
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


@dataclass(frozen=True)
class Needs:
    """What a training method needs in its batches.

    Attributes:
        couplings: noises with the endpoints to which the teacher carries them; without, its ODE is never solved.
        actions: the demonstrated actions of the same observations.
        paths: the teacher's states on the way from each noise to its endpoint.
    """

    couplings: bool = True
    actions: bool = False
    paths: bool = False


@dataclass(frozen=True)
class Path:
    """The states that a solver goes through on its way from noise to endpoint.

    Attributes:
        states: before K of the steps, the noise first; (B, K, H, D). The endpoint is not among them.
        times: of those states, falling from 1; float32 (K,) on the CPU.
    """

    states: Tensor
    times: Tensor


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
    """The couplings of a training step, or those of them in one forward pass of a process.

    Attributes:
        noise: x_1, (B, H, D).
        endpoint: x_0, (B, H, D); without rows where a method does without couplings.
        context: the student's encoded observations, or None where it has to encode them anew.
        batch: the preprocessed observations, where `context` is None.
        rows: which of the whole step's couplings these are, (B,); None where they are all of them.
        total: how many the whole step has; None where these are all of them.
        weight: their part in the step's loss, which is a mean over all of its couplings: B / total.
        demonstrations: of the same observations, where a method needs them.
        path: the teacher's way from `noise` to `endpoint`, where a method needs it.
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
        """The demonstrations; ValueError for a method that does not declare them (see `Needs`)."""
        if self.demonstrations is None:
            raise ValueError("the batch holds no demonstrations: the method's `needs` do not ask for them")
        return self.demonstrations

    def travelled(self) -> Path:
        """The path; ValueError for a method that does not declare it (see `Needs`)."""
        if self.path is None:
            raise ValueError("the batch holds no paths: the method's `needs` do not ask for them")
        return self.path


@dataclass(frozen=True)
class Solved:
    """What the teacher's ODE gave; noises are drawn anew from the seed and the block's number.

    Attributes:
        observation: of each coupling, an index into the block's observations, int64 (N,) on the CPU.
        endpoint: x_0, (N, H, D).
    """

    observation: Tensor
    endpoint: Tensor


@dataclass(frozen=True)
class Block:
    """A resident block.

    Attributes:
        observation: of each row, an index into the block's context, items or actions, int64 (N,).
        noise: x_1, (N, H, D); None where there are no couplings.
        endpoint: x_0, (N, H, D), likewise.
        context: the student's encoded observations, where they are kept.
        items: the raw observations, where they are not.
        path: from `noise` to `endpoint`, where a method needs it.
        actions: demonstrated ones and where their loss counts, by observation, where a method needs them.
    """

    observation: Tensor
    noise: Tensor | None
    endpoint: Tensor | None
    context: Context | None
    items: dict[str, Any] | None
    path: Path | None = None
    actions: tuple[Tensor, Tensor] | None = None

    @property
    def num_bytes(self) -> int:
        """Memory that it takes, in bytes."""
        tensors = [*(self.actions or ()), *(self.items or {}).values()]
        tensors += self.context.tensors() if self.context is not None else ()
        return self.coupling_bytes + sum(item.nbytes for item in tensors if isinstance(item, Tensor))

    @property
    def coupling_bytes(self) -> int:
        """What noises, endpoints and paths take of it, in proportion to the noises of an observation."""
        tensors = [self.noise, self.endpoint, self.path.states if self.path is not None else None]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def pick(items: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """The observations `rows` of a collated batch of them."""
    return {
        key: value[rows] if isinstance(value, Tensor) else [value[row] for row in rows.tolist()]
        for key, value in items.items()
    }


def join(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Joins collated batches of observations."""
    return {
        key: torch.cat([part[key] for part in parts])
        if isinstance(first, Tensor)
        else [row for part in parts for row in part[key]]
        for key, first in parts[0].items()
    }


def join_paths(paths: Sequence[Path | None]) -> Path | None:
    """Paths on one grid as one; None where they were not kept."""
    kept = [path for path in paths if path is not None]
    return Path(torch.cat([path.states for path in kept]), kept[0].times) if kept else None


def seen(items: dict[str, Any]) -> dict[str, Any]:
    """What a policy sees of a batch: all but a demonstrator's actions."""
    return {key: value for key, value in items.items() if key not in (ACTION, f"{ACTION}_is_pad")}
