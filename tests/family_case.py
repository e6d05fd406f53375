"""What the small checkpoints of all families have in common."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import Qwen2Tokenizer

from builders import ACTION_DIM, STATE_DIM
from chordflow.flow.solvers import Euler
from chordflow.policies import FlowPolicy, load_flow_policy


@dataclass(frozen=True)
class FamilyCase:
    """A family under test.

    Attributes:
        build: writes a checkpoint with random weights to an absent folder, what it needs beside it, by `num_steps`,
            `seed` and fields of the config; returns the folder.
        stock_endpoint: the chunk (B, H, D) that the stock sampler makes of a preprocessed batch and given noise.
    """

    family: str
    build: Callable[..., Path]
    stock_endpoint: Callable[[FlowPolicy, dict[str, Any], Tensor], Tensor]


def features(cameras: Iterable[str] = ("top",)) -> dict[str, Any]:
    """The fields of a config that list a state, cameras and an action of the tests' sizes."""
    images = {
        f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, 32, 32)) for name in cameras
    }
    return {
        "input_features": {"observation.state": PolicyFeature(FeatureType.STATE, (STATE_DIM,)), **images},
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (ACTION_DIM,))},
    }


def save(policy: Any, folder: Path, stats: dict[str, Any]) -> Path:
    """Saves a stock policy with its processors."""
    policy.save_pretrained(folder)
    for pipeline in make_pre_post_processors(policy.config, dataset_stats=stats):
        pipeline.save_pretrained(folder)
    return folder


def load(folder: Path) -> Any:
    """A checkpoint, wrapped."""
    return load_flow_policy(folder, device="cpu")


@torch.no_grad()
def euler(policy: FlowPolicy, batch: dict[str, Any], noise: Tensor, num_steps: int) -> Tensor:
    """Euler over the adapter's velocity."""
    context = policy.encode(batch)
    return Euler().integrate(lambda x, t: policy.velocity(x, t, context), noise, num_steps)


def on_path(noise: Tensor, target: Tensor, t: Tensor) -> Tensor:
    """The points of the straight paths at times t (B,)."""
    return t[:, None, None] * noise + (1 - t[:, None, None]) * target


PAD, IMAGE, VIDEO = "<|endoftext|>", "<|image_pad|>", "<|video_pad|>"
TOKENS = (PAD, "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", IMAGE, VIDEO)
# Each message between its marks, each image as one placeholder, as Qwen's own template writes them.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
)


def qwen_tokenizer(folder: Path, texts: Iterable[str]) -> tuple[Qwen2Tokenizer, dict[str, int]]:
    """A tokenizer that knows `texts`, in a new folder, and the ids of its special tokens."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=512, min_frequency=1, special_tokens=list(TOKENS), show_progress=False
    )
    folder.mkdir(parents=True)
    bpe.save_model(str(folder))
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    tokenizer = Qwen2Tokenizer(*files, pad_token=PAD, extra_special_tokens=list(TOKENS[1:]))
    return tokenizer, {token: tokenizer.convert_tokens_to_ids(token) for token in TOKENS}
