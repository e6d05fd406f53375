"""`chordflow study`: arms trained side by side to answer one question, and their tables."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from chordflow.cli.help import JOINS, SAY_WHICH, check_study
from chordflow.console import console, say
from chordflow.errors import UserError
from chordflow.experiments.settings import read_settings, wants_resume
from chordflow.experiments.study.config import StudyConfig
from chordflow.experiments.study.presets import PAGE, STUDIES, TABLE, FileStudy
from chordflow.experiments.study.run import run_study
from chordflow.options import CONFIG_PATH, build, nest, read_options
from chordflow.quiet import quiet_stdout
from chordflow.reporting.study_table import render
from chordflow.reporting.write import write_study
from chordflow.results.study import STUDY, Study, joined
from chordflow.rollouts.environments import register_environments

QUESTIONS = {
    "methods": "which method is best at one budget",
    "beginnings": "how much it matters what the student begins with",
    "rounds": "when another round of reflow stops paying",
    "reuse": "how often a coupling may be used",
}
"""What each preset answers."""

HELP = f"""Answer one question by training several students that differ in one thing

usage:
  chordflow study PRESET [--option=value ...]
  chordflow study FILE.yaml [--option=value ...]
  chordflow study table A.json B.json
  chordflow study --resume=true --config_path=outputs/study/study.json

presets:
{"\n".join(f"  {name:<12}{text}" for name, text in QUESTIONS.items())}

FILE.yaml holds options and arms; table joins what several studies measured.
chordflow study PRESET --help and chordflow study FILE.yaml --help list options."""

USAGE = """
chordflow study {preset} --teacher.path=CHECKPOINT \\
    --dataset.repo_id=USER/DATASET --output_dir=outputs/study \\
    --steps=2000 --seeds='[0,1,2]'
chordflow study {preset} ... --env.type=libero --env.task=libero_10
chordflow study --resume=true --config_path=outputs/study/study.json
"""

COMMON = (
    "teacher.path", "dataset.repo_id", "dataset.root", "output_dir", "steps", "seconds", "seeds", "looks", "env.type",
    "eval.n_episodes", "device", "resume", "config_path",
)  # fmt: skip

SUBVERBS = {
    name: SimpleNamespace(
        CONFIG=study, COMMON=COMMON, USAGE=USAGE.format(preset=name if name in QUESTIONS else "FILE.yaml")
    )
    for name, study in STUDIES.items()
}
"""By preset, what its help is made from."""


def run(arguments: list[str]) -> None:
    """Runs the study that the first argument names, or joins tables.

    Raises:
        UserError: for a study that is not there, and for whatever a study refuses.
    """
    check_study(arguments)
    first, *options = arguments
    if first == JOINS:
        _join(options)
        return
    with quiet_stdout():
        register_environments()
    if first.startswith("--"):
        preset, options = None, arguments
    elif first in QUESTIONS:
        preset = first
    else:
        preset, options = FileStudy.PRESET, [f"--{CONFIG_PATH}={first}", *options]
    config = parse(preset, options)
    output = config.output_dir

    def write(study: Study) -> None:
        write_study(study, output)

    study = run_study(config, ["chordflow", "study", *arguments], write)
    # Also of a study of which nothing was missing.
    write(study)
    console.print(render(study))
    say(f"Results: {output / STUDY}, all columns in {output / TABLE}, curves in {output / PAGE}")


def parse(preset: str | None, arguments: list[str]) -> StudyConfig:
    """The settings, over those of a file or of the study that is resumed.

    Args:
        preset: that the user names; None where the study that is resumed says so.
        arguments: the options.

    Raises:
        UserError: for options that cannot be used.
    """
    values = read_options(arguments)
    config_path = values.pop(CONFIG_PATH, None)
    base: dict[str, Any] = read_settings(config_path) if config_path else {}
    if config_path is not None and "kind" in base:
        # Refuses whatever is no study, and studies of an older layout with their converter.
        study = Study.load(Path(config_path))
        if preset not in (None, study.preset):
            raise UserError(
                f"config_path={config_path} is a study of {study.preset}; write: chordflow study {study.preset}"
            )
        preset = study.preset
    if not wants_resume(nest(values)):
        if preset is None:
            raise UserError(SAY_WHICH)
        return build(STUDIES[preset], values, {**base.get("settings", base), "resume": False})
    if config_path is None or preset is None or "kind" not in base:
        raise UserError(f"resume=true needs --config_path=OUTPUT_DIR/{STUDY}.")
    # The folder may have been moved since: it is where its file is.
    settings = {**base["settings"], "output_dir": str(Path(config_path).resolve().parent)}
    try:
        build(STUDIES[preset], {}, settings)
    except UserError as error:
        raise UserError(
            f"config_path={config_path} holds settings that cannot be used ({error}); restore the file, or start a "
            "new study."
        ) from error
    return build(STUDIES[preset], values, settings)


def _join(files: list[str]) -> None:
    if not files:
        raise UserError("say whose tables; write: chordflow study table A/study.json B/study.json")
    console.print(render(joined([Study.load(Path(file)) for file in files])))
