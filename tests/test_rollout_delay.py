"""Injected delay: which action of which chunk is executed when, and what real-time chunking is asked for."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from chordflow.errors import UserError
from chordflow.policies import ChunkSpec
from chordflow.policies.smolvla import SmolVLAFlowPolicy
from chordflow.rollouts.delay import Execution, round_actions
from chordflow.rollouts.episodes import Episode, jerk, jump
from rollout_checks import Chunks, assert_same
from rollout_checks import run as run_drift

K, H = 4, 8


def run(
    policy: SmolVLAFlowPolicy, execution: Execution, seeds: Sequence[int] = range(12), **options: Any
) -> list[Episode]:
    return run_drift(policy, seeds, 2, execution=execution, **{"batch_size": 5, **options})


@pytest.mark.parametrize(("modes", "delay", "first", "hold", "expected"), [
    (["none", "sync", "async", "rtc"], 0, False, "zeros", [200, 201, 202, 203]),
    (["sync"], 2, False, "zeros", [0, 0, 200, 201, 202, 203]),
    (["sync"], 2, False, "last", [103, 103, 200, 201, 202, 203]),
    (["sync"], 1, True, "last", [0, 200, 201, 202, 203]),
    (["async", "rtc"], 1, False, "zeros", [104, 201, 202, 203]),
    (["async", "rtc"], 3, False, "zeros", [104, 105, 106, 203]),
    (["async", "rtc"], 4, False, "zeros", [104, 105, 106, 107]),
    (["async", "rtc"], 3, True, "zeros", [200, 201, 202, 203]),
])  # fmt: skip
def test_a_round(modes, delay, first, hold, expected):
    """A chunk's action j at round i is numbered 100 i + j."""
    chunk, previous = (np.arange(H, dtype=np.float32)[:, None] + offset for offset in (200, 100))
    given = (None, None) if first else (previous, np.array([103.0], np.float32))
    for execution in (Execution(mode, delay, hold) for mode in modes):
        got, old = round_actions(execution, K, chunk, *given)
        assert old == (0 if first and execution.overlaps else delay)
        assert got[:, 0].tolist() == expected


@pytest.mark.parametrize("delay", [1, 3, 4])
def test_async(policy, monkeypatch, delay):
    chunks = Chunks(monkeypatch)
    episodes = run(policy, Execution("async", delay))
    assert max(episode.length for episode in episodes) > 2 * K
    for episode in episodes:
        own = [actions for _, actions, _ in chunks.of(episode.seed)]
        expected = [own[0][:K]]
        for old, new in itertools.pairwise(own):
            expected += [old[K : K + delay], new[delay:K]]
        joined = np.concatenate(expected)[: episode.length]
        np.testing.assert_array_equal(episode.actions, joined)
        assert episode.chunks == -(-episode.length // K)
        # The switch is where the new chunk's first action is executed.
        assert episode.jump == jump(joined, [0, *range(K + delay, episode.length, K)])
        assert episode.jerk == jerk(joined)


@pytest.mark.parametrize("hold", ["zeros", "last"])
def test_sync(policy, monkeypatch, hold):
    chunks = Chunks(monkeypatch)
    for episode in run(policy, Execution("sync", 2, hold)):
        expected = []
        for _, chunk, _ in chunks.of(episode.seed):
            held = expected[-1] if expected and hold == "last" else np.zeros(2, np.float32)
            expected += [held, held, *chunk[:K]]
        joined = np.stack(expected)[: episode.length]
        np.testing.assert_array_equal(episode.actions, joined)
        assert episode.jump == jump(joined, [0, *range(2 + K + 2, episode.length, K + 2)])


@pytest.mark.parametrize("mode", ["sync", "async", "rtc"])
def test_batch_size_changes_nothing(policy, mode):
    # Of six episodes, three at a time, some begin while others go on.
    one, many = (run(policy, Execution(mode, 1), seeds=range(6), batch_size=size) for size in (1, 3))
    assert_same(one, many, atol=1e-4)


@pytest.mark.parametrize(("execution", "executed", "words"), [
    (Execution("async", 5), 4, "delay is 5, .* every 4 actions"),
    (Execution("rtc", 3), 6, "n_action_steps is 6 and delay 3, but a chunk has 8"),
])  # fmt: skip
def test_delays_that_cannot_be(execution, executed, words):
    with pytest.raises(UserError, match=words):
        execution.check(ChunkSpec(horizon=8, padded_dim=6, action_dim=2, num_executed=4), executed)


def test_a_waiting_robot_may_wait_longer_than_a_round():
    Execution("sync", 9).check(ChunkSpec(8, 6, 2, 4), 4)
