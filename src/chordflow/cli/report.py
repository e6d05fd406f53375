"""What shows results that are there already: `chordflow report` and `chordflow study table`."""

from __future__ import annotations

from pathlib import Path

from chordflow.cli.help import folder_and_option
from chordflow.console import console, say
from chordflow.reporting.study_table import render
from chordflow.reporting.write import printed, write_report
from chordflow.results.study import STUDY, Study, joined


def report(arguments: list[str]) -> None:
    """Writes the report of a folder."""
    folder, output = folder_and_option("report", arguments)
    page, *others = write_report(folder, output)
    console.print(printed(folder))
    say(f"Report:  {page}")
    say(f"Tables:  {', model card in '.join(map(str, others))}")


def join(arguments: list[str]) -> None:
    """Prints the tables of several studies as one."""
    files = [file / STUDY if file.is_dir() else file for file in map(Path, arguments[1:])]
    console.print(render(joined([Study.load(file) for file in files])))
