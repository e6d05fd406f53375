"""Time distributions, held against scipy's laws and their own densities."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import cumulative_trapezoid

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

CONTINUOUS = [
    Uniform(), Beta(), Beta(0.7, 2.5, 1.0, 0.0), LogitNormal(0.5, 1.3), UShaped(), UShaped(0.5), Exponential(),
    Exponential(0.2),
]  # fmt: skip


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("law", CONTINUOUS, ids=repr)
def test_samples_follow_the_density(law: TimeDistribution) -> None:
    # The ends are left out because a density may be infinite there; the grid is refined towards them.
    grid = np.sin(np.linspace(0.0, math.pi / 2, 40_001)[1:-1]) ** 2
    cdf = cumulative_trapezoid(law.density(torch.from_numpy(grid)).numpy(), grid, initial=0.0)
    assert cdf[-1] == pytest.approx(1.0, abs=2e-3)
    samples = law.sample(20_000, _generator()).numpy()
    assert scipy.stats.kstest(samples, lambda x: np.interp(x, grid, cdf / cdf[-1])).pvalue > 1e-3


@pytest.mark.parametrize(
    ("law", "exact"),
    [
        (Uniform(), scipy.stats.uniform()),
        (Beta(), scipy.stats.beta(1.5, 1.0, loc=0.001, scale=0.999)),
        (Beta(0.7, 2.5, 1.0, 0.0), scipy.stats.beta(0.7, 2.5)),
    ],
    # Names that are the same in every process.
    ids=["uniform", "lerobots", "beta"],
)
def test_samples_and_density_match_scipy(law: TimeDistribution, exact: scipy.stats.rv_continuous) -> None:
    assert scipy.stats.kstest(law.sample(20_000, _generator(1)).numpy(), exact.cdf).pvalue > 1e-3
    t = np.linspace(0.01, 0.99, 99)
    np.testing.assert_allclose(law.density(torch.from_numpy(t)).numpy(), exact.pdf(t), rtol=1e-9)


def test_logit_normal_is_normal_in_logits() -> None:
    samples = LogitNormal(-0.4, 0.8).sample(20_000, _generator()).double()
    assert scipy.stats.kstest(torch.logit(samples).numpy(), scipy.stats.norm(-0.4, 0.8).cdf).pvalue > 1e-3


def test_u_shape_has_two_equal_arms_of_the_declared_height() -> None:
    low, middle, high = UShaped(4.0).density(torch.tensor([0.0, 0.5, 1.0])).tolist()
    assert low == pytest.approx(high)
    assert low / middle == pytest.approx(math.cosh(2.0))
    t = torch.linspace(0.0, 1.0, 11, dtype=torch.float64)
    mixture = torch.exp(4 * t) + torch.exp(4 * (1 - t))
    torch.testing.assert_close(UShaped(4.0).density(t) / middle, mixture / mixture[5])


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


@pytest.mark.parametrize(
    "law", [*CONTINUOUS, PointMassMixture(), PointMassMixture(0.3, 0.0, Beta())], ids=repr
)
def test_samples_are_a_function_of_the_generator_alone(law: TimeDistribution) -> None:
    torch.manual_seed(1)
    first = law.sample(64, _generator(7))
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert torch.equal(first, law.sample(64, _generator(7)))
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(first, law.sample(64, _generator(8)))
    assert first.dtype == torch.float32
    assert first.shape == (64,)
    assert bool(((first >= 0) & (first <= 1)).all())


@pytest.mark.parametrize("law", CONTINUOUS, ids=repr)
def test_density_is_zero_outside(law: TimeDistribution) -> None:
    assert law.density(torch.tensor([-0.1, 1.1])).tolist() == [0.0, 0.0]


def test_a_point_mass_has_no_density() -> None:
    with pytest.raises(NotImplementedError):
        PointMassMixture().density(torch.tensor([0.5]))
    assert PointMassMixture(weight=0.0).density(torch.tensor([0.5])).item() == 1.0


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Beta(alpha=0.0), "alpha"),
        (lambda: Beta(beta=math.nan), "beta"),
        (lambda: Beta(offset=0.1), "offset"),
        (lambda: LogitNormal(std=-1.0), "std"),
        (lambda: LogitNormal(mean=math.inf), "mean"),
        (lambda: UShaped(a=0.0), "a="),
        (lambda: Exponential(0.0), "ratio="),
        (lambda: Exponential(1.0), "ratio="),
        (lambda: PointMassMixture(weight=1.5), "weight"),
        (lambda: PointMassMixture(at=-0.1), "at="),
    ],
)
def test_bad_parameters_are_named(make: object, field: str) -> None:
    with pytest.raises(UserError, match=field):
        make()  # type: ignore[operator]


def test_the_exponential_law_makes_noise_as_much_likelier_as_it_says() -> None:
    at_action, at_noise = Exponential(10.0).density(torch.tensor([0.0, 1.0])).tolist()
    assert at_noise / at_action == pytest.approx(10.0)
