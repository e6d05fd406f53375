"""Solvers, curvature and the straight path against flows known in closed form."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chordflow.flow.curvature import measure_curvature
from chordflow.flow.path import interpolate, velocity_target
from chordflow.flow.solvers import get_solver
from closed_forms import GaussianFlow, GaussianMixtureFlow

H, D = 4, 3


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _flow(seed: int = 0) -> GaussianFlow:
    return GaussianFlow(mean=_randn(H, D, seed=seed), std=0.2 + _randn(H, D, seed=seed + 1).abs())


def _two_modes(std: float = 0.1) -> GaussianMixtureFlow:
    means = torch.stack([torch.ones(H, D), -torch.ones(H, D)]).double()
    return GaussianMixtureFlow(torch.tensor([0.5, 0.5]).double(), means, torch.full_like(means, std))


def _regression_velocity(x: torch.Tensor, t: float, sample: torch.Tensor, noise: torch.Tensor) -> float:
    """Mean of noise - action among samples whose x_t lies close to x: the definition of the optimum."""
    close = (t * noise + (1 - t) * sample - x).abs() < 0.02
    return float((noise - sample)[close].mean())


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_closed_form_velocity_is_the_conditional_mean(t: float, kind: str) -> None:
    n = 2_000_000
    g = torch.Generator().manual_seed(0)
    one = torch.ones(1, 1, dtype=torch.float64)
    flow: GaussianFlow | GaussianMixtureFlow
    if kind == "gaussian":
        flow = GaussianFlow(0.5 * one, 0.6 * one)
        sample = 0.5 + 0.6 * torch.randn(n, generator=g, dtype=torch.float64)
    else:
        weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
        flow = GaussianMixtureFlow(weights, torch.stack([one, -one]), 0.3 * torch.stack([one, one]))
        sample = flow.sample(n, g).flatten()
    noise = torch.randn(n, generator=g, dtype=torch.float64)
    x = torch.full((1, 1, 1), 0.1, dtype=torch.float64)
    v = float(flow.velocity(x, torch.tensor([t], dtype=torch.float64)))
    assert v == pytest.approx(_regression_velocity(x.flatten(), t, sample, noise), abs=0.03)


def test_curvature_agrees_with_the_closed_form_to_one_percent() -> None:
    flow = _flow()
    # Antithetic noise of exactly unit variance removes the sampling error, which is not what is tested.
    noise = _randn(256, H, D, seed=3)
    noise = torch.cat([noise, -noise])
    noise = noise / noise.square().mean(dim=0).sqrt()
    measured, endpoint = measure_curvature(flow.velocity, noise, 100, real_dims=2)
    assert measured.curvature == pytest.approx(flow.curvature(2), rel=0.01)
    assert measured.curvature_all_dims == pytest.approx(flow.curvature(D), rel=0.01)
    assert measured.s == pytest.approx(float(flow.s_by_dim()[:2].sum()), rel=0.02)
    assert measured.s_all_dims == pytest.approx(float(flow.s_by_dim().sum()), rel=0.02)
    torch.testing.assert_close(endpoint, get_solver("euler").integrate(flow.velocity, noise, 100))


@given(st.integers(1, 15))
@settings(max_examples=10, deadline=None)
def test_merged_batches_equal_one_batch(cut: int) -> None:
    velocity, noise = _two_modes().velocity, _randn(16, H, D)
    whole, _ = measure_curvature(velocity, noise, 20, real_dims=1)
    parts = [measure_curvature(velocity, part, 20, real_dims=1)[0] for part in (noise[:cut], noise[cut:])]
    merged = parts[0].merge(parts[1])
    assert merged.count == 16
    assert merged.s == pytest.approx(whole.s)
    assert merged.curvature_all_dims == pytest.approx(whole.curvature_all_dims)


def test_curvature_counts_the_rows_that_it_is_told() -> None:
    noise = _randn(8, H, D)

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        bent = torch.zeros_like(x)
        bent[:, 0] = t[:, None]
        return bent + 1.0

    bent, _ = measure_curvature(velocity, noise, 20, real_dims=2, real_rows=slice(0, 1))
    straight, _ = measure_curvature(velocity, noise, 20, real_dims=2, real_rows=slice(1, None))
    assert bent.curvature > 0.01
    assert straight.curvature < 1e-6


def test_reflow_of_the_gaussian_coupling_is_straight_and_keeps_the_endpoints() -> None:
    flow, noise = _flow(), _randn(64, H, D, seed=9)
    measured, _ = measure_curvature(flow.reflowed_velocity, noise, 100, real_dims=D)
    assert measured.curvature < 1e-6
    one_step = get_solver("euler").integrate(flow.reflowed_velocity, noise, 1)
    torch.testing.assert_close(one_step, flow.endpoint(noise))


@given(st.integers(0, 1000), st.floats(0.0, 0.9), st.floats(0.001, 0.1))
def test_velocity_is_the_derivative_of_the_path(seed: int, t: float, dt: float) -> None:
    noise, endpoint = (_randn(3, 4, 5, seed=s) for s in (seed, seed + 1))
    early, late = (torch.full((3,), s, dtype=torch.float64) for s in (t, t + dt))
    slope = (interpolate(noise, endpoint, late) - interpolate(noise, endpoint, early)) / dt
    torch.testing.assert_close(slope, velocity_target(noise, endpoint), rtol=1e-6, atol=1e-9)


def test_each_sample_has_its_own_time() -> None:
    noise, endpoint = (_randn(3, 4, 5, seed=s) for s in (2, 3))
    mixed = interpolate(noise, endpoint, torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64))
    assert torch.equal(mixed[0], endpoint[0])
    assert torch.equal(mixed[1], noise[1])
    torch.testing.assert_close(mixed[2], (noise[2] + endpoint[2]) / 2)


def test_a_chunk_cut_to_the_real_dimensions_is_refused() -> None:
    noise, endpoint = (_randn(3, 4, 5, seed=s) for s in (4, 5))
    with pytest.raises(ValueError, match="must be equal"):
        interpolate(noise, endpoint[..., :1], torch.ones(3))
    with pytest.raises(ValueError, match="must be equal"):
        velocity_target(noise, endpoint[..., :1])
    with pytest.raises(ValueError, match="one time per sample"):
        interpolate(noise, endpoint, torch.ones(1))
