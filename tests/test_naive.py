"""The naive loop: the same losses, gradients and weights as the buffered one, at the price that it is there to show."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chordflow.couplings import (
    BufferConfig,
    CouplingBuffer,
    CouplingConfig,
    DatasetConfig,
    Observations,
    open_split,
)
from chordflow.flow.seeds import generator
from chordflow.policies import FlowPolicy, Role, VelocityModule, load_flow_policy
from chordflow.training.loop import train
from chordflow.training.methods import ReflowMethodConfig
from chordflow.training.naive import NaiveCouplings
from chordflow.training.optimizers import AdamWConfig, OptimizerConfig, SOAPConfig
from chordflow.training.steps import LoopConfig, SchedulerConfig
from gaussian_setup import AffineStudent, euler, make_observations, make_policy

STEPS, BATCH, SEED = 5, 4, 3


@dataclass
class Case:
    """A teacher with a student that begins anew each time."""

    teacher: FlowPolicy
    observations: Observations
    student: Callable[[], FlowPolicy]


def gaussian() -> Case:
    teacher = make_policy()

    def student() -> FlowPolicy:
        torch.manual_seed(1)
        return AffineStudent(copy.deepcopy(teacher.config))

    return Case(teacher, make_observations(10), student)


@pytest.fixture(params=["gaussian", "smolvla"])
def case(request: pytest.FixtureRequest) -> Case:
    if request.param == "gaussian":
        return gaussian()
    checkpoint: Path = request.getfixturevalue("checkpoint")
    root: Path = request.getfixturevalue("dataset_root")
    teacher = load_flow_policy(checkpoint, device="cpu")
    teacher.module.requires_grad_(False)
    split = open_split(DatasetConfig("test/tiny", root=str(root)), teacher)
    return Case(teacher, split.train, lambda: load_flow_policy(checkpoint, device="cpu"))


def once_used(case: Case, coupling: CouplingConfig, parts: int = 1) -> CouplingBuffer:
    """A buffer with one noise for an observation and one use of a coupling: all of it is the next step's."""
    config = BufferConfig(
        BATCH * parts, noises_per_observation=1, uses_per_coupling=1, block_size=BATCH * parts
    )
    return CouplingBuffer(
        case.teacher, case.observations, coupling, config, seed=SEED, batch_size=BATCH, parts=parts
    )


def naive(case: Case, coupling: CouplingConfig, parts: int = 1, **options: Any) -> NaiveCouplings:
    return NaiveCouplings(
        case.teacher, case.observations, coupling, seed=SEED, batch_size=BATCH, parts=parts, **options
    )


@pytest.mark.parametrize("parts", [1, 2])
def test_loss_and_gradients_equal_those_of_the_shared_prefix(case: Case, parts: int) -> None:
    """One noise an observation, one use of a coupling, the same seeds; over more than one pass of the data."""
    coupling = CouplingConfig(num_steps=10)
    method = ReflowMethodConfig().build()
    sides = []
    for source in (once_used(case, coupling, parts), naive(case, coupling, parts)):
        student = case.student()
        trainable = student.train_roles([Role.ACTION_HEAD])
        sides.append(
            (source, VelocityModule(student), trainable, torch.optim.AdamW(trainable.values(), lr=1e-2))
        )
    losses: list[list[float]] = [[], []]
    for step in range(STEPS * 2 if parts == 1 else STEPS):
        for found, (source, module, _, optimizer) in zip(losses, sides, strict=True):
            optimizer.zero_grad()
            list(source.fill(step))
            loss = torch.zeros(())
            for part in range(parts):
                batch = source.batch(step, part)
                loss = loss + batch.weight * method.loss(module, batch, generator(SEED, "times", step))
            loss.backward()
            found.append(float(loss.detach()))
        gradients = [{name: p.grad for name, p in trainable.items()} for _, _, trainable, _ in sides]
        assert any(
            float(gradient.abs().max()) > 1e-3 for gradient in gradients[0].values() if gradient is not None
        )
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-5)
        for _, _, _, optimizer in sides:
            optimizer.step()
    assert losses[1] == pytest.approx(losses[0], rel=1e-5, abs=1e-5)
    # The steps are not all alike, so that equality says something.
    assert len({round(loss, 6) for loss in losses[0]}) == len(losses[0])


@pytest.mark.parametrize("optimizer", [AdamWConfig(lr=1e-3), SOAPConfig(lr=1e-3)])
def test_the_training_loop_ends_in_the_same_weights(tmp_path: Path, optimizer: OptimizerConfig) -> None:
    case, coupling = gaussian(), CouplingConfig(num_steps=4)
    ends: list[dict[str, nn.Parameter]] = []
    for name, source in (("buffered", once_used(case, coupling)), ("naive", naive(case, coupling))):
        student = case.student()
        trainable = student.train_roles([Role.ACTION_HEAD])
        (tmp_path / name).mkdir()
        config = LoopConfig(
            steps=STEPS, batch_size=BATCH, seed=SEED, log_freq=1, save_freq=0, optimizer=optimizer,
            scheduler=SchedulerConfig(num_warmup_steps=0),
        )  # fmt: skip
        train(
            config, student, trainable, source, ReflowMethodConfig().build(), tmp_path / name,  # type: ignore[arg-type]
            lambda folder, weights: folder.mkdir(parents=True),
        )  # fmt: skip
        ends.append(trainable)
    fresh = dict(case.student().module.named_parameters())
    for name, parameter in ends[0].items():
        torch.testing.assert_close(ends[1][name], parameter, rtol=1e-5, atol=1e-5)
        assert not torch.equal(parameter, fresh[name])


def test_nothing_is_used_twice(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample costs an encoding by the teacher, ten passes of it, and an encoding by the student."""
    student = case.student()
    student.train_roles([Role.ACTION_HEAD])
    counts = {"teacher encodes": 0, "teacher passes": 0, "student encodes": 0, "student passes": 0}

    def counted(policy: FlowPolicy, method: str, key: str, rows: Callable[..., int]) -> None:
        original = getattr(policy, method)

        def call(*arguments: Any) -> Any:
            counts[key] += rows(*arguments)
            return original(*arguments)

        monkeypatch.setattr(policy, method, call)

    for policy, name in ((case.teacher, "teacher"), (student, "student")):
        counted(policy, "encode", f"{name} encodes", lambda batch: len(batch["observation.state"]))
        counted(policy, "velocity", f"{name} passes", lambda x_t, t, context: len(x_t))
    source = naive(case, euler(10))
    noises: list[Tensor] = []
    for step in range(3):
        list(source.fill(step))
        batch = source.batch(step)
        noises.append(batch.noise)
        ReflowMethodConfig().build().loss(VelocityModule(student), batch, generator(0)).backward()
    samples = 3 * BATCH
    assert counts == {
        "teacher encodes": samples, "teacher passes": 10 * samples,
        "student encodes": samples, "student passes": samples,
    }  # fmt: skip
    assert len(torch.cat(noises).flatten(1).unique(dim=0)) == samples


def test_readers_ahead_change_nothing(case: Case) -> None:
    coupling = CouplingConfig(num_steps=2)
    plain, ahead = naive(case, coupling), naive(case, coupling, num_workers=1)
    for step in (0, 1, 2, 5):
        for source in (plain, ahead):
            list(source.fill(step))
        assert torch.equal(plain.batch(step).endpoint, ahead.batch(step).endpoint)
    plain.close()
    ahead.close()


def test_a_step_is_made_before_it_is_asked_for(case: Case) -> None:
    source = naive(case, CouplingConfig(num_steps=1))
    list(source.fill(0))
    source.batch(0)
    with pytest.raises(ValueError, match="step 1"):
        source.batch(1)
