"""Dataclasses to JSON and back, strictly: no unknown field, no missing field, no wrong type, no NaN."""

import dataclasses
import functools
import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import SchemaValidator, core_schema


class DecodeError(ValueError):
    """A value does not fit the field it was read for; the message names the field."""


def encode(value: Any, where: str = "") -> Any:
    """Turns dataclasses, lists and dictionaries into what `json` writes.

    Args:
        value: what to encode.
        where: name of the field, for the message.

    Returns:
        Nested dictionaries, lists, strings, numbers, booleans and None.

    Raises:
        ValueError: if a number is not finite or a type has no JSON form; the message names the field.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"{where or 'result'} has the key {key!r}; JSON keys are text.")
        return {key: encode(item, f"{where}.{key}" if where else key) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}; a measure that is not finite is not written.")
    if value is None or isinstance(value, bool | str | numbers.Real):
        return value
    raise ValueError(f"{where} is a {type(value).__name__}, which has no place in a results file.")


def decode[T](kind: type[T], data: Any) -> T:
    """Builds a dataclass from what `json` read.

    Fields with `init=False` are derived: they are ignored in the data and computed anew. A dataclass may name fields of
    older files in `DROPPED`, which are ignored as well.

    Args:
        kind: the dataclass.
        data: a dictionary.

    Raises:
        DecodeError: if a field is missing, unknown or of another type; the message names the first such field.
    """
    try:
        return _validator(kind).validate_python([data])[0]  # type: ignore[arg-type]
    except ValidationError as error:
        raise DecodeError(_sentence(error)) from None


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
    where = _path(first["loc"][1:])
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


def _path(parts: Sequence[int | str]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".") or "the file"
