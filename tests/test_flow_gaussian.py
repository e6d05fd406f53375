"""Solvers, curvature and the straight path against flows known in closed form."""

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

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


@pytest.mark.parametrize(
    ("solver", "num_steps", "tolerance"), [("euler", 2000, 5e-3), ("midpoint", 200, 1e-3)]
)
def test_solvers_reach_the_exact_endpoint(solver: str, num_steps: int, tolerance: float) -> None:
    flow, noise = _flow(), _randn(32, H, D, seed=5)
    endpoint = get_solver(solver).integrate(flow.velocity, noise, num_steps)
    assert float((endpoint - flow.endpoint(noise)).abs().max()) < tolerance


@given(st.floats(0.05, 3.0))
@settings(max_examples=30, deadline=None)
def test_closed_form_s_is_the_integral(std: float) -> None:
    def slope_squared(t: float) -> float:
        return (t - (1 - t) * std**2) ** 2 / (t**2 + (1 - t) ** 2 * std**2)

    integral, _ = quad(slope_squared, 0.0, 1.0)
    flow = GaussianFlow(torch.zeros(1, 1), torch.full((1, 1), std, dtype=torch.float64))
    assert float(flow.s_by_dim()) == pytest.approx(integral - (1 - std) ** 2, abs=1e-7)


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


def test_curvature_splits_by_time_and_dimension() -> None:
    measured, _ = measure_curvature(_flow().velocity, _randn(8, H, D), 50, real_dims=2)
    assert measured.num_steps == 50
    assert measured.times[0] == 1.0
    assert measured.times[-1] == pytest.approx(0.02)
    assert measured.s_by_time.shape == (50,)
    assert measured.s_by_dim.shape == (D,)
    assert float(measured.s_by_time.mean()) == pytest.approx(measured.s)
    assert float(measured.s_by_dim[:2].sum()) == pytest.approx(measured.s)
    assert float(measured.s_by_dim.sum()) == pytest.approx(measured.s_all_dims)


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


def test_a_straight_field_has_no_curvature_and_a_bent_one_has() -> None:
    noise = _randn(16, H, D)
    shift = torch.arange(D, dtype=torch.float64)
    assert measure_curvature(lambda x, t: shift.expand_as(x), noise, 100, real_dims=D)[0].curvature < 1e-12
    assert measure_curvature(_two_modes().velocity, noise, 100, real_dims=D)[0].curvature > 0.1


def test_curvature_counts_only_the_real_dimensions() -> None:
    def bent_in_the_last(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        v = torch.ones_like(x)
        v[..., -1] = torch.sin(6 * t).view(-1, 1)
        return v

    measured, _ = measure_curvature(bent_in_the_last, _randn(4, H, D), 100, real_dims=D - 1)
    assert measured.curvature < 1e-12
    assert measured.curvature_all_dims > 0.1


def test_reflow_of_the_gaussian_coupling_is_straight_and_keeps_the_endpoints() -> None:
    flow, noise = _flow(), _randn(64, H, D, seed=9)
    measured, _ = measure_curvature(flow.reflowed_velocity, noise, 100, real_dims=D)
    assert measured.curvature < 1e-6
    one_step = get_solver("euler").integrate(flow.reflowed_velocity, noise, 1)
    torch.testing.assert_close(one_step, flow.endpoint(noise))


def test_mixture_flow_ends_in_both_modes_with_their_law() -> None:
    flow, noise = _two_modes(), _randn(512, H, D, seed=2)
    endpoint = get_solver("midpoint").integrate(flow.velocity, noise, 100)
    mode = flow.mode_of(endpoint)
    assert int(mode.sum()) == pytest.approx(256, abs=60)
    # The sign of the summed noise decides the mode in this symmetric case.
    assert torch.equal(mode == 0, noise.sum(dim=(1, 2)) > 0)
    residual = ((endpoint - flow.means[mode]) / 0.1).flatten()
    assert scipy.stats.kstest(residual.numpy(), "norm").statistic < 0.03


def test_one_step_of_a_two_sided_flow_averages_the_modes() -> None:
    noise = _randn(64, H, D)
    one = get_solver("euler").integrate(_two_modes().velocity, noise, 1)
    assert float(one.abs().max()) < 1e-6


# The straight path


def test_path_runs_from_action_at_zero_to_noise_at_one() -> None:
    noise, endpoint = (_randn(3, 4, 5, seed=s) for s in (0, 1))
    assert torch.equal(interpolate(noise, endpoint, torch.ones(3)), noise)
    assert torch.equal(interpolate(noise, endpoint, torch.zeros(3)), endpoint)


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
