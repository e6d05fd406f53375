"""The reader of settings: options of the command line and keyword arguments of Python to config dataclasses.

Values are decoded by draccus, as in LeRobot's own commands. Its argument parser is not used: it repeats every choice's
options and cannot say in one sentence what is wrong. Here that sentence is the text of a `UserError`.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import shlex
import typing
from collections import deque
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import draccus
import yaml
from draccus import cfgparsing
from draccus.utils import DraccusException, deflatten

from chordflow.errors import UserError
from chordflow.refusing import (
    CONFIG_PATH,
    Option,
    check,
    chosen_of,
    kind_of,
    look_up,
    parts_of,
    show_value,
    spelt_out,
)


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


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a JSON or YAML file, also those of older releases."""
    path, twice = Path(path), None
    try:
        with path.open(encoding="utf-8") as file:
            content = cfgparsing.load_config(file, file=str(path))
        if path.suffix in (".yaml", ".yml"):
            twice = _twice(yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader))
    except OSError as error:
        raise UserError(
            f"{CONFIG_PATH}={shlex.quote(str(path))} cannot be read ({error.strerror})."
        ) from error
    except Exception as error:
        raise UserError(f"{CONFIG_PATH}={path} is neither JSON nor YAML; repair the file.") from error
    if twice:
        raise UserError(f"{CONFIG_PATH}={path} holds {twice} twice, side by side; give it once.")
    if not isinstance(content, dict):
        raise UserError(f"{CONFIG_PATH}={path} holds no settings; give a JSON object or a YAML mapping.")
    return {name: _renewed(name, value) for name, value in content.items()}


def _twice(node: Any) -> str | None:
    """A name that a mapping of a YAML file holds twice, of which YAML keeps the last in silence."""
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value]
        doubled = next((name for name in names if names.count(name) > 1), None)
        return doubled or next(filter(None, (_twice(value) for _, value in node.value)), None)
    return None


def _renewed(name: str, value: Any) -> Any:
    """A setting of an older release as it is now written."""
    if isinstance(value, dict):
        return {inner: _renewed(inner, inside) for inner, inside in value.items()}
    # 0 stood for couplings that are never replaced.
    never = name == "uses_per_coupling" and value == 0 and not isinstance(value, bool)
    return None if never else value


def build[T](config_class: type[T], values: Mapping[str, str], base: dict[str, Any] | None = None) -> T:
    """A config from options as text; see `settle`."""
    return settle(config_class, nest(values), base)


def settle[T](config_class: type[T], given: Mapping[str, Any], base: dict[str, Any] | None = None) -> T:
    """A config from settings that a user gave, nested and of plain Python types, over those of a file."""
    options = options_of(config_class, merge(base or {}, given))
    given = spelt_out(given, options)
    if given.get("rename_map") == {}:
        # Records have an empty map where none was given; a name that stays replaces the checkpoint's own map as well.
        given = {**given, "rename_map": {"observation.state": "observation.state"}}
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
        raise UserError(f"{' '.join(str(error).split())}; see --help=all.") from error


def _with_types(merged: Mapping[str, Any], active: list[Option]) -> dict[str, Any]:
    """Names the default choice where a group's options are given without its `.type`."""
    result = dict(merged)
    for option in active:
        group, _, last = option.name.rpartition(".")
        if last == "type" and isinstance(look_up(result, group), dict):
            result = merge(result, deflatten({option.name: chosen_of(result, option)}, sep="."))
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
        if len(parts := parts_of(hint)) == 1 and dataclasses.is_dataclass(parts[0]):
            # A group of options that may be left out whole.
            hint, inner = parts[0], dataclasses.replace(within, group=name)
        if not (dataclasses.is_dataclass(hint) and isinstance(hint, type)):
            shown = None if default is dataclasses.MISSING else show_value(default)
            kind = kind_of(hint, default)
            plain.append(dataclasses.replace(within, name=name, kind=kind, text=text, default=shown))
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


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with those of `over` put over them; a group whose type changes is replaced whole."""
    result = dict(base)
    for key, value in over.items():
        before: Any = result.get(key)
        groups = isinstance(value, dict) and isinstance(before, dict)
        # The former settings of a group whose type changes belong to another class.
        if groups and before.get("type") in (None, value.get("type", before.get("type"))):
            value = merge(before, value)
        result[key] = value
    return result


def plain(config: Any) -> dict[str, Any]:
    """The settings of a config as JSON holds them; environments of LeRobot's keep enumerations among theirs."""
    text = json.dumps(draccus.encode(config), default=lambda o: o.value if isinstance(o, Enum) else str(o))
    settings: dict[str, Any] = json.loads(text)
    return settings
