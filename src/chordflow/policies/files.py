"""The files of a LeRobot checkpoint: found, read as they are, written whole.

A checkpoint is LeRobot's `pretrained_model` folder: `config.json`, `model.safetensors`, the two processor
files and their tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from chordflow.errors import UserError
from chordflow.policies.base import FlowPolicy
from chordflow.policies.registry import adapter_for, supported_families

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREPROCESSOR = "policy_preprocessor.json"
POSTPROCESSOR = "policy_postprocessor.json"
TRAIN_CONFIG = "train_config.json"

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$|^[\w-]+$")


def downloaded(name: str, revision: str | None, patterns: list[str], refusal: str) -> Path:
    """The local folder of a Hub repository, fetched where it is not there yet.

    Args:
        name: of the repository.
        revision: of it; None for its newest.
        patterns: of the files that are wanted.
        refusal: what the error says.

    Raises:
        UserError: where the Hub cannot be reached or has no such repository.
    """
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
        raise UserError(refusal) from error


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
        # A step's folder, or that of a whole run, stands for the checkpoint in it.
        for inside in ("pretrained_model", "checkpoints/last/pretrained_model"):
            if not (folder / CONFIG).is_file() and (folder / inside / CONFIG).is_file():
                folder = folder / inside
    elif looks_like_hub_id(str(path)):
        refusal = (
            f"{field}={path}: there is no such folder, and the Hub has no reachable repository of that name"
        )
        folder = downloaded(
            str(path),
            revision,
            ["*.json", "*.safetensors"],
            f"{refusal}; check the path, the id, and the network.",
        )
    else:
        raise UserError(
            f"{field}={path}: there is no such folder; give a checkpoint's pretrained_model folder."
        )
    _require_file(folder, CONFIG, field)
    # Before the other files: what a checkpoint lacks does not matter if it cannot be reflowed at all.
    check_family(folder, field)
    weights = ADAPTER_WEIGHTS if is_adapter(folder, field) else WEIGHTS
    for name in (weights, PREPROCESSOR, POSTPROCESSOR):
        _require_file(folder, name, field)
    return folder


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
    """The raw `config.json`.

    Raises:
        UserError: if it is not a policy's config.
    """
    return read_json(folder / CONFIG, field)


def check_assets(folder: Path, adapter: type[FlowPolicy], field: str = "teacher.path") -> None:
    """Makes sure that the models and tokenizers that a checkpoint names can be found.

    Args:
        folder: the checkpoint's.
        adapter: its family's, which knows the fields that name them.
        field: the option that the path came from, for messages.

    Raises:
        UserError: naming `chordflow relocate` where a local folder has moved, or for a policy that LeRobot has given
            up, whose models need not be looked for.
    """
    adapter.check_saved(read_config(folder, field), f"{field}={folder}: {CONFIG}")
    for file, key, value in asset_paths(folder, adapter, field):
        if Path(value).is_dir():
            continue
        if looks_like_hub_id(value):
            # Once, here: transformers would try every file of it many times over.
            if not isinstance(try_to_load_from_cache(value, CONFIG), str) and not _is_on_hub(value):
                raise UserError(
                    f"{field}={folder}: {key}={value} in {file} is neither in the local Hub cache nor on a Hub within "
                    f"reach; fetch it once while online, or run: chordflow relocate {folder} --vlm.path=FOLDER"
                )
            continue
        raise UserError(
            f"{field}={folder}: {key}={value} in {file} does not exist; "
            f"run: chordflow relocate {folder} --vlm.path=FOLDER"
        )


def _is_on_hub(repo_id: str) -> bool:
    try:
        HfApi().model_info(repo_id, timeout=20)
    except (HFValidationError, httpx.HTTPError, OSError):
        return False
    return True


def _require_file(folder: Path, name: str, field: str) -> None:
    if not (folder / name).is_file():
        raise UserError(
            f"{field}={folder}: the file {name} is missing; give a complete pretrained_model folder (one from before "
            "LeRobot had processors is converted by: python -m lerobot.processor.migrate_policy_normalization)."
            if name in (PREPROCESSOR, POSTPROCESSOR)
            else f"{field}={folder}: the file {name} is missing; give a complete pretrained_model folder."
        )


def looks_like_hub_id(value: str) -> bool:
    """Whether a name may be a repository's on the Hub."""
    return bool(_HUB_ID.match(value)) and not Path(value).is_absolute()


def read_json(file: Path, field: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: if it is none.
    """
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


def asset_paths(
    folder: Path, adapter: type[FlowPolicy], field: str = "checkpoint"
) -> Iterator[tuple[str, str, str]]:
    """(file, key, value) of every place in which a checkpoint names a model or tokenizer outside of it."""
    config = read_json(folder / CONFIG, field)
    for key in adapter.config_assets:
        if config.get(key):
            yield CONFIG, key, str(config[key])
    if (folder / PREPROCESSOR).is_file():
        for step in processor_steps(read_json(folder / PREPROCESSOR, field)):
            for key in adapter.processor_assets:
                if step["config"].get(key):
                    yield PREPROCESSOR, key, str(step["config"][key])


def processor_steps(processor: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of a processor file that have settings; LeRobot complains of what is no step at all."""
    steps = processor.get("steps")
    if not isinstance(steps, list):
        return []
    return [step for step in steps if isinstance(step, dict) and isinstance(step.get("config"), dict)]
