"""Training: method, times, loop, averages, checkpoints and students; and that reflow does what its theory says."""

import copy
import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from chordflow.couplings import BufferConfig, CouplingBatch, CouplingBuffer, CouplingConfig
from chordflow.errors import UserError
from chordflow.evaluation.measure import Measures, measure
from chordflow.evaluation.paired import MeasureConfig
from chordflow.flow.seeds import generator
from chordflow.policies import FlowPolicy, Role, VelocityModule, load_flow_policy
from chordflow.policies.base import PREFIX_ROLES
from chordflow.policies.sampling import Sampler
from chordflow.training.loop import Trained, read_metrics, train
from chordflow.training.methods import Method, ReflowMethod, ReflowMethodConfig
from chordflow.training.optimizers import AdamWConfig
from chordflow.training.steps import EMAConfig, LoopConfig, Passed, SchedulerConfig
from chordflow.training.student import StudentInit, make_student, shares_prefix
from closed_forms import GaussianFlow
from gaussian_policy import GaussianConfig, GaussianFlowPolicy
from gaussian_setup import AffineStudent, euler, euler_factor, make_observations, make_policy

SMALL = BufferConfig(num_observations=8, noises_per_observation=4, uses_per_coupling=None, block_size=4)


@dataclass
class Run:
    """A short training run on a Gaussian teacher, and what was seen of it."""

    output: Path
    student: AffineStudent
    trainable: dict[str, nn.Parameter]
    progress: list[Passed] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)
    trained: Trained = field(init=False)


def run(
    output: Path, *, method: Method | None = None, resume_from: Path | None = None,
    teacher: GaussianFlowPolicy | None = None, buffer: BufferConfig = SMALL, observations: int = 8,
    batch_size: int = 8, coupling: CouplingConfig | None = None, **options: Any,
) -> Run:  # fmt: skip
    output.mkdir(exist_ok=True)
    teacher = teacher or make_policy()
    student = AffineStudent(copy.deepcopy(teacher.config))
    done = Run(output, student, student.train_roles([Role.ACTION_HEAD]))

    def write(folder: Path, given: dict[str, Tensor]) -> None:
        folder.mkdir(parents=True)
        held = {name: tensor.contiguous() for name, tensor in given.items()}
        save_file(held, folder / "student.safetensors")

    def on_step(passed: Passed, _rate: float) -> None:
        done.progress.append(passed)
        done.weights.append({name: weight.detach().clone() for name, weight in done.trainable.items()})

    given = {"steps": 6, "optimizer": AdamWConfig(lr=1e-3), **options}
    source = CouplingBuffer(
        teacher, make_observations(observations), coupling or CouplingConfig(num_steps=2), buffer, seed=3,
        batch_size=batch_size,
    )  # fmt: skip
    done.trained = train(
        LoopConfig(seed=3, log_freq=2, **given), student, done.trainable, source,
        method or ReflowMethodConfig().build(), output, write, resume_from=resume_from, on_step=on_step,
    )  # fmt: skip
    return done


def saved(done: Run, name: str) -> dict[str, Tensor]:
    """A file of the last checkpoint."""
    return load_file(done.trained.checkpoint / f"{name}.safetensors")


def batch_of(policy: FlowPolicy, count: int) -> CouplingBatch:
    noise, endpoint = policy.sample_noise(2 * count, generator(0)).chunk(2)
    context = policy.encode({"observation.state": torch.ones(count, 2)})
    return CouplingBatch(noise, endpoint, context, None)


def test_every_padded_dimension_and_every_row_counts_alike() -> None:
    batch, method = batch_of(make_policy(), 3), ReflowMethodConfig().build()

    def exact_but(where: tuple[int, ...]) -> float:
        def velocity(x_t: Tensor, t: Tensor, **_: object) -> Tensor:
            v_t = batch.noise - batch.endpoint
            v_t[where] += 1.0
            return v_t

        return float(method.loss(velocity, batch, generator(0)))

    losses = [exact_but(where) for where in itertools.product(range(3), range(4), range(4))]
    assert losses == pytest.approx([1 / (3 * 4 * 4)] * 48)
    assert max(losses) - min(losses) < 1e-7


def test_two_steps_equal_adamw_by_hand(tmp_path: Path) -> None:
    done = run(tmp_path, steps=2, optimizer=AdamWConfig(lr=1e-2))
    student, coupling = AffineStudent(GaussianConfig()), CouplingConfig(num_steps=2)
    trainable = student.train_roles([Role.ACTION_HEAD])
    buffer = CouplingBuffer(make_policy(), make_observations(8), coupling, SMALL, seed=3, batch_size=8)
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
    state = saved(done, "training_state/optimizer_state")
    moments = [tensor / 0.1 for name, tensor in state.items() if name.endswith("exp_avg")]
    assert len(moments) == len(done.trainable)
    used = math.sqrt(sum(float(moment.square().sum()) for moment in moments))
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
    files = ("pretrained_model/student", "training_state/ema_weights", "training_state/master_weights")
    student, ema, masters = (saved(done, name) for name in files)
    assert student.keys() == ema.keys() == masters.keys() == done.trainable.keys()
    for name in done.trainable:
        torch.testing.assert_close(student[name], average[name], rtol=1e-5, atol=1e-7)
        assert torch.equal(student[name], ema[name])
        assert torch.equal(masters[name], done.trainable[name])
        assert not torch.equal(student[name], masters[name])
    # Without averages the weights themselves are saved.
    plain = run(tmp_path / "plain", steps=2)
    student = saved(plain, "pretrained_model/student")
    assert all(torch.equal(student[name], parameter) for name, parameter in plain.trainable.items())
    assert not (plain.trained.checkpoint / "training_state" / "ema_weights.safetensors").exists()


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
    with pytest.raises(UserError, match=r"not finite at step 4.*gradient norm nan.*checkpoints/0*2"):
        run(tmp_path, steps=6, save_freq=2, method=Breaking())
    checkpoints = [path.name for path in (tmp_path / "checkpoints").iterdir() if not path.is_symlink()]
    assert checkpoints == ["000002"]
    masters = load_file(tmp_path / "checkpoints" / "last" / "training_state" / "master_weights.safetensors")
    assert all(tensor.isfinite().all() for tensor in masters.values())
    with pytest.raises(UserError, match="no checkpoint was written yet"):
        run(tmp_path / "other", steps=6, method=Breaking())


def test_one_prefix_serves_both_only_while_it_is_equal_and_frozen() -> None:
    teacher, student = make_policy(), AffineStudent(GaussianConfig())
    assert shares_prefix(teacher, student, [Role.ACTION_HEAD])
    for role in PREFIX_ROLES:
        assert not shares_prefix(teacher, student, [Role.ACTION_HEAD, role])
    with torch.no_grad():
        student.module.get_parameter("state_proj.weight")[0, 0] += 1e-6
    assert not shares_prefix(teacher, student, [Role.ACTION_HEAD])


# The VLM that this checkpoint's config names has no weights; one that has is in test_study.py.
@pytest.mark.parametrize("init", [init for init in StudentInit if init != StudentInit.PRETRAINED_VLM])
def test_a_student_begins_where_it_is_told_and_frozen_parameters_share_the_teachers_memory(
    checkpoint: Path, init: StudentInit
) -> None:
    teacher = load_flow_policy(checkpoint, device="cpu")
    originals = dict(teacher.module.named_parameters())
    before = {name: parameter.clone() for name, parameter in originals.items()}
    student, again, other = (
        make_student(teacher, checkpoint, init, [Role.ACTION_HEAD], seed=seed) for seed in (4, 4, 5)
    )
    head, random = set(teacher.parameters_by_role()[Role.ACTION_HEAD]), init == StudentInit.RANDOM
    fresh = set(originals) if random else head if init == StudentInit.TEACHER_VLM else set()
    assert set(student.trainable) == head
    others = [dict(one.policy.module.named_parameters()) for one in (again, other)]
    for name, parameter in student.policy.module.named_parameters():
        shared = parameter.data_ptr() == originals[name].data_ptr()
        assert parameter.requires_grad == (name in head)
        assert shared == (name not in head and not random), name
        assert torch.equal(parameter, others[0][name])
        if originals[name].unique().numel() > 1 and parameter.unique().numel() > 1:  # no bias, no norm
            assert torch.equal(parameter, originals[name]) == (name not in fresh), name
            assert torch.equal(parameter, others[1][name]) == (name not in fresh), name
    # A step of the student leaves the teacher as it is.
    with torch.no_grad():
        for parameter in student.trainable.values():
            parameter.add_(1.0)
    assert all(torch.equal(before[name], parameter) for name, parameter in originals.items())
    assert set(student.fresh) == (set(originals) - head if random else set())
    assert shares_prefix(teacher, student.policy, [Role.ACTION_HEAD]) == (not random)


Reflowed = tuple[GaussianFlowPolicy, AffineStudent, Measures]


@pytest.fixture(scope="module")
def reflowed(tmp_path_factory: pytest.TempPathFactory) -> Reflowed:
    """A Gaussian teacher, a student that `train` reflowed from it, and their measures."""
    teacher = make_policy(std=0.4, num_steps=1)
    student = run(
        tmp_path_factory.mktemp("reflow"), teacher=teacher, steps=900, batch_size=64, observations=40,
        buffer=BufferConfig(64, 8, 12, 16), coupling=euler(10), optimizer=AdamWConfig(lr=1e-2),
    ).student  # fmt: skip
    student.module.requires_grad_(False)
    student.set_num_steps(1)
    samplers = {"teacher": Sampler(teacher, 10), "student": Sampler(student, 1)}
    config = MeasureConfig(num_steps=[1, 2, 4], latency_repeats=1)
    return teacher, student, measure(samplers, make_observations(30, seed=1), config)


def test_the_student_learns_the_reflowed_velocity(reflowed: Reflowed) -> None:
    """Ten Euler steps carry noise to m + c * noise: the optimum is the straight flow of that width."""
    teacher, student, _ = reflowed
    context = student.encode({"observation.state": make_observations(30, seed=1).dataset.states[:30]})
    noise = student.sample_noise(30, generator(2))
    exact = GaussianFlow(context.means[:, 0], euler_factor(teacher.std, 10))
    for t in (1.0, 0.8, 0.5, 0.2):
        times = torch.full((30,), t)
        x_t = t * noise + (1 - t) * exact.endpoint(noise)
        target = exact.reflowed_velocity(x_t, times)
        torch.testing.assert_close(target, noise - exact.endpoint(noise), rtol=1e-4, atol=1e-4)
        error = (student.velocity(x_t, times, context) - target).square().mean().sqrt()
        assert float(error) < 0.02 * float(target.square().mean().sqrt()), t


def test_reflow_straightens_the_flow_and_one_step_is_ten_of_the_teacher(reflowed: Reflowed) -> None:
    *_, measures = reflowed
    teacher, student = measures.curvature
    assert teacher.curvature > 0.4
    assert student.curvature < 0.05 * teacher.curvature
    assert student.curvature_all_dims < 0.05 * teacher.curvature_all_dims
    for num_steps in (1, 2, 4):
        wanted = (num_steps, "deployed", "euler")
        rows = {r.policy: r for r in measures.gaps if (r.num_steps, r.reference, r.solver) == wanted}
        assert rows["student"].rms < 0.02, num_steps
        assert rows["student"].rms < 0.15 * rows["teacher"].rms, num_steps
        assert rows["student"].ratio_to_untrained.value < 0.15, num_steps
