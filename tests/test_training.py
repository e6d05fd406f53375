"""Training: method, times, loop, averages, checkpoints and students; and that reflow does what its theory says."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import draccus
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from chordflow.couplings import BufferConfig, CouplingBatch, CouplingBuffer, CouplingConfig
from chordflow.errors import UserError
from chordflow.evaluation.measure import Measures, measure
from chordflow.evaluation.paired import MeasureConfig
from chordflow.flow import times as laws
from chordflow.flow.seeds import generator
from chordflow.policies import FlowPolicy, Role, VelocityModule, load_flow_policy
from chordflow.policies.base import PREFIX_ROLES
from chordflow.policies.sampling import Sampler
from chordflow.training.checkpoints import TrainingState, load_checkpoint
from chordflow.training.loop import Trained, read_metrics, train
from chordflow.training.methods import Method, MethodConfig, ReflowMethod, ReflowMethodConfig
from chordflow.training.objective import (
    BetaTimes,
    ExponentialTimes,
    LogitNormalTimes,
    TimesConfig,
    UniformTimes,
    UShapedTimes,
)
from chordflow.training.optimizers import AdamWConfig, OptimizerConfig, SOAPConfig
from chordflow.training.steps import EMAConfig, LoopConfig, Passed, SchedulerConfig
from chordflow.training.student import StudentInit, make_student, shares_prefix
from closed_forms import GaussianFlow
from gaussian_policy import GaussianConfig, GaussianContext, GaussianFlowPolicy
from gaussian_setup import AffineStudent, euler, euler_factor, make_observations, make_policy

SMALL = BufferConfig(num_observations=8, noises_per_observation=4, uses_per_coupling=None, block_size=4)


@dataclass
class Run:
    """A short training run on a Gaussian teacher, and what was seen of it."""

    output: Path
    student: AffineStudent
    trainable: dict[str, nn.Parameter]
    trained: Trained
    progress: list[Passed]
    weights: list[dict[str, Tensor]]
    saved: dict[Path, dict[str, Tensor]]


def run(
    output: Path,
    *,
    steps: int = 6,
    save_freq: int = 0,
    method: Method | None = None,
    resume_from: Path | None = None,
    teacher: GaussianFlowPolicy | None = None,
    buffer: BufferConfig = SMALL,
    observations: int = 8,
    batch_size: int = 8,
    coupling: CouplingConfig | None = None,
    **options: Any,
) -> Run:
    teacher = teacher or make_policy()
    student = AffineStudent(copy.deepcopy(teacher.config))
    trainable = student.train_roles([Role.ACTION_HEAD])
    seen: list[Passed] = []
    weights: list[dict[str, Tensor]] = []
    saved: dict[Path, dict[str, Tensor]] = {}

    def write(folder: Path, given: dict[str, Tensor]) -> None:
        folder.mkdir(parents=True)
        save_file(
            {name: tensor.contiguous() for name, tensor in given.items()}, folder / "student.safetensors"
        )
        saved[folder.parent] = {name: tensor.clone() for name, tensor in given.items()}

    def on_step(progress: Passed, _rate: float) -> None:
        seen.append(progress)
        weights.append({name: parameter.detach().clone() for name, parameter in trainable.items()})

    config = LoopConfig(
        steps=steps, seed=3, log_freq=2, save_freq=save_freq,
        **{"optimizer": AdamWConfig(lr=1e-3), **options},
    )  # fmt: skip
    trained = train(
        config,
        student,
        trainable,
        CouplingBuffer(
            teacher,
            make_observations(observations),
            coupling or CouplingConfig(num_steps=2),
            buffer,
            seed=3,
            batch_size=batch_size,
        ),
        method or ReflowMethodConfig().build(),
        output,
        write,
        resume_from=resume_from,
        on_step=on_step,
    )
    return Run(output, student, trainable, trained, seen, weights, saved)


# Times

TIMES = [UniformTimes, BetaTimes, LogitNormalTimes, UShapedTimes, ExponentialTimes]


@pytest.mark.parametrize("law", TIMES)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_asked_share_of_times_is_exactly_noise(law: type[TimesConfig], share: float) -> None:
    t = law(at_noise=share).build().sample(20_000, generator(0))
    at_noise = t == 1.0
    assert float(at_noise.float().mean()) == pytest.approx(share, abs=0.01)
    rest = t[~at_noise]
    if len(rest):
        base = law(at_noise=0.0).build().sample(20_000, generator(1))
        assert scipy.stats.ks_2samp(rest.numpy(), base.numpy()).pvalue > 0.01


def test_each_law_is_the_one_it_names_with_its_settings() -> None:
    assert BetaTimes(at_noise=0.0, alpha=2.0, beta=3.0).build() == laws.Beta(alpha=2.0, beta=3.0)
    assert LogitNormalTimes(at_noise=0.0, mean=0.5, std=2.0).build() == laws.LogitNormal(mean=0.5, std=2.0)
    assert UShapedTimes(at_noise=0.0, a=2.0).build() == laws.UShaped(a=2.0)
    assert ExponentialTimes(at_noise=0.0, ratio=3.0).build() == laws.Exponential(ratio=3.0)
    assert UniformTimes(at_noise=0.0).build() == laws.Uniform()


def test_half_at_noise_half_uniform_is_the_default() -> None:
    config = ReflowMethodConfig()
    assert isinstance(config.times, UniformTimes)
    assert config.times.at_noise == 0.5
    assert MethodConfig.get_choice_class("reflow") is ReflowMethodConfig


# The method


def batch_of(policy: FlowPolicy, count: int) -> CouplingBatch:
    noise, endpoint = policy.sample_noise(2 * count, generator(0)).chunk(2)
    context = policy.encode({"observation.state": torch.ones(count, 2)})
    return CouplingBatch(noise, endpoint, context, None)


def test_the_loss_equals_the_computation_by_hand() -> None:
    student = AffineStudent(GaussianConfig())
    batch = batch_of(student, 5)
    method = ReflowMethod(ReflowMethodConfig(times=UniformTimes(at_noise=0.4)))
    with torch.no_grad():
        loss = method.loss(VelocityModule(student), batch, generator(7))
        t = laws.PointMassMixture(weight=0.4).sample(5, generator(7))
        squared = []
        for row in range(5):
            noise, endpoint = batch.noise[row], batch.endpoint[row]
            x_t = t[row] * noise + (1 - t[row]) * endpoint
            context = batch.context.index(torch.tensor([row]))  # type: ignore[union-attr]
            v_t = student.velocity(x_t[None], t[row : row + 1], context)[0]
            squared.append((v_t - (noise - endpoint)).square())
    torch.testing.assert_close(loss, torch.stack(squared).mean())
    assert len(set(t.tolist())) > 2


def test_every_padded_dimension_and_every_row_counts_alike() -> None:
    policy = make_policy()
    batch = batch_of(policy, 3)
    method = ReflowMethodConfig().build()

    def exact_but(where: tuple[int, int, int]) -> float:
        def velocity(x_t: Tensor, t: Tensor, **_: object) -> Tensor:
            v_t = batch.noise - batch.endpoint
            v_t[where] += 1.0
            return v_t

        return float(method.loss(velocity, batch, generator(0)))

    losses = {exact_but((b, h, d)) for b in range(3) for h in range(4) for d in range(4)}
    assert len(losses) == 1 or max(losses) - min(losses) < 1e-7
    assert max(losses) == pytest.approx(1 / (3 * 4 * 4))


def test_times_follow_the_generator_that_is_given() -> None:
    student = AffineStudent(GaussianConfig())
    batch, method = batch_of(student, 4), ReflowMethodConfig().build()
    module = VelocityModule(student)
    losses = [float(method.loss(module, batch, generator(seed)).detach()) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


# The buffer


@given(
    observations=st.integers(2, 6),
    noises=st.integers(1, 3),
    uses=st.none() | st.integers(1, 4),
    block=st.integers(1, 4),
    batch_size=st.integers(1, 6),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=20)
def test_no_batch_holds_a_coupling_twice(
    observations: int, noises: int, uses: int | None, block: int, batch_size: int, seed: int
) -> None:
    config = BufferConfig(observations, noises, uses, block)
    policy = make_policy(horizon=1, padded_dim=1, action_dim=1, state_dim=1)
    if batch_size > -(-observations // min(block, observations)) * min(block, observations) * noises:
        return
    buffer = CouplingBuffer(
        policy, make_observations(7, 1), euler(1), config, seed=seed, batch_size=batch_size
    )
    for step in range(6):
        list(buffer.fill(step))
        batch = buffer.batch(step)
        assert batch.noise.flatten().unique().numel() == batch_size == len(batch.endpoint)
        resident = torch.cat([b.noise for b in buffer._blocks.values()])
        assert torch.isin(batch.noise, resident).all()
        # One Euler step of a Gaussian flow ends at the mean of its observation: rows belong together.
        assert isinstance(batch.context, GaussianContext)
        torch.testing.assert_close(batch.endpoint, batch.context.means[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("uses", [1, 3, 8])
def test_a_coupling_is_used_about_as_often_as_asked(uses: int) -> None:
    policy = make_policy(horizon=1, padded_dim=1, action_dim=1, state_dim=1)
    buffer = CouplingBuffer(
        policy, make_observations(50, 1), CouplingConfig(num_steps=1), BufferConfig(40, 2, uses, 10), seed=0,
        batch_size=16,
    )  # fmt: skip
    drawn: Counter[float] = Counter()
    blocks: dict[int, list[float]] = {}
    last = 120 * uses
    for step in range(last):
        list(buffer.fill(step))
        blocks |= {number: block.noise.flatten().tolist() for number, block in buffer._blocks.items()}
        drawn.update(buffer.batch(step).noise.flatten().tolist())
    # Blocks of the first filling leave early, and those still resident have not had their time.
    whole = [
        blocks[number]
        for number in blocks
        if buffer.num_blocks <= number < buffer.window.held(last - 1).start
    ]
    assert len(whole) > 40
    counts = torch.tensor([drawn[noise] for block in whole for noise in block], dtype=torch.float64)
    assert float(counts.mean()) == pytest.approx(uses, rel=0.05)
    # A draw without replacement at every step: close to binomial, no coupling is favoured.
    assert float(counts.var()) < 1.2 * uses
    means = torch.tensor([sum(drawn[noise] for noise in block) / len(block) for block in whole])
    assert float((means - uses).abs().max()) < 5 * math.sqrt(uses / 20)


# The loop


def test_the_optimizers_defaults_are_lerobots_adamw(tmp_path: Path) -> None:
    config = AdamWConfig()
    assert (config.lr, config.betas, config.grad_clip_norm) == (2e-5, (0.9, 0.95), 10.0)
    assert (config.eps, config.weight_decay) == (1e-8, 1e-10)
    done = run(tmp_path, steps=1, optimizer=config)
    # The first step of AdamW moves every weight by lr * sign(gradient).
    fresh = dict(AffineStudent(GaussianConfig()).module.named_parameters())
    for name, parameter in done.trainable.items():
        moved = (parameter - fresh[name]).detach().abs()
        assert float(moved.max()) == pytest.approx(2e-5, rel=0.02)


def test_two_steps_equal_adamw_by_hand(tmp_path: Path) -> None:
    done = run(tmp_path, steps=2, optimizer=AdamWConfig(lr=1e-2))
    teacher, student = make_policy(), AffineStudent(GaussianConfig())
    trainable = student.train_roles([Role.ACTION_HEAD])
    buffer = CouplingBuffer(
        teacher, make_observations(8), CouplingConfig(num_steps=2), SMALL, seed=3, batch_size=8
    )
    list(buffer.fill(0))
    optimizer = torch.optim.AdamW(
        trainable.values(), lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=1e-10
    )
    method = ReflowMethodConfig().build()
    for step, factor in enumerate([1.0, 0.5]):
        optimizer.param_groups[0]["lr"] = 1e-2 * factor
        optimizer.zero_grad()
        method.loss(VelocityModule(student), buffer.batch(step), generator(3, "times", step)).backward()
        optimizer.step()
    for name, parameter in trainable.items():
        torch.testing.assert_close(done.trainable[name], parameter, rtol=1e-6, atol=1e-8)


class Scaled(ReflowMethod):
    """The loss of reflow times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__(ReflowMethodConfig())
        self.factor = factor

    def loss(self, *arguments: Any) -> Tensor:
        return super().loss(*arguments) * self.factor


@pytest.mark.parametrize(("factor", "clipped"), [(1e-3, False), (1e6, True)])
def test_gradients_are_clipped_to_a_norm_of_ten(tmp_path: Path, factor: float, clipped: bool) -> None:
    done = run(tmp_path, steps=1, method=Scaled(factor))
    logged = read_metrics(tmp_path / "metrics.jsonl")[-1]["grad_norm"]
    assert (logged > 10) == clipped
    state = load_file(done.trained.checkpoint / "training_state" / "optimizer_state.safetensors")
    first_moments = [tensor for name, tensor in state.items() if name.endswith("exp_avg")]
    assert len(first_moments) == len(done.trainable)
    used = math.sqrt(sum(float((moment / 0.1).square().sum()) for moment in first_moments))
    assert used == pytest.approx(10.0 if clipped else logged, rel=1e-4)


def test_the_rate_warms_up_and_falls_along_a_cosine(tmp_path: Path) -> None:
    done = run(tmp_path, steps=12, scheduler=SchedulerConfig(num_warmup_steps=4))
    rates = [progress.lr for progress in done.progress]
    rising = [1e-3 * step / 4 for step in range(4)]
    falling = [1e-3 * 0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert rates == pytest.approx(rising + falling)
    assert [SchedulerConfig().warmup(steps) for steps in (10, 400, 200_000)] == [0, 20, 1000]


def test_averages_follow_their_formula_and_are_what_is_saved(tmp_path: Path) -> None:
    done = run(tmp_path, steps=5, ema=EMAConfig(enable=True, decay=0.8))
    average = {n: p.detach().clone() for n, p in AffineStudent(GaussianConfig()).module.named_parameters()}
    for weights in done.weights:
        for name, weight in weights.items():
            average[name] = 0.8 * average[name] + 0.2 * weight
    checkpoint = done.trained.checkpoint
    student = load_file(checkpoint / "pretrained_model" / "student.safetensors")
    ema, masters = (
        load_file(checkpoint / "training_state" / f"{n}_weights.safetensors") for n in ("ema", "master")
    )
    assert student.keys() == ema.keys() == masters.keys() == done.trainable.keys()
    for name in done.trainable:
        torch.testing.assert_close(student[name], average[name], rtol=1e-5, atol=1e-7)
        assert torch.equal(student[name], ema[name])
        assert torch.equal(masters[name], done.trainable[name])
        assert not torch.equal(student[name], masters[name])


def test_without_averages_the_weights_themselves_are_saved(tmp_path: Path) -> None:
    done = run(tmp_path)
    student = load_file(done.trained.checkpoint / "pretrained_model" / "student.safetensors")
    assert all(torch.equal(student[name], parameter) for name, parameter in done.trainable.items())
    assert not (done.trained.checkpoint / "training_state" / "ema_weights.safetensors").exists()


def test_metrics_are_means_between_lines_and_progress_is_told_every_step(tmp_path: Path) -> None:
    done = run(tmp_path, steps=5)
    losses = [progress.loss for progress in done.progress]
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [progress.step for progress in done.progress] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in lines] == [2, 4, 5]
    means = [sum(losses[:2]) / 2, sum(losses[2:4]) / 2, losses[4]]
    assert [line["loss"] for line in lines] == pytest.approx(means)
    assert done.trained.samples == 40
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [2, 4, 5]


class Breaking(ReflowMethod):
    """A loss that is finite and whose gradient is not, from the fourth step on.

    Its third call looks at the weights before the second step's checkpoint is written.
    """

    def __init__(self) -> None:
        super().__init__(ReflowMethodConfig())
        self.calls = 0

    def loss(self, velocity: Any, couplings: CouplingBatch, generator: torch.Generator) -> Tensor:
        self.calls += 1
        loss = super().loss(velocity, couplings, generator)
        return loss + (loss - loss.detach()).abs().sqrt() if self.calls >= 5 else loss


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not finite at step 4") as caught:
        run(tmp_path, steps=6, save_freq=2, method=Breaking())
    assert "gradient norm nan" in str(caught.value)
    assert "checkpoints/2" in str(caught.value).replace("000002", "2")
    checkpoints = [path.name for path in (tmp_path / "checkpoints").iterdir() if not path.is_symlink()]
    assert checkpoints == ["000002"]
    masters = load_file(tmp_path / "checkpoints" / "last" / "training_state" / "master_weights.safetensors")
    assert all(tensor.isfinite().all() for tensor in masters.values())
    with pytest.raises(UserError, match="no checkpoint was written yet"):
        run(tmp_path / "other", steps=6, method=Breaking())


# Resuming


SLIDES = BufferConfig(8, 4, 1, 4)
GROWS = BufferConfig(16, 4, 4, 4, start_observations=4)
"""In eight steps of eight couplings, from one block to three."""


@pytest.mark.parametrize(
    ("optimizer", "buffer"),
    [
        (AdamWConfig(lr=1e-3), SLIDES),
        (AdamWConfig(lr=1e-3), GROWS),
        (SOAPConfig(lr=1e-3, precondition_frequency=3), SLIDES),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(
    tmp_path: Path, optimizer: OptimizerConfig, buffer: BufferConfig
) -> None:
    options: dict[str, Any] = {
        "steps": 8, "save_freq": 4, "ema": EMAConfig(enable=True, decay=0.9),
        "buffer": buffer, "optimizer": optimizer,
    }  # fmt: skip
    whole = run(tmp_path, **options)
    resumed = run(tmp_path, resume_from=tmp_path / "checkpoints" / "000004", **options)
    assert [progress.step for progress in resumed.progress] == [5, 6, 7, 8]
    assert [p.loss for p in resumed.progress] == [p.loss for p in whole.progress[4:]]
    assert [p.lr for p in resumed.progress] == [p.lr for p in whole.progress[4:]]
    for name, parameter in whole.trainable.items():
        assert torch.equal(parameter, resumed.trainable[name])
    ends = [next(weights for path, weights in r.saved.items() if "8" in path.name) for r in (whole, resumed)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [2, 4, 6, 8]


def test_optimizer_and_schedule_come_back_as_they_were(tmp_path: Path) -> None:
    done = run(tmp_path, steps=3, ema=EMAConfig(enable=True))
    student = AffineStudent(GaussianConfig())
    trainable = student.train_roles([Role.ACTION_HEAD])
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    ema = {name: torch.zeros_like(parameter) for name, parameter in trainable.items()}
    assert load_checkpoint(done.trained.checkpoint, TrainingState(trainable, ema, optimizer, scheduler)) == (
        3,
        [],
    )
    saved = load_file(done.trained.checkpoint / "training_state" / "optimizer_state.safetensors")
    for index, (name, parameter) in enumerate(trainable.items()):
        assert torch.equal(parameter, done.trainable[name])
        assert torch.equal(ema[name], done.saved[next(iter(done.saved))][name])
        state = optimizer.state[parameter]
        assert float(state["step"]) == 3
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(state[moment], saved[f"state/{index}/{moment}"])
            assert (state[moment] != 0).any()
    assert scheduler.last_epoch == 3


@pytest.mark.parametrize("damage", ["missing", "cut", "other parameters"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: str) -> None:
    done = run(tmp_path, steps=2)
    file = done.trained.checkpoint / "training_state" / "master_weights.safetensors"
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:100])
    else:
        save_file({"something.else": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="cannot be resumed"):
        run(tmp_path, steps=4, resume_from=done.trained.checkpoint)


# Students


def test_one_prefix_serves_both_only_while_it_is_equal_and_frozen() -> None:
    teacher, student = make_policy(), AffineStudent(GaussianConfig())
    assert shares_prefix(teacher, student, [Role.ACTION_HEAD])
    for role in PREFIX_ROLES:
        assert not shares_prefix(teacher, student, [Role.ACTION_HEAD, role])
    with torch.no_grad():
        student.module.get_parameter("state_proj.weight")[0, 0] += 1e-6
    assert not shares_prefix(teacher, student, [Role.ACTION_HEAD])


# The VLM that this checkpoint's config names has no weights; one that has is in test_study_init.py.
WITHOUT_ANOTHER_VLM = [init for init in StudentInit if init != StudentInit.PRETRAINED_VLM]


@pytest.mark.parametrize("init", WITHOUT_ANOTHER_VLM)
def test_frozen_parameters_share_the_teachers_memory(checkpoint: Path, init: StudentInit) -> None:
    teacher = load_flow_policy(checkpoint, device="cpu")
    before = {name: parameter.clone() for name, parameter in teacher.module.named_parameters()}
    student = make_student(teacher, checkpoint, init, [Role.ACTION_HEAD], seed=4)
    originals = dict(teacher.module.named_parameters())
    head = set(teacher.parameters_by_role()[Role.ACTION_HEAD])
    assert set(student.trainable) == head
    for name, parameter in student.policy.module.named_parameters():
        shared = parameter.data_ptr() == originals[name].data_ptr()
        assert parameter.requires_grad == (name in head)
        assert shared == (name not in head and init != StudentInit.RANDOM), name
    # A step of the student leaves the teacher as it is.
    with torch.no_grad():
        for parameter in student.trainable.values():
            parameter.add_(1.0)
    assert all(torch.equal(before[name], parameter) for name, parameter in teacher.module.named_parameters())
    assert set(student.fresh) == (set(originals) - head if init == StudentInit.RANDOM else set())
    assert shares_prefix(teacher, student.policy, [Role.ACTION_HEAD]) == (init != StudentInit.RANDOM)


@pytest.mark.parametrize("init", WITHOUT_ANOTHER_VLM)
def test_a_student_begins_where_it_is_told(checkpoint: Path, init: StudentInit) -> None:
    teacher = load_flow_policy(checkpoint, device="cpu")
    students = [
        make_student(teacher, checkpoint, init, [Role.ACTION_HEAD], seed=seed).policy for seed in (4, 4, 5)
    ]
    fresh_roles = {
        StudentInit.TEACHER: set(), StudentInit.TEACHER_VLM: {Role.ACTION_HEAD}, StudentInit.RANDOM: set(Role)
    }[init]  # fmt: skip
    roles = [student.parameters_by_role() for student in students]
    for role, named in teacher.parameters_by_role().items():
        for name, original in named.items():
            first, again, other = (by_role[role][name] for by_role in roles)
            assert torch.equal(first, again)
            if original.unique().numel() > 1 and first.unique().numel() > 1:  # no bias, no norm
                assert torch.equal(first, original) == (role not in fresh_roles), name
                assert torch.equal(first, other) == (role not in fresh_roles), name


# What reflow is for


@dataclass
class Reflowed:
    """A student that `train` reflowed from a Gaussian teacher, and its measures."""

    teacher: GaussianFlowPolicy
    student: AffineStudent
    measures: Measures


@pytest.fixture(scope="module")
def reflowed(tmp_path_factory: pytest.TempPathFactory) -> Reflowed:
    teacher = make_policy(std=0.4, num_steps=1)
    done = run(
        tmp_path_factory.mktemp("reflow"),
        teacher=teacher,
        steps=900,
        batch_size=64,
        observations=40,
        buffer=BufferConfig(64, 8, 12, 16),
        coupling=euler(10),
        optimizer=AdamWConfig(lr=1e-2),
    )
    done.student.module.requires_grad_(False)
    done.student.set_num_steps(1)
    measures = measure(
        {"teacher": Sampler(teacher, 10), "student": Sampler(done.student, 1)},
        make_observations(30, seed=1),
        MeasureConfig(num_steps=[1, 2, 4], latency_repeats=1),
    )
    return Reflowed(teacher, done.student, measures)


def test_the_student_learns_the_reflowed_velocity(reflowed: Reflowed) -> None:
    """Ten Euler steps carry noise to m + c * noise: the optimum is the straight flow of that width."""
    context = reflowed.student.encode(
        {"observation.state": make_observations(30, seed=1).dataset.states[:30]}
    )
    noise = reflowed.student.sample_noise(30, generator(2))
    width = euler_factor(reflowed.teacher.std, 10)
    exact = GaussianFlow(context.means[:, 0], width)
    for t in (1.0, 0.8, 0.5, 0.2):
        times = torch.full((30,), t)
        x_t = t * noise + (1 - t) * exact.endpoint(noise)
        target = exact.reflowed_velocity(x_t, times)
        torch.testing.assert_close(target, noise - exact.endpoint(noise), rtol=1e-4, atol=1e-4)
        error = (reflowed.student.velocity(x_t, times, context) - target).square().mean().sqrt()
        assert float(error) < 0.02 * float(target.square().mean().sqrt()), t


def test_reflow_straightens_the_flow(reflowed: Reflowed) -> None:
    teacher, student = reflowed.measures.curvature
    assert teacher.curvature > 0.4
    assert student.curvature < 0.05 * teacher.curvature
    assert student.curvature_all_dims < 0.05 * teacher.curvature_all_dims


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_one_step_of_the_student_is_ten_of_the_teacher(reflowed: Reflowed, num_steps: int) -> None:
    rows = {row.policy: row for row in reflowed.measures.gaps
            if (row.num_steps, row.reference, row.solver) == (num_steps, "deployed", "euler")}  # fmt: skip
    assert rows["student"].rms < 0.02
    assert rows["student"].rms < 0.15 * rows["teacher"].rms
    assert rows["student"].ratio_to_untrained is not None
    assert rows["student"].ratio_to_untrained.value < 0.15


def test_the_saved_settings_say_what_was_trained() -> None:
    settings_ = json.loads(
        json.dumps(draccus.encode(ReflowMethodConfig(times=BetaTimes(at_noise=0.2)), MethodConfig))
    )
    assert settings_["type"] == "reflow"
    assert settings_["times"] == {"type": "beta", "at_noise": 0.2, "alpha": 1.5, "beta": 1.0}
