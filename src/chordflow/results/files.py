"""Records of numbers in files, and measured text in documents."""

import json
from pathlib import Path
from typing import ClassVar, Self

from chordflow.disk import write_whole
from chordflow.errors import UserError
from chordflow.results.codec import DecodeError, decode, encode


class RecordFile:
    """A dataclass of numbers that has a file of its own; it is written whole or not at all.

    Attributes:
        VERB: the command that makes such files.
        GIVE: what to give in place of a file that is none.
        VERSION: the newest `schema_version` that can be read; None for files without one.
    """

    VERB: ClassVar[str]
    GIVE: ClassVar[str]
    VERSION: ClassVar[int | None] = None

    def to_json(self) -> str:
        """The file's text.

        Raises:
            UserError: if a number is not finite or a value would not be read back; it names the field.
        """
        try:
            data = encode(self)
            decode(type(self), data)
        except ValueError as error:
            raise UserError(f"The results cannot be written: {error}") from error
        # Escapes keep file names that are not valid Unicode, which a command line may hold.
        return json.dumps(data, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> Self:
        """Reads the file's text.

        Args:
            text: what `to_json` wrote.
            source: name of the file, for messages.

        Raises:
            UserError: if the text is not JSON, of a newer version, or something else.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{source} is no readable result of {cls.VERB}: not valid JSON ({error}); give {cls.GIVE}."
            ) from None
        found = data.get("schema_version") if isinstance(data, dict) else None
        if cls.VERSION is not None:
            if type(found) is not int or found < 1:
                raise UserError(f"{source} has no schema_version; give {cls.GIVE}.")
            if found > cls.VERSION:
                raise UserError(
                    f"{source} has schema_version {found} and this chordflow reads up to {cls.VERSION}; upgrade "
                    "chordflow to read it."
                )
        try:
            return decode(cls, data)
        except DecodeError as error:
            raise UserError(
                f"{source} is no readable result of {cls.VERB} ({error}); run the command that wrote it again."
            ) from None

    def save(self, path: str | Path) -> None:
        """Writes the file.

        Args:
            path: where; its folder must exist. A file that is there is replaced.

        Raises:
            UserError: if the file cannot be written, or a number is not finite.
        """
        write_whole(path, self.to_json().encode("utf-8"))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a file that `save` wrote.

        Raises:
            UserError: if the file is missing, unreadable, damaged or of a newer version.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); give {cls.GIVE}.") from error
        except UnicodeDecodeError:
            raise UserError(f"{path} is not text; give {cls.GIVE}.") from None
        return cls.from_json(text, source=str(path))


def put_between(document: Path, name: str, text: str) -> None:
    """Writes what is measured into a document, in place of what stands between the marks of its name.

    The marks are `<!-- NAME -->` and `<!-- /NAME -->`, each in a line of its own.

    Raises:
        ValueError: if it has not just one such place.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, _, rest = (whole := document.read_text(encoding="utf-8")).partition(begin)
    _, found, after = rest.partition(end)
    if not found or whole.count(begin) != 1:
        raise ValueError(f"{document.name} has not just one place for {name}")
    write_whole(document, f"{before}{begin}{text}\n{end}{after}".encode())
