"""Optimisers: steps equal to the libraries' own, and states that checkpoints hold."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import pytorch_optimizer
import torch
from accelerate import Accelerator
from lerobot.optim.optimizers import load_optimizer_state, save_optimizer_state
from torch import Tensor, nn

from chordflow.flow.seeds import generator
from chordflow.policies import Role
from chordflow.training.optimizers import (
    AdamWConfig,
    OptimizerConfig,
    SOAPConfig,
)
from gaussian_policy import GaussianConfig
from gaussian_setup import AffineStudent

CONFIGS = [
    AdamWConfig(lr=1e-2, weight_decay=0.1),
    SOAPConfig(lr=1e-2, weight_decay=0.1, precondition_frequency=3),
    SOAPConfig(lr=1e-2, precondition_frequency=2, max_precondition_dim=20),
]


class Student(AffineStudent):
    """A Gaussian student with a parameter of three dimensions besides, as GR00T's heads have."""

    def make_module(self) -> nn.Module:
        module = super().make_module()
        module.register_parameter("cube", nn.Parameter(torch.randn(3, 4, 5, generator=generator(0))))
        return module


def parameters_of(student: AffineStudent) -> dict[str, nn.Parameter]:
    return student.train_roles([Role.ACTION_HEAD])


def gradients(parameters: dict[str, nn.Parameter], start: int, stop: int) -> Iterator[None]:
    """Puts the gradients of each step in place."""
    for step in range(start, stop):
        for name, parameter in parameters.items():
            parameter.grad = torch.randn(parameter.shape, generator=generator(step, name))
        yield


def train(config: OptimizerConfig, steps: int) -> dict[str, nn.Parameter]:
    student = Student(GaussianConfig())
    parameters = parameters_of(student)
    optimizer = config.build(parameters, student)
    for _ in gradients(parameters, 0, steps):
        optimizer.step()
    return parameters


def by_hand(
    build: Callable[[list[nn.Parameter]], torch.optim.Optimizer], steps: int
) -> dict[str, nn.Parameter]:
    """All parameters under one optimiser of a library."""
    parameters = parameters_of(Student(GaussianConfig()))
    optimizer = build(list(parameters.values()))
    for _ in gradients(parameters, 0, steps):
        optimizer.step()
    return parameters


# Steps


@pytest.mark.parametrize("largest", [10_000, 20])
def test_soap_steps_as_the_packages_own(largest: int) -> None:
    config = SOAPConfig(
        lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, precondition_frequency=3, max_precondition_dim=largest
    )
    done = train(config, 12)
    expected = by_hand(
        lambda p: pytorch_optimizer.SOAP(
            p, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, precondition_frequency=3, max_precondition_dim=largest,
        ),
        12,
    )  # fmt: skip
    for name, parameter in expected.items():
        torch.testing.assert_close(done[name], parameter, rtol=1e-4, atol=1e-5)


def test_a_state_with_its_momentum_in_the_standard_basis_goes_on() -> None:
    """As checkpoints were written before."""
    parameters = parameters_of(Student(GaussianConfig()))
    package = pytorch_optimizer.SOAP(parameters.values(), lr=1e-3, weight_decay=0.1, precondition_frequency=3)
    config = SOAPConfig(lr=1e-3, weight_decay=0.1, precondition_frequency=3)
    student = Student(GaussianConfig())
    others = parameters_of(student)
    for _ in gradients(parameters, 0, 5):
        package.step()
    state = {}
    for index, parameter in enumerate(parameters.values()):
        entry = package.state[parameter]
        state[index] = {name: entry[name] for name in ("exp_avg", "exp_avg_sq")}
        for name in ("GG", "Q"):
            state[index] |= {f"{name}_{side}": m for side, m in enumerate(entry[name]) if len(m)}
    soap = config.build(others, student)
    soap.load_state_dict({**soap.state_dict(), "state": copy.deepcopy(state)})
    soap.param_groups[0]["step"] = 5
    for name, parameter in others.items():
        parameter.data.copy_(parameters[name])
    for _ in zip(gradients(parameters, 5, 12), gradients(others, 5, 12), strict=True):
        package.step()
        soap.step()
    for name, parameter in parameters.items():
        torch.testing.assert_close(others[name], parameter, rtol=1e-4, atol=1e-5)


def test_adamw_is_torchs() -> None:
    done = train(AdamWConfig(lr=1e-2, weight_decay=0.1), 4)
    expected = by_hand(lambda p: torch.optim.AdamW(p, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1), 4)
    assert all(torch.equal(done[name], parameter) for name, parameter in expected.items())


def test_each_comes_down_a_narrow_valley_that_lies_askew() -> None:
    """Least squares of condition 1e6 in a turned basis."""
    turned = torch.linalg.qr(torch.randn(32, 32, generator=generator(3))).Q
    inputs = torch.randn(256, 32, generator=generator(1)) * torch.logspace(0, -3, 32) @ turned
    target = torch.randn(32, 32, generator=generator(2))
    start = float((inputs @ target).square().mean())
    for config in (AdamWConfig(), SOAPConfig()):
        student = AffineStudent(GaussianConfig())
        weight = parameters_of(student)["net.2.weight"]
        optimizer = config.build({"net.2.weight": weight}, student)
        for step in range(400):
            optimizer.param_groups[0]["lr"] = 3e-2 * (1 - step / 400)
            optimizer.zero_grad()
            loss = (inputs @ (weight - target)).square().mean()
            loss.backward()
            optimizer.step()
        assert float(loss.detach()) < 0.02 * start, config


# States


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("pause", [0, 1, 4])
def test_a_state_on_disk_goes_on_in_the_same_bits(
    tmp_path: Path, config: OptimizerConfig, pause: int
) -> None:
    whole = train(config, 9)
    student = Student(GaussianConfig())
    parameters = parameters_of(student)
    first = config.build(parameters, student)
    for _ in gradients(parameters, 0, pause):
        first.step()
    save_optimizer_state(first, tmp_path)
    again = config.build(parameters, student)
    load_optimizer_state(again, tmp_path)
    # As the loop does, which lets Accelerate have them.
    again = Accelerator(cpu=True).prepare(again)
    for _ in gradients(parameters, pause, 9):
        again.step()
    for name, parameter in whole.items():
        assert torch.equal(parameters[name], parameter), name


@pytest.mark.parametrize("config", CONFIGS)
def test_a_copied_optimizer_is_apart_from_its_original(config: OptimizerConfig) -> None:
    student = Student(GaussianConfig())
    parameters = parameters_of(student)
    optimizer = config.build(parameters, student)
    for _ in gradients(parameters, 0, 3):
        optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    again = config.build(parameters, student)
    again.load_state_dict(copy.deepcopy(state))
    assert [group["lr"] for group in again.param_groups] == [1e-2] * len(again.param_groups)
    for group in again.param_groups:
        group["lr"] = 0.0
    before = {name: p.detach().clone() for name, p in parameters.items()}
    for _ in gradients(parameters, 3, 5):
        again.step()
    # With a rate of zero nothing moves: the rates of the groups are those that the steps use.
    assert all(torch.equal(before[name], parameter) for name, parameter in parameters.items())
    for key, entry in optimizer.state_dict()["state"].items():
        for name, value in entry.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(state["state"][key][name])), name


def test_a_state_holds_tensors_of_their_own_alone() -> None:
    student = Student(GaussianConfig())
    parameters = parameters_of(student)
    optimizer = SOAPConfig(max_precondition_dim=20).build(parameters, student)
    for _ in gradients(parameters, 0, 2):
        optimizer.step()
    state = optimizer.state_dict()
    sides = {
        name: entry.keys() - {"momentum", "exp_avg_sq"}
        for name, entry in zip(parameters, state["state"].values(), strict=True)
    }
    assert sides["net.2.weight"] == set()  # both sides are 32
    assert sides["net.4.weight"] == {"GG_0", "Q_0"}
    assert sides["net.4.bias"] == set()
    assert sides["cube"] == {f"{key}_{side}" for key in ("GG", "Q") for side in range(3)}
    for entry in state["state"].values():
        assert all(isinstance(value, Tensor) and value.is_contiguous() for value in entry.values())
    json.dumps(state["param_groups"])


def test_changed_settings_are_put_over_saved_ones() -> None:
    student = Student(GaussianConfig())
    parameters = parameters_of(student)
    adamw = AdamWConfig(lr=1e-2).build(parameters, student)
    AdamWConfig(lr=1e-3, betas=(0.5, 0.6), eps=1e-5, weight_decay=0.2).put_over(adamw)
    (group,) = adamw.param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.5, 0.6), 1e-5, 0.2)
    assert group["initial_lr"] == 1e-3
    soap = SOAPConfig(precondition_frequency=2).build(parameters, student)
    for _ in gradients(parameters, 0, 3):
        soap.step()
    SOAPConfig(precondition_frequency=1_000).put_over(soap)
    basis = {id(p): soap.state[p]["Q_0"].clone() for p in parameters.values() if p.dim() > 1}
    for _ in gradients(parameters, 3, 9):
        soap.step()
    assert all(torch.equal(soap.state[p]["Q_0"], basis[id(p)]) for p in parameters.values() if p.dim() > 1)
