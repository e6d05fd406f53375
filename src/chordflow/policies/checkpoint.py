"""Loading and saving LeRobot checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import draccus
import lerobot
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from lerobot.utils.constants import ACTION
from lerobot.utils.device_utils import is_torch_device_available
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from chordflow.console import doing
from chordflow.disk import write_json
from chordflow.errors import UserError, explained, machine_refuses, named, ran_out_of_memory, reason
from chordflow.policies.base import FlowPolicy
from chordflow.policies.files import (
    CONFIG,
    POSTPROCESSOR,
    PREPROCESSOR,
    WEIGHTS,
    check_assets,
    check_family,
    find_checkpoint,
    is_adapter,
    read_config,
    read_json,
)
from chordflow.policies.inputs import check_targets
from chordflow.policies.lora import merged_checkpoint
from chordflow.policies.processors import check_processors, try_out
from chordflow.policies.registry import adapter_for, missing_packages
from chordflow.policies.sampling import guidance_weight
from chordflow.quiet import quiet_stdout


def resolve_checkpoint(path: str | Path, revision: str | None = None, field: str = "teacher.path") -> Path:
    """The local folder of a checkpoint with whole weights; those of a PEFT adapter are made where they are not yet.

    Takes what `find_checkpoint` takes.

    Raises:
        UserError: as `find_checkpoint`, or if an adapter does not fit its base.
    """
    folder = find_checkpoint(path, revision, field)
    if not is_adapter(folder, field):
        return folder
    check_assets(folder, adapter_for(check_family(folder, field)), field)
    return merged_checkpoint(
        folder,
        field,
        lambda base: load_flow_policy(folder, device="cpu", field=field, weights_of=base).module,
    )


@doing("Loading a policy")
def load_flow_policy(
    path: str | Path,
    *,
    device: str | torch.device | None = None,
    revision: str | None = None,
    rename_map: Mapping[str, str] | None = None,
    field: str = "teacher.path",
    weights_of: Path | None = None,
) -> FlowPolicy:
    """Loads a checkpoint through LeRobot's own class and processors and wraps it.

    Args:
        path: a `pretrained_model` folder or a Hub id.
        device: where to put it; by default the config's device, or what is available.
        revision: of a Hub id.
        rename_map: observation keys of the data to keys of the policy, as LeRobot's `--rename_map`.
        field: the option that the path came from, for messages.
        weights_of: a folder whose weights are loaded instead of the checkpoint's own, which may have none.

    Returns:
        The policy in evaluation mode.

    Raises:
        UserError: for a folder that is incomplete, a family without adapter, a device that is not there, broken
            weights, keys that do not match, a vision-language model that is not where the config says, processors
            that do not do what the config says, or one that a blank observation does not get through.
    """
    folder = resolve_checkpoint(path, revision, field) if weights_of is None else Path(path)
    weights = (weights_of or folder) / WEIGHTS
    where = f"{field}={path}"
    family = check_family(folder, field)
    adapter = adapter_for(family, f"{where}: {CONFIG}")
    check_assets(folder, adapter, field)
    cli_overrides = [f"--device={_device_name(device)}"] if device else []
    with quiet_stdout():
        config = _config(folder, adapter, cli_overrides, where)
        _check_weights(weights, field)
        policy = _policy(adapter, family, config, folder, weights, field, where)
        with named(where):
            wrapped = adapter(policy, None, None)
        if wrapped.default_num_steps < 1:
            raise UserError(
                f"{where}: {CONFIG} sets {wrapped.default_num_steps} solver steps ({wrapped.steps_field}); set at "
                "least 1."
            )
        check_loaded(wrapped, weights, field)
        with explained(
            lambda error: (
                f"{where}: LeRobot {lerobot.__version__} cannot load the processors ({reason(error)}); check that "
                f"{PREPROCESSOR}, {POSTPROCESSOR} and their .safetensors files are whole, and of no other LeRobot."
            )
        ):
            preprocessor, postprocessor = make_pre_post_processors(
                policy_cfg=config,
                pretrained_path=str(folder),
                preprocessor_overrides={"device_processor": {"device": config.device}},
                postprocessor_overrides=_to_the_cpu(folder),
            )
    with named(where):
        loaded: FlowPolicy = adapter(policy, preprocessor, postprocessor)
    if rename_map:
        loaded.rename_map = dict(rename_map)
        loaded.replaced_rename_map = _rename(preprocessor, rename_map, where)
        with named(where):
            check_targets(loaded)
    check_processors(loaded, preprocessor, postprocessor, where)
    with named(f"{where}: {CONFIG}"):
        loaded.chunk.check_executed(loaded.chunk.num_executed)
    try_out(loaded, preprocessor, where)
    return loaded


def _to_the_cpu(folder: Path) -> dict[str, Any]:
    """What makes LeRobot load a postprocessor whose actions end where its own do, whatever device it was saved with."""
    steps = read_json(folder / POSTPROCESSOR, "checkpoint").get("steps", [])
    there = any(step.get("registry_name") == "device_processor" for step in steps)
    return {"device_processor": {"device": "cpu"}} if there else {}


def _config(folder: Path, adapter: type[FlowPolicy], cli_overrides: list[str], where: str) -> Any:
    """The config as LeRobot reads it."""

    def sentence(error: Exception) -> str:
        if config_class := getattr(adapter.policy_class, "config_class", None):
            known = {item.name for item in fields(config_class)} | {"type"}
            if unknown := sorted(set(read_config(folder)) - known):
                return (
                    f"{where}: {CONFIG} has fields that LeRobot {lerobot.__version__} does not know "
                    f"({', '.join(unknown)}): it was saved by an older or newer LeRobot; give one of this LeRobot, "
                    "or a copy without these fields, where they do not matter."
                )
        if nulls := _nulls(folder, adapter):
            return f"{where}: {nulls}"
        # The outermost error names the field, the innermost what is wrong with it.
        outer, inner = _cut(str(error).splitlines()[:1]), reason(error)
        return (
            f"{where}: {CONFIG} is not a config that LeRobot {lerobot.__version__} can read "
            f"({inner if outer in inner else f'{outer}: {inner}'}); give a checkpoint of this release, unchanged."
        )

    with explained(sentence):
        config = PreTrainedConfig.from_pretrained(folder, cli_overrides=cli_overrides)
    inputs = ("observations", "input_features", config.input_features)
    for what, field, held in (inputs, (ACTION, "output_features", config.action_feature)):
        if not held:
            raise UserError(f"{where}: {CONFIG} has no {what} in {field}; restore it from a good copy.")
    return config


def _nulls(folder: Path, adapter: type[FlowPolicy]) -> str:
    """What is wrong with a config that LeRobot cannot use and that has null where it knows a default; else empty."""
    config_class = getattr(adapter.policy_class, "config_class", None)
    known = (
        {item.name for item in fields(config_class) if item.default is not None} if config_class else set()
    )
    found = [name for name, value in read_config(folder).items() if value is None and name in known]
    return f"{CONFIG} has null for {', '.join(found)}; restore it from a good copy." if found else ""


def _policy(
    adapter: type[FlowPolicy], family: str, config: Any, folder: Path, weights: Path, field: str, where: str
) -> Any:
    """The policy as LeRobot builds and fills it."""
    # As LeRobot's own commands do: some families fetch their backbone's weights where this is not set.
    before, config.pretrained_path = config.pretrained_path, folder
    try:
        # Keys that do not match are found by `check_loaded`, for every family by the same words.
        return adapter.policy_class.from_pretrained(weights.parent, config=config, strict=False)
    except ImportError as error:
        raise missing_packages(family, f"{where}: {CONFIG} is of policy type {family!r}", error) from error
    except Exception as error:
        if machine_refuses(error) or ran_out_of_memory(error):
            raise
        if isinstance(error, RuntimeError | SafetensorError):
            # The first line of several says only that there are more.
            lines = str(error).splitlines()
            raise UserError(
                f"{field}={weights.parent}: {WEIGHTS} does not fit {CONFIG} ({_cut(lines[1:] or lines)}); give its own."
            ) from error
        if nulls := _nulls(folder, adapter):
            raise UserError(f"{where}: {nulls}") from error
        raise UserError(
            f"{where}: LeRobot cannot build the policy that {CONFIG} describes ({reason(error)}); check {CONFIG} and "
            f"the vision-language model that it names, or run: chordflow relocate {folder} --vlm.path=FOLDER"
        ) from error
    finally:
        config.pretrained_path = before


def _check_weights(file: Path, field: str) -> None:
    try:
        with safe_open(file, framework="pt") as handle:
            empty = not list(handle.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{field}={file.parent}: {file.name} is cut or broken ({error}); copy it again."
        ) from error
    if empty:
        raise UserError(f"{field}={file.parent}: {file.name} holds no tensors; give complete weights.")


def _cut(lines: list[str]) -> str:
    text = " ".join(line.strip() for line in lines)
    return text if len(text) <= 300 else text[:300] + " ..."


def check_loaded(policy: FlowPolicy, file: Path, field: str = "teacher.path") -> None:
    """Makes sure that a policy holds the weights of its file: some loaders swallow what goes wrong.

    Raises:
        UserError: naming a tensor that is missing, unexpected, or was not loaded, by the first numbers of each.
    """
    state = policy.module.state_dict()
    where = f"{field}={file.parent}: {WEIGHTS}"
    loaded: set[int] = set()
    with safe_open(file, framework="pt") as handle:
        keys = list(handle.keys())
        if foreign := [key for key in keys if policy.parameter_name(key) not in state]:
            raise UserError(f"{where} {_why_foreign(policy, foreign, state)}")
        for key in keys:
            tensor = state[policy.parameter_name(key)]
            part = handle.get_slice(key)
            shape = tuple(part.get_shape())
            if shape != tuple(tensor.shape):
                raise UserError(
                    f"{where}: {key} has shape {shape}, but {CONFIG} needs {tuple(tensor.shape)}; give its weights."
                )
            loaded.add(tensor.data_ptr())
            start = part[:1] if shape else handle.get_tensor(key)
            own = tensor[:1] if shape else tensor
            if not torch.allclose(start.to(own.dtype), own.cpu(), rtol=0, atol=0, equal_nan=True):
                raise UserError(
                    f"{where}: {key} was not loaded by LeRobot's {type(policy.module).__name__}; save it again with "
                    f"LeRobot {lerobot.__version__}."
                )
    for name, source in policy.filled_from.items():
        own, other = state[name], state[source]
        if own.data_ptr() not in loaded and other.data_ptr() in loaded and torch.equal(own, other):
            loaded.add(own.data_ptr())
    # Tensors that are one and the same are in the file once.
    missing = [name for name, tensor in state.items() if tensor.numel() and tensor.data_ptr() not in loaded]
    if missing:
        raise UserError(
            f"{where} does not fit {CONFIG}: it lacks {_first_of(missing)}; give complete weights."
        )


def _rename(preprocessor: Any, rename_map: Mapping[str, str], where: str) -> dict[str, str]:
    """Has a preprocessor rename by `rename_map`; returns what it renamed in another way by itself."""
    steps = [step for step in preprocessor.steps if hasattr(step, "rename_map")]
    if not steps:
        raise UserError(
            f"{where}: {PREPROCESSOR} has no step that renames, so --rename_map cannot be heeded: leave it out."
        )
    own = dict(steps[0].rename_map)
    for step in steps:
        step.rename_map = dict(rename_map)
    return own if own != dict(rename_map) else {}


def _why_foreign(policy: FlowPolicy, keys: list[str], state: Mapping[str, Tensor]) -> str:
    """What is wrong with keys of a file that are no part of the policy."""
    parts = keys[0].split(".")
    for start in range(len(parts)):
        for end in range(start + 1, len(parts)):
            # What a wrapper puts before the names of what it wraps.
            words = ".".join(parts[start:end]) + "."
            if all(
                words in key and policy.parameter_name(key.replace(words, "", 1)) in state for key in keys
            ):
                return (
                    f"has the keys of a wrapped policy: without {words!r} in {_first_of(keys)} they would fit "
                    f"{CONFIG}; save what is inside the wrapper (torch.compile, DDP, PEFT and the like), or take these "
                    "letters out of the keys."
                )
    return f"does not fit {CONFIG}: it holds {_first_of(keys)}, which this policy does not have; give its own weights."


def _first_of(names: list[str]) -> str:
    return repr(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def save_student(
    policy: FlowPolicy, teacher_dir: Path, output_dir: Path, trained: Mapping[str, Tensor], num_steps: int
) -> None:
    """Writes a checkpoint that is the teacher's but for the trained tensors and the step count.

    Frozen tensors and the config are copied from the teacher's files rather than from memory, where LeRobot may have
    cast them, or put this machine's device in the place of theirs: bytes, dtypes, keys and fields stay the teacher's.
    Of the config only the step count changes, `use_peft` (these weights are whole), `repo_id` and `push_to_hub`
    (fine-tuning the student would overwrite the teacher on the Hub).

    Where the config has an `rtc_config`, its `max_guidance_weight` follows the step count (see `guidance_weight`).
    Where it has none, none is added: with real-time chunking enabled a policy's `select_action`, and so
    `lerobot-eval`, refuses to run.

    `policy` is the student; `trained` are its tensors by parameter name, and `output_dir` is empty or absent.

    Raises:
        UserError: if a trained tensor has no place in the teacher's file.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    tensors = load_file(teacher_dir / WEIGHTS)
    with safe_open(teacher_dir / WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    # The key in the teacher's file of every parameter name. Of tensors that are one and the same, safetensors keeps one
    # and notes the others' names beside it.
    keys = {policy.parameter_name(key): key for key in tensors}
    for other, kept in (metadata or {}).items():
        if kept in tensors:
            keys.setdefault(policy.parameter_name(other), kept)
    for name, source in policy.filled_from.items():
        if source in keys:
            keys.setdefault(name, keys[source])
    # The loader's copy of another tensor is what counts.
    for name, tensor in sorted(trained.items(), key=lambda item: item[0] in policy.filled_from):
        if name not in keys:
            raise UserError(
                f"the teacher's {WEIGHTS} has no tensor {name!r}; it shares weights that are trained."
            )
        tensors[keys[name]] = tensor.detach().to("cpu", tensors[keys[name]].dtype).contiguous()
    save_file(tensors, output_dir / WEIGHTS, metadata=metadata)
    write_json(output_dir / CONFIG, _students_config(policy, read_config(teacher_dir), num_steps))
    # Everything else that the processors consist of, and nothing of the teacher's training.
    for file in teacher_dir.iterdir():
        if file.name.startswith(("policy_preprocessor", "policy_postprocessor")):
            shutil.copyfile(file, output_dir / file.name)


def _students_config(policy: FlowPolicy, config: dict[str, Any], num_steps: int) -> dict[str, Any]:
    """The teacher's `config.json` as a student's: the loaded one may be another's device, or lack what it cannot do."""
    saved, rtc = policy.default_num_steps, policy.rtc_config
    encoded = []
    try:
        for count in (num_steps + 1, num_steps):
            policy.set_num_steps(count)
            encoded.append(draccus.encode(policy.config, PreTrainedConfig))
    finally:
        policy.set_num_steps(saved)
    config |= {key: value for key, value in encoded[1].items() if value != encoded[0][key]}
    if rtc is not None:
        weight = guidance_weight(num_steps, rtc.max_guidance_weight, saved)
        config["rtc_config"] = {**config["rtc_config"], "max_guidance_weight": weight}
    # Its weights are whole, and trained on further they are not the teacher's: LeRobot pushes to `repo_id` by itself.
    return {**config, "use_peft": False, "push_to_hub": False, "repo_id": None}


def _device_name(device: str | torch.device) -> str:
    """A device by the name that LeRobot has for it: an index only where there may be several."""
    try:
        asked = torch.device(device)
        # LeRobot itself falls back to another device with a warning.
        available = is_torch_device_available(asked.type)
    except (RuntimeError, ValueError):
        available = False
    if not available:
        raise UserError(
            f"device={device} is not available here; give cpu, cuda or mps, whichever this machine has."
        )
    if asked.type != "cuda":
        return asked.type
    gpus = torch.cuda.device_count()
    if asked.index is not None and asked.index >= gpus:
        raise UserError(f"device={device}: this machine has {gpus} GPUs; give cuda:0 to cuda:{gpus - 1}.")
    return str(asked)
