"""Writing a coupling store: whole blocks or none, by one process or by several at once.

A process claims the blocks that it makes by locks on bytes of the store's lock file, byte 0 for the manifest and
byte n + 1 for block n. Such a lock ends with the process that holds it, however that dies, so that another one
takes its block over; and it holds on network file systems as well.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from chordflow.couplings.blocks import Solved
from chordflow.couplings.store import (
    MANIFEST,
    Manifest,
    Shard,
    difference,
    encode_block,
    look_up,
    read_manifest,
    read_shard,
    remake_command,
    shard_name,
)
from chordflow.disk import whole_file
from chordflow.errors import UserError
from chordflow.policies import Context

LOCK = ".lock"
POLL_S = 0.2

TO_THE_END = 0
"""Number of bytes of a lock on all from its first on, as POSIX writes it."""


class StoreWriter:
    """A store that is being made.

    Args:
        folder: the store's; it must exist.
        made_with: all that its blocks depend on (see `Manifest`).
        about: what is good to know.
        num_blocks: blocks that it is to hold. A store that is there grows to them with the first block that this
            process writes, so that one that is refused before that stays what it was; or it shrinks to them at once,
            but for blocks that are made or that another process is making.
        asked: whether that number was asked for; if not, a store that is there keeps its own.

    Raises:
        UserError: if the folder holds a store of other settings, or other files.
    """

    def __init__(
        self,
        folder: Path,
        made_with: dict[str, Any],
        about: dict[str, Any],
        num_blocks: int,
        *,
        asked: bool = True,
    ) -> None:
        self.folder = folder
        self._wanted = num_blocks if asked else 0
        self._claimed: set[int] = set()
        self._refuse_other_files()
        try:
            self._lock_file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise self._cannot_write(LOCK, error) from error
        try:
            with self._locked():
                self.manifest = self._join_or_begin(made_with, about, num_blocks)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Gives all claims back."""
        if self._lock_file >= 0:
            os.close(self._lock_file)
        self._lock_file = -1
        self._claimed.clear()

    @property
    def num_blocks(self) -> int:
        """Blocks that the store is to hold once this process has written one."""
        return max(self.manifest.num_blocks, self._wanted)

    @property
    def go_on_command(self) -> str:
        """The command line that makes what is missing."""
        command = remake_command(self.folder)
        if self.num_blocks == self.manifest.num_blocks:
            return command
        block_size = int(self.manifest.made_with["buffer"]["block_size"])
        return f"{command} --num_observations={self.num_blocks * block_size}"

    def refresh(self) -> Manifest:
        """Reads again what is finished, by whomever."""
        self.manifest = read_manifest(self.folder, "output_dir")
        return self.manifest

    def missing(self) -> list[int]:
        """Reads again what is finished, and gives the numbers of the blocks that are still to be made."""
        shards = self.refresh().shards
        return [number for number in range(self.num_blocks) if number not in shards]

    def drop_damaged(self) -> Iterator[tuple[int, str]]:
        """Reads every finished block; those that are not as the manifest says are to be made anew.

        Yields:
            Number and fault of each of them.
        """
        for number, shard in sorted(self.refresh().shards.items()):
            _, fault = read_shard(self.folder, number, shard)
            if fault is None:
                continue
            with self._locked():
                # Another process may have put it right since.
                if self.refresh().shards.get(number) != shard:
                    continue
                kept = {n: told for n, told in self.manifest.shards.items() if n != number}
                self._save(replace(self.manifest, shards=kept))
            yield number, fault

    def claims(self) -> Iterator[int]:
        """Goes once through the blocks that are not made and claims those that no other process has claimed.

        Yields:
            Numbers of blocks, each to be given to `write`.
        """
        for number in self.missing():
            if number in self._claimed or not self._lock(number + 1, wait=False):
                continue
            # Another process may have finished it since, or made the store smaller.
            if number in self.refresh().shards or number >= self.num_blocks:
                self._unlock(number + 1)
                continue
            self._claimed.add(number)
            yield number

    def discard_if_empty(self) -> None:
        """Takes the store's files away again where it has no block and no other process works on it."""
        try:
            with self._locked():
                if self.refresh().shards or not self._lock(1, wait=False, count=TO_THE_END):
                    return
                for path in (self.folder / MANIFEST, self.folder / LOCK, *self.folder.glob(".block-*.tmp")):
                    path.unlink(missing_ok=True)
        except (OSError, UserError):
            # Whatever has gone wrong before is what the user is told.
            return

    def wait(self) -> None:
        """Waits a moment for other processes, whose claims may end finished or free."""
        time.sleep(POLL_S)

    def write(self, number: int, observations: list[int], solved: Solved, context: Context | None) -> None:
        """Writes a block that this process has claimed.

        Args:
            number: of the block.
            observations: indices of its observations.
            solved: what the teacher was asked for.
            context: of its observations, where it is to be stored.

        Raises:
            UserError: if it cannot be written; all blocks before it stand.
        """
        data = encode_block(observations, solved, context)
        shard = Shard(hashlib.sha256(data).hexdigest(), len(data))
        name = shard_name(number)
        try:
            with whole_file(self.folder / name) as temporary:
                temporary.write_bytes(data)
            with self._locked():
                manifest = self.refresh()
                shards = manifest.shards | {number: shard}
                try:
                    self._save(replace(manifest, num_blocks=self.num_blocks, shards=shards))
                except UserError:
                    (self.folder / name).unlink(missing_ok=True)
                    raise
        except OSError as error:
            raise self._cannot_write(name, error) from error
        self._unlock(number + 1)
        self._claimed.discard(number)

    def _join_or_begin(self, made_with: dict[str, Any], about: dict[str, Any], num_blocks: int) -> Manifest:
        if not (self.folder / MANIFEST).exists():
            return self._save(Manifest(made_with, about, num_blocks))
        manifest = read_manifest(self.folder, "output_dir")
        name = difference(made_with, manifest.made_with)
        if name is not None:
            raise UserError(
                f"output_dir={self.folder}: this store was made with {name}={look_up(manifest.made_with, name)}, but "
                f"now it is {look_up(made_with, name)}; give the settings that it was made with, or name a new folder."
            )
        if self._wanted and num_blocks < manifest.num_blocks:
            return self._shrunk(manifest, num_blocks)
        return manifest

    def _shrunk(self, manifest: Manifest, num_blocks: int) -> Manifest:
        """Gives up the blocks beyond `num_blocks`, unless they are made or being made."""
        self.manifest = manifest
        least = max(num_blocks, *(number + 1 for number in manifest.shards), 1)
        # Held until the manifest is saved: whoever claims one later sees that it is given up.
        if least == manifest.num_blocks or not self._lock(least + 1, wait=False, count=TO_THE_END):
            return manifest
        try:
            return self._save(replace(manifest, num_blocks=least))
        finally:
            self._unlock(least + 1, count=TO_THE_END)

    def _refuse_other_files(self) -> None:
        others = [
            path.name for path in self.folder.iterdir() if MANIFEST not in path.name and path.name != LOCK
        ]
        if others and not (self.folder / MANIFEST).exists():
            raise UserError(
                f"output_dir={self.folder} holds other files ({others[0]}) and no coupling store; name a new folder."
            )

    def _save(self, manifest: Manifest) -> Manifest:
        try:
            with whole_file(self.folder / MANIFEST) as temporary:
                temporary.write_bytes(manifest.to_json())
        except OSError as error:
            raise self._cannot_write(MANIFEST, error) from error
        self.manifest = manifest
        return manifest

    def _cannot_write(self, name: str, error: OSError) -> UserError:
        manifest = getattr(self, "manifest", None)
        if manifest is None or not manifest.shards:
            return UserError(
                f"output_dir={self.folder}: {name} cannot be written ({error.strerror}); choose a folder that can be "
                "written to and has room."
            )
        return UserError(
            f"output_dir={self.folder}: {name} cannot be written ({error.strerror}); {len(manifest.shards)} of "
            f"{self.num_blocks} blocks are made and stand: make room and go on with: {self.go_on_command}"
        )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the manifest against other processes."""
        self._lock(0, wait=True)
        try:
            yield
        finally:
            self._unlock(0)

    def _lock(self, byte: int, *, wait: bool, count: int = 1) -> bool:
        if sys.platform == "win32":
            # Windows has no such locks; one process writes there.
            return True
        import fcntl

        try:
            fcntl.lockf(self._lock_file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), count, byte)
        except OSError as error:
            if not wait and error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise UserError(
                f"output_dir={self.folder}: this file system has no locks ({error.strerror}), without which two "
                "processes could write the same block; choose a folder on another one."
            ) from error
        return True

    def _unlock(self, byte: int, *, count: int = 1) -> None:
        if sys.platform == "win32":
            return
        import fcntl

        fcntl.lockf(self._lock_file, fcntl.LOCK_UN, count, byte)
