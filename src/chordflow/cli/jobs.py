"""The verbs that need PyTorch and LeRobot, one function each."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from chordflow import api
from chordflow.cli.help import SAY_WHICH, folder_and_option
from chordflow.console import console, say
from chordflow.errors import UserError
from chordflow.experiments.config import ReflowJobConfig
from chordflow.experiments.couple import CoupleConfig
from chordflow.experiments.diagnose import DiagnoseConfig
from chordflow.experiments.evaluate_config import EvaluateConfig
from chordflow.experiments.export import MANIFEST, ExportConfig
from chordflow.experiments.study.config import StudyConfig
from chordflow.experiments.study.presets import PAGE, STUDIES, TABLE, FileStudy
from chordflow.experiments.study.run import run_study
from chordflow.options import build, nest, read_options, read_settings
from chordflow.policies import relocate as relocate_checkpoints
from chordflow.quiet import quiet_stdout
from chordflow.refusing import CONFIG_PATH
from chordflow.reporting.study_table import render as render_study
from chordflow.reporting.table import render
from chordflow.reporting.write import write_study
from chordflow.results.study import STUDY, Study
from chordflow.rollouts.environments import register_environments
from chordflow.training import distributed

CONFIGS: dict[str, type[Any]] = {
    "diagnose": DiagnoseConfig,
    "reflow": ReflowJobConfig,
    "evaluate": EvaluateConfig,
    "couple": CoupleConfig,
    "export": ExportConfig,
    **{f"study {preset}": config for preset, config in STUDIES.items()},
}
"""What the options of a verb, with its subverb, are made from."""


def couple(arguments: list[str]) -> None:
    """Makes a store of couplings, and prints how to train from it."""
    # Only the first of several processes prints, here too.
    with distributed.joined():
        folder = api.couple(**nest(read_options(arguments))).folder
        train = f"chordflow reflow --couplings.path={shlex.quote(str(folder))} --output_dir=outputs/student"
        say(f"Couplings: {folder}")
        say(f"Train:     {train}")


def diagnose(arguments: list[str]) -> None:
    """Measures a policy before any training."""
    done = api.diagnose(command=["chordflow", "diagnose", *arguments], **nest(read_options(arguments)))
    console.print(render(done.measured))
    figures = done.folder / "figures"
    say(f"Report:  {done.files[0]}")
    say(f"Results: {done.folder / 'results.json'}, {len(list(figures.iterdir()))} pictures in {figures}")


def evaluate(arguments: list[str]) -> None:
    """Compares policies with their teacher."""
    done = api.evaluate(command=["chordflow", "evaluate", *arguments], **nest(read_options(arguments)))
    console.print(render(done.measured))
    page, tables, card = done.files
    say(f"Results: {done.folder / 'results.json'}, tables in {tables}, model card in {card}")
    say(f"Report:  {page}")


def export(arguments: list[str]) -> None:
    """Exports a policy."""
    done = api.export(**nest(read_options(arguments)))
    say(f"{done.verdict} Checkpoint and difference: {done.folder / MANIFEST}")
    say(f"Run:    chordflow_runtime.load({str(done.folder)!r})(observation)")


def reflow(arguments: list[str]) -> None:
    """Trains a student and measures it."""
    done = api.reflow(command=["chordflow", "reflow", *arguments], **nest(read_options(arguments)))
    if done.results is None:
        return
    console.print(render(done.results))
    figures = done.folder / "figures"
    say(f"Results: {done.folder / 'results.json'}, {len(list(figures.glob('*')))} pictures in {figures}")
    say(f"Report:  {done.files[0]}")
    say(f"Student: {done.student}")


def relocate(arguments: list[str]) -> None:
    """Repairs every checkpoint below a folder whose vision-language model has moved."""
    changed = relocate_checkpoints(*folder_and_option("relocate", arguments))
    for file in changed:
        say(f"rewrote {file}")
    if not changed:
        say("Nothing to do: the paths are right already.")


def study(arguments: list[str]) -> None:
    """Runs the study that the first argument names."""
    first, *options = arguments
    with quiet_stdout():
        register_environments()
    if first.startswith("--"):
        config = study_settings(None, arguments)
    elif first in STUDIES:
        config = study_settings(first, options)
    else:
        config = study_settings(FileStudy.PRESET, [f"--{CONFIG_PATH}={first}", *options])
    output = config.output_dir

    def write(study: Study) -> None:
        write_study(study, output)

    done = run_study(config, ["chordflow", "study", *arguments], write)
    # Also of a study of which nothing was missing.
    write(done)
    console.print(render_study(done))
    say(f"Results: {output / STUDY}, all columns in {output / TABLE}, curves in {output / PAGE}")


def study_settings(preset: str | None, arguments: list[str]) -> StudyConfig:
    """The settings of a study, over those of a file or of the study that is resumed.

    Args:
        preset: that the user names; None where the study that is resumed says so.
        arguments: the options.
    """
    values = read_options(arguments)
    path = values.pop(CONFIG_PATH, None)
    if path is not None and Path(path).is_dir():
        path = str(Path(path) / STUDY)
    base: dict[str, Any] = read_settings(path) if path is not None else {}
    before = path if "kind" in base else None
    if before is not None:
        # Refuses whatever is no study, and studies of an older layout with their converter.
        saved = Study.load(Path(before)).preset
        if preset not in (None, saved):
            raise UserError(f"config_path={path} is a study of {saved}; write: chordflow study {saved}")
        preset = saved
    given = nest(values)
    resume = given.get("resume") is True
    if resume and before is None:
        raise UserError(f"resume=true needs --config_path=OUTPUT_DIR/{STUDY}.")
    if preset is None:
        raise UserError(SAY_WHICH)
    settings = {**base.get("settings", base), "resume": False}
    if resume and before is not None:
        for name in ("steps", "seconds"):
            if name in given and given[name] != (began := settings.get(name)):
                raise UserError(
                    f"{name}={given[name]}: the study began with {began}, and another budget is another study; leave "
                    "the option out, or start a new study."
                )
        # The folder may have been moved since: it is where its file is.
        settings["output_dir"] = str(Path(before).resolve().parent)
        try:
            build(STUDIES[preset], {}, settings)
        except UserError as error:
            raise UserError(
                f"config_path={path} holds settings that cannot be used ({error}); restore the file, or start a new "
                "study; one that was converted cannot be resumed."
            ) from error
    return build(STUDIES[preset], values, settings)
