"""`chordflow study STUDY`: trainings side by side that answer one question; each study is a file of its own."""

from __future__ import annotations

import difflib
from importlib import import_module

from chordflow.errors import UserError

STUDIES: dict[str, tuple[str, str]] = {
    "init": ("chordflow.cli.study_init", "how much it matters what the student begins with"),
    "rounds": ("chordflow.cli.study_rounds", "when another round of reflow stops paying"),
}
"""Module and meaning of every study; a module has `run(arguments)`, as those of the verbs have."""


def run(arguments: list[str]) -> None:
    """Runs the study that the first argument names, with the rest.

    Raises:
        UserError: for a study that is not there, and for whatever the study refuses.
    """
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        if not arguments:
            raise UserError(f"say which study; write: chordflow study {'|'.join(STUDIES)} --option=value ...")
        print(usage())
        return
    name, *options = arguments
    if name not in STUDIES:
        close = difflib.get_close_matches(name, STUDIES, n=1, cutoff=0.6)
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(STUDIES)}."
        raise UserError(f"{name!r} is not a study; {hint}")
    import_module(STUDIES[name][0]).run(options)


def usage() -> str:
    """What `chordflow study --help` prints."""
    listed = "\n".join(f"  {name:<10} {text}" for name, (_, text) in STUDIES.items())
    return (
        "Answer one question about reflow by training several students the same way but for one thing\n\n"
        f"usage:\n  chordflow study STUDY [--option=value ...]\n\nstudies:\n{listed}\n\n"
        "chordflow study STUDY --help lists the options of a study, with their defaults."
    )
