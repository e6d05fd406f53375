"""A small real EO1 checkpoint: Qwen2.5-VL of a few thousand parameters, its processor and random weights."""

from pathlib import Path
from typing import Any

import torch
from lerobot.policies.eo1.configuration_eo1 import EO1Config
from lerobot.policies.eo1.modeling_eo1 import EO1Policy
from lerobot.policies.eo1.processor_eo1 import EO1_SPECIAL_TOKENS, SYSTEM_MESSAGE
from lerobot.utils.constants import OBS_STATE
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLProcessor, Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from builders import TASKS, stats
from chordflow.policies import FlowPolicy
from chordflow.quiet import quiet_stdout
from family_case import IMAGE, PAD, TEMPLATE, VIDEO, FamilyCase, features, qwen_tokenizer, save

CHUNK, PADDED_DIM, PATCH = 8, 6, 8


def build_backbone(folder: Path, *, tied: bool = True, sliding_window: int | None = None) -> Path:
    """A folder as `vlm_base` and `processor_name` name it: config, tokenizer and processor, no weights."""
    tokenizer, ids = qwen_tokenizer(folder, (*TASKS, SYSTEM_MESSAGE, "system\n", "user\n", "assistant\n"))
    pixels = {"min_pixels": PATCH**2, "max_pixels": 64**2, "patch_size": PATCH}
    Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**pixels), tokenizer, Qwen2VLVideoProcessor(**pixels), chat_template=TEMPLATE
    ).save_pretrained(folder)
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
    folder: Path, *, num_steps: int = 10, seed: int = 0, cameras: tuple[str, ...] = ("top",),
    backbone: dict[str, Any] | None = None, **options: Any,
) -> Path:  # fmt: skip
    """See `FamilyCase`; `backbone` has options of `build_backbone`. The head is float32 whatever the dtype."""
    fields: dict[str, Any] = {
        "chunk_size": CHUNK, "n_action_steps": 4, "max_action_dim": PADDED_DIM, "max_state_dim": 8,
        "image_min_pixels": PATCH**2, "image_max_pixels": 64**2, "device": "cpu", "push_to_hub": False,
        "dtype": "float32", "num_denoise_steps": num_steps,
        "vlm_base": str(build_backbone(folder.parent / f"{folder.name}-qwen", **(backbone or {}))),
        # Where it is set, as in a checkpoint that LeRobot has trained further, the constructor fetches no weights.
        "pretrained_path": folder,
    }  # fmt: skip
    torch.manual_seed(seed)
    with quiet_stdout():
        policy = EO1Policy(EO1Config(**features(cameras), **{**fields, **options}))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "action_" in name or "state_proj" in name:
                parameter.mul_(2.0)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.3)
    return save(policy, folder, stats())


def stock_endpoint(policy: FlowPolicy, batch: dict[str, Any], noise: Tensor) -> Tensor:
    """The whole chunk (B, H, D) of EO1's own sampler, which draws its noise by a method of the model."""
    module: Any = policy.module
    inputs = {key: value for key, value in batch.items() if key != OBS_STATE}
    module.model.sample_noise = lambda shape, device: noise.clone()
    try:
        return module.model.sample_actions(states=module.prepare_state(batch[OBS_STATE]), **inputs)
    finally:
        del module.model.sample_noise


CASE = FamilyCase("eo1", build, stock_endpoint)
