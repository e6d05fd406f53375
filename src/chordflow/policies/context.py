"""Encoded observations.

Shapes: B batch, P prefix tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn


class Context(ABC):
    """What depends on the observation alone, computed once and used for many noises and times.

    Using a context never changes it: two velocity calls with one context give the same answer.
    """

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """Number of observations."""

    @abstractmethod
    def index(self, indices: Tensor) -> Self:
        """The contexts at `indices` (int64, any order, repeats allowed)."""

    @classmethod
    @abstractmethod
    def concatenate(cls, contexts: Sequence[Self]) -> Self:
        """Joins contexts along the batch; prefixes of unequal length are padded and masked."""

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor held, for sizes and moves."""

    @abstractmethod
    def map(self, function: Any) -> Self:
        """A context whose tensors are `function(tensor)`."""

    def repeat(self, times: int) -> Self:
        """Each observation `times` in a row: a, a, b, b, ..."""
        rows = torch.arange(self.batch_size).repeat_interleave(times)
        return self.index(rows)

    def detach(self) -> Self:
        """The same values without a graph."""
        return self.map(lambda tensor: tensor.detach())

    def to(self, device: torch.device | str) -> Self:
        """The same values on `device`."""
        return self.map(lambda tensor: tensor.to(device))

    @property
    def num_bytes(self) -> int:
        """Memory that the tensors take, in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())


class TensorContext(Context):
    """A context whose fields are tensors, the batch first. Subclasses are frozen dataclasses.

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
        """All fields."""
        return tuple(getattr(self, name) for name in self.names())

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Applies `function` to every field."""
        return type(self)(*(function(tensor) for tensor in self.tensors()))

    @property
    def batch_size(self) -> int:
        """Number of observations."""
        return self.tensors()[0].shape[0]

    def index(self, indices: Tensor) -> Self:
        """The contexts at `indices`, cut to the longest prefix among them."""
        rows = indices.to(self.tensors()[0].device)
        chosen = self.map(lambda tensor: tensor[rows])
        if self.mask_field is None:
            return chosen
        # Outer columns that no chosen row uses come from joining with longer prompts.
        used = getattr(chosen, self.mask_field).any(dim=0).nonzero().flatten()
        if not len(used):
            return chosen
        length = getattr(chosen, self.mask_field).shape[1]
        start, stop = (int(used[0]), length) if self.pad_left else (0, int(used[-1]) + 1)
        return type(self)(
            *(
                tensor.narrow(self.growing[name], start, stop - start) if name in self.growing else tensor
                for name, tensor in zip(self.names(), chosen.tensors(), strict=True)
            )
        )

    @classmethod
    def concatenate(cls, contexts: Sequence[Self]) -> Self:
        """Joins contexts; shorter ones are padded with masked zeros."""
        joined = []
        for name in cls.names():
            parts = [getattr(context, name) for context in contexts]
            if name in cls.growing:
                length = max(part.shape[cls.growing[name]] for part in parts)
                parts = [_pad(part, cls.growing[name], length, left=cls.pad_left) for part in parts]
            joined.append(torch.cat(parts))
        return cls(*joined)


def _pad(tensor: Tensor, axis: int, length: int, *, left: bool) -> Tensor:
    missing = length - tensor.shape[axis]
    if not missing:
        return tensor
    # `pad` counts axes from the last, two numbers each: in front and behind.
    widths = [0, 0] * (tensor.dim() - 1 - axis) + ([missing, 0] if left else [0, missing])
    return nn.functional.pad(tensor, widths)
