"""The help of a verb and the refusal of a wrong option, before anything heavy is imported.

`options.json` holds the help of every verb. Its titles and options are those of the configs, as
`scripts/options_table.py` writes them; usages, common options and whole texts are edited there.
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from chordflow.errors import UserError
from chordflow.options import merge, nest, options_of, read_options, read_settings
from chordflow.quiet import quiet_stdout
from chordflow.refusing import CONFIG_PATH, ENV, ENV_TYPE, NONE, Option, alike, look_up, meant, refuse, table
from chordflow.results.old_studies import check_layout

WIDTH = 80

FILES = (".yaml", ".yml", ".json")
"""How the names of files of settings end."""

HELPS = ("-h", "--help", "--help=all")

JOINS = "table"
"""What stands in the place of a study's name where several are joined."""

SAY_WHICH = "say which study; write: chordflow study methods|beginnings|rounds|reuse|FILE.yaml ..."

GONE_VERBS = {
    "bench": "time training in a checkout with python benchmarks/training/time_training.py, and find out how often a "
    "coupling may be used with chordflow study reuse."
}
"""What there is in place of the verbs of earlier releases."""

RENAMED = {"compare": "study methods", "study init": "study beginnings"}
"""Commands that have another name now; the old one goes in the next release."""


def renamed(arguments: list[str]) -> list[str]:
    """A command line with today's names; prints a line where it has older ones."""
    for old, new in RENAMED.items():
        count = len(old.split())
        if arguments[:count] == old.split():
            print(f"chordflow {old} is now chordflow {new}; the old name goes in the next release.")
            looks = re.compile(r"^--(keep_)?checkpoints(?==|$)")
            return [*new.split(), *(looks.sub(r"--\1looks", word) for word in arguments[count:])]
    return arguments


ONE_FOLDER = {
    "report": ("output_dir", "the folder with results.json", "DIR [--output_dir=FOLDER]"),
    "relocate": ("vlm.path", "the checkpoint's folder", "DIR"),
}
"""Verbs of a folder and one option: the option, what the folder is, and how to write both."""


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
    wrapped = partial(textwrap.wrap, width=WIDTH - 6, break_long_words=False)
    head, *more = wrapped(f"--{first.name}  ({first.kind})", break_on_hyphens=False)
    text = wrapped(first.text + f" [{note}]" * bool(note))
    return [f"  {head}", *(f"      {line}" for line in [*more, *text])]


def load(key: str) -> VerbHelp | str | None:
    """The help of a verb, or of a verb and its subverb; its text alone where it takes no options of a config.

    None where the table does not have it.
    """
    found = table().get(key)
    return VerbHelp(**found) if isinstance(found, dict) else found


def of_config(key: str, config: type[Any], given: Mapping[str, Any]) -> VerbHelp:
    """The help of a verb with the options of its config, and of the environment that is given."""
    from chordflow.rollouts.environments import register_environments

    with quiet_stdout():
        register_environments()
    known = load(key)
    assert isinstance(known, VerbHelp)
    options = options_of(config, given)
    if CONFIG_PATH in known.common:
        text = "settings to start from, JSON or YAML; other options override them"
        options.append(Option(CONFIG_PATH, "path", text, NONE))
    return dataclasses.replace(known, title=(config.__doc__ or "").partition("\n")[0], options=options)


def check_study(arguments: Sequence[str]) -> None:
    """Makes sure that the first argument of `chordflow study` names one: a preset, a file, or `table`.

    Files of older layouts are refused here as well, before anything heavy is imported.
    """
    first = arguments[0] if arguments else "--"
    if first.startswith("-"):
        if not any(word.startswith(("--resume", f"--{CONFIG_PATH}", "--help", "-h")) for word in arguments):
            raise UserError(SAY_WHICH)
    else:
        names = [JOINS, *(key[6:] for key in table() if key.startswith("study ") and key != "study file")]
        if first == JOINS and len(arguments) < 2:
            raise UserError("name the studies' files; write: chordflow study table A/study.json B/study.json")
        if first not in names and not Path(first).is_file():
            hint = meant([name for name in names if alike(first, name)]) or "see chordflow study --help."
            raise UserError(f"{first!r} is no study and no file; {hint}")
        if first not in names and any(word.startswith(f"--{CONFIG_PATH}") for word in arguments):
            raise UserError(
                f"{first} and --{CONFIG_PATH}: give one of the two; a study that is resumed takes another arm as "
                "--arms.NAME.OPTION=VALUE."
            )
    for word in arguments:
        path = word.removeprefix(f"--{CONFIG_PATH}=")
        if path != word or Path(path).is_file():
            check_layout(Path(path))


def folder_and_option(verb: str, arguments: Sequence[str]) -> tuple[str, str | None]:
    """What `report` or `relocate` is given: a folder, and its one option."""
    option, what, usage = ONE_FOLDER[verb]
    words = list(arguments)
    if words and words[0].startswith("--"):
        words.sort(key=lambda word: word.startswith("--"))
    if not words or words[0].startswith("--"):
        raise UserError(f"{what} is missing; write chordflow {verb} {usage}.")
    folder, options = words[0], read_options(words[1:])
    for name, value in options.items():
        if name != option:
            raise UserError(f"--{name} is not an option; there is only --{option}.")
        if not value:
            raise UserError(f"{option} is empty; give a folder, or leave it out.")
    return folder, options.get(option)


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
    for word in arguments:
        if word.startswith("--help=") and word not in HELPS:
            raise UserError(f"{word} is no help; write --help, or --help=all for all options.")
    if verb == "study":
        check_study(arguments)
    elif verb in ONE_FOLDER and not wants_help(arguments):
        folder_and_option(verb, arguments)
    key, words = entry_of(verb, arguments)
    known, wanted = load(key), wants_help(arguments)
    if isinstance(known, VerbHelp):
        given = settings_in(words)
        refuse(known.options, given, whole=not wanted)
        path = None if wanted or given.get("resume") is True else given.pop(CONFIG_PATH, None)
        if path is not None and (verb == "study" or not Path(str(path)).exists()):
            file = read_settings(str(path))
            if "kind" not in file:
                # Of a study's file all is known: it is checked as options are.
                refuse(known.options, merge(file, given))
        if wanted and look_up(given, ENV_TYPE) is not None:
            return False
    if known is None or not wanted:
        return False
    show(known, arguments)
    return True


def answer_with(configs: Mapping[str, type[Any]], verb: str, arguments: list[str]) -> None:
    """Prints the help of a verb and an environment, from the configs, and refuses what that does not have."""
    key, words = entry_of(verb, arguments)
    given = settings_in(words)
    known = of_config(key, configs[key], given)
    refuse(known.options, given, whole=False, with_env=True)
    show(known, arguments)


def settings_in(words: Sequence[str]) -> dict[str, Any]:
    """The settings that a command line gives, nested."""
    return nest(read_options([word for word in words if word not in HELPS]))


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether help is among the arguments."""
    return any(argument in HELPS for argument in arguments)


def show(known: VerbHelp | str, arguments: Sequence[str]) -> None:
    """Prints a help."""
    text = known if isinstance(known, str) else known.text(everything="--help=all" in arguments)
    print(f"{text}\n\n--verbose prints all findings and tables, not the summary alone.", flush=True)
