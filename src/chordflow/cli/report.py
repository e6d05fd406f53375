"""`chordflow report`: one page, a table and a model card from what a run measured."""

from __future__ import annotations

from chordflow.console import console, say
from chordflow.errors import UserError
from chordflow.options import read_options

HELP = """Make a page, a markdown table and a model card from what a run measured

usage:
  chordflow report DIR [--output_dir=FOLDER]

DIR is the folder of a run, with its results.json, or a study's study.json.
Writes
  report.html    all that was measured, on one page that needs no network
  table.md       the verdict and the tables, for a README
  model_card.md  the same with what the Hugging Face Hub reads of a model;
                 upload it as README.md
and of a study study.html and study.md.

options:
  --output_dir  (path)
      where to write them; it is made where it is missing; by default DIR"""


def run(arguments: list[str]) -> None:
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
    from chordflow.reporting.write import printed, write_report

    paths = write_report(folders[0], output)
    console.print(printed(folders[0]))
    for path in paths:
        say(f"Report:  {path}")
