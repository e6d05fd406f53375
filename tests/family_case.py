"""What the tests of all families ask of each: a small real checkpoint, and the stock sampler's answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from chordflow.policies import FlowPolicy


class Build(Protocol):
    """Writes a checkpoint with random weights."""

    def __call__(
        self, folder: Path, *, num_steps: int | None = None, dtype: str = "float32", seed: int = 0
    ) -> Path:
        """Saves a stock policy of the tests' state, action and camera sizes with its processors.

        Args:
            folder: an absent folder; what the checkpoint needs besides (tokenizers and the like) goes beside it.
            num_steps: what the config is saved with; the family's default where None.
            dtype: float32, or bfloat16 for the family's own half precision where it has one.
            seed: of the weights.

        Returns:
            The `pretrained_model` folder.
        """


@dataclass(frozen=True)
class FamilyCase:
    """A family under test.

    Attributes:
        family: LeRobot's policy type.
        build: see `Build`.
        default_steps: the family's default number of steps.
        stock_endpoint: the whole chunk (B, H, D) that the stock policy's own sampler makes of a preprocessed
            batch and given noise at the number of steps that the config is saved with.
        has_bfloat16: whether `build` knows bfloat16.
        small_module: a module in this folder whose import makes the class small where its config cannot; it
            imports nothing of chordflow. None where the config suffices.
    """

    family: str
    build: Build
    default_steps: int
    stock_endpoint: Callable[[FlowPolicy, dict[str, Any], Tensor], Tensor]
    has_bfloat16: bool = False
    small_module: str | None = None
