"""Environments in processes of their own: the same episodes, clean ends, faults in one sentence."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from lerobot.envs.configs import EnvConfig

from chordflow.errors import UserError
from chordflow.policies.smolvla import SmolVLAFlowPolicy
from chordflow.rollouts import workers
from chordflow.rollouts.acting import Actor
from chordflow.rollouts.delay import Execution
from chordflow.rollouts.environments import StartOrder
from chordflow.rollouts.runner import Runner, open_runner
from chordflow.rollouts.workers import WorkerPool
from drift_env import DriftEnv, DriftEnvConfig, register
from forked import forked
from rollout_checks import run

SEEDS = list(range(20))
FAULTS = {101: "raises", 102: "dies", 103: "cannot reset"}
"""Seeds at which the environment below fails, and how."""


class FaultyDriftEnv(DriftEnv):
    """Fails at some seeds."""

    seed = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        """As the original, but for one seed."""
        self.seed = seed or 0
        if FAULTS.get(self.seed) == "cannot reset":
            raise RuntimeError("no such\nstart")
        return super().reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """As the original, but for two seeds."""
        if FAULTS.get(self.seed) == "raises":
            raise RuntimeError("the arm fell off")
        if FAULTS.get(self.seed) == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


register("FaultyDrift-v0", FaultyDriftEnv)


@EnvConfig.register_subclass("faulty_drift_of_the_tests")
@dataclass
class FaultyDriftEnvConfig(DriftEnvConfig):
    """The environment as LeRobot's factory takes it."""

    task: str | None = "FaultyDrift-v0"


def children() -> list[psutil.Process]:
    """Processes of ours that hold environments."""
    found = []
    for process in psutil.Process().children(recursive=True):
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            found += [process] if "spawn_main" in " ".join(process.cmdline()) else []
    return found


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    """With two workers that are forked, as importing everything anew takes many seconds; slow tests spawn them."""
    serve, fork = workers._serve, multiprocessing.get_context("fork")

    def serve_alone(line: Connection, env_cfg: Any) -> None:
        # A fork holds its parent's ends as well, and would never see them close.
        os.closerange(3, line.fileno())
        os.closerange(line.fileno() + 1, 4096)
        serve(line, env_cfg)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "_serve", serve_alone)
        patch.setattr(multiprocessing, "get_context", lambda method: fork)
        with open_runner(DriftEnvConfig(), 16, 2) as opened:
            yield opened


class TestSameEpisodes:
    @pytest.mark.parametrize("batch_size", [1, 4, 16])
    def test_workers_and_batch_sizes(
        self, policy: SmolVLAFlowPolicy, runner: Runner, batch_size: int
    ) -> None:
        here = run(policy, SEEDS, 3, batch_size=batch_size)
        assert {e.success for e in here} == {True, False}
        runner.batch_size = batch_size
        there = runner.run(Actor(policy, runner.env_cfg, 3), SEEDS)
        # The network sees the same batches: the same to the bit.
        assert here == there
        assert [e.actions.tobytes() for e in here] == [e.actions.tobytes() for e in there]

    def test_pictures_and_delay(self, policy: SmolVLAFlowPolicy, runner: Runner) -> None:
        expected = run(policy, SEEDS[:6], batch_size=16, execution=Execution("rtc", 2), record_frames=[1, 4])
        runner.batch_size = 16
        actor = Actor(policy, runner.env_cfg, 1, execution=Execution("rtc", 2))
        for a, b in zip(runner.run(actor, SEEDS[:6], record_frames=[1, 4]), expected, strict=True):
            assert a == b
            assert (a.frames is not None) == (a.seed in (1, 4))
            if a.frames is not None and b.frames is not None:
                np.testing.assert_array_equal(a.frames, b.frames)


class TestFaults:
    @pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
    def test_a_fault_is_one_sentence_and_no_process_stays(
        self, policy: SmolVLAFlowPolicy, num_workers: int
    ) -> None:
        before = set(children())
        with open_runner(FaultyDriftEnvConfig(), 4, num_workers) as runner:
            for seed, words in (
                (101, r"environment failed in the episode of seed 101, step 0 .*fell off"),
                (103, r"cannot be reset in the episode of seed 103, .*no such\); check"),
            ):
                with pytest.raises(UserError, match=words):
                    runner.run(Actor(policy, runner.env_cfg, 1), [1, seed, 2])
            # It can still be used.
            assert len(runner.run(Actor(policy, runner.env_cfg, 1), [1, 2])) == 2
            if num_workers:
                words = r"ended by itself \(killed by SIGKILL\).*--num_workers=0"
                with pytest.raises(UserError, match=words):
                    runner.run(Actor(policy, runner.env_cfg, 1), [1, 102, 2])
        assert set(children()) == before

    @pytest.mark.slow
    def test_a_busy_worker_is_ended(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("chordflow.rollouts.workers.GRACE_S", 0.1)
        pool = WorkerPool(DriftEnvConfig(), 1)
        pool.make(1)
        pool.select(("drift_of_the_tests", 0))
        pool.start([StartOrder(0, 1)])
        pid = pool._workers[0].process.pid
        os.kill(pid, signal.SIGSTOP)
        pool.close()
        assert not psutil.pid_exists(pid)

    @pytest.mark.slow
    def test_an_interrupt_is_said_once_and_no_process_stays(self, checkpoint: Path, tmp_path: Path) -> None:
        """Ctrl-C reaches the whole group, as from a terminal: the workers have nothing to say of it."""
        said, output = tmp_path / "said", tmp_path / "out"
        arguments = [
            "evaluate", f"--teacher.path={checkpoint}", f"--student.path={checkpoint}", f"--output_dir={output}",
            "--env.type=drift_of_the_tests", "--eval.n_episodes=100000", "--eval.num_workers=2", "--device=cpu",
        ]  # fmt: skip

        def noted() -> None:
            sys.stderr = said.open("w", buffering=1)
            os.dup2(sys.stderr.fileno(), 2)

        with forked(arguments, noted) as process:
            deadline = time.monotonic() + 120
            while not any(output.rglob("*.parquet")) and time.monotonic() < deadline:
                time.sleep(0.01)
            family = psutil.Process(process.pid).children(recursive=True)
            assert len(family) >= 2
            os.killpg(process.pid, signal.SIGINT)
            process.join(60)
            assert process.exitcode == 128 + signal.SIGINT
            _, alive = psutil.wait_procs(family, timeout=5)
            # Where nobody collects orphans, one that has ended keeps its number.
            assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
        (line,) = said.read_text().splitlines()
        assert line.startswith("chordflow evaluate: interrupted; resume with: ")
