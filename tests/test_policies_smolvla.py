"""The SmolVLA adapter against the stock policy: parity, contexts, roles, dtypes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

from builders import build_checkpoint, observations
from chordflow.flow.seeds import generator
from chordflow.flow.solvers import Euler
from chordflow.policies import Role, VelocityModule, load_flow_policy
from chordflow.policies.context import PrefixContext
from chordflow.policies.smolvla import SmolVLAFlowPolicy


def whole_chunk_of_stock(policy: SmolVLAPolicy, batch: dict, noise: torch.Tensor) -> torch.Tensor:
    """The stock sampler's endpoint with its padded dimensions, which `predict_action_chunk` cuts off."""
    batch = policy._prepare_batch(dict(batch))
    images, masks = policy.prepare_images(batch)
    with torch.no_grad():
        return policy.model.sample_actions(
            images, masks, batch["observation.language.tokens"], batch["observation.language.attention_mask"],
            policy.prepare_state(batch), noise=noise,
        )  # fmt: skip


CASES = {
    "plain": ({}, ("top",)),
    "two cameras": ({"cameras": ("top", "wrist")}, ("top", "wrist")),
    "one camera missing": ({"cameras": ("top", "wrist"), "empty_cameras": 1}, ("top",)),
    "self attention": ({"attention_mode": "self_attn"}, ("top",)),
    "prefix length": ({"prefix_length": 40}, ("top",)),
    "special tokens, fewer expert layers": (
        {"add_image_special_tokens": True, "num_expert_layers": 1}, ("top",)),
}  # fmt: skip


@pytest.mark.parametrize("num_steps", [1, 2, 10])
@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("case", CASES)
def test_euler_over_velocity_equals_the_stock_sampler(
    tmp_path: Path, vlm: Path, case: str, batch_size: int, num_steps: int
) -> None:
    options, cameras = CASES[case]
    folder = build_checkpoint(tmp_path / "checkpoint", vlm, num_steps=num_steps, **options)
    policy = load_flow_policy(folder, device="cpu")
    batch = policy.preprocess(observations(batch_size, cameras))
    noise = policy.sample_noise(batch_size, generator(0, "test"))
    expected = whole_chunk_of_stock(policy.module, batch, noise)
    with torch.no_grad():
        context = policy.encode(batch)
        endpoint = Euler().integrate(lambda x, t: policy.velocity(x, t, context), noise, num_steps)
    torch.testing.assert_close(endpoint, expected, rtol=1e-5, atol=1e-5)
    actions = policy.module.predict_action_chunk(dict(batch), noise=noise)
    torch.testing.assert_close(endpoint[..., : policy.chunk.action_dim], actions, rtol=1e-5, atol=1e-5)
    assert endpoint.shape == (batch_size, *policy.chunk.shape)


def test_contexts_are_reusable_repeatable_and_join(tiny_policy: SmolVLAFlowPolicy) -> None:
    policy = tiny_policy
    items = observations(4)
    batch = policy.preprocess(items)
    noise = policy.sample_noise(4, generator(1, "test"))
    t = torch.tensor([1.0, 0.7, 0.3, 0.0])
    with torch.no_grad():
        context = policy.encode(batch)
        before = [tensor.clone() for tensor in context.tensors()]
        first = policy.velocity(noise, t, context)
        assert torch.equal(first, policy.velocity(noise, t, context))
        assert all(torch.equal(a, b) for a, b in zip(before, context.tensors(), strict=True))

        repeated = policy.velocity(noise.repeat_interleave(3, 0), t.repeat_interleave(3), context.repeat(3))
        torch.testing.assert_close(repeated, first.repeat_interleave(3, 0), rtol=1e-5, atol=1e-6)

        # Encoded one by one, the prompts have unequal lengths; joining pads them.
        singles = []
        for row in range(4):
            item = {k: v[row : row + 1] for k, v in items.items()}
            singles.append(policy.encode(policy.preprocess(item)))
        assert len({single.mask.shape[1] for single in singles}) > 1
        joined = PrefixContext.concatenate(singles)
        torch.testing.assert_close(policy.velocity(noise, t, joined), first, rtol=1e-5, atol=1e-5)

        order = torch.tensor([2, 0, 2])
        picked = policy.velocity(noise[order], t[order], joined.index(order))
        torch.testing.assert_close(picked, first[order], rtol=1e-5, atol=1e-5)
        assert joined.index(torch.tensor([0])).mask.shape[1] == singles[0].mask.shape[1]
    assert context.num_bytes == sum(tensor.nbytes for tensor in context.tensors())
    assert context.detach().to("cpu").batch_size == 4


def test_encoding_leaves_the_batch_whole(tmp_path: Path, vlm: Path) -> None:
    policy = load_flow_policy(build_checkpoint(tmp_path / "c", vlm), device="cpu")
    batch = policy.preprocess(observations(2))
    before = {key: value.clone() for key, value in batch.items() if isinstance(value, torch.Tensor)}
    policy.encode(batch)
    assert all(torch.equal(value, batch[key]) for key, value in before.items())


def test_every_parameter_has_one_role_and_the_default_trains_the_head_alone(
    tiny_policy: SmolVLAFlowPolicy,
) -> None:
    roles = tiny_policy.parameters_by_role()
    names = [name for named in roles.values() for name in named]
    assert sorted(names) == sorted(name for name, _ in tiny_policy.module.named_parameters())
    assert all(roles.values())
    assert set(roles[Role.PREFIX_PROJECTIONS]) == {"model.state_proj.weight", "model.state_proj.bias"}
    trainable = tiny_policy.train_roles([Role.ACTION_HEAD])
    assert set(trainable) == set(roles[Role.ACTION_HEAD])
    for named in roles.values():
        for name, parameter in named.items():
            assert parameter.requires_grad == (name in trainable)


def test_gradients_reach_every_trained_parameter(tiny_policy: SmolVLAFlowPolicy) -> None:
    trainable = tiny_policy.train_roles(list(Role))
    module = VelocityModule(tiny_policy)
    batch = tiny_policy.preprocess(observations(3))
    noise = tiny_policy.sample_noise(3, generator(0, "g"))
    module(noise, torch.full((3,), 0.5), batch=batch).square().mean().backward()
    # The last VLM layer's keys and values feed the head, its output does not: LeRobot freezes it for that.
    without = {name for name, parameter in trainable.items() if parameter.grad is None}
    assert all("vlm.lm_head" in n or "text_model.norm" in n or "text_model.layers.1" in n for n in without)
    assert not any(name in without for name in tiny_policy.parameters_by_role()[Role.ACTION_HEAD])
    assert len(list(module.parameters())) == len(list(tiny_policy.module.parameters()))


def test_fresh_changes_only_its_roles_and_repeats(tiny_policy: SmolVLAFlowPolicy) -> None:
    def snapshot() -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in tiny_policy.module.named_parameters()}

    before, head = snapshot(), set(tiny_policy.parameters_by_role()[Role.ACTION_HEAD])
    state = torch.random.get_rng_state()
    tiny_policy.fresh([Role.ACTION_HEAD], seed=3)
    assert torch.equal(state, torch.random.get_rng_state())
    after = snapshot()
    for name, value in before.items():
        constant = value.unique().numel() == 1  # biases and norms start alike
        if not constant:
            assert torch.equal(value, after[name]) == (name not in head), name
    tiny_policy.fresh([Role.ACTION_HEAD], seed=3)
    assert all(torch.equal(value, after[name]) for name, value in snapshot().items())
    tiny_policy.fresh([Role.ACTION_HEAD], seed=4)
    assert any(not torch.equal(value, after[name]) for name, value in snapshot().items())


def test_the_prefix_hash_sees_the_prefix_and_nothing_else(tiny_policy: SmolVLAFlowPolicy) -> None:
    before = tiny_policy.prefix_hash()
    tiny_policy.fresh([Role.ACTION_HEAD], seed=9)
    assert tiny_policy.prefix_hash() == before
    with torch.no_grad():
        tiny_policy.module.model.state_proj.bias[0] += 1e-3
    assert tiny_policy.prefix_hash() != before


def test_actions_come_back_in_the_robots_units(tiny_policy: SmolVLAFlowPolicy) -> None:
    endpoint = torch.randn(2, *tiny_policy.chunk.shape)
    expected = endpoint[..., :2] * torch.tensor([3.0, 0.5]) + torch.tensor([1.0, -2.0])
    torch.testing.assert_close(tiny_policy.to_action(endpoint), expected, rtol=1e-5, atol=1e-5)


def test_action_target_is_padded_and_masked_like_the_stock_loss(tiny_policy: SmolVLAFlowPolicy) -> None:
    items = observations(2)
    items["action"] = torch.randn(2, 8, 2)
    items["action_is_pad"] = torch.zeros(2, 8, dtype=torch.bool)
    items["action_is_pad"][1, 5:] = True
    batch = tiny_policy.preprocess(items)
    target, valid = tiny_policy.action_target(batch)
    assert target.shape == valid.shape == (2, *tiny_policy.chunk.shape)
    assert (target[..., 2:] == 0).all()
    assert not valid[..., 2:].any()
    assert not valid[1, 5:].any()
    noise, t = torch.randn(2, 8, 6), torch.tensor([0.4, 0.9])
    x_t = t[:, None, None] * noise + (1 - t[:, None, None]) * target
    with torch.no_grad():
        context = tiny_policy.encode(batch)
        v_t = tiny_policy.velocity(x_t, t, context)
        loss, _ = tiny_policy.module.forward(dict(batch), noise=noise, time=t)
    torch.testing.assert_close((v_t - (noise - target)).square()[valid].mean(), loss, rtol=1e-4, atol=1e-5)


def test_bfloat16_prefix_and_head_run_with_float32_masters(tmp_path: Path, vlm: Path) -> None:
    folder = build_checkpoint(tmp_path / "c", vlm)
    policy = load_flow_policy(folder, device="cpu")
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
    options = {
        "adapt_to_pi_aloha": True,
        "state_dim": 14,
        "action_dim": 14,
        "max_action_dim": 16,
        "max_state_dim": 16,
    }
    policy = load_flow_policy(build_checkpoint(tmp_path / "c", vlm, **options), device="cpu")
    items = {**observations(3), "observation.state": torch.rand(3, 14)}
    noise = policy.sample_noise(3, generator(0, "aloha"))
    # The stock policy writes into the state that it is given: each gets its own.
    batch = policy.preprocess({**items, "observation.state": items["observation.state"].clone()})
    state = batch["observation.state"].clone()
    with torch.no_grad():
        context = policy.encode(batch)
        endpoint = Euler().integrate(lambda x, t: policy.velocity(x, t, context), noise, 2)
    assert torch.equal(batch["observation.state"], state)
    policy.set_num_steps(2)
    stock = policy.module.predict_action_chunk(policy.preprocess(dict(items)), noise=noise.clone())
    torch.testing.assert_close(policy.to_action(endpoint), policy.postprocessor(stock), rtol=1e-5, atol=1e-5)
    assert not torch.equal(policy.to_action(endpoint), endpoint[..., :14])
