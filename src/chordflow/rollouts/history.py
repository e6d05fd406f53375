"""The past observations that a policy looks at while an episode goes on.

LeRobot's policies with a history keep a queue that every control step fills, and that an episode's first
observation fills alone. Here episodes bring back the observations that the next chunk needs.

Shapes: B batch, T observed control steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lerobot.utils.constants import OBS_PREFIX
from torch import Tensor

from chordflow.errors import UserError
from chordflow.policies import FlowPolicy


@dataclass(frozen=True)
class History:
    """Which observations.

    Attributes:
        indices: control steps relative to the present (0), the oldest first.
    """

    indices: tuple[int, ...] = (0,)

    @classmethod
    def of(cls, policy: FlowPolicy) -> History:
        """What `policy` looks at.

        Raises:
            UserError: for a policy that looks at what is yet to come.
        """
        indices = tuple(policy.observation_delta_indices or (0,))
        if max(indices) > 0:
            raise UserError(
                f"observation_delta_indices of policy type {policy.family!r} holds {max(indices)}: an episode has no "
                "observations of the future to show; this policy can be measured on a dataset only."
            )
        return cls(indices)

    @property
    def span(self) -> int:
        """How many of an episode's last observations are needed, those between included."""
        return 1 - min(self.indices)

    @property
    def is_present(self) -> bool:
        """Whether the present observation is all; values then have no axis T."""
        return self.indices == (0,)

    def choose(self, seen: Sequence[Any]) -> tuple[Any, ...]:
        """The T observations among the last ones (the present is the last); the first stands for those before it."""
        return tuple(seen[max(len(seen) - 1 + index, 0)] for index in self.indices)

    def fold(self, observation: dict[str, Any]) -> dict[str, Any]:
        """From observations one by one, (B T, ...), to those of each episode, (B, T, ...)."""
        if self.is_present:
            return observation
        steps = len(self.indices)
        folded = dict(observation)
        for key, value in observation.items():
            if key == "task":
                folded[key] = value[::steps]
            elif key.startswith(OBS_PREFIX) and isinstance(value, Tensor):
                folded[key] = value.unflatten(0, (-1, steps))
        return folded
