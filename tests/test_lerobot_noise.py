"""Episodes by LeRobot's own noise: those of stock `lerobot-eval`, one by one."""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.configs.default import EvalConfig
from lerobot.configs.eval import EvalPipelineConfig
from lerobot.envs.configs import EnvConfig
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.scripts import lerobot_eval

from builders import build_checkpoint
from chordflow.errors import UserError
from chordflow.policies import FlowPolicy, load_flow_policy
from chordflow.quiet import quiet_stdout
from chordflow.rollouts.acting import Actor
from chordflow.rollouts.episodes import Episode
from chordflow.rollouts.lerobot_noise import run_lerobot_episodes
from chordflow.rollouts.runner import run_episodes
from drift_env import DriftEnv, DriftEnvConfig

SEED = 7


def drift() -> DriftEnvConfig:
    return DriftEnvConfig(features_map={"action": "action"}, render_mode="rgb_array")


def episodes_of(
    load: Path | Callable[[], FlowPolicy], env: Any = None, n_episodes: int = 7, batch_size: int = 3, seed: int = SEED,
    **options: Any,
) -> list[Episode]:  # fmt: skip
    """Episodes of a checkpoint, or of what `load` gives."""
    loader = load if callable(load) else lambda: load_flow_policy(load, device="cpu")
    return run_lerobot_episodes(
        loader, env or drift(), seed=seed, n_episodes=n_episodes, batch_size=batch_size, **options
    )


@pytest.fixture(autouse=True)
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """LeRobot's rollout goes on with environments that are over."""
    monkeypatch.setattr(DriftEnv, "lenient", True)


class Stock:
    """What `lerobot-eval` makes of a checkpoint: its results file, and what its rollouts returned."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, output: Path) -> None:
        self.output = output
        self.rollouts: list[dict[str, Any]] = []
        original = lerobot_eval.rollout

        def spied(*args: Any, **options: Any) -> dict[str, Any]:
            data = original(*args, **options)
            self.rollouts.append({**data, "seeds": options["seeds"]})
            return data

        monkeypatch.setattr(lerobot_eval, "rollout", spied)
        monkeypatch.setattr(sys, "argv", ["lerobot-eval"])

    def run(
        self, checkpoint: Path, env_cfg: Any, episodes: int, batch_size: int, **policy: int
    ) -> dict[str, Any]:
        overrides = [f"--{name}={value}" for name, value in policy.items()]
        config = PreTrainedConfig.from_pretrained(checkpoint, cli_overrides=overrides)
        config.pretrained_path = checkpoint
        run = EvalConfig(n_episodes=episodes, batch_size=batch_size, use_async_envs=False)
        with quiet_stdout():
            lerobot_eval.eval_main(
                EvalPipelineConfig(env=env_cfg, eval=run, policy=config, output_dir=self.output, seed=SEED)
            )
        return json.loads((self.output / "eval_info.json").read_text())["per_task"][0]["metrics"]


@pytest.mark.parametrize(("episodes", "batch_size", "options"), [
    (7, 1, {}),
    (7, 3, {"num_steps": 2}),
    (4, 3, {"num_steps": 1, "n_action_steps": 3}),
    (2, 5, {}),  # LeRobot makes that a batch of two
])  # fmt: skip
def test_equals_lerobot_eval_episode_by_episode(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, episodes: int, batch_size: int,
    options: dict[str, int],
) -> None:  # fmt: skip
    stock = Stock(monkeypatch, tmp_path)
    expected = stock.run(checkpoint, drift(), episodes, batch_size, **options)
    ours = episodes_of(checkpoint, n_episodes=episodes, batch_size=batch_size, **options)
    assert [episode.success for episode in ours] == expected["successes"]
    assert [episode.sum_reward for episode in ours] == expected["sum_rewards"]
    rows = {
        seed: {name: data[name][row] for name in ("action", "done", "reward")}
        for data in stock.rollouts
        for row, seed in enumerate(data["seeds"])
    }
    assert [episode.seed for episode in ours] == list(range(SEED, SEED + episodes))
    assert len(rows) == math.ceil(episodes / min(batch_size, episodes)) * min(batch_size, episodes)
    steps = options.get("n_action_steps", 4)
    for episode in ours:
        row = rows[episode.seed]
        assert episode.length == 1 + int(row["done"].int().argmax())
        np.testing.assert_array_equal(episode.actions, row["action"][: episode.length].numpy())
        assert episode.chunks == math.ceil(episode.length / steps)
        assert (episode.jump is None) == (episode.chunks == 1)
        assert episode.num_steps == options.get("num_steps", 10)
        # A step beyond the end counts, where the batch has one.
        assert episode.sum_reward == pytest.approx(float(row["reward"][: episode.length + 1].sum()))


def test_the_episodes_tell_batches_and_steps_apart(checkpoint: Path) -> None:
    """Otherwise the comparison above would say nothing; and what a batch consists of does change an episode."""
    before, ended = torch.get_rng_state(), list[int]()
    one = episodes_of(checkpoint, batch_size=1, progress=lambda episode: ended.append(episode.seed))
    assert torch.equal(torch.get_rng_state(), before)
    assert ended == [episode.seed for episode in one]
    assert {episode.success for episode in one} == {True, False}
    assert len({episode.length for episode in one}) > 2
    three, two_steps = episodes_of(checkpoint), episodes_of(checkpoint, num_steps=2)
    assert not np.array_equal(one[1].actions[:1], three[1].actions[:1])
    assert not np.array_equal(three[1].actions[:1], two_steps[1].actions[:1])
    # The environment's episodes are those of paired noise: instruction and first observation by the seed.
    paired = run_episodes(Actor(load_flow_policy(checkpoint, device="cpu"), drift(), 10), [SEED])
    assert [e.task for e in (paired[0], three[0], two_steps[0])] == 3 * [one[0].task]


@EnvConfig.register_subclass("drift_of_the_tests_twice")
@dataclass
class TwoTasks(DriftEnvConfig):
    """A suite as LIBERO's: several tasks, whose episodes begin by the same seeds."""

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, Any]]:
        vectors = [super(TwoTasks, self).create_envs(n_envs, use_async_envs)[self.type][0] for _ in range(2)]
        return {"suite": dict(enumerate(vectors))}


def test_several_tasks_follow_one_another_on_one_generator(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env_cfg = TwoTasks(features_map={"action": "action"}, render_mode="rgb_array")
    Stock(monkeypatch, tmp_path).run(checkpoint, env_cfg, 4, 3)
    expected = json.loads((tmp_path / "eval_info.json").read_text())["per_task"]
    ours = episodes_of(checkpoint, env_cfg, 4)
    assert [episode.task_id for episode in ours] == [0] * 4 + [1] * 4
    for task in expected:
        chosen = [e for e in ours if (e.task_group, e.task_id) == (task["task_group"], task["task_id"])]
        assert [episode.seed for episode in chosen] == list(range(SEED, SEED + 4))
        assert [episode.sum_reward for episode in chosen] == task["metrics"]["sum_rewards"]
        assert [episode.success for episode in chosen] == task["metrics"]["successes"]
    assert expected[0]["metrics"]["sum_rewards"] != expected[1]["metrics"]["sum_rewards"]


@pytest.mark.parametrize(("env", "options", "message"), [
    ({}, {"n_action_steps": 9}, "n_action_steps is 9; a chunk has 8 actions"),
    ({"action_dim": 3}, {}, r"takes actions of shape \(3,\)"),
    ({"cameras": ("side",)}, {}, r"observation\.images\.top"),
    ({"state_dim": 5}, {}, r"observation\.state has shape \(5,\)"),
])  # fmt: skip
def test_what_cannot_be_run(
    checkpoint: Path, env: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    env_cfg = DriftEnvConfig(**env) if env else drift()
    with pytest.raises(UserError, match=message):
        episodes_of(checkpoint, env_cfg, **{"n_episodes": 1, **options})


def test_policies_that_cannot_be_run(checkpoint: Path, vlm: Path, tmp_path: Path) -> None:
    def broken() -> FlowPolicy:
        policy = load_flow_policy(checkpoint, device="cpu")
        with torch.no_grad():
            policy.module.get_parameter("model.action_out_proj.bias").fill_(math.nan)
        return policy

    guided = build_checkpoint(tmp_path / "checkpoint", vlm, rtc_config=RTCConfig())
    refused = {"NaN or infinite in episode 7, step 0": broken, r"rtc_config\.enabled=true": guided}
    for message, load in refused.items():
        with pytest.raises(UserError, match=message):
            episodes_of(load, n_episodes=1)
