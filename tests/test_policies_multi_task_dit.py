"""The adapter for the multi-task DiT: what is particular to it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy

from broken_statistics import edit_config
from builders import ACTION_DIM, observations
from chordflow.cli.main import main
from chordflow.couplings.observations import DatasetConfig, open_split
from chordflow.errors import UserError
from chordflow.policies import Role, VelocityModule, load_flow_policy
from chordflow.results.schema import Results
from drift_env import DriftEnv
from family_case import on_path
from family_multi_task_dit import build


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two observed steps; not to be written to."""
    return build(tmp_path_factory.mktemp("dit") / "c", num_steps=5)


def load(folder: Path) -> Any:
    return load_flow_policy(folder, device="cpu")


@pytest.fixture
def policy(checkpoint: Path) -> Any:
    return load(checkpoint)


def noise_of(policy: Any, n: int) -> torch.Tensor:
    return policy.sample_noise(n, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "options",
    [{}, {"cameras": ("left", "right")}, {"cameras": ("left", "right"), "use_separate_rgb_encoder_per_camera": True},
     {"n_obs_steps": 3}, {"n_obs_steps": 1}],
    ids=str,
)  # fmt: skip
@torch.no_grad()
def test_all_of_an_observation_counts(tmp_path: Path, options: dict[str, Any]) -> None:
    """Every step's state and cameras, and the prompt."""
    policy = load(build(tmp_path / "c", **options))
    steps, cameras = options.get("n_obs_steps", 2), options.get("cameras", ("top",))
    items = observations(3, cameras, steps=steps)
    batch = policy.preprocess(items)
    vector = policy.encode(batch).vector
    for key in batch_keys(batch):
        for step in range(steps):
            values = batch[key].clone()
            values[:, step] += torch.rand_like(values[:, step])
            assert not torch.allclose(policy.encode({**batch, key: values}).vector, vector, atol=1e-4), (
                key,
                step,
            )
    again = policy.encode(policy.preprocess({**items, "task": ["go right"] * 3})).vector
    assert ((again - vector).abs().amax(dim=1) > 1e-4).tolist() == [True, False, True]
    assert vector.shape[1] == policy.module.observation_encoder.conditioning_dim
    assert policy.chunk.first_executed == steps - 1


def test_a_single_step_needs_no_axis_of_time(tmp_path: Path) -> None:
    policy = load(build(tmp_path / "c", n_obs_steps=1))
    with torch.no_grad():
        flat = policy.encode(policy.preprocess(observations(3))).vector
        deep = policy.encode(policy.preprocess(observations(3, steps=1))).vector
    torch.testing.assert_close(flat, deep)


def test_several_steps_need_one(policy: Any) -> None:
    for steps in (None, 1, 3):
        with pytest.raises(ValueError, match=r"give the last 2 steps: \(batch, 2, state\)"):
            policy.encode(policy.preprocess(observations(2, steps=steps)))


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("objective", "diffusion", "policy.objective=flow_matching"),
        ("integration_method", "rk4", "set integration_method to euler"),
    ],
)
def test_what_cannot_be_reflowed(tmp_path: Path, field: str, value: str, remedy: str) -> None:
    folder = build(tmp_path / "c", **{field: value})
    with pytest.raises(UserError, match=f"{field}={value} .*{remedy}"):
        load_flow_policy(folder, device="cpu")


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


def test_gradients_reach_all_the_others(policy: Any) -> None:
    trainable = policy.train_roles([Role.VISION, Role.PREFIX_PROJECTIONS, Role.ACTION_HEAD])
    batch = policy.preprocess(observations(2, steps=2))
    x_t, t = noise_of(policy, 2), torch.tensor([0.2, 0.7])
    VelocityModule(policy)(x_t, t, batch=batch).square().mean().backward()
    without = {name for name, p in trainable.items() if p.grad is None}
    # Behind the token that the policy takes from the image encoder.
    assert {name.split(".post_layernorm.")[-1] for name in without} == {"weight", "bias"}
    flat = {name for name, p in trainable.items() if p.grad is not None and not p.grad.abs().sum() > 0}
    # A key's bias shifts all scores of a query alike.
    assert all("k_proj.bias" in name for name in flat), flat


def test_fresh_weights_are_the_constructors(policy: Any) -> None:
    """Without the network: the folders that the config names suffice."""
    before = {name: p.detach().clone() for name, p in policy.module.named_parameters()}
    policy.fresh([Role.ACTION_HEAD, Role.PREFIX_PROJECTIONS], seed=3)
    for name, parameter in policy.module.named_parameters():
        kept = policy.role_of(name) in (Role.VISION, Role.LANGUAGE)
        assert torch.equal(parameter, before[name]) == kept, name
    gates = policy.module.noise_predictor.transformer_blocks[0].adaLN_modulation[-1].weight
    assert not gates.any()


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


@pytest.fixture(scope="module")
def run(checkpoint: Path, dataset_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the command in this process; neither dropout nor random crops: student and teacher see the same."""
    output, modes, forward = tmp_path_factory.mktemp("runs") / "run", [], VelocityModule.forward

    def spied(module: VelocityModule, *args: Any, **options: Any) -> torch.Tensor:
        modes.extend(part.training for part in module.module.modules())
        return forward(module, *args, **options)

    with mock.patch.object(VelocityModule, "forward", spied):
        assert main([
            "reflow", f"--teacher.path={checkpoint}", "--dataset.repo_id=test/tiny", f"--dataset.root={dataset_root}",
            f"--output_dir={output}", "--steps=4", "--save_freq=2", "--batch_size=8", "--optimizer.lr=1e-3",
            "--num_workers=0", "--buffer.num_observations=16", "--buffer.noises_per_observation=2",
            "--buffer.block_size=4", "--coupling.num_steps=2", "--measure.num_observations=3", "--device=cpu",
            "--measure.latency_repeats=2", "--measure.converged_noises=1", "--measure.num_steps=[1,2]",
        ]) == 0  # fmt: skip
    assert modes
    assert not any(modes)
    return output


@pytest.mark.slow
def test_the_student_is_stock(run: Path) -> None:
    folder = run / "checkpoints" / "last" / "pretrained_model"
    stock, student = MultiTaskDiTPolicy.from_pretrained(folder, strict=True), load(folder)
    batch, noise = student.preprocess(observations(2, steps=2)), noise_of(student, 2)
    with torch.no_grad():
        expected = noise - student.velocity(noise, torch.ones(2), student.encode(batch))
    with mock.patch("torch.randn", return_value=noise.clone()):
        stock.reset()
        for step in range(2):
            seen = {k: v[:, step] if k in batch_keys(batch) else v for k, v in batch.items()}
            stock._queues["action"].clear()
            action = stock.select_action(seen)
    torch.testing.assert_close(action, expected[:, 1], rtol=1e-5, atol=1e-5)
    assert any(row.policy == "student" for row in Results.load(run / "results.json").gaps)


@pytest.mark.slow
def test_evaluate(run: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = run / "checkpoints" / "last" / "pretrained_model"
    shared = [
        "evaluate", f"--teacher.path={checkpoint}", f"--student.path={student}", "--device=cpu",
        "--env.type=drift_of_the_tests", "--eval.n_episodes=4", "--eval.batch_size=4", "--eval.num_clips=1",
    ]  # fmt: skip
    delays = ["--delay.control_steps=[1]", "--delay.num_steps=[1]", "--delay.n_episodes=2",
              "--delay.modes=[sync,async,rtc]"]  # fmt: skip
    assert main([*shared, f"--output_dir={tmp_path / 'out'}", *delays]) == 0
    results = Results.load(tmp_path / "out" / "results.json")
    assert {(row.policy, row.num_steps) for row in results.success} >= {("teacher", 5), ("student", 1)}
    # LeRobot does not guide this family's chunks on a robot, so no figure of it is made up.
    modes = {row.mode for row in results.delays}
    assert modes >= {"sync", "async"}
    assert "rtc" not in modes
    # LeRobot's rollout goes on with environments that are over.
    monkeypatch.setattr(DriftEnv, "lenient", True)
    assert main([*shared, f"--output_dir={tmp_path / 'drawn'}", "--noise=lerobot"]) == 0
    assert main([*shared, f"--output_dir={tmp_path / 'no'}", "--eval.n_action_steps=8"]) == 2


def batch_keys(batch: dict[str, Any]) -> list[str]:
    """What has an axis of time."""
    return [key for key in batch if key == "observation.state" or key.startswith("observation.images.")]


def test_a_clip_folder_keeps_clip_in_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """LeRobot takes no other for a CLIP model, so a checkpoint that names one would never load again."""
    folder = build(tmp_path / "here" / "c")
    config = json.loads((folder / "config.json").read_text())
    edit_config(folder, lambda c: c.update(vision_encoder_name="/gone/clip"))
    before = (folder / "config.json").read_text()
    elsewhere = tmp_path.with_name("another") / "vision"
    shutil.copytree(config["vision_encoder_name"], elsewhere, dirs_exist_ok=True)
    assert main(["relocate", str(folder), f"--vlm.path={elsewhere}"]) == 2
    assert "only where 'clip' is a part of its path" in capsys.readouterr().err
    assert (folder / "config.json").read_text() == before
