"""Policies that look at several past observations: what they are shown, and which actions of a chunk are run."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lerobot.envs import make_env, preprocess_observation
from lerobot.envs.configs import EnvConfig
from lerobot.policies.utils import populate_queues
from lerobot.processor import LiberoProcessorStep, PolicyProcessorPipeline
from torch import Tensor

from chordflow.errors import UserError
from chordflow.policies import ChunkSpec, FlowPolicy, load_flow_policy
from chordflow.quiet import quiet_stdout
from chordflow.rollouts import Episode, Execution, chunk_noise, open_runner, run_episodes
from chordflow.rollouts.acting import Actor
from chordflow.rollouts.history import History
from chordflow.rollouts.lerobot_noise import run_lerobot_episodes
from drift_env import TIME_LIMIT, DriftEnv, DriftEnvConfig
from family_multi_task_dit import build
from gaussian_setup import make_policy

SEEDS = list(range(8))


class ThriftyDriftEnv(DriftEnv):
    """Writes every observation into the same arrays."""

    kept: dict[str, Any] | None = None

    def _observe(self) -> dict[str, Any]:
        fresh = super()._observe()
        if self.kept is None:
            self.kept = fresh
        self.kept["agent_pos"][:] = fresh["agent_pos"]
        for camera, picture in fresh["pixels"].items():
            self.kept["pixels"][camera][:] = picture
        return self.kept


if "chordflow_tests/ThriftyDrift-v0" not in gym.registry:
    gym.register("chordflow_tests/ThriftyDrift-v0", ThriftyDriftEnv, max_episode_steps=13)


@EnvConfig.register_subclass("thrifty_drift_of_the_tests")
@dataclass
class ThriftyDriftEnvConfig(DriftEnvConfig):
    """The environment as LeRobot's factory takes it."""

    task: str | None = "ThriftyDrift-v0"


class TurnedDriftEnv(DriftEnv):
    """Its cameras hang upside down."""

    def _picture(self) -> np.ndarray:
        return super()._picture()[::-1, ::-1]


if "chordflow_tests/TurnedDrift-v0" not in gym.registry:
    gym.register("chordflow_tests/TurnedDrift-v0", TurnedDriftEnv, max_episode_steps=13)


@EnvConfig.register_subclass("turned_drift_of_the_tests")
@dataclass
class TurnedDriftEnvConfig(DriftEnvConfig):
    """The environment as LeRobot's factory takes it, with or without LIBERO's processor."""

    task: str | None = "TurnedDrift-v0"
    turned_back: bool = False

    def get_env_processors(self) -> tuple[Any, Any]:
        """Pipelines before the policy and behind it."""
        steps = [LiberoProcessorStep()] if self.turned_back else []
        return PolicyProcessorPipeline(steps=steps), PolicyProcessorPipeline(steps=[])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three observed steps, chunks of eight actions of which two lie in the past."""
    return build(tmp_path_factory.mktemp("history") / "c", num_steps=3, seed=1, n_obs_steps=3)


@pytest.fixture(scope="module")
def policy(checkpoint: Path) -> FlowPolicy:
    return load_flow_policy(checkpoint, device="cpu")


class Chunks:
    """What an actor made: requests, actions and endpoints of each seed."""

    def __init__(self) -> None:
        self.of: dict[int, list[tuple[Any, np.ndarray, Tensor]]] = {}

    @classmethod
    def spied(cls, monkeypatch: pytest.MonkeyPatch) -> Chunks:
        chunks, act = cls(), Actor.act

        def spied(actor: Actor, requests: Any, *spaces: Any) -> Any:
            actions, endpoints = act(actor, requests, *spaces)
            for request, rows, endpoint in zip(requests, actions, endpoints, strict=True):
                chunks.of.setdefault(request.seed, []).append((request, rows, endpoint))
            return actions, endpoints

        monkeypatch.setattr(Actor, "act", spied)
        return chunks


def assert_same(first: list[Episode], second: list[Episode], atol: float = 0.0) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        for name in ("key", "task", "success", "length", "side", "chunks"):
            assert getattr(a, name) == getattr(b, name), (a.key, name)
        np.testing.assert_allclose(a.actions, b.actions, rtol=0, atol=atol)


class TestHistory:
    @given(steps=st.integers(1, 5), rounds=st.lists(st.integers(1, 6), max_size=5))
    def test_is_lerobots_queue(self, steps: int, rounds: list[int]) -> None:
        """Whatever is executed between two chunks, they see what a queue that every step fills would hold."""
        history = History(tuple(range(1 - steps, 1)))
        queue: dict[str, deque[Any]] = {"state": deque(maxlen=steps)}
        seen: deque[int] = deque([0], maxlen=history.span)
        populate_queues(queue, {"state": 0})  # type: ignore[dict-item]
        now = 0
        for executed in rounds:
            for _ in range(executed):
                now += 1
                populate_queues(queue, {"state": now})  # type: ignore[dict-item]
            seen.extend(range(now + 1 - min(executed, history.span), now + 1))
            assert history.choose(seen) == tuple(queue["state"])

    def test_steps_may_lie_apart(self) -> None:
        history = History((-4, -2, 0))
        assert history.span == 5
        assert history.choose([7]) == (7, 7, 7)
        assert history.choose([7, 8, 9]) == (7, 7, 9)
        assert history.choose([5, 6, 7, 8, 9]) == (5, 7, 9)

    @pytest.mark.parametrize("indices", [None, [0]])
    def test_of_a_policy_without_one(self, indices: list[int] | None) -> None:
        policy = make_policy()
        policy.config.observation_delta_indices = indices
        history = History.of(policy)
        assert (history.is_present, history.span) == (True, 1)
        observation = {"observation.state": torch.zeros(2, 3), "task": ["a", "b"]}
        assert history.fold(observation) is observation

    def test_the_future_is_refused(self) -> None:
        policy = make_policy()
        policy.config.observation_delta_indices = [0, 4, 8]
        with pytest.raises(UserError, match=r"observation_delta_indices .* holds 8"):
            run_episodes(policy, DriftEnvConfig(), [0], num_steps=1)

    def test_axis(self) -> None:
        folded = History((-1, 0)).fold(
            {"observation.state": torch.arange(8.0).view(4, 2), "task": ["a", "a", "b", "b"], "action": None}
        )
        assert folded["observation.state"].tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
        assert folded["task"] == ["a", "b"]
        assert folded["action"] is None


class TestEpisodes:
    @pytest.fixture(scope="class")
    def reference(self, policy: FlowPolicy) -> list[Episode]:
        return run_episodes(policy, DriftEnvConfig(), SEEDS, num_steps=2, batch_size=1)

    def test_the_environment_tells_episodes_apart(self, reference: list[Episode]) -> None:
        # Otherwise the comparisons below would say nothing.
        assert len({episode.length for episode in reference}) > 2
        assert max(episode.chunks for episode in reference) > 2

    @pytest.mark.parametrize(("steps", "executed"), [(3, 1), (3, 2), (3, 4), (1, 2)])
    def test_equals_the_stock_policy_step_by_step(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, executed: int
    ) -> None:
        """`select_action` at every control step, with the stock policy's own queues and the same noise."""
        checkpoint = build(tmp_path / "c", seed=1, n_obs_steps=steps)
        policy = load_flow_policy(checkpoint, device="cpu")
        seed, chunks = 2, 0
        stock = load_flow_policy(checkpoint, device="cpu")
        stock.config.n_action_steps, stock.config.num_integration_steps = executed, 2
        model, preprocessor, postprocessor = stock.policy, stock.preprocessor, stock.postprocessor
        noises = [chunk_noise(stock, seed, index)[None] for index in range(TIME_LIMIT)]

        def noise(*_: Any, **__: Any) -> Tensor:
            nonlocal chunks
            chunks += 1
            return noises[chunks - 1]

        with quiet_stdout():
            (env,) = make_env(DriftEnvConfig(), n_envs=1)["drift_of_the_tests"].values()
        # A vector environment resets what ended, without a seed.
        monkeypatch.setattr(DriftEnv, "lenient", True)
        model.reset()
        observation, _ = env.reset(seed=[seed])
        actions, done = [], False
        while not done:
            batch = preprocess_observation(observation)
            batch["task"] = list(env.call("task_description"))
            batch = preprocessor(batch)
            with mock.patch("torch.randn", side_effect=noise):
                action = postprocessor(model.select_action(batch)).numpy()
            actions.append(action[0])
            observation, _, terminated, truncated, _ = env.step(action)
            done = bool(terminated[0] or truncated[0])
        monkeypatch.setattr(DriftEnv, "lenient", False)
        (episode,) = run_episodes(policy, DriftEnvConfig(), [seed], num_steps=2, n_action_steps=executed)
        assert (episode.length, episode.chunks) == (len(actions), chunks)
        assert chunks > 2
        np.testing.assert_allclose(episode.actions, np.stack(actions), rtol=0, atol=1e-4)

    def test_company_changes_nothing(self, policy: FlowPolicy, reference: list[Episode]) -> None:
        episodes = run_episodes(policy, DriftEnvConfig(), SEEDS, num_steps=2, batch_size=5)
        assert_same(episodes, reference, atol=1e-4)

    @pytest.mark.slow  # processes take seconds to start
    def test_other_processes_bring_back_the_same(self, policy: FlowPolicy, reference: list[Episode]) -> None:
        with open_runner(DriftEnvConfig(), 3, 2) as runner:
            assert_same(runner.run(policy, SEEDS, num_steps=2), reference, atol=1e-4)

    def test_the_environments_processors_see_single_observations(self, policy: FlowPolicy) -> None:
        """LIBERO's turns pictures by 180 degrees, along axes that it counts from the front."""
        turned = run_episodes(policy, TurnedDriftEnvConfig(turned_back=True), SEEDS, num_steps=2)
        plain = run_episodes(policy, DriftEnvConfig(), SEEDS, num_steps=2)
        other = run_episodes(policy, TurnedDriftEnvConfig(), SEEDS, num_steps=2)
        for a, b in zip(turned, plain, strict=True):
            np.testing.assert_array_equal(a.actions, b.actions)
        assert not np.array_equal(plain[0].actions, other[0].actions)

    @pytest.mark.parametrize("executed", [1, 4])
    def test_environments_that_reuse_their_arrays(self, policy: FlowPolicy, executed: int) -> None:
        options: dict[str, Any] = {"num_steps": 2, "n_action_steps": executed}
        thrifty = run_episodes(policy, ThriftyDriftEnvConfig(), SEEDS, **options)
        plain = run_episodes(policy, DriftEnvConfig(), SEEDS, **options)
        for a, b in zip(thrifty, plain, strict=True):
            np.testing.assert_array_equal(a.actions, b.actions)

    def test_what_is_observed_while_waiting_counts(
        self, policy: FlowPolicy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        chunks = Chunks.spied(monkeypatch)
        run_episodes(policy, DriftEnvConfig(), SEEDS, num_steps=2, execution=Execution("sync", 2))
        later = [calls[1][0].observations for calls in chunks.of.values() if len(calls) > 1]
        assert later
        for states in ([observation["agent_pos"].tolist() for observation in seen] for seen in later):
            assert len(states) == 3
            # The third number is multiplied by -0.9 at every control step.
            assert [b[2] / a[2] for a, b in itertools.pairwise(states)] == pytest.approx(
                [-0.9, -0.9], rel=1e-4
            )


class TestChunks:
    def test_the_past_is_left_out(self, policy: FlowPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
        chunks = Chunks.spied(monkeypatch)
        for episode in run_episodes(policy, DriftEnvConfig(), SEEDS, num_steps=2):
            whole = [policy.to_action(endpoint[None])[0] for _, _, endpoint in chunks.of[episode.seed]]
            assert all(len(chunk) == 8 for chunk in whole)
            expected = torch.cat([chunk[2:6] for chunk in whole])[: episode.length]
            np.testing.assert_allclose(episode.actions, expected, rtol=0, atol=1e-6)

    def test_async(self, policy: FlowPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
        chunks, late = Chunks.spied(monkeypatch), 0
        execution = Execution("async", 2)
        for episode in run_episodes(policy, DriftEnvConfig(), SEEDS, num_steps=2, execution=execution):
            whole = [policy.to_action(endpoint[None])[0] for _, _, endpoint in chunks.of[episode.seed]]
            expected = [whole[0][2:6]]
            for old, new in itertools.pairwise(whole):
                # Four control steps later the old chunk is at its action 6, the new one at its action 2.
                expected += [old[6:8], new[4:6]]
                late += 1
            joined = torch.cat(expected)[: episode.length]
            np.testing.assert_allclose(episode.actions, joined, rtol=0, atol=1e-6)
        assert late > 5

    def test_real_time_chunking_holds_past_and_delay(
        self, policy: FlowPolicy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One step at weight 1 lands on what is left over, wherever that is held in full."""
        chunks, seen = Chunks.spied(monkeypatch), 0
        run_episodes(
            policy, DriftEnvConfig(), SEEDS, num_steps=1, execution=Execution("rtc", 1), n_action_steps=3
        )
        for calls in chunks.of.values():
            endpoints = [endpoint for _, _, endpoint in calls]
            for old, new in itertools.pairwise(endpoints):
                seen += 1
                # Actions 0 and 1 were executed, action 2 will be before the new chunk arrives.
                torch.testing.assert_close(new[:3], old[3:6], rtol=0, atol=1e-4)
                assert not torch.allclose(new[3:5], old[6:8], atol=1e-2)
        assert seen > 5

    @pytest.mark.parametrize("executed", [0, 7])
    def test_no_more_than_lie_ahead(self, policy: FlowPolicy, executed: int) -> None:
        message = rf"n_action_steps is {executed}; a chunk has 6 actions from the present on \(2 before it\)"
        with pytest.raises(UserError, match=message):
            run_episodes(policy, DriftEnvConfig(), [0], num_steps=1, n_action_steps=executed)
        with pytest.raises(UserError, match=message):
            run_lerobot_episodes(
                lambda: policy, DriftEnvConfig(), seed=0, n_episodes=1, batch_size=1, n_action_steps=executed
            )

    def test_delay_counts_from_the_present(self) -> None:
        chunk = ChunkSpec(horizon=8, padded_dim=2, action_dim=2, num_executed=4, first_executed=2)
        Execution("async", 2).check(chunk, 4)
        with pytest.raises(UserError, match=r"a chunk has 6 actions from the present on \(2 before it\)"):
            Execution("async", 3).check(chunk, 4)


class TestLeRobotNoise:
    @pytest.fixture(autouse=True)
    def lenient(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """LeRobot's rollout goes on with environments that are over."""
        monkeypatch.setattr(DriftEnv, "lenient", True)
        return

    def test_equals_paired_episodes_with_the_noise_that_it_drew(
        self, checkpoint: Path, policy: FlowPolicy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Loading tries the policy out, with noise of its own.
        loaded = load_flow_policy(checkpoint, device="cpu")
        drawn: list[Tensor] = []
        randn = torch.randn

        def noted(*args: Any, **options: Any) -> Tensor:
            drawn.append(randn(*args, **options))
            return drawn[-1]

        with mock.patch("torch.randn", side_effect=noted):
            (stock,) = run_lerobot_episodes(
                lambda: loaded,
                DriftEnvConfig(features_map={"action": "action"}),
                seed=5,
                n_episodes=1,
                batch_size=1,
                num_steps=2,
            )
        noises = [noise for noise in drawn if noise.shape == (1, 8, 2)]
        assert stock.chunks == len(noises) > 1
        monkeypatch.setattr(
            "chordflow.rollouts.acting.chunk_noises",
            lambda _, keys: torch.cat([noises[index] for _, index, _ in keys]),
        )
        (ours,) = run_episodes(policy, DriftEnvConfig(), [5], num_steps=2)
        np.testing.assert_allclose(ours.actions, stock.actions, rtol=0, atol=1e-4)
        assert (ours.length, ours.chunks) == (stock.length, stock.chunks)
