"""Where the time of rollouts goes: the network, the simulator, LeRobot's processors, and chordflow itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

Part = Literal["network", "simulator", "processors"]


@dataclass
class Timing:
    """Seconds of wall-clock time of one or several runs.

    Attributes:
        network_s: encoding observations and following the velocity.
        simulator_s: making, resetting, stepping and rendering environments; where they live in other
            processes, waiting for them.
        processors_s: LeRobot's: the environment's and the checkpoint's.
        total_s: the whole of it, without what a caller's `progress` took.
    """

    network_s: float = 0.0
    simulator_s: float = 0.0
    processors_s: float = 0.0
    total_s: float = 0.0

    @property
    def other_s(self) -> float:
        """All else: chordflow itself."""
        return max(self.total_s - self.network_s - self.simulator_s - self.processors_s, 0.0)

    @property
    def overhead(self) -> float:
        """Share of the time that is neither network nor simulator; 0 where no time has passed."""
        spent = self.total_s - self.network_s - self.simulator_s
        return max(spent, 0.0) / self.total_s if self.total_s > 0 else 0.0

    @contextmanager
    def measure(self, part: Part, device: torch.device | None = None) -> Iterator[None]:
        """Adds the time of the block to a part.

        Args:
            part: which.
            device: where the block computes; a GPU is waited for before and after, as it works on its own.
        """
        asynchronous = device is not None and device.type == "cuda"
        if asynchronous:
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        try:
            yield
        finally:
            if asynchronous:
                torch.cuda.synchronize(device)
            name = f"{part}_s"
            setattr(self, name, getattr(self, name) + time.perf_counter() - begin)

    def add(self, other: Timing) -> None:
        """Adds another run's time to this one's."""
        self.network_s += other.network_s
        self.simulator_s += other.simulator_s
        self.processors_s += other.processors_s
        self.total_s += other.total_s
