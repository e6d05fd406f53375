"""What shows results that are there already: `chordflow report` and `chordflow study table`."""

from __future__ import annotations

from pathlib import Path

from chordflow.console import console, say
from chordflow.errors import UserError
from chordflow.options import read_options
from chordflow.reporting.study_table import render
from chordflow.reporting.write import printed, write_report
from chordflow.results.study import Study, joined


def report(arguments: list[str]) -> None:
    """Writes the report of a folder."""
    folders = [argument for argument in arguments if not argument.startswith("--")]
    if len(folders) != 1:
        raise UserError(
            "the folder with results.json is missing; write chordflow report DIR [--output_dir=FOLDER]."
        )
    options = read_options([argument for argument in arguments if argument.startswith("--")])
    output = options.pop("output_dir", None)
    if options:
        raise UserError(f"--{next(iter(options))} is not an option; there is only --output_dir.")
    if output == "":
        raise UserError("output_dir is empty; give a folder, or leave it out.")
    paths = write_report(folders[0], output)
    console.print(printed(folders[0]))
    for path in paths:
        say(f"Report:  {path}")


def join(arguments: list[str]) -> None:
    """Prints the tables of several studies as one."""
    if len(arguments) < 2:
        raise UserError("name the studies' files; write: chordflow study table A/study.json B/study.json")
    console.print(render(joined([Study.load(Path(file)) for file in arguments[1:]])))
