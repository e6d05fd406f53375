"""Mending a checkpoint whose vision-language model has moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chordflow.disk import write_json
from chordflow.errors import UserError
from chordflow.policies.files import (
    CONFIG,
    PREPROCESSOR,
    TRAIN_CONFIG,
    asset_paths,
    check_family,
    processor_steps,
    read_json,
)
from chordflow.policies.registry import adapter_for


def relocate(checkpoint_dir: str | Path, vlm_dir: str | Path | None = None) -> list[Path]:
    """Points a checkpoint, or every checkpoint under a run's folder, to a vision-language model that moved.

    Rewrites the fields that name it (`vlm_model_name`, `tokenizer_name` and the like, as the family's adapter
    knows them) in `config.json`, `train_config.json` and `policy_preprocessor.json` to the absolute path, each
    file by rename.

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
    # Everything is read before anything is written.
    changed: dict[Path, dict[str, Any]] = {}
    for folder in checkpoints:
        adapter = adapter_for(check_family(folder, "relocate"), f"{folder / CONFIG}")
        names = list(dict.fromkeys(value for _, _, value in asset_paths(folder, adapter)))
        if not names:
            raise UserError(f"{folder}: this checkpoint names no model outside of it; nothing to relocate.")
        places = _new_places(folder, names, vlm_dir)
        for name in (CONFIG, TRAIN_CONFIG, PREPROCESSOR):
            file = folder / name
            if not file.is_file():
                continue
            content = read_json(file, "relocate")
            if name == PREPROCESSOR:
                holders = [step["config"] for step in processor_steps(content)]
                keys = adapter.processor_assets
            else:
                policy = content.get("policy")
                holders, keys = [policy if isinstance(policy, dict) else content], adapter.config_assets
            for key in keys:
                for holder in holders:
                    if str(holder.get(key)) in places:
                        adapter.check_asset(key, places[str(holder[key])])
            if _point(holders, keys, places):
                changed[file] = content
    for file, content in changed.items():
        try:
            write_json(file, content)
        except OSError as error:
            raise UserError(
                f"{file} cannot be written ({error.strerror}); make the folder writable and run it again."
            ) from error
    return list(changed)


def _point(holders: list[dict[str, Any]], keys: tuple[str, ...], places: dict[str, str]) -> bool:
    """Writes the new places into the fields `keys`; whether anything changed."""
    changed = False
    for holder in holders:
        for key in keys:
            old = holder.get(key)
            if old is not None and places.get(str(old), str(old)) != str(old):
                holder[key] = places[str(old)]
                changed = True
    return changed


def _new_places(folder: Path, names: list[str], given: str | Path | None) -> dict[str, str]:
    """Where each model that a checkpoint names is now."""
    if given is None:
        return {name: str(_find(folder, name, given)) for name in names}
    moved = [name for name in names if not Path(name).is_dir()] or names
    if len(moved) > 1:
        # Of several models the one of the given folder's name is meant.
        moved = [name for name in moved if Path(name).name == Path(given).name]
    if not moved:
        raise UserError(
            f"vlm.path={given}: {folder} names the models {', '.join(names)}, and none of them is called "
            f"{Path(given).name!r}; give the folder its old name."
        )
    return {name: str(_find(folder, name, given)) for name in moved}


def _find(folder: Path, name: str, given: str | Path | None) -> Path:
    if given is not None:
        candidates = [Path(given)]
    else:
        own = Path(name).name
        candidates = [place / own for place in (folder, *list(folder.parents)[:6])] + [Path(name)]
    for candidate in candidates:
        if any((candidate / file).is_file() for file in ("config.json", "tokenizer_config.json")):
            return candidate.resolve()
    if given is not None:
        raise UserError(
            f"vlm.path={given}: this folder holds no model and no tokenizer (config.json, tokenizer_config.json); "
            "give the folder that the checkpoint was built on."
        )
    raise UserError(
        f"{folder}: no folder named {Path(name).name!r} is in or above this checkpoint; "
        "give it with --vlm.path=FOLDER."
    )
