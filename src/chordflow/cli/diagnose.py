"""`chordflow diagnose`: is distillation worth it for this checkpoint?"""

from __future__ import annotations

from chordflow.cli.options import CONFIG_PATH, build, help_text, read_options
from chordflow.cli.settings import read_settings
from chordflow.console import console, say
from chordflow.errors import UserError
from chordflow.experiments.diagnose import RESULTS, DiagnoseConfig, diagnose
from chordflow.reporting.figures import save_figures
from chordflow.reporting.table import render
from chordflow.reporting.write import write_report

USAGE = """
chordflow diagnose --policy.path=CHECKPOINT --dataset.repo_id=USER/DATASET
"""


def run(arguments: list[str]) -> None:
    """Parses the options, measures, prints the table and what it says, and saves the pictures."""
    if "--help" in arguments or "-h" in arguments:
        print(help_text(DiagnoseConfig, (DiagnoseConfig.__doc__ or "").split("\n")[0], USAGE))
        return
    config = parse(arguments)
    found = diagnose(config, ["chordflow", "diagnose", *arguments])
    console.print(render(found.results))
    figures = found.folder / "figures"
    try:
        figures.mkdir()
        pictures = save_figures(found.results, figures)
    except OSError as error:
        raise UserError(
            f"output_dir={found.folder}: the pictures cannot be written ({error.strerror}); {RESULTS} is whole: make "
            "room and diagnose again into a new folder for them."
        ) from error
    report, *_ = write_report(found.folder)
    say(f"Report:  {report}")
    say(f"Results: {found.folder / RESULTS}, {len(pictures)} pictures in {figures}")


def parse(arguments: list[str]) -> DiagnoseConfig:
    """The settings.

    Raises:
        UserError: for options that cannot be used.
    """
    values = read_options(arguments)
    config_path = values.pop(CONFIG_PATH, None)
    return build(DiagnoseConfig, values, read_settings(config_path) if config_path else None)
