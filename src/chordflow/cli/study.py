"""`chordflow study`: arms trained side by side to answer one question, and their tables."""

from __future__ import annotations

import difflib
import shlex
from pathlib import Path
from typing import Any

from chordflow.cli.options import CONFIG_PATH, build, help_text, read_options
from chordflow.cli.settings import read_settings, wants_resume
from chordflow.console import console, say
from chordflow.errors import UserError
from chordflow.experiments.config import ReflowJobConfig
from chordflow.experiments.study.config import StudyConfig
from chordflow.experiments.study.presets import PAGE, STUDIES, TABLE, FileStudy
from chordflow.experiments.study.run import run_study
from chordflow.quiet import quiet_stdout
from chordflow.reporting.study_page import page
from chordflow.reporting.study_table import markdown, render
from chordflow.results.files import write_whole
from chordflow.results.study import STUDY, Study
from chordflow.rollouts.plugins import register_environments

QUESTIONS = {
    "methods": "which method is best at one budget",
    "beginnings": "how much it matters what the student begins with",
    "rounds": "when another round of reflow stops paying",
    "reuse": "how often a coupling may be used",
}
"""What each preset answers."""

OLD_KINDS = {"compare": "methods", "study init": "beginnings", "study rounds": "rounds"}
"""Files of older releases, by the preset that makes such studies now."""

USAGE = """
chordflow study {preset} --teacher.path=CHECKPOINT --dataset.repo_id=USER/DATASET --output_dir=outputs/study \\
    --steps=2000 --seeds='[0,1,2]'
chordflow study {preset} ... --env.type=libero --env.task=libero_10
chordflow study --resume=true --config_path=outputs/study/study.json
"""


def run(arguments: list[str]) -> None:
    """Runs the study that the first argument names, or joins tables.

    Raises:
        UserError: for a study that is not there, and for whatever a study refuses.
    """
    first, *options = arguments or [""]
    if first in ("", "--help", "-h", "help"):
        if not first:
            raise UserError(
                "say which study; write: chordflow study methods|beginnings|rounds|reuse|FILE.yaml ..."
            )
        print(usage())
        return
    if first == "table":
        _join(options)
        return
    with quiet_stdout():
        register_environments()
    if first.startswith("--"):
        preset, options = None, arguments
    elif first == "init":
        run_alias("beginnings", "study init", options)
        return
    elif first in QUESTIONS:
        preset = first
    elif Path(first).is_file():
        preset, options = FileStudy.PRESET, [f"--{CONFIG_PATH}={first}", *options]
    else:
        close = difflib.get_close_matches(first, [*QUESTIONS, "table"], n=1, cutoff=0.6)
        hint = (
            f"did you mean {close[0]}?"
            if close
            else f"choose {', '.join(QUESTIONS)}, table or a file of arms."
        )
        raise UserError(f"{first!r} is no study and no file; {hint}")
    if {"--help", "-h"} & set(options):
        study = STUDIES[preset or FileStudy.PRESET]
        print(
            help_text(study, (study.__doc__ or "").split("\n")[0], USAGE.format(preset=preset or "FILE.yaml"))
        )
        return
    config = parse(preset, options)
    output = config.output_dir

    def write(study: Study) -> None:
        write_whole(output / TABLE, markdown(study).encode("utf-8"))

    study = run_study(config, ["chordflow", "study", *arguments], read_job, write)
    # Also of a study of which nothing was missing.
    write(study)
    write_whole(output / PAGE, page(study).encode("utf-8"))
    console.print(render(study))
    say(f"Results: {output / STUDY}, all columns in {output / TABLE}, curves in {output / PAGE}")


def usage() -> str:
    """What `chordflow study --help` prints."""
    listed = "\n".join(f"  {name:<11} {text}" for name, text in QUESTIONS.items())
    return (
        "Answer one question about reflow by training several students the same way but for one thing\n\n"
        "usage:\n  chordflow study PRESET [--option=value ...]\n  chordflow study FILE.yaml [--option=value ...]\n"
        f"  chordflow study table A.json B.json\n\npresets:\n{listed}\n\n"
        "FILE.yaml holds options and arms; table joins what several studies measured.\n"
        "chordflow study PRESET --help lists the options of a preset, with their defaults."
    )


def read_job(values: dict[str, str], base: dict[str, Any]) -> ReflowJobConfig:
    """The settings of a job, checked as those of `chordflow reflow` are."""
    return build(ReflowJobConfig, values, base)


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
    kind, found = base.get("kind"), base.get("preset")
    if kind in OLD_KINDS:
        raise UserError(
            f"config_path={config_path}: this file of chordflow {kind} is of an older layout; to show it, "
            f"convert it with: python scripts/convert_study.py {shlex.quote(str(config_path))}; to train, start a new "
            f"study with chordflow study {OLD_KINDS[kind]}."
        )
    if not wants_resume(values):
        if preset is None:
            raise UserError(
                "say which study; write: chordflow study methods|beginnings|rounds|reuse|FILE.yaml ..."
            )
        return build(STUDIES[preset], values, base.get("settings", base))
    if config_path is None:
        raise UserError(f"resume=true needs --config_path=OUTPUT_DIR/{STUDY}.")
    if kind != "study" or found not in STUDIES or preset not in (None, found):
        raise UserError(f"config_path={config_path} is no file of such a study; give OUTPUT_DIR/{STUDY}.")
    Study.load(Path(config_path))
    # The folder may have been moved since: it is where its file is.
    settings = {**base["settings"], "output_dir": str(Path(config_path).resolve().parent)}
    try:
        build(STUDIES[found], {}, settings)
    except UserError as error:
        raise UserError(
            f"config_path={config_path} holds settings that cannot be used ({error}); restore the file, or start a "
            "new study."
        ) from error
    return build(STUDIES[found], values, settings)


def _join(files: list[str]) -> None:
    if not files:
        raise UserError("say whose tables; write: chordflow study table A/study.json B/study.json")
    from chordflow.results.study import joined

    console.print(render(joined([Study.load(Path(file)) for file in files])))


def run_alias(preset: str, old: str, arguments: list[str]) -> None:
    """Runs a preset by the name that it had, options included, and says so."""
    say(f"chordflow {old} is now chordflow study {preset}; the old name goes in the next release.")
    renamed = (
        {"--checkpoints": "--looks", "--keep_checkpoints": "--keep_looks"} if preset == "beginnings" else {}
    )
    pairs = [argument.partition("=") for argument in arguments]
    run([preset, *(renamed.get(name, name) + equals + value for name, equals, value in pairs)])
