"""What is particular to EO1: prompts, roles, dtypes, its loss, tied weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.policies.eo1.modeling_eo1 import EO1Policy
from lerobot.utils.constants import ACTION
from safetensors import safe_open

from broken_statistics import BEFORE, edit_steps
from builders import TASKS, observations
from chordflow.errors import UserError
from chordflow.flow.seeds import generator
from chordflow.policies import FlowPolicy, Role, VelocityModule, load_flow_policy
from chordflow.policies.checkpoint import save_student
from chordflow.policies.eo1 import EO1Context, EO1FlowPolicy
from family_case import on_path
from family_eo1 import CHUNK, PADDED_DIM, build
from small_policies import Folders

EMBEDDING = "model.vlm_backbone.model.language_model.embed_tokens.weight"


@pytest.fixture
def checkpoint(family_folder: Folders) -> Path:
    """A checkpoint; not to be written to."""
    return family_folder("eo1")


@pytest.fixture
def policy(checkpoint: Path) -> EO1FlowPolicy:
    """The checkpoint, loaded afresh."""
    return load(checkpoint)


@pytest.fixture
def shared(family_policy: Callable[[str], FlowPolicy]) -> Any:
    """The checkpoint, loaded once; not to be changed."""
    return family_policy("eo1")


def load(folder: Path) -> Any:
    return load_flow_policy(folder, device="cpu")


def demonstrations(batch: int) -> dict[str, Any]:
    """Observations with actions, some of them behind their episode's end."""
    action = torch.randn(batch, CHUNK, 2, generator=torch.Generator().manual_seed(5))
    ends = torch.arange(CHUNK, CHUNK - batch, -1)[:, None]
    return {**observations(batch), "action": action, "action_is_pad": torch.arange(CHUNK) >= ends}


def test_the_velocity_depends_on_every_part_of_the_observation(shared: Any) -> None:
    items = observations(1)
    noise, t = shared.sample_noise(1, generator(0, "parts")), torch.tensor([0.6])

    def velocity(changed: dict[str, Any]) -> torch.Tensor:
        with torch.no_grad():
            return shared.velocity(noise, t, shared.encode(shared.preprocess({**items, **changed})))

    first = velocity({})
    changes = {
        "observation.state": items["observation.state"] + 1.0,
        "observation.images.top": 1 - items["observation.images.top"],
        "task": [TASKS[1]],
    }
    for key, value in changes.items():
        assert (velocity({key: value}) - first).abs().max() > 1e-2, key


def test_joined_contexts_are_padded_in_front_and_the_same_as_encoded_together(shared: Any) -> None:
    items = observations(4)
    with torch.no_grad():
        context = shared.encode(shared.preprocess(items))
        alone = ({key: value[row : row + 1] for key, value in items.items()} for row in range(4))
        joined = EO1Context.concatenate([shared.encode(shared.preprocess(item)) for item in alone])
    assert not joined.mask[:, 0].all()
    assert joined.mask[:, -1].all()
    assert torch.equal(joined.mask, context.mask)
    assert torch.equal(joined.positions, context.positions)
    real = context.mask[:, None, None, None, :, None]
    torch.testing.assert_close(joined.keys_values * real, context.keys_values * real, rtol=1e-5, atol=1e-5)


def test_demonstrations_in_a_batch_do_not_change_its_contexts(shared: Any) -> None:
    items = demonstrations(4)
    batch = shared.preprocess(items)
    bare = shared.preprocess({key: value for key, value in items.items() if not key.startswith("action")})
    # EO1's preprocessor pads behind where there are actions, else in front.
    assert not batch["attention_mask"][0, -1]
    assert not bare["attention_mask"][0, 0]
    before = {key: value.clone() for key, value in batch.items() if isinstance(value, torch.Tensor)}
    for own, expected in zip(shared.encode(batch).tensors(), shared.encode(bare).tensors(), strict=True):
        assert torch.equal(own, expected)
    assert all(torch.equal(value, batch[key]) for key, value in before.items())


@pytest.mark.parametrize("dims", [True, False])
@pytest.mark.parametrize("actions", [True, False])
def test_action_target_is_what_the_stock_loss_sees(tmp_path: Path, dims: bool, actions: bool) -> None:
    counted = {"supervise_padding_action_dims": dims, "supervise_padding_actions": actions}
    policy = load(build(tmp_path / "c", **counted))
    batch = policy.preprocess(demonstrations(3))
    target, valid = policy.action_target(batch)
    assert target.shape == valid.shape == (3, CHUNK, PADDED_DIM)
    assert (target[..., 2:] == 0).all()
    assert torch.equal(target[..., :2], batch[ACTION])
    assert valid[..., 2:].any() == dims
    assert valid[batch["action_is_pad"]].any() == actions
    noise, t = policy.sample_noise(3, generator(0, "loss")), torch.tensor([0.4, 0.9, 0.1])
    policy.module.model.sample_noise = lambda shape, device: noise
    policy.module.model.sample_time = lambda size, device: t
    with torch.no_grad():
        v_t = policy.velocity(on_path(noise, target, t), t, policy.encode(batch))
        loss, _ = policy.module.forward(dict(batch))
    torch.testing.assert_close((v_t - (noise - target)).square()[valid].mean(), loss, rtol=1e-5, atol=1e-6)


def test_roles_follow_the_parts_and_a_student_trains_backbone_and_head(policy: EO1FlowPolicy) -> None:
    roles = policy.parameters_by_role()
    assert set(roles[Role.PREFIX_PROJECTIONS]) == {"model.state_proj.weight", "model.state_proj.bias"}
    assert any(".visual.merger." in name for name in roles[Role.VISION])
    assert EMBEDDING in roles[Role.LANGUAGE]
    assert {name.split(".")[1] for name in roles[Role.ACTION_HEAD]} == {
        "action_in_proj", "action_out_proj", "action_time_mlp_in", "action_time_mlp_out",
    }  # fmt: skip
    assert policy.default_train_roles == (Role.LANGUAGE, Role.ACTION_HEAD)
    with pytest.raises(ValueError, match="no known role"):
        policy.role_of("model.vlm_backbone.model.audio.weight")


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_reach_all_but_a_language_head_that_nothing_uses(tmp_path: Path, tied: bool) -> None:
    policy = load(build(tmp_path / "c", backbone={"tied": tied}))
    trainable = policy.train_roles(list(Role))
    noise = policy.sample_noise(3, generator(0, "g"))
    module = VelocityModule(policy)
    module(noise, torch.full((3,), 0.5), batch=policy.preprocess(observations(3))).square().mean().backward()
    still = {name for name, p in trainable.items() if p.grad is None or not p.grad.any()}
    assert still == (set() if tied else {"model.vlm_backbone.lm_head.weight"})


@pytest.mark.parametrize("roles", [[Role.ACTION_HEAD], [Role.LANGUAGE, Role.ACTION_HEAD], [Role.VISION]])
def test_a_bfloat16_backbone_runs_with_float32_masters(tmp_path: Path, roles: list[Role]) -> None:
    policy = load(build(tmp_path / "c", dtype="bfloat16"))
    batch = policy.preprocess(observations(2))
    noise, t = policy.sample_noise(2, generator(0, "b")), torch.tensor([1.0, 0.5])
    with torch.no_grad():
        context = policy.encode(batch)
        assert context.keys_values.dtype == torch.bfloat16
        low = policy.velocity(noise, t, context)
        trainable = policy.train_roles(roles)
        assert all(parameter.dtype == torch.float32 for parameter in trainable.values())
        high = policy.velocity(noise, t, policy.encode(batch))
    assert low.dtype == high.dtype == torch.float32
    torch.testing.assert_close(low, high, rtol=0.1, atol=0.1)


def test_a_trained_embedding_that_the_language_head_shares_is_saved(
    checkpoint: Path, policy: EO1FlowPolicy, tmp_path: Path
) -> None:
    with safe_open(checkpoint / "model.safetensors", framework="pt") as file:
        shared = {"model.vlm_backbone.lm_head.weight", EMBEDDING}
        # The file keeps the one of two names that the policy's parameters do not have.
        assert shared & set(file.keys()) == {"model.vlm_backbone.lm_head.weight"}
    assert EMBEDDING in dict(policy.module.named_parameters())
    trainable = policy.train_roles(policy.default_train_roles)
    with torch.no_grad():
        for parameter in trainable.values():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    save_student(policy, checkpoint, tmp_path / "student", trainable, num_steps=1)
    stock = EO1Policy.from_pretrained(tmp_path / "student", strict=True)
    assert stock.config.num_denoise_steps == 1
    own, loaded = policy.module.state_dict(), stock.state_dict()
    assert own.keys() == loaded.keys()
    assert all(torch.equal(own[name], loaded[name]) for name in own)


def test_a_fresh_policy_needs_no_weights_of_the_backbone(policy: EO1FlowPolicy) -> None:
    # As in the config of a checkpoint that was trained from the bare backbone on; its folder has no weights.
    policy.config = replace(policy.config, pretrained_path=None)
    before = {name: parameter.detach().clone() for name, parameter in policy.module.named_parameters()}
    policy.fresh([Role.LANGUAGE], seed=3)
    for name, parameter in policy.module.named_parameters():
        constant = before[name].unique().numel() == 1  # norms start alike
        if not constant:
            assert torch.equal(before[name], parameter) == (policy.role_of(name) != Role.LANGUAGE), name


def test_a_sliding_window_is_refused(tmp_path: Path) -> None:
    folder = build(tmp_path / "c", backbone={"sliding_window": 16})
    with pytest.raises(UserError, match="use_sliding_window=true"):
        load_flow_policy(folder, device="cpu")


@pytest.mark.parametrize("chunk_size", [CHUNK - 1, CHUNK + 1])
def test_a_preprocessor_for_another_chunk_is_refused(tmp_path: Path, chunk_size: int) -> None:
    folder = build(tmp_path / "c")
    edit_steps(
        folder, BEFORE, lambda s: "chunk_size" in s["config"] and s["config"].update(chunk_size=chunk_size)
    )
    with pytest.raises(UserError, match=f"chunk_size={CHUNK}"):
        load(folder)


def test_special_tokens_in_a_task_are_refused(shared: Any) -> None:
    items = {**observations(2), "task": ["go left", "go <|action_pad|>"]}
    with pytest.raises(UserError, match=r"\[8, 9\] action tokens"):
        shared.encode(shared.preprocess(items))
