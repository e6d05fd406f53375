"""Methods that need demonstrations, on a small real checkpoint of every family."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from chordflow.couplings import BufferConfig, CouplingBuffer, CouplingConfig, DatasetConfig, open_split
from chordflow.flow.seeds import generator
from chordflow.policies import FlowPolicy, VelocityModule, load_flow_policy
from chordflow.training.methods import (
    ConsistencyMethodConfig,
    EndpointMethodConfig,
    MethodConfig,
    NoiseBiasedMethodConfig,
    ReflowMethodConfig,
    SnapFlowMethodConfig,
)
from families import CASES
from family_case import FamilyCase
from small_policies import Folders

pytestmark = pytest.mark.parametrize("case", CASES.values(), ids=CASES)

CONFIGS: list[MethodConfig] = [
    NoiseBiasedMethodConfig(), SnapFlowMethodConfig(), ReflowMethodConfig(real_data_share=0.5),
    EndpointMethodConfig(), ConsistencyMethodConfig(),
]  # fmt: skip
Policies = Callable[[FamilyCase], FlowPolicy]


@pytest.fixture(scope="module")
def policies(family_folder: Folders) -> Policies:
    """A policy of each family, loaded once."""

    @functools.cache
    def policy(family: str) -> FlowPolicy:
        loaded = load_flow_policy(family_folder(family), device="cpu")
        loaded.module.requires_grad_(False)
        return loaded

    return lambda case: policy(case.family)


def test_what_is_encoded_does_not_depend_on_the_actions_beside_it(
    case: FamilyCase, policies: Policies, dataset_root: Path
) -> None:
    policy, config = policies(case), DatasetConfig("test/tiny", root=str(dataset_root))
    contexts = []
    for actions in (False, True):
        items = next(open_split(config, policy, actions=actions).train.batches([0, 4, 9], 3))
        assert ("action" in items) == actions
        with torch.no_grad():
            contexts.append(policy.encode(policy.preprocess(items)))
    for alone, beside in zip(contexts[0].tensors(), contexts[1].tensors(), strict=True):
        assert torch.equal(alone, beside)


def test_every_method_has_a_loss_and_a_gradient(
    case: FamilyCase, policies: Policies, dataset_root: Path
) -> None:
    policy = policies(case)
    split = open_split(DatasetConfig("test/tiny", root=str(dataset_root)), policy, actions=True)
    for config in CONFIGS:
        method = config.build()
        buffer = CouplingBuffer(
            policy, split.train, CouplingConfig(num_steps=2), BufferConfig(4, 2, None, 4), seed=0, batch_size=8,
            needs=method.needs,
        )  # fmt: skip
        list(buffer.fill(0))
        batch = buffer.batch(0)
        trainable = policy.train_roles(policy.default_train_roles)
        loss = method.loss(VelocityModule(policy), batch, generator(1))
        gradients = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
        norm = sum(float(g.square().sum()) for g in gradients if g is not None) ** 0.5
        assert 0 < float(loss.detach()) < 1e4, config
        assert 0 < norm < 1e6, config
        policy.module.requires_grad_(False)
