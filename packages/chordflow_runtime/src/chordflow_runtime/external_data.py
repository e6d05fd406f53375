"""Which other files an ONNX file takes its weights from, read without the `onnx` package.

The format is protobuf's: a message is a row of fields, each a number, a wire type and a value. Only the messages
that can hold a tensor are entered; the numbers are those of onnx.proto3.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from chordflow_runtime.manifest import RunnerError

_CHILDREN = {
    "model": {7: "graph", 25: "function"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse_tensor"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse_tensor",
        23: "sparse_tensor",
    },
    "sparse_tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external_data"},
}


def external_files(path: Path) -> set[str]:
    """What the tensors of an ONNX file give as the `location` of their data.

    Raises:
        RunnerError: if it is no ONNX file.
    """
    names: set[str] = set()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            waiting = [("model", 0, len(data))]
            while waiting:
                kind, start, end = waiting.pop()
                if kind == "external_data":
                    entry = {number: data[first:last] for number, first, last in _fields(data, start, end)}
                    if entry.get(1) == b"location":
                        names.add(entry.get(2, b"").decode())
                    continue
                for number, first, last in _fields(data, start, end):
                    if number in _CHILDREN[kind]:
                        waiting.append((_CHILDREN[kind][number], first, last))
    except (ValueError, IndexError) as error:
        raise RunnerError(f"{path} is no ONNX file; export the policy again.") from error
    return names


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, first and last byte of the fields with a length; ValueError where a message has no such form."""
    while start < end:
        key, start = _varint(data, start)
        size, wire = 0, key & 7
        if wire == 0:
            _, start = _varint(data, start)
        elif wire == 2:
            size, start = _varint(data, start)
        elif wire in (1, 5):
            start += 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if start + size > end:
            raise ValueError("a field longer than its message")
        if wire == 2:
            yield key >> 3, start, start + size
        start += size


def _varint(data: mmap.mmap, start: int) -> tuple[int, int]:
    """A number in groups of seven bits, and where the next byte is."""
    value = 0
    for count in range(10):
        byte = data[start + count]
        value |= (byte & 127) << 7 * count
        if byte < 128:
            return value, start + count + 1
    raise ValueError("a number of more than ten bytes")
