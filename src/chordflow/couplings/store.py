"""Couplings on disk: a folder of blocks that the teacher was asked for once, for many trainings.

    STORE/manifest.json                what the blocks were made with, and each finished one's checksum
    STORE/block-000000.safetensors     its observations, its endpoints, and where wanted their contexts

Noises are not stored: they follow from the manifest's seed and the block's number (see `flow.seeds`). A block
is whole or it is not in the manifest, which itself is replaced by renaming.

Shapes: N couplings of a block, O observations of a block, H chunk size, D padded action dimension.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from chordflow.couplings.blocks import Solved
from chordflow.errors import UserError, machine_refuses
from chordflow.policies import Context

LAYOUT = 1
"""Version of the files' layout."""

MANIFEST = "manifest.json"

FOR_TRAINING = ("teacher", "dataset", "rename_map", "seed", "coupling", "buffer")
"""Settings of the command that began a store, which a training takes from it."""

_OBSERVATIONS, _CONTEXT = "observations", "context."


@dataclass(frozen=True)
class Shard:
    """What the manifest says of a finished block's file.

    Attributes:
        sha256: of the file, in hexadecimal.
        num_bytes: its size.
    """

    sha256: str
    num_bytes: int


@dataclass
class Manifest:
    """What a store was made with, and what of it is finished.

    Attributes:
        made_with: all that its blocks depend on, as nested plain values.
        about: what is good to know of how they were made, as nested plain values; nothing depends on it. Its
            `settings` are those of the command that began the store.
        num_blocks: blocks that the store is to hold.
        shards: the finished blocks by number.
    """

    made_with: dict[str, Any]
    about: dict[str, Any]
    num_blocks: int
    shards: dict[int, Shard] = field(default_factory=dict)

    @property
    def made_with_sha256(self) -> str:
        """SHA-256 of `made_with`, in hexadecimal: equal for stores of equal couplings, wherever they are."""
        return hashlib.sha256(json.dumps(self.made_with, sort_keys=True).encode()).hexdigest()

    @property
    def missing(self) -> list[int]:
        """Numbers of the blocks that are still to be made."""
        return [number for number in range(self.num_blocks) if number not in self.shards]

    @property
    def num_bytes(self) -> int:
        """Size of the finished blocks on disk."""
        return sum(shard.num_bytes for shard in self.shards.values())

    def to_json(self) -> bytes:
        """The manifest's file."""
        content = {
            "layout": LAYOUT,
            "made_with": self.made_with,
            "about": self.about,
            "num_blocks": self.num_blocks,
            "shards": {shard_name(n): asdict(self.shards[n]) for n in sorted(self.shards)},
        }
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, path: Path) -> Manifest:
        """The manifest in a file's bytes.

        Raises:
            UserError: if they are none, or of a newer layout.
        """
        try:
            content = json.loads(data)
            layout = int(content["layout"])
            if layout > LAYOUT:
                raise UserError(
                    f"{path} was written by a newer chordflow (layout {layout}, this one reads {LAYOUT}); update "
                    "chordflow, or make a new store."
                )
            shards = {
                shard_number(name): Shard(str(told["sha256"]), int(told["num_bytes"]))
                for name, told in content["shards"].items()
            }
            made_with, about = dict(content["made_with"]), dict(content["about"])
            num_blocks = int(content["num_blocks"])
            _check_content(made_with, about, num_blocks)
            return cls(made_with, about, num_blocks, shards)
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            part = f" ({error})" if isinstance(error, _BrokenPartError) else ""
            raise UserError(
                f"{path} is cut or no manifest of couplings{part}; restore it from a copy, or make the store anew in "
                "another folder."
            ) from error


class _BrokenPartError(ValueError):
    """A part of a manifest is not what its readers rely on; says which."""


def _check_content(made_with: dict[str, Any], about: dict[str, Any], num_blocks: int) -> None:
    """Looks for what readers of a manifest rely on; KeyError, TypeError or ValueError where it is not there."""
    for name in FOR_TRAINING:
        kind = int if name == "seed" else dict
        value = look_up(about, f"settings.{name}")
        if not isinstance(value, kind):
            wanted = "a whole number" if kind is int else "a group of settings"
            raise _BrokenPartError(f"about.settings.{name} is {json.dumps(value)[:40]}, not {wanted}")
    int(made_with["seed"]), bool(made_with["store_context"])
    if num_blocks < 1 or int(made_with["buffer"]["block_size"]) < 1:
        raise ValueError("a store holds at least one block of one observation")


def shard_name(number: int) -> str:
    """The file of a block."""
    return f"block-{number:06d}.safetensors"


def shard_number(name: str) -> int:
    """The block of a file; ValueError where the name is none."""
    return int(name.removeprefix("block-").removesuffix(".safetensors"))


def read_manifest(folder: Path, option: str = "couplings.path") -> Manifest:
    """A store's manifest.

    Args:
        folder: the store's.
        option: the one that the folder came from, for messages.

    Raises:
        UserError: if there is none, or it cannot be used.
    """
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except OSError as error:
        if machine_refuses(error):
            raise
        what = "no coupling store (manifest.json is missing)" if folder.is_dir() else "no folder"
        raise UserError(
            f"{option}={folder}: there is {what}; make one with: "
            f"chordflow couple --teacher.path=CHECKPOINT --dataset.repo_id=USER/DATASET "
            f"--output_dir={shlex.quote(str(folder))}"
        ) from error
    return Manifest.from_json(data, path)


def remake_command(folder: Path) -> str:
    """The command line that makes what a store lacks."""
    return f"chordflow couple --resume=true --config_path={shlex.quote(str(folder / MANIFEST))}"


def difference(wanted: Mapping[str, Any], found: Mapping[str, Any], prefix: str = "") -> str | None:
    """The dotted name of the first setting in which `found` is not as `wanted`; None where all agree."""
    for name in [*wanted, *(key for key in found if key not in wanted)]:
        ours, theirs = wanted.get(name), found.get(name)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            inside = difference(ours, theirs, f"{prefix}{name}.")
            if inside is not None:
                return inside
        elif ours != theirs:
            return prefix + name
    return None


def look_up(settings: Mapping[str, Any], name: str) -> Any:
    """The value of a dotted name; None where there is none."""
    value: Any = settings
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def encode_block(observations: list[int], solved: Solved, context: Context | None) -> bytes:
    """A block's file.

    Args:
        observations: indices of the O observations that it was made on.
        solved: what the teacher was asked for.
        context: of the O observations, where it is stored.
    """
    tensors = {
        "observation": solved.observation,
        "endpoint": solved.endpoint,
        _OBSERVATIONS: torch.tensor(observations, dtype=torch.int64),
    }
    for index, tensor in enumerate(context.tensors() if context is not None else ()):
        tensors[f"{_CONTEXT}{index}"] = tensor
    # Copies: two fields of a context may share memory, which the format does not allow.
    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})


@dataclass(frozen=True)
class CouplingStore:
    """A whole store, to train from.

    Attributes:
        folder: where it is.
        manifest: what it says of itself.
        num_blocks: how many of its blocks are used.
        template: any context of the teacher's, whose form the stored ones are given; None leaves them unread.
    """

    folder: Path
    manifest: Manifest
    num_blocks: int
    template: Context | None = None

    @property
    def seed(self) -> int:
        """From which observations and noises were drawn."""
        return int(self.manifest.made_with["seed"])

    @property
    def holds_context(self) -> bool:
        """Whether contexts are stored and are to be used."""
        return self.template is not None and bool(self.manifest.made_with["store_context"])

    def check(self, max_bytes: int = 4 << 30) -> None:
        """Makes sure before a training that its blocks are there.

        Args:
            max_bytes: up to which size of the whole every file is read and its checksum taken; beyond it the
                files' sizes have to do, and each is checked when it is read.

        Raises:
            UserError: naming the first block that is not as the manifest says.
        """
        missing = [number for number in self.manifest.missing if number < self.num_blocks]
        if missing:
            done = self.num_blocks - len(missing)
            raise UserError(
                f"couplings.path={self.folder}: {done} of {self.num_blocks} blocks are made; make the others with: "
                f"{remake_command(self.folder)}"
            )
        sizes = [self.manifest.shards[number].num_bytes for number in range(self.num_blocks)]
        for number in range(self.num_blocks):
            if sum(sizes) <= max_bytes:
                self._bytes(number)
            elif (fault := size_fault(self.folder, number, self.manifest.shards[number])) is not None:
                raise self._damaged(number, fault)

    def read(self, number: int, observations: list[int]) -> tuple[Solved, Context | None]:
        """A block, on the CPU.

        Args:
            number: of the block, below `num_blocks`.
            observations: indices of those that it should have been made on.

        Raises:
            UserError: where it is missing, damaged, or of other observations.
        """
        try:
            tensors = load(self._bytes(number))
            stored = tensors[_OBSERVATIONS].tolist()
            solved = Solved(tensors["observation"], tensors["endpoint"])
        except (SafetensorError, KeyError) as error:
            raise self._damaged(number, "is no block of couplings") from error
        if stored != observations:
            raise self._damaged(number, "was made on other observations")
        return solved, self._context(number, tensors) if self.holds_context else None

    def _context(self, number: int, tensors: dict[str, Tensor]) -> Context:
        assert self.template is not None
        like = self.template.tensors()
        stored = [tensors.get(f"{_CONTEXT}{index}") for index in range(len(like))]
        if any(
            tensor is None or tensor.dtype != known.dtype or tensor.dim() != known.dim()
            for tensor, known in zip(stored, like, strict=True)
        ):
            raise self._damaged(number, "holds contexts of another form than this teacher's")
        parts = iter(stored)
        return self.template.map(lambda _: next(parts))

    def _bytes(self, number: int) -> bytes:
        data, fault = read_shard(self.folder, number, self.manifest.shards[number])
        if fault is not None:
            raise self._damaged(number, fault)
        return data

    def _damaged(self, number: int, fault: str) -> UserError:
        return UserError(
            f"couplings.path={self.folder}: {shard_name(number)} {fault}; make this block anew with: "
            f"{remake_command(self.folder)}"
        )


def size_fault(folder: Path, number: int, shard: Shard) -> str | None:
    """What is wrong with a block's file by its size; None where nothing is."""
    try:
        size = os.stat(folder / shard_name(number)).st_size
    except FileNotFoundError:
        return "is missing"
    return None if size == shard.num_bytes else f"is half-written ({size:,} of {shard.num_bytes:,} bytes)"


def read_shard(folder: Path, number: int, shard: Shard) -> tuple[bytes, str | None]:
    """A block's file and what is wrong with it; None where nothing is."""
    if (fault := size_fault(folder, number, shard)) is not None:
        return b"", fault
    data = (folder / shard_name(number)).read_bytes()
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        return b"", "is damaged (its checksum is not the manifest's)"
    return data, None
