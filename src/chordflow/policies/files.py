"""The files of a LeRobot checkpoint: found, read as they are, pointed to a vision-language model that has moved.

A checkpoint is LeRobot's `pretrained_model` folder: `config.json`, `model.safetensors`, the two processor
files and their tensors.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from chordflow.disk import write_json
from chordflow.errors import UserError
from chordflow.policies.base import FlowPolicy
from chordflow.policies.exported import refuse_exported
from chordflow.policies.registry import adapter_for, supported_families

CARD = "README.md"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREPROCESSOR = "policy_preprocessor.json"
POSTPROCESSOR = "policy_postprocessor.json"
TRAIN_CONFIG = "train_config.json"

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$|^[\w-]+$")


def downloaded(name: str, revision: str | None, patterns: list[str], where: str, remedy: str) -> Path:
    """The local folder of a Hub repository, fetched where it is not there yet.

    Raises:
        UserError: where the Hub cannot be reached or has no such repository, of `where` and with the `remedy`.
    """
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
        raise UserError(
            f"{where}: there is no such folder, and the Hub has no reachable repository of that name; {remedy}."
        ) from error


def find_checkpoint(path: str | Path, revision: str | None = None, field: str = "teacher.path") -> Path:
    """The local folder of a checkpoint or adapter, fetched from the Hub where `path` is a repository id.

    Args:
        path: a folder that holds `config.json`, a run's folder with checkpoints in it, or a Hub id.
        revision: branch, tag or commit on the Hub.
        field: the option that the path came from, for the message.

    Raises:
        UserError: if neither a folder nor a reachable repository, if it is of a family without adapter, or if a
            file is missing.
    """
    folder = Path(path)
    if folder.is_dir():
        refuse_exported(folder, field)
        # A step's folder, or that of a whole run, stands for the checkpoint in it.
        for inside in ("pretrained_model", "checkpoints/last/pretrained_model"):
            if not (folder / CONFIG).is_file() and (folder / inside / CONFIG).is_file():
                folder = folder / inside
    elif looks_like_hub_id(str(path)):
        wanted, remedy = ["*.json", "*.safetensors", CARD], "check the path, the id, and the network"
        folder = downloaded(str(path), revision, wanted, f"{field}={path}", remedy)
    else:
        raise UserError(
            f"{field}={path}: there is no such folder; give a checkpoint's pretrained_model folder."
        )
    _require_file(folder, CONFIG, field)
    # Before the other files: what a checkpoint lacks does not matter if it cannot be reflowed at all.
    check_family(folder, field)
    whole = (folder / WEIGHTS).is_file() or not read_config(folder, field).get("use_peft")
    weights = [WEIGHTS] if whole and not is_adapter(folder, field) else [ADAPTER_CONFIG, ADAPTER_WEIGHTS]
    for name in (*weights, PREPROCESSOR, POSTPROCESSOR):
        _require_file(folder, name, field)
    return folder


def _require_file(folder: Path, name: str, field: str) -> None:
    if not (folder / name).is_file():
        migrate = (
            " (one from before LeRobot had processors is converted by: python -m "
            "lerobot.processor.migrate_policy_normalization)"
        )
        raise UserError(
            f"{field}={folder}: the file {name} is missing; give a complete pretrained_model folder"
            f"{migrate if name in (PREPROCESSOR, POSTPROCESSOR) else ''}."
        )


def looks_like_hub_id(value: str) -> bool:
    """Whether a name may be a repository's on the Hub."""
    return bool(_HUB_ID.match(value)) and not Path(value).is_absolute()


def is_adapter(folder: Path, field: str = "teacher.path") -> bool:
    """Whether a folder holds a PEFT adapter: where it holds whole weights too, LeRobot goes by `use_peft`."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return False
    return bool(read_config(folder, field).get("use_peft")) or not (folder / WEIGHTS).is_file()


def check_family(folder: Path, field: str = "teacher.path") -> str:
    """The LeRobot policy type of a checkpoint.

    Raises:
        UserError: if there is no adapter for it.
    """
    config = read_config(folder, field)
    family, model = config.get("type"), config.get("model_type")
    if family is None:
        remedy = (
            f"it is a model of transformers' (model_type={model}): give a policy that LeRobot has saved."
            if model
            else "restore it from a good copy."
        )
        raise UserError(f"{field}={folder}: {CONFIG} names no policy type; {remedy}")
    if family not in supported_families():
        adapter_for(str(family), f"{field}={folder}: {CONFIG}")
    return str(family)


def read_config(folder: Path, field: str = "teacher.path") -> dict[str, Any]:
    """The raw `config.json`; raises UserError if it is no JSON object."""
    return read_json(folder / CONFIG, field)


def read_json(file: Path, field: str) -> dict[str, Any]:
    """A JSON object; raises UserError if it is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(
            f"{field}={file.parent}: {file.name} is not valid JSON; restore it from a good copy."
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{field}={file.parent}: {file.name} is not a JSON object; restore it from a good copy."
        )
    return content


def check_assets(folder: Path, adapter: type[FlowPolicy], field: str = "teacher.path") -> None:
    """Makes sure that the models and tokenizers that a checkpoint names, in its adapter's fields, can be found.

    Raises:
        UserError: naming `chordflow relocate` where a local folder has moved, or for a policy that LeRobot has given
            up, whose models need not be looked for.
    """
    adapter.check_saved(read_config(folder, field), f"{field}={folder}: {CONFIG}")
    relocate = f"run: chordflow relocate {folder} --vlm.path=FOLDER"
    for name in (CONFIG, PREPROCESSOR):
        for holder, key in _assets(folder, name, adapter, field)[1]:
            value = str(holder[key])
            where = f"{field}={folder}: {key}={value} in {name}"
            if not looks_like_hub_id(value) and not Path(value).is_dir():
                raise UserError(f"{where} does not exist; {relocate}")
            # Once, here: transformers would try every file of it many times over.
            if not Path(value).is_dir() and not _is_on_hub(value):
                raise UserError(
                    f"{where} is neither in the local Hub cache nor on a Hub within reach; fetch it once while online, "
                    f"or {relocate}"
                )


def _is_on_hub(repo_id: str) -> bool:
    """Whether a repository is in the Hub's cache or on a Hub within reach."""
    if isinstance(try_to_load_from_cache(repo_id, CONFIG), str):
        return True
    try:
        HfApi().model_info(repo_id, timeout=20)
    except (HFValidationError, httpx.HTTPError, OSError):
        return False
    return True


def _assets(
    folder: Path, name: str, adapter: type[FlowPolicy], field: str
) -> tuple[dict[str, Any], list[tuple[dict[str, Any], str]]]:
    """A checkpoint's file, and every dictionary in it with its key that names a model or tokenizer outside."""
    if not (folder / name).is_file():
        return {}, []
    content = read_json(folder / name, field)
    if name == PREPROCESSOR:
        steps = content.get("steps")
        # LeRobot reports what is no step at all.
        steps = [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []
        holders, keys = [step.get("config") for step in steps], adapter.processor_assets
    else:
        policy = content.get("policy")
        holders, keys = [policy if isinstance(policy, dict) else content], adapter.config_assets
    return content, [
        (holder, key) for holder in holders if isinstance(holder, dict) for key in keys if holder.get(key)
    ]


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
        files = {
            name: _assets(folder, name, adapter, "relocate") for name in (CONFIG, TRAIN_CONFIG, PREPROCESSOR)
        }
        names = [str(holder[key]) for name in (CONFIG, PREPROCESSOR) for holder, key in files[name][1]]
        if not names:
            raise UserError(f"{folder}: this checkpoint names no model outside of it; nothing to relocate.")
        places = _new_places(folder, list(dict.fromkeys(names)), vlm_dir)
        for name, (content, assets) in files.items():
            for holder, key in assets:
                old = str(holder[key])
                if old in places:
                    adapter.check_asset(key, places[old])
                if places.get(old, old) != old:
                    holder[key] = places[old]
                    changed[folder / name] = content
    for file, content in changed.items():
        try:
            write_json(file, content)
        except OSError as error:
            raise UserError(
                f"{file} cannot be written ({error.strerror}); make the folder writable and run it again."
            ) from error
    return list(changed)


def _new_places(folder: Path, names: list[str], given: str | Path | None) -> dict[str, str]:
    """Where each model that a checkpoint names is now."""
    if given is None:
        return {name: _found_above(folder, name) for name in names}
    moved = [name for name in names if not Path(name).is_dir()] or names
    if len(moved) > 1:
        # Of several models the one of the given folder's name is meant.
        moved = [name for name in moved if Path(name).name == Path(given).name]
    if not moved:
        raise UserError(
            f"vlm.path={given}: {folder} names the models {', '.join(names)}, and none of them is called "
            f"{Path(given).name!r}; give the folder its old name."
        )
    if not _is_model(Path(given)):
        raise UserError(
            f"vlm.path={given}: this folder holds no model and no tokenizer (config.json, tokenizer_config.json); "
            "give the folder that the checkpoint was built on."
        )
    return dict.fromkeys(moved, str(Path(given).resolve()))


def _found_above(folder: Path, name: str) -> str:
    """The folder of a model's name in or above a checkpoint's, or where it was."""
    own = Path(name).name
    for candidate in [place / own for place in (folder, *list(folder.parents)[:6])] + [Path(name)]:
        if _is_model(candidate):
            return str(candidate.resolve())
    raise UserError(
        f"{folder}: no folder named {own!r} is in or above this checkpoint; give it with --vlm.path=FOLDER."
    )


def _is_model(folder: Path) -> bool:
    return any((folder / file).is_file() for file in ("config.json", "tokenizer_config.json"))
