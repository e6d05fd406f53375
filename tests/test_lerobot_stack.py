"""LeRobot's own commands, as docs/deploy.md gives them, on a one-step student."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from lerobot.policies.rtc.modeling_rtc import RTCProcessor

import chordflow
import lerobot_policy_chordflow  # noqa: F401, LeRobot finds it only where it is installed
from chordflow.demo.teacher import place_teacher
from chordflow.deploy import parity
from chordflow.experiments import export as job
from chordflow.policies import load_flow_policy, save_student
from forked import forked
from script_files import ROOT

SUCCESS = "The episode of seed 0 has ended: success."


def command(begins: str) -> list[str]:
    """One of the document's commands: the module that it runs, and its arguments."""
    text = (ROOT / "docs" / "deploy.md").read_text().replace("\\\n", " ")
    (found,) = re.findall(rf"^{begins}.*$", text, re.MULTILINE)
    words = shlex.split(found)
    return (
        words[2:] if words[0] == "python" else [f"lerobot.scripts.{words[0].replace('-', '_')}", *words[1:]]
    )


@contextmanager
def running(words: list[str], folder: Path, name: str) -> Iterator[tuple[BaseProcess, Path]]:
    """Runs a command of LeRobot's in a folder; what it prints goes to a file there."""
    log = folder / f"{name}.log"

    def run() -> None:
        os.chdir(folder)
        sys.stdout = sys.stderr = log.open("w", buffering=1)
        sys.argv = words
        guided = RTCProcessor.denoise_step

        def denoise_step(self: Any, *given: Any, **named: Any) -> Any:
            if named["prev_chunk_left_over"] is not None:
                print("guided, with weight", self.rtc_config.max_guidance_weight)
            return guided(self, *given, **named)

        RTCProcessor.denoise_step = denoise_step
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        raise SystemExit

    with forked([], run) as process:
        yield process, log


def wait_for(text: str, log: Path, *processes: BaseProcess) -> None:
    """Until a process has printed it."""
    deadline = time.monotonic() + 120
    while not log.exists() or text not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        assert all(process.is_alive() for process in processes), log.read_text()[-3000:]
        time.sleep(0.05)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `outputs/student`: the demo's teacher, saved as a student of one step, untrained."""
    folder = tmp_path_factory.mktemp("stack")
    teacher = place_teacher(folder)
    save_student(load_flow_policy(teacher, device="cpu"), teacher, folder / "outputs" / "student", {}, 1)
    return folder


def finished(words: list[str], folder: Path, name: str) -> str:
    """What a command has printed that ends by itself."""
    with running(words, folder, name) as (process, log):
        process.join(120)
    said = log.read_text()
    assert process.exitcode == 0, said[-3000:]
    return said


@pytest.mark.slow
def test_lerobot_eval(outputs: Path) -> None:
    finished(command("lerobot-eval --policy.path"), outputs, "eval")
    info = json.loads((outputs / "outputs" / "eval" / "eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == 2


@pytest.mark.slow
def test_lerobot_rollout_alone_and_with_real_time_chunking(outputs: Path) -> None:
    words = command("lerobot-rollout --policy.path")
    assert SUCCESS in finished([word for word in words if "inference" not in word], outputs, "rollout")
    said = finished(words, outputs, "real_time")
    # LeRobot's queue drops moves that were not made, so the goal need not be reached.
    assert set(re.findall(r"guided, with weight (.*)", said)) == {"1.0"}
    assert "The episode of seed 0 has ended" in said
    assert "RTC inference error" not in said


@pytest.mark.slow
def test_an_exported_folder_in_lerobots_commands(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "OBSERVATIONS", parity.MODE_OBSERVATIONS)
    chordflow.export(policy=outputs / "outputs" / "student", output_dir=outputs / "outputs" / "robot")
    finished(command("lerobot-eval --policy.type"), outputs, "eval_folder")
    info = json.loads((outputs / "outputs" / "eval_folder" / "eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == 2
    assert SUCCESS in finished(command("lerobot-rollout --policy.type"), outputs, "rollout_folder")


# gRPC does not survive a fork of a process that has run whatever other tests run.
@pytest.mark.slow
def test_asynchronous_inference(outputs: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    serve, act = (
        [word.replace("8080", port) for word in command(f"python -m lerobot.async_inference.{module}")]
        for module in ("policy_server", "robot_client")
    )
    with running(serve, outputs, "server") as (server, server_log):
        wait_for("started on", server_log, server)
        with running(act, outputs, "client") as (client, client_log):
            wait_for(SUCCESS, client_log, server, client)
            # As a user ends it.
            os.kill(client.pid or 0, signal.SIGINT)
            client.join(20)
            assert client.exitcode is not None
    said = server_log.read_text()
    assert len(re.findall(r"Action chunk #\d+ generated", said)) > 1
    assert "Error in" not in said
