"""`chordflow couple`: what it writes, refuses and leaves behind."""

import hashlib
import itertools
import json
import os
import shlex
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from safetensors.torch import load_file

import chordflow.couplings.making as making
from chordflow import disk
from chordflow.cli.main import main
from chordflow.couplings import DatasetConfig
from chordflow.couplings.store import finished, shard_name
from chordflow.experiments import couple as job
from chordflow.experiments.config import CoupleConfig, SourceConfig
from coupling_stores import Command, command
from coupling_stores import couple as couple
from coupling_stores import stores as stores
from forked import forked
from small_runs import Capture, refusal
from small_runs import small_disk as small_disk


def test_the_manifest_says_what_it_was_made_with(stores: dict[bool, Path], checkpoint: Path) -> None:
    told = json.loads((stores[False] / "manifest.json").read_text(encoding="utf-8"))
    made, about = told["made_with"], told["about"]
    assert made["coupling"] == {"solver": "adams_bashforth", "num_steps": 2, "grid_power": 1.4}
    assert made["buffer"] == {"noises_per_observation": 3, "block_size": 4, "adaptive_share": 0.5}
    assert {"torch", "lerobot", "chordflow"} <= about["versions"].keys()
    assert about["settings"]["teacher"]["path"] == str(checkpoint.resolve())
    weights = (checkpoint / "model.safetensors").read_bytes()
    assert about["teacher_sha256"] == hashlib.sha256(weights).hexdigest()
    assert finished(stores[False]) == told["num_blocks"] == 6
    shard = load_file(stores[False] / shard_name(0))
    assert shard["endpoint"].shape == (12, 8, 6)
    assert set(shard) == {"observations", "observation", "endpoint"}
    assert set(load_file(stores[True] / shard_name(0))) == {*shard, "context.0", "context.1"}


@pytest.mark.parametrize("typed", [None, "v3.0"])
def test_a_dataset_of_the_hub_is_told_by_its_commit(typed: str | None) -> None:
    config = CoupleConfig(SourceConfig("t"), DatasetConfig("a/b", revision=typed), Path("o"))
    for folder, revision in (("elsewhere", typed), ("snapshots/0c1d2e", "0c1d2e")):
        told = job._settings(config, Path("hub/datasets--a--b", folder))["dataset"]
        assert (told["repo_id"], told["revision"]) == ("a/b", revision)


def test_a_store_that_is_there_is_not_written_to_unasked(
    stores: dict[bool, Path], couple: Command, tmp_path: Path, capsys: Capture
) -> None:
    there = f"output_dir={stores[False]} holds a store already; name a new folder, or resume with: chordflow"
    assert there in refusal(couple(stores[False]), capsys)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    other = "holds other files (notes) and no coupling store"
    assert other in refusal(couple(tmp_path / "mine"), capsys)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes"]


@pytest.mark.parametrize(("option", "message"), [
    ("num_observations=0", "num_observations=0: give at least 1"),
    ("buffer.block_size=0", "buffer.block_size=0: give at least 1"),
    ("coupling.grid_power=0", "coupling.grid_power=0.0: give a number above 0, such as 1 (uniform)"),
    ("teacher.num_inference_steps=3", "--teacher.num_inference_steps is not an option"),
])  # fmt: skip
def test_bad_options(tmp_path: Path, capsys: Capture, option: str, message: str) -> None:
    assert message in refusal(command(tmp_path, tmp_path, tmp_path / "out", f"--{option}"), capsys)


def test_resume_needs_to_know_the_store(capsys: Capture) -> None:
    said = refusal(["couple", "--resume=true"], capsys)
    assert "resume=true needs --config_path=STORE/manifest.json" in said


@pytest.mark.parametrize("context", [False, True])
def test_a_store_that_does_not_fit_is_not_begun(
    couple: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, context: bool
) -> None:
    room = SimpleNamespace(free=8 * 2560 if context else 6000)
    monkeypatch.setattr(job.shutil, "disk_usage", lambda path: room)
    output = tmp_path / "new" / "store"
    said = refusal(couple(output, f"--store_context={str(context).lower()}"), capsys)
    assert f"output_dir={output}: the blocks that are to be made take " in said
    assert ("leave --store_context out" in said) == context
    assert ("(to at most 8)" in said) == (not context)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("blocks", "words"), [
    (0, "while 8 couplings were solved by the teacher at a time; give --batch_size=4."),
    (2, "at a time; give --batch_size=4 for a new store in another --output_dir: the blocks of"),
])  # fmt: skip
def test_out_of_memory_names_what_to_halve(
    couple: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, blocks: int, words: str
) -> None:
    solve = making.endpoints

    def short(*given: Any) -> Any:
        if finished(tmp_path / "store") == blocks:
            raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")
        return solve(*given)

    monkeypatch.setattr(making, "endpoints", short)
    assert words in refusal(couple(tmp_path / "store"), capsys)
    assert (tmp_path / "store").exists() == bool(blocks)


def test_interrupted_it_says_how_to_resume(
    couple: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    output = tmp_path / "new" / "store"
    write, calls = job.write_block, []

    def interrupt(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) in (1, 4):
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(job, "write_block", interrupt)
    assert main(couple(output)) == 130
    said = capsys.readouterr().err
    assert said == "chordflow couple: interrupted; no block was made yet, so start again.\n"
    assert not (tmp_path / "new").exists()
    assert main(couple(output)) == 130
    said = capsys.readouterr().err
    assert (
        f"2 of 6 blocks are made; resume with: chordflow couple --resume=true --config_path={output}" in said
    )
    assert main(["couple", "--resume=true", f"--config_path={output}/manifest.json"]) == 0
    assert finished(output) == 6


def wait_for_blocks(folder: Path, count: int, process: BaseProcess) -> None:
    deadline = time.monotonic() + 240
    while len(list(folder.glob("block-*"))) < count:
        assert process.exitcode is None
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_frame_that_cannot_be_read_leaves_whole_blocks_and_true_advice(
    couple: Command, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, reads = LeRobotDataset.__getitem__, itertools.count()

    def broken(self: LeRobotDataset, index: int) -> dict[str, Any]:
        if next(reads) == 9:
            raise OSError("cut")
        return read(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(LeRobotDataset, "__getitem__", broken)
        said = refusal(couple(tmp_path / "s"), capsys)
    assert "cannot be read (OSError: cut); repair the file or drop the episode" in said
    assert (
        "A store without the episode is another one, in a new folder; of this one, 2 of 6 blocks are made"
        in said
    )
    assert main(shlex.split(said.partition("resume with: chordflow ")[2])) == 0
    assert finished(tmp_path / "s") == 6


@pytest.mark.parametrize("moments", [(3,), pytest.param((1, 10, 20), marks=pytest.mark.slow)])
def test_killed_at_any_moment_whole_blocks_stand(
    couple: Command, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, moments: tuple[int, ...],
) -> None:  # fmt: skip
    """A second job is refused as long as the first one lives, and goes on with what it has left."""
    whole, output = tmp_path / "whole", tmp_path / "out"
    more = ("--num_observations=96", "--num_workers=1")
    resume = ["couple", "--resume=true", f"--config_path={output}/manifest.json"]
    for blocks in moments:
        with forked(couple(output, *more, "--resume=true")) as process:
            wait_for_blocks(output, blocks, process)
            assert process.pid is not None
            os.killpg(process.pid, signal.SIGSTOP)
            with monkeypatch.context() as patch:
                patch.setattr(disk, "LET_GO_S", 0.0)
                assert "another process is making this store" in refusal(resume, capsys)
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
            assert process.exitcode == -signal.SIGKILL
    assert main(resume) == 0
    assert main(couple(whole, *more)) == 0
    for number in range(24):
        assert (output / shard_name(number)).read_bytes() == (whole / shard_name(number)).read_bytes()
