"""pi0 under test: LeRobot's class with two small layers, and what pi0.5 shares with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.pi0 import processor_pi0
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.policies.pi0.modeling_pi0 import PI0Policy
from lerobot.processor import TokenizerProcessorStep
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

import small_gemma
from builders import ACTION_DIM, STATE_DIM, TASKS
from chordflow.policies import FlowPolicy
from family_case import FamilyCase

CHUNK, EXECUTED, PADDED_ACTION, PADDED_STATE = 8, 4, 6, 8


def build_tokenizer(folder: Path) -> Path:
    """A byte-level tokenizer that knows the prompts' words and no bytes beyond the small vocabulary."""
    bpe = ByteLevelBPETokenizer()
    prompts = [f"Task: {task}, State: 0 1;\nAction: \n" for task in TASKS]
    bpe.train_from_iterator(
        prompts, vocab_size=small_gemma.VOCABULARY, min_frequency=1, special_tokens=["<pad>"], show_progress=False
    )  # fmt: skip
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="<pad>").save_pretrained(folder)
    return folder


def stats() -> dict[str, dict[str, Tensor]]:
    """Statistics that are not the identity, for either family's normalisation."""
    return {
        "observation.state": {
            "mean": torch.tensor([0.5, -0.5, 0.0]), "std": torch.tensor([2.0, 1.0, 0.5]),
            "q01": torch.tensor([-2.0, -1.5, -1.0]), "q99": torch.tensor([2.5, 1.0, 2.0]),
        },
        "action": {
            "mean": torch.tensor([1.0, -2.0]), "std": torch.tensor([3.0, 0.5]),
            "q01": torch.tensor([-5.0, -3.0]), "q99": torch.tensor([7.0, -1.0]),
        },
    }  # fmt: skip


def make_config(config_class: type, cameras: tuple[str, ...] = ("top",), **options: Any) -> Any:
    """A stock config of the tests' sizes."""
    inputs = {"observation.state": PolicyFeature(FeatureType.STATE, (STATE_DIM,))}
    for camera in cameras:
        inputs[f"observation.images.{camera}"] = PolicyFeature(FeatureType.VISUAL, (3, 32, 32))
    defaults: dict[str, Any] = {
        "chunk_size": CHUNK,
        "n_action_steps": EXECUTED,
        "max_action_dim": PADDED_ACTION,
        "max_state_dim": PADDED_STATE,
        "image_resolution": (small_gemma.IMAGE_SIZE, small_gemma.IMAGE_SIZE),
        "device": "cpu",
        "push_to_hub": False,
    }
    return config_class(
        input_features=inputs,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION_DIM,))},
        **{**defaults, **options},
    )


def bend(policy: nn.Module) -> None:
    """Makes random weights matter: the constructor's field hardly bends, and its norms start at nothing."""
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "norm" in name and "vision_tower" not in name:
                parameter.normal_(std=0.3)
            elif "time_mlp_in" in name:
                # Time comes in periods of down to 4e-3: undamped, ten steps would miss most of them.
                parameter.mul_(0.5)
            elif "gemma_expert" in name or "language_model" in name or "paligemma" not in name:
                parameter.mul_(2.0)


def save(policy: Any, folder: Path, processors: Any) -> Path:
    """Saves a policy and its processors, with a local tokenizer in place of PaliGemma's."""
    policy.save_pretrained(folder)
    tokenizer = build_tokenizer(folder.parent / "tokenizer")

    def local(tokenizer_name: str, **options: Any) -> TokenizerProcessorStep:
        return TokenizerProcessorStep(tokenizer_name=str(tokenizer), **options)

    with patch.object(processors, "TokenizerProcessorStep", local):
        for pipeline in make_pre_post_processors(policy.config, dataset_stats=stats()):
            pipeline.save_pretrained(folder)
    return folder


def build(
    folder: Path, *, num_steps: int | None = None, dtype: str = "float32", seed: int = 0, **options: Any
) -> Path:
    """A stock pi0 checkpoint with random weights and its processors."""
    if num_steps is not None:
        options["num_inference_steps"] = num_steps
    torch.manual_seed(seed)
    policy = PI0Policy(make_config(PI0Config, dtype=dtype, **options))
    bend(policy)
    return save(policy, folder, processor_pi0)


def stock_endpoint(policy: FlowPolicy, batch: dict[str, Any], noise: Tensor) -> Tensor:
    """What `predict_action_chunk` computes before it cuts the padded dimensions off."""
    stock: Any = policy.module
    images, masks = stock._preprocess_images(batch)
    return stock.model.sample_actions(
        images,
        masks,
        batch["observation.language.tokens"],
        batch["observation.language.attention_mask"],
        stock.prepare_state(batch),
        noise=noise,
    )


CASE = FamilyCase(
    family="pi0",
    build=build,
    default_steps=10,
    stock_endpoint=stock_endpoint,
    has_bfloat16=True,
    small_module="small_gemma",
)
