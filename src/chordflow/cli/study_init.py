"""`chordflow study init`: what a student begins with, and how much that matters."""

from __future__ import annotations

from chordflow.cli.options import help_text
from chordflow.cli.settings import parse_record
from chordflow.console import console, say
from chordflow.experiments.init_study import study_init
from chordflow.experiments.init_study_config import PAGE, STUDY, TABLE, InitStudyConfig
from chordflow.quiet import quiet_stdout
from chordflow.reporting.init_study_table import markdown, render
from chordflow.reporting.page import write_text
from chordflow.reporting.study_page import init_page
from chordflow.results.files import write_whole
from chordflow.results.init_study import InitStudy
from chordflow.rollouts.plugins import register_environments

USAGE = """
chordflow study init --teacher.path=CHECKPOINT --dataset.repo_id=USER/DATASET --output_dir=outputs/init \\
    --steps=2000 --seeds='[0,1,2]'
chordflow study init ... --arms='[teacher,teacher_full,random_full]' --learning_rates='[1e-4]' \\
    --checkpoints='[0,250,500,1000,2000]' --env.type=libero --env.task=libero_10
chordflow study init --resume=true --config_path=outputs/init/study.json
"""


def run(arguments: list[str]) -> None:
    """Parses the options, trains and measures, and prints and writes table and page."""
    with quiet_stdout():
        register_environments()
    if "--help" in arguments or "-h" in arguments:
        print(help_text(InitStudyConfig, (InitStudyConfig.__doc__ or "").split("\n")[0], USAGE))
        return
    config = parse(arguments)
    output = config.output_dir

    def write(study: InitStudy) -> None:
        write_whole(output / TABLE, write_text(markdown(study)))

    study = study_init(config, ["chordflow", "study", "init", *arguments], write)
    # Also of a study of which nothing was missing.
    write(study)
    write_whole(output / PAGE, write_text(init_page(study)))
    console.print(render(study))
    say(f"Results: {output / STUDY}, all columns in {output / TABLE}, curves in {output / PAGE}")


def parse(arguments: list[str]) -> InitStudyConfig:
    """The settings, over those of the study that is gone on with.

    Raises:
        UserError: for options that cannot be used.
    """
    return parse_record(
        InitStudyConfig, arguments, kind="study init", file=STUDY, what="study", load=InitStudy.load
    )
