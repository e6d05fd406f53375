"""A small real multi-task DiT with the flow-matching objective, for the tests of all families."""

from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig
from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, PreTrainedTokenizerFast

from builders import TASKS
from chordflow.policies import FlowPolicy
from chordflow.quiet import quiet_stdout
from family_case import FamilyCase, features, save

BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def build_clip(folder: Path, seed: int = 0) -> Path:
    """A CLIP of a few thousand parameters with a byte-level tokenizer."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TASKS, vocab_size=320, special_tokens=[BOS, EOS], show_progress=False)
    bos, eos = (bpe.token_to_id(token) for token in (BOS, EOS))
    bpe._tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, bos), (EOS, eos)]
    )
    # CLIP's own tokenizer pads with the end of the text, too.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token=BOS, eos_token=EOS, pad_token=EOS, model_max_length=77
    )
    tokenizer.save_pretrained(folder)
    shared = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), bos_token_id=bos, eos_token_id=eos, pad_token_id=eos, **shared
    )
    vision = CLIPVisionConfig(image_size=24, patch_size=8, **shared)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(
            CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
        )
        with torch.no_grad():
            for parameter in model.parameters():
                # CLIP starts from numbers so small that all observations would look alike.
                parameter.copy_(torch.randn_like(parameter) * 0.3)
        model.save_pretrained(folder)
    return folder


def build(folder: Path, *, num_steps: int = 100, seed: int = 0, **options: Any) -> Path:
    """See `FamilyCase`: two observed steps, images resized and cropped."""
    clip = folder.parent / f"{folder.name}-tiny-clip"
    fields: dict[str, Any] = {
        "objective": "flow_matching", "horizon": 8, "n_action_steps": 4, "hidden_dim": 16, "num_layers": 2,
        "num_heads": 2, "timestep_embed_dim": 8, "image_resize_shape": (28, 28), "image_crop_shape": (24, 24),
        "vision_encoder_name": str(clip), "text_encoder_name": str(clip), "device": "cpu", "push_to_hub": False,
        "num_integration_steps": num_steps,
    }  # fmt: skip
    with quiet_stdout():
        if not clip.exists():
            build_clip(clip)
        config = MultiTaskDiTConfig(**features(options.pop("cameras", ("top",))), **{**fields, **options})
        torch.manual_seed(seed)
        policy = MultiTaskDiTPolicy(config)
    with torch.no_grad():
        for name, parameter in policy.noise_predictor.named_parameters():
            # At its initialisation the network passes by all attention: its gates are zero.
            if "adaLN_modulation" in name:
                parameter.normal_(std=0.2)
            else:
                parameter.mul_(2.0)
    return save(policy, folder, stats(config))


def stats(config: MultiTaskDiTConfig) -> dict[str, dict[str, Tensor]]:
    """Statistics for the family's own normalisation: images by mean and deviation, the rest by range."""
    image = {
        "mean": torch.tensor([0.5, 0.4, 0.3])[:, None, None],
        "std": torch.tensor([0.2, 0.3, 0.25])[:, None, None],
    }
    return {
        "observation.state": {"min": torch.tensor([-2.0, -1.0, -3.0]), "max": torch.tensor([2.0, 3.0, 1.0])},
        "action": {"min": torch.tensor([6.0, -1.0]), "max": torch.tensor([10.0, 2.0])},
        **dict.fromkeys(config.image_features, image),
    }


def stock_endpoint(policy: FlowPolicy, batch: dict[str, Any], noise: Tensor) -> Tensor:
    """The whole chunk of the stock objective's own sampler, which draws its noise itself: it is handed ours."""
    stock: Any = policy.module
    with torch.no_grad(), mock.patch("torch.randn", return_value=noise.clone()) as drawn:
        vector = stock.observation_encoder.encode(stock._prepare_batch(batch))
        endpoint = stock.objective.conditional_sample(stock.noise_predictor, len(noise), vector)
    assert drawn.call_count == 1
    return endpoint


CASE = FamilyCase("multi_task_dit", build, stock_endpoint)
