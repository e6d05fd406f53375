"""Collections: observations from episodes, each a LeRobotDataset on disk whose frames are read as a dataset's are.

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import OBS_PREFIX
from numpy.typing import NDArray
from torch import Tensor

from chordflow.disk import whole_folder
from chordflow.errors import UserError, machine_refuses, ran_out_of_memory, reason

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
    """Observations as LeRobot stores them: T frames for each, images as bytes.

    Args:
        values: by key, (B, ...) or (B, T, ...); of the two indices, (B,).
        tasks: their instructions.
        history: see `About`.
    """
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
    """Writes a collection whole or not at all.

    Args:
        folder: of all collections of the run.
        number: of this one.
        frames: see `frames_of`.
        fps: of the dataset that they will be mixed with.
        about: how they were collected.

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
    """A collection on disk.

    Args:
        folder: of all collections of the run.
        number: of this one.

    Attributes:
        about: how it came about.

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
    """The collections that a run had made before an optimiser step.

    Those that it made later, at that very step too, are made anew and replaced as it comes to them again.

    Raises:
        UserError: if one cannot be read.
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


def _about(path: Path) -> About:
    return About(**json.loads((path / ABOUT).read_text(encoding="utf-8")))


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if machine_refuses(error) or ran_out_of_memory(error):
            raise
        raise UserError(
            f"config_path: the observations in {path}, which the checkpoint was trained with, cannot be read "
            f"({reason(error)}); restore the folder, or start a new run."
        ) from error


def _stored(value: Tensor) -> NDArray[Any]:
    """A value of one control step: an image (C, H, W) in [0, 1] as bytes (H, W, C)."""
    if value.ndim == 3 and value.is_floating_point():
        return (value.permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    return value.reshape(value.shape or (1,)).numpy()


def _feature(value: NDArray[Any]) -> dict[str, Any]:
    if value.dtype == np.uint8 and value.ndim == 3:
        return {"dtype": "image", "shape": value.shape, "names": ["height", "width", "channels"]}
    return {"dtype": str(value.dtype), "shape": value.shape, "names": None}
