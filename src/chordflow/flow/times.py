"""Distributions of the training time t in [0, 1], where t = 1 is noise and t = 0 is the action.

Every sample is a pure function of the generator it is given: `torch.distributions` draws from the global
generator, so it is not used here. Samples are drawn in float64 on the generator's own device, then rounded
to float32 and moved: with a generator on the CPU a seed means the same times on every accelerator.

Shapes: n number of samples.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from chordflow.checks import Checked, number
from chordflow.errors import UserError


class TimeDistribution(Checked, ABC):
    """A law of the training time t on [0, 1]."""

    def sample(self, n: int, generator: torch.Generator, device: torch.device | str | None = None) -> Tensor:
        """Draws n independent times in [0, 1], float32, (n,), on `device` or by default the generator's."""
        times = self._sample(n, generator).to(torch.float32).clamp_(0.0, 1.0)
        return times if device is None else times.to(device)

    @abstractmethod
    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n times in float64 on the generator's device."""


@dataclass(frozen=True)
class Uniform(TimeDistribution):
    """Every time equally likely."""

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        return _uniform(n, generator)


@dataclass(frozen=True)
class Beta(TimeDistribution):
    """`scale * Beta(alpha, beta) + offset`; the defaults are those of LeRobot's flow-matching policies.

    Source: Black et al. 2024 (pi0, arXiv 2410.24164), appendix B; LeRobot's `sample_time_beta`.

    Attributes:
        alpha: first shape parameter, positive. Larger values move mass towards t = 1.
        beta: second shape parameter, positive. Larger values move mass towards t = 0.
        scale: width of the interval of possible times, positive.
        offset: its lower end, at least 0; `offset + scale` is at most 1.
    """

    alpha: float = number(1.5, above=0)
    beta: float = number(1.0, above=0)
    scale: float = number(0.999, above=0)
    offset: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        # The margin lets decimal fractions such as 0.9 + 0.1 pass in spite of rounding.
        if not (self.offset >= 0.0 and self.offset + self.scale <= 1.0 + 1e-9):
            raise UserError(
                f"offset={self.offset} and scale={self.scale}: times must stay in [0, 1], "
                "so choose offset >= 0 and offset + scale <= 1."
            )

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        # A ratio of gamma variables is exactly beta-distributed.
        a, b = (_gamma(shape, n, generator) for shape in (self.alpha, self.beta))
        return a / (a + b) * self.scale + self.offset


@dataclass(frozen=True)
class LogitNormal(TimeDistribution):
    """`sigmoid(mean + std * normal)`: mass in the middle for std near 1, at both ends for std above 2.

    Source: Esser et al. 2024 (arXiv 2403.03206), section 3.1.

    Attributes:
        mean: mean of logit(t); positive values move mass towards t = 1.
        std: standard deviation of logit(t), positive.
    """

    mean: float = number(0.0)
    std: float = number(1.0, above=0)

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        normal = torch.randn(n, generator=generator, device=generator.device, dtype=torch.float64)
        return torch.sigmoid(self.mean + self.std * normal)


@dataclass(frozen=True)
class UShaped(TimeDistribution):
    """Mass at both ends: density proportional to `exp(a * s) + exp(-a * s)` with `s = t - 1/2`.

    Source: Lee et al. 2024 (arXiv 2405.20320), section 4, with a = 4. The paper prints the formula in t
    itself, which on [0, 1] would rise throughout; measured from the middle it is the U that the text
    describes, and the mixture of `exp(a * t)` and `exp(a * (1 - t))` that the authors' code draws.

    Attributes:
        a: steepness, positive. The density at the ends is cosh(a / 2) times that in the middle.
    """

    a: float = number(4.0, above=0, at_most=500, note=", beyond which every time is an end point")

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        # The cumulative law is (sinh(a s) / sinh(a / 2) + 1) / 2, which has an inverse in closed form.
        u = _uniform(n, generator)
        return 0.5 + torch.asinh((2 * u - 1) * math.sinh(self.a / 2)) / self.a


@dataclass(frozen=True)
class Exponential(TimeDistribution):
    """Density proportional to `ratio ** t`: above 1 it leans to noise, below 1 to the action.

    Source: Kim et al. 2024 (Simple ReFlow, arXiv 2410.07815), with ratio 10. Their t = 1 is taken to be noise, as
    it is here: they divide a denoiser's error by t to have a velocity's.

    Attributes:
        ratio: how many times as likely noise is as the action, positive and not 1.
    """

    ratio: float = number(10.0, above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        # Near 1 the formula below loses all its digits.
        if abs(self.ratio - 1.0) < 1e-6:
            raise UserError(f"ratio={self.ratio}: give another number than 1, or take the uniform law.")

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        # The cumulative law is (ratio^t - 1) / (ratio - 1).
        return torch.log1p(_uniform(n, generator) * (self.ratio - 1.0)) / math.log(self.ratio)


@dataclass(frozen=True)
class PointMassMixture(TimeDistribution):
    """One time with a fixed probability, and another law for the rest.

    With the defaults half of the samples lie at t = 1, the only time that a one-step student visits, and
    half are uniform, which keeps larger step counts usable.

    Attributes:
        weight: probability of the time `at`, in [0, 1].
        at: that time, in [0, 1].
        base: law of the remaining samples.
    """

    weight: float = number(0.5, at_least=0, at_most=1)
    at: float = number(1.0, at_least=0, at_most=1)
    base: TimeDistribution = field(default_factory=Uniform)

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        at_point = _uniform(n, generator) < self.weight
        return torch.where(at_point, self.at, self.base._sample(n, generator))


def _uniform(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)


def _gamma(shape: float, n: int, generator: torch.Generator) -> Tensor:
    # The one gamma sampler of torch that takes a generator; torch.distributions.Gamma wraps it without.
    concentration = torch.full((n,), shape, device=generator.device, dtype=torch.float64)
    return torch._standard_gamma(concentration, generator=generator)
