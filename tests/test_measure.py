"""The rows that `measure` makes, against closed forms."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from chordflow.errors import UserError
from chordflow.evaluation.free import CHOICE_NOISES, candidates
from chordflow.evaluation.measure import Measures, Yardstick, measure
from chordflow.evaluation.paired import MeasureConfig, Way, encode_held_out, solve
from chordflow.policies import Context
from chordflow.policies.sampling import Sampler
from chordflow.results.schema import GapRow, Results
from chordflow.results.statistics import Interval
from closed_forms import GaussianFlow
from gaussian_policy import GaussianConfig, GaussianFlowPolicy
from gaussian_setup import AffineStudent, euler_factor, make_observations, make_policy

MEASURE = MeasureConfig(
    num_observations=30, noises_per_observation=64, num_steps=[1, 2, 4], converged_noises=64, batch_size=256,
    latency_repeats=3,
)  # fmt: skip


class Straight(AffineStudent):
    """The optimum of one reflow on exact couplings, in closed form; saved with one step."""

    def velocity(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        return GaussianFlow(context.tensors()[0][:, 0], torch.full((4, 4), 0.6)).reflowed_velocity(x_t, t)


class Measured:
    """A teacher saved with one step, measured at ten, and its exact student."""

    def __init__(self) -> None:
        self.teacher = make_policy(std=0.6, num_steps=1, action_scale=2.5)
        self.student = Straight(copy.deepcopy(self.teacher.config))
        self.ticks: list[tuple[int, ...]] = []
        both = {"teacher": Sampler(self.teacher, 10), "student": Sampler(self.student, 1)}
        self.measures: Measures = measure(
            both, make_observations(30), MEASURE, on_progress=lambda *tick: self.ticks.append(tick)
        )
        self.held_out = encode_held_out({"teacher": self.teacher}, make_observations(30), MEASURE)
        self.noise, self.context = self.held_out.noise, self.held_out.contexts["teacher"]
        self.means = self.context.tensors()[0].double()

    def real(self, ways: list[Way]) -> dict[Way, Tensor]:
        """The real dimensions (N, K, F) of the teacher's endpoints."""
        ends = solve(self.teacher, self.context, self.noise, ways, batch_size=512)
        return {way: end[..., :2].flatten(2).double() for way, end in ends.items()}

    def gap(self, policy: str, num_steps: int, reference: str, solver: str = "euler") -> GapRow:
        wanted = (policy, num_steps, reference, solver)
        rows = [r for r in self.measures.gaps if (r.policy, r.num_steps, r.reference, r.solver) == wanted]
        assert len(rows) == 1
        return rows[0]


@pytest.fixture(scope="module")
def measured() -> Measured:
    return Measured()


def test_curvature_is_measured_on_the_fine_grid_whatever_the_policy_is_saved_with(measured: Measured) -> None:
    teacher, student = measured.measures.curvature
    assert (teacher.policy, student.policy) == ("teacher", "student")
    assert teacher.num_steps == student.num_steps == len(teacher.times) == 100
    assert teacher.trajectories == 30 * 64
    # On the grid itself everything is known: v = slope * c_k * x_1 - m at the state m (1 - t) + c_k x_1.
    noise, means = measured.noise.double(), measured.means
    factor, along = 1.0, []
    for t in teacher.times:
        slope = (t - (1 - t) * 0.36) / (t**2 + (1 - t) ** 2 * 0.36)
        along.append(slope * factor)
        factor *= 1 - slope / 100
    power = noise.square().mean(dim=(0, 1, 2))
    chord = ((1 - factor) * noise - means).square().mean(dim=(0, 1, 2))
    on_the_grid = power * np.mean([(1 - factor - v) ** 2 for v in along])
    assert teacher.s == pytest.approx(float(on_the_grid[:2].sum()), rel=1e-3)
    assert teacher.s_by_dim == pytest.approx(on_the_grid.tolist(), rel=1e-3)
    assert teacher.curvature == pytest.approx(math.sqrt(on_the_grid[:2].sum() / chord[:2].sum()), rel=1e-3)
    assert teacher.curvature_all_dims == pytest.approx(math.sqrt(on_the_grid.sum() / chord.sum()), rel=1e-3)
    # And by the law, with the error that the grid and 1,920 trajectories leave.
    rows = means[:, 0].flatten(0, 1)
    law = GaussianFlow(rows, torch.full_like(rows, 0.6))
    assert teacher.curvature == pytest.approx(law.curvature(2), rel=0.03)
    grid = np.array(teacher.s_by_time_and_dim)
    assert grid.shape == (100, 2)
    assert grid.sum(axis=1) == pytest.approx(np.array(teacher.s_by_time))
    assert grid.mean(axis=0) == pytest.approx(np.array(teacher.s_by_dim[:2]))
    assert teacher.interval.low < teacher.curvature < teacher.interval.high
    assert student.curvature < 1e-3 * teacher.curvature


def test_the_floor_and_the_teacher_as_deployed(measured: Measured) -> None:
    assert measured.gap("teacher", 10, "deployed").rms == 0.0
    floor = measured.gap("teacher", 10, "converged")
    ten, hundred = (float(euler_factor(torch.tensor(0.6), n)) for n in (10, 100))
    assert floor.reference_num_steps == 100
    rows = [measured.gap("teacher", n, "converged") for n in (1, 2, 4)]
    # About the width that fifteen episodes of noise leave.
    for row in rows:
        assert row.interval.low < row.rms < row.interval.high
        assert 0.02 < (row.interval.high - row.interval.low) / row.rms < 0.5
    one, two, four = (row.rms for row in rows)
    assert floor.rms == pytest.approx((hundred - ten) / hundred * one, rel=1e-3)
    assert 0 < floor.rms < four < two
    itself = measured.gap("teacher", 10, "deployed")
    assert (itself.flip_rate, itself.interval) == (0.0, Interval(0.0, 0.0))


def test_the_rows_are_those_of_the_plan(measured: Measured) -> None:
    rows = {(r.policy, r.solver, r.num_steps, r.nfe) for r in measured.measures.gaps}
    assert rows == {
        *(("teacher", "euler", n, n) for n in (1, 2, 4, 10)),
        *(("teacher", "midpoint", n, 2 * n) for n in (1, 2, 5)),
        *(("student", "euler", n, n) for n in (1, 2, 4)),
    }
    assert len(measured.measures.gaps) == 2 * len(rows)
    for row in measured.measures.gaps:
        assert (row.observations, row.pairs) == (30, 30 * 64)
        assert row.reference_num_steps == (10 if row.reference == "deployed" else 100)


def test_ratios_are_of_the_same_pairs_and_lie_in_their_intervals(measured: Measured) -> None:
    floor = measured.gap("teacher", 10, "converged")
    assert floor.ratio_to_floor is floor.nearer_than_deployed is None
    assert measured.gap("student", 1, "deployed").ratio_to_floor is None
    for reference in ("deployed", "converged"):
        for num_steps in (1, 2, 4):
            student, teacher = (measured.gap(name, num_steps, reference) for name in ("student", "teacher"))
            assert teacher.ratio_to_untrained is None
            found = [(student.ratio_to_untrained, student.rms / teacher.rms)]
            if reference == "converged":
                found += [(row.ratio_to_floor, row.rms / floor.rms) for row in (student, teacher)]
            for ratio, value in found:
                assert ratio.value == pytest.approx(value)
                assert ratio.interval.low <= ratio.value <= ratio.interval.high
    # One step of the exact student ends where the continuous ODE does (c = std), untrained ones short of ten, and a
    # single one in the mean (c = 0).
    hundred = float(euler_factor(torch.tensor(0.6), 100))
    student = measured.gap("student", 1, "converged")
    assert student.ratio_to_untrained.value == pytest.approx((0.6 - hundred) / hundred, rel=1e-2)
    assert student.nearer_than_deployed == 1.0
    assert measured.gap("teacher", 2, "converged").nearer_than_deployed == 0.0


@pytest.mark.parametrize("nfe", [2, 4, 10])
def test_the_best_way_is_chosen_on_some_episodes_and_measured_on_the_others(
    measured: Measured, nfe: int
) -> None:
    """By hand: every way is solved at once, on all observations."""
    free = measured.measures.free
    assert not set(free.chosen_on) & set(free.measured_on)
    # The larger half is measured on: an interval needs two episodes.
    assert (len(free.chosen_on), len(free.measured_on)) == (7, 8)
    assert sorted(free.chosen_on + free.measured_on) == list(range(15))
    episodes = measured.held_out.episodes
    chosen, others = (torch.isin(episodes, torch.tensor(e)) for e in (free.chosen_on, free.measured_on))
    fine, deployed = Way("euler", 100), Way("euler", 10)
    ways = candidates(nfe)
    real = measured.real([*ways, deployed, fine])

    def rms(way: Way, rows: Tensor, noises: int) -> float:
        target = real[fine][rows, :noises]
        off = (real[way][rows, :noises] - target).square().sum(-1).mean()
        spread = (target - target.mean((0, 1))).square().sum(-1).mean()
        return math.sqrt(float(off / spread))

    best = min(ways, key=lambda way: rms(way, chosen, CHOICE_NOISES))
    row = free.best(nfe)
    assert (row.solver, row.num_steps, row.grid_power, row.nfe) == (*best, nfe)
    assert row.rms == pytest.approx(rms(best, others, 64), rel=1e-4)
    assert (row.observations, row.pairs) == (16, 16 * 64)
    assert row.interval.low <= row.rms <= row.interval.high
    # Even Euler steps and the floor are of the same pairs.
    even, floor = rms(Way("euler", nfe), others, 64), rms(deployed, others, 64)
    assert row.ratio_to_untrained.value == pytest.approx(row.rms / even, rel=1e-4)
    assert row.ratio_to_floor.value == pytest.approx(row.rms / floor, rel=1e-4)
    assert row.ratio_to_untrained.value <= 1


def test_the_student_stands_beside_the_best_way_on_the_same_pairs(measured: Measured) -> None:
    free = measured.measures.free
    assert {row.nfe for row in free.ways} == {2, 4, 10}
    floor = free.beside("teacher", 10)
    for num_steps in (1, 2, 4):
        row, best = free.beside("student", num_steps), free.best(num_steps)
        assert row.pairs == floor.pairs == 16 * 64
        assert row.ratio_to_floor.value == pytest.approx(row.rms / floor.rms)
        if best is None:
            assert (num_steps, row.ratio_to_free) == (1, None)
        else:
            assert row.ratio_to_free.value == pytest.approx(row.rms / best.rms)


@pytest.mark.parametrize(
    ("count", "num_steps", "noises", "same"),
    [(2, [1, 2], 4, True), (4, [1, 2], 4, False), (1, [1, 3], 2, True), (6, [1], 4, None), (3, [2], 1, None)],
)
def test_few_episodes_are_said(count: int, num_steps: list[int], noises: int, same: bool | None) -> None:
    """Two frames are an episode: of one alone ways are chosen and measured on it; where nothing varies none are."""
    more = {"num_steps": num_steps, "solvers": ["euler"], "converged_noises": noises, "latency_repeats": 1}
    config = MeasureConfig(num_observations=count, **more)
    ticks: list[tuple[int, ...]] = []
    teacher = {"teacher": Sampler(make_policy(std=0.6), 1 if same is None else 2)}
    found = measure(teacher, make_observations(count), config, on_progress=lambda *tick: ticks.append(tick))
    assert ticks[-1][0] == ticks[-1][1]
    if num_steps == [1]:
        assert found.free is None
    elif same is None:
        # One observation with one noise is all that is left to measure on.
        assert found.free is None or len(found.free.measured_on) > 1
    else:
        assert (found.free.chosen_on == found.free.measured_on) is same
        assert all((row.interval is None) == (len(found.free.measured_on) == 1) for row in found.free.ways)


class WildAtTheAction(GaussianFlowPolicy):
    """Its velocity is not a number at t = 0, where training hardly looks and Heun alone evaluates."""

    def velocity(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        v_t = super().velocity(x_t, t, context)
        return torch.where(t[:, None, None] > 0, v_t, torch.nan)


class WildInLargeBatches(GaussianFlowPolicy):
    """Not a number between hundredths of time for more than eight noises: so on the half that is measured alone."""

    def velocity(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        v_t = super().velocity(x_t, t, context)
        even = abs(100 * float(t[0]) - round(100 * float(t[0]))) < 1e-3
        return v_t if even or len(x_t) <= 8 else v_t * torch.nan


@pytest.mark.parametrize(("policy", "nfe", "solver"), [
    (WildAtTheAction, 2, "midpoint"),
    (GaussianFlowPolicy, 10, "adams_bashforth"), (WildInLargeBatches, 10, "euler"),
])  # fmt: skip
def test_a_way_that_leaves_the_numbers_gives_way_to_another(
    policy: type[GaussianFlowPolicy], nfe: int, solver: str
) -> None:
    """It ends no run: another is chosen, or where it is measured even steps take its place."""
    config = MeasureConfig(num_observations=8, num_steps=[nfe], solvers=["euler"], latency_repeats=1)
    teacher = Sampler(policy(GaussianConfig(std=0.6)), 10)
    free = measure({"teacher": teacher}, make_observations(8), config).free
    row, floor = free.best(nfe), free.beside("teacher", 10)
    assert (row.solver, row.nfe) == (solver, nfe)
    assert (row.rms == floor.rms) is (solver == "euler")


def test_a_gap_relative_to_noise_is_over_the_variance_within_observations(measured: Measured) -> None:
    """By hand: RMS over the root of the mean, over observations, of the variance over noises."""
    one, ten = measured.real([Way("euler", 1), Way("euler", 10)]).values()
    within = (ten - ten.mean(1, keepdim=True)).square().sum(-1).mean()
    whole = (ten - ten.mean((0, 1))).square().sum(-1).mean()
    results = Results([], {}, {}, "cpu", {}, "t", None, 10, spreads=measured.measures.spreads)
    assert results.noise_share == pytest.approx(float(within / whole), rel=1e-4)
    off = (one - ten).square().sum(-1).mean()
    row = measured.gap("teacher", 1, "deployed")
    assert results.of_noise(row.rms) == pytest.approx(math.sqrt(float(off / within)), rel=1e-4)
    # One untrained step is each observation's mean action: all that noise decides is lost, and no more.
    assert results.of_noise(row.rms) == pytest.approx(1, rel=0.02)


def test_trajectories_start_at_the_same_noise_and_share_a_plane(measured: Measured) -> None:
    rows = measured.measures.trajectories
    by_policy = {name: [row for row in rows if row.policy == name] for name in ("teacher", "student")}
    assert len(by_policy["teacher"]) == len(by_policy["student"]) == 24
    for teacher, student in zip(by_policy["teacher"], by_policy["student"], strict=True):
        assert teacher.observation == student.observation
        assert (teacher.x[0], teacher.y[0]) == pytest.approx((student.x[0], student.y[0]))
        assert [len(values) for row in (teacher, student) for values in (row.x, row.y)] == [51] * 4
        # The exact student goes straight, and evenly: half way in time is half way on the plane.
        middle = (student.x[0] + student.x[-1]) / 2, (student.y[0] + student.y[-1]) / 2
        assert (student.x[25], student.y[25]) == pytest.approx(middle, abs=1e-3)
    axes = measured.measures.trajectory_axes
    assert 1 >= axes[0] >= axes[1] > 0
    assert sum(axes) <= 1 + 1e-9


def test_progress_ends_where_it_said(measured: Measured) -> None:
    done, totals = zip(*measured.ticks, strict=True)
    assert set(totals) == {done[-1]}
    assert list(done) == sorted(done)


def test_two_modes_are_two_sided_one_step_falls_between_and_the_widest_are_shown() -> None:
    teacher = make_policy(num_modes=2, separation=4.0, std=0.3)
    config = MeasureConfig(
        num_observations=12, noises_per_observation=64, num_steps=[1], converged_noises=4, latency_repeats=1
    )
    policies = {"teacher": Sampler(teacher, 50), "student": Sampler(teacher, 1)}
    measures = measure(policies, make_observations(12), config)
    # A single step falls between them, and the student is the untrained teacher.
    one = {r.policy: r for r in measures.gaps if (r.num_steps, r.reference) == (1, "deployed")}
    ratio = one["student"].ratio_to_untrained
    assert one["student"].rms == one["teacher"].rms > 0.5
    assert ratio.value == 1.0
    # Two modes 4 apart in 8 entries: variance 4 + 0.3^2 each, whatever the observation.
    means = torch.stack([make_observations(12).dataset.states[i] for i in range(12)])
    centres = teacher.encode({"observation.state": means}).means.mean(dim=1)[..., :2].double()  # type: ignore[attr-defined]
    own = 8 * (4 + 0.09)
    law = math.sqrt(own / (own + float(centres.var(dim=0, correction=0).sum())))
    assert np.sqrt(np.mean([r.spread**2 for r in measures.spreads])) == pytest.approx(law, rel=0.01)
    assert [(row.episode, row.frame) for row in measures.spreads] == [(i // 2, i) for i in range(12)]
    for row in measures.spreads:
        assert row.modes == 2
        assert sum(row.shares) == pytest.approx(1.0)
        assert row.shares[0] >= row.shares[1] > 0.2
    widest = measures.widest
    assert len(widest) == 6
    by_index = [measures.spreads[w.observation] for w in widest]
    assert [r.spread for r in by_index] == sorted((r.spread for r in by_index), reverse=True)
    assert len({r.episode for r in by_index}) == 6
    for wide in widest:
        assert wide.axes[0] > 0.9 > wide.axes[1] > 0
        sides = np.array(wide.x) > 0
        labels = np.array(wide.labels)
        assert (sides == labels).all() or (sides != labels).all()


def test_a_teacher_of_a_hundred_steps_is_held_to_a_finer_ode() -> None:
    """Against its own grid its floor would be zero, whatever its ODE."""
    teacher = make_policy()
    config = MeasureConfig(num_observations=8, num_steps=[1], converged_noises=2, latency_repeats=1)
    measures = measure({"teacher": Sampler(teacher, 100)}, make_observations(8), config)
    floor = next(r for r in measures.gaps if (r.num_steps, r.reference) == (100, "converged"))
    assert floor.reference_num_steps == measures.curvature[0].num_steps == 200
    # Euler's error halves with the step: to twice the steps it is half of what is left, so about that to four times.
    config.converged_num_steps = 400
    gaps = Yardstick(teacher, make_observations(8), config, 100).teacher.gaps
    finer = next(r for r in gaps if (r.num_steps, r.reference) == (100, "converged"))
    assert finer.reference_num_steps == 400
    assert finer.rms == pytest.approx(1.5 * floor.rms, rel=0.05)
    assert floor.rms > 1e-4


def test_policies_have_their_own_order_and_one_is_the_teacher() -> None:
    teacher = make_policy(std=0.6)
    config = MeasureConfig(num_observations=8, num_steps=[1], solvers=["euler"], latency_repeats=2)
    policies = {"mine": Sampler(teacher, 3), "teacher": Sampler(teacher, 10), "b": Sampler(teacher, 2)}
    measures = measure(policies, make_observations(8), config)
    assert [row.policy for row in measures.curvature] == ["teacher", "mine", "b"]
    assert [chunk.num_steps for chunk in measures.latency.chunks] == [1, 2, 10]
    with pytest.raises(ValueError, match="named teacher"):
        measure({"student": Sampler(teacher, 1)}, make_observations(4), config)


def test_actions_that_are_not_finite_are_named() -> None:
    policy = make_policy()
    with torch.no_grad():
        policy.module.get_parameter("state_proj.bias")[0] = torch.nan
    with pytest.raises(UserError, match="teacher: 100 euler steps end in NaN or infinite actions"):
        measure({"teacher": Sampler(policy, 4)}, make_observations(3), MeasureConfig(latency_repeats=1))
