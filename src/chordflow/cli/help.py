"""The help of a verb and the refusal of a wrong option, before anything heavy is imported.

`options.json` holds the help of every verb. Its titles and options are those of the configs, as
`scripts/options_table.py` writes them; usages, common options and whole texts are edited there.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chordflow.errors import UserError
from chordflow.options import (
    CONFIG_PATH,
    NONE,
    Option,
    check,
    dotted,
    look_up,
    nest,
    options_of,
    read_options,
    spelt_out,
    unknown,
)
from chordflow.quiet import quiet_stdout

TABLE = Path(__file__).with_name("options.json")

WIDTH = 80

ENV, ENV_TYPE = "env", "env.type"
"""The group whose options are those of whatever environments are installed."""

FILES = (".yaml", ".yml", ".json")
"""How the names of files of settings end."""

HELPS = ("-h", "--help", "--help=all")

JOINS = "table"
"""What stands in the place of a study's name where several are joined."""

SAY_WHICH = "say which study; write: chordflow study methods|beginnings|rounds|reuse|FILE.yaml ..."

BRINGS_SETTINGS = (CONFIG_PATH, "recipe", "couplings.path", "resume")
"""Options that name settings which are not known before they are read."""

GONE_VERBS = {
    "bench": "time training in a checkout with python benchmarks/training/time_training.py, and find out how often a "
    "coupling may be used with chordflow study reuse."
}
GONE_OPTIONS = {
    "optimizer.momentum": "the optimiser muon has left; choose --optimizer.type=soap or adamw.",
    "checkpoints": "it is called --looks now.",
    "keep_checkpoints": "it is called --keep_looks now.",
}
"""What there is in place of the verbs and options of earlier releases."""

RENAMED = {"compare": "study methods", "study init": "study beginnings"}
"""Commands that have another name now; the old one goes in the next release."""


def renamed(arguments: list[str]) -> list[str]:
    """A command line with today's names; prints a line where it has older ones."""
    for old, new in RENAMED.items():
        count = len(old.split())
        if arguments[:count] == old.split():
            print(f"chordflow {old} is now chordflow {new}; the old name goes in the next release.")
            looks = (
                re.sub(r"^--(keep_)?checkpoints(?==|$)", r"--\1looks", word) for word in arguments[count:]
            )
            return [*new.split(), *looks]
    return arguments


@dataclass(frozen=True)
class VerbHelp:
    """The help of a verb: what it does, commands to copy, the names of options that people set, and all options."""

    title: str
    usage: str
    common: Sequence[str]
    options: Sequence[Option]

    def text(self, *, everything: bool) -> str:
        """The help: the common options and those of a chosen environment, or all options by group."""
        by_name: dict[str, list[Option]] = {}
        for option in self.options:
            by_name.setdefault(option.name, []).append(option)
        groups: dict[str, list[str]] = {}
        if everything:
            for name in by_name:
                groups.setdefault(name.rpartition(".")[0], []).append(name)
        else:
            of_environment = [name for name in by_name if name.startswith(f"{ENV}.")]
            chosen = of_environment if len(of_environment) > 1 else []
            groups[""] = list(dict.fromkeys([*self.common, *chosen]))
        usage = textwrap.indent(self.usage, "  ").splitlines()
        lines = [*textwrap.wrap(self.title, WIDTH), "", "usage:", *usage]
        for group, names in groups.items():
            lines += ["", f"{group} options:".lstrip()]
            for name in names:
                lines += _entry(by_name[name])
        if not everything:
            lines += ["", f"--help=all lists all {len(by_name)} options."]
            if ENV_TYPE in by_name:
                lines += [f"--{ENV_TYPE}=NAME --help lists those of an environment too."]
        return "\n".join(lines)


def _entry(options: list[Option]) -> list[str]:
    """An option with what it does and its defaults, one for each choice that it depends on."""
    first = options[0]
    with_choice = [f"with --{o.choice}={' or '.join(o.choices)}" * bool(o.choice) for o in options]
    if len(options) > 1:
        defaults = (f"{o.default} {choice}" for o, choice in zip(options, with_choice, strict=True))
        notes = ["default: " + ", ".join(defaults)]
    elif first.default is None:
        notes = [with_choice[0], f"required with --{first.group}.*" if first.group else "required"]
    else:
        notes = [with_choice[0], f"default: {first.default}" * (first.default != NONE)]
    note = "; ".join(filter(None, notes))
    head, *more = textwrap.wrap(
        f"--{first.name}  ({first.kind})", WIDTH - 6, break_on_hyphens=False, break_long_words=False
    )
    text = textwrap.wrap(first.text + f" [{note}]" * bool(note), WIDTH - 6, break_long_words=False)
    return [f"  {head}", *(f"      {line}" for line in [*more, *text])]


def load(key: str) -> VerbHelp | str | None:
    """The help of a verb, or of a verb and its subverb; its text alone where it takes no options of a config.

    None where the table does not have it.
    """
    entry = json.loads(TABLE.read_text(encoding="utf-8")).get(key)
    if not isinstance(entry, dict):
        return entry
    options = [Option(**{**row, "choices": tuple(row.get("choices", ()))}) for row in entry.pop("options")]
    return VerbHelp(**entry, options=options)


def of_config(key: str, config: type[Any], arguments: Sequence[str] = ()) -> VerbHelp:
    """The help of a verb with the options of its config, and of the environment that the arguments name."""
    from chordflow.rollouts.environments import register_environments

    with quiet_stdout():
        register_environments()
    named = read_options([argument for argument in arguments if argument.startswith(f"--{ENV_TYPE}=")])
    known = load(key)
    assert isinstance(known, VerbHelp)
    options = options_of(config, nest(named))
    if CONFIG_PATH in known.common:
        text = "settings to start from, JSON or YAML; other options override them"
        options.append(Option(CONFIG_PATH, "path", text, NONE))
    return dataclasses.replace(known, title=(config.__doc__ or "").partition("\n")[0], options=options)


def check_study(arguments: Sequence[str]) -> None:
    """Makes sure that the first argument of `chordflow study` names one: a preset, a file, or `table`."""
    first = arguments[0] if arguments else "--"
    if first.startswith("-"):
        if not any(word.startswith(("--resume", f"--{CONFIG_PATH}", "--help", "-h")) for word in arguments):
            raise UserError(SAY_WHICH)
        return
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    names = [JOINS, *(key.removeprefix("study ") for key in table if key.startswith("study "))]
    names.remove("file")
    if first not in names and not Path(first).is_file():
        close = difflib.get_close_matches(first, names, n=1, cutoff=0.6)
        hint = f"did you mean {close[0]}?" if close else "see chordflow study --help."
        raise UserError(f"{first!r} is no study and no file; {hint}")


def entry_of(verb: str, arguments: list[str]) -> tuple[str, list[str]]:
    """What the table calls a verb with the subverb among its arguments, or a file in its place; all else of them."""
    first = arguments[0] if arguments else "-"
    if verb == "study" and Path(first).suffix in FILES and not first.startswith("-"):
        return "study file", [f"--{CONFIG_PATH}={first}", *arguments[1:]]
    key = f"{verb} {first}"
    return (key, arguments[1:]) if load(key) is not None else (verb, arguments)


def answer(verb: str, arguments: list[str]) -> bool:
    """Prints the help on `--help`, and refuses unknown options.

    Returns:
        Whether that was all; otherwise the verb is to be imported, also for the options of an environment.
    """
    if verb == "study":
        check_study(arguments)
    key, given = entry_of(verb, arguments)
    known, wanted = load(key), wants_help(arguments)
    if isinstance(known, VerbHelp):
        refuse(known.options, [argument for argument in given if argument not in HELPS], names_alone=wanted)
    named = any(argument.startswith(f"--{ENV_TYPE}=") for argument in arguments)
    if known is None or named or not wanted:
        return False
    show(known, arguments)
    return True


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether help is among the arguments."""
    return any(argument in HELPS for argument in arguments)


def show(known: VerbHelp | str, arguments: Sequence[str]) -> None:
    """Prints a help."""
    text = known if isinstance(known, str) else known.text(everything="--help=all" in arguments)
    print(f"{text}\n\n--verbose prints all findings and tables, not the summary alone.", flush=True)


def refuse(options: Sequence[Option], arguments: list[str], *, names_alone: bool) -> None:
    """Refuses what is wrong with any file of settings.

    Args:
        options: of the verb.
        arguments: what the user gave.
        names_alone: whether values, and options that are missing, do not matter.
    """
    values = read_options(arguments)
    names = {option.name for option in options}
    for name in values:
        if name in GONE_OPTIONS and name not in names:
            raise UserError(f"--{name} is no option any more: {GONE_OPTIONS[name]}")
    given = spelt_out(nest(values), options)
    if not names_alone and not any(look_up(given, name) is not None for name in BRINGS_SETTINGS):
        check(options, given, given, skip=ENV)
        return
    for name in dotted(given, names):
        if name not in names and not name.startswith(f"{ENV}."):
            raise UserError(unknown(name, names))
