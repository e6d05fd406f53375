"""The order in which observations are gone through."""

from __future__ import annotations

import torch

from chordflow.flow.seeds import generator


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
