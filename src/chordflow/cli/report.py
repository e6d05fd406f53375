"""`chordflow report`: one page, a table and a model card from what a run measured."""

from __future__ import annotations

from chordflow.console import console, say
from chordflow.errors import UserError
from chordflow.options import read_options
from chordflow.reporting.write import printed, write_report


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
