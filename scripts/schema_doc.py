"""Write docs/results.md: what results.json and study.json hold, from the schemas' own docstrings.

usage: python scripts/schema_doc.py
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from pathlib import Path
from typing import Any

from chordflow.results.files import write_whole
from chordflow.results.schema import SCHEMA_VERSION, Results
from chordflow.results.study import SCHEMA_VERSION as STUDY_VERSION
from chordflow.results.study import Study

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "results.md"

HEAD = f"""# results.json

What a run measured, layout {SCHEMA_VERSION}. `chordflow reflow`, `diagnose`, `evaluate` and `demo` write it; the
tables, the pictures, `report.html` and the model card are made from it alone.

- Relative measures are fractions (0.13 is printed as 13 %), times are seconds, memory is bytes. What the words mean:
  [measures](measures.md); the intervals and tests: [statistics](statistics.md).
- Fields marked *derived* are written for the reader and computed anew on loading. There is no NaN; what was not
  measured is null, or an empty list.
- `schema_version` is raised whenever a field is added, dropped or changes its meaning. Older files are read, what they
  lack takes its default; a newer one is refused with a sentence that says so.
- From Python: `chordflow.results.schema.Results.load(path)`.

`chordflow study` writes [study.json](#study), layout {STUDY_VERSION}, by the same rules; read it with
`chordflow.results.study.Study.load(path)`.

(This page is made by `python scripts/schema_doc.py` from `chordflow/results`.)
"""


def document() -> str:
    """The page: a table for each record, in the order in which they are met from `Results` on, then from `Study`."""
    return "\n".join([HEAD, *(_section(record) for record in _records())])


def _records() -> list[type[Any]]:
    found: list[type[Any]] = []
    for root in (Results, Study):
        ahead = [root]
        for record in ahead:
            found.append(record)
            for field in dataclasses.fields(record):
                inside = _inside(typing.get_type_hints(record)[field.name])
                ahead += [inner for inner in inside if inner not in [*found, *ahead]]
    return found


def _inside(hint: Any) -> list[type[Any]]:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return [hint]
    return [record for argument in typing.get_args(hint) for record in _inside(argument)]


def _section(record: type[Any]) -> str:
    text = inspect.getdoc(record) or ""
    summary = " ".join(text.split("Attributes:")[0].split())
    texts = {
        name: " ".join(words.split())
        for name, words in re.findall(r"^    (\w+): (.*(?:\n        .*)*)", text, re.MULTILINE)
    }
    hints = typing.get_type_hints(record)
    rows = [
        f"| `{field.name}` | {_kind(hints[field.name])} | {_cell(texts[field.name])} |"
        for field in dataclasses.fields(record)
    ]
    return "\n".join(
        [
            f"## {record.__name__}\n",
            f"{summary}\n",
            "| field | type | meaning |",
            "| --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _kind(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_kind(part) for part in arguments)
    if origin is list:
        return f"list of {_kind(arguments[0])}"
    if origin is dict:
        return f"object of {_kind(arguments[1])}"
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    names = {
        str: "text",
        int: "whole number",
        float: "number",
        bool: "true or false",
        type(None): "null",
        Any: "any",
    }
    return names[hint]


def _cell(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    print(f"wrote {write_whole(DOCUMENT, document().encode())}")
