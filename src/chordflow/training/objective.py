"""How far a predicted velocity is from its target, and at which times: settings that training methods share.

A loss is a mean over samples of what each sample has alone: the parts of a batch that several processes hold then
make the loss of the whole.

Shapes: B batch, H chunk size, D padded action dimension.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import draccus
import torch
from torch import Tensor

from chordflow.checks import Checked, number
from chordflow.errors import UserError
from chordflow.flow import times

LEAST = 1e-8
"""Losses of a sample below this weigh no more than this one: their gradients are rounding."""


@dataclass
class LossConfig(Checked, draccus.ChoiceRegistry):
    """The distance of a velocity to its target.

    Attributes:
        equal_weights: divide the loss of every sample by its own value, gradients stopped, so that times and
            observations whose loss is large do not drown the others (Kim et al. 2024, Simple ReFlow, 2410.07815).
    """

    equal_weights: bool = False

    def of_samples(self, error: Tensor, valid: Tensor) -> Tensor:
        """The loss (B,) of each sample, of `error` (B, H, D), which is zero where `valid` is false."""
        raise NotImplementedError(f"{type(self).__name__} does not name its loss")

    def __call__(self, prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """The scalar loss of a batch (B, H, D), over what is `valid`, of a shape that expands to it, or over all.

        With equal weights its gradient is the weighted loss's; its value stays the unweighted mean, for the weighted
        one is 1 whatever the network does.
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

    PREFIX = "loss."

    c: float = number(0.00054, above=0)

    def of_samples(self, error: Tensor, valid: Tensor) -> Tensor:
        """The pseudo-Huber distance of each sample as a vector, per entry that counts."""
        count = _count(valid)
        c = self.c * count
        return ((error.square().sum(dim=(1, 2)) + c**2).sqrt() - c) / count


def _count(valid: Tensor) -> Tensor:
    """How many entries of each sample count, (B,), at least 1."""
    return valid.sum(dim=(1, 2)).clamp_min(1)


@dataclass
class TimesConfig(Checked, draccus.ChoiceRegistry):
    """At which times t the student is trained (t = 1 is noise, t = 0 the action).

    Attributes:
        at_noise: share of samples at exactly t = 1, the only time that a one-step student visits; the rest
            follow the law that `type` names.
    """

    law: ClassVar[type[times.TimeDistribution]]
    PREFIX = "method.times."

    at_noise: float = number(0.5, at_least=0, at_most=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            self.base()
        except UserError as error:
            # The law names its own field; the option is longer.
            raise UserError(f"method.times.{error}") from error

    def base(self) -> times.TimeDistribution:
        """The law apart from the point mass."""
        own = [field.name for field in fields(self) if field.name != "at_noise"]
        return self.law(**{name: getattr(self, name) for name in own})

    def build(self) -> times.TimeDistribution:
        """The law as a whole."""
        if self.at_noise == 0.0:
            return self.base()
        return times.PointMassMixture(weight=self.at_noise, at=1.0, base=self.base())


@TimesConfig.register_subclass("uniform")
@dataclass
class UniformTimes(TimesConfig):
    """All times alike."""

    law = times.Uniform


@TimesConfig.register_subclass("beta")
@dataclass
class BetaTimes(TimesConfig):
    """The law of LeRobot's own training: scale * Beta(alpha, beta) + offset.

    Attributes:
        alpha: first shape parameter; larger leans to noise.
        beta: second shape parameter; larger leans to the action.
    """

    law = times.Beta
    alpha: float = 1.5
    beta: float = 1.0


@TimesConfig.register_subclass("logit_normal")
@dataclass
class LogitNormalTimes(TimesConfig):
    """sigmoid(mean + std * normal): most samples in the middle (Esser et al. 2024, arXiv 2403.03206).

    Attributes:
        mean: of logit(t); above 0 leans to noise.
        std: of logit(t).
    """

    law = times.LogitNormal
    mean: float = 0.0
    std: float = 1.0


@TimesConfig.register_subclass("u_shaped")
@dataclass
class UShapedTimes(TimesConfig):
    """Most samples at both ends (Lee et al. 2024, arXiv 2405.20320).

    Attributes:
        a: steepness.
    """

    law = times.UShaped
    a: float = 4.0


@TimesConfig.register_subclass("exponential")
@dataclass
class ExponentialTimes(TimesConfig):
    """Density proportional to ratio^t (Kim et al. 2024, Simple ReFlow, arXiv 2410.07815).

    Attributes:
        ratio: how many times as likely noise is as the action.
    """

    law = times.Exponential
    ratio: float = 10.0
