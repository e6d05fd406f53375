"""The reader of settings: options of the command line and keyword arguments of Python to config dataclasses.

Values are decoded by draccus, as in LeRobot's own commands. Its argument parser is not used: it repeats every choice's
options and cannot say in one sentence what is wrong. Here that sentence is the text of a `UserError`.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import re
import types
import typing
from collections import deque
from collections.abc import Container, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import draccus
from draccus import cfgparsing
from draccus.utils import DraccusException, deflatten

from chordflow.errors import UserError

CONFIG_PATH = "config_path"

NONE = "none"
"""How a setting is shown that is not set."""


@dataclasses.dataclass(frozen=True)
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
    choices: tuple[str, ...] = ()
    group: str = ""


def read_options(arguments: list[str]) -> dict[str, str]:
    """`--a.b=c` and `--a.b c` to {"a.b": "c"}; a flag without a value is true."""
    found: dict[str, str] = {}
    rest = deque(arguments)
    while rest:
        argument = rest.popleft()
        if not argument.startswith("--") or len(argument) < 3:
            raise UserError(f"{argument!r} is not an option; write --name=value.")
        name, equals, value = argument[2:].partition("=")
        if not equals:
            value = rest.popleft() if rest and not rest[0].startswith("--") else "true"
        if name in found:
            raise UserError(f"--{name} is given twice; give it once.")
        found[name] = value
    return found


def nest(values: Mapping[str, str]) -> dict[str, Any]:
    """Options by dotted name to nested settings, their values read as YAML."""
    parsed = {}
    for name, text in values.items():
        if not text.strip():
            raise UserError(f"{name}= is empty; give a value.")
        try:
            parsed[name] = cfgparsing.parse_string(text)
        except Exception as error:
            raise UserError(f"{name}={text} cannot be read; quote it, as in --{name}='...'.") from error
    try:
        return deflatten(parsed, sep=".")
    except (TypeError, AttributeError) as error:
        raise UserError(f"--{next(iter(values))}: a group cannot have a value of its own.") from error


def build[T](config_class: type[T], values: Mapping[str, str], base: dict[str, Any] | None = None) -> T:
    """A config from options as text; see `settle`."""
    return settle(config_class, nest(values), base)


def settle[T](config_class: type[T], given: Mapping[str, Any], base: dict[str, Any] | None = None) -> T:
    """A config from settings that a user gave, nested and of plain Python types, over those of a file."""
    options = options_of(config_class, merge(base or {}, given))
    given = spelt_out(given, options)
    merged = merge(base or {}, given)
    active = check(options, given, merged)
    try:
        return draccus.decode(config_class, _with_types(merged, active))
    except (DraccusException, ValueError, TypeError) as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, UserError):
                raise cause from None
            cause = cause.__cause__
        text = " ".join(str(error).split())
        # Of a group that may be left out draccus says first that no type fits, and only then why.
        text = re.sub(r"^`([\w.]+)`: Could not decode .*?: `([\w.]+)`: ", r"`\1.\2`: ", text)
        field = re.match(r"`([\w.]+)`: ", text)
        if field is None or field[1] not in active:
            raise UserError(f"{text}; see --help=all.") from error
        option = active[field[1]]
        value = look_up(merged, option.name)
        raise UserError(f"{option.name}={value}: give {option.kind}; {option.text}.") from error


def spelt_out(given: Mapping[str, Any], options: Iterable[Option]) -> dict[str, Any]:
    """Settings as JSON holds them, without short forms.

    `teacher=PATH` is short for `teacher.path=PATH`, and `dataset=ID` for `dataset.repo_id=ID`. `policy`, as LeRobot's
    commands have it, is the `teacher` of a verb that has no policy of its own.
    """
    names = {option.name for option in options}
    spelt: dict[str, Any] = json.loads(json.dumps(given, default=str))
    if "policy" in spelt and "teacher.path" in names and "policy.path" not in names:
        if "teacher" in spelt:
            raise UserError("--policy is another name of --teacher; give one of the two.")
        spelt["teacher"] = spelt.pop("policy")
    for group, value in spelt.items():
        main = next((name for name in (f"{group}.path", f"{group}.repo_id") if name in names), None)
        if isinstance(value, str) and main is not None:
            spelt[group] = {main.removeprefix(f"{group}."): value}
    return spelt


def check(
    options: Iterable[Option], given: Mapping[str, Any], merged: Mapping[str, Any], skip: str = ""
) -> dict[str, Option]:
    """The options that exist with the choices made, by name.

    Args:
        options: of the verb.
        given: what the user gave, nested.
        merged: the same over what it overrides.
        skip: a group that is not looked into.
    """
    active: dict[str, Option] = {}
    # Choices first: the members of one may be listed before it, with those of another class.
    for option in sorted(options, key=lambda option: not option.name.endswith(".type")):
        if option.choice:
            decides = active.get(option.choice)
            if decides is None or _chosen(merged, decides) not in option.choices:
                continue
        active[option.name] = option
        group, _, last = option.name.rpartition(".")
        if last != "type" or group == skip:
            continue
        known, chosen = option.kind.split(" | "), _chosen(merged, option)
        if chosen == NONE and look_up(merged, group):
            raise UserError(f"--{option.name} is missing: choose one of {', '.join(known)}.")
        if chosen not in (NONE, *known):
            raise UserError(f"{option.name}={chosen}: choose one of {', '.join(known)}.")
    for name in dotted(given, active):
        if name not in active and name.partition(".")[0] != skip:
            raise UserError(unknown(name, active))
    missing = [
        option
        for option in active.values()
        if option.default is None
        and look_up(merged, option.name) is None
        and (not option.group or look_up(merged, option.group) is not None)
    ]
    if missing:
        names, verb = (
            " and ".join(f"--{option.name}" for option in missing),
            "is" if len(missing) == 1 else "are",
        )
        raise UserError(f"{names} {verb} missing: {'; '.join(option.text for option in missing)}.")
    return active


def _chosen(merged: Mapping[str, Any], option: Option) -> str:
    """What a `.type` option is, given or by default."""
    value = look_up(merged, option.name)
    return str(option.default if value is None else value)


def _with_types(merged: Mapping[str, Any], active: Mapping[str, Option]) -> dict[str, Any]:
    """Names the default choice where a group's options are given without its `.type`."""
    result = dict(merged)
    for option in active.values():
        group, _, last = option.name.rpartition(".")
        if last == "type" and isinstance(look_up(result, group), dict):
            result = merge(result, deflatten({option.name: _chosen(result, option)}, sep="."))
    return result


def options_of(
    config_class: type,
    merged: Mapping[str, Any] | None = None,
    prefix: str = "",
    within: Option | None = None,
) -> list[Option]:
    """Every option of a config, groups after plain options, each with the choice that it depends on.

    Args:
        config_class: the dataclass.
        merged: nested settings; of choices that have no default, such as LeRobot's environments, only the members of
            the one that is named here are listed.
        prefix: of the group.
        within: holds the `choice`, `choices` and `group` of the group.
    """
    plain: list[Option] = []
    grouped: list[Option] = []
    within = within or Option("", "", "", None)
    texts, hints = attribute_texts(config_class), typing.get_type_hints(config_class)
    for field in (field for field in dataclasses.fields(config_class) if field.init):
        hint, name = hints[field.name], prefix + field.name
        text = texts.get(field.name, "")
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        inner = within
        if len(parts := _parts(hint)) == 1 and dataclasses.is_dataclass(parts[0]):
            # A group of options that may be left out whole.
            hint, inner = parts[0], dataclasses.replace(within, group=name)
        if not (dataclasses.is_dataclass(hint) and isinstance(hint, type)):
            shown = None if default is dataclasses.MISSING else show_value(default)
            plain.append(dataclasses.replace(within, name=name, kind=_kind(hint), text=text, default=shown))
        elif issubclass(hint, draccus.ChoiceRegistry):
            grouped += _choice_options(hint, merged or {}, name, default, text, inner)
        else:
            grouped += options_of(hint, merged, name + ".", inner)
    return plain + grouped


def _choice_options(
    registry: type[Any], merged: Mapping[str, Any], name: str, default: Any, text: str, within: Option
) -> list[Option]:
    """The `.type` of a group that is one of several classes, and the options of each class."""
    known = list(registry.get_known_choices())
    decides = f"{name}.type"
    shown = show_value(None if default is None else registry.get_choice_name(type(default)))
    listed = [choice for choice in known if default is not None or choice == look_up(merged, decides)]
    members: list[Option] = []
    for choice in listed:
        inner = dataclasses.replace(within, choice=decides, choices=(choice,))
        for option in options_of(registry.get_choice_class(choice), merged, f"{name}.", inner):
            _add(members, option)
    options = [dataclasses.replace(within, name=decides, kind=" | ".join(known), text=text, default=shown)]
    for option in members:
        if option.choice == decides and len(option.choices) == len(listed):
            # What all of them have depends on no choice, or on that of the group around.
            option = dataclasses.replace(option, choice=within.choice, choices=within.choices)
        options.append(option)
    return options


def _add(options: list[Option], option: Option) -> None:
    """Adds an option, to the line of another choice that has the same one where there is such a line."""
    for index, other in enumerate(options):
        if dataclasses.replace(other, choices=option.choices, text=option.text) == option:
            choices = dict.fromkeys((*other.choices, *option.choices))
            options[index] = dataclasses.replace(other, choices=tuple(choices))
            return
    options.append(option)


def attribute_texts(config_class: type) -> dict[str, str]:
    """What the `Attributes:` sections of a dataclass and its bases say, by field."""
    texts: dict[str, str] = {}
    for base in reversed(config_class.__mro__):
        section = re.search(r"Attributes:\n(.*?)(?:\n\S|\Z)", inspect.getdoc(base) or "", re.DOTALL)
        if section is None or not dataclasses.is_dataclass(base):
            continue
        for name, text in re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section.group(1), re.MULTILINE):
            texts[name] = " ".join(text.split()).rstrip(".")
    return texts


def _parts(hint: Any) -> list[Any]:
    """The types of a union but None; empty for any other type."""
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return [part for part in typing.get_args(hint) if part is not type(None)] if union else []


def _kind(hint: Any) -> str:
    if parts := _parts(hint):
        return " or ".join(map(_kind, parts))
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return " | ".join(str(value) for value in typing.get_args(hint))
    if origin is list:
        inner = _kind(typing.get_args(hint)[0])
        return f"list of {inner}" if "|" not in inner else f"list of [{inner}]"
    if origin is dict:
        return "JSON object"
    if origin is tuple:
        return f"{len(typing.get_args(hint))} numbers, as [a,b]"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " | ".join(str(member.value) for member in hint)
    names = {int: "whole number", float: "number", bool: "true | false", str: "text", Path: "path"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def show_value(value: Any) -> str:
    """A setting as one would write it on the command line."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(show_value(item) for item in value) + "]"
    return str(value.value if isinstance(value, Enum) else value)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with those of `over` put over them; a group whose type changes is replaced whole."""
    result = dict(base)
    for key, value in over.items():
        before = result.get(key)
        # The former settings of a group whose type changes belong to another class.
        if (
            isinstance(value, dict)
            and isinstance(before, dict)
            and before.get("type") in (None, value.get("type", before.get("type")))
        ):
            value = merge(before, value)
        result[key] = value
    return result


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


def unknown(name: str, known: Iterable[str]) -> str:
    """What a message says of an unknown name: that it is a group, or which names are close to it."""
    members = [f"--{option}" for option in known if option.startswith(f"{name}.")]
    if members:
        return f"--{name} is a group; set one of its options: {', '.join(members)}."
    group, _, last = name.rpartition(".")
    parts = {option: option.rpartition(".") for option in known}
    close = [option for option, (of, _, end) in parts.items() if _alike(group, of) and _alike(last, end)]
    if not group and not close:
        close = [option for option, (*_, end) in parts.items() if end == last]
    close.sort(key=lambda option: -difflib.SequenceMatcher(None, name, option).ratio())
    meant = " or ".join(f"--{option}" for option in close[:3])
    return f"--{name} is not an option; {f'did you mean {meant}?' if meant else 'see --help=all.'}"


def _alike(given: str, name: str) -> bool:
    if not given or not name:
        return given == name
    return name.startswith(f"{given}_") or difflib.SequenceMatcher(None, given, name).ratio() >= 0.75


def plain(config: Any) -> dict[str, Any]:
    """The settings of a config as JSON holds them; environments of LeRobot's keep enumerations among theirs."""

    def value_of(item: object) -> Any:
        return item.value if isinstance(item, Enum) else str(item)

    settings: dict[str, Any] = json.loads(json.dumps(draccus.encode(config), default=value_of))
    return settings
