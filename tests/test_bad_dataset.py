"""Datasets that cannot be used: one sentence, exit code 2, nothing on disk changed."""

import io
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot.datasets import utils
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from packaging.version import Version
from PIL import Image

from builders import build_dataset, edit_column
from chordflow.couplings import DatasetConfig, open_split, unreadable
from chordflow.policies import FlowPolicy
from small_runs import Break, Refuse, changed, edit_json, first, gone, half, written
from small_runs import refuse as refuse


@pytest.fixture
def data(dataset_root: Path, tmp_path: Path) -> Path:
    """A dataset that may be broken."""
    return Path(shutil.copytree(dataset_root, tmp_path / "data"))


def infinite_state(root: Path) -> None:
    def change(states: list[Any]) -> list[Any]:
        states[29][1] = float("-inf")
        return states

    edit_column(first(root, FILE), "observation.state", change)


def grey(root: Path) -> None:
    file = io.BytesIO()
    Image.new("L", (32, 32)).save(file, "PNG")
    edit_column(first(root, FILE), TOP, lambda rows: [{**row, "bytes": file.getvalue()} for row in rows])


def drop_frames(root: Path) -> None:
    file = first(root, FILE)
    pq.write_table(pq.read_table(file)[:-2], file)


INFO, FILE, TOP = "meta/info.json", "data/**/*.parquet", "observation.images.top"

BROKEN_DATASETS: dict[str, tuple[Break, str]] = {
    "no folder": (shutil.rmtree, r"dataset\.root=.*there is no such folder"),
    "no dataset": (gone(INFO), r"not a LeRobot dataset \(meta/info\.json is missing\)"),
    "info not JSON": (half(INFO), "meta folder is incomplete or broken"),
    "format 2.1": (changed(INFO, codebase_version="v2.1"),
        r"dataset\.root=.*format v2\.1, and .* reads v3\.0; convert it with: python -m "
        r"lerobot\.scripts\.convert_dataset_v21_to_v30 --repo-id=test/tiny --root=\S+ --push-to-hub=false"),
    "format 2.0": (changed(INFO, codebase_version="v2.0"), r"format v2\.0, .* converter begins at v2\.1"),
    "a later format": (written(INFO, '{"codebase_version": "v5.1"}'),
        r"format v5\.1, and .* reads v3\.0; a newer LeRobot has made it"),
    "a format that is none": (changed(INFO, codebase_version="latest"), 'version="latest", which is no format'),
    "a format without a minor": (changed(INFO, codebase_version="v4"), r'codebase_version="v4", .* such as "v3\.0"'),
    "a number as the format": (changed(INFO, codebase_version=3), "codebase_version=3, which is no format"),
    "no format": (lambda r: edit_json(r / INFO, lambda c: c.pop("codebase_version")), "codebase_version=null"),
    "more episodes than there are": (changed(INFO, total_episodes=9), "total_episodes=9, but meta/episodes lists 6"),
    "fewer episodes than there are": (changed(INFO, total_episodes=4), "total_episodes=4, but meta/episodes lists 6"),
    "cut frames": (half(FILE), "frames in .* are incomplete or broken"),
    "fewer frames than stated": (drop_frames, "holds 28 frames, but its meta folder lists 30"),
    "grey images": (grey, r"top has 1 channel\(s\) in episode \d, frame \d, but meta/info.json says \(32, 32, 3\)"),
    "a camera of one channel": (lambda r: edit_json(r / INFO, lambda c: c["features"][TOP].update(shape=[32, 32, 1])),
        r"top has shape \(32, 32, 1\), but the checkpoint looks at images of 3 channels"),
    # The last episode is held out: it would be met only after training.
    "an infinite state": (infinite_state, "observation.state is .* episode 5, frame 4"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_DATASETS)
def test_a_broken_dataset(case: str, data: Path, refuse: Refuse) -> None:
    breaks, message = BROKEN_DATASETS[case]
    breaks(data)
    said = refuse(data=data, out="new/out")
    assert re.search(message, said), said


def test_numbers_that_no_policy_looks_at_may_be_missing(data: Path, tiny_policy: FlowPolicy) -> None:
    """As where a robot's driver does not report the effort."""
    edit_json(data / INFO, lambda c: c["features"].update(
        {"observation.effort": {"dtype": "float32", "shape": [2], "names": None}}
    ))  # fmt: skip
    for file in data.glob(FILE):
        table = pq.read_table(file)
        effort = pa.array([[math.nan] * 2] * len(table), pa.list_(pa.float32()))
        pq.write_table(table.append_column("observation.effort", effort).replace_schema_metadata(), file)
    train = open_split(DatasetConfig("test/tiny", root=str(data)), tiny_policy).train
    assert train[0]["observation.effort"].isnan().all()
    assert train[0]["observation.state"].isfinite().all()


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


@pytest.mark.parametrize(("versions", "message"), [
    (["v1.0", "v2.1"], "in format v2.1, and LeRobot 0.6.1 reads v3.0; convert it with: python -m "
     "lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=my/v1.0_set --push"),
    (["v1.6", "v2.0"], "converter begins at v2.1"),
    (["v4.0", "v4.1"], "in format v4.0, and LeRobot 0.6.1 reads v3.0; a newer LeRobot has made it"),
])  # fmt: skip
def test_a_dataset_on_the_hub_in_another_format(
    versions: list[str], message: str, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(utils, "get_repo_versions", lambda *_, **__: list(map(Version, versions)))
    assert message in refuse("--dataset.repo_id=my/v1.0_set", "--dataset.root=null")


@pytest.mark.parametrize(("error", "message"), [
    (OSError("libavutil.so.58: cannot open shared object file"), "install ffmpeg, or leave the option out"),
    (ModuleNotFoundError("No module named 'torchcodec'"), "is not installed"),
])  # fmt: skip
def test_a_decoder_that_cannot_be_loaded(
    error: Exception, message: str, data: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_name: str) -> None:
        raise error

    monkeypatch.setattr(unreadable, "import_module", fail)
    edit_json(data / INFO, lambda c: c["features"]["observation.images.top"].update(dtype="video"))
    said = refuse("--dataset.video_backend=torchcodec", data=data)
    assert "dataset.video_backend=torchcodec" in said
    assert message in said


def test_an_empty_dataset(tmp_path: Path, refuse: Refuse) -> None:
    assert "empty" in refuse(data=build_dataset(tmp_path / "data", episodes=0))


@pytest.mark.parametrize(("wrong", "message"), [
    ({"cameras": ("side", "wrist")}, r"lacks the checkpoint's camera\(s\) observation.images.top; .*--rename_map="),
    ({"action_dim": 5}, r"action has shape \(5,\), but the checkpoint was trained with \(2,\)"),
])  # fmt: skip
def test_a_dataset_that_does_not_fit(
    wrong: dict[str, Any], message: str, tmp_path: Path, refuse: Refuse
) -> None:
    said = refuse(data=build_dataset(tmp_path / "data", episodes=2, **wrong))
    assert re.search(message, said), said
