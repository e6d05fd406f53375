"""Loading and saving LeRobot checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from lerobot.utils.device_utils import is_torch_device_available
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from chordflow.errors import UserError, machine_refuses, reason
from chordflow.policies.base import FlowPolicy
from chordflow.policies.files import (
    CONFIG,
    POSTPROCESSOR,
    PREPROCESSOR,
    WEIGHTS,
    check_assets,
    check_family,
    resolve_checkpoint,
)
from chordflow.policies.realtime import guidance_weight
from chordflow.policies.registry import adapter_for
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
    for name, tensor in trained.items():
        if name not in tensors:
            raise UserError(
                f"the teacher's {WEIGHTS} has no tensor {name!r}; it shares weights that are trained."
            )
        tensors[name] = tensor.detach().to("cpu", tensors[name].dtype).contiguous()
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
