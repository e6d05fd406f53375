"""Training from a store that `chordflow couple` made: the same numbers, and no store that does not belong."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import chordflow.couplings.making as making
from broken_statistics import BEFORE, edit_statistics
from builders import build_checkpoint, build_dataset, edit_column
from builders import parse_reflow as parse
from chordflow.cli.main import main
from chordflow.couplings.store import shard_name
from coupling_stores import command
from coupling_stores import couple as couple
from coupling_stores import stores as stores
from small_runs import Capture, changed, cut_back, edit_json, options, refusal, student_of, weights

# What `options` of the main job has besides, and a store answers for.
FROM_STORE = (
    "--teacher.path",
    "--dataset.",
    "--coupling.",
    "--buffer.noises",
    "--buffer.block_size",
    "--seed",
)


def train_from(store: Path, output: Path, *more: str) -> list[str]:
    """A training whose every setting that a store answers for is left out."""
    chosen = options(Path("unused"), Path("unused"), output, "--steps=4", "--batch_size=8", *more)
    kept = [option for option in chosen if not option.startswith(FROM_STORE) or option in more]
    return [*kept, f"--couplings.path={store}"]


@pytest.fixture(scope="module")
def on_the_fly(checkpoint: Path, dataset_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that asks its teacher."""
    output = tmp_path_factory.mktemp("fly") / "out"
    more = ("--steps=4", "--buffer.noises_per_observation=3", "--log_freq=1")
    assert main(options(checkpoint, dataset_root, output, *more)) == 0
    return output


def assert_same_students(*runs: Path) -> None:
    a, b = (load_file(student_of(run) / "model.safetensors") for run in runs)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("context", [False, True])
def test_training_from_a_store_ends_in_the_bits_of_training_on_the_fly(
    stores: dict[bool, Path], on_the_fly: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture,
    context: bool,
) -> None:  # fmt: skip
    def refuse(*arguments: object) -> None:
        raise AssertionError("the teacher was asked for endpoints")

    monkeypatch.setattr(making, "endpoints", refuse)
    assert main(train_from(stores[context], tmp_path / "out", "--log_freq=1")) == 0
    said = capsys.readouterr().out
    assert ("24 observations with their contexts" in said) == context
    assert "so each block is used" not in said
    losses = [
        [(line["loss"], line["grad_norm"]) for line in map(json.loads, (run / "metrics.jsonl").open())]
        for run in (on_the_fly, tmp_path / "out")
    ]
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]
    assert_same_students(on_the_fly, tmp_path / "out")
    told = json.loads((student_of(tmp_path / "out") / "reflow_config.json").read_text(encoding="utf-8"))
    assert told["couplings"] == {"path": str(stores[context].resolve()), "num_observations": 24}


def test_contexts_that_hold_blank_cameras_are_refused(
    stores: dict[bool, Path], vlm: Path, dataset_root: Path, tmp_path: Path, capsys: Capture
) -> None:
    teacher, store = build_checkpoint(tmp_path / "teacher", vlm, empty_cameras=1), tmp_path / "store"
    couple = command(teacher, dataset_root, store, "--store_context=true")
    assert main(couple) == 0
    # A look at its size comes after that at its contexts.
    assert "the store holds 24" in refusal(
        train_from(store, tmp_path / "new", "--buffer.num_observations=28"), capsys
    )
    # As an older release wrote it.
    edit_json(store / "manifest.json", lambda manifest: manifest["made_with"].pop("encoding"))
    said = refusal(train_from(store, tmp_path / "new"), capsys)
    assert f"couplings.path={store}: its stored contexts are of an older chordflow" in said
    resumed = ["couple", "--resume=true", f"--config_path={store / 'manifest.json'}"]
    assert f"output_dir={store}: its stored contexts are of an older chordflow" in refusal(resumed, capsys)
    # Without blank cameras the bits are what they were.
    for plain in stores.values():
        assert "encoding" not in json.loads((plain / "manifest.json").read_text())["made_with"]


def test_a_resumed_training_finds_its_store(
    stores: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    store = Path(shutil.copytree(stores[True], tmp_path / "store"))
    outputs = tmp_path / "whole", tmp_path / "cut"
    # Relative to where one happens to be, which is somewhere else when the run is gone on with.
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        assert main(train_from(Path("store"), outputs[0], "--steps=8", "--save_freq=4")) == 0
    assert "8 steps would take 44, so each block is used 1.8 times" not in capsys.readouterr().out
    cut = cut_back(Path(shutil.copytree(*outputs, symlinks=True)), 4)
    resumed = ["reflow", "--resume=true", f"--config_path={student_of(cut)}"]
    # It has been moved, and another one has taken its place.
    moved = store.rename(tmp_path / "moved")
    missing = f"couplings.path={store}: there is no folder; the run began with one: say with --couplings.path"
    assert missing in refusal(resumed, capsys)
    shutil.copytree(stores[False], store)
    assert f"couplings.path={store}: this store was not made with the settings" in refusal(resumed, capsys)
    assert main([*resumed, f"--couplings.path={moved}"]) == 0
    assert_same_students(*outputs)
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
        "would take 36, so each block is used 1.8 times and a coupling is drawn 1 times on average"
    ) in capsys.readouterr().out
    told = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert told["couplings"]["observations"] == 20
    told = json.loads((student_of(tmp_path / "out") / "reflow_config.json").read_text(encoding="utf-8"))
    assert told["seed"] == 6


@pytest.mark.parametrize(("option", "message"), [
    ("coupling.num_steps=3", "coupling.num_steps=3: the couplings in {store} were made with 2; leave"),
    ("buffer.adaptive_share=0", "buffer.adaptive_share=0.0: the couplings in {store} were made with 0.5"),
    ("buffer.num_observations=28", "buffer.num_observations=28: the store holds 24; give at most"),
    ("dataset.episodes=[0,1,3,4]", "dataset.repo_id=test/tiny: its training observations are not those"),
    ("couplings.num_observations=25", "couplings.num_observations=25: give at most 24"),
    ("couplings.num_observations=0", "couplings.num_observations=0: give at least 1"),
])  # fmt: skip
def test_a_training_that_is_not_the_stores_is_refused(
    stores: dict[bool, Path], tmp_path: Path, capsys: Capture, option: str, message: str
) -> None:
    said = refusal(train_from(stores[False], tmp_path / "out", f"--{option}"), capsys)
    assert message.format(store=stores[False]) in said
    assert not (tmp_path / "out").exists()


def test_a_recipe_lies_under_what_the_store_says(stores: dict[bool, Path], tmp_path: Path) -> None:
    given = [f"--couplings.path={stores[False]}", f"--output_dir={tmp_path / 'out'}", "--recipe=one_step"]
    config, _ = parse(given)
    assert (config.buffer.noises_per_observation, config.buffer.uses_per_coupling) == (3, 3)
    assert config.method.get_choice_name(type(config.method)) == "endpoint"
    # What is typed or in a file lies over both, and is refused when the store is opened.
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"coupling": {"num_steps": 7}}))
    config, _ = parse([*given, "--buffer.noises_per_observation=5", f"--config_path={file}"])
    assert (config.buffer.noises_per_observation, config.coupling.num_steps) == (5, 7)


def test_no_store_there(tmp_path: Path, capsys: Capture) -> None:
    arguments = options(tmp_path, tmp_path, tmp_path / "out", "--couplings.num_observations=4")
    assert "give --couplings.path as well" in refusal(arguments, capsys)
    said = refusal(["reflow", "--couplings.path=nowhere", f"--output_dir={tmp_path / 'out'}"], capsys)
    assert "couplings.path=nowhere: there is no folder; make one with: chordflow couple" in said


ANOTHER = "its weights or its processors' statistics are not those that the couplings in"


@pytest.mark.parametrize(("change", "message"), [
    (weights(lambda held: held["model.action_out_proj.weight"].mul_(1.0001)), ANOTHER),
    (lambda p: edit_statistics(p, BEFORE, lambda held: held["observation.state.std"].mul_(2)), ANOTHER),
    (changed("config.json", chunk_size=12), "its chunks have 8 actions of 6 dimensions (2 real), but those of"),
])  # fmt: skip
def test_another_teacher_is_refused(
    stores: dict[bool, Path], checkpoint: Path, dataset_root: Path, tmp_path: Path, capsys: Capture, change: Any,
    message: str,
) -> None:  # fmt: skip
    teacher = Path(shutil.copytree(checkpoint, tmp_path / "teacher"))
    # A copy is the same teacher.
    again = command(teacher, dataset_root, stores[False], "--resume=true")
    assert main(again) == 0
    change(teacher)
    assert message in refusal(
        train_from(stores[False], tmp_path / "out", f"--teacher.path={teacher}"), capsys
    )
    assert f"output_dir={stores[False]}: this store was made with " in refusal(again, capsys)


def test_another_dataset_is_refused_and_a_copy_is_not(
    stores: dict[bool, Path], dataset_root: Path, tmp_path: Path, capsys: Capture
) -> None:
    copy = Path(shutil.copytree(dataset_root, tmp_path / "copy"))
    same = (f"--dataset.root={copy}", "--dataset.repo_id=me/mine", "--steps=1")
    assert main(train_from(stores[False], tmp_path / "out", *same)) == 0

    def change(states: list[list[float]]) -> list[list[float]]:
        states[1][0] += 1e-3
        return states

    edit_column(next((copy / "data").rglob("*.parquet")), "observation.state", change)
    for root in (copy, build_dataset(tmp_path / "other", length=6)):
        said = refusal(train_from(stores[False], tmp_path / "new", f"--dataset.root={root}"), capsys)
        assert (
            "dataset.repo_id=test/tiny: its training observations are not those that the couplings in" in said
        )


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
    assert "; 1 to be made" in said
    assert {path.name: path.read_bytes() for path in store.iterdir()} == good
    rewritten = {path.name for path in store.iterdir() if path.stat().st_mtime_ns != times[path.name]}
    assert rewritten == {shard_name(2), shard_name(4)}
