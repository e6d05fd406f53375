"""Rollouts: episodes that depend on seed and policy alone, truly paired noise, and their measures."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from lerobot.envs.configs import EnvConfig

from builders import build_checkpoint
from chordflow.errors import UserError
from chordflow.policies.smolvla import SmolVLAFlowPolicy
from chordflow.rollouts.acting import Actor, chunk_noise
from chordflow.rollouts.episodes import Episode, Timing
from chordflow.rollouts.runner import open_runner
from chordflow.rollouts.summaries import motion_rows, success_rows
from drift_env import TIME_LIMIT, DriftEnv, DriftEnvConfig
from lerobot_env_detour import DetourEnvConfig
from rollout_checks import assert_same, load, run, stock_episode

SEEDS = list(range(20))


@pytest.fixture(scope="module")
def reference(policy: SmolVLAFlowPolicy) -> list[Episode]:
    """One at a time; different enough for comparisons to say something."""
    episodes = run(policy, num_steps=3, batch_size=1)
    assert {episode.success for episode in episodes} == {True, False}
    assert {episode.side for episode in episodes} == {"left", "right"}
    assert max(episode.length for episode in episodes) == TIME_LIMIT > min(e.length for e in episodes)
    assert len({episode.task for episode in episodes}) == 3
    assert max(episode.chunks for episode in episodes) == 4
    return episodes


def spy(policy: SmolVLAFlowPolicy, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What the network is asked: batch sizes of encodings, (x_t, t) of velocities."""
    calls: dict[str, list[Any]] = {"encode": [], "velocity": []}
    encode, velocity = policy.encode, policy.velocity

    def spied_encode(batch: Any) -> Any:
        context = encode(batch)
        calls["encode"].append(context.batch_size)
        return context

    def spied_velocity(x_t: Any, t: Any, context: Any) -> Any:
        calls["velocity"].append((x_t.clone(), float(t[0])))
        return velocity(x_t, t, context)

    monkeypatch.setattr(policy, "encode", spied_encode)
    monkeypatch.setattr(policy, "velocity", spied_velocity)
    return calls


class TestEpisodes:
    @pytest.mark.parametrize(
        ("seeds", "batch_size"), [(SEEDS, 4), (SEEDS, 16), (SEEDS, 64), ([17, 3, 11, 4], 3)]
    )
    def test_batch_size_company_and_order_change_nothing(
        self, policy: SmolVLAFlowPolicy, reference: list[Episode], seeds: list[int], batch_size: int
    ) -> None:
        episodes = run(policy, seeds, 3, batch_size=batch_size)
        assert_same(episodes, [reference[seed] for seed in seeds], atol=1e-4)

    def test_repeats_to_the_bit(self, policy: SmolVLAFlowPolicy) -> None:
        runs = []
        for global_seed in (0, 1):
            torch.manual_seed(global_seed)
            np.random.seed(global_seed)  # noqa: NPY002 - what must not matter
            runs.append(run(policy, num_steps=2, batch_size=8))
        assert_same(*runs)
        assert runs[0] == runs[1]

    def test_equals_a_hand_loop_over_the_stock_policy(
        self, checkpoint: Path, policy: SmolVLAFlowPolicy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """LeRobot's vector environment, processors and `predict_action_chunk`, with the same noise."""
        seed, stock = 7, load(checkpoint)
        stock.config.num_steps = 5
        stock.policy.reset()
        left: list[torch.Tensor] = []
        chunk = 0

        def act(batch: Any) -> torch.Tensor:
            nonlocal chunk
            if not left:
                noise = chunk_noise(stock, seed, chunk)[None]
                predicted = stock.policy.predict_action_chunk(stock.preprocessor(batch), noise=noise)
                left.extend(predicted.unbind(1)[: stock.config.n_action_steps])
                chunk += 1
            return stock.postprocessor(left.pop(0))

        actions, success = stock_episode(seed, act, monkeypatch)
        (episode,) = run(policy, [seed], 5)
        np.testing.assert_allclose(episode.actions, actions, rtol=0, atol=1e-5)
        assert (episode.success, episode.length, episode.chunks) == (success, len(actions), chunk)
        assert chunk > 1

    def test_no_step_and_no_pass_is_wasted(
        self, policy: SmolVLAFlowPolicy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls, before = spy(policy, monkeypatch), DriftEnv.steps
        told: list[Episode] = []
        begin = time.perf_counter()
        episodes = run(policy, batch_size=6, progress=told.append)
        assert DriftEnv.steps - before == sum(episode.length for episode in episodes)
        assert sum(calls["encode"]) == sum(episode.chunks for episode in episodes)
        # Full batches while seeds last: a finished episode makes room at once.
        assert calls["encode"][0] == 6
        assert calls["encode"] == sorted(calls["encode"], reverse=True)
        assert sorted(told, key=lambda episode: episode.seed) == episodes
        assert all(episode.seconds > 0 for episode in episodes)
        assert sum(episode.seconds for episode in episodes) < time.perf_counter() - begin

    def test_executed_actions_can_be_chosen(self, policy: SmolVLAFlowPolicy) -> None:
        own, same, other = (run(policy, SEEDS[:4], n_action_steps=n) for n in (None, 4, 1))
        assert own == same
        assert [episode.chunks for episode in other] == [episode.length for episode in other]

    def test_training_mode_comes_back(self, tiny_policy: SmolVLAFlowPolicy) -> None:
        tiny_policy.module.train()
        run(tiny_policy, [0])
        assert tiny_policy.module.training

    @pytest.mark.parametrize(("render_mode", "size"), [(None, 32), ("rgb_array", 64)])
    def test_frames_of_chosen_seeds(
        self, policy: SmolVLAFlowPolicy, render_mode: str | None, size: int
    ) -> None:
        first, second, third = run(
            policy, [0, 1, 2], env=DriftEnvConfig(render_mode=render_mode), record_frames={1}
        )
        assert first.frames is third.frames is None
        assert second.frames.shape == (second.length + 1, size, size, 3)
        assert second.frames.dtype == np.uint8
        assert len({frame.tobytes() for frame in second.frames}) == len(second.frames)


class TestPairing:
    def test_noise_is_a_function_of_seed_and_chunk_alone(
        self, vlm: Path, policy: SmolVLAFlowPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = load(build_checkpoint(tmp_path / "other", vlm, seed=1, num_steps=4))
        seen: list[dict[tuple[int, int], bytes]] = []
        for one, num_steps in ((policy, 1), (other, 3)):
            calls = spy(one, monkeypatch)
            # One at a time, so that what the network saw can be told by episode.
            episodes = run(one, SEEDS[:8], num_steps, batch_size=1)
            # The saved step count is not used.
            assert len(calls["velocity"]) == num_steps * len(calls["encode"])
            times = sorted({round(t, 6) for _, t in calls["velocity"]})
            assert times == [round(i / num_steps, 6) for i in range(1, num_steps + 1)]
            assert {episode.num_steps for episode in episodes} == {num_steps}
            starts = [x_t[0].numpy().tobytes() for x_t, t in calls["velocity"] if t == 1.0]
            keys = [(episode.seed, chunk) for episode in episodes for chunk in range(episode.chunks)]
            seen.append(dict(zip(keys, starts, strict=True)))
        assert other.default_num_steps == 4
        common = seen[0].keys() & seen[1].keys()
        assert len(common) > 8
        assert all(seen[0][key] == seen[1][key] for key in common)
        assert all(chunk_noise(other, *key).numpy().tobytes() == noise for key, noise in seen[1].items())

    @pytest.mark.parametrize(("solver", "grid_power", "times"), [
        ("euler", 1.0, [0.5, 1.0]),
        ("midpoint", 1.0, [0.25, 0.5, 0.75, 1.0]),
        ("euler", 2.0, [0.25, 1.0]),
        ("midpoint", 2.0, [0.125, 0.25, 0.625, 1.0]),
    ])  # fmt: skip
    def test_solver_and_grid(
        self, policy: SmolVLAFlowPolicy, monkeypatch: pytest.MonkeyPatch, solver: Any, grid_power: float,
        times: list[float],
    ) -> None:  # fmt: skip
        calls = spy(policy, monkeypatch)
        (episode,) = run(policy, [0], 2, solver=solver, grid_power=grid_power)
        assert sorted({round(t, 6) for _, t in calls["velocity"]}) == times
        assert len(calls["velocity"]) == len(times) * episode.chunks
        assert (episode.solver, episode.grid_power) == (solver, grid_power)
        (row,) = success_rows([episode], "teacher")
        assert (row.solver, row.num_steps, row.grid_power) == (solver, 2, grid_power)
        assert {row.grid_power for row in motion_rows([episode], "teacher", None, 0)} == {grid_power}


@EnvConfig.register_subclass("drift_suites_of_the_tests")
@dataclass
class DriftSuitesConfig(DriftEnvConfig):
    """Two suites, of two tasks and of one, as LeRobot's benchmarks have them: cameras tell tasks apart."""

    made: ClassVar[list[gym.vector.SyncVectorEnv]] = []

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, Any]]:
        """As `create_libero_envs`: all at once."""

        def make() -> gym.Env[Any, Any]:
            return gym.make("chordflow_tests/Drift-v0", disable_env_checker=True, **self.gym_kwargs)

        def vector() -> gym.vector.SyncVectorEnv:
            self.made.append(gym.vector.SyncVectorEnv([make] * n_envs))
            return self.made[-1]

        return {"spatial": {0: vector(), 3: vector()}, "goal": {0: vector()}}


class TestRunner:
    def test_goes_through_all_tasks_of_which_one_is_open(
        self, policy: SmolVLAFlowPolicy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seeds = [4, 1, 9]
        single = run(policy, seeds, batch_size=2)
        monkeypatch.setattr(DriftSuitesConfig, "made", made := [])
        used: list[DriftEnv] = []
        reset = DriftEnv.reset

        def spied(env: DriftEnv, **options: Any) -> Any:
            used.append(env)
            # Whoever was used for an earlier task is closed by now.
            vectors = [v for v in made if any(e.unwrapped in used for e in v.envs) and not v.closed]
            assert len(vectors) == 1
            return reset(env, **options)

        monkeypatch.setattr(DriftEnv, "reset", spied)
        with open_runner(DriftSuitesConfig(), 2) as runner:
            episodes = runner.run(Actor(policy, runner.env_cfg, 1), seeds)
            assert runner.run(Actor(policy, runner.env_cfg, 1), seeds) == episodes
        assert all(vector.closed for vector in made)
        tasks = [("spatial", 0), ("spatial", 3), ("goal", 0)]
        assert [e.key for e in episodes] == [(*task, seed) for task in tasks for seed in seeds]
        assert {e.task_group for e in single} == {"drift_of_the_tests"}
        np.testing.assert_array_equal(
            *(np.concatenate([e.actions for e in r]) for r in (episodes[:3], single))
        )
        # The others have noises of their own.
        for later in (episodes[3:6], episodes[6:]):
            assert not any(np.array_equal(a.actions, b.actions) for a, b in zip(later, single, strict=True))

    def test_calls_share_environments(
        self, policy: SmolVLAFlowPolicy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[int] = []
        init = DriftEnv.__init__

        def counted(env: DriftEnv, *args: Any, **options: Any) -> None:
            made.append(1)
            init(env, *args, **options)

        monkeypatch.setattr(DriftEnv, "__init__", counted)
        whole = run(policy, batch_size=4)
        made.clear()
        with open_runner(DriftEnvConfig(), batch_size=4) as runner:
            blocks = [runner.run(Actor(policy, runner.env_cfg, 1), SEEDS[i : i + 5]) for i in range(0, 20, 5)]
            assert list(runner.tasks()) == [("drift_of_the_tests", 0)]
            assert len(made) == 4
            assert_same([e for block in blocks for e in block], whole, atol=1e-4)
            # More side by side than before.
            runner.batch_size = 8
            assert [e.seed for e in runner.run(Actor(policy, runner.env_cfg, 1), SEEDS)] == SEEDS

    def test_time_is_split(self, policy: SmolVLAFlowPolicy) -> None:
        first, second = Timing(), Timing()
        with open_runner(DriftEnvConfig(), batch_size=4) as runner:
            runner.run(
                Actor(policy, runner.env_cfg, 1), SEEDS, timing=first, progress=lambda _: time.sleep(0.02)
            )
            begin = time.perf_counter()
            episodes = runner.run(Actor(policy, runner.env_cfg, 8), SEEDS, timing=second)
            wall = time.perf_counter() - begin
        # What the caller does as episodes end is no time of the run.
        assert first.total_s < 20 * 0.02 + second.total_s
        assert sum(e.seconds for e in episodes) <= second.total_s <= wall
        assert second.network_s > first.network_s
        assert 0 < second.processors_s + second.other_s < second.total_s


@pytest.mark.parametrize(("arguments", "words"), [
    ({"num_steps": 0}, "num_steps is 0"),
    ({"solver": "rk45"}, "solver is 'rk45'"),
    ({"n_action_steps": 9}, "n_action_steps is 9; a chunk has 8"),
    ({"env": DriftEnvConfig(action_dim=3)}, r"takes actions of shape \(3,\).*have shape \(2,\)"),
    ({"env": DetourEnvConfig(instruction="go up")}, r"env.type=detour: the environment cannot be made \(.*'go up'"),
])  # fmt: skip
def test_what_cannot_be_run(policy: SmolVLAFlowPolicy, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        run(policy, **{"seeds": [0], **arguments})


def test_an_action_that_is_not_finite(tiny_policy: SmolVLAFlowPolicy) -> None:
    with torch.no_grad():
        tiny_policy.policy.model.action_out_proj.bias[0] = torch.nan
    with pytest.raises(UserError, match="NaN or infinite in episode 3, step 0"):
        run(tiny_policy, [3])
