"""Which blocks of an endless sequence are in memory at a training step.

Training begins on a few blocks. The window grows while the step goes on, and slides once it is whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt


@dataclass(frozen=True)
class Window:
    """The resident blocks as a function of the training step alone, so that a run can resume at any step.

    Every step draws its couplings evenly from those that are resident. Each time that a resident coupling has been
    drawn `uses / num_blocks` times on average, a block is added; once there are `num_blocks`, the oldest one leaves
    for it. So every coupling of a block that was added is drawn `uses` times on average before it leaves, and the
    first ones, which are all there from the beginning, at most so often. While the window is small a draw weighs
    more, so that it grows fast at first: with w blocks, one is added every `per_block * uses * w / num_blocks` draws.

    Attributes:
        num_blocks: of the whole window.
        start_blocks: at the first step; at most `num_blocks`.
        per_block: couplings of a block.
        step_size: couplings that a step draws.
        uses: of a coupling, on average; None keeps the first blocks, which are then all there from the beginning.
    """

    num_blocks: int
    start_blocks: int
    per_block: int
    step_size: int
    uses: int | None

    def held(self, step: int) -> range:
        """Numbers of the blocks that are resident at a training step (0, 1, ...), oldest first."""
        if self.uses is None:
            return range(self.num_blocks)
        # In whole numbers, so that no rounding depends on the machine: in units of 2 * num_blocks draws, growth
        # from a to b blocks takes `unit` times the sum of 2 w for w from a to b - 1, which is b (b - 1) - a (a - 1).
        unit = self.per_block * self.uses
        drawn = 2 * self.num_blocks * step * self.step_size
        begun = self.start_blocks * (self.start_blocks - 1)
        whole = self.num_blocks * (self.num_blocks - 1)
        if drawn < unit * (whole - begun):
            return range((1 + isqrt(1 + 4 * (drawn // unit + begun))) // 2)
        first = (drawn - unit * (whole - begun)) // (2 * self.num_blocks * unit)
        return range(first, first + self.num_blocks)
