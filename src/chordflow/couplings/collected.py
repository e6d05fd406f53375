"""Collections: observations from episodes, on disk, read as a dataset's are.

    collection_000000.safetensors   a tensor per observation key, of N rows; images as bytes where that loses nothing
    collection_000000.json          instructions, and how the observations were collected

The JSON is written last: a collection without it is none.

Shapes: N observations of a collection, B of them at a time.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from chordflow.errors import UserError, reason


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
        as_bytes: keys of images that are stored as bytes.
        tasks: the instruction of each observation, N.
        ranges: which episodes of which tasks were run: fields of `rollouts.starts.SeedRange`. Collections of older
            versions have none.
    """

    step: int
    acted_by: str
    num_steps: int
    episodes: int
    next_seed: int
    seconds: float
    observations: int
    as_bytes: list[str]
    tasks: list[str]
    ranges: list[dict[str, Any]] = field(default_factory=list)


class CollectionWriter:
    """Gathers the observations of a collection, images as bytes, and writes it."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Tensor]] = {}
        self._tasks: list[str] = []

    def add(self, values: dict[str, Tensor], tasks: list[str]) -> None:
        """Takes observations.

        Args:
            values: by key, (B, ...).
            tasks: their instructions.
        """
        for key, value in values.items():
            self._parts.setdefault(key, []).append(_packed(value.detach().cpu()))
        self._tasks += tasks

    def write(
        self,
        folder: Path,
        number: int,
        *,
        step: int,
        acted_by: str,
        num_steps: int,
        episodes: int,
        next_seed: int,
        seconds: float,
        ranges: list[dict[str, Any]] | None = None,
    ) -> Collection:
        """Writes what was taken; see `About`.

        Raises:
            UserError: if it cannot be written.
        """
        tensors, as_bytes = {}, []
        for key, parts in self._parts.items():
            # One picture that is no picture of bytes, and none of them is kept so.
            if len({part.dtype for part in parts}) > 1:
                parts = [_unpacked(part) if part.dtype == torch.uint8 else part for part in parts]
            tensors[key] = torch.cat(parts).contiguous()
            if tensors[key].dtype == torch.uint8:
                as_bytes.append(key)
        about = About(
            step,
            acted_by,
            num_steps,
            episodes,
            next_seed,
            seconds,
            len(self._tasks),
            as_bytes,
            self._tasks,
            ranges or [],
        )
        path = collection_path(folder, number)
        temporary = path.with_name(f".{path.name}.tmp")
        described = temporary.with_suffix(".json")
        try:
            folder.mkdir(exist_ok=True)
            save_file(tensors, temporary)
            described.write_text(json.dumps(dataclasses.asdict(about)), encoding="utf-8")
            for file in (temporary, described):
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
            os.replace(temporary, path)
            os.replace(described, path.with_suffix(".json"))
        except (OSError, SafetensorError) as error:
            for file in (temporary, described):
                file.unlink(missing_ok=True)
            raise UserError(
                f"output_dir={folder.parent}: the collected observations cannot be written ({error}); make room or "
                "choose another folder."
            ) from error
        return Collection(path, about)


class Collection:
    """A collection on disk.

    Args:
        path: of its tensors.
        about: how it came about.
    """

    def __init__(self, path: Path, about: About) -> None:
        self.path = path
        self.about = about
        self._file: Any = None

    @classmethod
    def open(cls, folder: Path, number: int) -> Collection:
        """The collection `number` in `folder`.

        Raises:
            UserError: if it is not there.
        """
        path = collection_path(folder, number)
        try:
            return cls(path, About(**json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError) as error:
            raise _unreadable(path, error) from error

    def check(self) -> None:
        """Makes sure that all of it is there.

        Raises:
            UserError: if not.
        """
        try:
            with safe_open(self.path, "pt") as file:
                rows = {file.get_slice(key).get_shape()[0] for key in file.keys()}  # noqa: SIM118
            if rows != {self.about.observations} or len(self.about.tasks) != self.about.observations:
                raise ValueError("its parts are of unequal length")
        except (OSError, ValueError, SafetensorError) as error:
            raise _unreadable(self.path, error) from error

    def item(self, row: int) -> dict[str, Any]:
        """An observation, as `Observations` gives those of a dataset."""
        if self._file is None:
            self._file = safe_open(self.path, "pt")
        found: dict[str, Any] = {"task": self.about.tasks[row]}
        for key in self._file.keys():  # noqa: SIM118
            value = self._file.get_slice(key)[row : row + 1][0]
            found[key] = _unpacked(value) if key in self.about.as_bytes else value
        return found

    def __getstate__(self) -> dict[str, Any]:
        # Every process that reads opens the file for itself.
        return {"path": self.path, "about": self.about, "_file": None}


def collection_path(folder: Path, number: int) -> Path:
    """Where the tensors of a collection lie."""
    return folder / f"collection_{number:06}.safetensors"


def known_collections(folder: Path, before_step: int) -> list[Collection]:
    """The collections that a run had made before an optimiser step.

    Those that it made later, at that very step too, are made anew and written over as it comes to them again.

    Raises:
        UserError: if one cannot be read.
    """
    found: list[Collection] = []
    for number in range(len(list(folder.glob("collection_*.json")))):
        collection = Collection.open(folder, number)
        if collection.about.step >= before_step:
            break
        collection.check()
        found.append(collection)
    return found


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"config_path: the observations in {path}, which the checkpoint was trained with, cannot be read "
        f"({reason(error)}); restore the file, or start a new run."
    )


def _packed(value: Tensor) -> Tensor:
    """An image as bytes where they say the same, to the bit."""
    if not (value.ndim >= 4 and value.dtype == torch.float32):
        return value
    packed = (value * 255).round().clamp(0, 255).to(torch.uint8)
    return packed if torch.equal(_unpacked(packed), value) else value


def _unpacked(value: Tensor) -> Tensor:
    return value.to(torch.float32) / 255
