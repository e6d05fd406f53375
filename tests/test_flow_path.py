"""The straight path."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chordflow.flow.path import interpolate, velocity_target


def _pair(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(3, 4, 5, generator=g).double(), torch.randn(3, 4, 5, generator=g).double()


def test_path_runs_from_action_at_zero_to_noise_at_one() -> None:
    noise, endpoint = _pair(0)
    assert torch.equal(interpolate(noise, endpoint, torch.ones(3)), noise)
    assert torch.equal(interpolate(noise, endpoint, torch.zeros(3)), endpoint)


@given(st.integers(0, 1000), st.floats(0.0, 0.9), st.floats(0.001, 0.1))
def test_velocity_is_the_derivative_of_the_path(seed: int, t: float, dt: float) -> None:
    noise, endpoint = _pair(seed)
    early, late = (torch.full((3,), s, dtype=torch.float64) for s in (t, t + dt))
    slope = (interpolate(noise, endpoint, late) - interpolate(noise, endpoint, early)) / dt
    torch.testing.assert_close(slope, velocity_target(noise, endpoint), rtol=1e-6, atol=1e-9)


def test_each_sample_has_its_own_time() -> None:
    noise, endpoint = _pair(1)
    mixed = interpolate(noise, endpoint, torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64))
    assert torch.equal(mixed[0], endpoint[0])
    assert torch.equal(mixed[1], noise[1])
    torch.testing.assert_close(mixed[2], (noise[2] + endpoint[2]) / 2)


def test_a_chunk_cut_to_the_real_dimensions_is_refused() -> None:
    noise, endpoint = _pair(2)
    with pytest.raises(ValueError, match="must be equal"):
        interpolate(noise, endpoint[..., :1], torch.ones(3))
    with pytest.raises(ValueError, match="must be equal"):
        velocity_target(noise, endpoint[..., :1])
    with pytest.raises(ValueError, match="one time per sample"):
        interpolate(noise, endpoint, torch.ones(1))
