"""What a checkpoint's processors do to an observation and an action, as data.

Shapes: T observed steps, S state, H chunk size, A real action dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lerobot.utils.constants import (
    ACTION,
    OBS_LANGUAGE_ATTENTION_MASK,
    OBS_LANGUAGE_TOKENS,
    OBS_STATE,
)
from tokenizers import Tokenizer
from torch import Tensor

from chordflow.errors import UserError
from chordflow.flow.seeds import generator
from chordflow.policies import FlowPolicy
from chordflow.policies.files import POSTPROCESSOR, PREPROCESSOR
from chordflow.policies.processors import normalisation, step_name

TOKENIZER = "tokenizer.json"

PROMPT = "prompt"
"""Stands in an input's shape for the length of the prompt, where a graph takes any."""

_TEMPLATES = {
    "smolvla_new_line_processor": "ensure_newline",
    "pi0_new_line_processor": "ensure_newline",
    "pi05_prepare_state_tokenizer_processor_step": "pi05_state",
}
_TOKENIZER, _RENAME, _NORMALISE = (
    "tokenizer_processor",
    "rename_observations_processor",
    "normalizer_processor",
)
_UNNORMALISE = "unnormalizer_processor"
# Those about relative actions are off: a checkpoint where they are not is refused when it is loaded.
_NOTHING = (
    "to_batch_processor",
    "device_processor",
    "relative_actions_processor",
    "absolute_actions_processor",
)

PROMPTS = (
    "go",
    "pick up the red cube",
    "put the cup on the plate, then push the drawer shut with the left hand",
)
"""Instructions of observations that no dataset brings."""


def check_steps(policy: FlowPolicy) -> None:
    """Raises UserError for a step of the processors that a manifest has no words for."""
    before = (*_TEMPLATES, *_NOTHING, _TOKENIZER, _RENAME, _NORMALISE)
    for file, steps, known in (
        (PREPROCESSOR, policy.preprocessor.steps, before),
        (POSTPROCESSOR, policy.postprocessor.steps, (*_NOTHING, _UNNORMALISE)),
    ):
        for step in steps:
            if step_name(step) not in known or getattr(step, "float_dtype", None) not in (None, "float32"):
                raise UserError(
                    f"{file} has a step {step_name(step)} that an exported folder cannot hold; run the "
                    "checkpoint in LeRobot."
                )


def preparation(
    policy: FlowPolicy, shapes: Mapping[str, Sequence[int]], *, free_prompt: bool = False
) -> dict[str, Any]:
    """The parts of a manifest that say how inputs are made of an observation, and actions of what the graph gives.

    Args:
        policy: of a family whose steps `check_steps` knows.
        shapes: of every camera that is shown, (3, height, width), by the policy's name for it.
        free_prompt: whether the graph may take a prompt of any length, which then needs no padding.
    """
    steps = policy.preprocessor.steps
    history = policy.observation_delta_indices or [0]
    axis = [len(history)] if len(history) > 1 else []
    resize = policy.image_resize
    inputs, images, normalise = [], {}, {}
    if policy.state_shape is not None:
        inputs.append(_input(OBS_STATE, "state", [*axis, *policy.state_shape]))
        normalise[OBS_STATE] = normalisation(steps, OBS_STATE)
    for key, shape in shapes.items():
        rule = None if resize is None else {**asdict(resize), "mode": "bilinear", "fill": 0.0}
        images[key] = {"shape": list(shape), "resize": rule}
        seen = shape if resize is None else (shape[0], resize.height, resize.width)
        inputs.append(_input(key, "image", [*axis, *seen]))
        normalise[key] = normalisation(steps, key)
    language = _language(policy)
    if language is not None:
        free = free_prompt and policy.free_prompt and language["max_length"] > 1
        language["padding"] = "longest" if free else "max_length"
        length = [PROMPT if free else language["max_length"]]
        inputs.append(_input(OBS_LANGUAGE_TOKENS, "tokens", length, "int64"))
        inputs.append(_input(OBS_LANGUAGE_ATTENTION_MASK, "token_mask", length, "bool"))
    after = normalisation(policy.postprocessor.steps, ACTION)
    return {
        "inputs": inputs,
        "images": images,
        "language": language,
        "normalise": {key: rule for key, rule in normalise.items() if rule is not None},
        "unnormalise": {ACTION: after or {"mode": "identity"}},
        "rename": {old: new for step in steps for old, new in getattr(step, "rename_map", {}).items()},
        "observation_steps": len(history),
        "observation_deltas": list(history),
    }


_UNITS = {"tokens": "token", "token_mask": "true for a token"}


def _input(key: str, kind: str, shape: Sequence[int | str], dtype: str = "float32") -> dict[str, Any]:
    unit = _UNITS.get(kind, "normalised")
    return {"name": key, "key": key, "kind": kind, "shape": [1, *shape], "dtype": dtype, "unit": unit}


def _tokenizing(policy: FlowPolicy) -> Any | None:
    return next((step for step in policy.preprocessor.steps if step_name(step) == _TOKENIZER), None)


def _language(policy: FlowPolicy) -> dict[str, Any] | None:
    step = _tokenizing(policy)
    if step is None:
        return None
    names = [step_name(step) for step in policy.preprocessor.steps]
    return {
        "tokenizer": TOKENIZER,
        "max_length": step.max_length,
        "padding_side": step.padding_side,
        "pad_id": step.input_tokenizer.pad_token_id,
        "truncation": step.truncation,
        "template": [{"kind": _TEMPLATES[name]} for name in names if name in _TEMPLATES],
    }


def write_tokenizer(policy: FlowPolicy, folder: Path) -> None:
    """Writes the checkpoint's tokenizer, where it has one, without settings of its own for length.

    Raises:
        UserError: for one that runs in Python alone.
    """
    step = _tokenizing(policy)
    if step is None:
        return
    backend = getattr(step.input_tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            f"its tokenizer ({type(step.input_tokenizer).__name__}) has no tokenizer.json; save a fast "
            "one in the folder that policy_preprocessor.json names."
        )
    tokenizer = Tokenizer.from_str(backend.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(folder / TOKENIZER))


def example(parts: Mapping[str, Any]) -> dict[str, Tensor]:
    """Values to trace on, by the name of each input of what `preparation` gives."""
    source = generator(0, "example")
    values = {}
    for one in parts["inputs"]:
        shape = [parts["language"]["max_length"] if size == PROMPT else size for size in one["shape"]]
        if one["dtype"] == "float32":
            values[one["name"]] = torch.rand(shape, generator=source)
        else:
            values[one["name"]] = torch.ones(shape, dtype=getattr(torch, one["dtype"]))
    return values


def random_observations(policy: FlowPolicy, parts: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Observations such as an environment gives: noise for images, and states as the checkpoint's statistics have them.

    Args:
        policy: whose names for them are used, renamed as its preprocessor expects.
        parts: what `preparation` gives.
        count: how many.
    """
    raw = {new: old for old, new in parts["rename"].items()}
    axis = [parts["observation_steps"]] if parts["observation_steps"] > 1 else []
    found = []
    for number in range(count):
        source = generator(0, "observation", number)
        item: dict[str, Any] = {"task": PROMPTS[number % len(PROMPTS)]}
        for key, image in parts["images"].items():
            item[raw.get(key, key)] = torch.rand((*axis, *image["shape"]), generator=source)
        if policy.state_shape is not None:
            state = torch.rand((*axis, *policy.state_shape), generator=source) * 2 - 1
            item[raw.get(OBS_STATE, OBS_STATE)] = _spread(state, parts["normalise"].get(OBS_STATE))
        found.append(item)
    return found


def _spread(state: Tensor, rule: Mapping[str, Any] | None) -> Tensor:
    """States of [-1, 1] over the range that their normalisation expects."""
    if rule is None:
        return state
    a, b = torch.tensor(rule["a"]), torch.tensor(rule["b"])
    return a + state * b if rule["mode"] == "mean_std" else a + (state + 1) / 2 * (b - a)
