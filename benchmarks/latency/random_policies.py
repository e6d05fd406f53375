"""Stock LeRobot policies of the sizes in `configs/`, with random weights, as chordflow's adapters see them.

Latency depends on shapes and dtypes, not on what the weights are; nothing is downloaded. The tokenizer is a small
local one: prompts are padded to a fixed number of tokens, so that it makes no difference either.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from unittest.mock import patch

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.pi05 import modeling_pi05, processor_pi05
from lerobot.processor import TokenizerProcessorStep
from torch import nn

from chordflow.demo.tiny_vlm import build_tiny_vlm
from chordflow.policies import FlowPolicy
from chordflow.policies.registry import adapter_for
from chordflow.quiet import quiet_stdout

CONFIGS = Path(__file__).parent / "configs"
PROMPT = "pick up the red cube and put it into the box"

Family = Literal["smolvla", "pi05"]
Size = Literal["full", "reduced"]


def load_config(family: Family, size: Size, dtype: str = "float32") -> PreTrainedConfig:
    """The config of a size; pi0.5's says its dtype itself, SmolVLA's has no field for it."""
    config = PreTrainedConfig.from_pretrained(CONFIGS / f"{family}-{size}")
    if family == "pi05":
        config.dtype = dtype
    return config


def outline(family: Family, size: Size, dtype: str) -> nn.Module:
    """The stock policy without storage: its names, shapes and dtypes."""
    with assets(family, size) as folder:
        config = load_config(family, size, dtype)
        config.device = "meta"
        if family == "smolvla":
            config.vlm_model_name = str(folder)
        with torch.device("meta"), quiet_stdout():
            policy = get_policy_class(family)(config)
    if family == "smolvla":
        # What a checkpoint of half precision does: the networks in it, state_proj and the action layers in float32.
        for parameter in policy.model.vlm_with_expert.parameters():
            parameter.data = parameter.data.to(getattr(torch, dtype))
    return policy


def acting(policy: nn.Module) -> int:
    """Parameters that an action depends on: all but the output layers over the vocabulary."""
    return sum(parameter.numel() for name, parameter in policy.named_parameters() if ".lm_head." not in name)


def build(family: Family, size: Size, device: str, dtype: str, checkpoint: Path | None = None) -> FlowPolicy:
    """A stock policy with random weights, in the dtypes that LeRobot gives it, behind its adapter.

    Args:
        family: whose class.
        size: which of the configs.
        device: `cpu` or `cuda`.
        dtype: `float32` or `bfloat16`; in the latter some parameters stay float32, as in LeRobot.
        checkpoint: where it is saved too, with statistics that change nothing; to be loaded within `assets`.
    """
    torch.manual_seed(0)
    with assets(family, size, checkpoint and checkpoint.parent) as folder:
        config = load_config(family, size, dtype)
        config.device = device
        if family == "smolvla":
            config.vlm_model_name = str(folder)
        wanted = {
            name: parameter.dtype for name, parameter in outline(family, size, dtype).named_parameters()
        }
        # Made in half precision at once where most of it ends so: pi0.5 in float32 takes 14 GiB on the way.
        with _default_dtype(getattr(torch, dtype)), quiet_stdout():
            policy = get_policy_class(family)(config)
        for name, parameter in policy.named_parameters():
            parameter.data = parameter.data.to(device, wanted[name])
        policy.to(device).eval()

        def local(tokenizer_name: str, **options: Any) -> TokenizerProcessorStep:
            return TokenizerProcessorStep(tokenizer_name=str(folder), **options)

        with patch.object(processor_pi05, "TokenizerProcessorStep", local):
            processors = make_pre_post_processors(config, dataset_stats=_statistics(config))
    if checkpoint is not None:
        for part in (policy, *processors):
            part.save_pretrained(checkpoint)
    return adapter_for(family)(policy, *processors)


def _statistics(config: PreTrainedConfig) -> dict[str, dict[str, torch.Tensor]]:
    """Those of numbers that lie around 0 already."""
    low = {"min": -1.0, "q01": -1.0, "mean": 0.0}
    high = {"std": 1.0, "q99": 1.0, "max": 1.0}
    features = {**config.input_features, **config.output_features}
    shapes = {name: feature.shape for name, feature in features.items() if name not in config.image_features}
    return {
        name: {kind: torch.full(shape, value) for kind, value in {**low, **high}.items()}
        for name, shape in shapes.items()
    }


def observation(policy: FlowPolicy) -> dict[str, Any]:
    """One raw observation of the config's own shapes."""
    generator = torch.Generator().manual_seed(0)
    state = policy.config.robot_state_feature.shape
    items: dict[str, Any] = {
        "observation.state": torch.rand(1, *state, generator=generator),
        "task": [PROMPT],
    }
    for key in policy.image_keys:
        items[key] = torch.rand(1, *policy.config.image_features[key].shape, generator=generator)
    return items


@contextmanager
def assets(family: Family, size: Size, folder: Path | None = None) -> Iterator[Path]:
    """What the constructors look for outside the config: SmolVLM's config and processor, pi0.5's sizes.

    They lie in `folder`, or are gone afterwards.
    """
    source = CONFIGS / f"{family}-{size}"
    with TemporaryDirectory() if folder is None else nullcontext(folder) as name:
        folder = build_tiny_vlm(Path(name) / "vlm", [PROMPT])
        if (source / "vlm").is_dir():
            shutil.copy(source / "vlm" / "config.json", folder / "config.json")
        sizes = source / "sizes.json"
        if sizes.is_file():
            with _small_gemma(json.loads(sizes.read_text(encoding="utf-8"))):
                yield folder
        else:
            yield folder


@contextmanager
def _small_gemma(sizes: dict[str, Any]) -> Iterator[None]:
    """Within it pi0.5's classes are built with `sizes`: LeRobot fixes these numbers in code.

    Every class stays LeRobot's or transformers' own.
    """
    vlm, expert = modeling_pi05.PaliGemmaForConditionalGenerationWithPiGemma, modeling_pi05.PiGemmaForCausalLM

    def small_variant(variant: str) -> Any:
        return modeling_pi05.GemmaConfig(**sizes["variants"][variant])

    def small_vlm(config: Any) -> nn.Module:
        config.text_config.vocab_size = sizes["vocab_size"]
        for name, value in sizes["vision"].items():
            setattr(config.vision_config, name, value)
        config.vision_config.projection_dim = config.text_config.hidden_size
        return vlm(config)

    def small_expert(config: Any) -> nn.Module:
        config.vocab_size = sizes["vocab_size"]
        return expert(config)

    with (
        patch.object(modeling_pi05, "get_gemma_config", small_variant),
        patch.object(modeling_pi05, "PaliGemmaForConditionalGenerationWithPiGemma", small_vlm),
        patch.object(modeling_pi05, "PiGemmaForCausalLM", small_expert),
    ):
        yield


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
