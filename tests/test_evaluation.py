"""The measures against closed forms: gap, flips, modes, curvature, and the rows that `measure` makes."""

from __future__ import annotations

import base64
import copy
import io
import math
import re
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import chi
from torch import Tensor

from chordflow.errors import UserError
from chordflow.evaluation.free import CHOICE_NOISES, candidates
from chordflow.evaluation.gap import Gap, Modes, action_gap
from chordflow.evaluation.latency import measure_latency
from chordflow.evaluation.measure import Measures, measure
from chordflow.evaluation.modes import least_silhouette, mode_centres, nearest_mode
from chordflow.evaluation.paired import MeasureConfig, Way, encode_held_out, solve
from chordflow.evaluation.spread import pictures
from chordflow.flow.seeds import generator
from chordflow.flow.solvers import SOLVERS
from chordflow.policies import ChunkSpec, Context
from chordflow.policies.base import VelocityModule
from chordflow.policies.sampling import Sampler
from chordflow.results.schema import GapRow, Results
from closed_forms import GaussianFlow
from gaussian_policy import GaussianConfig, GaussianFlowPolicy
from gaussian_setup import AffineStudent, euler_factor, make_observations, make_policy

N, K = 40, 64
# Of four actions of four numbers, two numbers are real.
REAL = ChunkSpec(horizon=4, padded_dim=4, action_dim=2, num_executed=4)
MEASURE = MeasureConfig(
    num_observations=30, noises_per_observation=64, num_steps=[1, 2, 4], converged_noises=64, batch_size=256,
    latency_repeats=3,
)  # fmt: skip


def on_grid(
    policy: GaussianFlowPolicy, num_steps: int, noise: Tensor, context: Context, batch_size: int = 512
) -> Tensor:
    way = Way("euler", num_steps)
    return solve(policy, context, noise, [way], batch_size=batch_size)[way]


@pytest.fixture(scope="module")
def policy() -> GaussianFlowPolicy:
    return make_policy(std=0.6, action_scale=2.5)


@pytest.fixture(scope="module")
def context(policy: GaussianFlowPolicy) -> Context:
    items = next(make_observations(N).batches(range(N), N))
    return policy.encode(policy.preprocess(items))


@pytest.fixture(scope="module")
def noise(policy: GaussianFlowPolicy) -> Tensor:
    return policy.sample_noise(N * K, generator(0, "noise")).unflatten(0, (N, K))


# The gap


@pytest.mark.parametrize(("num_steps", "reference_steps"), [(1, 10), (2, 10), (4, 10), (10, None), (1, None)])
def test_the_gap_is_the_closed_form(
    policy: GaussianFlowPolicy, context: Context, noise: Tensor, num_steps: int, reference_steps: int | None
) -> None:
    """Endpoints are m + c * noise with c known for each step count; None: the exact endpoints, c = std."""
    std, real = policy.std[:, :2], (slice(None), slice(0, 2))
    reference_c = std if reference_steps is None else euler_factor(policy.std, reference_steps)[real]
    delta = euler_factor(policy.std, num_steps)[real] - reference_c
    if reference_steps is None:
        reference = policy.flow(context.repeat(K)).endpoint(noise.flatten(0, 1)).unflatten(0, (N, K))
    else:
        reference = on_grid(policy, reference_steps, noise, context)
    actual = on_grid(policy, num_steps, noise, context)
    gap = action_gap(actual, reference, Modes(reference, REAL), policy)

    # By the law of the noise: E ||delta * x||^2 over the variance of m over observations plus c^2.
    means = policy.flow(context).mean[..., :2]
    spread = float((means.var(dim=0, correction=0) + reference_c**2).sum())
    assert gap.rms == pytest.approx(math.sqrt(float((delta**2).sum()) / spread), rel=0.01)
    assert gap.median == pytest.approx(
        float(delta[0, 0].abs()) * chi(8).median() / math.sqrt(spread), rel=0.01
    )
    assert gap.flip_rate == 0.0
    # And in the robot's units, from the very noises.
    differences = (delta * noise[..., :2]).abs() * 2.5
    assert gap.max_abs == pytest.approx(float(differences.max()), rel=1e-3)
    assert gap.mean_abs == pytest.approx(float(differences.mean()), rel=1e-3)


def test_actions_that_are_never_run_do_not_count(policy: GaussianFlowPolicy) -> None:
    """Those before the present, and those beyond what is trained."""
    actual, reference = (torch.randn(6, 16, 4, 4, generator=generator(k)) for k in (1, 2))
    chunk = ChunkSpec(horizon=4, padded_dim=4, action_dim=2, num_executed=2, first_executed=1, real_horizon=3)
    modes = Modes(reference, chunk)
    gap = action_gap(actual, reference, modes, policy)
    never_run = [0, 3]
    actual[..., never_run, :] = 100.0
    again = action_gap(actual, reference, Modes(reference, chunk), policy)
    assert np.array_equal(gap.distance, again.distance)
    assert np.array_equal(gap.spread, again.spread)
    assert action_gap(actual, reference, Modes(reference, REAL), policy).rms > 10 * gap.rms
    assert chunk.num_usable == 2


def test_the_denominator_is_the_spread_of_the_reference_over_observations_and_noises(
    policy: GaussianFlowPolicy, noise: Tensor
) -> None:
    reference, actual = noise * 2.0, noise * 2.0 + 0.5
    gap = action_gap(actual, reference, Modes(reference, REAL), policy)
    flat = reference[..., :2].double().flatten(2).flatten(0, 1)
    spread = (flat - flat.mean(dim=0)).square().sum(dim=1).mean()
    assert gap.rms == pytest.approx(math.sqrt(8 * 0.25 / float(spread)))
    assert gap.median == pytest.approx(gap.rms)
    assert gap.distance == pytest.approx(np.full((N, K), gap.rms), rel=1e-4)
    assert gap.distance.shape == (N, K)
    swapped = action_gap(reference, actual, Modes(reference, REAL), policy)
    assert swapped.rms == pytest.approx(gap.rms)
    doubled = action_gap(2 * actual, 2 * reference, Modes(2 * reference, REAL), policy)
    assert doubled.rms == pytest.approx(gap.rms)
    assert doubled.max_abs == pytest.approx(2 * gap.max_abs)


def test_padded_dimensions_do_not_count(policy: GaussianFlowPolicy, noise: Tensor) -> None:
    actual = noise.clone()
    actual[..., 2:] += 100.0
    assert action_gap(actual, noise, Modes(noise, REAL), policy).rms == 0.0


def test_the_median_is_not_moved_by_a_few_far_pairs(policy: GaussianFlowPolicy, noise: Tensor) -> None:
    actual = noise + 0.1
    far = actual.clone()
    far[0, 0] += 100.0
    near, gap = (action_gap(a, noise, Modes(noise, REAL), policy) for a in (actual, far))
    assert gap.median == pytest.approx(near.median)
    assert gap.rms > 10 * near.rms


def test_a_reference_without_spread_is_refused_with_a_sentence(policy: GaussianFlowPolicy) -> None:
    one = torch.ones(1, 1, 4, 4)
    modes = Modes(torch.randn(1, 16, 4, 4, generator=generator(0)), REAL)
    with pytest.raises(UserError, match="endpoints are all equal over 1 observation"):
        action_gap(one, one, modes, policy)


# Flips


def test_flips_are_exactly_the_pairs_that_change_sides() -> None:
    policy = make_policy(num_modes=2, separation=4.0, std=0.3)
    observations = make_observations(30)
    held_out = encode_held_out({"teacher": policy}, observations, MeasureConfig(noises_per_observation=64))
    context, noise = held_out.contexts["teacher"], held_out.noise
    reference = on_grid(policy, 50, noise, context)
    modes = Modes(reference, REAL)
    assert (modes.counts == 2).all()

    rng = np.random.default_rng(0)
    swapped = rng.random((30, 64)) < 0.07
    centre = context.means.mean(dim=1)[:, None]  # type: ignore[attr-defined]
    other = torch.where(torch.from_numpy(swapped)[..., None, None], 2 * centre - reference, reference)
    gap = action_gap(other, reference, modes, policy)
    assert np.array_equal(gap.flips, swapped)
    assert gap.flip_rate == swapped.mean()
    # Pairs that stay near their own mode are no flips, however far the gap.
    moved = action_gap(reference + 0.5, reference, modes, policy)
    assert moved.flip_rate == 0.0
    assert moved.rms > 0.1


def test_the_labels_are_the_sides_that_the_noise_chooses() -> None:
    policy = make_policy(num_modes=2, separation=4.0, std=0.3)
    held_out = encode_held_out(
        {"teacher": policy}, make_observations(10), MeasureConfig(noises_per_observation=32)
    )
    ends = on_grid(policy, 50, held_out.noise, held_out.contexts["teacher"])
    labels = Modes(ends, REAL).labels(ends)
    right = (held_out.noise[..., :2].sum(dim=(2, 3)) > 0).numpy()
    for row in range(10):
        assert len(set(zip(labels[row], right[row], strict=True))) == 2


# Modes


@pytest.mark.parametrize("dim", [1, 2, 32])
@pytest.mark.parametrize("count", [16, 32, 64])
def test_one_blob_has_one_mode(dim: int, count: int) -> None:
    """Over 2,000 draws at most 0.3 % were parted, most in 32 dimensions with 16 points."""
    rng = np.random.default_rng(dim + 100 * count)
    split = sum(len(mode_centres(rng.normal(size=(count, dim)))) > 1 for _ in range(200))
    assert split <= 2


@pytest.mark.parametrize("dim", [1, 2, 32])
@pytest.mark.parametrize(("count", "separation"), [(16, 10.0), (32, 7.0), (64, 6.0)])
def test_two_modes_apart_are_found(dim: int, count: int, separation: float) -> None:
    """Separation in standard deviations of a mode; with few points only wider gaps are told from chance."""
    rng, found, right = np.random.default_rng(dim + 7 * count), 0, []
    direction = rng.normal(size=dim)
    direction /= np.linalg.norm(direction)
    for _ in range(100):
        side = rng.permutation(np.arange(count) % 3 == 0)
        points = rng.normal(size=(count, dim)) + separation * side[:, None] * direction
        centres = mode_centres(points)
        if len(centres) == 2:
            found += 1
            labels = nearest_mode(points, centres)
            right.append(max((labels == side).mean(), (labels != side).mean()))
    assert found >= 95
    assert np.mean(right) > 0.99


@pytest.mark.parametrize("modes", [3, 4])
def test_more_modes_are_told_apart(modes: int) -> None:
    rng = np.random.default_rng(modes)
    places = 10 * np.eye(8)[:modes]
    points = np.repeat(places, 16, axis=0) + 0.5 * rng.normal(size=(16 * modes, 8))
    centres = mode_centres(points)
    assert len(centres) == modes
    assert len(set(nearest_mode(places, centres))) == modes


@given(st.integers(0, 10_000), st.floats(0.01, 100.0))
@settings(max_examples=25)
def test_modes_do_not_depend_on_scale_place_or_order(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(24, 3)) + 8.0 * (rng.random(24) < 0.5)[:, None]
    count = len(mode_centres(points))
    assert len(mode_centres(rng.permutation(points) * scale + 3 * scale)) == count


def test_an_outlier_is_no_mode() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(64, 4))
    points[:2] += 30.0
    assert len(mode_centres(points)) == 1
    points[2:4] += 30.0
    assert len(mode_centres(points)) == 2


def test_few_points_need_a_wider_gap_and_equal_points_are_one_mode() -> None:
    assert least_silhouette(16) > least_silhouette(32) >= least_silhouette(64) == 0.7
    assert len(mode_centres(np.ones((16, 4)))) == 1
    with pytest.raises(ValueError, match="15 endpoints are too few"):
        mode_centres(np.zeros((15, 2)))


# Solving on held-out observations


class Counting(GaussianFlowPolicy):
    """Counts what its network is asked."""

    evaluations = 0
    encoded = 0

    def velocity(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        self.evaluations += 1
        return super().velocity(x_t, t, context)

    def encode(self, batch: dict) -> Context:  # type: ignore[override]
        self.encoded += len(batch["observation.state"])
        return super().encode(batch)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("saved", [1, 7])
def test_solve_makes_the_evaluations_it_is_asked_for(solver: str, saved: int) -> None:
    policy = Counting(GaussianConfig(num_steps=saved))
    held_out = encode_held_out({"teacher": policy}, make_observations(6), MeasureConfig())
    told: list[int] = []
    # 6 observations with 16 noises each, two observations a batch: three batches.
    solve(
        policy,
        held_out.contexts["teacher"],
        held_out.noise,
        [Way(solver, 3)],
        batch_size=32,
        on_batch=told.append,
    )
    assert policy.evaluations == 3 * SOLVERS[solver]().nfe(3) == sum(told)


@given(st.integers(1, 200))
@settings(max_examples=20)
def test_solving_does_not_depend_on_the_batch_size(batch_size: int) -> None:
    policy = make_policy(num_modes=2)
    held_out = encode_held_out({"teacher": policy}, make_observations(5), MeasureConfig())
    context, noise = held_out.contexts["teacher"], held_out.noise
    ends = on_grid(policy, 3, noise, context, batch_size)
    torch.testing.assert_close(ends, on_grid(policy, 3, noise, context, 80), rtol=1e-5, atol=1e-5)


def test_contexts_are_shared_where_prefixes_agree_and_only_there() -> None:
    teacher, student = (Counting(GaussianConfig(seed=1)) for _ in range(2))
    student.fresh(["action_head"], seed=5)  # type: ignore[list-item]
    observations, config = make_observations(8), MeasureConfig(num_observations=6)
    shared = encode_held_out({"teacher": teacher, "student": student}, observations, config)
    assert shared.contexts["student"] is shared.contexts["teacher"]
    assert (teacher.encoded, student.encoded) == (6, 0)

    with torch.no_grad():
        student.module.get_parameter("state_proj.bias")[0] += 1.0
    apart = encode_held_out({"teacher": teacher, "student": student}, observations, config)
    assert student.encoded == 6
    assert torch.equal(apart.noise, shared.noise)
    means = [apart.contexts[name].tensors()[0] for name in ("teacher", "student")]
    difference = (means[1] - means[0]).flatten(2)
    torch.testing.assert_close(difference[..., 0], torch.ones(6, 1))
    assert (difference[..., 1:] == 0).all()


def test_noises_belong_to_observations_whatever_else_is_chosen() -> None:
    policy, observations = make_policy(), make_observations(9)
    whole = encode_held_out({"teacher": policy}, observations, MeasureConfig())
    assert whole.num_observations == 9
    assert whole.noise.flatten(0, 1).unique(dim=0).shape[0] == 9 * 16
    some = encode_held_out({"teacher": policy}, observations, MeasureConfig(num_observations=4))
    rows = [int((whole.noise[:, 0] == n).all(dim=(1, 2)).nonzero()) for n in some.noise[:, 0]]
    assert rows == sorted(set(rows))
    for name in ("noise", "context"):
        a, b = ((h.noise if name == "noise" else h.contexts["teacher"].tensors()[0]) for h in (whole, some))
        assert torch.equal(a[rows], b)
    other = encode_held_out({"teacher": policy}, observations, MeasureConfig(seed=1))
    assert not torch.equal(other.noise, whole.noise)


# All measures together


class Straight(AffineStudent):
    """The optimum of one reflow on exact couplings, in closed form; saved with one step."""

    def velocity(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        return GaussianFlow(context.tensors()[0][:, 0], torch.full((4, 4), 0.6)).reflowed_velocity(x_t, t)


class Measured:
    """A teacher saved with one step, measured at ten, and its exact student."""

    def __init__(self) -> None:
        self.teacher = make_policy(std=0.6, num_steps=1, action_scale=2.5)
        self.student = Straight(copy.deepcopy(self.teacher.config))
        self.ticks: list[tuple[int, int]] = []
        self.measures: Measures = measure(
            {"teacher": Sampler(self.teacher, 10), "student": Sampler(self.student, 1)},
            make_observations(30),
            MEASURE,
            on_progress=lambda done, total: self.ticks.append((done, total)),
        )

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
    held_out = encode_held_out({"teacher": measured.teacher}, make_observations(30), MEASURE)
    noise, means = held_out.noise.double(), held_out.contexts["teacher"].tensors()[0].double()
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
    # The grid of 100 itself costs 1.5 % against the continuous curvature, S = (2 - pi / 2) std E x_1^2.
    exact = (2 - math.pi / 2) * 0.6 * power
    true_chord = (0.4 * noise - means).square().mean(dim=(0, 1, 2))
    assert teacher.curvature == pytest.approx(math.sqrt(exact[:2].sum() / true_chord[:2].sum()), rel=0.02)
    # And by the law, with the error that 1,920 trajectories leave.
    rows = means[:, 0].flatten(0, 1)
    law = GaussianFlow(rows, torch.full_like(rows, 0.6))
    assert teacher.curvature == pytest.approx(law.curvature(2), rel=0.03)
    assert teacher.s_all_dims == pytest.approx(sum(teacher.s_by_dim))
    assert sum(teacher.s_by_time) / 100 == pytest.approx(teacher.s)
    assert student.curvature < 1e-3 * teacher.curvature


def test_the_floor_and_the_teacher_as_deployed(measured: Measured) -> None:
    assert measured.gap("teacher", 10, "deployed").rms == 0.0
    floor = measured.gap("teacher", 10, "converged")
    ten, hundred = (float(euler_factor(torch.tensor(0.6), n)) for n in (10, 100))
    assert floor.reference_num_steps == 100
    assert floor.rms == pytest.approx((hundred - ten) / (hundred - 0.0) * measured.gap("teacher", 1, "converged").rms,
                                      rel=1e-3)  # fmt: skip
    assert (
        0
        < floor.rms
        < measured.gap("teacher", 4, "converged").rms
        < measured.gap("teacher", 2, "converged").rms
    )
    assert measured.gap("teacher", 10, "deployed").flip_rate == 0.0


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


def test_the_ratio_is_the_student_over_the_untrained_teacher(measured: Measured) -> None:
    for reference in ("deployed", "converged"):
        for num_steps in (1, 2, 4):
            student, teacher = (measured.gap(name, num_steps, reference) for name in ("student", "teacher"))
            assert teacher.ratio_to_untrained is None
            assert student.ratio_to_untrained is not None
            assert student.ratio_to_untrained.value == pytest.approx(student.rms / teacher.rms)
            interval = student.ratio_to_untrained.interval
            assert interval is not None
            assert interval.low <= student.ratio_to_untrained.value <= interval.high
    # One step of the exact student is the exact endpoint, c = std; one untrained step is the mean, c = 0.
    hundred = float(euler_factor(torch.tensor(0.6), 100))
    one = measured.gap("student", 1, "converged").ratio_to_untrained
    assert one is not None
    assert one.value == pytest.approx((0.6 - hundred) / hundred, rel=1e-2)


def test_rows_to_the_converged_ode_stand_beside_the_floor_of_the_same_pairs(measured: Measured) -> None:
    floor = measured.gap("teacher", 10, "converged")
    assert floor.ratio_to_floor is None
    assert floor.nearer_than_deployed is None
    assert measured.gap("student", 1, "deployed").ratio_to_floor is None
    for name, num_steps in (("teacher", 1), ("teacher", 2), ("student", 1), ("student", 4)):
        row = measured.gap(name, num_steps, "converged")
        assert row.ratio_to_floor is not None
        assert row.ratio_to_floor.interval is not None
        assert row.ratio_to_floor.value == pytest.approx(row.rms / floor.rms)
    # One step of the exact student ends where the continuous ODE does, untrained steps end short of ten.
    assert measured.gap("student", 1, "converged").nearer_than_deployed == 1.0
    assert measured.gap("teacher", 2, "converged").nearer_than_deployed == 0.0


@pytest.mark.parametrize("nfe", [2, 4, 10])
def test_the_best_way_is_chosen_on_some_episodes_and_measured_on_the_others(
    measured: Measured, nfe: int
) -> None:
    """By hand: every way is solved at once, on all observations."""
    free = measured.measures.free
    assert free is not None
    assert not set(free.chosen_on) & set(free.measured_on)
    assert sorted(free.chosen_on + free.measured_on) == list(range(15))
    held_out = encode_held_out({"teacher": measured.teacher}, make_observations(30), MEASURE)
    chosen, others = (
        torch.isin(held_out.episodes, torch.tensor(e)) for e in (free.chosen_on, free.measured_on)
    )
    fine, deployed = Way("euler", 100), Way("euler", 10)
    ways = candidates(nfe)
    ends = solve(
        measured.teacher,
        held_out.contexts["teacher"],
        held_out.noise,
        [*ways, deployed, fine],
        batch_size=512,
    )
    real = {way: end[:, :, :, :2].flatten(2).double() for way, end in ends.items()}

    def rms(way: Way, rows: Tensor, noises: int) -> float:
        target = real[fine][rows, :noises]
        off = (real[way][rows, :noises] - target).square().sum(-1).mean()
        spread = (target - target.mean((0, 1))).square().sum(-1).mean()
        return math.sqrt(float(off / spread))

    best = min(ways, key=lambda way: rms(way, chosen, CHOICE_NOISES))
    row = free.best(nfe)
    assert row is not None
    assert (row.solver, row.num_steps, row.grid_power, row.nfe) == (*best, nfe)
    assert row.rms == pytest.approx(rms(best, others, 64), rel=1e-4)
    assert (row.observations, row.pairs) == (16, 16 * 64)
    assert row.interval is not None
    assert row.interval.low <= row.rms <= row.interval.high
    # Even Euler steps and the floor are of the same pairs.
    assert row.ratio_to_untrained is not None
    assert row.ratio_to_floor is not None
    even, floor = rms(Way("euler", nfe), others, 64), rms(deployed, others, 64)
    assert row.ratio_to_untrained.value == pytest.approx(row.rms / even, rel=1e-4)
    assert row.ratio_to_floor.value == pytest.approx(row.rms / floor, rel=1e-4)
    assert row.ratio_to_untrained.value <= 1


def test_one_evaluation_leaves_no_choice(measured: Measured) -> None:
    assert measured.measures.free is not None
    assert {row.nfe for row in measured.measures.free.ways} == {2, 4, 10}


def test_the_student_stands_beside_the_best_way_on_the_same_pairs(measured: Measured) -> None:
    free = measured.measures.free
    assert free is not None
    floor = free.beside("teacher", 10)
    assert floor is not None
    for num_steps in (1, 2, 4):
        row, best = free.beside("student", num_steps), free.best(num_steps)
        assert row is not None
        assert row.pairs == floor.pairs == 16 * 64
        assert row.ratio_to_floor is not None
        assert row.ratio_to_floor.value == pytest.approx(row.rms / floor.rms)
        if best is None:
            assert (num_steps, row.ratio_to_free) == (1, None)
        else:
            assert row.ratio_to_free is not None
            assert row.ratio_to_free.value == pytest.approx(row.rms / best.rms)
    # One step of the exact student ends at the continuous ODE; two of midpoint's beat any student's one or two.
    assert free.best(4).rms < free.beside("student", 4).rms  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("count", "num_steps", "noises", "same"),
    [(2, [1, 2], 4, True), (4, [1, 2], 4, False), (1, [1, 3], 2, True), (6, [1], 4, None), (3, [2], 1, None)],
)
def test_few_episodes_are_said(count: int, num_steps: list[int], noises: int, same: bool | None) -> None:
    """Two frames are an episode: of one alone ways are chosen and measured on it; where nothing varies none are."""
    config = MeasureConfig(
        num_observations=count,
        num_steps=num_steps,
        solvers=["euler"],
        converged_noises=noises,
        latency_repeats=1,
    )
    ticks: list[tuple[int, int]] = []
    found = measure(
        {"teacher": Sampler(make_policy(std=0.6), 1 if same is None else 2)},
        make_observations(count),
        config,
        on_progress=lambda done, total: ticks.append((done, total)),
    )
    assert ticks[-1][0] == ticks[-1][1]
    if num_steps == [1]:
        assert found.free is None
    elif same is None:
        # One observation with one noise is all that is left to measure on.
        assert found.free is None or len(found.free.measured_on) > 1
    else:
        assert found.free is not None
        assert (found.free.chosen_on == found.free.measured_on) is same
        assert all((row.interval is None) == (len(found.free.measured_on) == 1) for row in found.free.ways)


class WildAtTheAction(GaussianFlowPolicy):
    """Its velocity is not a number at t = 0, where training hardly looks and Heun alone evaluates."""

    def velocity(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        v_t = super().velocity(x_t, t, context)
        return torch.where(t[:, None, None] > 0, v_t, torch.nan)


@pytest.mark.parametrize("num_steps", [2, 4])
def test_a_way_that_leaves_the_numbers_is_not_chosen(num_steps: int) -> None:
    policy = WildAtTheAction(GaussianConfig(std=0.6))
    config = MeasureConfig(num_observations=8, num_steps=[num_steps], solvers=["euler"], latency_repeats=1)
    found = measure({"teacher": Sampler(policy, 10)}, make_observations(8), config)
    assert found.free is not None
    assert found.free.best(num_steps).solver not in ("heun", "euler")  # type: ignore[union-attr]


class WildInLargeBatches(GaussianFlowPolicy):
    """Not a number between hundredths of time for more than eight noises: so on the half that is measured alone."""

    def velocity(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        v_t = super().velocity(x_t, t, context)
        even = abs(100 * float(t[0]) - round(100 * float(t[0]))) < 1e-3
        return v_t if even or len(x_t) <= 8 else v_t * torch.nan


def test_a_way_that_leaves_the_numbers_where_it_is_measured_gives_way_to_even_steps() -> None:
    config = MeasureConfig(num_observations=8, num_steps=[10], solvers=["euler"], latency_repeats=1)
    for policy, expected in ((GaussianFlowPolicy, "adams_bashforth"), (WildInLargeBatches, "euler")):
        found = measure(
            {"teacher": Sampler(policy(GaussianConfig(std=0.6)), 10)}, make_observations(8), config
        )
        assert found.free is not None
        row = found.free.best(10)
        assert row is not None
        assert (row.solver, row.nfe) == (expected, 10)
        assert (row.rms == found.free.beside("teacher", 10).rms) is (expected == "euler")  # type: ignore[union-attr]


def test_a_gap_relative_to_noise_is_over_the_variance_within_observations(measured: Measured) -> None:
    """By hand: RMS over the root of the mean, over observations, of the variance over noises."""
    held_out = encode_held_out({"teacher": measured.teacher}, make_observations(30), MEASURE)
    context, noise = held_out.contexts["teacher"], held_out.noise
    one, ten = (on_grid(measured.teacher, n, noise, context)[..., :2].flatten(2).double() for n in (1, 10))
    within = (ten - ten.mean(1, keepdim=True)).square().sum(-1).mean()
    whole = (ten - ten.mean((0, 1))).square().sum(-1).mean()
    results = Results([], {}, {}, "cpu", {}, "t", None, 10, spreads=measured.measures.spreads)
    assert results.noise_share == pytest.approx(float(within / whole), rel=1e-4)
    off = (one - ten).square().sum(-1).mean()
    row = measured.gap("teacher", 1, "deployed")
    assert results.of_noise(row.rms) == pytest.approx(math.sqrt(float(off / within)), rel=1e-4)
    # One untrained step is each observation's mean action: all that noise decides is lost, and no more.
    assert results.of_noise(row.rms) == pytest.approx(1, rel=0.02)


def test_latency_is_split_and_bounded(measured: Measured) -> None:
    latency = measured.measures.latency
    assert latency.encode_s > 0
    assert latency.step_s > 0
    assert latency.speedup > 1
    assert latency.ceiling == pytest.approx(latency.chunk_s(10) / latency.chunk_s(1))
    assert (latency.teacher_num_steps, latency.student_num_steps, latency.repeats) == (10, 1, 3)
    slower = measure_latency(
        measured.teacher,
        next(make_observations(4).batches(range(4), 4)),
        2,
        teacher_num_steps=10,
        student_num_steps=4,
    )
    assert slower.speedup < slower.ceiling
    assert slower.batch_size == 4


def test_trajectories_start_at_the_same_noise_and_share_a_plane(measured: Measured) -> None:
    by_policy = {
        name: [row for row in measured.measures.trajectories if row.policy == name]
        for name in ("teacher", "student")
    }
    assert len(by_policy["teacher"]) == len(by_policy["student"]) == 24
    bends = dict.fromkeys(by_policy, 0.0)
    for teacher, student in zip(by_policy["teacher"], by_policy["student"], strict=True):
        assert teacher.observation == student.observation
        assert (teacher.x[0], teacher.y[0]) == pytest.approx((student.x[0], student.y[0]))
        for row in (teacher, student):
            points = np.stack([row.x, row.y], axis=1)
            assert len(points) == 51
            chord = points[-1] - points[0]
            across = (points - points[0]) @ np.array([-chord[1], chord[0]]) / np.linalg.norm(chord)
            bends[row.policy] += float(np.abs(across).max())
    assert bends["student"] < 0.01 * bends["teacher"]
    axes = measured.measures.trajectory_axes
    assert 1 >= axes[0] >= axes[1] > 0
    assert sum(axes) <= 1 + 1e-9


def test_progress_ends_where_it_said(measured: Measured) -> None:
    done, totals = zip(*measured.ticks, strict=True)
    assert set(totals) == {done[-1]}
    assert list(done) == sorted(done)


def test_two_modes_are_seen_and_one_step_falls_between_them() -> None:
    teacher = make_policy(num_modes=2, separation=4.0, std=0.3)
    config = MeasureConfig(num_observations=12, num_steps=[1], converged_noises=16, latency_repeats=1)
    policies = {"teacher": Sampler(teacher, 10), "student": Sampler(teacher, 1)}
    measures = measure(policies, make_observations(12), config)
    assert measures.multimodal == 1.0
    assert measures.num_observations == 12
    student, untrained = (
        next(r for r in measures.gaps if (r.policy, r.num_steps, r.reference) == (name, 1, "deployed"))
        for name in ("student", "teacher")
    )
    assert student.rms == untrained.rms > 0.5
    assert student.ratio_to_untrained is not None
    assert student.ratio_to_untrained.value == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noises_per_observation": 15}, "measure.noises_per_observation=15: give at least 16"),
        ({"converged_num_steps": 50}, "measure.converged_num_steps=50: give at least 100"),
        (
            {"converged_noises": 17},
            "measure.converged_noises=17: give at most 16 (measure.noises_per_observation)",
        ),
        ({"num_steps": []}, "measure.num_steps="),
        ({"num_steps": [0, 1]}, "measure.num_steps="),
        ({"num_observations": 0}, "measure.num_observations=0"),
        ({"solvers": ["euler", "rk9"]}, "measure.solvers=[euler,rk9]: choose euler, midpoint, heun"),
    ],
)
def test_bad_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        MeasureConfig(**options)


def test_the_module_that_trains_and_the_policy_that_is_measured_agree(
    policy: GaussianFlowPolicy, context: Context
) -> None:
    noise, t = policy.sample_noise(N, generator(3)), torch.linspace(0, 1, N)
    assert torch.equal(VelocityModule(policy)(noise, t, context), policy.velocity(noise, t, context))


# Intervals, spreads, pictures


def test_intervals_cover_the_closed_form(measured: Measured) -> None:
    """The law's own value lies inside, and the interval is about the width that 15 episodes of noise leave."""
    hundred = float(euler_factor(torch.tensor(0.6), 100))
    held_out = encode_held_out({"teacher": measured.teacher}, make_observations(30), MEASURE)
    means = held_out.contexts["teacher"].tensors()[0][:, 0, :, :2].double()
    spread = float((means.var(dim=0, correction=0) + hundred**2).sum())
    for num_steps in (1, 2, 4):
        row = measured.gap("teacher", num_steps, "converged")
        delta = float(euler_factor(torch.tensor(0.6), num_steps)) - hundred
        law = math.sqrt(8 * delta**2 / spread)
        assert row.rms == pytest.approx(law, rel=0.01)
        assert row.interval is not None
        assert row.interval.low < law < row.interval.high
        assert 0.02 < (row.interval.high - row.interval.low) / law < 0.5
    curvature = measured.measures.curvature[0]
    assert curvature.interval is not None
    assert curvature.interval.low < curvature.curvature < curvature.interval.high
    itself = measured.gap("teacher", 10, "deployed").interval
    assert itself is not None
    assert (itself.low, itself.high) == (0.0, 0.0)


def test_the_interval_of_a_gap_covers_about_as_often_as_it_says() -> None:
    """Over 200 sets of 40 skewed episodes; with so few a bootstrap covers a little less than 95 %.

    Noises of an episode share its width: an interval over pairs would cover in about half of the sets.
    """
    rng, covered = np.random.default_rng(0), 0
    law = math.sqrt(0.25 / 1.25)
    for seed in range(200):
        wide = rng.gamma(4.0, 0.25, size=(40, 1))
        squared = 0.25 * wide * rng.chisquare(4, size=(40, 16)) / 4
        spread = (0.25 + wide) * rng.chisquare(4, size=(40, 16)) / 4
        gap = Gap(np.sqrt(squared), np.sqrt(spread), np.zeros((40, 16), dtype=bool), 0.0, 0.0)
        interval = gap.interval(np.arange(40), seed)
        assert interval is not None
        covered += interval.low <= law <= interval.high
    assert 170 <= covered <= 198
    assert gap.interval(np.zeros(40, dtype=int), 0) is None


def test_curvature_by_time_and_dimension_adds_up(measured: Measured) -> None:
    for row in measured.measures.curvature:
        grid = np.array(row.s_by_time_and_dim)
        assert grid.shape == (100, 2)
        assert grid.sum(axis=1) == pytest.approx(np.array(row.s_by_time))
        assert grid.mean(axis=0) == pytest.approx(np.array(row.s_by_dim[:2]))
        assert grid.mean(axis=0).sum() == pytest.approx(row.s)


def test_the_spread_of_one_mode_is_the_closed_form(measured: Measured) -> None:
    """Endpoints are m + c x_1, so each observation's own variance is 8 c^2, less the part of a mean of 64."""
    held_out = encode_held_out({"teacher": measured.teacher}, make_observations(30), MEASURE)
    means = held_out.contexts["teacher"].tensors()[0][:, 0, :, :2].double()
    c = float(euler_factor(torch.tensor(0.6), 10))
    overall = float((means.var(dim=0, correction=0) + c**2).sum())
    spreads = measured.measures.spreads
    law = math.sqrt(8 * c**2 * 63 / 64 / overall)
    assert np.sqrt(np.mean([row.spread**2 for row in spreads])) == pytest.approx(law, rel=0.01)
    assert all(row.modes == 1 and row.shares == [1.0] for row in spreads)
    assert [row.observation for row in spreads] == list(range(30))
    assert [(row.episode, row.frame) for row in spreads] == [(i // 2, i) for i in range(30)]


def test_two_modes_are_two_sided_and_the_widest_are_shown() -> None:
    teacher = make_policy(num_modes=2, separation=4.0, std=0.3)
    config = MeasureConfig(
        num_observations=12, noises_per_observation=64, num_steps=[1], converged_noises=4, latency_repeats=1
    )
    measures = measure({"teacher": Sampler(teacher, 50)}, make_observations(12), config)
    # Two modes 4 apart in 8 entries: variance 4 + 0.3^2 each, whatever the observation.
    means = torch.stack([make_observations(12).dataset.states[i] for i in range(12)])
    centres = teacher.encode({"observation.state": means}).means.mean(dim=1)[..., :2].double()  # type: ignore[attr-defined]
    own = 8 * (4 + 0.09)
    law = math.sqrt(own / (own + float(centres.var(dim=0, correction=0).sum())))
    assert np.sqrt(np.mean([r.spread**2 for r in measures.spreads])) == pytest.approx(law, rel=0.01)
    assert measures.multimodal == 1.0
    for row in measures.spreads:
        assert row.modes == 2
        assert sum(row.shares) == pytest.approx(1.0)
        assert row.shares[0] >= row.shares[1] > 0.2
    widest = measures.widest
    assert len(widest) == 6
    by_index = [measures.spreads[w.observation] for w in widest]
    assert [r.spread for r in by_index] == sorted((r.spread for r in by_index), reverse=True)
    assert len({r.episode for r in by_index}) == 6
    assert max(r.spread for r in measures.spreads) == by_index[0].spread
    for wide in widest:
        assert wide.axes[0] > 0.9 > wide.axes[1] > 0
        sides = np.array(wide.x) > 0
        labels = np.array(wide.labels)
        assert (sides == labels).all() or (sides != labels).all()
        assert wide.pictures == {}


def test_a_teacher_of_a_hundred_steps_is_held_to_a_finer_ode() -> None:
    """Against its own grid its floor would be zero, whatever its ODE."""
    teacher = make_policy()
    config = MeasureConfig(
        num_observations=8, noises_per_observation=16, num_steps=[1], converged_noises=2, latency_repeats=1
    )
    measures = measure({"teacher": Sampler(teacher, 100)}, make_observations(8), config)
    floor = next(r for r in measures.gaps if (r.num_steps, r.reference) == (100, "converged"))
    assert floor.reference_num_steps == measures.curvature[0].num_steps == 200
    # Euler's error halves with the step: to twice the steps it is half of what is left, so about that to four times.
    config.converged_num_steps = 400
    measures = measure({"teacher": Sampler(teacher, 100)}, make_observations(8), config)
    finer = next(r for r in measures.gaps if (r.num_steps, r.reference) == (100, "converged"))
    assert finer.reference_num_steps == 400
    assert finer.rms == pytest.approx(1.5 * floor.rms, rel=0.05)
    assert floor.rms > 1e-4


def test_pictures_are_small_png_files() -> None:
    image = torch.zeros(3, 320, 200)
    image[0, :, :100] = 1.0
    found = pictures({
        "observation.images.top": image, "observation.image": image[:, :40, :40], "observation.state": torch.ones(3),
        "observation.images.two": torch.stack([image * 0, image]), "task": "x",
    })  # fmt: skip
    assert set(found) == {"top", "image", "two"}
    shown = {name: Image.open(io.BytesIO(base64.b64decode(text))) for name, text in found.items()}
    assert {name: (p.format, p.size) for name, p in shown.items()} == {
        "top": ("PNG", (100, 160)), "image": ("PNG", (40, 40)), "two": ("PNG", (100, 160)),
    }  # fmt: skip
    assert shown["two"].getpixel((10, 10)) == (255, 0, 0)
    assert shown["top"].getpixel((90, 10)) == (0, 0, 0)


# Many policies


def test_policies_of_any_name_are_held_against_the_teacher_in_their_order() -> None:
    teacher = make_policy(std=0.6)
    straight = Straight(copy.deepcopy(teacher.config))
    config = MeasureConfig(num_observations=8, num_steps=[1], solvers=["euler"], latency_repeats=2)
    policies = {"mine": Sampler(straight, 3), "teacher": Sampler(teacher, 10), "b": Sampler(teacher, 2)}
    measures = measure(policies, make_observations(8), config)
    ways = {(r.policy, r.num_steps) for r in measures.gaps}
    assert ways == {
        *(("teacher", n) for n in (1, 2, 3, 10)), ("mine", 1), ("mine", 3), ("b", 1), ("b", 2),
    }  # fmt: skip
    assert [row.policy for row in measures.curvature] == ["teacher", "mine", "b"]
    same = [r for r in measures.gaps if r.policy == "b"]
    assert all(r.ratio_to_untrained is not None and r.ratio_to_untrained.value == 1.0 for r in same)
    assert [chunk.num_steps for chunk in measures.latency.chunks] == [1, 2, 10]
    with pytest.raises(ValueError, match="named teacher"):
        measure({"student": Sampler(teacher, 1)}, make_observations(4), config)


def test_shared_evaluations_change_nothing_and_are_not_made_twice() -> None:
    policy = Counting(GaussianConfig(num_modes=2))
    held_out = encode_held_out({"teacher": policy}, make_observations(2), MeasureConfig())
    context, noise = held_out.contexts["teacher"], held_out.noise
    ways = [Way("euler", 1), Way("euler", 2), Way("euler", 4), Way("midpoint", 2), Way("heun", 2)]
    alone = {way: solve(policy, context, noise, [way])[way] for way in ways}
    policy.evaluations = 0
    together = solve(policy, context, noise, ways)
    # All first ones are one; midpoint's middle is Euler's second of four, Heun's far end Euler's second of two.
    assert policy.evaluations == 1 + 1 + 3 + 2 + 2
    for way in ways:
        assert torch.equal(together[way], alone[way])


def test_threads_change_nothing() -> None:
    policy = make_policy(num_modes=2)
    held_out = encode_held_out({"teacher": policy}, make_observations(9), MeasureConfig())
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            ends = on_grid(policy, 4, held_out.noise, held_out.contexts["teacher"], 32)
            assert torch.get_num_threads() == threads
            found.append(ends)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


# Time and memory


class Slow(GaussianFlowPolicy):
    """Takes 6 ms to encode and 2 ms a step."""

    def encode(self, batch: dict) -> Context:  # type: ignore[override]
        time.sleep(0.006)
        return super().encode(batch)

    def velocity(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        time.sleep(0.002)
        return super().velocity(x_t, t, context)


def test_latency_of_a_policy_of_known_times() -> None:
    items = next(make_observations(1).batches([0], 1))
    latency = measure_latency(
        Slow(GaussianConfig()), items, 12, teacher_num_steps=5, student_num_steps=1, chunk_num_steps=[5, 1, 5]
    )
    assert latency.encode is not None
    assert latency.step is not None
    assert [chunk.num_steps for chunk in latency.chunks] == [1, 5]
    for times in (latency.encode, latency.step, *(chunk.seconds for chunk in latency.chunks)):
        assert 0 < times.p50 <= times.p90 <= times.p95 <= times.p99
    assert (latency.encode.p50, latency.step.p50) == (latency.encode_s, latency.step_s)
    assert latency.encode_s >= 0.006
    assert latency.step_s >= 0.002
    for chunk in latency.chunks:
        assert chunk.seconds.p50 >= 0.006 + 0.002 * chunk.num_steps
        # Measured for itself, it is what its parts take, up to what a busy machine adds to either.
        assert chunk.seconds.p50 == pytest.approx(latency.chunk_s(chunk.num_steps), rel=0.35)
    assert latency.processors_s is not None
    assert 0 < latency.processors_s < 0.006
    weights = 2 * 16 + 16 + 16 + 16  # state_proj's weight and bias, log_std, offsets
    assert latency.memory is not None
    assert latency.memory.weights_bytes == 4 * weights
    assert latency.memory.kind == "process"
    assert latency.memory.peak_bytes > 50_000_000


def test_actions_that_are_not_finite_are_named() -> None:
    policy = make_policy()
    with torch.no_grad():
        policy.module.get_parameter("state_proj.bias")[0] = torch.nan
    with pytest.raises(UserError, match="teacher: 100 euler steps end in NaN or infinite actions"):
        measure({"teacher": Sampler(policy, 4)}, make_observations(3), MeasureConfig(latency_repeats=1))
