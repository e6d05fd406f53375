"""`chordflow reflow`: the main job."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import draccus

from chordflow import stopping
from chordflow.cli.options import CONFIG_PATH, build, help_text, merge, read_options, show_value
from chordflow.cli.settings import read_settings, wants_resume
from chordflow.console import console, say
from chordflow.disk import whole_folder
from chordflow.errors import UserError
from chordflow.experiments.config import AUTO, ReflowJobConfig
from chordflow.experiments.provenance import BESIDE_SETTINGS, HELD_OUT, check_same_store, check_same_teacher
from chordflow.experiments.recipes import recipe
from chordflow.experiments.reflow import Finished
from chordflow.experiments.rounds import reflow_rounds
from chordflow.experiments.run_folder import (
    REFLOW_CONFIG,
    folder_of_run,
    how_to_go_on,
    resume_command,
    resume_folder,
)
from chordflow.experiments.stored_couplings import training_settings
from chordflow.quiet import quiet_stdout
from chordflow.reporting.figures import save_figures
from chordflow.reporting.table import render
from chordflow.reporting.write import write_report
from chordflow.results.schema import Results
from chordflow.rollouts.plugins import register_environments
from chordflow.training.distributed import joined

USAGE = """
chordflow reflow --teacher.path=CHECKPOINT --dataset.repo_id=USER/DATASET --output_dir=outputs/student
chordflow reflow --couplings.path=COUPLINGS --output_dir=outputs/student
chordflow reflow ... --rounds=auto
chordflow reflow ... --observations=rollout --env.type=libero --env.task=libero_10
chordflow reflow --resume=true --config_path=outputs/student/checkpoints/last/pretrained_model/train_config.json
torchrun --nproc-per-node=2 -m chordflow reflow ...
"""


def run(arguments: list[str]) -> None:
    """Parses the options, trains, measures, prints the table and saves the pictures."""
    with quiet_stdout():
        register_environments()
    if "--help" in arguments or "-h" in arguments:
        print(help_text(ReflowJobConfig, (ReflowJobConfig.__doc__ or "").split("\n")[0], USAGE))
        return
    with joined():
        _train_and_show(arguments)


def _train_and_show(arguments: list[str]) -> None:
    config, resume_from = parse(arguments)
    with stopping.says(lambda: how_to_go_on(config.output_dir)):
        finished = reflow_rounds(config, ["chordflow", "reflow", *arguments], resume_from)
        if finished.measured is not None:
            _show(config, finished)


def _show(config: ReflowJobConfig, finished: Finished) -> None:
    console.print(render(finished.results))
    pictures = _save_pictures(finished.results, config.output_dir / "figures")
    say(
        f"Results: {config.output_dir / 'results.json'}, {pictures} pictures in {config.output_dir / 'figures'}"
    )
    say(f"Report:  {_write_report(config.output_dir)}")
    say(f"Student: {finished.student}")


def _write_report(output_dir: Path) -> Path:
    try:
        return write_report(output_dir)[0]
    except UserError as error:
        raise UserError(
            f"output_dir={output_dir}: the report cannot be written ({error}); checkpoints and results.json are whole: "
            f"make room and run: chordflow report {shlex.quote(str(output_dir))}"
        ) from error


def _save_pictures(results: Results, folder: Path) -> int:
    """Draws all pictures into a folder that appears whole or not at all; returns their number."""
    try:
        # A resumed run draws anew.
        with whole_folder(folder) as temporary:
            pictures = save_figures(results, temporary)
    except (OSError, UserError) as error:
        raise UserError(
            f"output_dir={folder.parent}: the pictures cannot be written ({error}); checkpoints and results.json "
            f"are whole: make room and go on with: {resume_command(folder.parent)}"
        ) from error
    return len(pictures)


def parse(arguments: list[str]) -> tuple[ReflowJobConfig, Path | None]:
    """The job's settings, and the checkpoint to go on from.

    Raises:
        UserError: for options that cannot be used.
    """
    values = read_options(arguments)
    config_path = values.pop(CONFIG_PATH, None)
    if not wants_resume(values):
        config = build(ReflowJobConfig, values, _base(values, config_path))
        if config.recipe is not None and not recipe(config.recipe).kept(draccus.encode(config)):
            config.recipe = None
        return config, None
    if config_path is None:
        raise UserError(
            "resume=true needs --config_path=OUTPUT_DIR/checkpoints/last/pretrained_model/train_config.json."
        )
    checkpoint = resume_folder(config_path)
    base = read_settings(checkpoint / "pretrained_model" / REFLOW_CONFIG)
    sha256, init_sha256, held_out = base.get("teacher_sha256"), base.get("init_sha256"), base.get(HELD_OUT)
    couplings_sha256, number = base.get("couplings_sha256"), base.get("round", 1)
    for name in BESIDE_SETTINGS:
        base.pop(name, None)
    # The run may have been moved since: it is where its checkpoint is.
    base["output_dir"] = str(folder_of_run(checkpoint, number, base.get("rounds", 1)))
    saved = build(ReflowJobConfig, {}, base)
    config = build(ReflowJobConfig, values, _without_unused_auto(values, base))
    _refuse_another_run(config, saved, values, drops=held_out is not None and _drops(config, saved))
    _check_rounds(config, saved, number)
    check_same_teacher(config, sha256, init_sha256)
    if number == 1:
        # Later rounds make their own couplings.
        check_same_store(config, saved, couplings_sha256)
    return config, checkpoint


def _base(values: dict[str, str], config_path: str | None) -> dict[str, Any]:
    """The settings of a file, over those of the store of couplings that is trained from, over those of a recipe."""
    base = _without_unused_auto(values, read_settings(config_path) if config_path else {})
    # The record beside a student serves as settings too: of a new run.
    for beside in (*BESIDE_SETTINGS, "resume"):
        base.pop(beside, None)
    name = values.get("recipe", base.get("recipe"))
    under = recipe(name).overrides if name is not None else {}
    group = base.get("couplings")
    told = group if isinstance(group, dict) else {}
    told = told | {
        name.removeprefix("couplings."): value
        for name, value in values.items()
        if name.startswith("couplings.")
    }
    if told.get("path") is None:
        return merge(under, base)
    used = str(told.get("num_observations"))
    # Whatever else it says is refused with all other options.
    stored = training_settings(Path(told["path"]), int(used) if used.isdecimal() else None)
    return merge(merge(under, stored), base)


def _without_unused_auto(values: dict[str, str], base: dict[str, Any]) -> dict[str, Any]:
    """The settings of a file without those of `rounds=auto`, where the options name a number of rounds instead."""
    if values.get("rounds", AUTO) == AUTO:
        return base
    return {name: value for name, value in base.items() if name != "auto_rounds"}


def _check_rounds(config: ReflowJobConfig, saved: ReflowJobConfig, number: int) -> None:
    """Makes sure that a run goes on with a number of rounds that its folder has room for.

    Args:
        config: as it goes on.
        saved: as it was.
        number: of the checkpoint's round.

    Raises:
        UserError: if not.
    """
    rounds = config.rounds
    if rounds == AUTO:
        if saved.rounds != 1 and config.auto_rounds.most < number:
            raise UserError(
                f"auto_rounds.most={config.auto_rounds.most}: the checkpoint is of round {number}; give at least that "
                "many."
            )
    elif rounds != saved.rounds and saved.rounds != 1 and rounds < max(2, number):
        of = "" if saved.rounds == AUTO else f" of {saved.rounds}"
        raise UserError(
            f"rounds={rounds}: the checkpoint is of round {number}{of}; give at least {max(2, number)}."
        )
    if rounds != saved.rounds and saved.rounds == 1:
        raise UserError(
            f"rounds={rounds}: the run began with one round, whose folder has no room for more; leave the option out, "
            f"or start a new run with --rounds={rounds}."
        )


CHANGEABLE = (
    "resume", "rounds", "auto_rounds.", "steps", "batch_size", "gradient_accumulation_steps",
    "save_freq", "save_minutes", "log_freq", "num_workers", "device", "teacher.path", "student.init_path",
    "dataset.root", "couplings.path", "collect.num_workers", "dataset.video_backend", "tolerance_s", "optimizer.",
    "scheduler.", "measure.",
)  # fmt: skip
"""What may be another when a run goes on; all else would make it another run."""

FIXED = ("optimizer.type",)
"""What of that may not: the state of one optimiser says nothing to another."""


def _drops(config: ReflowJobConfig, saved: ReflowJobConfig) -> bool:
    """Whether episodes are left out that a run began with, and none added."""
    now, before = config.dataset.episodes, saved.dataset.episodes
    return now is not None and (before is None or set(now) <= set(before))


def _refuse_another_run(
    config: ReflowJobConfig, saved: ReflowJobConfig, values: dict[str, str], *, drops: bool
) -> None:
    now, before = draccus.encode(config), draccus.encode(saved)
    for name in values:
        changeable = name.startswith(CHANGEABLE) and name not in FIXED
        # What was trained on goes on to be, and what was held out to be measured on.
        changeable |= name == "dataset.episodes" and drops
        if changeable or _look_up(now, name) == _look_up(before, name):
            continue
        can = "can only leave some of them out" if name == "dataset.episodes" else "cannot change it"
        raise UserError(
            f"{name}={values[name]}: the run began with {show_value(_look_up(before, name))} and resuming {can}; leave "
            "the option out, or start a new run."
        )


def _look_up(settings: Any, name: str) -> Any:
    for part in name.split("."):
        settings = settings.get(part) if isinstance(settings, dict) else None
    return settings
