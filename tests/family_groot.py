"""A small real GR00T N1.7 checkpoint: a base model around a Qwen3-VL of a few thousand parameters, random weights."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.groot.configuration_groot import GrootConfig
from lerobot.policies.groot.groot_n1_7 import GR00TN17, GR00TN17Config
from lerobot.policies.groot.modeling_groot import GrootPolicy
from lerobot.policies.groot.processor_groot import GrootN17VLMEncodeStep
from lerobot.utils.constants import OBS_STATE
from torch import Tensor
from transformers import Qwen2VLImageProcessor, Qwen3VLConfig, Qwen3VLVideoProcessor

from builders import TASKS
from chordflow.policies import FlowPolicy
from chordflow.quiet import quiet_stdout
from family_case import IMAGE, TEMPLATE, VIDEO, FamilyCase, features, qwen_tokenizer

HORIZON, PADDED_DIM, PATCH, WIDTH = 8, 6, 8, 32
ACTION_MIN, ACTION_MAX = (2.0, -3.0), (14.0, -1.0)


def stats() -> dict[str, dict[str, Tensor]]:
    """Ranges that are not the identity; GR00T scales by them."""
    return {
        OBS_STATE: {"min": torch.tensor([-3.0, -2.0, -1.0]), "max": torch.tensor([2.0, 3.0, 4.0])},
        "action": {"min": torch.tensor(ACTION_MIN), "max": torch.tensor(ACTION_MAX)},
    }


def build_backbone(folder: Path) -> Path:
    """A folder as `model_name` names it: config, tokenizer and image processor, no weights."""
    tokenizer, ids = qwen_tokenizer(folder, (*TASKS, "user\n"))
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    sizes = {"size": {"shortest_edge": PATCH**2, "longest_edge": 64**2}, "patch_size": PATCH}
    Qwen2VLImageProcessor(**sizes).save_pretrained(folder)
    Qwen3VLVideoProcessor(**sizes).save_pretrained(folder)
    # A network as transformers initialises it (0.02) hardly heeds what it sees.
    spread = {"initializer_range": 0.3}
    Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True,
            },
            **spread,
        },
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": PATCH,
            "out_hidden_size": WIDTH, "num_position_embeddings": 16, "deepstack_visual_indexes": [0], **spread,
        },
        image_token_id=ids[IMAGE], video_token_id=ids[VIDEO], vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"], tie_word_embeddings=True,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def build_base(folder: Path, backbone: Path, processor: dict[str, Any] | None = None, **options: Any) -> Path:
    """A folder as `base_model_path` names it: config, weights and, with further `processor`, processor settings."""
    attention = {"num_attention_heads": 4, "attention_head_dim": 8, "positional_embeddings": None}
    fields: dict[str, Any] = {
        "model_name": str(backbone), "backbone_model_type": "qwen", "backbone_embedding_dim": WIDTH,
        "select_layer": 2, "hidden_size": 24, "input_embedding_dim": WIDTH, "max_state_dim": 8,
        "max_action_dim": PADDED_DIM, "action_horizon": HORIZON, "max_seq_len": 16, "max_num_embodiments": 12,
        "model_dtype": "float32", "dtype": "float32",
        "diffusion_model_cfg": {
            **attention, "num_layers": 4, "norm_type": "ada_norm", "dropout": 0.2, "final_dropout": True,
            "output_dim": 24, "interleave_self_attention": True,
        },
        "vl_self_attention_cfg": {**attention, "num_layers": 1, "dropout": 0.2, "final_dropout": True},
    }  # fmt: skip
    model = GR00TN17(GR00TN17Config(**{**fields, **options}), load_backbone_weights=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", ".b")):
                parameter.normal_(0, 0.3)
            elif parameter.dim() > 1:
                parameter.normal_(0, 1.0 / parameter.shape[-1] ** 0.5)
    model.to(getattr(torch, model.config.model_dtype)).save_pretrained(folder)
    kwargs = {"image_target_size": [32, 32], "image_crop_size": [32, 32], **(processor or {})}
    (folder / "processor_config.json").write_text(json.dumps({"processor_kwargs": kwargs}))
    return folder


def build(
    folder: Path, *, num_steps: int | None = None, dtype: str = "float32", seed: int = 0,
    cameras: tuple[str, ...] = ("top",), base: dict[str, Any] | None = None, statistics: dict[str, Any] | None = None,
    **options: Any,
) -> Path:  # fmt: skip
    """See `FamilyCase`; the base model, by options of `build_base`, and its backbone go beside the checkpoint.

    Computes in bfloat16 over float32 weights. `statistics` are of the base model's embodiments, for its
    statistics.json; the processors then use these.
    """
    torch.manual_seed(seed)
    with quiet_stdout():
        backbone = build_backbone(folder.parent / f"{folder.name}-qwen")
        base_model = build_base(folder.parent / f"{folder.name}-base", backbone, **(base or {}))
    if statistics is not None:
        (base_model / "statistics.json").write_text(json.dumps(statistics))
    fields: dict[str, Any] = {
        "chunk_size": HORIZON, "n_action_steps": 4, "max_action_dim": PADDED_DIM, "max_state_dim": 8,
        "device": "cpu", "push_to_hub": False, "use_bf16": dtype == "bfloat16", "num_inference_timesteps": num_steps,
        "base_model_path": str(base_model),
    }  # fmt: skip
    config = GrootConfig(**features(cameras), **{**fields, **options})
    with quiet_stdout():
        GrootPolicy(config).save_pretrained(folder)
    for pipeline in make_pre_post_processors(config, dataset_stats=stats()):
        for step in pipeline.steps:
            # A constant in LeRobot; who keeps a copy of the backbone writes its folder here.
            if isinstance(step, GrootN17VLMEncodeStep):
                step.model_name = str(backbone)
        pipeline.save_pretrained(folder)
    return folder


def stock_endpoint(policy: FlowPolicy, batch: dict[str, Any], noise: Tensor) -> Tensor:
    """The chunk (B, H, D) of GR00T's own sampler, each observation by itself, as on a robot.

    GR00T's answer for a prompt depends on the padding that longer prompts in its batch bring along.
    """
    return torch.cat([stock_batch(policy, row, noise[i : i + 1]) for i, row in enumerate(_split(batch))])


def stock_batch(policy: FlowPolicy, batch: dict[str, Any], noise: Tensor) -> Tensor:
    """What GR00T's own sampler, which draws its noise from torch's generator, makes of a whole batch at once."""
    stock: Any = policy.module
    stock.eval()
    inputs = stock._filter_groot_inputs(batch, include_action=False)

    def drawn(*, size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        assert size == tuple(noise.shape)
        return noise.to(device, dtype)

    with (
        patch("torch.randn", drawn),
        torch.autocast(noise.device.type, torch.bfloat16, enabled=stock.config.use_bf16),
    ):
        return stock._groot_model.get_action(inputs)["action_pred"].float()


def _split(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """The observations of a preprocessed batch one by one, as if each had been preprocessed by itself."""
    rows = []
    count = len(batch["input_ids"])
    images = len(batch["image_grid_thw"]) // count
    patches = len(batch["pixel_values"]) // count
    for i in range(count):
        used = batch["attention_mask"][i].bool()
        row = {
            "pixel_values": batch["pixel_values"][i * patches : (i + 1) * patches],
            "image_grid_thw": batch["image_grid_thw"][i * images : (i + 1) * images],
        }
        for key in ("input_ids", "attention_mask", "mm_token_type_ids"):
            row[key] = batch[key][i : i + 1, used]
        for key in ("state", "embodiment_id"):
            row[key] = batch[key][i : i + 1]
        rows.append(row)
    return rows


CASE = FamilyCase("groot", build, stock_endpoint)
