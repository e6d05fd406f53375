"""How far a predicted velocity is from its target, as a setting of the command line.

A loss is a mean over samples of what each sample has alone: the parts of a batch that several processes hold then
make the loss of the whole.

Shapes: B batch, H chunk size, D padded action dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import draccus
import torch
from torch import Tensor

from chordflow.checks import check_range

LEAST = 1e-8
"""Losses of a sample below this weigh no more than this one: their gradients are rounding."""


@dataclass
class LossConfig(draccus.ChoiceRegistry):
    """The distance of a velocity to its target.

    Attributes:
        equal_weights: divide the loss of every sample by its own value, gradients stopped, so that times and
            observations whose loss is large do not drown the others (Kim et al. 2024, Simple ReFlow, 2410.07815).
    """

    equal_weights: bool = False

    def of_samples(self, error: Tensor, valid: Tensor) -> Tensor:
        """The loss of each sample, (B,).

        Args:
            error: prediction minus target, (B, H, D), zero where it does not count.
            valid: where it counts, (B, H, D), true or false.
        """
        raise NotImplementedError(f"{type(self).__name__} does not name its loss")

    def __call__(self, prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """The scalar loss of a batch.

        With equal weights its gradient is the weighted loss's; its value stays the unweighted mean, for the weighted
        one is 1 whatever the network does.

        Args:
            prediction: (B, H, D).
            target: (B, H, D).
            valid: where the error counts, true or false, of a shape that expands to (B, H, D); everywhere if None.
        """
        if valid is None:
            valid = torch.ones_like(target, dtype=torch.bool)
        valid = valid.expand_as(target)
        values = self.of_samples((prediction - target) * valid, valid)
        mean = values.mean()
        if not self.equal_weights:
            return mean
        weighted = (values / values.detach().clamp_min(LEAST)).mean()
        return weighted - weighted.detach() + mean.detach()


@LossConfig.register_subclass("mse")
@dataclass
class MeanSquaredError(LossConfig):
    """The mean of squares."""

    def of_samples(self, error: Tensor, valid: Tensor) -> Tensor:
        """Squares, mean over what counts."""
        return error.square().sum(dim=(1, 2)) / _count(valid)

    def __call__(self, prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """The scalar loss of a batch; see the base class."""
        if valid is None and not self.equal_weights:
            # The same number, in one pass.
            return torch.nn.functional.mse_loss(prediction, target)
        return super().__call__(prediction, target, valid)


@LossConfig.register_subclass("pseudo_huber")
@dataclass
class PseudoHuber(LossConfig):
    """(sqrt(|d|^2 + c^2) - c) / D over the D entries of a sample: square near 0, straight far off.

    Lee et al. 2024 (arXiv 2405.20320), with c = 0.00054 D, after Song and Dhariwal 2023 (arXiv 2310.14189).

    Attributes:
        c: where squares turn straight, per entry.
    """

    c: float = 0.00054

    def __post_init__(self) -> None:
        check_range("loss.c", self.c, above=0)

    def of_samples(self, error: Tensor, valid: Tensor) -> Tensor:
        """The pseudo-Huber distance of each sample as a vector, per entry that counts."""
        count = _count(valid)
        c = self.c * count
        return ((error.square().sum(dim=(1, 2)) + c**2).sqrt() - c) / count


def _count(valid: Tensor) -> Tensor:
    """How many entries of each sample count, (B,), at least 1."""
    return valid.sum(dim=(1, 2)).clamp_min(1)
