"""A checkpoint that is an adapter on another one (LoRA and its kin, as PEFT saves them), merged into whole weights.

A teacher's file is copied from, hashed and read again: so the merged weights are a checkpoint of their own, made once,
on the CPU, and kept beside the Hub's cache.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HOME
from huggingface_hub.utils import WeakFileLock
from safetensors import SafetensorError
from safetensors.torch import save_model
from torch import nn

from chordflow.console import say
from chordflow.disk import whole_folder, write_json
from chordflow.errors import UserError, explained, reason
from chordflow.policies.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    WEIGHTS,
    downloaded,
    looks_like_hub_id,
    read_config,
    read_json,
)

MERGED = Path(HF_HOME) / "chordflow" / "merged"
"""One folder for each adapter on each base; it can be deleted."""


def merged_checkpoint(folder: Path, field: str, load: Callable[[Path], nn.Module]) -> Path:
    """The checkpoint that an adapter and its base make together, made again where a file of either has changed.

    `load` loads the policy of the adapter's config with the weights of another folder, on the CPU.

    Raises:
        UserError: if PEFT is not installed, the base is not where the adapter says, the two do not fit, or the adapter
            is of a kind that has no merged weights.
    """
    base = _base(folder, field)
    files = [file for file in sorted(folder.iterdir()) if file.suffix in (".json", ".safetensors")]
    digest = hashlib.sha256()
    for file in (*files, base / WEIGHTS):
        about = file.stat()
        digest.update(f"{file.resolve()} {about.st_size} {about.st_mtime_ns}\n".encode())
    place = MERGED / digest.hexdigest()[:32]
    if place.is_dir():
        return place
    MERGED.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(place.with_suffix(".lock")):
        if place.is_dir():
            return place
        policy = _merge(folder, field, base, load)
        with whole_folder(place) as made:
            for file in files:
                if file.name not in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, WEIGHTS):
                    shutil.copyfile(file, made / file.name)
            write_json(made / CONFIG, {**read_config(folder, field), "use_peft": False})
            try:
                save_model(policy, str(made / WEIGHTS))
            except SafetensorError as error:
                # What a full disk is to safetensors.
                raise UserError(
                    f"{field}={folder}: the merged weights cannot be written to {MERGED} ({reason(error)}); make room, "
                    "or set HF_HOME to a folder that has some."
                ) from error
    say(f"{field}={folder}: merged into the weights of {base}; the result is kept in {place}.")
    return place


def _merge(folder: Path, field: str, base: Path, load: Callable[[Path], nn.Module]) -> nn.Module:
    """The policy of `load(base)` with the adapter in its weights."""
    where = f"{field}={folder}"
    remedy = (
        f"give the base that it was trained on as base_model_name_or_path in {ADAPTER_CONFIG}, and the adapter's own "
        "files"
    )
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise UserError(
            f"{where} is a PEFT adapter, and PEFT is not installed ({reason(error)}); install it with: pip install "
            "'chordflow[peft]'"
        ) from error
    policy = load(base)
    tied = _untie(policy)
    with explained(
        lambda error: f"{where}: PEFT cannot put this adapter on {base} ({reason(error)}); {remedy}."
    ):
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        model: Any = PeftModel(policy, config)
        # In two steps, since PEFT's own function for both only warns of what was not loaded.
        loaded = model.load_adapter(str(folder), "default", torch_device="cpu")
    if astray := [*loaded.unexpected_keys, *loaded.missing_keys]:
        what = "holds" if loaded.unexpected_keys else "lacks"
        raise UserError(
            f"{where}: {ADAPTER_WEIGHTS} {what} {astray[0]!r}, which is not so of an adapter for {base}; {remedy}."
        )
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except (AttributeError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{where}: an adapter of peft_type={config.peft_type.value} cannot be merged into its base "
            f"({reason(error)}); give one that can, as a LoRA, with finite weights."
        ) from error
    for head, embedding in tied.items():
        merged.get_submodule(head).weight = merged.get_submodule(embedding).weight
    return merged


def _untie(policy: nn.Module) -> dict[str, str]:
    """Gives output heads that share a word embedding's tensor one of their own; returns both names of each.

    Actions do not depend on such a head; but what an adapter changes of it would be merged into the embedding too.
    """
    modules = dict(policy.named_modules())
    shared = {id(one.weight): name for name, one in modules.items() if isinstance(one, nn.Embedding)}
    tied = {
        name: shared[id(one.weight)]
        for name, one in modules.items()
        if not isinstance(one, nn.Embedding) and id(getattr(one, "weight", None)) in shared
    }
    for name in tied:
        modules[name].weight = nn.Parameter(modules[name].weight.detach().clone())
    return tied


def _base(folder: Path, field: str) -> Path:
    """The folder with the weights that an adapter was trained on."""
    config = read_json(folder / ADAPTER_CONFIG, field)
    name, where = config.get("base_model_name_or_path"), f"{field}={folder}"
    if not name:
        raise UserError(
            f"{where}: {ADAPTER_CONFIG} names no base_model_name_or_path; write there which checkpoint the adapter was "
            "trained on."
        )
    where += f": base_model_name_or_path={name} in {ADAPTER_CONFIG}"
    # A path from where the adapter was trained: often an ancestor of where it is.
    places = [Path(name), *(parent / name for parent in folder.resolve().parents)]
    place = next((place for place in places if (place / WEIGHTS).is_file()), None)
    for there in places if place is None else ():
        if (there / ADAPTER_CONFIG).is_file():
            raise UserError(f"{where}: an adapter is there; merge it into its own base, and name the result.")
        if (inside := there / "pretrained_model" / WEIGHTS).is_file():
            raise UserError(f"{where}: {WEIGHTS} is not there, but in {inside.parent}; write that.")
    if place is None and looks_like_hub_id(name):
        remedy = "write there where the base is now, or fetch it once while online"
        place = downloaded(name, config.get("revision"), [CONFIG, WEIGHTS], where, remedy)
    if place is None or not (place / WEIGHTS).is_file():
        raise UserError(
            f"{where}: no {WEIGHTS} is there; write there where the base with its weights is now."
        )
    return place
