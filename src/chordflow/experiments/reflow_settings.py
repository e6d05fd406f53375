"""The settings of the main job: a new run's, and those with which a run may be resumed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import draccus

from chordflow.errors import UserError
from chordflow.experiments.config import AUTO, ReflowJobConfig
from chordflow.experiments.provenance import BESIDE_SETTINGS, HELD_OUT, check_same_store, check_same_teacher
from chordflow.experiments.recipes import recipe
from chordflow.experiments.run_folder import REFLOW_CONFIG, folder_of_run, resume_folder
from chordflow.experiments.settings import read_settings, split_path, wants_resume
from chordflow.experiments.stored_couplings import training_settings
from chordflow.options import dotted, look_up, merge, options_of, settle, show_value, spelt_out
from chordflow.quiet import quiet_stdout
from chordflow.rollouts.environments import register_environments


def reflow_settings(given: Mapping[str, Any]) -> tuple[ReflowJobConfig, Path | None]:
    """The job's settings, and the checkpoint to resume from.

    Args:
        given: nested settings of plain Python types.

    Raises:
        UserError: for settings that cannot be used.
    """
    with quiet_stdout():
        register_environments()
    given, config_path = split_path(spelt_out(given, options_of(ReflowJobConfig)))
    if not wants_resume(given):
        config = settle(ReflowJobConfig, given, _base(given, config_path))
        if config.recipe is not None and not recipe(config.recipe).kept(draccus.encode(config)):
            config.recipe = None
        return config, None
    if config_path is None:
        raise UserError(
            "resume=true needs --config_path=OUTPUT_DIR/checkpoints/last/pretrained_model/train_config.json."
        )
    checkpoint = resume_folder(config_path)
    base = read_settings(checkpoint / "pretrained_model" / REFLOW_CONFIG)
    if base.get("optimizer", {}).get("type") == "muon":
        raise UserError(
            f"optimizer.type=muon: the run of {config_path} began with Muon, which chordflow no longer has; start a "
            f"new run with soap or adamw, or finish it with chordflow {base.get('chordflow_version', '0.1.0')}."
        )
    sha256, init_sha256, held_out = base.get("teacher_sha256"), base.get("init_sha256"), base.get(HELD_OUT)
    couplings_sha256, number = base.get("couplings_sha256"), base.get("round", 1)
    for name in BESIDE_SETTINGS:
        base.pop(name, None)
    # The run may have been moved since: it is where its checkpoint is.
    base["output_dir"] = str(folder_of_run(checkpoint, number, base.get("rounds", 1)))
    saved = settle(ReflowJobConfig, {}, base)
    config = settle(ReflowJobConfig, given, _without_unused_auto(given, base))
    _refuse_another_run(config, saved, given, drops=held_out is not None and _drops(config, saved))
    _check_rounds(config, saved, number)
    check_same_teacher(config, sha256, init_sha256)
    if number == 1:
        # Later rounds make their own couplings.
        check_same_store(config, saved, couplings_sha256)
    return config, checkpoint


def _base(given: dict[str, Any], config_path: str | None) -> dict[str, Any]:
    """The settings of a file, over those of the store of couplings that is trained from, over those of a recipe."""
    base = _without_unused_auto(given, read_settings(config_path) if config_path else {})
    # The record beside a student serves as settings too: of a new run.
    for beside in (*BESIDE_SETTINGS, "resume"):
        base.pop(beside, None)
    both = merge(base, given)
    name = both.get("recipe")
    under = recipe(str(name)).overrides if name is not None else {}
    path, used = look_up(both, "couplings.path"), str(look_up(both, "couplings.num_observations"))
    if path is None:
        return merge(under, base)
    # Whatever else is said of them is refused with all other options.
    stored = training_settings(Path(str(path)), int(used) if used.isdecimal() else None)
    return merge(merge(under, stored), base)


def _without_unused_auto(given: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """The settings of a file without those of `rounds=auto`, where the options name a number of rounds instead."""
    if given.get("rounds", AUTO) == AUTO:
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
    config: ReflowJobConfig, saved: ReflowJobConfig, given: dict[str, Any], *, drops: bool
) -> None:
    now, before = draccus.encode(config), draccus.encode(saved)
    for name in dotted(given, {option.name for option in options_of(ReflowJobConfig, now)}):
        changeable = name.startswith(CHANGEABLE) and name not in FIXED
        # What was trained on goes on to be, and what was held out to be measured on.
        changeable |= name == "dataset.episodes" and drops
        if changeable or look_up(now, name) == look_up(before, name):
            continue
        can = "can only leave some of them out" if name == "dataset.episodes" else "cannot change it"
        raise UserError(
            f"{name}={show_value(look_up(given, name))}: the run began with {show_value(look_up(before, name))} and "
            f"resuming {can}; leave the option out, or start a new run."
        )
