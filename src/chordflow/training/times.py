"""The law of the training time as a setting of the command line."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

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

    law: ClassVar[type[times.TimeDistribution]]
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
