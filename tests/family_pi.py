"""pi0 and pi0.5 under test: LeRobot's classes with two small layers."""

from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lerobot.policies.pi0 import processor_pi0
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.policies.pi0.modeling_pi0 import PI0Policy
from lerobot.policies.pi05 import processor_pi05
from lerobot.policies.pi05.configuration_pi05 import PI05Config
from lerobot.policies.pi05.modeling_pi05 import PI05Policy
from lerobot.processor import TokenizerProcessorStep
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

import small_gemma
from builders import TASKS
from chordflow.policies import FlowPolicy
from family_case import FamilyCase, features, save

STOCK = {"pi0": (PI0Config, PI0Policy, processor_pi0), "pi05": (PI05Config, PI05Policy, processor_pi05)}


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


def build(
    family: str, folder: Path, *, num_steps: int = 10, seed: int = 0, cameras: tuple[str, ...] = ("top",),
    **options: Any,
) -> Path:  # fmt: skip
    """See `FamilyCase`; a local tokenizer stands in the place of PaliGemma's."""
    config_class, policy_class, processors = STOCK[family]
    fields: dict[str, Any] = {
        "chunk_size": 8, "n_action_steps": 4, "max_action_dim": 6, "max_state_dim": 8, "device": "cpu",
        "push_to_hub": False, "image_resolution": (small_gemma.IMAGE_SIZE, small_gemma.IMAGE_SIZE),
        "num_inference_steps": num_steps, **({"tokenizer_max_length": 96} if family == "pi05" else {}),
    }  # fmt: skip
    torch.manual_seed(seed)
    policy: Any = policy_class(config_class(**features(cameras), **{**fields, **options}))
    bend(policy)
    tokenizer = build_tokenizer(folder.parent / "tokenizer")

    def local(tokenizer_name: str, **options: Any) -> TokenizerProcessorStep:
        return TokenizerProcessorStep(tokenizer_name=str(tokenizer), **options)

    with patch.object(processors, "TokenizerProcessorStep", local):
        return save(policy, folder, stats())


def stock_endpoint(policy: FlowPolicy, batch: dict[str, Any], noise: Tensor) -> Tensor:
    """What `predict_action_chunk` computes before it cuts the padded dimensions off."""
    stock: Any = policy.module
    prompt = batch["observation.language.tokens"], batch["observation.language.attention_mask"]
    state = (stock.prepare_state(batch),) if policy.family == "pi0" else ()
    return stock.model.sample_actions(*stock._preprocess_images(batch), *prompt, *state, noise=noise)


CASES = {family: FamilyCase(family, partial(build, family), stock_endpoint) for family in STOCK}
