"""Observations of a dataset and of collections side by side, as blocks of couplings take them.

A block takes a fixed share of its observations from the collections. Each collection is gone through a number of
times and is then followed by the next, which is asked for as the first block needs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lerobot.utils.constants import OBS_PREFIX
from torch import Tensor

from chordflow.couplings.collected import Collection
from chordflow.couplings.observations import Observations
from chordflow.couplings.order import Walk
from chordflow.errors import UserError
from chordflow.policies import FlowPolicy


class MixedObservations(Observations):
    """The frames of a dataset, then those of one collection after the other.

    Only keys that both have are shown, so that observations of both can be joined.

    Args:
        recorded: the dataset's.
        share: of each block that comes from collections, above 0 and at most 1.
        size: observations of each collection.
        passes: how often a collection is gone through.
        collect: makes the collection of a number; each is asked for once, in the order of the numbers.
        collections: those that are there already.
    """

    def __init__(
        self,
        recorded: Observations,
        share: float,
        size: int,
        passes: int,
        collect: Callable[[int], Collection],
        collections: list[Collection],
    ) -> None:
        super().__init__(recorded.dataset, recorded.frames)
        self.share = share
        self.size = size
        self.passes = passes
        self.collections = collections
        self._collect: Callable[[int], Collection] | None = collect
        self._walks: tuple[int, Walk, Walk] | None = None
        self._keys = frozenset(collections[0].item(0)) if collections else frozenset[str]()

    def __len__(self) -> int:
        return len(self.frames) + self.size * len(self.collections)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < len(self.frames):
            item = super().__getitem__(index)
            return {key: value for key, value in item.items() if key in self._keys}
        number, row = divmod(index - len(self.frames), self.size)
        return self.collections[number].item(row)

    def of_block(self, number: int, size: int, seed: int) -> list[int]:
        """Which observations a block holds; makes the collections that it takes some from.

        What it answers depends on the arguments alone, and what a collection holds on when it is first needed.

        Args:
            number: of the block, from 0.
            size: observations of each block.
            seed: of the orders.
        """
        if self._walks is None or self._walks[0] != seed:
            recorded = Walk(len(self.frames), seed, "order")
            self._walks = (seed, recorded, Walk(self.size, seed, "collected order"))
        _, recorded, collected = self._walks
        begin, end = (self._collected_of(number * size), self._collected_of((number + 1) * size))
        self._need(self._collections_of(end))
        first = number * size - begin
        of_dataset = [recorded[first + i] for i in range(size - (end - begin))]
        per_collection = self.size * self.passes
        return of_dataset + [
            len(self.frames) + position // per_collection * self.size + collected[position]
            for position in range(begin, end)
        ]

    def num_collections(self, blocks: int, size: int) -> int:
        """How many collections the first `blocks` blocks of `size` observations take some from."""
        return self._collections_of(self._collected_of(blocks * size))

    def _collected_of(self, count: int) -> int:
        """How many of the first `count` observations of all blocks come from collections."""
        # Past the rounding of a product that is a whole number.
        return math.floor(count * self.share + 1e-6)

    def _collections_of(self, collected: int) -> int:
        return -(-collected // (self.size * self.passes))

    def _need(self, count: int) -> None:
        while len(self.collections) < count:
            assert self._collect is not None
            self.collections.append(self._collect(len(self.collections)))
            self._keys = frozenset(self.collections[0].item(0))

    def __getstate__(self) -> dict[str, Any]:
        # Processes that read ahead make no collections.
        return {**self.__dict__, "_collect": None}


def as_recorded(
    observed: Mapping[str, Tensor], item: Mapping[str, Any], policy: FlowPolicy, name: str
) -> dict[str, Tensor]:
    """The observations of an environment as a dataset has them.

    Args:
        observed: of the environment, (B, ...).
        item: one of the dataset.
        policy: who looks at both; its names tell which are the same.
        name: of the environment, for messages.

    Returns:
        All that both have, by the dataset's names, (B, ...).

    Raises:
        UserError: if only one of them has something that the policy looks at, or sizes differ.
    """
    own = {policy.own_name(key): key for key in item if key.startswith(OBS_PREFIX)}
    found = {key: own[policy.own_name(key)] for key in observed if policy.own_name(key) in own}
    shown = {policy.own_name(key) for key in observed}
    for key in policy.config.input_features or {}:
        if (key in own) != (key in shown):
            has, lacks = ("the dataset", name) if key in own else (name, "the dataset")
            raise UserError(
                f"{name}: the policy looks at {key}, which {has} has and {lacks} has not, so that their observations "
                "cannot be mixed; give both the same names, by the env options or --rename_map."
            )
    values = {}
    for theirs, ours in found.items():
        shape, expected = tuple(observed[theirs].shape[1:]), tuple(item[ours].shape)
        # A dataset that is asked for the present alone as a history shows it with an axis of one step.
        if shape != expected and (1, *shape) != expected:
            raise UserError(
                f"{name}: {theirs} has shape {shape}, but {ours} of the dataset has {expected}, so that they cannot be "
                "mixed; set the environment's size by its options."
            )
        values[ours] = observed[theirs].reshape(-1, *expected)
    return values


def check_finite(values: Mapping[str, Tensor], seeds: list[int], name: str) -> None:
    """Raises UserError for the first number that is NaN or infinite.

    Args:
        values: by key, (B, ...).
        seeds: of their episodes, B.
        name: of the environment.
    """
    for key, value in values.items():
        finite = value.isfinite().flatten(1).all(dim=1) if value.ndim > 1 else value.isfinite()
        if value.is_floating_point() and not finite.all():
            row = int(torch.nonzero(~finite)[0])
            raise UserError(
                f"{name}: {key} is NaN or infinite in the episode of seed {seeds[row]}; mend the environment, or begin "
                "with another --collect.seed."
            )
