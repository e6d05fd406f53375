"""Records of numbers in files, strictly: no unknown field, no missing one, no wrong type, no NaN."""

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any, ClassVar, Self, get_args, get_type_hints

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import SchemaValidator, core_schema

from chordflow.disk import write_whole
from chordflow.errors import UserError


class RecordFile:
    """A dataclass of numbers that has a file of its own; it is written whole or not at all.

    Attributes:
        VERB: the command that makes such files.
        GIVE: what to give in place of a file that is none; its field `kind` tells one from others.
        VERSION: the newest `schema_version` that can be read.
    """

    VERB: ClassVar[str]
    GIVE: ClassVar[str]
    VERSION: ClassVar[int]

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
        """Reads what `to_json` wrote; `source` names the file in messages.

        Raises:
            UserError: if the text is not JSON, of a newer version, or something else.
        """
        unreadable = f"{source} is no readable result of {cls.VERB}"
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{unreadable}: not valid JSON ({error}); give {cls.GIVE}.") from None
        data = data if isinstance(data, dict) else {}
        kind, known = data.get("kind"), get_args(get_type_hints(cls)["kind"])
        if isinstance(kind, str) and kind not in known:
            # A version would be compared with that of another layout.
            raise UserError(f"{source} is of kind {kind}, not {' or '.join(known)}; give {cls.GIVE}.")
        found = data.get("schema_version")
        if type(found) is not int or found < 1:
            raise UserError(f"{source} has no schema_version; give {cls.GIVE}.")
        if found > cls.VERSION:
            raise UserError(
                f"{source} has schema_version {found} and this chordflow reads up to {cls.VERSION}; upgrade chordflow."
            )
        try:
            return decode(cls, data)
        except ValueError as error:
            raise UserError(f"{unreadable} ({error}); run the command that wrote it again.") from None

    def save(self, path: str | Path) -> None:
        """Writes the file; its folder must exist, and a file that is there is replaced.

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


def same_where_known(one: str | None, other: str | None) -> bool:
    """Whether two hashes agree, where neither file is too old to have its own."""
    return None in (one, other) or one == other


def encode(value: Any, where: str = "") -> Any:
    """Turns dataclasses, lists and dictionaries into what `json` writes; `where` is the field, for the message.

    Raises:
        ValueError: if a number is not finite or a type has no JSON form; the message names the field.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: encode(item, f"{where}.{key}" if where else key) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}; a measure that is not finite is not written.")
    if value is None or isinstance(value, bool | str | int | float):
        return value
    raise ValueError(f"{where} is a {type(value).__name__}, which has no place in a results file.")


def decode[T](kind: type[T], data: Any) -> T:
    """Builds a dataclass from what `json` read.

    Fields with `init=False` are derived: they are ignored in the data and computed anew. A dataclass may name fields of
    older files in `DROPPED`, which are ignored as well.

    Raises:
        ValueError: if a field is missing, unknown or of another type; the message names the first such field.
    """
    try:
        return _validator(kind).validate_python([data])[0]  # type: ignore[arg-type]
    except ValidationError as error:
        raise ValueError(_sentence(error)) from None


@functools.cache
def _validator(kind: type) -> SchemaValidator:
    # Of a list, since pydantic lets a config be given for no single dataclass.
    strict = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    return SchemaValidator(_from_objects(TypeAdapter(list[kind], config=strict).core_schema))  # type: ignore[valid-type]


def _from_objects(schema: Any) -> Any:
    """Lets a dictionary stand for a dataclass, which strict mode does not, and hold fields that are ignored."""
    if isinstance(schema, list):
        return [_from_objects(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: _from_objects(part) for key, part in schema.items()}
    if schema.get("type") != "dataclass":
        return schema
    derived = {field.name for field in dataclasses.fields(schema["cls"]) if not field.init}
    ignored = derived | set(getattr(schema["cls"], "DROPPED", ()))

    def given(data: Any) -> Any:
        return {k: v for k, v in data.items() if k not in ignored} if isinstance(data, dict) else data

    reference = schema.pop("ref", None)
    return core_schema.no_info_before_validator_function(given, schema | {"strict": False}, ref=reference)


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"][1:])
    where = path.removeprefix(".") or "the file"
    match first["type"]:
        case "missing":
            return f"{where} is missing"
        case "unexpected_keyword_argument":
            return f"{where} is not a known field"
        case "value_error":
            return f"{where}: {first['ctx']['error']}"
    shown = repr(first["input"])
    shown = shown if len(shown) <= 40 else shown[:37] + "..."
    return f"{where} is {shown}: {first['msg'][0].lower()}{first['msg'][1:]}"


def put_between(document: Path, name: str, text: str) -> None:
    """Writes what is measured into a document, between the lines `<!-- NAME -->` and `<!-- /NAME -->`.

    Raises:
        ValueError: if it has not just one such place.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, _, rest = (whole := document.read_text(encoding="utf-8")).partition(begin)
    _, found, after = rest.partition(end)
    if not found or whole.count(begin) != 1:
        raise ValueError(f"{document.name} has not just one place for {name}")
    write_whole(document, f"{before}{begin}{text}\n{end}{after}".encode())
