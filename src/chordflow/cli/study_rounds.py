"""`chordflow study rounds`: when another round of reflow stops paying."""

from __future__ import annotations

from chordflow.cli.options import help_text
from chordflow.cli.settings import parse_record
from chordflow.console import console, say
from chordflow.experiments.rounds_study import study_rounds
from chordflow.experiments.rounds_study_config import PAGE, STUDY, TABLE, RoundsStudyConfig
from chordflow.quiet import quiet_stdout
from chordflow.reporting.page import write_text
from chordflow.reporting.rounds_table import markdown, render
from chordflow.reporting.study_page import rounds_page
from chordflow.results.files import write_whole
from chordflow.results.rounds_study import RoundsStudy
from chordflow.rollouts.plugins import register_environments

USAGE = """
chordflow study rounds --teacher.path=CHECKPOINT --dataset.repo_id=USER/DATASET --output_dir=outputs/rounds \\
    --rounds=3 --steps=2000 --seeds='[0,1,2]'
chordflow study rounds ... --starts='[last]' --solvers='[adams_bashforth]' --real_data_shares='[0]' \\
    --env.type=libero --env.task=libero_10
chordflow study rounds --resume=true --config_path=outputs/rounds/rounds.json
"""


def run(arguments: list[str]) -> None:
    """Parses the options, trains and measures, and prints and writes table and page."""
    with quiet_stdout():
        register_environments()
    if "--help" in arguments or "-h" in arguments:
        print(help_text(RoundsStudyConfig, (RoundsStudyConfig.__doc__ or "").split("\n")[0], USAGE))
        return
    config = parse(arguments)
    output = config.output_dir

    def write(study: RoundsStudy) -> None:
        write_whole(output / TABLE, write_text(markdown(study)))

    study = study_rounds(config, ["chordflow", "study", "rounds", *arguments], write)
    # Also of a study of which nothing was missing.
    write(study)
    write_whole(output / PAGE, write_text(rounds_page(study)))
    console.print(render(study))
    say(f"Results: {output / STUDY}, all columns in {output / TABLE}, curves in {output / PAGE}")


def parse(arguments: list[str]) -> RoundsStudyConfig:
    """The settings, over those of the study that is gone on with.

    Raises:
        UserError: for options that cannot be used.
    """
    return parse_record(
        RoundsStudyConfig, arguments, kind="study rounds", file=STUDY, what="study", load=RoundsStudy.load
    )
