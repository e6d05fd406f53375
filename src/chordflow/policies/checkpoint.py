"""Loading, saving and relocating LeRobot checkpoints.

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

from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from chordflow.errors import UserError
from chordflow.policies.base import FlowPolicy
from chordflow.policies.registry import adapter_for
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
        UserError: if neither a folder nor a reachable repository, or if a file is missing.
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
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise UserError(
                f"{field}={path}: there is no such folder, and the Hub has no reachable repository of that "
                "name; check the path, the id, and the network."
            ) from error
    else:
        raise UserError(
            f"{field}={path}: there is no such folder; give a checkpoint's pretrained_model folder."
        )
    for name in (CONFIG, WEIGHTS, PREPROCESSOR, POSTPROCESSOR):
        if not (folder / name).is_file():
            raise UserError(
                f"{field}={path}: the file {name} is missing; give a complete pretrained_model folder."
            )
    return folder


def read_config(folder: Path, field: str = "teacher.path") -> dict[str, Any]:
    """The raw `config.json`.

    Raises:
        UserError: if it is not a policy's config.
    """
    return _read_json(folder / CONFIG, field)


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
    family = str(read_config(folder, field).get("type"))
    adapter = adapter_for(family)
    check_assets(folder, field)
    cli_overrides = [f"--device={device}"] if device else []
    with quiet_stdout():
        try:
            config = PreTrainedConfig.from_pretrained(folder, cli_overrides=cli_overrides)
        except Exception as error:
            raise UserError(
                f"{field}={path}: {CONFIG} is not a config that this LeRobot can read ({_first_line(error)}); "
                "save the checkpoint again with LeRobot 0.6.1."
            ) from error
        _check_weights(folder / WEIGHTS, field)
        try:
            # LeRobot drops keys that do not match in silence unless it is asked to be strict.
            policy = adapter.policy_class.from_pretrained(folder, config=config, strict=True)
        except (RuntimeError, SafetensorError, KeyError) as error:
            raise UserError(
                f"{field}={path}: {WEIGHTS} does not fit {CONFIG} ({_key_problem(error)}); "
                "give weights saved with this config."
            ) from error
        except OSError as error:
            raise UserError(
                f"{field}={path}: the vision-language model that {CONFIG} names cannot be read "
                f"({_first_line(error)}); run: chordflow relocate {folder} --vlm.path=FOLDER"
            ) from error
        overrides: dict[str, Any] = {"device_processor": {"device": config.device}}
        if rename_map:
            overrides["rename_observations_processor"] = {"rename_map": dict(rename_map)}
        try:
            preprocessor, postprocessor = make_pre_post_processors(
                policy_cfg=config, pretrained_path=str(folder), preprocessor_overrides=overrides
            )
        except Exception as error:
            raise UserError(
                f"{field}={path}: the processors cannot be loaded ({_first_line(error)}); "
                f"check {PREPROCESSOR}, {POSTPROCESSOR} and their .safetensors files."
            ) from error
    return adapter(policy, preprocessor, postprocessor)


def check_assets(folder: Path, field: str = "teacher.path") -> None:
    """Makes sure that the vision-language model and the tokenizer that a checkpoint names can be found.

    Raises:
        UserError: naming `chordflow relocate` where a local folder has moved.
    """
    for file, key, value in _asset_paths(folder):
        if Path(value).is_dir():
            continue
        if _looks_like_hub_id(value):
            if os.environ.get("HF_HUB_OFFLINE") == "1" and not isinstance(
                try_to_load_from_cache(value, "config.json"), str
            ):
                raise UserError(
                    f"{field}={folder}: {key}={value} in {file} is not in the local Hub cache and there is no "
                    f"network; fetch it once while online, or run: chordflow relocate {folder} --vlm.path=FOLDER"
                )
            continue
        raise UserError(
            f"{field}={folder}: {key}={value} in {file} does not exist; "
            f"run: chordflow relocate {folder} --vlm.path=FOLDER"
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
        names = [value for _, _, value in _asset_paths(folder)]
        if not names:
            raise UserError(f"{folder}: this checkpoint names no vision-language model; nothing to relocate.")
        targets[folder] = _find_vlm(folder, names, vlm_dir)
    changed = []
    for folder, target in targets.items():
        for name, setter in ((CONFIG, _set_vlm), (TRAIN_CONFIG, _set_vlm), (PREPROCESSOR, _set_tokenizer)):
            file = folder / name
            if not file.is_file():
                continue
            content = _read_json(file, "relocate")
            if setter(content, str(target)):
                write_json(file, content)
                changed.append(file)
    return changed


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
    temporary.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, file)


def _looks_like_hub_id(value: str) -> bool:
    return bool(_HUB_ID.match(value)) and not Path(value).is_absolute()


def _read_json(file: Path, field: str) -> dict[str, Any]:
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


def _asset_paths(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(file, key, value) of every place in which a checkpoint names a model or tokenizer."""
    config = _read_json(folder / CONFIG, "checkpoint")
    if config.get("vlm_model_name"):
        yield CONFIG, "vlm_model_name", config["vlm_model_name"]
    if (folder / PREPROCESSOR).is_file():
        for step in _read_json(folder / PREPROCESSOR, "checkpoint").get("steps", []):
            name = step.get("config", {}).get("tokenizer_name")
            if name:
                yield PREPROCESSOR, "tokenizer_name", name


def _set_vlm(content: dict[str, Any], target: str) -> bool:
    holder = content.get("policy") if isinstance(content.get("policy"), dict) else content
    if holder is None or holder.get("vlm_model_name") in (None, target):
        return False
    holder["vlm_model_name"] = target
    return True


def _set_tokenizer(content: dict[str, Any], target: str) -> bool:
    changed = False
    for step in content.get("steps", []):
        if step.get("config", {}).get("tokenizer_name") not in (None, target):
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


def _check_weights(file: Path, field: str) -> None:
    try:
        with safe_open(file, framework="pt") as handle:
            if not list(handle.keys()):
                raise UserError(
                    f"{field}={file.parent}: {file.name} holds no tensors; give complete weights."
                )
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{field}={file.parent}: {file.name} is cut or broken ({_first_line(error)}); copy it again."
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
