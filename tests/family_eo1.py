"""A small real EO1 checkpoint: Qwen2.5-VL of a few thousand parameters, its processor and random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.eo1.configuration_eo1 import EO1Config
from lerobot.policies.eo1.modeling_eo1 import EO1Policy
from lerobot.policies.eo1.processor_eo1 import EO1_SPECIAL_TOKENS, SYSTEM_MESSAGE
from lerobot.policies.factory import make_pre_post_processors
from lerobot.utils.constants import OBS_STATE
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLProcessor, Qwen2Tokenizer, Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from builders import ACTION_DIM, STATE_DIM, TASKS, stats
from chordflow.policies import FlowPolicy
from chordflow.quiet import quiet_stdout
from family_case import FamilyCase

CHUNK, PADDED_DIM, PATCH = 8, 6, 8
PAD, IMAGE, VIDEO = "<|endoftext|>", "<|image_pad|>", "<|video_pad|>"
TOKENS = (PAD, "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", IMAGE, VIDEO)
# Each message between its marks, each image as one placeholder, as Qwen2.5-VL's own template writes them.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
)


def build_backbone(folder: Path, *, tied: bool = True, sliding_window: int | None = None) -> Path:
    """A folder as `vlm_base` and `processor_name` name it: config, tokenizer and processor, no weights."""
    bpe = ByteLevelBPETokenizer()
    texts = (*TASKS, SYSTEM_MESSAGE, "system\n", "user\n", "assistant\n")
    bpe.train_from_iterator(
        texts, vocab_size=512, min_frequency=1, special_tokens=list(TOKENS), show_progress=False
    )
    folder.mkdir(parents=True)
    bpe.save_model(str(folder))
    tokenizer = Qwen2Tokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        pad_token=PAD,
        extra_special_tokens=list(TOKENS[1:]),
    )
    pixels = {"min_pixels": PATCH**2, "max_pixels": 64**2, "patch_size": PATCH}
    Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**pixels), tokenizer, Qwen2VLVideoProcessor(**pixels), chat_template=TEMPLATE
    ).save_pretrained(folder)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in TOKENS}
    # A network as transformers initialises it (0.02) has a field that hardly bends.
    spread = {"initializer_range": 0.3, "hidden_act": "silu"}
    Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer) + len(EO1_SPECIAL_TOKENS),
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": ids[PAD],
            "bos_token_id": ids[PAD], "eos_token_id": ids["<|im_end|>"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
            "use_sliding_window": sliding_window is not None, "sliding_window": sliding_window,
            "max_window_layers": 1, **spread,
        },
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": PATCH,
            "window_size": 4 * PATCH, "fullatt_block_indexes": [1], "out_hidden_size": 32, **spread,
        },
        image_token_id=ids[IMAGE], video_token_id=ids[VIDEO], vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"], tie_word_embeddings=tied,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def build(
    folder: Path,
    *,
    num_steps: int | None = None,
    dtype: str = "float32",
    seed: int = 0,
    cameras: tuple[str, ...] = ("top",),
    backbone: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """See `family_case.Build`; the backbone's folder goes beside the checkpoint.

    Args:
        folder: an absent folder.
        num_steps: solver steps that the config is saved with.
        dtype: of the backbone; the head is always float32.
        seed: of the weights.
        cameras: names of the images.
        backbone: options of `build_backbone`.
        options: fields of the config.
    """
    vlm = build_backbone(folder.parent / f"{folder.name}-qwen", **(backbone or {}))
    inputs = {OBS_STATE: PolicyFeature(FeatureType.STATE, (STATE_DIM,))}
    for camera in cameras:
        inputs[f"observation.images.{camera}"] = PolicyFeature(FeatureType.VISUAL, (3, 32, 32))
    fields: dict[str, Any] = {
        "chunk_size": CHUNK, "n_action_steps": 4, "max_action_dim": PADDED_DIM, "max_state_dim": 8,
        "image_min_pixels": PATCH**2, "image_max_pixels": 64**2, "device": "cpu", "push_to_hub": False,
        "dtype": dtype,
    }  # fmt: skip
    if num_steps is not None:
        fields["num_denoise_steps"] = num_steps
    config = EO1Config(
        input_features=inputs,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION_DIM,))},
        vlm_base=str(vlm),
        # Where it is set, as in a checkpoint that LeRobot has trained further, the constructor fetches no weights.
        pretrained_path=folder,
        **{**fields, **options},
    )
    torch.manual_seed(seed)
    with quiet_stdout():
        policy = EO1Policy(config)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "action_" in name or "state_proj" in name:
                parameter.mul_(2.0)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.3)
    policy.save_pretrained(folder)
    for pipeline in make_pre_post_processors(config, dataset_stats=stats()):
        pipeline.save_pretrained(folder)
    return folder


def stock_endpoint(policy: FlowPolicy, batch: dict[str, Any], noise: Tensor) -> Tensor:
    """The whole chunk (B, H, D) of EO1's own sampler, which draws its noise by a method of the model."""
    module: Any = policy.module
    inputs = {key: value for key, value in batch.items() if key != OBS_STATE}
    module.model.sample_noise = lambda shape, device: noise.clone()
    try:
        return module.model.sample_actions(states=module.prepare_state(batch[OBS_STATE]), **inputs)
    finally:
        del module.model.sample_noise


CASE = FamilyCase(
    family="eo1", build=build, default_steps=10, stock_endpoint=stock_endpoint, has_bfloat16=True
)
