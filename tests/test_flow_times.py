"""Time distributions against the laws that they name."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chordflow.errors import UserError
from chordflow.flow.times import (
    Beta,
    Exponential,
    LogitNormal,
    PointMassMixture,
    TimeDistribution,
    Uniform,
    UShaped,
)

type Cumulative = Callable[[np.ndarray], np.ndarray]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _logit_normal(mean: float, std: float) -> Cumulative:
    return lambda t: scipy.stats.norm(mean, std).cdf(np.log(t) - np.log1p(-t))


def _arms(a: float) -> Cumulative:
    """Of the mixture of exp(a t) and exp(a (1 - t)), as the authors' code draws it."""
    return lambda t: 0.5 * (np.expm1(a * t) + math.exp(a) - np.exp(a * (1 - t))) / math.expm1(a)


LAWS: dict[str, tuple[TimeDistribution, Cumulative]] = {
    "uniform": (Uniform(), scipy.stats.uniform().cdf),
    "lerobots": (Beta(), scipy.stats.beta(1.5, 1.0, loc=0.001, scale=0.999).cdf),
    "beta": (Beta(0.7, 2.5, 1.0, 0.0), scipy.stats.beta(0.7, 2.5).cdf),
    "logit normal": (LogitNormal(0.5, 1.3), _logit_normal(0.5, 1.3)),
    "logit normal to the action": (LogitNormal(-0.4, 0.8), _logit_normal(-0.4, 0.8)),
    "u": (UShaped(), _arms(4.0)),
    "flat u": (UShaped(0.5), _arms(0.5)),
    "exponential": (Exponential(), lambda t: (10.0**t - 1) / 9),
    "exponential to the action": (Exponential(0.2), lambda t: (1 - 0.2**t) / 0.8),
}


@pytest.mark.parametrize("name", LAWS)
def test_samples_follow_the_law(name: str) -> None:
    law, cumulative = LAWS[name]
    assert scipy.stats.kstest(law.sample(20_000, _generator()).double().numpy(), cumulative).pvalue > 1e-3


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0))
@settings(max_examples=20)
def test_point_mass_has_its_weight(weight: float, at: float) -> None:
    n = 4_000
    at32 = torch.tensor(at, dtype=torch.float32)
    hits = int((PointMassMixture(weight, at).sample(n, _generator()) == at32).sum())
    assert abs(hits / n - weight) <= 5 * math.sqrt(weight * (1 - weight) / n) + 1e-9


def test_default_mixture_is_half_at_noise_and_half_uniform() -> None:
    samples = PointMassMixture().sample(20_000, _generator())
    rest = samples[samples < 1.0]
    assert len(rest) == pytest.approx(10_000, abs=350)
    assert scipy.stats.kstest(rest.numpy(), "uniform").pvalue > 1e-3


MIXTURES = [PointMassMixture(), PointMassMixture(0.3, 0.0, Beta())]


@pytest.mark.parametrize("law", [*(law for law, _ in LAWS.values()), *MIXTURES], ids=repr)
def test_samples_are_a_function_of_the_generator_alone(law: TimeDistribution) -> None:
    torch.manual_seed(1)
    first = law.sample(64, _generator(7))
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert torch.equal(first, law.sample(64, _generator(7)))
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(first, law.sample(64, _generator(8)))
    assert (first.dtype, first.shape) == (torch.float32, (64,))
    assert bool(((first >= 0) & (first <= 1)).all())


@pytest.mark.parametrize(("make", "field"), [
    (lambda: Beta(alpha=0.0), "alpha=0.0: give a number above 0"),
    (lambda: Beta(beta=math.nan), "beta"),
    (lambda: Beta(offset=0.1), "offset"),
    (lambda: LogitNormal(std=-1.0), "std"),
    (lambda: LogitNormal(mean=math.inf), "mean"),
    (lambda: PointMassMixture(weight=1.5), "weight"),
    (lambda: PointMassMixture(at=-0.1), "at="),
])  # fmt: skip
def test_bad_parameters_are_named(make: Callable[[], object], field: str) -> None:
    with pytest.raises(UserError, match=field):
        make()
