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

from chordflow.errors import UserError


class TimeDistribution(ABC):
    """A law of the training time t on [0, 1]."""

    def sample(self, n: int, generator: torch.Generator, device: torch.device | str | None = None) -> Tensor:
        """Draw n independent times.

        Args:
            n: number of times.
            generator: the only source of randomness.
            device: where the result goes; the generator's device by default.

        Returns:
            Times in [0, 1], float32, shape (n,).
        """
        times = self._sample(n, generator).to(torch.float32).clamp_(0.0, 1.0)
        return times if device is None else times.to(device)

    @abstractmethod
    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n times in float64 on the generator's device."""

    @abstractmethod
    def density(self, t: Tensor) -> Tensor:
        """Probability density at t.

        Args:
            t: times in [0, 1], any shape.

        Returns:
            The density, float64, in the shape of `t`.

        Raises:
            NotImplementedError: if the law has no density because some times have a probability of their own.
        """


@dataclass(frozen=True)
class Uniform(TimeDistribution):
    """Every time equally likely."""

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        return _uniform(n, generator)

    def density(self, t: Tensor) -> Tensor:
        """See the base class."""
        return ((t >= 0) & (t <= 1)).to(torch.float64)


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

    alpha: float = 1.5
    beta: float = 1.0
    scale: float = 0.999
    offset: float = 0.001

    def __post_init__(self) -> None:
        _require_positive("alpha", self.alpha)
        _require_positive("beta", self.beta)
        _require_positive("scale", self.scale)
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

    def density(self, t: Tensor) -> Tensor:
        """See the base class."""
        x = (t.to(torch.float64) - self.offset) / self.scale
        log_norm = math.lgamma(self.alpha) + math.lgamma(self.beta) - math.lgamma(self.alpha + self.beta)
        inside = x.clamp(0.0, 1.0)
        log_density = _xlogy(self.alpha - 1.0, inside) + _xlogy(self.beta - 1.0, 1.0 - inside) - log_norm
        return torch.where((x >= 0) & (x <= 1), log_density.exp() / self.scale, 0.0)


@dataclass(frozen=True)
class LogitNormal(TimeDistribution):
    """`sigmoid(mean + std * normal)`: mass in the middle for std near 1, at both ends for std above 2.

    Source: Esser et al. 2024 (arXiv 2403.03206), section 3.1.

    Attributes:
        mean: mean of logit(t); positive values move mass towards t = 1.
        std: standard deviation of logit(t), positive.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean):
            raise UserError(f"mean={self.mean}: give a finite number.")
        _require_positive("std", self.std)

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        normal = torch.randn(n, generator=generator, device=generator.device, dtype=torch.float64)
        return torch.sigmoid(self.mean + self.std * normal)

    def density(self, t: Tensor) -> Tensor:
        """See the base class; zero at t = 0 and t = 1, its limits there."""
        t = t.to(torch.float64)
        inside = (t > 0) & (t < 1)
        safe = torch.where(inside, t, 0.5)
        z = (torch.logit(safe) - self.mean) / self.std
        density = torch.exp(-0.5 * z**2) / (self.std * math.sqrt(2 * math.pi) * safe * (1 - safe))
        return torch.where(inside, density, 0.0)


@dataclass(frozen=True)
class UShaped(TimeDistribution):
    """Mass at both ends: density proportional to `exp(a * s) + exp(-a * s)` with `s = t - 1/2`.

    Source: Lee et al. 2024 (arXiv 2405.20320), section 4, with a = 4. The paper prints the formula in t
    itself, which on [0, 1] would rise throughout; measured from the middle it is the U that the text
    describes, and the mixture of `exp(a * t)` and `exp(a * (1 - t))` that the authors' code draws.

    Attributes:
        a: steepness, positive. The density at the ends is cosh(a / 2) times that in the middle.
    """

    a: float = 4.0

    def __post_init__(self) -> None:
        _require_positive("a", self.a)
        if self.a > 500.0:
            raise UserError(f"a={self.a}: give at most 500, beyond which every time is an end point.")

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        # The cumulative law is (sinh(a s) / sinh(a / 2) + 1) / 2, which has an inverse in closed form.
        u = _uniform(n, generator)
        return 0.5 + torch.asinh((2 * u - 1) * math.sinh(self.a / 2)) / self.a

    def density(self, t: Tensor) -> Tensor:
        """See the base class."""
        s = t.to(torch.float64) - 0.5
        density = self.a * torch.cosh(self.a * s) / (2 * math.sinh(self.a / 2))
        return torch.where(s.abs() <= 0.5, density, 0.0)


@dataclass(frozen=True)
class Exponential(TimeDistribution):
    """Density proportional to `ratio ** t`: above 1 it leans to noise, below 1 to the action.

    Source: Kim et al. 2024 (Simple ReFlow, arXiv 2410.07815), with ratio 10. Their t = 1 is taken to be noise, as
    it is here: they divide a denoiser's error by t to have a velocity's.

    Attributes:
        ratio: how many times as likely noise is as the action, positive and not 1.
    """

    ratio: float = 10.0

    def __post_init__(self) -> None:
        _require_positive("ratio", self.ratio)
        # Near 1 the formulas below lose all their digits.
        if abs(self.ratio - 1.0) < 1e-6:
            raise UserError(f"ratio={self.ratio}: give another number than 1, or take the uniform law.")

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        # The cumulative law is (ratio^t - 1) / (ratio - 1).
        return torch.log1p(_uniform(n, generator) * (self.ratio - 1.0)) / math.log(self.ratio)

    def density(self, t: Tensor) -> Tensor:
        """See the base class."""
        t = t.to(torch.float64)
        density = math.log(self.ratio) / (self.ratio - 1.0) * torch.exp(t * math.log(self.ratio))
        return torch.where((t >= 0) & (t <= 1), density, 0.0)


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

    weight: float = 0.5
    at: float = 1.0
    base: TimeDistribution = field(default_factory=Uniform)

    def __post_init__(self) -> None:
        for name in ("weight", "at"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise UserError(f"{name}={value}: give a number from 0 to 1.")

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        at_point = _uniform(n, generator) < self.weight
        return torch.where(at_point, self.at, self.base._sample(n, generator))

    def density(self, t: Tensor) -> Tensor:
        """Not defined: a time with a fixed probability has no density.

        Raises:
            NotImplementedError: always, unless `weight` is 0.
        """
        if self.weight == 0.0:
            return self.base.density(t)
        raise NotImplementedError(f"a mixture with a point mass at t = {self.at} has no density.")


def _uniform(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)


def _gamma(shape: float, n: int, generator: torch.Generator) -> Tensor:
    # The one gamma sampler of torch that takes a generator; torch.distributions.Gamma wraps it without.
    concentration = torch.full((n,), shape, device=generator.device, dtype=torch.float64)
    return torch._standard_gamma(concentration, generator=generator)


def _xlogy(factor: float, x: Tensor) -> Tensor:
    # 0 * log 0 is 0 here, where an exponent of zero meets an end of the interval.
    return torch.xlogy(torch.full_like(x, factor), x)


def _require_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0.0):
        raise UserError(f"{name}={value}: give a finite number above 0.")
