"""The commonest context: an encoded prefix's keys and values.

Shapes: B batch, L layers, P prefix tokens, G key-value heads, E head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from chordflow.policies.context import TensorContext


@dataclass(frozen=True)
class PrefixContext(TensorContext):
    """The keys and values of an encoded prefix, and its mask.

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
