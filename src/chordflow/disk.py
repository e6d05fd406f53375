"""Files and folders that appear whole or not at all: written under a temporary name beside the place, then renamed.

Where that fails, with an OSError, what was there before is left as it was.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chordflow.errors import UserError

LET_GO_S = 10.0
"""How long to wait for a lock: workers of a killed process hold its locks for some five seconds, until they notice."""


@contextlib.contextmanager
def whole_file(path: Path, *, sync: bool = True, temporary: Path | None = None) -> Iterator[Path]:
    """Yields a temporary path to write to, renamed where the block ends well, and removed where it does not.

    Args:
        path: where it appears; its folder must exist. A file that is there is replaced, or left as it was.
        sync: whether it is flushed to the disk before, so that it outlives a power cut.
        temporary: another temporary name, for files that several processes may write at a time.
    """
    # Hidden, and the same in every attempt.
    temporary = temporary or path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        if sync:
            flush(temporary)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_whole(path: str | Path, data: bytes) -> Path:
    """Writes `data` to a file whole or not at all, in a folder that exists; gives its path, or raises UserError."""
    path = Path(path)
    try:
        with whole_file(path, temporary=path.with_name(f".{path.name}.{os.getpid()}.tmp")) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); choose a folder that exists and has room."
        ) from error
    return path


def write_json(path: Path, content: Any) -> None:
    """Writes JSON whole or not at all."""
    with whole_file(path, sync=False) as temporary:
        temporary.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file cannot be read or holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


@contextlib.contextmanager
def whole_folder(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Yields an empty temporary folder to fill, renamed where the block ends well, and removed where it does not.

    Folders above it are made. A folder that is there is replaced, or left as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if sync:
            for file in temporary.rglob("*"):
                if file.is_file():
                    flush(file)
        remove_folder(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Removes a folder; it is renamed first, so that half of it is never seen. A missing one is no error."""
    old = path.with_name(f".{path.name}.old.tmp")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.replace(path, old)
        shutil.rmtree(old)


def point_link(link: Path, target: str | Path) -> None:
    """Makes a symbolic link point to `target`, at no moment to nothing."""
    with whole_file(link, sync=False) as temporary:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)


def flush(path: Path) -> None:
    """Makes sure that a file's contents are on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
