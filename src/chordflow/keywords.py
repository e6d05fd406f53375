"""Wraps the functions of `chordflow.api`: they check options before imports, and their errors name keywords."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

from chordflow.errors import UserError
from chordflow.quiet import load, restored
from chordflow.refusing import BARE, refuse, table

_COMMAND = r"\b(?:chordflow (?:reflow|couple|diagnose|evaluate|export|report|relocate|study|demo)|torchrun|python3?) .*"
_NAME = r"([a-z]\w*(?:\.[a-z]\w*)*)"
_OPTION = re.compile(rf"{_COMMAND}|--{_NAME}(?:=(\S*?)(?=[:;,.)]*(?:\s|$)))?|^{_NAME}=(.*?)(?=: )")


def checked[F: Callable[..., Any]](function: F) -> F:
    """A function of `chordflow.api` that refuses wrong options before it imports anything heavy.

    It is as quiet as a command. Its errors name keywords, and groups as dicts, where those of the command line name
    options.
    """
    known = table().get(verb := function.__name__)

    @functools.wraps(function)
    def call(*args: Any, **given: Any) -> Any:
        try:
            # Python itself refuses values without a keyword.
            if isinstance(known, dict) and not args:
                refuse(known["options"], {name: given[name] for name in given if name != "command"})
            with restored():
                if verb != "report":
                    load("chordflow.experiments.settings")
                return function(*args, **given)
        except UserError as error:
            error.args = (in_keywords(str(error), verb),)
            raise

    return call  # type: ignore[return-value]


def in_keywords(sentence: str, verb: str) -> str:
    """A sentence about options of the command line as one about keywords; commands in it stay as they are."""

    def keyword(found: re.Match[str]) -> str:
        group, *parts = (found[1] or found[3] or "").split(".")
        if not parts:
            return found[0].removeprefix("--")
        value = found[2] or found[4] or "..."
        for part in reversed(parts):
            value = f'{{"{part}": {value}}}'
        return f"{group}={value}"

    sentence = sentence.replace("see --help=all", f"see: chordflow {verb} --help=all").replace(BARE, "")
    return _OPTION.sub(keyword, sentence)
