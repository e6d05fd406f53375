"""pi0.5 under test: LeRobot's class with two small layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lerobot.policies.pi05 import processor_pi05
from lerobot.policies.pi05.configuration_pi05 import PI05Config
from lerobot.policies.pi05.modeling_pi05 import PI05Policy
from torch import Tensor

from chordflow.policies import FlowPolicy
from family_case import FamilyCase
from family_pi0 import bend, make_config, save


def build(
    folder: Path, *, num_steps: int | None = None, dtype: str = "float32", seed: int = 0, **options: Any
) -> Path:
    """A stock pi0.5 checkpoint with random weights and its processors."""
    if num_steps is not None:
        options["num_inference_steps"] = num_steps
    torch.manual_seed(seed)
    policy = PI05Policy(make_config(PI05Config, dtype=dtype, **{"tokenizer_max_length": 96, **options}))
    bend(policy)
    return save(policy, folder, processor_pi05)


def stock_endpoint(policy: FlowPolicy, batch: dict[str, Any], noise: Tensor) -> Tensor:
    """What `predict_action_chunk` computes before it cuts the padded dimensions off."""
    stock: Any = policy.module
    images, masks = stock._preprocess_images(batch)
    return stock.model.sample_actions(
        images,
        masks,
        batch["observation.language.tokens"],
        batch["observation.language.attention_mask"],
        noise=noise,
    )


CASE = FamilyCase(
    family="pi05",
    build=build,
    default_steps=10,
    stock_endpoint=stock_endpoint,
    has_bfloat16=True,
    small_module="small_gemma",
)
