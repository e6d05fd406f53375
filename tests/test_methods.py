"""Training methods: each loss by hand, each optimum in closed form, and what each asks of its batches."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chordflow.couplings import BufferConfig, CouplingBatch, CouplingBuffer, Needs, Share
from chordflow.couplings.blocks import Demonstrations, join_paths
from chordflow.errors import UserError
from chordflow.flow import times as laws
from chordflow.flow.seeds import generator
from chordflow.policies import Context, Role, VelocityModule
from chordflow.policies.sampling import Sampler
from chordflow.training.loop import train
from chordflow.training.methods import MethodConfig
from chordflow.training.methods.base import chosen_rows
from chordflow.training.methods.coupled import (
    ConsistencyMethodConfig,
    EndpointMethodConfig,
    ReflowMethodConfig,
)
from chordflow.training.methods.demonstrated import NoiseBiasedMethodConfig, SnapFlowMethodConfig
from chordflow.training.objective import BetaTimes, LossConfig, MeanSquaredError, PseudoHuber, UniformTimes
from chordflow.training.optimizers import AdamWConfig
from chordflow.training.steps import LoopConfig
from demonstrations import make_demonstrations
from gaussian_policy import GaussianConfig, GaussianContext, GaussianFlowPolicy
from gaussian_setup import AffineStudent, euler, euler_factor, make_policy

CONFIGS: dict[str, MethodConfig] = {
    "reflow": ReflowMethodConfig(), "reflow, real data": ReflowMethodConfig(real_data_share=0.3),
    "endpoint": EndpointMethodConfig(), "endpoint, paths": EndpointMethodConfig(path_share=0.5),
    "noise_biased": NoiseBiasedMethodConfig(), "snapflow": SnapFlowMethodConfig(),
    "consistency": ConsistencyMethodConfig(),
}  # fmt: skip
EVERY = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
SMALL = BufferConfig(num_observations=8, noises_per_observation=4, uses_per_coupling=None, block_size=4)


def make_buffer(
    policy: GaussianFlowPolicy, needs: Needs, config: BufferConfig = SMALL, count: int = 8, **options: Any
) -> CouplingBuffer:
    arguments = {"seed": 3, "batch_size": 8, **options}
    coupling = arguments.pop("coupling", euler(4))
    observations = arguments.pop("observations", None) or make_demonstrations(policy, count)
    return CouplingBuffer(policy, observations, coupling, config, needs=needs, **arguments)


def filled_batch(policy: GaussianFlowPolicy, needs: Needs, step: int = 0, **options: Any) -> CouplingBatch:
    buffer = make_buffer(policy, needs, **options)
    list(buffer.fill(step))
    return buffer.batch(step)


def joined(parts: Sequence[CouplingBatch]) -> CouplingBatch:
    """What several processes draw for a step, as one process would look at it."""

    def cat(of: Any, *names: str) -> list[Tensor]:
        return [torch.cat([getattr(of(part), name) for part in parts]) for name in names]

    first = parts[0]
    noise, endpoint = cat(lambda part: part, "noise", "endpoint")
    shown = (
        cat(lambda part: part.demonstrations, "noise", "actions", "valid") if first.demonstrations else None
    )
    return replace(
        first, noise=noise, endpoint=endpoint, rows=None, total=None, weight=1.0,
        context=type(first.context).concatenate([part.context for part in parts]),
        demonstrations=Demonstrations(*shown) if shown else None, path=join_paths([part.path for part in parts]),
    )  # fmt: skip


@EVERY
def test_the_teacher_is_asked_only_for_what_a_method_needs(
    config: MethodConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, needs, calls = make_policy(), config.build().needs, []
    velocity = policy.velocity
    monkeypatch.setattr(policy, "velocity", lambda x, t, c: calls.append(len(x)) or velocity(x, t, c))
    batch = filled_batch(policy, needs)
    # 32 couplings by four Euler steps.
    assert sum(calls) == (128 if needs.couplings else 0)
    assert (batch.demonstrations is not None) == needs.actions
    assert (batch.path is not None) == needs.paths
    assert len(batch.endpoint) == (8 if needs.couplings else 0)
    assert len(batch.noise) == 8


@pytest.mark.parametrize("couplings", [True, False])
def test_actions_belong_to_the_observations_that_they_were_shown_at(couplings: bool) -> None:
    policy = make_policy()
    observations = make_demonstrations(policy, 8, exact=True)
    batch = filled_batch(policy, Needs(couplings, actions=True), observations=observations)
    shown = batch.demonstrated()
    assert shown.noise.shape == shown.actions.shape == shown.valid.shape == (8, 4, 4)
    assert isinstance(batch.context, GaussianContext)
    torch.testing.assert_close(shown.actions[shown.valid], batch.context.means[:, 0][shown.valid])
    # Zero-padded, and what lies behind an episode's end does not count.
    assert (shown.actions[..., 2:] == 0).all()
    assert not shown.valid[..., 2:].any()
    behind = shown.actions[..., 0] == 1e3
    assert behind.any()
    assert torch.equal(shown.valid[..., 0], ~behind)


def test_noise_of_demonstrations_is_of_its_step_alone() -> None:
    buffer = make_buffer(make_policy(), Needs(actions=True))
    list(buffer.fill(0))
    torch.manual_seed(1)
    first = buffer.batch(0)
    torch.manual_seed(2)
    again, other = buffer.batch(0).demonstrated(), buffer.batch(1).demonstrated()
    assert torch.equal(first.demonstrated().noise, again.noise)
    assert not torch.isin(torch.cat([other.noise, first.noise]), again.noise).any()


def test_paths_are_the_teachers_own_steps() -> None:
    policy = make_policy(std=0.3)
    batch = filled_batch(policy, Needs(paths=True))
    path, context = batch.travelled(), batch.context
    assert context is not None
    assert path.times.tolist() == [1.0, 0.75, 0.5, 0.25]
    assert torch.equal(path.states[:, 0], batch.noise)
    states = [*path.states.unbind(1), batch.endpoint]
    for t, now, after in zip(path.times, states[:-1], states[1:], strict=True):
        torch.testing.assert_close(now - 0.25 * policy.velocity(now, t.expand(8), context), after)
    torch.testing.assert_close(Sampler(policy, 4)(context, batch.noise), batch.endpoint)


@pytest.mark.parametrize(
    ("config", "what"), [(NoiseBiasedMethodConfig(), "demonstrations"), (ConsistencyMethodConfig(), "paths")]
)
def test_a_batch_without_what_is_needed_says_so(config: MethodConfig, what: str) -> None:
    policy = make_policy()
    with pytest.raises(ValueError, match=f"no {what}"):
        config.build().loss(VelocityModule(policy), filled_batch(policy, Needs()), generator(0))


@EVERY
def test_a_step_that_two_processes_share_is_the_same_step(config: MethodConfig) -> None:
    policy, method, module = make_policy(), config.build(), VelocityModule(AffineStudent(GaussianConfig()))

    def loss(batch: CouplingBatch) -> Tensor:
        return batch.weight * method.loss(module, batch, generator(5))

    parts = [filled_batch(policy, method.needs, batch_size=4, share=Share(index, 2)) for index in (0, 1)]
    assert all(len(part.noise) == 4 for part in parts)
    torch.testing.assert_close(sum(loss(part) for part in parts), loss(joined(parts)), rtol=1e-5, atol=1e-6)


@EVERY
def test_a_prefix_that_trains_is_encoded_anew_and_without_the_actions(config: MethodConfig) -> None:
    policy, method, student = make_policy(), config.build(), AffineStudent(GaussianConfig())
    kept = filled_batch(policy, method.needs)
    anew = filled_batch(policy, method.needs, student_encode=student.encode, student_context=False)
    assert anew.context is None
    assert set(anew.batch) == {"observation.state"}
    losses = [method.loss(VelocityModule(student), batch, generator(5)) for batch in (kept, anew)]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_share_of_a_small_batch_is_met_on_average(share: float) -> None:
    batch = filled_batch(make_policy(), Needs())
    counts = [int(chosen_rows(batch, share, generator(seed)).sum()) for seed in range(2000)]
    assert max(counts) - min(counts) <= 1
    assert sum(counts) / len(counts) / 8 == pytest.approx(share, abs=0.01)


def by_rows(student: AffineStudent, batch: CouplingBatch, row: int, x: Tensor, t: float | Tensor) -> Tensor:
    context = batch.context.index(torch.tensor([row]))
    return student.velocity(x[None], torch.as_tensor(t).reshape(1), context)[0]


@torch.no_grad()
def test_a_shortcut_is_the_mean_of_two_steps_of_the_student() -> None:
    policy, student = make_policy(), AffineStudent(GaussianConfig())
    method = SnapFlowMethodConfig(shortcut_share=0.5).build()
    batch = filled_batch(policy, method.needs)
    loss = method.loss(VelocityModule(student), batch, generator(7))
    drawn, shown = generator(7), batch.demonstrated()
    t = laws.Beta().sample(8, drawn)
    shortcut = chosen_rows(batch, 0.5, drawn)
    values = []
    for row in range(8):
        noise, action = shown.noise[row], shown.actions[row]
        if shortcut[row]:
            one = by_rows(student, batch, row, noise, 1.0)
            end = Sampler(student, 2)(batch.context.index(torch.tensor([row])), noise[None])[0]
            values.append((one - (noise - end)).square().mean())
        else:
            v_t = by_rows(student, batch, row, t[row] * noise + (1 - t[row]) * action, t[row])
            values.append((v_t - (noise - action))[shown.valid[row]].square().mean())
    torch.testing.assert_close(loss, torch.stack(values).mean())


@pytest.mark.parametrize("config", [SnapFlowMethodConfig(), ConsistencyMethodConfig()])
def test_a_target_sends_no_gradients_into_the_student(config: MethodConfig) -> None:
    method, asked = config.build(), []

    def velocity(x_t: Tensor, t: Tensor, **_: object) -> Tensor:
        asked.append(torch.is_grad_enabled())
        return x_t

    method.loss(velocity, filled_batch(make_policy(), method.needs), generator(0))
    assert sorted(asked) == [False, True]


@pytest.mark.parametrize(("share", "counts"), [(0.0, False), (0.5, True)])
def test_what_an_endpoint_does_in_padded_dimensions_counts_only_for_more_steps(
    share: float, counts: bool
) -> None:
    batch = filled_batch(make_policy(), Needs(paths=True))

    def loss(off_in: int) -> float:
        def velocity(x_t: Tensor, t: Tensor, **_: object) -> Tensor:
            v_t = (x_t - batch.endpoint) / t[:, None, None]
            v_t[..., off_in] += 1.0
            return v_t

        return float(EndpointMethodConfig(path_share=share).build().loss(velocity, batch, generator(0)))

    assert loss(0) > 0.1
    assert (loss(3) > 0.1) == counts


def trained(
    output: Path, config: MethodConfig, student: type[AffineStudent] | None = None, *, std: float = 0.4,
    steps: int = 600, observations: int = 512,
) -> tuple[GaussianFlowPolicy, AffineStudent, Tensor, GaussianContext]:  # fmt: skip
    """A student after training, with noise and contexts of other observations."""
    teacher, method = make_policy(std=std), config.build()
    student = (student or AffineStudent)(GaussianConfig())
    buffer = make_buffer(
        teacher, method.needs, BufferConfig(observations, 4, None, 256), observations, batch_size=256,
        coupling=euler(5),
    )  # fmt: skip
    loop = LoopConfig(steps, seed=3, log_freq=100, optimizer=AdamWConfig(lr=1e-2))
    trainable = student.train_roles([Role.ACTION_HEAD])
    train(loop, student, trainable, buffer, method, output, lambda folder, _: folder.mkdir(parents=True))
    student.module.requires_grad_(False)
    context = student.encode({"observation.state": torch.randn(64, 2, generator=generator("new"))})
    return teacher, student, student.sample_noise(64, generator("new noise")), context


def distance(found: Tensor, exact: Tensor) -> float:
    """RMS over the real dimensions, relative to what is looked for."""
    found, exact = found[..., :2], exact[..., :2]
    return float((found - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def test_the_optimum_of_endpoint_is_the_coupling_at_one_step(tmp_path: Path) -> None:
    teacher, student, noise, context = trained(tmp_path, EndpointMethodConfig(), steps=400)
    exact = context.means[:, 0] + euler_factor(teacher.std, 5) * noise
    assert distance(Sampler(student, 1)(context, noise), exact) < 0.01
    assert distance(Sampler(teacher, 1)(context, noise), exact) > 0.2
    # Nothing was said of other times.
    assert distance(Sampler(student, 5)(context, noise), exact) > 0.1


def test_points_of_the_path_keep_more_steps_usable(tmp_path: Path) -> None:
    teacher, student, noise, context = trained(tmp_path, EndpointMethodConfig(path_share=0.5))
    exact = context.means[:, 0] + euler_factor(teacher.std, 5) * noise
    assert distance(Sampler(student, 1)(context, noise), exact) < 0.02
    assert ends_from_path(student, teacher, context, noise) < 0.02


def test_the_optimum_of_noise_biased_is_the_teachers_own_field(tmp_path: Path) -> None:
    config = NoiseBiasedMethodConfig(times=BetaTimes(at_noise=0.3))
    teacher, student, noise, context = trained(tmp_path, config, observations=4096)
    for t in (1.0, 0.8, 0.6, 0.4):
        x_t = t * noise + (1 - t) * context.means[:, 0]
        time = torch.full((64,), t)
        assert distance(student.velocity(x_t, time, context), teacher.velocity(x_t, time, context)) < 0.06, t
    # One step of the exact field is the mean action, whatever the noise.
    assert distance(Sampler(teacher, 1)(context, noise), context.means[:, 0]) < 1e-5


class SplitStudent(AffineStudent):
    """Coefficients of its own at t = 1, as the network of a two-input method would have them."""

    def make_module(self) -> nn.Module:
        module = super().make_module()
        module.register_parameter("at_noise", nn.Parameter(torch.zeros(2, self.config.padded_dim)))
        return module

    def velocity(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        assert isinstance(context, GaussianContext)
        slope, level = self.module.get_parameter("at_noise")
        shortcut = slope * x_t + level * context.means[:, 0]
        return torch.where(t[:, None, None] == 1.0, shortcut, super().velocity(x_t, t, context))


def test_a_shortcut_rests_at_the_implicit_midpoint_rule(tmp_path: Path) -> None:
    """v_1 = v(x_1 - v_1 / 2, 1/2) with the field of a Gaussian gives v_1 = (1 - s^2) x_1 - m."""
    std = 0.5
    teacher, student, noise, context = trained(
        tmp_path, SnapFlowMethodConfig(), SplitStudent, std=std, observations=4096
    )
    mean = context.means[:, 0]
    half = torch.full((64,), 0.5)
    exact = (1 - std**2) * noise - mean
    torch.testing.assert_close(exact, teacher.velocity(noise - 0.5 * exact, half, context))
    x_half = 0.5 * noise + 0.5 * mean
    assert distance(student.velocity(x_half, half, context), teacher.velocity(x_half, half, context)) < 0.06
    assert distance(student.velocity(noise, torch.ones(64), context), exact) < 0.06
    # It is nearer to the end of the ODE, m + s x_1, than one or two Euler steps of the teacher, and not there.
    ends = mean + std * noise
    one = distance(Sampler(student, 1)(context, noise), ends)
    assert 0.1 < one < distance(Sampler(teacher, 2)(context, noise), ends)


def ends_from_path(
    student: AffineStudent, teacher: GaussianFlowPolicy, context: GaussianContext, noise: Tensor
) -> float:
    """How far x_t - t v lies from the trajectory's endpoint at the worst of its states."""
    states: list[tuple[float, Tensor]] = []
    end = Sampler(teacher, 5)(context, noise, on_step=lambda _s, t, x, _v: states.append((t, x)))
    found = [x - t * student.velocity(x, torch.full((64,), t), context) for t, x in states]
    return max(distance(there, end) for there in found)


def test_the_fixed_point_of_consistency_is_the_teachers_map(tmp_path: Path) -> None:
    teacher, student, noise, context = trained(tmp_path, ConsistencyMethodConfig(), steps=1000)
    assert ends_from_path(student, teacher, context, noise) < 0.03
    # So one step is five of the teacher.
    assert distance(Sampler(student, 1)(context, noise), Sampler(teacher, 5)(context, noise)) < 0.03


@pytest.mark.parametrize(("config", "step_counts"), [
    (ReflowMethodConfig(), None), (ReflowMethodConfig(times=UniformTimes(at_noise=1.0)), (1,)),
    (ReflowMethodConfig(times=UniformTimes(at_noise=1.0), real_data_share=0.1), None),
    (EndpointMethodConfig(), (1,)), (EndpointMethodConfig(path_share=0.2), None),
    (NoiseBiasedMethodConfig(), None), (NoiseBiasedMethodConfig(times=BetaTimes(at_noise=1.0)), (1,)),
    (SnapFlowMethodConfig(), None), (ConsistencyMethodConfig(), None),
])  # fmt: skip
def test_who_sees_one_time_alone_is_for_one_step_alone(
    config: MethodConfig, step_counts: tuple[int, ...] | None
) -> None:
    assert config.build().step_counts == step_counts


@pytest.mark.parametrize(("config", "name", "value"), [
    (ReflowMethodConfig, "method.real_data_share", 1.0), (EndpointMethodConfig, "method.path_share", 1.0),
    (SnapFlowMethodConfig, "method.shortcut_share", 0.0), (PseudoHuber, "loss.c", 0.0),
])  # fmt: skip
def test_numbers_out_of_range_are_refused(config: type, name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{name}={value}"):
        config(**{name.partition(".")[2]: value})


@EVERY
def test_every_method_takes_every_loss(config: MethodConfig) -> None:
    policy, values = make_policy(), []
    losses: list[LossConfig] = [MeanSquaredError(), PseudoHuber(), MeanSquaredError(equal_weights=True)]
    batch = filled_batch(policy, config.build().needs)
    for loss in losses:
        student = AffineStudent(GaussianConfig())
        value = replace(config, loss=loss).build().loss(VelocityModule(student), batch, generator(1))
        value.backward()  # type: ignore[no-untyped-call]
        slope = student.module.get_submodule("net")[0].weight.grad  # type: ignore[index]
        values.append((float(value.detach()), slope))
    assert values[0][0] == pytest.approx(values[2][0])
    assert values[0][0] != pytest.approx(values[1][0])
    assert not torch.allclose(values[0][1], values[2][1])
