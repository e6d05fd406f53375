"""Mending a checkpoint whose vision-language model has moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chordflow.errors import UserError
from chordflow.policies.files import (
    CONFIG,
    PREPROCESSOR,
    TRAIN_CONFIG,
    asset_paths,
    processor_steps,
    read_json,
    write_json,
)


def relocate(checkpoint_dir: str | Path, vlm_dir: str | Path | None = None) -> list[Path]:
    """Points a checkpoint, or every checkpoint under a run's folder, to a vision-language model that moved.

    Rewrites `vlm_model_name` in `config.json` and `train_config.json` and `tokenizer_name` in
    `policy_preprocessor.json` to the absolute path, each file by rename.

    Args:
        checkpoint_dir: a `pretrained_model` folder, or a folder with several below it.
        vlm_dir: the new folder; by default one of the old folder's name is looked for in and above the
            checkpoint.

    Returns:
        The files that were changed.

    Raises:
        UserError: if there is no checkpoint, or no such folder.
    """
    root = Path(checkpoint_dir)
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; give a checkpoint's pretrained_model folder.")
    checkpoints = sorted({file.parent.resolve() for file in root.rglob(PREPROCESSOR)})
    checkpoints = [folder for folder in checkpoints if (folder / CONFIG).is_file()]
    if not checkpoints:
        raise UserError(
            f"{root}: no checkpoint (config.json with policy_preprocessor.json) is in this folder."
        )
    targets: dict[Path, Path] = {}
    for folder in checkpoints:
        names = [value for _, _, value in asset_paths(folder)]
        if not names:
            raise UserError(f"{folder}: this checkpoint names no vision-language model; nothing to relocate.")
        targets[folder] = _find_vlm(folder, names, vlm_dir)
    # Everything is read before anything is written.
    changed: dict[Path, dict[str, Any]] = {}
    for folder, target in targets.items():
        for name, setter in ((CONFIG, _set_vlm), (TRAIN_CONFIG, _set_vlm), (PREPROCESSOR, _set_tokenizer)):
            file = folder / name
            if not file.is_file():
                continue
            content = read_json(file, "relocate")
            if setter(content, str(target)):
                changed[file] = content
    for file, content in changed.items():
        try:
            write_json(file, content)
        except OSError as error:
            raise UserError(
                f"{file} cannot be written ({error.strerror}); make the folder writable and run it again."
            ) from error
    return list(changed)


def _set_vlm(content: dict[str, Any], target: str) -> bool:
    holder = content.get("policy") if isinstance(content.get("policy"), dict) else content
    if holder is None or holder.get("vlm_model_name") in (None, target):
        return False
    holder["vlm_model_name"] = target
    return True


def _set_tokenizer(content: dict[str, Any], target: str) -> bool:
    changed = False
    for step in processor_steps(content):
        if step["config"].get("tokenizer_name") not in (None, target):
            step["config"]["tokenizer_name"] = target
            changed = True
    return changed


def _find_vlm(folder: Path, names: list[str], vlm_dir: str | Path | None) -> Path:
    if vlm_dir is not None:
        candidates = [Path(vlm_dir)]
    else:
        below = [Path(name).name for name in dict.fromkeys(names)]
        candidates = [place / name for place in (folder, *list(folder.parents)[:6]) for name in below]
        candidates += [Path(name) for name in names]
    for candidate in candidates:
        if (candidate / "config.json").is_file() and (candidate / "tokenizer_config.json").is_file():
            return candidate.resolve()
    if vlm_dir is not None:
        raise UserError(
            f"vlm.path={vlm_dir}: this folder holds no model with a tokenizer (config.json, tokenizer_config.json); "
            "give the folder that the checkpoint was built on."
        )
    raise UserError(
        f"{folder}: no folder named {Path(names[0]).name!r} is in or above this checkpoint; "
        "give it with --vlm.path=FOLDER."
    )
