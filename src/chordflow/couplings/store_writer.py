"""Writing a coupling store: whole blocks or none, by one job at a time, whose processes make blocks of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from chordflow.couplings.blocks import Solved
from chordflow.couplings.store import (
    MANIFEST,
    Manifest,
    difference,
    encode_block,
    finished,
    read_manifest,
    remake_command,
    shard_name,
)
from chordflow.disk import whole_file
from chordflow.errors import UserError
from chordflow.options import look_up
from chordflow.policies import Context

LOCK = ".lock"


@contextlib.contextmanager
def one_job(folder: Path, *, alone: bool = True) -> Iterator[None]:
    """Holds a store's folder against other jobs; takes the store's files away in the end where no block was made.

    Args:
        folder: the store's; it must exist.
        alone: whether no other process of this job may still write a block in the end.

    Raises:
        UserError: if another job holds it, or it cannot be written to.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
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
    """Begins a store, or makes sure that the one that is there is the one that is wanted.

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
    """Writes a block.

    Args:
        folder: the store's.
        number: of the block, which no other process makes.
        observations: indices of its observations.
        solved: what the teacher was asked for.
        context: of its observations, where it is to be stored.

    Raises:
        UserError: if it cannot be written; all blocks before it stand.
    """
    _write(folder, shard_name(number), encode_block(observations, solved, context))


def how_to_go_on(folder: Path) -> str:
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
    return UserError(
        f"output_dir={folder}: {name} cannot be written ({error.strerror}); "
        + (
            how_to_go_on(folder)
            if finished(folder)
            else "choose a folder that can be written to and has room."
        )
    )
