"""Couplings on disk: a folder of blocks that are made once, for many trainings.

    STORE/manifest.json                what the blocks were made with, written once
    STORE/block-000000.safetensors     its observations, its endpoints, where wanted their contexts, and a checksum

Noises are not stored: they follow from the manifest's seed and the block's number (see `flow.seeds`). A block appears
under its name by renaming, so what is there is whole.

Shapes: N couplings of a block, O observations of a block, H chunk size, D padded action dimension.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from chordflow import disk
from chordflow.console import doing
from chordflow.couplings.blocks import Solved
from chordflow.disk import whole_file
from chordflow.errors import UserError, machine_refuses, reason
from chordflow.policies import Context
from chordflow.policies.hashes import tensors_sha256
from chordflow.refusing import look_up

LAYOUT = 2
"""Version of the files' layout. In the first one the manifest held the checksums, of whole files."""

MANIFEST, LOCK = "manifest.json", ".lock"

FOR_TRAINING = ("teacher", "dataset", "rename_map", "seed", "coupling", "buffer")
"""Settings of the command that began a store, which a training takes from it."""

ENCODING, ENCODING_VERSION = "encoding", 2
"""Key and value in `made_with` where contexts are stored of observations for which LeRobot has blank images; stores
without the key hold these images too."""

OLDER_CONTEXTS = "its stored contexts are of an older chordflow, which encoded blank cameras too"

_OBSERVATIONS, _CONTEXT, _SHA256 = "observations", "context.", "sha256"


class BrokenBlockError(ValueError):
    """A block's file is missing or not as it was written; the message is what is wrong with it."""


@dataclass(frozen=True)
class Manifest:
    """What a store was made with.

    Attributes:
        made_with: all that its blocks depend on, as nested plain values.
        about: what is good to know of how they were made, as nested plain values; nothing depends on it. Its
            `settings` are those of the command that began the store.
        num_blocks: blocks that the store is to hold.
        sums: SHA-256 of the whole files of blocks that carry none, by number: those of the first layout.
    """

    made_with: dict[str, Any]
    about: dict[str, Any]
    num_blocks: int
    sums: dict[int, str] = field(default_factory=dict)

    @property
    def made_with_sha256(self) -> str:
        """SHA-256 of `made_with`, in hexadecimal: equal for stores of equal couplings, wherever they are."""
        return hashlib.sha256(json.dumps(self.made_with, sort_keys=True).encode()).hexdigest()

    @property
    def block_size(self) -> int:
        """Observations of a block."""
        return int(self.made_with["buffer"]["block_size"])

    @property
    def num_observations(self) -> int:
        """Observations that the store is to hold."""
        return self.num_blocks * self.block_size

    def to_json(self) -> bytes:
        """The manifest's file."""
        content = {"layout": LAYOUT, **asdict(self)}
        del content["sums"]
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, path: Path) -> Manifest:
        """The manifest in a file's bytes; UserError if they are none, or of a newer layout."""
        try:
            content = json.loads(data)
            if (layout := int(content["layout"])) <= LAYOUT:
                sums = {
                    int(name.removeprefix("block-").removesuffix(".safetensors")): str(entry["sha256"])
                    for name, entry in content.get("shards", {}).items()
                }
                made = cls(
                    dict(content["made_with"]), dict(content["about"]), int(content["num_blocks"]), sums
                )
                made._check()
                return made
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is cut or no manifest of couplings ({reason(error)}); restore it from a copy, or make the "
                "store anew in another folder."
            ) from error
        raise UserError(
            f"{path} was written by a newer chordflow (layout {layout}, this one reads {LAYOUT}); update chordflow, or "
            "make a new store."
        )

    def _check(self) -> None:
        """Looks for what readers rely on; KeyError, TypeError or ValueError where it is not there."""
        for name in FOR_TRAINING:
            value = look_up(self.about, f"settings.{name}")
            if not isinstance(value, int if name == "seed" else dict):
                raise ValueError(f"about.settings.{name} is {json.dumps(value)[:40]}")
        int(self.made_with["seed"]), bool(self.made_with["store_context"])
        if self.num_blocks < 1 or self.block_size < 1:
            raise ValueError("a store holds at least one block of one observation")


def shard_name(number: int) -> str:
    """The file of a block."""
    return f"block-{number:06d}.safetensors"


def finished(folder: Path) -> int:
    """How many blocks a store has."""
    return len(list(folder.glob("block-*.safetensors")))


def read_manifest(folder: Path, option: str = "couplings.path") -> Manifest:
    """The manifest of a store whose folder came from `option`.

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


def read_block(folder: Path, number: int, manifest: Manifest) -> dict[str, Tensor]:
    """A block's tensors, on the CPU; BrokenBlockError if it is missing, or not as it was written."""
    try:
        data = (folder / shard_name(number)).read_bytes()
    except FileNotFoundError as error:
        raise BrokenBlockError("is missing") from error
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError) as error:
        raise BrokenBlockError(f"is cut or damaged ({reason(error)})") from error
    stated = header.get("__metadata__", {}).get(_SHA256)
    own = hashlib.sha256(data).hexdigest() if stated is None else tensors_sha256(tensors)
    if own != (stated or manifest.sums.get(number)):
        raise BrokenBlockError("is damaged (its checksum is another)")
    return tensors


# Writing: whole blocks or none, by one job at a time, whose processes make blocks of their own.


@contextlib.contextmanager
def one_job(folder: Path, *, alone: bool = True) -> Iterator[None]:
    """Locks a store's folder; removes the store's files in the end where no block was made.

    Args:
        folder: the store's; it must exist.
        alone: whether no other process of this job may still write a block in the end.

    Raises:
        UserError: if another job holds it, or it cannot be written to.
    """
    lock = FileLock(folder / LOCK)
    try:
        with doing("Waiting for another process to let go of the store"):
            lock.acquire(timeout=disk.LET_GO_S)
    except Timeout as error:
        raise UserError(
            f"output_dir={folder}: another process is making this store; wait until it has ended, or name a new folder."
        ) from error
    except OSError as error:
        raise _cannot_write(folder, LOCK, error) from error
    try:
        yield
    finally:
        if alone and not finished(folder):
            for path in (folder / MANIFEST, folder / LOCK, *folder.glob(".*.tmp")):
                path.unlink(missing_ok=True)
        lock.release()


def begin(folder: Path, wanted: Manifest) -> None:
    """Begins a store, or checks that the one on disk has the same settings.

    Raises:
        UserError: if the folder holds a store of other settings or of another size, or other files.
    """
    if not (folder / MANIFEST).exists():
        others = [path.name for path in folder.iterdir() if MANIFEST not in path.name and path.name != LOCK]
        if others:
            raise UserError(
                f"output_dir={folder} holds other files ({others[0]}) and no coupling store; name a new folder."
            )
        _write(folder, MANIFEST, wanted.to_json())
        return
    found = read_manifest(folder, "output_dir")
    name = difference(wanted.made_with, found.made_with)
    if name == ENCODING:
        raise UserError(f"output_dir={folder}: {OLDER_CONTEXTS}; name a new folder.")
    if name is not None:
        raise UserError(
            f"output_dir={folder}: this store was made with {name}={look_up(found.made_with, name)}, but now it is "
            f"{look_up(wanted.made_with, name)}; give the settings that it was made with, or name a new folder."
        )
    if wanted.num_blocks != found.num_blocks:
        raise UserError(
            f"num_observations={wanted.num_observations}: the store in {folder} is made for {found.num_observations}; "
            "leave the option out, or name a new folder."
        )


def write_block(
    folder: Path, number: int, observations: list[int], solved: Solved, context: Context | None
) -> None:
    """Writes a block that no other process makes, with the indices of its O observations, and their context if stored.

    Raises:
        UserError: if it cannot be written; all blocks before it stand.
    """
    tensors = {
        "observation": solved.observation,
        "endpoint": solved.endpoint,
        _OBSERVATIONS: torch.tensor(observations, dtype=torch.int64),
    }
    for index, tensor in enumerate(context.tensors() if context is not None else ()):
        tensors[f"{_CONTEXT}{index}"] = tensor
    # Copies: two fields of a context may share memory, which the format does not allow.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    _write(folder, shard_name(number), save(tensors, {_SHA256: tensors_sha256(tensors)}))


def how_to_resume(folder: Path) -> str:
    """What of a store is made, and the command that makes the rest."""
    done = finished(folder)
    if not done:
        return "no block was made yet, so start again."
    blocks = read_manifest(folder, "output_dir").num_blocks
    return f"{done} of {blocks} blocks are made; resume with: {remake_command(folder)}"


def _write(folder: Path, name: str, data: bytes) -> None:
    try:
        with whole_file(folder / name) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise _cannot_write(folder, name, error) from error


def _cannot_write(folder: Path, name: str, error: OSError) -> UserError:
    what = (
        how_to_resume(folder) if finished(folder) else "choose a folder that can be written to and has room."
    )
    return UserError(f"output_dir={folder}: {name} cannot be written ({error.strerror}); {what}")


@dataclass(frozen=True)
class CouplingStore:
    """A whole store, to train from.

    Attributes:
        folder: where it is.
        manifest: how it was made.
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

        Up to `max_bytes` in all every file is read and its checksum taken; beyond, files are checked as they are read.

        Raises:
            UserError: naming the first block that is not as it was written.
        """
        files = [self.folder / shard_name(number) for number in range(self.num_blocks)]
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise UserError(
                f"couplings.path={self.folder}: {missing[0]} is missing: {len(files) - len(missing)} of {len(files)} "
                f"blocks are made; make the others with: {remake_command(self.folder)}"
            )
        small = sum(file.stat().st_size for file in files) <= max_bytes
        for number, file in enumerate(files):
            try:
                if small:
                    read_block(self.folder, number, self.manifest)
                else:
                    with safe_open(file, "pt"):
                        pass
            except (BrokenBlockError, SafetensorError) as error:
                raise self._damaged(number, error) from error

    def read(self, number: int, observations: list[int]) -> tuple[Solved, Context | None]:
        """A block, on the CPU, and its context where it is stored.

        Raises:
            UserError: where it is missing, damaged, or not of these observations.
        """
        try:
            tensors = read_block(self.folder, number, self.manifest)
            if tensors[_OBSERVATIONS].tolist() != observations:
                raise BrokenBlockError("was made on other observations")
            solved = Solved(tensors["observation"], tensors["endpoint"])
            return solved, self._context(tensors) if self.holds_context else None
        except (BrokenBlockError, KeyError) as error:
            raise self._damaged(number, error) from error

    def _context(self, tensors: dict[str, Tensor]) -> Context:
        assert self.template is not None
        like = self.template.tensors()
        stored = [tensors.get(f"{_CONTEXT}{index}") for index in range(len(like))]
        if any(
            tensor is None or tensor.dtype != known.dtype or tensor.dim() != known.dim()
            for tensor, known in zip(stored, like, strict=True)
        ):
            raise BrokenBlockError("holds contexts of another form than this teacher's")
        parts = iter(stored)
        return self.template.map(lambda _: next(parts))

    def _damaged(self, number: int, error: Exception) -> UserError:
        fault = str(error) if isinstance(error, BrokenBlockError) else f"is cut or damaged ({reason(error)})"
        return UserError(
            f"couplings.path={self.folder}: {shard_name(number)} {fault}; make this block anew with: "
            f"{remake_command(self.folder)}"
        )
