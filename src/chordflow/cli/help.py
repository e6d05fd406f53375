"""What is answered before anything heavy is imported: the help of a verb, and the refusal of a wrong option.

`options.json` holds the options of every verb, as `scripts/options_table.py` writes it from the configs.
"""

from __future__ import annotations

import difflib
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chordflow.cli.gone import OPTIONS
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

JOINS = "table"
"""What stands in the place of a study's name where several are joined."""

SAY_WHICH = "say which study; write: chordflow study methods|beginnings|rounds|reuse|FILE.yaml ..."

BRINGS_SETTINGS = (CONFIG_PATH, "recipe", "couplings.path", "resume")
"""Options that name settings which are not known before they are read."""


@dataclass(frozen=True)
class VerbHelp:
    """The help of a verb.

    Attributes:
        title: what the verb does.
        usage: commands to copy.
        common: names of the options that people set.
        options: all of them.
    """

    title: str
    usage: str
    common: Sequence[str]
    options: Sequence[Option]

    def text(self, *, everything: bool) -> str:
        """The help: the common options and those of a chosen environment, or all options by group."""
        lines = [
            *textwrap.wrap(self.title, WIDTH),
            "",
            "usage:",
            *textwrap.indent(self.usage.strip(), "  ").splitlines(),
        ]
        groups: dict[str, list[str]] = {}
        chosen = any(option.name.startswith(f"{ENV}.") and option.name != ENV_TYPE for option in self.options)
        for option in self.options:
            of_environment = chosen and option.name.startswith(f"{ENV}.")
            if everything or option.name in self.common or of_environment:
                group = option.name.rpartition(".")[0] if everything else ""
                names = groups.setdefault(group, [])
                names += [] if option.name in names else [option.name]
        if not everything:
            groups[""].sort(
                key=lambda name: self.common.index(name) if name in self.common else len(self.common)
            )
        for group, names in groups.items():
            lines += ["", f"{group} options:" if group else "options:"]
            for name in names:
                lines += _entry([option for option in self.options if option.name == name])
        if not everything:
            count = len({option.name for option in self.options})
            lines += ["", f"--help=all lists all {count} options."]
            if any(option.name == ENV_TYPE for option in self.options):
                lines += [f"--{ENV_TYPE}=NAME --help lists those of an environment too."]
        return "\n".join(lines)


def _entry(options: list[Option]) -> list[str]:
    """An option with what it does and its defaults, one for each choice that it depends on."""
    first = options[0]
    needed = f"required with --{first.group}.*" if first.group else "required"
    only = [
        f"with --{option.choice}={' or '.join(option.choices)}" * bool(option.choice) for option in options
    ]
    default = needed if first.default is None else f"default: {first.default}" * (first.default != NONE)
    notes = [only[0], default]
    if len(options) > 1:
        notes = [
            "default: " + ", ".join(f"{o.default} {with_}" for o, with_ in zip(options, only, strict=True))
        ]
    note = "; ".join(filter(None, notes))
    head = textwrap.wrap(
        f"--{first.name}  ({first.kind})", WIDTH - 6, break_on_hyphens=False, break_long_words=False
    )
    text = textwrap.wrap(first.text + f" [{note}]" * bool(note), WIDTH - 6, break_long_words=False)
    return [f"  {head[0]}", *(f"      {line}" for line in [*head[1:], *text])]


def load(verb: str) -> VerbHelp | str | None:
    """The help of a verb, or of a verb and its subverb; its text alone where it takes no options of a config.

    None where the table does not have it.
    """
    entry = json.loads(TABLE.read_text(encoding="utf-8")).get(verb)
    if not isinstance(entry, dict):
        return entry
    options = [Option(**{**row, "choices": tuple(row.get("choices", ()))}) for row in entry.pop("options")]
    return VerbHelp(**entry, options=options)


def of_module(module: Any, arguments: Sequence[str] = ()) -> VerbHelp:
    """The help of a verb from its module, with the options of the environment that the arguments name."""
    module = getattr(module, "SUBVERBS", {}).get(arguments[0] if arguments else "", module)
    from chordflow.rollouts.environments import register_environments

    with quiet_stdout():
        register_environments()
    named = read_options([argument for argument in arguments if argument.startswith(f"--{ENV_TYPE}=")])
    options = options_of(module.CONFIG, nest(named))
    if CONFIG_PATH in module.COMMON:
        options.append(
            Option(
                CONFIG_PATH, "path", "settings to start from, JSON or YAML; other options override them", NONE
            )
        )
    title = (module.CONFIG.__doc__ or "").partition("\n")[0]
    return VerbHelp(title, module.USAGE.strip(), list(module.COMMON), options)


def asked(arguments: Sequence[str]) -> bool:
    """Whether arguments ask for help."""
    return any(argument in ("-h", "--help", "--help=all") for argument in arguments)


def check_study(arguments: Sequence[str]) -> None:
    """Makes sure that the first argument of `chordflow study` names one: a preset, a file, or `table`.

    Raises:
        UserError: if it does not.
    """
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


def answer(verb: str, arguments: list[str]) -> bool:
    """Prints the help where that is asked for, and refuses options that there are not.

    Returns:
        Whether that was all; otherwise the verb is to be imported, also for the options of an environment.

    Raises:
        UserError: for an option that no config can have.
    """
    known, wanted = load(verb), asked(arguments)
    if verb == "study":
        check_study(arguments)
    if arguments and not arguments[0].startswith("-"):
        # A subverb, or a file of settings in its place.
        sub, *rest = arguments
        is_file = Path(sub).suffix in FILES
        known = load(f"{verb} {'file' if is_file else sub}") or known
        arguments = [f"--{CONFIG_PATH}={sub}", *rest] if is_file else rest
    if isinstance(known, VerbHelp) and not wanted:
        refuse(known.options, arguments)
    named = any(argument.startswith(f"--{ENV_TYPE}=") for argument in arguments)
    if known is None or named or not wanted:
        return False
    print(known if isinstance(known, str) else known.text(everything="--help=all" in arguments))
    return True


def refuse(options: Sequence[Option], arguments: list[str]) -> None:
    """Refuses what is wrong whatever settings a file may bring.

    Raises:
        UserError: for an option that there is not, that is missing, or that does not go with the others.
    """
    values = read_options(arguments)
    names = {option.name for option in options}
    for name in values:
        if name in OPTIONS and name not in names:
            raise UserError(f"--{name} is no option any more: {OPTIONS[name]}")
    given = spelt_out(nest(values), options)
    if not any(look_up(given, name) is not None for name in BRINGS_SETTINGS):
        check(options, given, given, skip=ENV)
        return
    for name in dotted(given, names):
        if name not in names and not name.startswith(f"{ENV}."):
            raise UserError(unknown(name, names))
