"""The law of the training time as a setting of the command line."""

from __future__ import annotations

from dataclasses import dataclass

import draccus

from chordflow.checks import check_range
from chordflow.errors import UserError
from chordflow.flow import times


@dataclass
class TimesConfig(draccus.ChoiceRegistry):
    """At which times t the student is trained (t = 1 is noise, t = 0 the action).

    Attributes:
        at_noise: share of samples at exactly t = 1, the only time that a one-step student visits; the rest
            follow the law that `type` names.
    """

    at_noise: float = 0.5

    def __post_init__(self) -> None:
        check_range("method.times.at_noise", self.at_noise, at_least=0, at_most=1)
        try:
            self.base()
        except UserError as error:
            # The law names its own field; the option is longer.
            raise UserError(f"method.times.{error}") from error

    def base(self) -> times.TimeDistribution:
        """The law apart from the point mass."""
        raise NotImplementedError(f"{type(self).__name__} does not name its law")

    def build(self) -> times.TimeDistribution:
        """The law as a whole."""
        if self.at_noise == 0.0:
            return self.base()
        return times.PointMassMixture(weight=self.at_noise, at=1.0, base=self.base())


@TimesConfig.register_subclass("uniform")
@dataclass
class UniformTimes(TimesConfig):
    """All times alike."""

    def base(self) -> times.TimeDistribution:
        """Uniform on [0, 1]."""
        return times.Uniform()


@TimesConfig.register_subclass("beta")
@dataclass
class BetaTimes(TimesConfig):
    """The law of LeRobot's own training: scale * Beta(alpha, beta) + offset.

    Attributes:
        alpha: first shape parameter; larger leans to noise.
        beta: second shape parameter; larger leans to the action.
    """

    alpha: float = 1.5
    beta: float = 1.0

    def base(self) -> times.TimeDistribution:
        """LeRobot's scale and offset keep t away from 0."""
        return times.Beta(alpha=self.alpha, beta=self.beta)


@TimesConfig.register_subclass("logit_normal")
@dataclass
class LogitNormalTimes(TimesConfig):
    """sigmoid(mean + std * normal): most samples in the middle (Esser et al. 2024, arXiv 2403.03206).

    Attributes:
        mean: of logit(t); above 0 leans to noise.
        std: of logit(t).
    """

    mean: float = 0.0
    std: float = 1.0

    def base(self) -> times.TimeDistribution:
        """The logit-normal law."""
        return times.LogitNormal(mean=self.mean, std=self.std)


@TimesConfig.register_subclass("u_shaped")
@dataclass
class UShapedTimes(TimesConfig):
    """Most samples at both ends (Lee et al. 2024, arXiv 2405.20320).

    Attributes:
        a: steepness.
    """

    a: float = 4.0

    def base(self) -> times.TimeDistribution:
        """The U-shaped law."""
        return times.UShaped(a=self.a)


@TimesConfig.register_subclass("exponential")
@dataclass
class ExponentialTimes(TimesConfig):
    """Density proportional to ratio^t (Kim et al. 2024, Simple ReFlow, arXiv 2410.07815).

    Attributes:
        ratio: how many times as likely noise is as the action.
    """

    ratio: float = 10.0

    def base(self) -> times.TimeDistribution:
        """The exponential law."""
        return times.Exponential(self.ratio)
