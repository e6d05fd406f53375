"""Which episodes are trained on, in which order observations are gone through, and which blocks are in memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import isqrt

import torch

from chordflow.flow.seeds import generator


def split_episodes(
    tasks: Sequence[str], episodes: Sequence[int], eval_split: float, held_out: Collection[int] | None = None
) -> tuple[list[int], list[int]]:
    """LeRobot's rule: of every task the last ceil(n * eval_split) episodes are held out.

    Where every task has two episodes or more, one of each is left to train on. The tasks with a single episode are
    taken together as if they were one: of these, whole tasks are held out.

    Args:
        tasks: the task of every episode of the dataset.
        episodes: that are used, two or more.
        eval_split: share that is held out.
        held_out: episodes that are held out in place of those that the rule chooses.

    Returns:
        Episodes to train on and episodes held out.
    """
    counts = Counter(tasks[episode] for episode in episodes)
    groups: dict[str | None, list[int]] = {}
    for episode in episodes:
        task = tasks[episode]
        groups.setdefault(task if counts[task] > 1 else None, []).append(episode)
    train: list[int] = []
    measured: list[int] = []
    for chosen in groups.values():
        count = min(math.ceil(len(chosen) * eval_split), len(chosen) - 1)
        out = set(chosen[len(chosen) - count :] if held_out is None else held_out)
        train += [episode for episode in chosen if episode not in out]
        measured += [episode for episode in chosen if episode in out]
    return train, measured


class Walk:
    """An endless walk through reshuffled passes over `count` things; each place of it can be asked for by itself.

    Args:
        count: how many there are.
        names: what the order is drawn from (see `flow.seeds`).
    """

    def __init__(self, count: int, *names: int | str) -> None:
        self.count = count
        self.names = names
        self._epoch = -1
        self._order: list[int] = []

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self.count)
        if epoch != self._epoch:
            drawn = torch.randperm(self.count, generator=generator(*self.names, epoch))
            self._epoch, self._order = epoch, drawn.tolist()
        return self._order[place]


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
