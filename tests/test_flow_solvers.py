"""Solvers: exactness, measured order, number of evaluations, and identity with LeRobot's loop."""

import math

import pytest
import torch
from lerobot.policies.common.flow_matching import euler_integrate

from chordflow.errors import UserError
from chordflow.flow.solvers import SOLVERS, get_solver


def _noise(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_constant_velocity_is_integrated_exactly(name: str, num_steps: int) -> None:
    noise, v = _noise(), _noise() * 0.7 + 0.1
    torch.testing.assert_close(get_solver(name).integrate(lambda x, t: v, noise, num_steps), noise - v)


@pytest.mark.parametrize("name", SOLVERS)
def test_measured_order_is_the_declared_one(name: str) -> None:
    # dx/dt = x (1 + t) has the solution x(0) = x(1) exp(-3/2).
    noise = _noise()
    exact = noise * math.exp(-1.5)

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * (1 + t.double()).view(-1, 1, 1)

    solver = get_solver(name)
    # Step counts are powers of two so that every grid time is exact in float32.
    coarse, fine = (float((solver.integrate(velocity, noise, n) - exact).norm()) for n in (64, 128))
    assert math.log2(coarse / fine) == pytest.approx(solver.order, abs=0.05)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("num_steps", [1, 4, 7])
def test_evaluations_are_counted_and_times_stay_in_range(name: str, num_steps: int) -> None:
    times: list[torch.Tensor] = []

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        times.append(t)
        return -x

    solver = get_solver(name)
    solver.integrate(velocity, _noise(torch.float32), num_steps)
    assert len(times) == solver.nfe(num_steps) == solver.nfe_per_step * num_steps
    assert all(t.shape == (3,) and t.dtype == torch.float32 for t in times)
    assert all(0.0 <= float(t.min()) <= float(t.max()) <= 1.0 for t in times)
    assert float(times[0][0]) == 1.0


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 10, 49, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_euler_is_lerobots_loop_bit_for_bit(num_steps: int, dtype: torch.dtype) -> None:
    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (torch.tanh(3 * x) * (1 + t.view(-1, 1, 1)) - torch.sin(5 * x)).to(dtype)

    noise = _noise(torch.float32).to(dtype)
    assert torch.equal(
        get_solver("euler").integrate(velocity, noise, num_steps), euler_integrate(velocity, noise, num_steps)
    )


@pytest.mark.parametrize("name", SOLVERS)
def test_steps_one_by_one_make_the_integral_and_the_path(name: str) -> None:
    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.sin(x) + t.view(-1, 1, 1)

    solver, noise = get_solver(name), _noise()
    states = [noise]
    for step in range(4):
        states.append(solver.step(velocity, states[-1], 1 - step / 4, 1 - (step + 1) / 4))
    path = solver.path(velocity, noise, 4)
    assert torch.equal(path, torch.stack(states))
    assert torch.equal(path[-1], solver.integrate(velocity, noise, 4))


def test_callback_sees_the_state_and_velocity_before_each_step() -> None:
    seen: list[tuple[int, float]] = []
    noise = _noise()

    def callback(step: int, t: float, x: torch.Tensor, v: torch.Tensor) -> None:
        seen.append((step, t))
        torch.testing.assert_close(x, noise * 0.5**step)
        assert torch.equal(v, x)

    get_solver("euler").integrate(lambda x, t: x, noise, 2, callback=callback)
    assert seen == [(0, 1.0), (1, 0.5)]


@pytest.mark.parametrize("num_steps", [0, -1, 2.0, True])
def test_bad_step_counts_are_refused(num_steps: int) -> None:
    with pytest.raises(UserError, match="num_steps"):
        get_solver("euler").integrate(lambda x, t: x, _noise(), num_steps)


def test_an_unknown_solver_is_refused_with_the_list() -> None:
    with pytest.raises(UserError, match="'rk9'; choose one of euler, midpoint, heun"):
        get_solver("rk9")
