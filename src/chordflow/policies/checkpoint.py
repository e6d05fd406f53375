"""Loading and saving LeRobot checkpoints.

A checkpoint is LeRobot's `pretrained_model` folder: `config.json`, `model.safetensors`, the two processor
files and their tensors.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import torch
from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from lerobot.utils.device_utils import is_torch_device_available
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from chordflow.errors import UserError, machine_refuses, reason
from chordflow.policies.base import FlowPolicy
from chordflow.policies.registry import adapter_for, supported_families
from chordflow.quiet import quiet_stdout

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PREPROCESSOR = "policy_preprocessor.json"
POSTPROCESSOR = "policy_postprocessor.json"
TRAIN_CONFIG = "train_config.json"

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$|^[\w-]+$")


def resolve_checkpoint(path: str | Path, revision: str | None = None, field: str = "teacher.path") -> Path:
    """The local folder of a checkpoint, fetched from the Hub where `path` is a repository id.

    Args:
        path: a folder that holds `config.json`, or a Hub id.
        revision: branch, tag or commit on the Hub.
        field: the option that the path came from, for the message.

    Raises:
        UserError: if neither a folder nor a reachable repository, if it is of a family without adapter, or if a
            file is missing.
    """
    folder = Path(path)
    if folder.is_dir():
        if not (folder / CONFIG).is_file() and (folder / "pretrained_model" / CONFIG).is_file():
            folder = folder / "pretrained_model"
    elif _looks_like_hub_id(str(path)):
        try:
            folder = Path(
                snapshot_download(str(path), revision=revision, allow_patterns=["*.json", "*.safetensors"])
            )
        except (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            httpx.HTTPError,
            OSError,
        ) as error:
            raise UserError(
                f"{field}={path}: there is no such folder, and the Hub has no reachable repository of that "
                "name; check the path, the id, and the network."
            ) from error
    else:
        raise UserError(
            f"{field}={path}: there is no such folder; give a checkpoint's pretrained_model folder."
        )
    _require_file(folder, CONFIG, field)
    # Before the other files: what a checkpoint lacks does not matter if it cannot be reflowed at all.
    check_family(folder, field)
    for name in (WEIGHTS, PREPROCESSOR, POSTPROCESSOR):
        _require_file(folder, name, field)
    return folder


def check_family(folder: Path, field: str = "teacher.path") -> str:
    """The LeRobot policy type of a checkpoint.

    Raises:
        UserError: if there is no adapter for it.
    """
    family = read_config(folder, field).get("type")
    if family is None:
        raise UserError(f"{field}={folder}: {CONFIG} names no policy type; restore it from a good copy.")
    if family not in supported_families():
        raise UserError(
            f"{field}={folder}: {CONFIG} is of policy type {family!r}, which cannot be reflowed; give a checkpoint "
            f"of a flow-matching family that chordflow supports: {', '.join(supported_families())}."
        )
    return str(family)


def read_config(folder: Path, field: str = "teacher.path") -> dict[str, Any]:
    """The raw `config.json`.

    Raises:
        UserError: if it is not a policy's config.
    """
    return read_json(folder / CONFIG, field)


def load_flow_policy(
    path: str | Path,
    *,
    device: str | None = None,
    revision: str | None = None,
    rename_map: Mapping[str, str] | None = None,
    field: str = "teacher.path",
) -> FlowPolicy:
    """Loads a checkpoint through LeRobot's own class and processors and wraps it.

    Args:
        path: a `pretrained_model` folder or a Hub id.
        device: where to put it; by default the config's device, or what is available.
        revision: of a Hub id.
        rename_map: observation keys of the data to keys of the policy, as LeRobot's `--rename_map`.
        field: the option that the path came from, for messages.

    Returns:
        The policy in evaluation mode.

    Raises:
        UserError: for a folder that is incomplete, a family without adapter, broken weights, keys that do
            not match, or a vision-language model that is not where the config says.
    """
    folder = resolve_checkpoint(path, revision, field)
    adapter = adapter_for(check_family(folder, field))
    check_assets(folder, field)
    if device:
        _check_device(device)
    cli_overrides = [f"--device={device}"] if device else []
    with quiet_stdout():
        try:
            config = PreTrainedConfig.from_pretrained(folder, cli_overrides=cli_overrides)
        except Exception as error:
            if machine_refuses(error):
                raise
            # The outermost error names the field, the innermost what is wrong with it.
            raise UserError(
                f"{field}={path}: {CONFIG} is not a config that this LeRobot can read ({_first_line(error)}: "
                f"{reason(error)}); save the checkpoint again with LeRobot 0.6.1."
            ) from error
        _check_weights(folder / WEIGHTS, field)
        try:
            # LeRobot drops keys that do not match in silence unless it is asked to be strict.
            policy = adapter.policy_class.from_pretrained(folder, config=config, strict=True)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except (RuntimeError, SafetensorError) as error:
            raise UserError(
                f"{field}={path}: {WEIGHTS} does not fit {CONFIG} ({_key_problem(error)}); "
                "give weights saved with this config."
            ) from error
        except OSError as error:
            if machine_refuses(error):
                raise
            raise UserError(
                f"{field}={path}: the vision-language model that {CONFIG} names cannot be read "
                f"({_first_line(error)}); run: chordflow relocate {folder} --vlm.path=FOLDER"
            ) from error
        except Exception as error:
            if machine_refuses(error):
                raise
            raise UserError(
                f"{field}={path}: LeRobot cannot build the policy that {CONFIG} describes ({reason(error)}); check "
                f"{CONFIG} and the vision-language model that it names."
            ) from error
        overrides: dict[str, Any] = {"device_processor": {"device": config.device}}
        if rename_map:
            overrides["rename_observations_processor"] = {"rename_map": dict(rename_map)}
        try:
            preprocessor, postprocessor = make_pre_post_processors(
                policy_cfg=config, pretrained_path=str(folder), preprocessor_overrides=overrides
            )
        except Exception as error:
            if machine_refuses(error):
                raise
            raise UserError(
                f"{field}={path}: the processors cannot be loaded ({reason(error)}); "
                f"check {PREPROCESSOR}, {POSTPROCESSOR} and their .safetensors files."
            ) from error
    return adapter(policy, preprocessor, postprocessor)


def check_assets(folder: Path, field: str = "teacher.path") -> None:
    """Makes sure that the vision-language model and the tokenizer that a checkpoint names can be found.

    Raises:
        UserError: naming `chordflow relocate` where a local folder has moved.
    """
    for file, key, value in asset_paths(folder, field):
        if Path(value).is_dir():
            continue
        if _looks_like_hub_id(value):
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


def save_student(
    policy: FlowPolicy, teacher_dir: Path, output_dir: Path, trained: Mapping[str, Tensor], num_steps: int
) -> None:
    """Writes a checkpoint that is the teacher's but for the trained tensors and the step count.

    Frozen tensors are copied from the teacher's file rather than from memory, where LeRobot may have cast
    them: bytes, dtypes and keys stay the teacher's.

    Args:
        policy: the student, for its config.
        teacher_dir: the teacher's local folder.
        output_dir: an empty or absent folder.
        trained: the trained tensors by parameter name.
        num_steps: solver steps to save in the config.

    Raises:
        UserError: if a trained tensor has no place in the teacher's file.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    tensors = load_file(teacher_dir / WEIGHTS)
    with safe_open(teacher_dir / WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    for name, tensor in trained.items():
        if name not in tensors:
            raise UserError(
                f"the teacher's {WEIGHTS} has no tensor {name!r}; it shares weights that are trained."
            )
        tensors[name] = tensor.detach().to("cpu", tensors[name].dtype).contiguous()
    save_file(tensors, output_dir / WEIGHTS, metadata=metadata)
    saved = policy.default_num_steps
    policy.set_num_steps(num_steps)
    try:
        policy.config.save_pretrained(output_dir)
    finally:
        policy.set_num_steps(saved)
    # Everything else that the processors consist of, and nothing of the teacher's training.
    for file in teacher_dir.iterdir():
        if file.name.startswith(("policy_preprocessor", "policy_postprocessor")):
            shutil.copyfile(file, output_dir / file.name)


def write_json(file: Path, content: Any) -> None:
    """Writes JSON beside `file` and renames it over it."""
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        temporary.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _require_file(folder: Path, name: str, field: str) -> None:
    if not (folder / name).is_file():
        raise UserError(
            f"{field}={folder}: the file {name} is missing; give a complete pretrained_model folder (one from before "
            "LeRobot had processors is converted by: python -m lerobot.processor.migrate_policy_normalization)."
            if name in (PREPROCESSOR, POSTPROCESSOR)
            else f"{field}={folder}: the file {name} is missing; give a complete pretrained_model folder."
        )


def _check_device(device: str) -> None:
    # LeRobot itself falls back to another device with a warning.
    try:
        available = is_torch_device_available(device)
    except ValueError:
        available = False
    if not available:
        raise UserError(
            f"device={device} is not available here; give cpu, cuda or mps, whichever this machine has."
        )


def _looks_like_hub_id(value: str) -> bool:
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


def asset_paths(folder: Path, field: str = "checkpoint") -> Iterator[tuple[str, str, str]]:
    """(file, key, value) of every place in which a checkpoint names a model or tokenizer."""
    config = read_json(folder / CONFIG, field)
    if config.get("vlm_model_name"):
        yield CONFIG, "vlm_model_name", str(config["vlm_model_name"])
    if (folder / PREPROCESSOR).is_file():
        for step in processor_steps(read_json(folder / PREPROCESSOR, field)):
            name = step["config"].get("tokenizer_name")
            if name:
                yield PREPROCESSOR, "tokenizer_name", str(name)


def processor_steps(processor: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of a processor file that have settings; LeRobot complains of what is no step at all."""
    steps = processor.get("steps")
    if not isinstance(steps, list):
        return []
    return [step for step in steps if isinstance(step, dict) and isinstance(step.get("config"), dict)]


def _check_weights(file: Path, field: str) -> None:
    try:
        with safe_open(file, framework="pt") as handle:
            if not list(handle.keys()):
                raise UserError(
                    f"{field}={file.parent}: {file.name} holds no tensors; give complete weights."
                )
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{field}={file.parent}: {file.name} is cut or broken ({error}); copy it again."
        ) from error


def _key_problem(error: BaseException) -> str:
    """What LeRobot's loader complains of, cut to its first items."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[1:] if len(lines) > 1 else lines)
    return text if len(text) <= 300 else text[:300] + " ..."


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 200 else text[:200] + " ..."
