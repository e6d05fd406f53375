"""The store of episodes: nothing is lost, nothing is run twice, nothing of other settings is mixed in."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from chordflow.errors import UserError
from chordflow.policies.smolvla import SmolVLAFlowPolicy
from chordflow.rollouts.acting import Actor
from chordflow.rollouts.delay import Execution
from chordflow.rollouts.episodes import Episode, Timing
from chordflow.rollouts.store import JOINED, STORE_VERSION, EpisodeStore, arm_settings, weights_hash
from drift_env import DriftEnv, DriftEnvConfig
from rollout_checks import assert_same, run
from rollout_checks import episode as make_episode

SETTINGS = {"weights": "abc", "num_steps": 2, "env": {"type": "drift", "cameras": ("top",)}}


def episode(seed: int, length: int = 5, **options: Any) -> Episode:
    given = {
        "sum_reward": 0.1 * seed, "chunks": 2, "num_steps": 2, "jerk": 1 / 3, "seconds": 0.25, "task_group": "a/b",
        "task_id": 3, "mode": "rtc", "delay": 1,
        "actions": np.random.default_rng(seed).normal(size=(length, 2)).astype(np.float32),
    }  # fmt: skip
    return make_episode(seed, seed % 2 == 0, "go <left> é", length=length, **{**given, **options})


def stored(folder: Path, *episodes: Episode) -> EpisodeStore:
    """A store to which these were added."""
    store = EpisodeStore(folder, SETTINGS)
    store.save(episodes)
    store.flush()
    return store


def assert_whole(got: list[Episode], expected: list[Episode]) -> None:
    """Equal in every field, those that comparing leaves out as well."""
    assert [a.row() for a in got] == [b.row() for b in expected]
    for a, b in zip(got, expected, strict=True):
        assert a.actions.dtype == np.float32
        np.testing.assert_array_equal(a.actions, b.actions)
        assert (a.frames is None) == (b.frames is None)
        if a.frames is not None and b.frames is not None:
            assert a.frames.dtype == np.uint8
            np.testing.assert_array_equal(a.frames, b.frames)


class TestFiles:
    def test_round_trip(self, tmp_path: Path) -> None:
        frames = np.random.default_rng(0).integers(0, 256, (6, 4, 8, 3), dtype=np.uint8)
        episodes = [episode(4, frames=frames), episode(9, length=1, side="left", jerk=None)]
        episodes.append(episode(2, grid_power=1.4))
        stored(tmp_path, episodes[0])
        stored(tmp_path, *episodes[1:])
        for _ in range(2):
            store = EpisodeStore(tmp_path, SETTINGS)
            assert len(store.load()) == 3
            assert_whole(store.load(), sorted(episodes, key=lambda e: e.key))
            assert store.get(("a/b", 3, 9)) is not None
            assert store.get(("a/b", 2, 9)) is None
            # Once as parts, once joined.
            store.compact()
        assert [file.name for file in tmp_path.glob("*.parquet")] == [JOINED]

    def test_what_was_saved_last_stands(self, tmp_path: Path) -> None:
        stored(tmp_path, episode(0), episode(1)).compact()
        stored(tmp_path, episode(0, sum_reward=7.0))
        for _ in range(2):
            store = EpisodeStore(tmp_path, SETTINGS)
            assert [e.sum_reward for e in store.load()] == [7.0, 0.1]
            store.compact()

    def test_a_crash_while_joining_loses_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = stored(tmp_path, episode(0))

        def crash(*_paths: Any, **_options: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            store.compact()
        monkeypatch.undo()
        # What a process leaves that is killed at this moment.
        (tmp_path / f".{JOINED}.tmp").write_bytes(b"half")
        assert_whole(EpisodeStore(tmp_path, SETTINGS).load(), [episode(0)])
        assert not any(file.name.endswith(".tmp") for file in tmp_path.iterdir())

        # The joined file stands, the parts are still there.
        monkeypatch.setattr(Path, "unlink", crash)
        with pytest.raises(KeyboardInterrupt):
            store.compact()
        monkeypatch.undo()
        assert len(list(tmp_path.glob("*.parquet"))) == 2
        assert_whole(EpisodeStore(tmp_path, SETTINGS).load(), [episode(0)])

    def test_timing_adds_up(self, tmp_path: Path) -> None:
        for _ in range(3):
            EpisodeStore(tmp_path, SETTINGS).add_timing(Timing(1.0, 2.0, 0.25, 4.0))
        assert EpisodeStore(tmp_path, SETTINGS).timing == Timing(3.0, 6.0, 0.75, 12.0)


class TestRefusals:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for seed in (0, 1):
            stored(tmp_path, episode(seed))
        return tmp_path

    @pytest.mark.parametrize(("other", "words"), [
        ({"num_steps": 3}, "was run with num_steps=2, but now num_steps=3"),
        ({"weights": "xyz"}, 'weights="abc", but now weights="xyz"'),
        ({"env": {"type": "drift", "cameras": ("left",)}}, "was run with env="),
        ({"delay": 4}, "was run with delay=null, but now delay=4"),
    ])  # fmt: skip
    def test_other_settings(self, folder: Path, other: dict[str, Any], words: str) -> None:
        before = {file.name: file.read_bytes() for file in folder.iterdir()}
        with pytest.raises(UserError, match=words):
            EpisodeStore(folder, {**SETTINGS, **other})
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before

    @pytest.mark.parametrize("spoil", [
        lambda data: data[: len(data) // 2],
        lambda data: b"episodes, as it were",
        lambda data: data[:30] + bytes(40) + data[70:-300] + bytes(200) + data[-100:],
    ], ids=["cut", "text", "holes"])  # fmt: skip
    def test_a_broken_file_is_named_and_the_others_kept(
        self, folder: Path, spoil: Callable[[bytes], bytes]
    ) -> None:
        first, second = sorted(folder.glob("*.parquet"))
        whole = second.read_bytes()
        first.write_bytes(spoil(first.read_bytes()))
        with pytest.raises(
            UserError, match=rf"{first.name} is cut or no file of episodes .*; delete this file"
        ):
            EpisodeStore(folder, SETTINGS)
        assert second.read_bytes() == whole
        # What the message says to do works.
        first.unlink()
        assert [e.seed for e in EpisodeStore(folder, SETTINGS).load()] == [1]

    def test_another_table(self, folder: Path) -> None:
        pq.write_table(pa.table({"seed": [1]}), folder / "part-000000.parquet")
        with pytest.raises(UserError, match=r"part-000000.parquet is cut or no file of episodes"):
            EpisodeStore(folder, SETTINGS)

    def test_a_newer_layout(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("chordflow.rollouts.store.STORE_VERSION", STORE_VERSION - 1)
        with pytest.raises(UserError, match=f"newer chordflow .layout {STORE_VERSION}, .* update chordflow"):
            EpisodeStore(folder, SETTINGS)


class TestSettings:
    def test_name_all_that_an_episode_depends_on(self, tiny_policy: SmolVLAFlowPolicy) -> None:
        def settings(**options: Any) -> dict[str, Any]:
            env = DriftEnvConfig(**options.pop("env", {}))
            return arm_settings(Actor(tiny_policy, env, **{"num_steps": 2, **options}))

        plain = settings()
        assert plain == settings() == settings(grid_power=1.0)
        # Stores from before there were grids go on.
        assert "grid_power" not in plain
        others = [
            settings(num_steps=3), settings(solver="heun"), settings(n_action_steps=2), settings(grid_power=1.4),
            settings(execution=Execution("sync", 1)), settings(execution=Execution("sync", 1, "last")),
            settings(execution=Execution("rtc", 1)), settings(execution=Execution("rtc", 1, max_guidance_weight=1.0)),
            settings(env={"action_dim": 3}),
        ]  # fmt: skip
        for i, one in enumerate([plain, *others]):
            assert all(one != other for other in [plain, *others][i + 1 :])

    def test_weights_and_statistics(self, tiny_policy: SmolVLAFlowPolicy) -> None:
        seen = [weights_hash(tiny_policy)]
        with torch.no_grad():
            tiny_policy.policy.model.action_out_proj.bias[0] += 1e-3
        seen.append(weights_hash(tiny_policy))
        step = next(s for s in tiny_policy.postprocessor.steps if s.state_dict())
        name, tensor = next(iter(step.state_dict().items()))
        step.load_state_dict({**step.state_dict(), name: tensor + 1})
        seen.append(weights_hash(tiny_policy))
        assert len(set(seen)) == 3
        assert weights_hash(tiny_policy) == seen[-1]


class TestRuns:
    def test_nothing_stored_is_run_again(self, tiny_policy: SmolVLAFlowPolicy, tmp_path: Path) -> None:
        def again(seeds: list[int], **options: Any) -> list[Episode]:
            store = EpisodeStore(tmp_path, SETTINGS)
            return run(tiny_policy, seeds, 2, batch_size=3, store=store, **options)

        seeds = [5, 1, 8, 2, 7]
        fresh = run(tiny_policy, seeds, 2, batch_size=3)
        first = again(seeds[:3])
        before, told = DriftEnv.steps, []
        episodes = again(seeds, progress=told.append)
        assert DriftEnv.steps - before == sum(e.length for e in episodes[3:])
        assert_whole(episodes[:3], first)
        assert [e.seed for e in told][:3] == seeds[:3]
        assert sorted(e.seed for e in told) == sorted(seeds)
        assert_same(episodes, fresh, atol=1e-4)
        # Pictures that were not kept are the one reason to run an episode again.
        before = DriftEnv.steps
        filmed = again(seeds, record_frames=[8])
        assert DriftEnv.steps - before == filmed[2].length
        assert_whole(again(seeds, record_frames=[8]), filmed)

    def test_what_ended_before_a_fault_is_kept(
        self, tiny_policy: SmolVLAFlowPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        step, seen = DriftEnv.step, []

        def fail(env: DriftEnv, action: Any) -> Any:
            seen.append(1)
            if len(seen) > 40:
                raise RuntimeError("the simulator is upset")
            return step(env, action)

        monkeypatch.setattr(DriftEnv, "step", fail)
        store, told = EpisodeStore(tmp_path, SETTINGS), []
        with pytest.raises(UserError, match=r"seed .*RuntimeError: the simulator is upset"):
            run(tiny_policy, batch_size=2, store=store, progress=told.append)
        assert len(told) > 1
        assert_whole(EpisodeStore(tmp_path, SETTINGS).load(), sorted(told, key=lambda e: e.key))
