"""Observations collected in episodes: each collection a LeRobotDataset on disk, mixed with the frames of a dataset.

    collection_000000/                   a LeRobotDataset of one episode, with `seed` and `step` of each frame
    collection_000000/collection.json    how the observations were collected

A collection's folder appears whole or not at all. LeRobot numbers episodes and frames by itself, so the seed of the
episode that an observation comes from and its step there have features of their own.

Shapes: N observations of a collection, B of them at a time, T control steps that a policy with a history looks at.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import OBS_PREFIX
from numpy.typing import NDArray
from torch import Tensor

from chordflow.couplings.observations import Observations, restore_axes, walk
from chordflow.disk import whole_folder
from chordflow.errors import UserError, explained, reason
from chordflow.policies import FlowPolicy

ABOUT = "collection.json"

_REPO_ID = "chordflow/observations"
_PLACE = {"episode_index": "seed", "frame_index": "step"}
"""Features of the dataset that hold what observations call otherwise."""


@dataclass(frozen=True)
class About:
    """How a collection came about.

    Attributes:
        step: optimiser steps that were done.
        acted_by: teacher or student.
        num_steps: Euler steps of each of its chunks.
        episodes: that were run.
        next_seed: with which the next collection begins.
        seconds: that it took.
        observations: N.
        history: frames of an observation, T, for a policy with a history; None where values have no such axis.
        ranges: which episodes of which tasks were run: fields of `rollouts.episodes.SeedRange`.
    """

    step: int
    acted_by: str
    num_steps: int
    episodes: int
    next_seed: int
    seconds: float
    observations: int
    history: int | None = None
    ranges: list[dict[str, Any]] = field(default_factory=list)


def frames_of(values: dict[str, Tensor], tasks: list[str], history: int | None) -> Iterator[dict[str, Any]]:
    """Observations, (B, ...) or (B, T, ...) by key, as LeRobot stores them: T frames for each, images as bytes."""
    for row, task in enumerate(tasks):
        for step in range(history or 1):
            frame: dict[str, Any] = {"task": task}
            for key, value in values.items():
                own = value[row] if key in _PLACE or history is None else value[row, step]
                frame[_PLACE.get(key, key)] = _stored(own.detach().cpu())
            yield frame


def write_collection(
    folder: Path, number: int, frames: Sequence[dict[str, Any]], fps: int, about: About
) -> Collection:
    """Writes collection `number` of a run whole or not at all, to be mixed with a dataset of `fps` frames a second.

    Raises:
        UserError: if it cannot be written.
    """
    features = {key: _feature(value) for key, value in frames[0].items() if key != "task"}
    try:
        with whole_folder(collection_path(folder, number), sync=True) as temporary:
            # LeRobot makes the folder by itself.
            temporary.rmdir()
            dataset = LeRobotDataset.create(_REPO_ID, fps, features, root=temporary, use_videos=False)
            for frame in frames:
                dataset.add_frame(dict(frame))
            dataset.save_episode()
            dataset.finalize()
            (temporary / ABOUT).write_text(json.dumps(dataclasses.asdict(about)), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"output_dir={folder.parent}: the collected observations cannot be written ({reason(error)}); make room or "
            "choose another folder."
        ) from error
    return Collection(folder, number)


class Collection:
    """Collection `number` on disk, in the folder of all collections of a run; `about` says how it came about.

    Raises:
        UserError: if it is not there, or not all of it.
    """

    def __init__(self, folder: Path, number: int) -> None:
        path = collection_path(folder, number)
        with _readable(path):
            self.about = _about(path)
            self._dataset = LeRobotDataset(_REPO_ID, root=path)
            if len(self._dataset) != self.about.observations * (self.about.history or 1):
                raise ValueError(f"it holds {len(self._dataset)} frames")

    def item(self, row: int) -> dict[str, Any]:
        """An observation, as `Observations` gives those of a dataset."""
        count = self.about.history or 1
        frames = [self._dataset[row * count + step] for step in range(count)]
        for frame in frames:
            restore_axes(frame, self._dataset.meta.features)
        found: dict[str, Any] = {"task": frames[0]["task"]}
        for key, value in frames[0].items():
            if key.startswith(OBS_PREFIX):
                parts = [frame[key] for frame in frames]
                found[key] = value if self.about.history is None else torch.stack(parts)
        return found | {ours: frames[0][theirs] for ours, theirs in _PLACE.items()}


def collection_path(folder: Path, number: int) -> Path:
    """The folder of a collection."""
    return folder / f"collection_{number:06}"


def known_collections(folder: Path, before_step: int) -> list[Collection]:
    """The collections that a run had made before an optimiser step; UserError if one cannot be read.

    Those that it made later, at that very step too, are made anew and replaced as it comes to them again.
    """
    if any(folder.glob("collection_*.safetensors")):
        raise UserError(
            f"config_path: {folder} holds observations in the format of an older chordflow; start a new run."
        )
    found: list[Collection] = []
    for number in range(len(list(folder.glob("collection_*")))):
        path = collection_path(folder, number)
        with _readable(path):
            if _about(path).step >= before_step:
                break
        found.append(Collection(folder, number))
    return found


class MixedObservations(Observations):
    """The frames of a dataset, then those of one collection after the other.

    A block takes a fixed share of its observations from the collections. Each collection is gone through a number of
    times and is then followed by the next, which is made as the first block needs it. Only keys that both have
    are shown, so that observations of both can be joined.

    Args:
        recorded: the dataset's.
        share: of each block that comes from collections, above 0 and at most 1.
        size: observations of each collection.
        passes: how often a collection is gone through.
        collect: makes the collection of a number; called once for each, in the order of the numbers.
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
        super().__init__(recorded.dataset, recorded.frames, unused=recorded.unused)
        self.share, self.size, self.passes = share, size, passes
        self.collections = collections
        self._collect: Callable[[int], Collection] | None = collect
        self._keys = frozenset(collections[0].item(0)) if collections else frozenset[str]()

    def __len__(self) -> int:
        return len(self.frames) + self.size * len(self.collections)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < len(self.frames):
            return {key: value for key, value in super().__getitem__(index).items() if key in self._keys}
        number, row = divmod(index - len(self.frames), self.size)
        return self.collections[number].item(row)

    def of_block(self, number: int, size: int, seed: int) -> list[int]:
        """Which observations a block holds; makes the collections that it takes some from.

        What it answers depends on the arguments alone, and what a collection holds on when it is first needed.
        """
        begin, end = self._collected_of(number * size), self._collected_of((number + 1) * size)
        while len(self.collections) < self._collections_of(end):
            assert self._collect is not None
            self.collections.append(self._collect(len(self.collections)))
            self._keys = frozenset(self.collections[0].item(0))
        recorded = range(number * size - begin, (number + 1) * size - end)
        rows = zip(
            range(begin, end), walk(range(begin, end), self.size, seed, "collected order"), strict=True
        )
        per_collection = self.size * self.passes
        return walk(recorded, len(self.frames), seed, "order") + [
            len(self.frames) + position // per_collection * self.size + row for position, row in rows
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

    def __getstate__(self) -> dict[str, Any]:
        # Processes that read ahead make no collections.
        return {**self.__dict__, "_collect": None}


def as_recorded(
    observed: Mapping[str, Tensor], item: Mapping[str, Any], policy: FlowPolicy, name: str
) -> dict[str, Tensor]:
    """The observations of an environment, (B, ...), as a dataset has them: all that both have, by its names.

    Args:
        observed: of the environment.
        item: one of the dataset.
        policy: who looks at both; its names tell which are the same.
        name: of the environment, for messages.

    Raises:
        UserError: if only one of them has something that the policy looks at, or sizes differ.
    """
    own = {policy.own_name(key): key for key in item if key.startswith(OBS_PREFIX)}
    shown = {policy.own_name(key): key for key in observed}
    for key in policy.config.input_features or {}:
        if (key in own) != (key in shown):
            has, lacks = ("the dataset", name) if key in own else (name, "the dataset")
            raise UserError(
                f"{name}: the policy looks at {key}, which {has} has and {lacks} has not, so that their observations "
                "cannot be mixed; give both the same names, by the env options or --rename_map."
            )
    values = {}
    for key, theirs in shown.items():
        if key not in own:
            continue
        ours = own[key]
        shape, expected = tuple(observed[theirs].shape[1:]), tuple(item[ours].shape)
        # A dataset that is asked for the present alone as a history shows it with an axis of one step.
        if expected not in (shape, (1, *shape)):
            raise UserError(
                f"{name}: {theirs} has shape {shape}, but {ours} of the dataset has {expected}, so that they cannot be "
                "mixed; set the environment's size by its options."
            )
        values[ours] = observed[theirs].reshape(-1, *expected)
    return values


def check_finite(values: Mapping[str, Tensor], seeds: list[int], name: str) -> None:
    """Raises UserError for the first of `values` (B, ...) that is NaN or infinite, naming the seed of its episode."""
    for key, value in values.items():
        finite = value.isfinite().reshape(len(value), -1).all(dim=1)
        if not finite.all():
            row = int(torch.nonzero(~finite)[0])
            raise UserError(
                f"{name}: {key} is NaN or infinite in the episode of seed {seeds[row]}; repair it, or begin "
                "with another --collect.seed."
            )


def _about(path: Path) -> About:
    return About(**json.loads((path / ABOUT).read_text(encoding="utf-8")))


def _readable(path: Path) -> contextlib.AbstractContextManager[None]:
    return explained(
        lambda error: (
            f"config_path: the observations in {path}, which the checkpoint was trained with, cannot be read "
            f"({reason(error)}); restore the folder, or start a new run."
        )
    )


def _stored(value: Tensor) -> NDArray[Any]:
    """A value of one control step: an image (C, H, W) in [0, 1] as bytes (H, W, C)."""
    if value.ndim == 3 and value.is_floating_point():
        return (value.permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    return value.reshape(value.shape or (1,)).numpy()


def _feature(value: NDArray[Any]) -> dict[str, Any]:
    if value.dtype == np.uint8 and value.ndim == 3:
        return {"dtype": "image", "shape": value.shape, "names": ["height", "width", "channels"]}
    return {"dtype": str(value.dtype), "shape": value.shape, "names": None}
