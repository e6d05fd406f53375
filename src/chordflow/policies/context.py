"""Encoded observations.

Shapes: B batch, L layers, P prefix tokens, G key-value heads, E head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class Context:
    """What depends on the observation alone, computed once and used for many noises and times.

    Subclasses are frozen dataclasses whose fields are tensors, the batch first. Using a context never changes it: two
    velocity calls with one context give the same answer.

    Attributes:
        growing: by field, the axis along which observations may differ in length; contexts that are joined
            are padded with zeros (false) along it. Count axes from the front, the batch being 0.
        mask_field: the boolean field (B, P) that is true at what is no padding.
        pad_left: whether padding stands in front, as some tokenizers pad a batch of prompts.
    """

    growing: ClassVar[Mapping[str, int]] = {}
    mask_field: ClassVar[str | None] = None
    pad_left: ClassVar[bool] = False

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The fields."""
        return tuple(item.name for item in fields(cls))  # type: ignore[arg-type]

    def tensors(self) -> tuple[Tensor, ...]:
        """All fields, for sizes and moves."""
        return tuple(getattr(self, name) for name in self.names())

    def map(self, function: Callable[[Tensor], Any]) -> Self:
        """A context whose tensors are `function(tensor)`."""
        return type(self)(*(function(tensor) for tensor in self.tensors()))

    @property
    def batch_size(self) -> int:
        """Number of observations."""
        return self.tensors()[0].shape[0]

    @property
    def num_bytes(self) -> int:
        """Memory that the tensors take, in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())

    def index(self, indices: Tensor) -> Self:
        """The contexts at `indices` (int64, any order, repeats allowed), cut to the longest prefix among them."""
        rows = indices.to(self.tensors()[0].device)
        chosen = self.map(lambda tensor: tensor[rows])
        if self.mask_field is None:
            return chosen
        # Outer columns that no chosen row uses come from joining with longer prompts.
        mask = getattr(chosen, self.mask_field)
        used = mask.any(dim=0).nonzero().flatten()
        if not len(used):
            return chosen
        start, stop = (int(used[0]), mask.shape[1]) if self.pad_left else (0, int(used[-1]) + 1)
        return type(self)(
            *(
                tensor.narrow(self.growing[name], start, stop - start) if name in self.growing else tensor
                for name, tensor in zip(self.names(), chosen.tensors(), strict=True)
            )
        )

    def repeat(self, times: int) -> Self:
        """Each observation `times` in a row: a, a, b, b, ..."""
        return self.index(torch.arange(self.batch_size).repeat_interleave(times))

    def detach(self) -> Self:
        """The same values without a graph."""
        return self.map(lambda tensor: tensor.detach())

    def to(self, device: torch.device | str) -> Self:
        """The same values on `device`."""
        return self.map(lambda tensor: tensor.to(device))

    @classmethod
    def concatenate(cls, contexts: Sequence[Self]) -> Self:
        """Joins contexts along the batch; shorter prefixes are padded and masked."""
        joined = []
        for name in cls.names():
            parts = [getattr(context, name) for context in contexts]
            if name in cls.growing:
                length = max(part.shape[cls.growing[name]] for part in parts)
                parts = [_pad(part, cls.growing[name], length, left=cls.pad_left) for part in parts]
            joined.append(torch.cat(parts))
        return cls(*joined)


def embed_prefix(
    embed: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]],
    words: Callable[[Tensor], Tensor],
    tokens: Tensor,
    mask: Tensor,
    behind: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """LeRobot's `embed_prefix`, which a graph of any prompt length can be traced from.

    LeRobot counts a prompt's tokens in Python, which fixes their number in a graph; there the prompt comes in later.

    Args:
        embed: gives embeddings (B, P, width), mask (B, P) and attention (B, P) for a prompt and its mask.
        words: the embeddings (B, T, width) of tokens (B, T).
        tokens: (B, T).
        mask: (B, T).
        behind: how many tokens stand behind the prompt.
    """
    if not torch.compiler.is_exporting():
        return embed(tokens, mask)
    others = embed(tokens[:, :0], mask[:, :0])
    prompt = words(tokens), mask, torch.zeros_like(mask)
    at = others[1].shape[1] - behind
    parts = [torch.cat((a[:, :at], new, a[:, at:]), dim=1) for a, new in zip(others, prompt, strict=True)]
    return parts[0], parts[1], parts[2]


def _pad(tensor: Tensor, axis: int, length: int, *, left: bool) -> Tensor:
    missing = length - tensor.shape[axis]
    if not missing:
        return tensor
    # `pad` counts axes from the last, two numbers each: in front and behind.
    widths = [0, 0] * (tensor.dim() - 1 - axis) + ([missing, 0] if left else [0, missing])
    return nn.functional.pad(tensor, widths)


@dataclass(frozen=True)
class PrefixContext(Context):
    """The commonest context: the keys and values of an encoded prefix, and its mask.

    Attributes:
        keys_values: (B, L, 2, G, P, E), rotary positions already applied to the keys.
        mask: (B, P), true at real tokens.
    """

    growing: ClassVar[Mapping[str, int]] = {"keys_values": 4, "mask": 1}
    mask_field: ClassVar[str | None] = "mask"

    keys_values: Tensor
    mask: Tensor

    @staticmethod
    def stack(cache: DynamicCache) -> Tensor:
        """The keys and values (B, L, 2, G, P, E) of a filled cache."""
        layers = [torch.stack((layer.keys, layer.values), dim=1) for layer in cache.layers]
        return torch.stack(layers, dim=1)

    def cache(self) -> DynamicCache:
        """A new cache object for one velocity call.

        Policies append to the cache that they are given, or replace its tensors; with a fresh object for each
        call the context stays as it was, and no graph is kept alive through it.
        """
        cache = DynamicCache()
        for keys_values in self.keys_values.unbind(1):
            layer = DynamicLayer()
            keys, values = keys_values.unbind(1)
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            cache.layers.append(layer)
        return cache
