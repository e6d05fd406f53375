"""The settings of a job: what a user gave, over those of a file or of the run that is resumed.

What cannot be used is refused with a `UserError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import draccus

from chordflow.couplings.store import MANIFEST, read_manifest
from chordflow.errors import UserError
from chordflow.experiments.config import AUTO, RECIPES, CoupleConfig, ReflowJobConfig
from chordflow.experiments.diagnose import DiagnoseConfig
from chordflow.experiments.evaluate import EVALUATE_CONFIG
from chordflow.experiments.evaluate_config import EvaluateConfig
from chordflow.experiments.export import ExportConfig
from chordflow.experiments.provenance import BESIDE_SETTINGS, HELD_OUT, check_same_store, check_same_teacher
from chordflow.experiments.run_folder import REFLOW_CONFIG, folder_of_run, resume_folder
from chordflow.experiments.stored_couplings import training_settings
from chordflow.options import merge, options_of, read_settings, settle
from chordflow.quiet import quiet_stdout
from chordflow.refusing import CONFIG_PATH, dotted, look_up, show_value, spelt_out
from chordflow.rollouts.environments import register_environments

CHANGEABLE = (
    "resume", "rounds", "auto_rounds.", "steps", "batch_size", "gradient_accumulation_steps",
    "save_freq", "save_minutes", "log_freq", "num_workers", "device", "teacher.path", "student.init_path",
    "dataset.root", "couplings.path", "collect.num_workers", "dataset.video_backend", "tolerance_s", "optimizer.",
    "scheduler.", "measure.", "policy.", "wandb.",
)  # fmt: skip
"""What of a run of reflow may be another when it is resumed; all else would make it another run."""

FIXED = ("optimizer.type",)
"""What of that may not: another optimiser cannot use the state."""


def diagnose_settings(given: Mapping[str, Any]) -> DiagnoseConfig:
    """The settings of a diagnosis."""
    return _settled(DiagnoseConfig, given)


def export_settings(given: Mapping[str, Any]) -> ExportConfig:
    """The settings of an export."""
    return _settled(ExportConfig, given)


def _settled[T](config_class: type[T], given: Mapping[str, Any]) -> T:
    given, path = split_path(given)
    return settle(config_class, given, read_settings(path) if path else None)


def evaluate_settings(given: Mapping[str, Any]) -> EvaluateConfig:
    """The settings of an evaluation, over those of the one that is resumed."""
    with quiet_stdout():
        register_environments()
    given, path = split_path(given)
    base = read_settings(path) if path else {}
    if given.get("resume") is True:
        if path is None:
            raise UserError(f"resume=true needs --config_path=OUTPUT_DIR/{EVALUATE_CONFIG}.")
        # The run may have been moved since: it is where its settings are.
        base["output_dir"] = str(Path(path).resolve().parent)
    return settle(EvaluateConfig, given, base)


def couple_settings(given: Mapping[str, Any]) -> CoupleConfig:
    """The settings of a store of couplings, over those of the store that is resumed."""
    given, path = split_path(given)
    base: dict[str, Any] = {}
    if path is not None and Path(path).name == MANIFEST and Path(path).exists():
        folder = Path(path).parent
        # The store may have been moved and made larger since: it is where its manifest is.
        base = {**read_manifest(folder, CONFIG_PATH).about["settings"], "output_dir": str(folder)}
        base["num_observations"] = None
    elif path is not None:
        base = read_settings(path)
    if given.get("resume") is True and not base and "output_dir" not in given:
        raise UserError(
            f"resume=true needs --config_path=STORE/{MANIFEST}, or the options of the store again."
        )
    return settle(CoupleConfig, given, base)


def reflow_settings(given: Mapping[str, Any]) -> tuple[ReflowJobConfig, Path | None]:
    """The settings of reflow, and the checkpoint to resume from."""
    with quiet_stdout():
        register_environments()
    given, config_path = split_path(spelt_out(given, options_of(ReflowJobConfig)))
    if given.get("resume") is not True:
        config = settle(ReflowJobConfig, given, _base(given, config_path))
        settings = draccus.encode(config)
        if config.recipe is not None and merge(settings, RECIPES[config.recipe]) != settings:
            config.recipe = None
        return config, None
    if config_path is None:
        raise UserError(
            "resume=true needs --config_path=OUTPUT_DIR/checkpoints/last/pretrained_model/train_config.json."
        )
    checkpoint = resume_folder(config_path)
    record = read_settings(checkpoint / "pretrained_model" / REFLOW_CONFIG)
    if look_up(record, "optimizer.type") == "muon":
        raise UserError(
            f"optimizer.type=muon: the run of {config_path} began with Muon, which chordflow no longer has; start a "
            "new run with soap or adamw."
        )
    number = record.get("round", 1)
    base = {name: value for name, value in record.items() if name not in BESIDE_SETTINGS}
    # The run may have been moved since: it is where its checkpoint is.
    base["output_dir"] = str(folder_of_run(checkpoint, number, base.get("rounds", 1)))
    saved = settle(ReflowJobConfig, {}, base)
    config = settle(ReflowJobConfig, given, _without_unused_auto(given, base))
    _refuse_another_run(config, saved, given, knows_held_out=record.get(HELD_OUT) is not None)
    _check_rounds(config, saved, number)
    check_same_teacher(config, record)
    if number == 1:
        # Later rounds make their own couplings.
        check_same_store(config, record)
    return config, checkpoint


def _base(given: dict[str, Any], config_path: str | None) -> dict[str, Any]:
    """The settings of a file, over those of the store of couplings that is trained from, over those of a recipe."""
    # The record beside a student serves as settings too: of a new run, which must not replace that student on the Hub.
    file = read_settings(config_path) if config_path else {}
    left_out = (*BESIDE_SETTINGS, "resume", *["policy"] * ("chordflow_version" in file))
    base = {name: value for name, value in file.items() if name not in left_out}
    base = _without_unused_auto(given, base)
    both = merge(base, given)
    name = both.get("recipe")
    # An unknown name is refused with all other options, as is any other setting of a store.
    under = RECIPES.get(str(name), {})
    path, used = look_up(both, "couplings.path"), str(look_up(both, "couplings.num_observations"))
    if path is not None:
        under = merge(under, training_settings(Path(str(path)), int(used) if used.isdecimal() else None))
    return merge(under, base)


def _without_unused_auto(given: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """The settings of a file without those of `rounds=auto`, where the options name a number of rounds instead."""
    if given.get("rounds", AUTO) == AUTO:
        return base
    return {name: value for name, value in base.items() if name != "auto_rounds"}


def _check_rounds(config: ReflowJobConfig, saved: ReflowJobConfig, number: int) -> None:
    """Makes sure that a run, at this round, is resumed with a number of rounds that its folder has room for."""
    rounds, before = config.rounds, saved.rounds
    if before == 1:
        if rounds != 1:
            raise UserError(
                f"rounds={rounds}: the run began with one round, whose folder has no room for more; leave the option "
                f"out, or start a new run with --rounds={rounds}."
            )
    elif rounds == AUTO:
        if config.auto_rounds.most < number:
            raise UserError(
                f"auto_rounds.most={config.auto_rounds.most}: the checkpoint is of round {number}; give at least that "
                "many."
            )
    elif rounds != before and rounds < max(2, number):
        of = "" if before == AUTO else f" of {before}"
        raise UserError(
            f"rounds={rounds}: the checkpoint is of round {number}{of}; give at least {max(2, number)}."
        )


def _refuse_another_run(
    config: ReflowJobConfig, saved: ReflowJobConfig, given: dict[str, Any], *, knows_held_out: bool
) -> None:
    now, before = draccus.encode(config), draccus.encode(saved)
    for name in dotted(given, {option.name for option in options_of(ReflowJobConfig, now)}):
        changeable = name.startswith(CHANGEABLE) and name not in FIXED
        if changeable or look_up(now, name) == look_up(before, name):
            continue
        can = "cannot change it"
        if name == "dataset.episodes":
            # The observations to train on and to measure on stay the same.
            kept, all_of_them = config.dataset.episodes, saved.dataset.episodes
            if knows_held_out and kept is not None and (all_of_them is None or set(kept) <= set(all_of_them)):
                continue
            can = "can only leave some of them out"
        raise UserError(
            f"{name}={show_value(look_up(given, name))}: the run began with {show_value(look_up(before, name))} and "
            f"resuming {can}; leave the option out, or start a new run."
        )


def split_path(given: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """What was given, and the file of settings that it names."""
    rest = dict(given)
    path = rest.pop(CONFIG_PATH, None)
    return rest, None if path is None else str(path)
