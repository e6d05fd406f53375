"""What is particular to SmolVLA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from builders import build_checkpoint, observations
from chordflow.flow.seeds import generator
from chordflow.policies import Role, VelocityModule, load_flow_policy
from chordflow.policies.smolvla import SmolVLAFlowPolicy
from family_case import euler, on_path


def test_roles_follow_the_parts(tiny_policy: SmolVLAFlowPolicy) -> None:
    roles = tiny_policy.parameters_by_role()
    assert all(roles.values())
    assert set(roles[Role.PREFIX_PROJECTIONS]) == {"model.state_proj.weight", "model.state_proj.bias"}
    with pytest.raises(ValueError, match="no known role"):
        tiny_policy.role_of("model.elsewhere.weight")


def test_gradients_reach_every_trained_parameter(tiny_policy: SmolVLAFlowPolicy) -> None:
    trainable, module = tiny_policy.train_roles(list(Role)), VelocityModule(tiny_policy)
    batch, noise = tiny_policy.preprocess(observations(3)), tiny_policy.sample_noise(3, generator(0, "g"))
    module(noise, torch.full((3,), 0.5), batch=batch).square().mean().backward()
    # The last VLM layer's keys and values feed the head, its output does not: LeRobot freezes it for that.
    without = {name for name, parameter in trainable.items() if parameter.grad is None}
    assert all("vlm.lm_head" in n or "text_model.norm" in n or "text_model.layers.1" in n for n in without)
    assert not any(name in without for name in tiny_policy.parameters_by_role()[Role.ACTION_HEAD])
    assert len(list(module.parameters())) == len(list(tiny_policy.module.parameters()))


def test_actions_come_back_in_the_robots_units(tiny_policy: SmolVLAFlowPolicy) -> None:
    endpoint = torch.randn(2, *tiny_policy.chunk.shape)
    expected = endpoint[..., :2] * torch.tensor([3.0, 0.5]) + torch.tensor([1.0, -2.0])
    torch.testing.assert_close(tiny_policy.to_action(endpoint), expected, rtol=1e-5, atol=1e-5)


def test_action_target_is_padded_and_masked_like_the_stock_loss(tiny_policy: SmolVLAFlowPolicy) -> None:
    items = {**observations(2), "action": torch.randn(2, 8, 2)}
    items["action_is_pad"] = torch.arange(8).expand(2, 8) >= torch.tensor([[8], [5]])
    batch = tiny_policy.preprocess(items)
    target, valid = tiny_policy.action_target(batch)
    assert target.shape == valid.shape == (2, *tiny_policy.chunk.shape)
    assert (target[..., 2:] == 0).all()
    assert not valid[..., 2:].any()
    assert not valid[1, 5:].any()
    noise, t = torch.randn(2, 8, 6), torch.tensor([0.4, 0.9])
    with torch.no_grad():
        v_t = tiny_policy.velocity(on_path(noise, target, t), t, tiny_policy.encode(batch))
        loss, _ = tiny_policy.module.forward(dict(batch), noise=noise, time=t)
    torch.testing.assert_close((v_t - (noise - target)).square()[valid].mean(), loss, rtol=1e-4, atol=1e-5)


def test_bfloat16_prefix_and_head_run_with_float32_masters(tiny_policy: SmolVLAFlowPolicy) -> None:
    policy = tiny_policy
    policy.module.model.vlm_with_expert.to(torch.bfloat16)
    batch = policy.preprocess(observations(2))
    noise, t = policy.sample_noise(2, generator(0, "b")), torch.tensor([1.0, 0.5])
    with torch.no_grad():
        low = policy.velocity(noise, t, policy.encode(batch))
        trainable = policy.train_roles([Role.ACTION_HEAD])
        assert all(parameter.dtype == torch.float32 for parameter in trainable.values())
        high = policy.velocity(noise, t, policy.encode(batch))
    assert high.dtype == torch.float32
    torch.testing.assert_close(low, high, rtol=0.1, atol=0.1)


def test_aloha_joints_are_adapted_as_in_the_stock_policy(tmp_path: Path, vlm: Path) -> None:
    sizes = {"state_dim": 14, "action_dim": 14, "max_action_dim": 16, "max_state_dim": 16}
    folder = build_checkpoint(tmp_path / "c", vlm, adapt_to_pi_aloha=True, **sizes)
    policy = load_flow_policy(folder, device="cpu")
    items = {**observations(3), "observation.state": torch.rand(3, 14)}
    noise = policy.sample_noise(3, generator(0, "aloha"))
    # The stock policy writes into the state that it is given: each gets its own.
    batch = policy.preprocess({**items, "observation.state": items["observation.state"].clone()})
    state = batch["observation.state"].clone()
    endpoint = euler(policy, batch, noise, 2)
    assert torch.equal(batch["observation.state"], state)
    policy.set_num_steps(2)
    stock = policy.module.predict_action_chunk(policy.preprocess(dict(items)), noise=noise.clone())
    torch.testing.assert_close(policy.to_action(endpoint), policy.postprocessor(stock), rtol=1e-5, atol=1e-5)
    assert not torch.equal(policy.to_action(endpoint), endpoint[..., :14])
