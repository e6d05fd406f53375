"""Files that appear whole or not at all."""

import os
from pathlib import Path

from chordflow.errors import UserError


def write_whole(path: str | Path, data: bytes) -> Path:
    """Write a file under a temporary name beside it, then rename it: nobody ever sees half of it.

    Args:
        path: Where; its folder must exist. A file that is there is replaced.
        data: The file's contents.

    Returns:
        The path.

    Raises:
        UserError: If the file cannot be written; an older one is left as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); choose a folder that exists and has room."
        ) from error
    return path
