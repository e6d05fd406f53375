"""The adapter for the multi-task DiT: what is particular to it."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from builders import ACTION_DIM, observations
from chordflow.couplings.observations import DatasetConfig, open_split
from chordflow.errors import UserError
from chordflow.policies import Role
from family_case import load, on_path
from family_multi_task_dit import build
from small_runs import changed, refused


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two observed steps; not to be written to."""
    return build(tmp_path_factory.mktemp("dit") / "c", num_steps=5)


@pytest.fixture
def policy(checkpoint: Path) -> Any:
    return load(checkpoint)


def noise_of(policy: Any, n: int) -> torch.Tensor:
    return policy.sample_noise(n, torch.Generator().manual_seed(0))


def test_several_steps_need_one(policy: Any) -> None:
    for steps in (None, 1, 3):
        with pytest.raises(ValueError, match=r"give the last 2 steps: \(batch, 2, state\)"):
            policy.encode(policy.preprocess(observations(2, steps=steps)))


@pytest.mark.parametrize(("field", "value", "remedy"), [
    ("objective", "diffusion", "policy.objective=flow_matching"),
    ("integration_method", "rk4", "set integration_method to euler"),
])  # fmt: skip
def test_what_cannot_be_reflowed(tmp_path: Path, field: str, value: str, remedy: str) -> None:
    folder = build(tmp_path / "c", **{field: value})
    with pytest.raises(UserError, match=f"{field}={value} .*{remedy}"):
        load(folder)


def test_a_chunk_is_cut_like_the_stock_policys(tmp_path: Path) -> None:
    policy = load(build(tmp_path / "c", n_action_steps=8))
    assert policy.chunk.num_executed == 7
    batch = policy.module._prepare_batch(policy.preprocess(observations(2, steps=2)))
    assert policy.module._generate_actions(batch).shape == (2, 7, ACTION_DIM)


@pytest.mark.parametrize("masked", [False, True])
def test_the_loss_is_the_familys_own(tmp_path: Path, masked: bool) -> None:
    policy = load(build(tmp_path / "c", do_mask_loss_for_padding=masked))
    items = {**observations(2, steps=2), "action": torch.rand(2, 8, ACTION_DIM) * 4 + 6}
    items["action_is_pad"] = torch.arange(8).expand(2, 8) >= torch.tensor([[8], [5]])
    batch = policy.preprocess(items)
    target, valid = policy.action_target(batch)
    assert int(valid.sum()) == (13 if masked else 16) * ACTION_DIM
    noise, t = noise_of(policy, 2), torch.tensor([0.3, 0.9])
    with (
        torch.no_grad(),
        mock.patch("torch.randn_like", return_value=noise),
        mock.patch.object(type(policy.module.objective), "_sample_timesteps", return_value=1 - t),
    ):
        expected, _ = policy.module.forward(dict(batch))
        v_t = policy.velocity(on_path(noise, target, t), t, policy.encode(batch))
    torch.testing.assert_close((v_t - (noise - target)).square()[valid].mean(), expected)


def test_sigma_min_leaves_only_couplings(tmp_path: Path) -> None:
    policy = load(build(tmp_path / "c", sigma_min=0.1))
    items = {**observations(2, steps=2), "action": torch.rand(2, 8, ACTION_DIM)}
    with pytest.raises(UserError, match=r"sigma_min=0\.1"):
        policy.action_target(policy.preprocess(items))


def test_the_prompts_encoder_cannot_be_trained(policy: Any) -> None:
    with pytest.raises(UserError, match=r"student.train holds language"):
        policy.train_roles([Role.ACTION_HEAD, Role.LANGUAGE])


def test_observations_have_a_history(policy: Any, dataset_root: Path) -> None:
    split = open_split(DatasetConfig("test/tiny", root=str(dataset_root)), policy)
    (items,) = split.held_out.batches(range(3), 3)
    state, image = items["observation.state"], items["observation.images.top"]
    assert state.shape == (3, 2, 3)
    assert image.shape == (3, 2, 3, 32, 32)
    # The first observation of an episode stands for the one before it.
    assert items["frame_index"].tolist() == [0, 1, 2]
    assert torch.equal(state[0, 0], state[0, 1])
    assert torch.equal(state[1, 0], state[0, 1])
    assert torch.equal(image[2, 0], image[1, 1])
    with torch.no_grad():
        assert policy.encode(policy.preprocess(items)).vector.isfinite().all()


def test_a_clip_folder_keeps_clip_in_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """LeRobot takes no other for a CLIP model, so a checkpoint that names one would never load again."""
    folder = build(tmp_path / "here" / "c")
    config = json.loads((folder / "config.json").read_text())
    changed("config.json", vision_encoder_name="/gone/clip")(folder)
    elsewhere = tmp_path.with_name("another") / "vision"
    shutil.copytree(config["vision_encoder_name"], elsewhere, dirs_exist_ok=True)
    said = refused(["relocate", str(folder), f"--vlm.path={elsewhere}"], capsys, folder)
    assert "only where 'clip' is a part of its path" in said
