"""Records of numbers in files, and measured text in documents."""

import json
from pathlib import Path
from typing import Any, ClassVar, Self

from chordflow.disk import write_whole
from chordflow.errors import UserError
from chordflow.results.codec import DecodeError, decode, encode


def put_between(document: Path, name: str, text: str) -> None:
    """Write what is measured into a document, in the place of what stands between the marks of its name.

    The marks are ``<!-- NAME -->`` and ``<!-- /NAME -->``, each in a line of its own.

    Raises:
        ValueError: If it has not just one such place.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, _, rest = (whole := document.read_text(encoding="utf-8")).partition(begin)
    _, found, after = rest.partition(end)
    if not found or whole.count(begin) != 1:
        raise ValueError(f"{document.name} has not just one place for {name}")
    write_whole(document, f"{before}{begin}{text}\n{end}{after}".encode())


def write_record(path: Path, record: Any) -> None:
    """Write a dataclass of numbers as JSON, whole or not at all.

    Raises:
        UserError: If it cannot be written, or a number is not finite.
    """
    try:
        text = json.dumps(encode(record), indent=2, allow_nan=False)
    except ValueError as error:
        raise UserError(f"The results cannot be written: {error}") from error
    write_whole(path, (text + "\n").encode("utf-8"))


def read_record[T](kind: type[T], path: Path, *, verb: str, give: str) -> T:
    """Read what ``write_record`` wrote.

    Args:
        kind: The dataclass.
        path: The file.
        verb: Command that makes such files, for messages.
        give: What to give instead of a file that cannot be read, for messages.

    Raises:
        UserError: If it is missing, damaged or something else.
    """
    try:
        return decode(kind, json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give {give}.") from error
    except (DecodeError, ValueError) as error:
        raise UserError(
            f"{path} is no readable result of {verb} ({error}); run it again into a new folder."
        ) from error


class RecordFile:
    """A dataclass of numbers that has a file of its own; its class says by which command, and what such a file is."""

    VERB: ClassVar[str]
    GIVE: ClassVar[str]

    def save(self, path: Path) -> None:
        """Writes the file whole or not at all.

        Raises:
            UserError: if it cannot be written, or a number is not finite.
        """
        write_record(path, self)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a file that `save` wrote.

        Raises:
            UserError: if it is missing, damaged or something else.
        """
        return read_record(cls, path, verb=cls.VERB, give=cls.GIVE)
