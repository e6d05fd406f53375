"""Loading and saving LeRobot checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import lerobot
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from lerobot.utils.device_utils import is_torch_device_available
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from chordflow.errors import UserError, machine_refuses, ran_out_of_memory, reason
from chordflow.policies.base import FlowPolicy
from chordflow.policies.files import (
    CONFIG,
    POSTPROCESSOR,
    PREPROCESSOR,
    WEIGHTS,
    check_assets,
    check_family,
    read_config,
    resolve_checkpoint,
)
from chordflow.policies.processors import check_processors
from chordflow.policies.realtime import guidance_weight
from chordflow.policies.registry import adapter_for, missing_packages
from chordflow.policies.trial import try_out
from chordflow.quiet import quiet_stdout


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
            not match, a vision-language model that is not where the config says, processors that do not do what
            the config says, or one that a blank observation does not get through.
    """
    folder = resolve_checkpoint(path, revision, field)
    family = check_family(folder, field)
    where = f"{field}={path}: {CONFIG}"
    adapter = adapter_for(family, where)
    check_assets(folder, adapter, field)
    if device:
        _check_device(device)
    cli_overrides = [f"--device={device}"] if device else []
    with quiet_stdout():
        try:
            config = PreTrainedConfig.from_pretrained(folder, cli_overrides=cli_overrides)
        except Exception as error:
            if machine_refuses(error):
                raise
            if unknown := _unknown_fields(folder, adapter, field):
                raise UserError(
                    f"{where} has fields that LeRobot {lerobot.__version__} does not know ({', '.join(unknown)}): "
                    "it was saved by a newer LeRobot; give a checkpoint of this one, or, where the fields do not "
                    "matter, take them out of a copy."
                ) from error
            # The outermost error names the field, the innermost what is wrong with it.
            raise UserError(
                f"{field}={path}: {CONFIG} is not a config that LeRobot {lerobot.__version__} can read "
                f"({_first_line(error)}: {reason(error)}); it was saved by another release or changed by hand: give a "
                "checkpoint that this release can read."
            ) from error
        _check_weights(folder / WEIGHTS, field)
        # As LeRobot's own commands do: some families fetch their backbone's weights where this is not set.
        before, config.pretrained_path = config.pretrained_path, folder
        try:
            # LeRobot drops keys that do not match in silence unless it is asked to be strict.
            policy = adapter.policy_class.from_pretrained(folder, config=config, strict=True)
        except ImportError as error:
            raise missing_packages(family, f"{where} is of policy type {family!r}", error) from error
        except (RuntimeError, SafetensorError) as error:
            if ran_out_of_memory(error):
                raise
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
            if machine_refuses(error) or ran_out_of_memory(error):
                raise
            raise UserError(
                f"{field}={path}: LeRobot cannot build the policy that {CONFIG} describes ({reason(error)}); check "
                f"{CONFIG} and the vision-language model that it names."
            ) from error
        finally:
            config.pretrained_path = before
        wrapped = adapter(policy, None, None)
        if wrapped.default_num_steps < 1:
            raise UserError(
                f"{where} asks for {wrapped.default_num_steps} solver steps"
                + (f" ({wrapped.steps_field})" if hasattr(wrapped, "steps_field") else "")
                + "; set at least 1."
            )
        check_loaded(wrapped, folder / WEIGHTS, field)
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
                f"{field}={path}: LeRobot {lerobot.__version__} cannot load the processors ({reason(error)}); "
                f"check that {PREPROCESSOR}, {POSTPROCESSOR} and their .safetensors files are whole, and not of a "
                "newer LeRobot."
            ) from error
    loaded = adapter(policy, preprocessor, postprocessor)
    check_processors(loaded, preprocessor, postprocessor, f"{field}={path}")
    try_out(loaded, preprocessor, f"{field}={path}")
    return loaded


def check_loaded(policy: FlowPolicy, file: Path, field: str = "teacher.path") -> None:
    """Makes sure that a policy holds the weights of its file: some loaders swallow what goes wrong.

    Compares the names, and the first numbers of every tensor.

    Raises:
        UserError: naming a tensor that is missing, unexpected, or was not loaded.
    """
    state = policy.module.state_dict()
    where = f"{field}={file.parent}: {WEIGHTS}"
    loaded: set[int] = set()
    with safe_open(file, framework="pt") as handle:
        for key in list(handle.keys()):
            tensor = state.get(policy.parameter_name(key))
            if tensor is None:
                raise UserError(
                    f"{where} holds {key!r}, which is no part of this policy; give its own weights."
                )
            part = handle.get_slice(key)
            shape = tuple(part.get_shape())
            if shape != tuple(tensor.shape):
                raise UserError(
                    f"{where}: {key} has shape {shape}, but {CONFIG} asks for {tuple(tensor.shape)}; give weights "
                    "saved with this config."
                )
            loaded.add(tensor.data_ptr())
            start = part[:1] if shape else handle.get_tensor(key)
            own = tensor[:1] if shape else tensor
            if not torch.allclose(start.to(own.dtype), own.cpu(), rtol=0, atol=0, equal_nan=True):
                raise UserError(
                    f"{where}: {key} was not loaded by LeRobot's {type(policy.module).__name__}; save the checkpoint "
                    f"again with LeRobot {lerobot.__version__}."
                )
    for name, source in policy.filled_from.items():
        own, other = state[name], state[source]
        if own.data_ptr() not in loaded and other.data_ptr() in loaded and torch.equal(own, other):
            loaded.add(own.data_ptr())
    # Tensors that are one and the same are in the file once.
    missing = [name for name, tensor in state.items() if tensor.numel() and tensor.data_ptr() not in loaded]
    if missing:
        raise UserError(
            f"{where} lacks {missing[0]!r}"
            + (f" and {len(missing) - 1} more tensors" if len(missing) > 1 else "")
            + "; give complete weights."
        )


def save_student(
    policy: FlowPolicy, teacher_dir: Path, output_dir: Path, trained: Mapping[str, Tensor], num_steps: int
) -> None:
    """Writes a checkpoint that is the teacher's but for the trained tensors and the step count.

    Frozen tensors are copied from the teacher's file rather than from memory, where LeRobot may have cast
    them: bytes, dtypes and keys stay the teacher's.

    Where the config has an `rtc_config`, its `max_guidance_weight` follows the step count (see
    `policies.realtime.guidance_weight`): the teacher's own would overshoot by the ratio of the steps. Where
    it has none, none is added: with real-time chunking enabled a policy's `select_action`, and so
    `lerobot-eval`, refuses to run. (`lerobot-rollout` replaces the saved one by its `--inference.rtc.*`
    options in any case.)

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
    keys = _keys_by_parameter(policy, tensors, metadata)
    # The loader's copy of another tensor has the last word on it.
    for name, tensor in sorted(trained.items(), key=lambda item: item[0] in policy.filled_from):
        if name not in keys:
            raise UserError(
                f"the teacher's {WEIGHTS} has no tensor {name!r}; it shares weights that are trained."
            )
        key = keys[name]
        tensors[key] = tensor.detach().to("cpu", tensors[key].dtype).contiguous()
    save_file(tensors, output_dir / WEIGHTS, metadata=metadata)
    saved, saved_rtc = policy.default_num_steps, policy.rtc_config
    policy.set_num_steps(num_steps)
    if saved_rtc is not None:
        weight = guidance_weight(num_steps, saved_rtc.max_guidance_weight, saved)
        policy.config.rtc_config = replace(saved_rtc, max_guidance_weight=weight)
    try:
        policy.config.save_pretrained(output_dir)
    finally:
        policy.set_num_steps(saved)
        if saved_rtc is not None:
            policy.config.rtc_config = saved_rtc
    # Everything else that the processors consist of, and nothing of the teacher's training.
    for file in teacher_dir.iterdir():
        if file.name.startswith(("policy_preprocessor", "policy_postprocessor")):
            shutil.copyfile(file, output_dir / file.name)


def _keys_by_parameter(
    policy: FlowPolicy, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None
) -> dict[str, str]:
    """The key in the teacher's file of every parameter name."""
    keys = {policy.parameter_name(key): key for key in tensors}
    # Of tensors that are one and the same, safetensors keeps one and notes the others' names beside it.
    for other, kept in (metadata or {}).items():
        if kept in tensors:
            keys.setdefault(policy.parameter_name(other), kept)
    for name, source in policy.filled_from.items():
        if source in keys:
            keys.setdefault(name, keys[source])
    return keys


def _unknown_fields(folder: Path, adapter: type[FlowPolicy], field: str) -> list[str]:
    """Fields of `config.json` that the installed LeRobot's config class does not have."""
    config_class = getattr(adapter.policy_class, "config_class", None)
    if config_class is None:
        return []
    known = {item.name for item in fields(config_class)} | {"type"}
    return sorted(set(read_config(folder, field)) - known)


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
