"""Policies that look at several past observations: what they are shown, and which actions of a chunk are run."""

import itertools
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lerobot.envs.configs import EnvConfig
from lerobot.policies.utils import populate_queues
from lerobot.processor import LiberoProcessorStep, PolicyProcessorPipeline
from torch import Tensor

from chordflow.errors import UserError
from chordflow.policies import FlowPolicy, load_flow_policy
from chordflow.rollouts.acting import Actor, History, chunk_noise
from chordflow.rollouts.delay import Execution
from chordflow.rollouts.episodes import Episode
from chordflow.rollouts.lerobot_noise import run_lerobot_episodes
from chordflow.rollouts.runner import open_runner
from drift_env import TIME_LIMIT, DriftEnv, DriftEnvConfig, register
from family_multi_task_dit import build
from gaussian_setup import make_policy
from rollout_checks import Chunks, assert_same, run, stock_episode

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


class TurnedDriftEnv(DriftEnv):
    """Its cameras hang upside down."""

    def _picture(self) -> np.ndarray:
        return super()._picture()[::-1, ::-1]


register("ThriftyDrift-v0", ThriftyDriftEnv)
register("TurnedDrift-v0", TurnedDriftEnv)


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
        for seen, chosen in (([7], (7, 7, 7)), ([7, 8, 9], (7, 7, 9)), ([5, 6, 7, 8, 9], (5, 7, 9))):
            assert history.choose(seen) == chosen

    def test_the_future_is_refused(self) -> None:
        policy = make_policy()
        policy.config.observation_delta_indices = [0, 4, 8]
        with pytest.raises(UserError, match=r"observation_delta_indices .* holds 8"):
            run(policy, [0])


class TestEpisodes:
    @pytest.fixture(scope="class")
    def reference(self, policy: FlowPolicy) -> list[Episode]:
        """One at a time; different enough for comparisons to say something."""
        episodes = run(policy, SEEDS, 2, batch_size=1)
        assert len({episode.length for episode in episodes}) > 2
        assert max(episode.chunks for episode in episodes) > 2
        return episodes

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

        def act(batch: Any) -> Tensor:
            batch = preprocessor(batch)
            with mock.patch("torch.randn", side_effect=noise):
                return postprocessor(model.select_action(batch))

        model.reset()
        actions, _ = stock_episode(seed, act, monkeypatch)
        (episode,) = run(policy, [seed], 2, n_action_steps=executed)
        assert (episode.length, episode.chunks) == (len(actions), chunks)
        assert chunks > 2
        np.testing.assert_allclose(episode.actions, actions, rtol=0, atol=1e-4)

    def test_company_changes_nothing(self, policy: FlowPolicy, reference: list[Episode]) -> None:
        episodes = run(policy, SEEDS, 2, batch_size=5)
        assert_same(episodes, reference, atol=1e-4)

    @pytest.mark.slow  # processes take seconds to start
    def test_other_processes_bring_back_the_same(self, policy: FlowPolicy, reference: list[Episode]) -> None:
        with open_runner(DriftEnvConfig(), 3, 2) as runner:
            assert_same(runner.run(Actor(policy, runner.env_cfg, 2), SEEDS), reference, atol=1e-4)

    def test_the_environments_processors_see_single_observations(self, policy: FlowPolicy) -> None:
        """LIBERO's turns pictures by 180 degrees, along axes that it counts from the front."""
        envs = (DriftEnvConfig(), TurnedDriftEnvConfig(turned_back=True), TurnedDriftEnvConfig())
        plain, turned_back, turned = (run(policy, SEEDS, 2, env=env) for env in envs)
        for a, b in zip(turned_back, plain, strict=True):
            np.testing.assert_array_equal(a.actions, b.actions)
        assert not np.array_equal(plain[0].actions, turned[0].actions)

    @pytest.mark.parametrize("executed", [1, 4])
    def test_environments_that_reuse_their_arrays(self, policy: FlowPolicy, executed: int) -> None:
        thrifty, plain = (
            run(policy, SEEDS, 2, env=DriftEnvConfig(task=task), n_action_steps=executed)
            for task in ("ThriftyDrift-v0", "Drift-v0")
        )
        assert_same(thrifty, plain)

    def test_what_is_observed_while_waiting_counts(
        self, policy: FlowPolicy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        chunks = Chunks(monkeypatch)
        run(policy, SEEDS, 2, execution=Execution("sync", 2))
        later = [request.observations for request, _, _ in chunks.calls if request.chunk_index == 1]
        assert later
        for states in ([observation["agent_pos"].tolist() for observation in seen] for seen in later):
            assert len(states) == 3
            # The third number is multiplied by -0.9 at every control step.
            assert [b[2] / a[2] for a, b in itertools.pairwise(states)] == pytest.approx(
                [-0.9, -0.9], rel=1e-4
            )


class TestChunks:
    def test_async(self, policy: FlowPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
        chunks, late = Chunks(monkeypatch), 0
        execution = Execution("async", 2)
        for episode in run(policy, SEEDS, 2, execution=execution):
            whole = [policy.to_action(end[None])[0] for _, _, end in chunks.of(episode.seed)]
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
        chunks, seen = Chunks(monkeypatch), 0
        run(policy, SEEDS, 1, execution=Execution("rtc", 1), n_action_steps=3)
        for seed in SEEDS:
            endpoints = [endpoint for _, _, endpoint in chunks.of(seed)]
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
            run(policy, [0], n_action_steps=executed)
        with pytest.raises(UserError, match=message):
            run_lerobot_episodes(
                lambda: policy, DriftEnvConfig(), seed=0, n_episodes=1, batch_size=1, n_action_steps=executed
            )
