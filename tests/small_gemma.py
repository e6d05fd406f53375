"""pi0 and pi0.5 small enough for tests: importing this shrinks what LeRobot's code fixes in numbers.

The sizes of the Gemma variants, of the vision tower and of the vocabulary are no fields of the config. Every
class stays LeRobot's or transformers' own; only the numbers that they are built with change.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from lerobot.policies.pi0 import modeling_pi0
from lerobot.policies.pi05 import modeling_pi05
from lerobot.policies.pi_gemma import PaliGemmaForConditionalGenerationWithPiGemma, PiGemmaForCausalLM

IMAGE_SIZE = 32
VOCABULARY = 640
# The joint forward of LeRobot's loss takes eight heads for granted.
WIDTHS = {"gemma_2b": 48, "gemma_300m": 32}
DEPTH, HEADS, HEAD_DIM = 2, 8, 8


def small_variant(variant: str) -> modeling_pi0.GemmaConfig:
    """Two layers in place of eighteen; the expert is narrower than the language model, as in the real ones."""
    width = WIDTHS[variant]
    return modeling_pi0.GemmaConfig(
        width=width, depth=DEPTH, mlp_dim=2 * width, num_heads=HEADS, num_kv_heads=1, head_dim=HEAD_DIM
    )


def small_paligemma(config: Any) -> PaliGemmaForConditionalGenerationWithPiGemma:
    """PaliGemma with a vision tower of one layer and a vocabulary of a byte-level tokenizer."""
    config.text_config.vocab_size = VOCABULARY
    vision = config.vision_config
    vision.hidden_size, vision.intermediate_size = 16, 32
    vision.projection_dim = config.text_config.hidden_size
    vision.num_hidden_layers, vision.num_attention_heads, vision.patch_size = 1, 2, 8
    return PaliGemmaForConditionalGenerationWithPiGemma(config)


def small_expert(config: Any) -> PiGemmaForCausalLM:
    """The expert with the same vocabulary."""
    config.vocab_size = VOCABULARY
    return PiGemmaForCausalLM(config)


_SMALL = {
    "get_gemma_config": small_variant,
    "PaliGemmaForConditionalGenerationWithPiGemma": small_paligemma,
    "PiGemmaForCausalLM": small_expert,
}
_FULL = {module: {name: getattr(module, name) for name in _SMALL} for module in (modeling_pi0, modeling_pi05)}


def _use(size: Callable[[ModuleType], Mapping[str, Any]]) -> None:
    for module in _FULL:
        for name, value in size(module).items():
            setattr(module, name, value)


@contextmanager
def full_size() -> Iterator[None]:
    """LeRobot's own numbers for a while."""
    _use(_FULL.__getitem__)
    try:
        yield
    finally:
        _use(lambda _: _SMALL)


_use(lambda _: _SMALL)
