"""Dataclasses to JSON and back, strictly: no unknown field, no missing field, no wrong type, no NaN."""

import dataclasses
import math
import numbers
import types
import typing
from typing import Any

import numpy as np


class DecodeError(ValueError):
    """A value does not fit the field it was read for; the message names the field."""


def encode(value: Any, where: str = "") -> Any:
    """Turn dataclasses, lists and dictionaries into what ``json`` writes.

    Args:
        value: What to encode.
        where: Name of the field, for the message.

    Returns:
        Nested dictionaries, lists, strings, numbers, booleans and None.

    Raises:
        ValueError: If a number is not finite or a type has no JSON form; the message names the field.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: encode(getattr(value, f.name), _join(where, f.name)) for f in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"{where or 'result'} has the key {key!r}; JSON keys are text.")
        return {key: encode(item, _join(where, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | str):
        return value
    # numpy registers its numbers with the abstract classes of ``numbers``, but not its booleans.
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(f"{where} is {number}; a measure that is not finite is not written.")
        return number
    raise ValueError(f"{where} is a {type(value).__name__}, which has no place in a results file.")


def decode[T](kind: type[T], data: Any, where: str = "") -> T:
    """Build a dataclass from what ``json`` read.

    Fields with ``init=False`` are derived: they are ignored in the data and computed anew.

    Args:
        kind: The dataclass.
        data: A dictionary.
        where: Name of the field, for the message.

    Raises:
        DecodeError: If a field is missing, unknown or of another type; the message names it.
    """
    if not isinstance(data, dict):
        raise DecodeError(f"{where or 'the file'} holds {_shown(data)} where an object belongs")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in data:
        if name not in fields:
            raise DecodeError(f"{_join(where, name)} is not a known field")
    arguments = {}
    for name, field in fields.items():
        if not field.init:
            continue
        if name in data:
            arguments[name] = _decode_value(hints[name], data[name], _join(where, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise DecodeError(f"{_join(where, name)} is missing")
    try:
        return kind(**arguments)
    except ValueError as error:
        raise DecodeError(f"{where or 'the file'}: {error}") from error


def _decode_value(hint: Any, data: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if hint is Any:
        return data
    if origin in (typing.Union, types.UnionType):
        if data is None:
            return None
        (inner,) = (a for a in typing.get_args(hint) if a is not type(None))
        return _decode_value(inner, data, where)
    if origin is list and isinstance(data, list):
        (item,) = typing.get_args(hint)
        return [_decode_value(item, d, f"{where}[{i}]") for i, d in enumerate(data)]
    if origin is dict and isinstance(data, dict):
        item = typing.get_args(hint)[1]
        return {key: _decode_value(item, d, _join(where, key)) for key, d in data.items()}
    if origin is typing.Literal:
        if data not in typing.get_args(hint):
            raise DecodeError(
                f"{where} is {_shown(data)}; known are {', '.join(map(str, typing.get_args(hint)))}"
            )
        return data
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast(type[Any], hint), data, where)
    # A whole number is a fine float; true and false are no numbers.
    if hint is float and isinstance(data, int | float) and not isinstance(data, bool):
        try:
            return float(data)
        except OverflowError:
            raise DecodeError(f"{where} is too large a number") from None
    if hint in (int, str, bool) and type(data) is hint:
        return data
    expected = getattr(hint, "__name__", str(hint))
    raise DecodeError(f"{where} is {_shown(data)} where {expected} belongs")


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _shown(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 40 else text[:37] + "..."
