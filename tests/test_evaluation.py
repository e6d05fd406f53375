"""Gap, flips and modes against closed forms, and solving on held-out observations."""

import base64
import io
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import chi
from torch import Tensor

from chordflow import threads
from chordflow.errors import UserError
from chordflow.evaluation.gap import Gap, Modes, action_gap
from chordflow.evaluation.modes import mode_centres, nearest_mode
from chordflow.evaluation.paired import HeldOutSet, MeasureConfig, Way, encode_held_out, solve
from chordflow.evaluation.spread import pictures
from chordflow.flow.seeds import generator
from chordflow.flow.solvers import SOLVERS
from chordflow.policies import ChunkSpec, Context
from gaussian_policy import GaussianConfig, GaussianFlowPolicy
from gaussian_setup import euler_factor, make_observations, make_policy

N, K = 40, 64
# Of four actions of four numbers, two numbers are real.
REAL = ChunkSpec(horizon=4, padded_dim=4, action_dim=2, num_executed=4)


def encoded(policy: GaussianFlowPolicy, count: int, **options: Any) -> HeldOutSet:
    return encode_held_out({"teacher": policy}, make_observations(count), MeasureConfig(**options))


def on_grid(
    policy: GaussianFlowPolicy, num_steps: int, noise: Tensor, context: Context, batch_size: int = 512
) -> Tensor:
    (ends,) = solve(policy, context, noise, [Way("euler", num_steps)], batch_size=batch_size).values()
    return ends


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
    gap = action_gap(actual, reference, Modes(reference, chunk), policy)
    actual[..., [0, 3], :] = 100.0
    again = action_gap(actual, reference, Modes(reference, chunk), policy)
    assert np.array_equal(gap.distance, again.distance)
    assert np.array_equal(gap.spread, again.spread)
    assert action_gap(actual, reference, Modes(reference, REAL), policy).rms > 10 * gap.rms


def test_padded_dimensions_do_not_count(policy: GaussianFlowPolicy, noise: Tensor) -> None:
    actual = noise.clone()
    actual[..., 2:] += 100.0
    assert action_gap(actual, noise, Modes(noise, REAL), policy).rms == 0.0


def test_a_reference_without_spread_is_refused_with_a_sentence(policy: GaussianFlowPolicy) -> None:
    one = torch.ones(1, 1, 4, 4)
    modes = Modes(torch.randn(1, 16, 4, 4, generator=generator(0)), REAL)
    with pytest.raises(UserError, match="endpoints are all equal over 1 observation"):
        action_gap(one, one, modes, policy)


def test_flips_are_exactly_the_pairs_that_change_sides() -> None:
    policy = make_policy(num_modes=2, separation=4.0, std=0.3)
    held_out = encoded(policy, 30, noises_per_observation=64)
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


def test_an_outlier_is_no_mode() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(64, 4))
    points[:2] += 30.0
    assert len(mode_centres(points)) == 1
    points[2:4] += 30.0
    assert len(mode_centres(points)) == 2


def test_equal_points_are_one_mode_and_few_are_refused() -> None:
    assert len(mode_centres(np.ones((16, 4)))) == 1
    with pytest.raises(ValueError, match="15 endpoints are too few"):
        mode_centres(np.zeros((15, 2)))


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
    held_out = encoded(policy, 6)
    told: list[int] = []
    context, ways = held_out.contexts["teacher"], [Way(solver, 3)]
    # 6 observations with 16 noises each, two observations a batch: three batches.
    solve(policy, context, held_out.noise, ways, batch_size=32, on_batch=told.append)
    assert policy.evaluations == 3 * SOLVERS[solver]().nfe(3) == sum(told)


@given(st.integers(1, 200))
@settings(max_examples=20)
def test_solving_does_not_depend_on_the_batch_size(batch_size: int) -> None:
    policy = make_policy(num_modes=2)
    held_out = encoded(policy, 5)
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
    policy = make_policy()
    whole = encoded(policy, 9)
    assert len(whole.noise) == 9
    assert whole.noise.flatten(0, 1).unique(dim=0).shape[0] == 9 * 16
    some = encoded(policy, 9, num_observations=4)
    rows = [int((whole.noise[:, 0] == n).all(dim=(1, 2)).nonzero()) for n in some.noise[:, 0]]
    assert rows == sorted(set(rows))
    assert torch.equal(whole.noise[rows], some.noise)
    means = (held_out.contexts["teacher"].tensors()[0] for held_out in (whole, some))
    assert torch.equal(next(means)[rows], next(means))
    assert not torch.equal(encoded(policy, 9, seed=1).noise, whole.noise)


@pytest.mark.parametrize(("options", "message"), [
    ({"noises_per_observation": 15}, "measure.noises_per_observation=15: give at least 16"),
    ({"converged_num_steps": 50}, "measure.converged_num_steps=50: give at least 100"),
    ({"converged_noises": 17}, "measure.converged_noises=17: give at most 16 (measure.noises_per"),
    ({"num_steps": []}, "measure.num_steps="),
])  # fmt: skip
def test_bad_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        MeasureConfig(**options)


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
        covered += interval.low <= law <= interval.high
    assert 170 <= covered <= 198
    assert gap.interval(np.zeros(40, dtype=int), 0) is None


def test_pictures_are_small_png_files() -> None:
    image = torch.zeros(3, 320, 200)
    image[0, :, :100] = 1.0
    found = pictures({
        "observation.image": image[:, :40, :40], "observation.state": torch.ones(3), "task": "x",
        "observation.images.two": torch.stack([image * 0, image]),
    })  # fmt: skip
    shown = {name: Image.open(io.BytesIO(base64.b64decode(text))) for name, text in found.items()}
    kinds = {name: (picture.format, picture.size) for name, picture in shown.items()}
    assert kinds == {"image": ("PNG", (40, 40)), "two": ("PNG", (100, 160))}
    assert [shown["two"].getpixel((x, 10)) for x in (10, 90)] == [(255, 0, 0), (0, 0, 0)]


def test_shared_evaluations_change_nothing_and_are_not_made_twice() -> None:
    policy = Counting(GaussianConfig(num_modes=2))
    held_out = encoded(policy, 2)
    context, noise = held_out.contexts["teacher"], held_out.noise
    ways = [Way("euler", 1), Way("euler", 2), Way("euler", 4), Way("midpoint", 2), Way("heun", 2)]
    alone = {way: solve(policy, context, noise, [way])[way] for way in ways}
    policy.evaluations = 0
    together = solve(policy, context, noise, ways)
    # All first ones are one; midpoint's middle is Euler's second of four, Heun's far end Euler's second of two.
    assert policy.evaluations == 1 + 1 + 3 + 2 + 2
    for way in ways:
        assert torch.equal(together[way], alone[way])


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy(num_modes=2)
    held_out = encoded(policy, 9)
    before = torch.get_num_threads()
    found = []
    for allowed in (1, 3):
        monkeypatch.setattr(threads, "ALLOWED", allowed)
        found.append(on_grid(policy, 4, held_out.noise, held_out.contexts["teacher"], 32))
        assert torch.get_num_threads() == before
    assert torch.equal(*found)
