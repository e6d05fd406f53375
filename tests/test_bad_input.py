"""Input that cannot be used: one sentence, exit code 2, nothing half-written, nothing lost."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from safetensors.torch import load_file, save_file

from builders import build_checkpoint, build_dataset
from chordflow.cli.main import main
from test_reflow_job import options, student_of

Capture = pytest.CaptureFixture[str]
Refuse = Callable[..., str]


def contents(folder: Path) -> dict[str, bytes | str]:
    """Everything below a folder, by relative path."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = path.read_bytes() if path.is_file() else "folder"
    return found


def refusal(arguments: list[str], capsys: Capture) -> str:
    """The one line that a refused command prints."""
    capsys.readouterr()
    code = main(arguments)
    said = capsys.readouterr().err
    assert code == 2, said
    assert said.startswith(f"chordflow {arguments[0]}: ")
    assert said.endswith("\n")
    assert said.count("\n") == 1, said
    assert "Traceback" not in said
    assert len(said) < 700, said
    return said


def refused(arguments: list[str], capsys: Capture, tmp_path: Path) -> str:
    """The same, making sure that nothing on disk has changed."""
    before = contents(tmp_path)
    said = refusal(arguments, capsys)
    assert contents(tmp_path) == before
    return said


@pytest.fixture
def refuse(checkpoint: Path, dataset_root: Path, tmp_path: Path, capsys: Capture) -> Refuse:
    """Runs `reflow` with another teacher, another dataset or more options; gives the line that it is refused with."""

    def run(*more: str, teacher: Any = checkpoint, data: Path = dataset_root, out: str = "out") -> str:
        return refused(options(teacher, data, tmp_path / out, *more), capsys, tmp_path)

    return run


@pytest.fixture(scope="module")
def finished(
    checkpoint: Path, dataset_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A finished run in a folder of its own, beside its teacher; not to be written to."""
    place = tmp_path_factory.mktemp("finished") / "läuft 你好"
    teacher = Path(shutil.copytree(checkpoint, place / "teacher"))
    assert main(options(teacher, dataset_root, place / "out", "--ema.enable=true")) == 0
    return teacher, place / "out"


# ---- The checkpoint --------------------------------------------------------------------------------------


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that may be broken."""
    return Path(shutil.copytree(checkpoint, tmp_path / "teacher"))


def edit_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def rename_keys(folder: Path, rename: Callable[[str], str]) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({rename(key): tensor for key, tensor in tensors.items()}, folder / "model.safetensors")


def first(folder: Path, pattern: str) -> Path:
    return next(iter(sorted(folder.glob(pattern))))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


OUT_PROJECTION = "model.action_out_proj.weight"
PRE, POST, WEIGHTS = "policy_preprocessor.json", "policy_postprocessor.json", "model.safetensors"

Break = Callable[[Path], object]


def gone(pattern: str) -> Break:
    return lambda p: first(p, pattern).unlink()


def half(pattern: str) -> Break:
    return lambda p: cut(first(p, pattern))


def written(name: str, content: str | bytes) -> Break:
    return lambda p: (p / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def changed(name: str, **changes: Any) -> Break:
    return lambda p: edit_json(p / name, lambda c: c.update(changes))


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Break:
    return lambda p: edit_weights(p, change)


def keys(rename: Callable[[str], str]) -> Break:
    return lambda p: rename_keys(p, rename)


def other_steps(change: Callable[[list[dict[str, Any]]], object]) -> Break:
    return lambda p: edit_json(p / PRE, lambda c: change(c["steps"]))


OLDER = "LeRobot 0\\.6\\.1 does not know"
WRAPPED = "has the keys of a wrapped policy: without"
UNFIT = r"does not fit config\.json"

BROKEN_CHECKPOINTS: dict[str, tuple[Break, str]] = {
    "no config": (gone("config.json"), r"the file config\.json is missing"),
    "no weights": (gone(WEIGHTS), r"the file model\.safetensors is missing"),
    "no preprocessor": (gone(PRE), r"policy_preprocessor\.json is missing.*migrate_policy_normalization"),
    "no postprocessor": (gone(POST), r"policy_postprocessor\.json is missing"),
    "no statistics of observations": (
        gone("policy_preprocessor_*.safetensors"),
        r"cannot load the processors.*check that policy_preprocessor\.json",
    ),
    "no statistics of actions": (gone("policy_postprocessor_*.safetensors"), "cannot load the processors"),
    "cut statistics": (half("policy_preprocessor_*.safetensors"), "cannot load the processors"),
    "preprocessor not JSON": (half(PRE), r"policy_preprocessor\.json is not valid JSON"),
    "postprocessor not JSON": (half(POST), "cannot load the processors"),
    "a step nobody knows": (
        other_steps(lambda steps: steps[0].update(registry_name="nobody_knows_this")),
        "cannot load the processors.*nobody_knows_this",
    ),
    "steps are no list": (changed(PRE, steps="none"), "cannot load the processors"),
    "cut weights": (half(WEIGHTS), r"model\.safetensors is cut or broken"),
    "empty weights": (written(WEIGHTS, b""), r"model\.safetensors is cut or broken"),
    "garbage weights": (written(WEIGHTS, os.urandom(5000)), r"model\.safetensors is cut or broken"),
    "weights without tensors": (lambda p: save_file({}, p / WEIGHTS), "holds no tensors"),
    "weights of wrong shapes": (
        weights(lambda t: t.update({OUT_PROJECTION: torch.zeros(3, 3)})),
        rf"{UNFIT}.*{OUT_PROJECTION}",
    ),
    "a missing key": (weights(lambda t: t.pop(OUT_PROJECTION)), rf"{UNFIT}.*{OUT_PROJECTION}"),
    "an unexpected key": (
        weights(lambda t: t.update({"model.more": torch.zeros(1)})),
        rf"{UNFIT}.*model\.more",
    ),
    "weights that are not finite": (
        weights(lambda t: t[OUT_PROJECTION].fill_(float("nan"))),
        r"end in NaN or infinite actions.*model\.safetensors",
    ),
    "config not JSON": (half("config.json"), r"config\.json is not valid JSON"),
    "config is a list": (written("config.json", "[]"), r"config\.json is not a JSON object"),
    "config not text": (written("config.json", b"\xff\xfe\x00"), r"config\.json is not valid JSON"),
    "config without a type": (
        lambda p: edit_json(p / "config.json", lambda c: c.pop("type")),
        r"config\.json names no policy type",
    ),
    "a type nobody knows": (
        changed("config.json", type="dreamer9"),
        f"'dreamer9', which {OLDER}: it is of an older or newer LeRobot.*smolvla",
    ),
    "a field of a newer LeRobot": (
        changed("config.json", invented_in_2027=True),
        rf"fields that {OLDER} \(invented_in_2027\): it was saved by an older or newer LeRobot",
    ),
    "fields of an older LeRobot": (
        changed("config.json", adapt_to_pi_aloha_v0=False, use_cache_v0=True),
        rf"{OLDER} \(adapt_to_pi_aloha_v0, use_cache_v0\): .* by an older or newer LeRobot",
    ),
    "a model of transformers'": (
        written("config.json", '{"model_type": "smolvlm"}'),
        r"config\.json names no policy type; .*transformers.* \(model_type=smolvlm\): give a policy that LeRobot",
    ),
    "keys of a compiled policy": (
        keys(lambda key: f"_orig_mod.{key}"),
        rf"{WRAPPED} '_orig_mod\.' in '_orig_mod\.model",
    ),
    "keys of a policy under DDP": (keys(lambda key: f"module.{key}"), rf"{WRAPPED} 'module\.'"),
    "keys of both": (keys(lambda key: f"module._orig_mod.{key}"), rf"{WRAPPED} 'module\._orig_mod\.'"),
    "keys of a compiled part": (
        keys(lambda key: key.replace("lm_expert.", "lm_expert._orig_mod.")),
        rf"{WRAPPED} '_orig_mod\.' in 'model\..*lm_expert\._orig_mod\.",
    ),
    "keys of a PEFT model": (
        keys(lambda key: f"base_model.model.{key}"),
        rf"{WRAPPED} 'base_model\.model\.'",
    ),
    "keys of another policy": (
        keys(lambda key: f"{key}.more"),
        rf"{UNFIT}: it holds 'model\..*\.more' and \d+ more, which this policy does not have",
    ),
    "a value of the wrong kind": (
        changed("config.json", chunk_size="many"),
        r"config\.json is not a config that LeRobot 0\.6\.1 can read.*chunk_size",
    ),
    "values that do not go together": (
        changed("config.json", n_action_steps=99),
        r"config\.json is not a config that LeRobot 0\.6\.1 can read",
    ),
    "a language model that has moved": (
        changed("config.json", vlm_model_name="/moved/vlm"),
        r"vlm_model_name=/moved/vlm in config\.json does not exist; run: chordflow relocate",
    ),
    "a tokenizer that has moved": (
        other_steps(
            lambda steps: [
                s["config"].update(tokenizer_name="/moved/vlm") for s in steps if "tokenizer" in str(s)
            ]
        ),
        r"tokenizer_name=/moved/vlm in policy_preprocessor\.json does not exist; run: chordflow relocate",
    ),
    "a language model on the Hub": (
        changed("config.json", vlm_model_name="nobody/has-this-vlm"),
        "vlm_model_name=nobody/has-this-vlm in config.json is neither in the local Hub cache nor on a Hub",
    ),
}


@pytest.mark.parametrize("case", BROKEN_CHECKPOINTS)
def test_a_broken_checkpoint(case: str, copy: Path, refuse: Refuse) -> None:
    breaks, message = BROKEN_CHECKPOINTS[case]
    breaks(copy)
    said = refuse(teacher=copy)
    assert re.search(message, said), said
    if "NaN" not in said:
        assert f"teacher.path={copy}" in said


def test_a_language_model_that_cannot_be_read(vlm: Path, tmp_path: Path, refuse: Refuse) -> None:
    broken = Path(shutil.copytree(vlm, tmp_path / "vlm"))
    teacher = build_checkpoint(tmp_path / "teacher", broken)
    whole = (broken / "config.json").read_text()
    for content in (whole[: len(whole) // 2], json.dumps({"model_type": "bert"}), "{}"):
        (broken / "config.json").write_text(content)
        assert f"teacher.path={teacher}" in refuse(teacher=teacher)


def test_no_checkpoint_at_all(tmp_path: Path, refuse: Refuse) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "absent", "there is no such folder"),
        (tmp_path / "file", "there is no such folder"),
        (tmp_path / "empty", "config.json is missing"),
        ("nobody/nothing", "no reachable repository"),
        ("nobody", "no reachable repository"),
        ("a/b/c", "there is no such folder"),
    ):
        said = refuse(teacher=path)
        assert f"teacher.path={path}" in said
        assert message in said


@pytest.mark.parametrize("verb", ["reflow", "couple"])
def test_a_student_of_one_step_as_the_teacher(
    verb: str, copy: Path, dataset_root: Path, tmp_path: Path, capsys: Capture
) -> None:
    (copy / "reflow_config.json").write_text('{"step_counts": [1]}')
    data = ["--dataset.repo_id=test/tiny", f"--dataset.root={dataset_root}"]
    given = [verb, f"--teacher.path={copy}", *data, f"--output_dir={tmp_path / 'out'}"]
    assert main(given) == 2
    assert f"teacher.path={copy}: it is a student that was trained for one step" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_policy_that_is_not_a_flow(tmp_path: Path, refuse: Refuse) -> None:
    act = ACTConfig(
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (3,)),
            "observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 32, 32)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
        device="cpu",
        push_to_hub=False,
    )
    act.save_pretrained(tmp_path / "act")
    said = refuse(teacher=tmp_path / "act")
    assert "'act', which cannot be reflowed" in said
    assert "smolvla" in said


# ---- The dataset -----------------------------------------------------------------------------------------


@pytest.fixture
def data(dataset_root: Path, tmp_path: Path) -> Path:
    """A dataset that may be broken."""
    return Path(shutil.copytree(dataset_root, tmp_path / "data"))


def edit_column(root: Path, name: str, change: Callable[[list[Any]], object]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = first(root, "data/**/*.parquet")
    table = pq.read_table(file)
    column = table.column_names.index(name)
    values = table.column(column).to_pylist()
    change(values)
    field = table.schema.field(column)
    pq.write_table(table.set_column(column, field, pa.array(values, type=field.type)), file)


def state(row: int, value: float) -> Break:
    return lambda p: edit_column(p, "observation.state", lambda states: states[row].__setitem__(1, value))


def cut_image(images: list[Any]) -> None:
    images[2]["bytes"] = images[2]["bytes"][:40]


def as_v21(root: Path) -> None:
    """The files that a dataset of format 2.1 has in its meta folder."""
    for file in ("meta/tasks.parquet", "meta/stats.json"):
        (root / file).unlink()
    shutil.rmtree(root / "meta/episodes")
    for name in ("episodes", "episodes_stats", "tasks"):
        (root / "meta" / f"{name}.jsonl").write_text("{}")
    edit_json(
        root / "meta/info.json",
        lambda c: c.update(codebase_version="v2.1", total_chunks=1, total_videos=0, chunks_size=1000),
    )


def drop_frames(root: Path) -> None:
    import pyarrow.parquet as pq

    file = first(root, "data/**/*.parquet")
    pq.write_table(pq.read_table(file)[:-2], file)


INFO = "meta/info.json"
META = "meta folder is incomplete or broken"
FRAMES = "frames in .* are incomplete or broken"

BROKEN_DATASETS: dict[str, tuple[Break, str]] = {
    "no folder": (shutil.rmtree, r"dataset\.root=.*there is no such folder"),
    "no dataset": (gone(INFO), r"not a LeRobot dataset \(meta/info\.json is missing\)"),
    "info not JSON": (half(INFO), META),
    "format 2.1": (
        changed(INFO, codebase_version="v2.1"),
        r"dataset\.root=.*format v2\.1, and .* reads v3\.0; convert it with: python -m "
        r"lerobot\.scripts\.convert_dataset_v21_to_v30 --repo-id=test/tiny --root=\S+ --push-to-hub=false",
    ),
    "format 2.1 as it is on disk": (as_v21, r"format v2\.1, .*convert_dataset_v21_to_v30"),
    "format 2.0": (changed(INFO, codebase_version="v2.0"), r"format v2\.0, .* converter begins at v2\.1"),
    "a later format": (
        changed(INFO, codebase_version="v4.0"),
        r"format v4\.0, and .* reads v3\.0; a newer LeRobot has made it",
    ),
    "a later format that looks otherwise": (
        written(INFO, '{"codebase_version": "v5.1"}'),
        r"format v5\.1, .* a newer LeRobot has made it",
    ),
    "a format that is none": (changed(INFO, codebase_version="latest"), META),
    "no tasks": (gone("meta/tasks.parquet"), META),
    "cut tasks": (half("meta/tasks.parquet"), META),
    "no episodes": (lambda p: shutil.rmtree(p / "meta/episodes"), META),
    "no frames": (lambda p: shutil.rmtree(p / "data"), FRAMES),
    "cut frames": (half("data/**/*.parquet"), FRAMES),
    "fewer frames than told": (drop_frames, "holds 28 frames, but its meta folder tells of 30"),
    "a cut image": (
        lambda p: edit_column(p, "observation.images.top", cut_image),
        "frame 2 of episode 0 of test/tiny in .* cannot be read",
    ),
    "NaN in a state": (state(6, float("nan")), "observation.state is NaN .* episode 1, frame 1"),
    # The last episode is held out: it would be met only after training.
    "an infinite state": (state(29, float("-inf")), "observation.state is .* episode 5, frame 4"),
}


@pytest.mark.parametrize("case", BROKEN_DATASETS)
def test_a_broken_dataset(case: str, data: Path, refuse: Refuse) -> None:
    breaks, message = BROKEN_DATASETS[case]
    breaks(data)
    said = refuse(data=data, out="new/out")
    assert re.search(message, said), said


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_is_not_finite(workers: int, refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    read = LeRobotDataset.__getitem__

    def infinite(self: LeRobotDataset, index: int) -> dict[str, Any]:
        item = read(self, index)
        item["observation.images.top"][0, 0, 0] = float("inf") if index == 2 else 0.0
        return item

    monkeypatch.setattr(LeRobotDataset, "__getitem__", infinite)
    said = refuse(f"--num_workers={workers}")
    assert "dataset: observation.images.top is NaN or infinite in episode 0, frame 2" in said


def test_a_dataset_that_is_not_there(checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = [a for a in options(checkpoint, tmp_path, tmp_path / "out") if "dataset.root" not in a]
    arguments = [a if "repo_id" not in a else "--dataset.repo_id=nobody/nothing" for a in arguments]
    said = refused(arguments, capsys, tmp_path)
    assert "dataset.repo_id=nobody/nothing: no local dataset of that name" in said


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        (["v1.0", "v2.1"], "dataset.repo_id=my/v1.0_set: the dataset is in format v2.1, and LeRobot 0.6.1 reads v3.0; "
         "convert it with: python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=my/v1.0_set --push"),
        (["v1.6", "v2.0"], "converter begins at v2.1"),
        (["v4.0", "v4.1"], "is in format v4.0, and LeRobot 0.6.1 reads v3.0; a newer LeRobot has made it"),
    ],
)  # fmt: skip
def test_a_dataset_on_the_hub_in_another_format(
    versions: list[str], message: str, checkpoint: Path, tmp_path: Path, capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from lerobot.datasets import utils
    from packaging.version import Version

    monkeypatch.setattr(
        utils, "get_repo_versions", lambda *_, **__: [Version(version) for version in versions]
    )
    arguments = [a for a in options(checkpoint, tmp_path, tmp_path / "out") if "dataset." not in a]
    said = refused([*arguments, "--dataset.repo_id=my/v1.0_set"], capsys, tmp_path)
    assert message in said


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("Could not load libtorchcodec"), "install ffmpeg, or leave the option out"),
        (
            OSError("libavutil.so.58: cannot open shared object file"),
            "install ffmpeg, or leave the option out",
        ),
        (ModuleNotFoundError("No module named 'torchcodec'"), "is not installed"),
    ],
)
def test_a_decoder_that_cannot_be_loaded(
    error: Exception, message: str, data: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chordflow.couplings import unreadable

    def fail(_name: str) -> None:
        raise error

    monkeypatch.setattr(unreadable, "import_module", fail)
    edit_json(
        data / "meta/info.json", lambda c: c["features"]["observation.images.top"].update(dtype="video")
    )
    said = refuse("--dataset.video_backend=torchcodec", data=data)
    assert "dataset.video_backend=torchcodec" in said
    assert message in said


def test_an_empty_dataset(tmp_path: Path, refuse: Refuse) -> None:
    assert "empty" in refuse(data=build_dataset(tmp_path / "data", episodes=0))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"cameras": ("side", "wrist")},
            r"lacks the checkpoint's camera\(s\) observation.images.top; .*--rename_map=",
        ),
        ({"cameras": ()}, r"lacks the checkpoint's camera\(s\) observation.images.top; it has none"),
        ({"state_dim": 7}, r"observation.state has shape \(7,\), but the checkpoint was trained with \(3,\)"),
        ({"action_dim": 5}, r"action has shape \(5,\), but the checkpoint was trained with \(2,\)"),
    ],
)
def test_a_dataset_that_does_not_fit(
    wrong: dict[str, Any], message: str, tmp_path: Path, refuse: Refuse
) -> None:
    said = refuse(data=build_dataset(tmp_path / "data", episodes=2, **wrong))
    assert re.search(message, said), said


def test_a_camera_of_another_name_and_rename_maps_that_do_not_fit(
    vlm: Path, tmp_path: Path, refuse: Refuse
) -> None:
    teacher = build_checkpoint(tmp_path / "teacher", vlm, cameras=("top", "wrist"))
    other = build_dataset(tmp_path / "other", cameras=("top", "hand"))
    # SmolVLA can do without a camera, but a strange one beside it is more likely the same by another name.
    assert "camera(s) observation.images.wrist" in refuse(teacher=teacher, data=other)
    for wrong, message in (
        (
            '{"observation.images.hand": "observation.images.nowhere"}',
            "the checkpoint has no 'observation.images.nowhere'",
        ),
        (
            '{"observation.images.absent": "observation.images.wrist"}',
            "rename_map names 'observation.images.absent'",
        ),
        ('{"observation.images.hand": "observation.images.top"}', "has a 'observation.images.top' already"),
        ("[1]", "rename_map="),
    ):
        assert message in refuse(f"--rename_map={wrong}", teacher=teacher, data=other)


# ---- Options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps=0"], "steps=0: give at least 1"),
        (["--batch_size=0"], "batch_size=0: give at least 1"),
        (["--batch_size=1000"], "batch_size=1000 is larger than the buffer's 32 couplings"),
        (
            ["--buffer.uses_per_coupling=0"],
            "buffer.uses_per_coupling=0: give at least 1, or null for couplings that are never replaced",
        ),
        (["--num_inference_steps=0"], "num_inference_steps=0: give at least 1"),
        (["--teacher.num_inference_steps=0"], "teacher.num_inference_steps=0: give at least 1"),
        (["--steps=1.5"], "steps=1.5"),
        (["--nonsense=1"], "--nonsense is not an option"),
        (["--optimizer.lr=0"], "optimizer.lr=0"),
        (["--optimizer.betas=[0.9,1.0]"], "optimizer.betas=[0.9, 1.0]"),
        (["--optimizer.betas=[0.9]"], "optimizer.betas"),
        (["--optimizer.eps=-1"], "optimizer.eps=-1"),
        (["--optimizer.weight_decay=-1"], "optimizer.weight_decay=-1"),
        (["--scheduler.num_warmup_steps=-1"], "scheduler.num_warmup_steps=-1"),
        (["--ema.enable=true", "--ema.decay=1"], "ema.decay=1"),
        (["--device=cuda:99"], "device=cuda:99 is not available here"),
        (["--device=toaster"], "device=toaster is not available here"),
        (["--dataset.episodes=[0,99]"], "from 0 to 5"),
        (["--dataset.episodes=[0,1,1]"], "each once"),
        (["--dataset.episodes=[]"], "give at least one"),
        (["--resume=perhaps"], "resume=perhaps: give true or false"),
        (["--resume=yes"], "resume=true needs --config_path"),
        (["--resume=true"], "resume=true needs --config_path"),
        (["--config_path=/absent.json"], "config_path=/absent.json cannot be read"),
    ],
)
def test_options_that_cannot_be_used(more: list[str], message: str, refuse: Refuse) -> None:
    assert message in refuse(*more)


def test_a_config_file_that_is_none_of_ours(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, capsys: Capture
) -> None:
    for name, content, message in (
        ("stock.json", json.dumps({"dataset": {"repo_id": "a/b"}, "policy": {"type": "smolvla"}}), "policy"),
        ("list.json", "[1, 2]", "holds no settings"),
        ("broken.json", '{"steps": ', "neither JSON nor YAML"),
        ("wrong.yaml", "steps: [a, b]", "steps="),
    ):
        (tmp_path / name).write_text(content)
        arguments = options(checkpoint, dataset_root, tmp_path / "out", f"--config_path={tmp_path / name}")
        arguments = [a for a in arguments if not a.startswith("--steps")]
        said = refused(arguments, capsys, tmp_path)
        print(said)
        assert message in said


# ---- The output folder -----------------------------------------------------------------------------------


def test_an_existing_output_folder_is_left_alone(tmp_path: Path, refuse: Refuse) -> None:
    (tmp_path / "out").mkdir()
    said = refuse()
    assert f"output_dir={tmp_path / 'out'} exists already; name a new folder" in said
    assert "resume" not in said
    (tmp_path / "file").write_text("precious")
    assert f"output_dir={tmp_path / 'file'} exists already" in refuse(out="file")
    assert "cannot be made (Not a directory)" in refuse(out="file/out")


def test_a_place_that_cannot_be_written_to(
    tmp_path: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Path.mkdir

    def read_only(self: Path, *arguments: Any, **named: Any) -> None:
        if self.is_relative_to(tmp_path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        make(self, *arguments, **named)

    monkeypatch.setattr(Path, "mkdir", read_only)
    said = refuse(out="new/out")
    assert f"output_dir={tmp_path / 'new/out'} cannot be made (Read-only file system)" in said


GIVEN = ["reflow", "--teacher.path=x", "--dataset.repo_id=a/b", "--output_dir=absent"]


def refused_allocation(count: int) -> BaseException:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(count)
    return caught.value


def test_what_the_machine_refuses_anywhere_is_one_line(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import chordflow.cli.reflow as verb

    def fail_with(error: BaseException) -> None:
        def run(arguments: list[str]) -> None:
            raise error

        monkeypatch.setattr(verb, "run", run)

    for error, message in (
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full/file"),
            "/full/file: No space left on device; make room",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            "/x: Permission denied; check the permissions",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"),
            "out of memory (CUDA out of memory.)",
        ),
        (MemoryError(), "out of memory; lower --batch_size"),
        (refused_allocation(1 << 50), "you tried to allocate 4503599627370496 bytes."),
        (refused_allocation(1 << 62), "out of memory (Storage size calculation overflowed"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), "out of memory (MPS backend"),
    ):
        fail_with(error)
        assert message in refusal(GIVEN, capsys)
    # A fault of chordflow's own is not the user's: it keeps its traceback.
    for fault in (
        RuntimeError("a bug"),
        FileNotFoundError(errno.ENOENT, "No such file", "/x"),
        KeyError("x"),
    ):
        fail_with(fault)
        with pytest.raises(type(fault)):
            main(GIVEN)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes real file systems of a given size in KiB; skips where that is not allowed."""
    mounted: list[Path] = []

    def mount(kibibytes: int) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "none", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, check=False)
        except OSError:
            pytest.skip("no mount here")
        if done.returncode:
            pytest.skip("mounting is not allowed here")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(
    checkpoint: Path,
    dataset_root: Path,
    finished: tuple[Path, Path],
    capsys: Capture,
    small_disk: Callable[[int], Path],
) -> None:
    """Rooms that end in the first checkpoint, in the second, and in the results."""

    def size(folder: Path) -> int:
        """In KiB as a file system of 4 KiB pages sees it."""
        return sum(-(-path.stat().st_size // 4096) * 4 for path in folder.rglob("*") if path.is_file())

    one, whole = size(finished[1] / "checkpoints" / "000003"), size(finished[1] / "checkpoints")
    for kibibytes, left, message in (
        (4, [], "no checkpoint was written yet"),
        (one // 2, [], "no checkpoint was written yet"),
        (one + one // 2, ["000003", "last"], "000003; make room"),
        (whole + 8, ["000003", "000006", "last"], "the checkpoints are whole: make room and resume with"),
    ):
        disk = small_disk(kibibytes)
        output = disk / "out"
        said = refusal(options(checkpoint, dataset_root, output, "--ema.enable=true"), capsys)
        assert message in said
        assert "No space left on device" in said
        if left:
            assert sorted(path.name for path in (output / "checkpoints").iterdir()) == left
            assert sorted(path.name for path in output.iterdir()) == ["checkpoints", "metrics.jsonl"]
            SmolVLAPolicy.from_pretrained(student_of(output))
        elif output.exists():
            assert [path.name for path in output.iterdir()] == ["metrics.jsonl"]


def fail_writing(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """Lets a file of this name fail as on a full disk, once it is opened for writing."""
    opened = Path.open

    def full(self: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if target in self.name and mode[0] in "wa":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return opened(self, mode, *arguments, **named)

    monkeypatch.setattr(Path, "open", full)


@pytest.mark.pictures
def test_a_disk_that_is_full_when_results_are_saved_can_be_resumed(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, capsys: Capture
) -> None:
    output = tmp_path / "out"
    for target, message in (
        ("metrics.jsonl", "no checkpoint was written yet"),
        (
            "results.json",
            "the checkpoints are whole: make room and resume with: chordflow reflow --resume=true",
        ),
    ):
        with pytest.MonkeyPatch.context() as patch:
            fail_writing(patch, target)
            said = refusal(options(checkpoint, dataset_root, output), capsys)
        assert message in said
        assert "No space left on device" in said
        if target == "metrics.jsonl":
            assert not output.exists()
    assert sorted(path.name for path in output.iterdir()) == ["checkpoints", "metrics.jsonl"]
    config_path = student_of(output) / "train_config.json"
    resume = ["reflow", "--resume=true", f"--config_path={config_path}"]
    with pytest.MonkeyPatch.context() as patch:
        from chordflow import api

        save = api.save_figures

        def full(results: Any, folder: Path) -> list[Path]:
            save(results, folder)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(api, "save_figures", full)
        said = refusal(resume, capsys)
    assert "pictures cannot be written" in said
    assert sorted(path.name for path in output.iterdir()) == ["checkpoints", "metrics.jsonl", "results.json"]
    assert main(resume) == 0
    assert len(list((output / "figures").iterdir())) == 3


# ---- Resuming --------------------------------------------------------------------------------------------


STATE = "checkpoints/000003/training_state"
STUDENT = "checkpoints/000003/pretrained_model"

BROKEN_RUNS: dict[str, tuple[Break, str]] = {
    "no run": (shutil.rmtree, "there is no such file"),
    "a stock run": (gone(f"{STUDENT}/reflow_config.json"), "no reflow_config.json is beside it"),
    "settings not JSON": (half(f"{STUDENT}/reflow_config.json"), "neither JSON nor YAML"),
    "cut optimizer": (half(f"{STATE}/optimizer_state.safetensors"), "cannot be resumed"),
    "cut masters": (half(f"{STATE}/master_weights.safetensors"), "cannot be resumed"),
    "cut averages": (half(f"{STATE}/ema_weights.safetensors"), "cannot be resumed"),
    "no averages": (gone(f"{STATE}/ema_weights.safetensors"), "cannot be resumed"),
    "no generators": (gone(f"{STATE}/rng_state.safetensors"), "cannot be resumed"),
    "cut schedule": (half(f"{STATE}/scheduler_state.json"), "cannot be resumed"),
    "cut step": (half(f"{STATE}/training_step.json"), "cannot be resumed"),
    "no state": (lambda p: shutil.rmtree(p / STATE), "cannot be resumed"),
    "masters of other shapes": (
        lambda p: save_file(
            {n: torch.zeros(1) for n in load_file(p / STATE / "master_weights.safetensors")},
            p / STATE / "master_weights.safetensors",
        ),
        "cannot be resumed",
    ),
}


@pytest.mark.parametrize("case", BROKEN_RUNS)
def test_a_run_that_cannot_be_resumed(
    case: str, finished: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    breaks, message = BROKEN_RUNS[case]
    run = Path(shutil.copytree(finished[1], tmp_path / "run", symlinks=True))
    breaks(run)
    config_path = run / STUDENT / "train_config.json"
    said = refused(["reflow", "--resume=true", f"--config_path={config_path}"], capsys, tmp_path)
    print(said)
    assert message in said
    assert "config_path" in said


def test_resuming_with_another_teacher_or_fewer_steps(
    finished: tuple[Path, Path], checkpoint: Path, vlm: Path, tmp_path: Path, capsys: Capture
) -> None:
    run = Path(shutil.copytree(finished[1], tmp_path / "run", symlinks=True))
    resume = ["reflow", "--resume=true", f"--config_path={run / STUDENT / 'train_config.json'}"]
    other = build_checkpoint(tmp_path / "other", vlm, seed=9)
    said = refused([*resume, f"--teacher.path={other}"], capsys, tmp_path)
    assert f"teacher.path={other}: its weights are not those that the run began with" in said
    said = refused([*resume, "--steps=2"], capsys, tmp_path)
    assert "steps=2: the run has done 3 already" in said
    said = refused([*resume, "--student.train=[action_head,prefix_projections]"], capsys, tmp_path)
    assert "student.train=[action_head,prefix_projections]: the run began with [action_head] and" in said


# ---- Relocating ------------------------------------------------------------------------------------------


def test_relocating_what_cannot_be(checkpoint: Path, vlm: Path, tmp_path: Path, capsys: Capture) -> None:
    moved = Path(shutil.copytree(checkpoint, tmp_path / "run" / "a"))
    edit_json(moved / "config.json", lambda c: c.update(vlm_model_name="/moved/nowhere"))
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([], "the checkpoint's folder is missing"),
        (["--vlm.path=x"], "the checkpoint's folder is missing"),
        ([str(tmp_path / "absent")], "there is no such folder"),
        ([str(moved / "config.json")], "there is no such folder"),
        ([str(tmp_path / "empty")], "no checkpoint (config.json with policy_preprocessor.json)"),
        ([str(moved), f"--vlm.path={tmp_path / 'empty'}"], "vlm.path="),
        ([str(moved), f"--vlm.path={tmp_path / 'absent'}"], "vlm.path="),
        ([str(moved), "--vlm=x"], "--vlm is not an option"),
        ([str(moved), "more"], "'more' is not an option"),
    ):
        assert message in refused(["relocate", *arguments], capsys, tmp_path)
    # One broken checkpoint among several: none is rewritten.
    broken = Path(shutil.copytree(moved, tmp_path / "run" / "b"))
    (broken / "train_config.json").write_text('{"policy": ')
    said = refused(["relocate", str(tmp_path / "run"), f"--vlm.path={vlm}"], capsys, tmp_path)
    assert "train_config.json is not valid JSON" in said
    shutil.rmtree(broken)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only file system"))
        )
        said = refused(["relocate", str(moved), f"--vlm.path={vlm}"], capsys, tmp_path)
    assert "cannot be written (Read-only file system)" in said
    assert main(["relocate", str(moved), f"--vlm.path={vlm}"]) == 0


# ---- As a user sees it -----------------------------------------------------------------------------------


@pytest.fixture
def silent_hub() -> Iterator[str]:
    """A server that takes calls and never answers, as behind some firewalls."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("silent", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_real_process_says_one_line(silent: bool, silent_hub: str, tmp_path: Path) -> None:
    """With no network and no HF_HUB_OFFLINE, an unknown name is told of soon."""
    hub = silent_hub if silent else "http://127.0.0.1:9"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    command = [str(Path(sys.executable).with_name("chordflow")), "reflow", "--dataset.repo_id=a/b",
               "--teacher.path=nobody-at-all/no-such-policy", f"--output_dir={tmp_path / 'out'}"]  # fmt: skip
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=180,
        env={**environment, "OMP_NUM_THREADS": "1", "HF_ENDPOINT": hub},
    )
    assert done.returncode == 2
    # What takes long is named, on a slow machine.
    assert done.stdout in ("", "Loading PyTorch and LeRobot ...\n")
    assert done.stderr.count("\n") == 1
    assert (
        "teacher.path=nobody-at-all/no-such-policy: there is no such folder, and the Hub has no"
        in done.stderr
    )
