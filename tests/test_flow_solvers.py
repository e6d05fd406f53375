"""Solvers: exactness, measured order, number of evaluations, and identity with LeRobot's loop."""

import math
from itertools import pairwise

import pytest
import torch
from lerobot.policies.common.flow_matching import euler_integrate

from chordflow.errors import UserError
from chordflow.flow.solvers import SOLVERS, get_solver, time_grid


def _noise(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("num_steps", [1, 3, 10])
@pytest.mark.parametrize("power", [0.5, 1.0, 1.4, 3.0])
def test_constant_velocity_is_integrated_exactly(name: str, num_steps: int, power: float) -> None:
    noise, v = _noise(), _noise() * 0.7 + 0.1
    end = get_solver(name).integrate(lambda x, t: v, noise, num_steps, grid_power=power)
    torch.testing.assert_close(end, noise - v)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_measured_order_is_the_declared_one(name: str, power: float) -> None:
    # dx/dt = x (1 + t) has the solution x(0) = x(1) exp(-3/2).
    noise = _noise()
    exact = noise * math.exp(-1.5)

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * (1 + t.double()).view(-1, 1, 1)

    solver = get_solver(name)
    # Step counts are powers of two and the grid's power is whole, so that every grid time is exact in float32.
    coarse, fine = (
        float((solver.integrate(velocity, noise, n, grid_power=power) - exact).norm()) for n in (64, 128)
    )
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
    assert len(times) == solver.nfe(num_steps)
    assert solver.num_steps_for(len(times)) == num_steps
    assert all(t.shape == (3,) and t.dtype == torch.float32 for t in times)
    assert all(0.0 <= float(t.min()) <= float(t.max()) <= 1.0 for t in times)
    assert float(times[0][0]) == 1.0


def test_evaluations_are_those_that_the_rules_ask_for() -> None:
    counts = {name: get_solver(name).nfe(16) for name in SOLVERS}
    assert counts == {"euler": 16, "midpoint": 32, "heun": 32, "adams_bashforth": 17}
    assert [get_solver("midpoint").num_steps_for(n) for n in (0, 1, 2, 3, 10)] == [None, None, 1, None, 5]
    assert [get_solver("adams_bashforth").num_steps_for(n) for n in (0, 1, 2, 10)] == [None, None, 1, 9]


def test_adams_bashforth_by_hand() -> None:
    """Steps of unequal length: the line through the last two velocities, integrated over the next step."""

    def at(x: torch.Tensor, t: float) -> torch.Tensor:
        return torch.sin(x) + t**2

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.sin(x) + t.double().view(-1, 1, 1) ** 2

    times = [1.0, 9 / 16, 4 / 16, 1 / 16, 0.0]
    states = [_noise()]
    slopes = [at(states[0], 1.0)]
    dt = times[1] - times[0]
    states.append(states[0] + dt * at(states[0] + 0.5 * dt * slopes[0], 1.0 + 0.5 * dt))
    for i in (1, 2, 3):
        slopes.append(at(states[i], times[i]))
        change = (slopes[i] - slopes[i - 1]) / (times[i] - times[i - 1])
        dt = times[i + 1] - times[i]
        states.append(states[i] + dt * slopes[i] + 0.5 * dt**2 * change)
    path = get_solver("adams_bashforth").path(velocity, _noise(), 4, grid_power=2.0)
    torch.testing.assert_close(path, torch.stack(states), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_steps", [1, 2, 7, 16])
@pytest.mark.parametrize("power", [0.7, 1.0, 1.4, 3.0])
def test_a_grid_goes_from_noise_to_action(num_steps: int, power: float) -> None:
    grid = time_grid(num_steps, power)
    times, lengths = [*(t for t, _ in grid), 0.0], [-dt for _, dt in grid]
    assert times == pytest.approx([(1 - i / num_steps) ** power for i in range(num_steps + 1)])
    assert times[0] == 1.0
    assert lengths == pytest.approx([t - t_next for t, t_next in pairwise(times)], abs=1e-12)
    assert min(lengths) > 0
    # Graded steps fall towards the action.
    assert power <= 1.0 or lengths == sorted(lengths, reverse=True)


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
def test_the_path_goes_from_the_noise_to_the_integral(name: str) -> None:
    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.sin(x) + t.view(-1, 1, 1)

    solver, noise = get_solver(name), _noise()
    path = solver.path(velocity, noise, 4)
    assert torch.equal(path[0], noise)
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


@pytest.mark.parametrize(
    ("num_steps", "power", "words"),
    [*((n, 1.0, "num_steps") for n in (0, -1, 2.0, True)),
     *((2, power, "grid_power") for power in (0.0, -1.0, math.inf, math.nan))],
)  # fmt: skip
def test_bad_grids_are_refused(num_steps: int, power: float, words: str) -> None:
    with pytest.raises(UserError, match=words):
        get_solver("euler").integrate(lambda x, t: x, _noise(), num_steps, grid_power=power)


def test_an_unknown_solver_is_refused_with_the_list() -> None:
    with pytest.raises(UserError, match="'rk9'; choose one of euler, midpoint, heun, adams_bashforth"):
        get_solver("rk9")
