"""The families under test."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import family_eo1
import family_groot
import family_multi_task_dit
import family_pi
from builders import build_checkpoint, build_vlm
from chordflow.policies import FlowPolicy
from family_case import FamilyCase


def build_smolvla(folder: Path, **options: Any) -> Path:
    """See `FamilyCase`."""
    return build_checkpoint(folder, build_vlm(folder.parent / "tiny-smolvlm"), **options)


def smolvla_endpoint(policy: FlowPolicy, batch: dict[str, Any], noise: Tensor) -> Tensor:
    """The stock sampler's endpoint with its padded dimensions, which `predict_action_chunk` cuts off."""
    stock: Any = policy.module
    batch = stock._prepare_batch(dict(batch))
    prompt = batch["observation.language.tokens"], batch["observation.language.attention_mask"]
    with torch.no_grad():
        return stock.model.sample_actions(
            *stock.prepare_images(batch), *prompt, stock.prepare_state(batch), noise=noise
        )


CASES = {
    "smolvla": FamilyCase("smolvla", build_smolvla, smolvla_endpoint),
    **family_pi.CASES,
    "multi_task_dit": family_multi_task_dit.CASE,
    "eo1": family_eo1.CASE,
    "groot": family_groot.CASE,
}
