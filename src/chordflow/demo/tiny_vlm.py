"""A tiny but real SmolVLM: the folder that a SmolVLA checkpoint's `vlm_model_name` points at.

Everything in it is of the stock classes, shrunk: a SigLIP-like vision tower, a pixel-shuffle connector, a
Llama-like text model, a byte-level tokenizer and the SmolVLM processor. It has no weights: a policy with
`load_vlm_weights=False` takes them from its own checkpoint, and a tiny one trains them with its action head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import ByteLevelBPETokenizer
from transformers import (
    LlamaConfig,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}


@dataclass(frozen=True)
class TinyVLMSize:
    """How large the VLM is.

    Attributes:
        image_size: side of the square image that the vision tower takes, in pixels.
        patch_size: side of a patch, in pixels.
        scale_factor: the connector joins `scale_factor ** 2` patches into one token of the prefix.
        vision_width: hidden size of the vision tower.
        vision_layers: layers of the vision tower.
        text_width: hidden size of the text model.
        text_layers: layers of the text model; the action head has as many.
        num_heads: attention heads of both; must divide both widths.
    """

    image_size: int = 64
    patch_size: int = 8
    scale_factor: int = 4
    vision_width: int = 64
    vision_layers: int = 2
    text_width: int = 96
    text_layers: int = 4
    num_heads: int = 4

    @property
    def image_tokens(self) -> int:
        """Tokens that one image takes in the prefix."""
        return (self.image_size // self.patch_size) ** 2 // self.scale_factor**2


def build_tiny_vlm(folder: Path, instructions: Sequence[str], size: TinyVLMSize | None = None) -> Path:
    """Writes a tiny SmolVLM with tokenizer and processor to a folder, by the classes' own `save_pretrained`.

    Words of the instructions become single tokens; any other text is spelled in bytes. The size is the demo's own by
    default.
    """
    size = size or TinyVLMSize()
    tokenizer = _tokenizer(instructions)
    side = {"longest_edge": size.image_size}
    pictures: dict[str, Any] = {"size": side, "max_image_size": side, "do_image_splitting": False}
    SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(**pictures),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(**pictures),
        image_seq_len=size.image_tokens,
    ).save_pretrained(folder)
    config = _config(size, tokenizer)
    config.architectures = [SmolVLMForConditionalGeneration.__name__]
    config.save_pretrained(folder)
    return folder


def _tokenizer(instructions: Sequence[str]) -> PreTrainedTokenizerFast:
    bpe = ByteLevelBPETokenizer()
    # A policy puts a line break behind the instruction. Whole words pay: at this size a prefix spelled in
    # bytes costs more than the image does.
    bpe.train_from_iterator(
        [f"{instruction}\n" for instruction in instructions],
        vocab_size=1024,
        min_frequency=1,
        special_tokens=list(SPECIAL_TOKENS.values()),
        show_progress=False,
    )
    standard = {name: SPECIAL_TOKENS[name] for name in ("pad_token", "bos_token", "eos_token", "unk_token")}
    extra = {name: token for name, token in SPECIAL_TOKENS.items() if name not in standard}
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, extra_special_tokens=extra, padding_side="right", **standard
    )


def _config(size: TinyVLMSize, tokenizer: PreTrainedTokenizerFast) -> SmolVLMConfig:
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.text_width,
        intermediate_size=2 * size.text_width,
        num_hidden_layers=size.text_layers,
        num_attention_heads=size.num_heads,
        num_key_value_heads=size.num_heads,
        head_dim=size.text_width // size.num_heads,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = SmolVLMVisionConfig(
        hidden_size=size.vision_width,
        intermediate_size=2 * size.vision_width,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.num_heads,
        image_size=size.image_size,
        patch_size=size.patch_size,
    )
    return SmolVLMConfig(
        text_config=text,
        vision_config=vision,
        scale_factor=size.scale_factor,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
