"""What is refused before anything heavy is imported: options that there are not, and values that they do not take.

`options.json` holds the options of every verb, as `scripts/options_table.py` writes them from the configs. With those
of the configs themselves, `chordflow.options` makes the same checks.
"""

from __future__ import annotations

import difflib
import json
import re
import types
import typing
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from chordflow.errors import UserError

type Settings = Mapping[str, Any]

CONFIG_PATH = "config_path"

NONE = "none"
"""How a setting is shown that is not set."""

MAIN = ("path", "repo_id", "type")
"""The options that say what a group is; of the first two the group's name is a short form."""

NULL, PAIR, FOREIGN = " or null", " numbers, as [a,b]", "value of "
"""Parts of the names of kinds: what may be left unset, a tuple of numbers, and a type that only its owner knows."""

_NUMBERS = {"whole number": r"[+-]?[\d_]+", "number": r"[+-]?(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf|nan"}
"""Numbers as a text may hold them, too: YAML reads 1e-3 as one."""

_CLASSES: dict[str, Any] = {"text": str | int | float, "path": str | Path, "JSON object": dict}

TABLE = Path(__file__).with_name("options.json")

BARE = " (an option without a value is true)"
"""Behind a value that the command line has not shown."""

ENV, ENV_TYPE = "env", "env.type"
"""The group whose options are those of whatever environments are installed."""

BRINGS_SETTINGS = (CONFIG_PATH, "recipe", "couplings.path", "resume")
"""Options that name settings which are not known before they are read."""

_NO_MUON = "the optimiser muon was removed; choose --optimizer.type=soap or adamw."

GONE_OPTIONS = {
    "optimizer.momentum": _NO_MUON,
    "optimizer.type=muon": _NO_MUON,
    "checkpoints": "it is called --looks now.",
    "keep_checkpoints": "it is called --keep_looks now.",
    "budgets": "give --seconds, and --looks for the smaller ones.",
    "schedules": "give --uses and --noises of chordflow study reuse.",
}
"""What there is in place of the options of earlier releases, and of values of options."""


@dataclass(frozen=True)
class Option:
    """One option of a verb.

    Attributes:
        name: dotted, without dashes.
        kind: its type, as a person would say it.
        text: what it does.
        default: its default as one writes it; None where the option must be given.
        choice: the `.type` option that decides whether this one exists; empty where it always does.
        choices: the values of `choice` with which it exists.
        group: the group that may be left out whole; an option in it must be given only with the group.
    """

    name: str
    kind: str
    text: str
    default: str | None
    choice: str = ""
    choices: Sequence[str] = ()
    group: str = ""


def table() -> dict[str, Any]:
    """By verb, or verb and subverb, what its help says: a text, or the fields of `VerbHelp`."""
    return json.loads(TABLE.read_text("utf-8"), object_hook=lambda o: Option(**o) if "kind" in o else o)


def refuse(options: Sequence[Option], given: Settings, whole: bool = True, with_env: bool = False) -> None:
    """Refuses what is wrong whatever settings a file may bring.

    Args:
        options: of the verb.
        given: what the user gave, nested.
        whole: whether that is all, so that what is missing is refused as well.
        with_env: whether `options` has those of the environment that is given.

    Raises:
        UserError: naming the option.
    """
    given = spelt_out(given, options)
    brings = any(look_up(given, name) is not None for name in BRINGS_SETTINGS)
    unseen = not with_env and (brings or look_up(given, ENV_TYPE) is not None)
    check(options, given, given, skip=ENV if unseen else "", whole=whole and not brings)


def check(
    options: Iterable[Option], given: Settings, merged: Settings, skip: str = "", whole: bool = True
) -> list[Option]:
    """The options that exist with the choices made; those of every choice where others may be made.

    Args:
        options: of the verb.
        given: what the user gave, nested.
        merged: the same over what it overrides.
        skip: a group that is not looked into.
        whole: whether `merged` is all that there is.

    Raises:
        UserError: for the first that is wrong: names before values, and what is missing last.
    """
    active: dict[str, list[Option]] = {}
    # Choices first: the members of one may be listed before it, with those of another class.
    for option in sorted(options, key=lambda option: not option.name.endswith(".type")):
        decides = active.get(option.choice, [])
        if whole and option.choice and not any(chosen_of(merged, one) in option.choices for one in decides):
            continue
        active.setdefault(option.name, []).append(option)
        group, _, last = option.name.rpartition(".")
        if whole and last == "type" and group != skip:
            known, chosen = option.kind.split(" | "), chosen_of(merged, option)
            if chosen not in (NONE, *known):
                rule = GONE_OPTIONS.get(f"{option.name}={chosen}", f"choose one of {', '.join(known)}.")
                raise UserError(f"{option.name}={chosen}: {rule}")
            if chosen == NONE and look_up(merged, group):
                near = [unknown(name, active) for name in dotted(given, ()) if alike(name, option.name)]
                raise UserError([*near, f"--{option.name} is missing: choose one of {', '.join(known)}."][0])
    for name in dotted(given, active):
        if name not in active and name.partition(".")[0] != skip:
            raise UserError(unknown(name, active))
    for name in dotted(merged, active):
        value, existing = look_up(merged, name), active.get(name, [])
        fits = any(_is(value, one.kind) or (value is None and one.default == NONE) for one in existing)
        if existing and not fits and name.partition(".")[0] != skip:
            one, written = existing[0], f"{name}={_written(value)}"
            rule = GONE_OPTIONS.get(written, f"give {_asked(one.kind)}; {one.text}.")
            raise UserError(f"{written}{BARE * (value is True)}: {rule}")
    left = [one for existing in active.values() for one in existing]
    missing = [one for one in left if one.default is None and look_up(merged, one.name) is None]
    missing = [one for one in missing if not one.group or look_up(merged, one.group) is not None]
    if whole and missing:
        verb = "is" if len(missing) == 1 else "are"
        listed = " and ".join(f"--{one.name}" for one in missing)
        which = [f"--{one.name}, {one.text}" if len(missing) > 1 else one.text for one in missing]
        raise UserError(f"{listed} {verb} missing: {'; '.join(which)}.")
    return left


def parts_of(hint: Any) -> list[Any]:
    """The types of a union but None; empty for any other type."""
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return [part for part in typing.get_args(hint) if part is not type(None)] if union else []


def kind_of(hint: Any, default: Any = None) -> str:
    """The name of a type, as a person would say it; null is named where it is allowed and not the default."""
    if parts := parts_of(hint):
        null = default is not None and len(parts) < len(typing.get_args(hint))
        return " or ".join(map(kind_of, parts)) + NULL * null
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " | ".join(map(str, args))
    if origin is list:
        inner = kind_of(args[0], args)
        return f"list of [{inner}]" if " | " in inner or " or " in inner else f"list of {inner}"
    if origin is dict:
        return "JSON object"
    if origin is tuple and set(args) <= {int, float}:
        return f"{len(args)}{PAIR}"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " | ".join(str(member.value) for member in hint)
    names = {int: "whole number", float: "number", bool: "true | false", str: "text", Path: "path"}
    return names.get(hint, FOREIGN + getattr(hint, "__name__", str(hint)))


def _asked(kind: str) -> str:
    """A kind as a sentence asks for it, such as a whole number and a list of numbers."""
    kind = kind.replace("JSON object", "JSON object or YAML mapping")
    return re.sub(r"^(?=whole|number|list|path|JSON)", "a ", re.sub(r"^(list of .*number)$", r"\1s", kind))


def _is(value: Any, kind: str) -> bool:
    """Whether a value, as JSON holds it, is of a kind as `kind_of` names it; of foreign ones draccus decides."""
    # A list of what may be of several kinds has brackets around them.
    if len(kinds := re.split(r" or (?![^\[]*\])", kind)) > 1:
        return any(_is(value, one) for one in kinds)
    if kind.startswith("list of "):
        inner = kind.removeprefix("list of ").strip("[]")
        return isinstance(value, list) and all(_is(item, inner) for item in value)
    if kind.endswith(PAIR):
        return _is(value, "list of number") and kind == f"{len(value)}{PAIR}"
    if kind in _NUMBERS:
        return not isinstance(value, bool) and re.fullmatch(_NUMBERS[kind], str(value), re.I) is not None
    if kind in _CLASSES:
        return isinstance(value, _CLASSES[kind]) and not isinstance(value, bool)
    # Jobs ask whether to resume before there is a config: a text that says true would mislead them.
    chosen = _written(value) in kind.split(" | ") and isinstance(value, bool) == (kind == "true | false")
    return chosen or kind.startswith(FOREIGN)


def chosen_of(merged: Mapping[str, Any], option: Option) -> str:
    """What a `.type` option is, given or by default."""
    value = look_up(merged, option.name)
    return str(option.default if value is None else value)


def spelt_out(given: Mapping[str, Any], options: Iterable[Option]) -> dict[str, Any]:
    """Settings as JSON holds them, without short forms.

    `teacher=PATH` is short for `teacher.path=PATH`, and `dataset=ID` for `dataset.repo_id=ID`. `policy`, as LeRobot's
    commands have it, is the `teacher` of a verb without a policy of its own, but for options that the verb has in that
    group. A name alone stands for a list of one.
    """
    kinds = {option.name: option.kind for option in options}
    spelt: dict[str, Any] = json.loads(json.dumps(given, default=str))
    if "policy" in spelt and "teacher.path" in kinds and "policy.path" not in kinds:
        policy = spelt.pop("policy")
        inside = policy if isinstance(policy, dict) else {}
        for name in inside:
            if not {f"policy.{name}", f"teacher.{name}"} & kinds.keys():
                raise UserError(unknown(f"policy.{name}", kinds))
        if own := {name: value for name, value in inside.items() if f"policy.{name}" in kinds}:
            policy = {name: value for name, value in inside.items() if name not in own}
            spelt["policy"] = own
        if policy and "teacher" in spelt:
            raise UserError("--policy is another name of --teacher; give one of the two.")
        if policy:
            spelt["teacher"] = policy
    for group, value in spelt.items():
        main = next((name for end in MAIN[:2] if (name := f"{group}.{end}") in kinds), None)
        if isinstance(value, str) and main is not None:
            spelt[group] = {main.removeprefix(f"{group}."): value}
        elif isinstance(value, str) and kinds.get(group, "").startswith("list of "):
            spelt[group] = [value]
    return spelt


def look_up(nested: Any, name: str) -> Any:
    """A setting by its dotted name; None where it is not there."""
    for part in name.split("."):
        nested = nested.get(part) if isinstance(nested, Mapping) else None
    return nested


def dotted(nested: Mapping[str, Any], options: Container[str], prefix: str = "") -> Iterator[str]:
    """The dotted names of nested settings, of which those in `options` are not looked into."""
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if value and isinstance(value, Mapping) and name not in options:
            yield from dotted(value, options, f"{name}.")
        else:
            yield name


def unknown(name: str, known: Collection[str]) -> str:
    """What a message says of an unknown name: it is a group, it has gone, or which names are close to it."""
    members = [f"--{option}" for option in known if option.startswith(f"{name}.")]
    if members:
        return f"--{name} is a group; set one of its options: {', '.join(members)}."
    if name in GONE_OPTIONS:
        return f"--{name} is no option any more: {GONE_OPTIONS[name]}"
    sought = re.sub(r"^teacher\b", "policy", name) if "policy.path" in known else name
    if "teacher.path" in known and "policy.path" not in known:
        known = [*known, *(f"policy{one[7:]}" for one in known if one.startswith("teacher."))]
    group, _, last = sought.rpartition(".")
    parts = [(option, *option.rpartition(".")[::2]) for option in known]
    # A name without a group may be the last part of an option, or a group.
    near = [option for option, of, end in parts if alike(group, of) and alike(last, end)]
    near = near or [option for option, of, end in parts if not group and end == last]
    near = near or [option for option, of, end in parts if not group and end in MAIN and alike(sought, of)]
    near.sort(key=lambda option: -difflib.SequenceMatcher(None, name, option).ratio())
    return f"--{name} is not an option; {meant([f'--{one}' for one in near]) or 'see --help=all.'}"


def meant(names: Sequence[str]) -> str:
    """A hint at the first of several names; empty where there is none."""
    return f"did you mean {' or '.join(names[:3])}?" if names else ""


def alike(given: str, name: str) -> bool:
    """Whether a name is nearly another one, or its first word."""
    return name.startswith(f"{given}_") or difflib.SequenceMatcher(None, given, name).ratio() >= 0.75


def _written(value: Any) -> str:
    return "null" if value is None else show_value(value)


def show_value(value: Any) -> str:
    """A setting as one would write it on the command line."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(show_value(item) for item in value) + "]"
    return str(value.value if isinstance(value, Enum) else value)
