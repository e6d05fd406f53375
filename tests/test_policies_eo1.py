"""What is particular to EO1: prompts, its loss, tied weights."""

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
from builders import observations
from chordflow.errors import UserError
from chordflow.flow.seeds import generator
from chordflow.policies import FlowPolicy, Role
from chordflow.policies.checkpoint import save_student
from chordflow.policies.eo1 import EO1FlowPolicy
from family_case import load, on_path
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


def demonstrations(batch: int) -> dict[str, Any]:
    """Observations with actions, some of them behind their episode's end."""
    action = torch.randn(batch, CHUNK, 2, generator=torch.Generator().manual_seed(5))
    ends = torch.arange(CHUNK, CHUNK - batch, -1)[:, None]
    return {**observations(batch), "action": action, "action_is_pad": torch.arange(CHUNK) >= ends}


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
    before = policy.module.get_parameter(EMBEDDING).detach().clone()
    policy.fresh([Role.LANGUAGE], seed=3)
    assert not torch.equal(policy.module.get_parameter(EMBEDDING), before)


def test_a_sliding_window_is_refused(tmp_path: Path) -> None:
    folder = build(tmp_path / "c", backbone={"sliding_window": 16})
    with pytest.raises(UserError, match="use_sliding_window=true"):
        load(folder)


def test_a_preprocessor_for_another_chunk_is_refused(tmp_path: Path) -> None:
    folder = build(tmp_path / "c")
    other = {"chunk_size": CHUNK + 1}
    edit_steps(folder, BEFORE, lambda s: "chunk_size" in s["config"] and s["config"].update(other))
    with pytest.raises(UserError, match=f"chunk_size={CHUNK}"):
        load(folder)


def test_special_tokens_in_a_task_are_refused(shared: Any) -> None:
    items = {**observations(2), "task": ["go left", "go <|action_pad|>"]}
    with pytest.raises(UserError, match=r"\[8, 9\] action tokens"):
        shared.encode(shared.preprocess(items))
