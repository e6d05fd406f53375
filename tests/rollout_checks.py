"""Episodes for tests: made up, compared, and watched as an actor makes their chunks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lerobot.envs import make_env, preprocess_observation

from chordflow.policies import load_flow_policy
from chordflow.policies.smolvla import SmolVLAFlowPolicy
from chordflow.quiet import quiet_stdout
from chordflow.rollouts.acting import Actor
from chordflow.rollouts.episodes import Episode
from chordflow.rollouts.runner import run_episodes
from drift_env import DriftEnv, DriftEnvConfig


def load(folder: Path) -> SmolVLAFlowPolicy:
    policy = load_flow_policy(folder, device="cpu")
    assert isinstance(policy, SmolVLAFlowPolicy)
    return policy


def run(policy: Any, seeds: Any = range(20), num_steps: int = 1, **options: Any) -> list[Episode]:
    """Episodes of the tests' environment, or of another `env`."""
    env = options.pop("env", None) or DriftEnvConfig()
    names = {"solver", "grid_power", "n_action_steps", "execution"} & options.keys()
    actor = Actor(policy, env, num_steps, **{name: options.pop(name) for name in names})
    return run_episodes(actor, seeds, **options)


def episode(seed: int, success: bool = True, task: str = "go", **options: Any) -> Episode:
    """A made-up episode of three actions."""
    given = {
        "length": 3, "sum_reward": 0.0, "side": None, "chunks": 1, "num_steps": 1, "solver": "euler", "jerk": None,
        "jump": None, "seconds": 0.1, "actions": np.zeros((3, 2), np.float32),
    }  # fmt: skip
    return Episode(seed, task, success, **{**given, **options})


def assert_same(first: list[Episode], second: list[Episode], atol: float = 0.0) -> None:
    """The same episodes step by step: outcomes exactly, actions to `atol`."""
    for a, b in zip(first, second, strict=True):
        for name in ("key", "task", "success", "length", "side", "chunks", "num_steps", "solver"):
            assert getattr(a, name) == getattr(b, name), (a.key, name)
        np.testing.assert_allclose(a.actions, b.actions, rtol=0, atol=atol)
        assert a.sum_reward == pytest.approx(b.sum_reward, abs=100 * atol)


def stock_episode(
    seed: int, act: Callable[[dict[str, Any]], Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[np.ndarray, bool]:
    """An episode in LeRobot's vector environment: its actions, and whether it succeeded."""
    with quiet_stdout():
        (env,) = make_env(DriftEnvConfig(), n_envs=1)["drift_of_the_tests"].values()
    actions, done = [], False
    with monkeypatch.context() as patch:
        # A vector environment resets what ended, without a seed.
        patch.setattr(DriftEnv, "lenient", True)
        observation, _ = env.reset(seed=[seed])
        while not done:
            action = act(preprocess_observation(observation) | {"task": list(env.call("task_description"))})
            actions.append(action[0].numpy())
            observation, _, terminated, truncated, info = env.step(action.numpy())
            done = bool(terminated[0] or truncated[0])
    return np.stack(actions), bool(info["final_info"]["is_success"][0])


class Chunks:
    """What an actor made, in order: requests, actions and endpoints."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Any, np.ndarray, Any]] = []
        act = Actor.act

        def spied(actor: Actor, requests: Any, spaces: Any) -> Any:
            actions, endpoints = act(actor, requests, spaces)
            self.calls += zip(requests, actions, endpoints, strict=True)
            return actions, endpoints

        monkeypatch.setattr(Actor, "act", spied)

    def of(self, seed: int) -> list[tuple[Any, np.ndarray, Any]]:
        """Those of one episode."""
        return [call for call in self.calls if call[0].seed == seed]
