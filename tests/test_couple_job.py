"""`chordflow couple`, and training from what it makes: the same numbers, and nothing that does not belong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from safetensors.torch import load_file, save_file

import chordflow.couplings.making as making
from builders import build_dataset, edit_column
from builders import parse_reflow as parse
from chordflow.cli.main import main
from chordflow.couplings import DatasetConfig
from chordflow.couplings.store import finished, shard_name
from chordflow.experiments import couple as job
from chordflow.experiments import reflow as training
from chordflow.experiments.config import CoupleConfig, SourceConfig
from chordflow.policies.smolvla import SmolVLAFlowPolicy
from chordflow.results.wording import size
from small_runs import small_disk as small_disk
from test_process import start
from test_reflow_job import options, student_of

SMALL = [
    "--num_observations=24", "--buffer.block_size=4", "--buffer.noises_per_observation=3", "--coupling.num_steps=2",
    "--batch_size=8", "--seed=5", "--num_workers=0",
]  # fmt: skip
# What `options` of the main job has besides, and a store answers for.
FROM_STORE = (
    "--teacher.path",
    "--dataset.",
    "--coupling.",
    "--buffer.noises",
    "--buffer.block_size",
    "--seed",
)

Capture = pytest.CaptureFixture[str]


def command(teacher: Path, dataset: Path, output: Path, *more: str) -> list[str]:
    """A command line; later options replace earlier ones of the same name."""
    chosen = {}
    for option in [f"--teacher.path={teacher}", "--dataset.repo_id=test/tiny", f"--dataset.root={dataset}",
                   f"--output_dir={output}", *SMALL, *more]:  # fmt: skip
        chosen[option.split("=")[0]] = option
    return ["couple", *chosen.values()]


def train_from(store: Path, output: Path, *more: str) -> list[str]:
    """A training whose every setting that a store answers for is left out."""
    chosen = options(Path("unused"), Path("unused"), output, "--steps=4", "--batch_size=8", *more)
    kept = [option for option in chosen if not option.startswith(FROM_STORE) or option in more]
    return [*kept, f"--couplings.path={store}"]


def refusal(arguments: list[str], capsys: Capture) -> str:
    """The one line that a refused command prints."""
    capsys.readouterr()
    code = main(arguments)
    said = capsys.readouterr().err
    assert code == 2, said
    assert said.count("\n") == 1, said
    assert len(said) < 700, said
    return said


@pytest.fixture(scope="module")
def stores(
    checkpoint: Path, dataset_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[bool, Path]:
    """Finished stores, without and with contexts; not to be written to."""
    place = tmp_path_factory.mktemp("stores") / "läuft 你好"
    made = {}
    for context in (False, True):
        made[context] = place / f"context={context}"
        arguments = command(
            checkpoint, dataset_root, made[context], f"--store_context={str(context).lower()}"
        )
        assert main(arguments) == 0
    return made


@pytest.fixture(scope="module")
def on_the_fly(checkpoint: Path, dataset_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that asks its teacher."""
    output = tmp_path_factory.mktemp("fly") / "out"
    more = ("--steps=4", "--buffer.noises_per_observation=3", "--log_freq=1")
    assert main(options(checkpoint, dataset_root, output, *more)) == 0
    return output


def test_the_manifest_says_what_it_was_made_with(stores: dict[bool, Path], checkpoint: Path) -> None:
    told = json.loads((stores[False] / "manifest.json").read_text(encoding="utf-8"))
    made, about = told["made_with"], told["about"]
    assert made["chunk"] == {"horizon": 8, "padded_dim": 6, "action_dim": 2}
    assert made["teacher"]["family"] == "smolvla"
    assert made["coupling"] == {"solver": "adams_bashforth", "num_steps": 2, "grid_power": 1.4}
    assert (made["seed"], made["batch_size"], made["store_context"]) == (5, 8, False)
    assert made["buffer"] == {"noises_per_observation": 3, "block_size": 4, "adaptive_share": 0.5}
    assert about["dtype"] == "float32"
    assert {"torch", "lerobot", "chordflow"} <= about["versions"].keys()
    assert about["settings"]["teacher"]["path"] == str(checkpoint.resolve())
    assert about["dataset"]["total_episodes"] == 6
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


@pytest.mark.parametrize("context", [False, True])
def test_training_from_a_store_ends_in_the_bits_of_training_on_the_fly(
    stores: dict[bool, Path],
    on_the_fly: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    context: bool,
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("the teacher was asked for endpoints")

    monkeypatch.setattr(making, "endpoints", refuse)
    read: list[int] = []
    if context:
        # As many as the template takes; the held-out ones are for measuring.
        monkeypatch.setattr(training, "read_beforehand", lambda *_: None)
        measure, frame = training.measured_students, LeRobotDataset.__getitem__
        monkeypatch.setattr(LeRobotDataset, "__getitem__", lambda self, i: read.append(i) or frame(self, i))

        def counted(*arguments: Any, **named: Any) -> Any:
            assert len(read) == 1
            return measure(*arguments, **named)

        monkeypatch.setattr(training, "measured_students", counted)
    assert main(train_from(stores[context], tmp_path / "out", "--log_freq=1")) == 0
    said = capsys.readouterr().out
    assert ("24 observations with their contexts" in said) == context
    assert "so the store is gone through" not in said
    losses = [
        [(line["loss"], line["grad_norm"]) for line in map(json.loads, (run / "metrics.jsonl").open())]
        for run in (on_the_fly, tmp_path / "out")
    ]
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]
    a, b = (load_file(student_of(run) / "model.safetensors") for run in (on_the_fly, tmp_path / "out"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    told = json.loads((student_of(tmp_path / "out") / "reflow_config.json").read_text(encoding="utf-8"))
    assert told["couplings"] == {"path": str(stores[context].resolve()), "num_observations": 24}


def test_a_resumed_training_finds_its_store(
    stores: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    store = Path(shutil.copytree(stores[True], tmp_path / "store"))
    outputs = [tmp_path / "whole", tmp_path / "cut"]
    # Relative to where one happens to be, which is somewhere else when the run is gone on with.
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        for output in outputs:
            assert main(train_from(Path("store"), output, "--steps=8", "--save_freq=4")) == 0
    assert "8 steps would take 44, so the store is gone through 1.8 times" not in capsys.readouterr().out
    cut = outputs[1] / "checkpoints"
    shutil.rmtree(cut / "000008")
    (cut / "last").unlink()
    (cut / "last").symlink_to("000004")
    resumed = [
        "reflow",
        "--resume=true",
        f"--config_path={cut / 'last' / 'pretrained_model' / 'train_config.json'}",
    ]
    # It has been moved, and another one has taken its place.
    moved = store.rename(tmp_path / "moved")
    said = refusal(resumed, capsys)
    assert (
        f"couplings.path={store}: there is no folder; the run began with one: say with --couplings.path"
        in said
    )
    shutil.copytree(stores[False], store)
    assert f"couplings.path={store}: this store was not made with the settings" in refusal(resumed, capsys)
    assert main([*resumed, f"--couplings.path={moved}"]) == 0
    a, b = (load_file(student_of(run) / "model.safetensors") for run in outputs)
    assert all(torch.equal(a[name], b[name]) for name in a)
    record = student_of(outputs[1]) / "reflow_config.json"
    told = json.loads(record.read_text(encoding="utf-8"))
    assert told["couplings"]["path"] == str(moved)
    # As an older release wrote it.
    del told["couplings_sha256"]
    record.write_text(json.dumps(told))
    assert f"move it back to {moved}, or start" in refusal([*resumed, f"--couplings.path={store}"], capsys)


def test_another_seed_and_a_prefix_of_ones_own_train_on_the_same_couplings(
    stores: dict[bool, Path], tmp_path: Path, capsys: Capture
) -> None:
    more = ("--seed=6", "--student.init=random", "--steps=9", "--couplings.num_observations=17")
    assert main(train_from(stores[True], tmp_path / "out", *more)) == 0
    # Of 17 observations whole blocks are taken; 9 steps of 8 couplings use 6 blocks of 12 up, beside 4 resident.
    assert (
        "20 observations (the student does not share the teacher's prefix, so their contexts are of no use); 9 steps "
        "would take 36, so the store is gone through 1.8 times and a coupling is used 1 times on average"
    ) in capsys.readouterr().out
    told = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert told["couplings"]["observations"] == 20
    told = json.loads((student_of(tmp_path / "out") / "reflow_config.json").read_text(encoding="utf-8"))
    assert told["seed"] == 6


# ---- What is not the store's -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("coupling.num_steps=3", "coupling.num_steps=3: the couplings in {store} were made with 2; leave"),
        ("coupling.solver=midpoint", "coupling.solver=midpoint: {made} adams_bashforth"),
        ("buffer.block_size=2", "buffer.block_size=2: {made} 4"),
        ("buffer.adaptive_share=0", "buffer.adaptive_share=0.0: {made} 0.5"),
        ("buffer.noises_per_observation=2", "buffer.noises_per_observation=2: {made} 3"),
        ("buffer.num_observations=28", "buffer.num_observations=28: the store holds 24; give at most"),
        ("dataset.episodes=[0,1,3,4]", "dataset.repo_id=test/tiny: its training observations are not those"),
        ("couplings.num_observations=25", "couplings.num_observations=25: give at most 24"),
        ("couplings.num_observations=0", "couplings.num_observations=0: give at least 1"),
        ("couplings.num_observations=x", "couplings.num_observations=x: give whole number"),
        ("couplings.paht=x", "--couplings.paht is not an option; did you mean --couplings.path"),
    ],
)
def test_a_training_that_is_not_the_stores_is_refused(
    stores: dict[bool, Path], tmp_path: Path, capsys: Capture, option: str, message: str
) -> None:
    said = refusal(train_from(stores[False], tmp_path / "out", f"--{option}"), capsys)
    store = stores[False]
    assert message.format(store=store, made=f"the couplings in {store} were made with") in said
    assert not (tmp_path / "out").exists()


def test_a_recipe_lies_under_what_the_store_says(stores: dict[bool, Path], tmp_path: Path) -> None:
    given = [f"--couplings.path={stores[False]}", f"--output_dir={tmp_path / 'out'}", "--recipe=one_step"]
    config, _ = parse(given)
    assert (config.buffer.noises_per_observation, config.buffer.uses_per_coupling) == (3, 3)
    assert config.method.get_choice_name(type(config.method)) == "endpoint"
    # What is typed lies over both, and is refused when the store is opened.
    assert parse([*given, "--buffer.noises_per_observation=5"])[0].buffer.noises_per_observation == 5


def test_settings_of_a_file_are_held_to_the_store_as_well(
    stores: dict[bool, Path], tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"couplings": {"path": str(stores[False])}, "coupling": {"num_steps": 7}}))
    said = refusal(["reflow", f"--config_path={file}", f"--output_dir={tmp_path / 'out'}"], capsys)
    assert f"coupling.num_steps=7: the couplings in {stores[False]} were made with 2" in said


def test_no_store_there(tmp_path: Path, capsys: Capture) -> None:
    arguments = options(tmp_path, tmp_path, tmp_path / "out", "--couplings.num_observations=4")
    assert "give --couplings.path as well" in refusal(arguments, capsys)
    said = refusal(["reflow", "--couplings.path=nowhere", f"--output_dir={tmp_path / 'out'}"], capsys)
    assert "couplings.path=nowhere: there is no folder; make one with: chordflow couple" in said


def changed_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "action_out" in name)
    weights[name] = weights[name] * 1.0001
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def changed_statistics(folder: Path) -> None:
    file = next(folder.glob("policy_preprocessor_step_*.safetensors"))
    save_file({name: tensor * 2 for name, tensor in load_file(file).items()}, file)


def changed_chunk(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "chunk_size": 12}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed_weights, "its weights or its processors' statistics are not those that the couplings in"),
        (changed_statistics, "its weights or its processors' statistics are not those that the couplings in"),
        (changed_chunk, "its chunks have 8 actions of 6 dimensions (2 real), but those of"),
    ],
)
def test_another_teacher_is_refused(
    stores: dict[bool, Path],
    checkpoint: Path,
    dataset_root: Path,
    tmp_path: Path,
    capsys: Capture,
    change: Callable[[Path], None],
    message: str,
) -> None:
    teacher = Path(shutil.copytree(checkpoint, tmp_path / "teacher"))
    # A copy is the same teacher.
    again = command(teacher, dataset_root, stores[False], "--resume=true")
    assert main(again) == 0
    change(teacher)
    assert message in refusal(
        train_from(stores[False], tmp_path / "out", f"--teacher.path={teacher}"), capsys
    )
    said = refusal(again, capsys)
    assert f"output_dir={stores[False]}: this store was made with " in said


def test_another_dataset_is_refused_and_a_copy_is_not(
    stores: dict[bool, Path], dataset_root: Path, tmp_path: Path, capsys: Capture
) -> None:
    other = build_dataset(tmp_path / "other", length=6)
    said = refusal(train_from(stores[False], tmp_path / "out", f"--dataset.root={other}"), capsys)
    assert "dataset.repo_id=test/tiny: its training observations are not those that the couplings in" in said
    copy = shutil.copytree(dataset_root, tmp_path / "copy")
    arguments = train_from(
        stores[False], tmp_path / "out", f"--dataset.root={copy}", "--dataset.repo_id=me/mine", "--steps=1"
    )
    assert main(arguments) == 0


def test_other_values_in_the_same_frames_are_another_dataset(
    stores: dict[bool, Path], dataset_root: Path, tmp_path: Path, capsys: Capture
) -> None:
    root = Path(shutil.copytree(dataset_root, tmp_path / "changed"))

    def change(states: list[list[float]]) -> list[list[float]]:
        states[1][0] += 1e-3
        return states

    edit_column(next((root / "data").rglob("*.parquet")), "observation.state", change)
    said = refusal(train_from(stores[False], tmp_path / "out", f"--dataset.root={root}"), capsys)
    assert "its training observations are not those" in said


def test_a_damaged_store_is_refused_and_mended_by_the_command_that_it_names(
    stores: dict[bool, Path], tmp_path: Path, capsys: Capture
) -> None:
    store = Path(shutil.copytree(stores[False], tmp_path / "ein Ordner"))
    good = {path.name: path.read_bytes() for path in store.iterdir()}
    times = {path.name: path.stat().st_mtime_ns for path in store.iterdir()}
    path = store / shard_name(4)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (store / shard_name(2)).unlink()
    resume = f"chordflow couple --resume=true --config_path='{store}/manifest.json'\n"
    said = refusal(train_from(store, tmp_path / "out"), capsys)
    assert f"{shard_name(2)} is missing" in said
    assert said.endswith(resume)
    assert main(["couple", "--resume=true", f"--config_path={store}/manifest.json"]) == 0
    said = capsys.readouterr().out
    assert "Block 4 is damaged (its checksum is another): it is made anew" in said
    assert "1 blocks are to be made" in said
    assert {path.name: path.read_bytes() for path in store.iterdir()} == good
    rewritten = {path.name for path in store.iterdir() if path.stat().st_mtime_ns != times[path.name]}
    assert rewritten == {shard_name(2), shard_name(4)}


# ---- Making one ------------------------------------------------------------------------------------------


def test_a_store_that_is_there_is_not_written_to_unasked(
    stores: dict[bool, Path], checkpoint: Path, dataset_root: Path, tmp_path: Path, capsys: Capture
) -> None:
    said = refusal(command(checkpoint, dataset_root, stores[False]), capsys)
    assert (
        f"output_dir={stores[False]} holds a store already; name a new folder, or resume with: chordflow"
        in said
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    said = refusal(command(checkpoint, dataset_root, tmp_path / "mine"), capsys)
    assert "holds other files (notes) and no coupling store" in said
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("num_observations=0", "num_observations=0: give at least 1"),
        ("batch_size=0", "batch_size=0: give at least 1"),
        ("num_workers=-1", "num_workers=-1: give 0 or more"),
        ("buffer.block_size=0", "buffer.block_size=0: give at least 1"),
        ("buffer.noises_per_observation=0", "buffer.noises_per_observation=0: give at least 1"),
        ("coupling.solver=rk9", "coupling.solver=rk9: choose"),
        ("teacher.num_inference_steps=3", "--teacher.num_inference_steps is not an option"),
    ],
)
def test_bad_options(tmp_path: Path, capsys: Capture, option: str, message: str) -> None:
    assert message in refusal(command(tmp_path, tmp_path, tmp_path / "out", f"--{option}"), capsys)


def test_resume_needs_to_know_the_store(capsys: Capture) -> None:
    assert "resume=true needs --config_path=STORE/manifest.json" in refusal(
        ["couple", "--resume=true"], capsys
    )


def test_sizes_are_told_before_anything_is_written(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    output = tmp_path / "new" / "store"
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if text.startswith("Store:"):
            assert sorted(path.name for path in output.iterdir()) == [".lock", "manifest.json"]

    monkeypatch.setattr(job, "say", say)
    assert main(command(checkpoint, dataset_root, output, "--store_context=true")) == 0
    line = next(text for text in said if text.startswith("Store:"))
    shard = load_file(output / shard_name(0))
    contexts = 6 * sum(tensor.nbytes for name, tensor in shard.items() if name.startswith("context."))
    endpoints = 6 * sum(tensor.nbytes for name, tensor in shard.items() if not name.startswith("context."))
    assert line == (
        "Store:   24 observations x 3 noises on average (2 each, 1 where endpoints spread) in 6 blocks, "
        f"{size(endpoints)} of endpoints and {size(contexts)} of contexts (bool, float32)"
    )


@pytest.mark.parametrize("context", [False, True])
def test_a_store_that_does_not_fit_is_not_begun(
    checkpoint: Path,
    dataset_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    context: bool,
) -> None:
    room = 8 * 2560 if context else 6000
    monkeypatch.setattr(job.shutil, "disk_usage", lambda path: _Usage(room))
    output = tmp_path / "new" / "store"
    said = refusal(
        command(checkpoint, dataset_root, output, f"--store_context={str(context).lower()}"), capsys
    )
    assert f"output_dir={output}: the blocks that are to be made take " in said
    assert ("leave --store_context out" in said) == context
    assert ("(to at most 8)" in said) == (not context)
    assert not (tmp_path / "new").exists()


class _Usage:
    def __init__(self, free: int) -> None:
        self.free = free


@pytest.mark.parametrize(
    ("of", "finished", "words"),
    [
        ("endpoints", 0, "while 8 couplings were solved by the teacher at a time; give --batch_size=4."),
        (
            "endpoints",
            2,
            "at a time; give --batch_size=4 for a new store in another --output_dir: the blocks of",
        ),
        ("encode", 0, "while 4 observations were encoded at a time; give --buffer.block_size=2."),
    ],
)
def test_out_of_memory_names_what_to_halve(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture,
    of: str, finished: int, words: str,
) -> None:  # fmt: skip
    write, written = job.write_block, []

    def short(*_: object) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")

    # By their names it is told what was being done.
    def endpoints(*_: object) -> None:
        short()

    one = SmolVLAFlowPolicy.encode

    # Loading a teacher tries it out with one observation.
    def encode(policy: SmolVLAFlowPolicy, batch: dict[str, Any]) -> Any:
        if len(batch["observation.state"]) > 1:
            short()
        return one(policy, batch)

    def then_short(*given: Any) -> None:
        write(*given)
        written.append(given)
        if len(written) == finished:
            monkeypatch.setattr(making, "endpoints", endpoints)

    monkeypatch.setattr(job, "write_block", then_short)
    if of == "encode":
        monkeypatch.setattr(SmolVLAFlowPolicy, "encode", encode)
    elif not finished:
        monkeypatch.setattr(making, "endpoints", endpoints)
    output = tmp_path / "store"
    assert words in refusal(command(checkpoint, dataset_root, output), capsys)
    assert output.exists() == bool(finished)


def test_a_disk_that_fills_up(
    checkpoint: Path,
    dataset_root: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    small_disk: Callable[[int], Path],
) -> None:
    """As when something else writes there too: the room that was seen at first is gone later."""
    output = small_disk(24) / "store"
    monkeypatch.setattr(job.shutil, "disk_usage", lambda path: _Usage(10**9))
    said = refusal(command(checkpoint, dataset_root, output), capsys)
    assert "cannot be written (No space left on device)" in said
    done = finished(output)
    assert 0 < done < 6
    assert f"{done} of 6 blocks are made; resume with: chordflow couple" in said
    names = [".lock", "manifest.json", *(shard_name(number) for number in range(done))]
    assert sorted(path.name for path in output.iterdir()) == sorted(names)


def test_interrupted_it_says_how_to_go_on(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    output = tmp_path / "new" / "store"
    write, calls = job.write_block, []

    def interrupt(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) in (1, 4):
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(job, "write_block", interrupt)
    assert main(command(checkpoint, dataset_root, output)) == 130
    assert capsys.readouterr().err == (
        "chordflow couple: interrupted; no block was made yet, so start again.\n"
    )
    assert not (tmp_path / "new").exists()
    assert main(command(checkpoint, dataset_root, output)) == 130
    assert f"2 of 6 blocks are made; resume with: chordflow couple --resume=true --config_path={output}" in (
        capsys.readouterr().err
    )
    assert main(["couple", "--resume=true", f"--config_path={output}/manifest.json"]) == 0
    assert finished(output) == 6


def wait_for_blocks(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while len(list(folder.glob("block-*"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("moments", [(3,), pytest.param((1, 10, 20), marks=pytest.mark.slow)])
def test_killed_at_any_moment_whole_blocks_stand(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, capsys: Capture, moments: tuple[int, ...]
) -> None:
    """A second job is refused as long as the first one lives, and goes on with what it has left."""
    whole, output = tmp_path / "whole", tmp_path / "out"
    more = ("--num_observations=160", "--num_workers=1")
    resume = ["couple", "--resume=true", f"--config_path={output}/manifest.json"]
    for blocks in moments:
        process = start(command(checkpoint, dataset_root, output, *more, "--resume=true"))
        try:
            wait_for_blocks(output, blocks, process)
            os.killpg(process.pid, signal.SIGSTOP)
            assert "another process is making this store" in refusal(resume, capsys)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert main(resume) == 0
    assert main(command(checkpoint, dataset_root, whole, *more)) == 0
    for number in range(40):
        assert (output / shard_name(number)).read_bytes() == (whole / shard_name(number)).read_bytes()


@pytest.mark.slow
def test_under_torchrun_the_first_process_talks_and_all_make_one_store(
    stores: dict[bool, Path], checkpoint: Path, dataset_root: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "chordflow"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}

    def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *launcher, *arguments],
            env=environment, capture_output=True, text=True, timeout=400, check=False,
        )  # fmt: skip

    done = launch(*command(checkpoint, dataset_root, output))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Teacher:") == done.stdout.count("Done in") == 1
    for number in range(6):
        assert (output / shard_name(number)).read_bytes() == (stores[False] / shard_name(number)).read_bytes()
    # The second time it is refused, once, and by all.
    again = launch(*command(checkpoint, dataset_root, output))
    assert again.returncode != 0
    assert again.stderr.count("holds a store already") == 1
