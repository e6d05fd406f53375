"""A block of couplings: what of it costs the teacher's network, and what follows from seed and number alone.

Shapes: N couplings of a block, H chunk size, D padded action dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from lerobot.utils.constants import ACTION
from torch import Tensor

from chordflow.couplings.generate import Path
from chordflow.policies import Context


@dataclass(frozen=True)
class Solved:
    """What the teacher's network was asked for; noises are drawn anew from the seed and the block's number.

    Attributes:
        observation: of each coupling, an index into the block's observations, int64 (N,) on the CPU.
        endpoint: x_0, (N, H, D).
    """

    observation: Tensor
    endpoint: Tensor


class BlockSource(Protocol):
    """Blocks that were made earlier, as a store holds them."""

    @property
    def seed(self) -> int:
        """From which their observations and noises were drawn."""

    @property
    def num_blocks(self) -> int:
        """How many there are; the numbers begin at 0."""

    @property
    def holds_context(self) -> bool:
        """Whether the encoded observations are among them."""

    def read(self, number: int, observations: list[int]) -> tuple[Solved, Context | None]:
        """A block, on the CPU.

        Args:
            number: of the block.
            observations: indices of those that the block should have been made on.

        Raises:
            UserError: where it is missing, damaged, or of other observations.
        """


@dataclass(frozen=True)
class Block:
    """A resident block.

    Attributes:
        observation: of each row, an index into the block's context, items or actions, int64 (N,).
        noise: x_1, (N, H, D); None where there are no couplings.
        endpoint: x_0, (N, H, D), likewise.
        context: the student's encoded observations, where they are kept.
        items: the raw observations, where they are not.
        path: from `noise` to `endpoint`, where it was asked for.
        actions: demonstrated ones and where their loss counts, by observation, where they were asked for.
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
        total = self.context.num_bytes if self.context is not None else 0
        total += sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))
        return total + self.coupling_bytes

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
    joined = {}
    for key in parts[0]:
        values = [part[key] for part in parts]
        joined[key] = (
            torch.cat(values) if isinstance(values[0], Tensor) else [row for value in values for row in value]
        )
    return joined


def join_paths(paths: Sequence[Path | None]) -> Path | None:
    """Paths on one grid as one; None where they were not kept."""
    kept = [path for path in paths if path is not None]
    return Path(torch.cat([path.states for path in kept]), kept[0].times) if kept else None


def seen(items: dict[str, Any]) -> dict[str, Any]:
    """What a policy sees of a batch: all but a demonstrator's actions."""
    return {key: value for key, value in items.items() if key not in (ACTION, f"{ACTION}_is_pad")}
