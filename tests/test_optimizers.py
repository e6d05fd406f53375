"""Optimisers: steps equal to the libraries' own, and states that checkpoints hold."""

import copy
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import pytorch_optimizer
import torch
from accelerate import Accelerator
from lerobot.optim.optimizers import load_optimizer_state, save_optimizer_state
from torch import nn
from torch.optim import Optimizer

from chordflow.flow.seeds import generator
from chordflow.policies import Role
from chordflow.training.optimizers import AdamWConfig, OptimizerConfig, SOAPConfig
from chordflow.training.soap import SOAP
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


def make(build: Callable[[Iterable[nn.Parameter]], Optimizer]) -> tuple[dict[str, nn.Parameter], Optimizer]:
    """Parameters of a fresh student, and their optimiser."""
    parameters = Student(GaussianConfig()).train_roles([Role.ACTION_HEAD])
    return parameters, build(parameters.values())


def take(optimizer: Optimizer, parameters: dict[str, nn.Parameter], steps: range) -> None:
    """Steps by gradients that follow from a step's number."""
    for step in steps:
        for name, parameter in parameters.items():
            parameter.grad = torch.randn(parameter.shape, generator=generator(step, name))
        optimizer.step()


@pytest.mark.parametrize("largest", [10_000, 20])
def test_soap_steps_as_the_packages_own(largest: int) -> None:
    more = {"weight_decay": 0.1, "precondition_frequency": 3, "max_precondition_dim": largest}
    done, soap = make(SOAPConfig(lr=1e-3, betas=(0.9, 0.95), **more).build)
    expected, package = make(
        lambda parameters: pytorch_optimizer.SOAP(list(parameters), lr=1e-3, betas=(0.9, 0.95), **more)
    )
    take(soap, done, range(12))
    take(package, expected, range(12))
    for name, parameter in expected.items():
        torch.testing.assert_close(done[name], parameter, rtol=1e-4, atol=1e-5)


def test_a_state_with_its_momentum_in_the_standard_basis_goes_on() -> None:
    """As checkpoints were written before."""
    more = {"lr": 1e-3, "weight_decay": 0.1, "precondition_frequency": 3}
    expected, package = make(lambda parameters: pytorch_optimizer.SOAP(list(parameters), **more))
    take(package, expected, range(5))
    done, soap = make(SOAPConfig(**more).build)
    state = {}
    for index, (name, parameter) in enumerate(expected.items()):
        done[name].data.copy_(parameter)
        entry = package.state[parameter]
        state[index] = {key: entry[key].clone() for key in ("exp_avg", "exp_avg_sq")}
        for key in ("GG", "Q"):
            state[index] |= {f"{key}_{side}": m.clone() for side, m in enumerate(entry[key]) if len(m)}
    soap.load_state_dict({**soap.state_dict(), "state": state})
    soap.param_groups[0]["step"] = 5
    take(soap, done, range(5, 12))
    take(package, expected, range(5, 12))
    for name, parameter in expected.items():
        torch.testing.assert_close(done[name], parameter, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("largest", [20, 1024])
def test_a_state_goes_on_where_another_size_of_basis_is_asked_for(largest: int) -> None:
    config = SOAPConfig(lr=1e-2, max_precondition_dim={20: 1024, 1024: 20}[largest])
    whole, first = make(config.build)
    take(first, whole, range(3))
    parameters, again = make(config.build)
    for name, parameter in whole.items():
        parameters[name].data.copy_(parameter)
    again.load_state_dict(copy.deepcopy(first.state_dict()))
    SOAPConfig(lr=1e-2, max_precondition_dim=largest).put_over(again)
    take(first, whole, range(3, 6))
    take(again, parameters, range(3, 6))
    assert all(torch.equal(parameters[name], parameter) for name, parameter in whole.items())


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("pause", [0, 1, 4])
def test_a_state_on_disk_goes_on_in_the_same_bits(
    tmp_path: Path, config: OptimizerConfig, pause: int
) -> None:
    whole, unstopped = make(config.build)
    take(unstopped, whole, range(9))
    parameters, first = make(config.build)
    take(first, parameters, range(pause))
    save_optimizer_state(first, tmp_path)
    again = config.build(parameters.values())
    load_optimizer_state(again, tmp_path)
    # As the loop does, which lets Accelerate have them.
    take(Accelerator(cpu=True).prepare(again), parameters, range(pause, 9))
    for name, parameter in whole.items():
        assert torch.equal(parameters[name], parameter), name


def test_changed_settings_are_put_over_saved_ones() -> None:
    _, adamw = make(AdamWConfig(lr=1e-2).build)
    AdamWConfig(lr=1e-3, betas=(0.5, 0.6), eps=1e-5, weight_decay=0.2).put_over(adamw)
    (group,) = adamw.param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.5, 0.6), 1e-5, 0.2)
    assert group["initial_lr"] == 1e-3
    parameters, soap = make(SOAPConfig(precondition_frequency=2).build)
    take(soap, parameters, range(3))
    SOAPConfig(precondition_frequency=1_000).put_over(soap)
    basis = {id(p): soap.state[p]["Q_0"].clone() for p in parameters.values() if p.dim() > 1}
    take(soap, parameters, range(3, 9))
    assert all(torch.equal(soap.state[p]["Q_0"], basis[id(p)]) for p in parameters.values() if p.dim() > 1)


def test_a_parameter_without_a_gradient_stands_still_and_others_of_its_shape_step_as_if_alone() -> None:
    def run(names: str) -> dict[str, torch.Tensor]:
        own = {name: nn.Parameter(torch.ones(3, 4)) for name in names}
        optimizer = SOAP(
            own.values(), lr=1e-2, betas=(0.9, 0.95), shampoo_beta=0.95, eps=1e-8, weight_decay=0.0,
            precondition_frequency=2, max_precondition_dim=10,
        )  # fmt: skip
        for step, (name, parameter) in itertools.product(range(6), own.items()):
            skipped = name == "b" and step in (2, 3)
            parameter.grad = None if skipped else torch.randn(3, 4, generator=generator(step, name))
            if name == names[-1]:
                optimizer.step()
        return {name: parameter.detach() for name, parameter in own.items()}

    together = run("ab")
    for name in "ab":
        torch.testing.assert_close(together[name], run(name)[name])
