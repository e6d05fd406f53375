"""LeRobot-style options (`--group.name=value`) to config dataclasses, and their help.

Values are read and decoded by draccus, as in LeRobot's own commands. Its argument parser is not used: it
repeats every choice's options and cannot say in one sentence what is wrong.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import shutil
import textwrap
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any

import draccus
from draccus import cfgparsing
from draccus.utils import DraccusException, deflatten

from chordflow.errors import UserError

CONFIG_PATH = "config_path"


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a verb.

    Attributes:
        name: dotted, without dashes.
        kind: its type, as a person would say it.
        text: what it does.
        default: its default; `dataclasses.MISSING` where it must be given.
        only_for: the choice of a `.type` option under which alone it exists.
        only_with: the group that may be left out whole; then the option is not asked for.
    """

    name: str
    kind: str
    text: str
    default: Any
    only_for: str = ""
    only_with: str = ""


def read_options(arguments: list[str]) -> dict[str, str]:
    """`--a.b=c` and `--a.b c` to {"a.b": "c"}; a flag without a value is true.

    Raises:
        UserError: for anything else.
    """
    found: dict[str, str] = {}
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        if not argument.startswith("--") or len(argument) < 3:
            raise UserError(f"{argument!r} is not an option; write --name=value.")
        name, equals, value = argument[2:].partition("=")
        if not equals:
            follows = arguments[position] if position < len(arguments) else None
            if follows is None or follows.startswith("--"):
                value = "true"
            else:
                value = follows
                position += 1
        if name in found:
            raise UserError(f"--{name} is given twice; give it once.")
        found[name] = value
    return found


def build[T](config_class: type[T], values: dict[str, str], base: dict[str, Any] | None = None) -> T:
    """A config from options, over the settings of a file.

    Args:
        config_class: a dataclass, nested.
        values: options by dotted name.
        base: nested settings that options override.

    Raises:
        UserError: for an unknown option, a missing one, or a value that does not fit.
    """
    merged = merge(base or {}, _nest(values))
    known = {option.name: option for option in options_of(config_class, _choices(config_class, merged))}
    groups = {name.rpartition(".")[0] for name in known}
    for name in values:
        if name not in known:
            raise UserError(_unknown(name, list(known), groups))
    missing = [
        option
        for option in known.values()
        if option.default is dataclasses.MISSING
        and _look_up(merged, option.name) is None
        and (not option.only_with or _look_up(merged, option.only_with) is not None)
    ]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        names = " and ".join(f"--{option.name}" for option in missing)
        raise UserError(f"{names} {verb} missing: {'; '.join(option.text for option in missing)}.")
    try:
        return draccus.decode(config_class, _with_types(config_class, merged))
    except (DraccusException, ValueError, TypeError) as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, UserError):
                raise cause from None
            cause = cause.__cause__
        text = " ".join(str(error).split())
        # Of a group that may be left out draccus says first that no type fits, and only then why.
        text = re.sub(r"^`([\w.]+)`: Could not decode .*?: `([\w.]+)`: ", r"`\1.\2`: ", text)
        field = re.match(r"`([\w.]+)`: (.*)", text)
        name = field.group(1) if field else ""
        if name in known:
            value = _look_up(merged, name)
            raise UserError(f"{name}={value}: give {known[name].kind}; {known[name].text}.") from error
        raise UserError(f"{text}; see --help.") from error


def help_text(config_class: type, title: str, usage: str, *, config_file: bool = True) -> str:
    """All options of a verb, by group, with types, meaning and defaults."""
    width = min(shutil.get_terminal_size((100, 20)).columns, 110)
    lines = [title, "", "usage:", *(f"  {line}" for line in usage.strip().splitlines())]
    group = None
    for option in options_of(config_class, None):
        prefix = option.name.rpartition(".")[0]
        if prefix != group:
            group = prefix
            lines += ["", f"{prefix} options:" if prefix else "options:"]
        required = f"required with --{option.only_with}.*" if option.only_with else "required"
        default = (
            required if option.default is dataclasses.MISSING else f"default: {show_value(option.default)}"
        )
        only = f"with {option.only_for}; " if option.only_for else ""
        lines += textwrap.wrap(
            f"  --{option.name}  ({option.kind})", width, subsequent_indent="      ", break_on_hyphens=False
        )
        text = f"{option.text} [{only}{default}]"
        lines += textwrap.wrap(text, width, initial_indent="      ", subsequent_indent="      ")
    if config_file:
        lines += ["", f"  --{CONFIG_PATH}  (path)"]
        lines.append("      settings to start from, JSON or YAML; other options override them")
    return "\n".join(lines)


def options_of(
    config_class: type, choices: dict[str, str] | None, prefix: str = "", only: str = ""
) -> list[Option]:
    """Every option of a config, groups after plain options.

    Args:
        config_class: the dataclass.
        choices: the chosen `.type` by group; None lists the options of all choices.
        prefix: of the group.
        only: the choice that the group belongs to.
    """
    plain, grouped = [], []
    texts = attribute_texts(config_class)
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        if not field.init:
            continue
        (hint, optional), name = _group(hints[field.name]), prefix + field.name
        default = _default_of(field)
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            if issubclass(hint, draccus.ChoiceRegistry):
                members = _choice_options(hint, choices, name, default, texts.get(field.name, ""))
            else:
                members = options_of(hint, choices, name + ".", only)
            grouped += [dataclasses.replace(m, only_with=name) if optional else m for m in members]
        else:
            plain.append(Option(name, _kind(hint), texts.get(field.name, ""), default, only))
    return plain + grouped


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


def _choice_options(
    registry: type[Any], choices: dict[str, str] | None, name: str, default: Any, text: str
) -> list[Option]:
    known = registry.get_known_choices()
    if default is None and (choices is None or name not in choices):
        # A family of another library's making: its members are listed once one is chosen.
        return [Option(f"{name}.type", " | ".join(known), text, None)]
    default_name = registry.get_choice_name(type(default)) if default is not None else ""
    options = [Option(f"{name}.type", " | ".join(known), text, default_name or None)]
    shared = {field.name for field in dataclasses.fields(registry)}
    chosen = list(known) if choices is None else [choices.get(name, default_name)]
    seen: dict[str, Any] = {}
    for choice in chosen:
        if choice not in known:
            raise UserError(f"{name}.type={choice}: choose one of {', '.join(known)}.")
        condition = f"--{name}.type={choice}"
        for option in options_of(known[choice], choices, f"{name}.", condition):
            local = option.name.removeprefix(f"{name}.").split(".")[0]
            if option.name in seen:
                if seen[option.name] != option.default:
                    # Every choice has it, and this one a default of its own.
                    options.append(option)
                continue
            if local in shared or len(known) == 1:
                # Every choice has it: nothing to restrict, unless a group inside it does.
                seen[option.name] = option.default
                own = option.only_for if option.only_for != condition else ""
                option = dataclasses.replace(option, only_for=own)
            else:
                option = dataclasses.replace(option, only_for=option.only_for or condition)
            _add(options, option)
    return options


def _add(options: list[Option], option: Option) -> None:
    """Adds an option, to the line of another choice that has the same one where there is such a line."""
    for index, other in enumerate(options):
        if (other.name, other.kind, other.default) == (option.name, option.kind, option.default):
            if option.only_for != other.only_for:
                either = f"{other.only_for} or {option.only_for.rpartition('=')[2]}"
                options[index] = dataclasses.replace(other, only_for=either)
            return
    options.append(option)


def _choices(config_class: type, merged: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """The `.type` of every choice group, given or by default, nested groups included."""
    found: dict[str, str] = {}
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        (hint, optional), name = _group(hints[field.name]), prefix + field.name
        if not (dataclasses.is_dataclass(hint) and isinstance(hint, type)):
            continue
        inside = merged.get(field.name)
        if optional and not inside:
            continue
        inside = inside if isinstance(inside, dict) else {}
        if issubclass(hint, draccus.ChoiceRegistry):
            registry: type[Any] = hint
            default = _default_of(field)
            if default is None and "type" not in inside:
                known = ", ".join(registry.get_known_choices())
                raise UserError(f"--{name}.type is missing: choose one of {known}.")
            chosen = str(inside["type"] if "type" in inside else registry.get_choice_name(type(default)))
            found[name] = chosen
            if chosen in registry.get_known_choices():
                found |= _choices(registry.get_choice_class(chosen), inside, name + ".")
        else:
            found |= _choices(hint, inside, name + ".")
    return found


def _with_types(config_class: type, merged: dict[str, Any]) -> dict[str, Any]:
    """Names the default choice where a group's options are given without its `.type`."""
    result = dict(merged)
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        (hint, _), inside = _group(hints[field.name]), merged.get(field.name)
        if not (isinstance(inside, dict) and dataclasses.is_dataclass(hint) and isinstance(hint, type)):
            continue
        target: type = hint
        if issubclass(hint, draccus.ChoiceRegistry):
            registry: type[Any] = hint
            default = _default_of(field)
            if default is not None:
                inside = {"type": registry.get_choice_name(type(default)), **inside}
            if inside["type"] not in registry.get_known_choices():
                continue
            target = registry.get_choice_class(inside["type"])
        result[field.name] = _with_types(target, inside)
    return result


def _group(hint: Any) -> tuple[Any, bool]:
    """A field's type, and whether it is a group of options that may be left out whole."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        inner = [part for part in typing.get_args(hint) if part is not type(None)]
        if len(inner) == 1 and dataclasses.is_dataclass(inner[0]):
            return inner[0], True
    return hint, False


def _default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return dataclasses.MISSING


def _kind(hint: Any) -> str:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return " or ".join(_kind(part) for part in typing.get_args(hint) if part is not type(None))
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
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(show_value(item) for item in value) + "]"
    if isinstance(value, Enum):
        return str(value.value)
    return str(value)


def _nest(values: dict[str, str]) -> dict[str, Any]:
    parsed = {}
    for name, text in values.items():
        try:
            parsed[name] = cfgparsing.parse_string(text)
        except Exception as error:
            raise UserError(
                f"{name}={text}: this value cannot be read; quote it, as in --{name}='...'."
            ) from error
        if not text.strip():
            raise UserError(f"{name}= is empty; give a value.")
    try:
        return deflatten(parsed, sep=".")
    except (TypeError, AttributeError) as error:
        raise UserError(
            f"--{next(iter(values))}: a group cannot have a value of its own; see --help."
        ) from error


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested settings, of which those of `over` count; where a group's type changes, it is taken whole."""
    result = dict(base)
    for key, value in over.items():
        if (
            isinstance(value, dict)
            and isinstance(result.get(key), dict)
            and not _is_other_choice(result[key], value)
        ):
            result[key] = merge(result[key], value)
        else:
            result[key] = value
    return result


def _is_other_choice(base: dict[str, Any], over: dict[str, Any]) -> bool:
    """Whether a group's type changes: its former settings then belong to another class."""
    return "type" in over and "type" in base and over["type"] != base["type"]


def _look_up(nested: dict[str, Any], name: str) -> Any:
    value: Any = nested
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return None
        value = value[part]
    return value


def _unknown(name: str, known: list[str], groups: set[str]) -> str:
    if name in groups:
        members = [option for option in known if option.startswith(f"{name}.")]
        return f"--{name} is a group; set one of its options: {', '.join('--' + m for m in members)}."
    close = difflib.get_close_matches(name, known, n=2, cutoff=0.65)
    hint = f"did you mean {' or '.join('--' + match for match in close)}?" if close else "see --help."
    return f"--{name} is not an option; {hint}"
