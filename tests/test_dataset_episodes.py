"""Which episodes of a dataset are opened, held out and read, and what happens where one of them is broken."""

import io
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lerobot.datasets import dataset_metadata, lerobot_dataset
from PIL import Image

import chordflow.experiments.reflow as job
from builders import TASKS, build_dataset, edit_column
from chordflow.cli.main import main
from chordflow.couplings import DatasetConfig, Observations, Split, open_split
from chordflow.couplings.observations import split_episodes
from chordflow.errors import UserError
from chordflow.evaluation.measure import measure
from chordflow.evaluation.paired import MeasureConfig
from chordflow.experiments.measured import read_beforehand
from chordflow.experiments.provenance import HELD_OUT, read_record, teacher_may_have_seen
from chordflow.experiments.stored_couplings import fingerprint
from chordflow.policies.sampling import Sampler
from chordflow.policies.smolvla import SmolVLAFlowPolicy
from chordflow.results.schema import Results
from chordflow.training.checkpoints import training_step
from small_runs import Capture, Refuse, edit_json, options, refusal, student_of
from small_runs import refuse as refuse

CAMERA = "observation.images.top"
TWELVE = [f"task {number}" for number in range(12)]


@pytest.mark.parametrize(("tasks", "share", "held_out"), [
    (TASKS * 2, 0.1, [3, 4, 5]), (TASKS * 4, 0.5, [6, 9, 7, 10, 8, 11]),
    (["a"] * 20, 0.1, [18, 19]), (["a"] * 2, 0.9, [1]),
    # With one episode a task, whole tasks up to the share.
    (TWELVE, 0.5, [6, 7, 8, 9, 10, 11]), (TWELVE, 0.1, [10, 11]), (TWELVE, 0.99, list(range(1, 12))),
    (TWELVE[:2], 0.1, [1]), (["a", "a", "a", "b", "c", "d", "e"], 0.5, [1, 2, 5, 6]),
    # A task that has no like keeps its episode.
    (["a", "a", "b"], 0.9, [1]),
])  # fmt: skip
def test_what_is_held_out(tasks: Sequence[str], share: float, held_out: list[int]) -> None:
    episodes = list(range(len(tasks)))
    train, found = split_episodes(tasks, episodes, share)
    assert found == held_out
    assert sorted(train + found) == episodes


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=12), st.floats(0.001, 0.999), st.data())
def test_any_split_is_one_and_a_run_that_goes_on_keeps_it(
    tasks: list[str], share: float, data: st.DataObject
) -> None:
    episodes = list(range(len(tasks)))
    train, held_out = split_episodes(tasks, episodes, share)
    assert train
    assert held_out
    assert sorted(train + held_out) == episodes
    counts = Counter(tasks)
    only = [episode for episode in episodes if counts[tasks[episode]] == 1]
    assert len(set(only) & set(held_out)) == min(math.ceil(len(only) * share), max(len(only) - 1, 0))
    # To the order, on which the walk through observations depends.
    assert split_episodes(tasks, episodes, share, held_out) == (train, held_out)
    kept = sorted(data.draw(st.sets(st.sampled_from(episodes))))
    again = split_episodes(tasks, kept, share, held_out)
    assert (set(again[0]), set(again[1])) == (set(train) & set(kept), set(held_out) & set(kept))


@pytest.fixture(scope="module")
def of_one_each(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six episodes of six tasks, each in a file of its own."""
    return build_dataset(tmp_path_factory.mktemp("one") / "each", tasks=TWELVE, length=3, a_file_each=True)


def test_a_split_says_what_it_cannot_before_anything_is_measured(
    tiny_policy: SmolVLAFlowPolicy, of_one_each: Path
) -> None:
    for share, whole, said in (
        (0.5, 3, "; the tasks of 3 of them have no other episode; the teacher may have seen them"),
        (0.1, 1, "; too few for intervals, which are over episodes (raise --dataset.eval_split)"),
    ):
        split = open_tiny(tiny_policy, of_one_each, eval_split=share)
        assert (split.whole_tasks, len(split.held_out_episodes)) == (whole, whole)
        assert said in split.caveats


@pytest.fixture(scope="module")
def of_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six episodes of three tasks, each with a video of its own."""
    return build_dataset(tmp_path_factory.mktemp("videos") / "each", length=3, videos=True, a_file_each=True)


def file_of(root: Path, kind: str, episode: int) -> Path:
    """The file of an episode, of a dataset that has one for each."""
    pattern = f"{kind}/**/chunk-000/file-{episode:03d}.*"
    (found,) = root.glob(pattern)
    return found


def open_tiny(policy: SmolVLAFlowPolicy, root: Path, **more: Any) -> Split:
    return open_split(DatasetConfig("test/tiny", root=str(root), **more), policy)


def read(observations: Observations) -> list[dict[str, Any]]:
    return [observations[index] for index in range(len(observations))]


@pytest.mark.parametrize(("kind", "missing"), [("data", [0, 1, 5]), ("videos", [4])])
def test_some_episodes_files_are_enough(
    kind: str, missing: list[int], tiny_policy: SmolVLAFlowPolicy, of_videos: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(of_videos, tmp_path / "part"))
    for episode in missing:
        file_of(root, kind, episode).unlink()
    named = [episode for episode in (5, 3, 0, 1, 4, 2) if episode not in missing]
    part = open_tiny(tiny_policy, root, episodes=named)
    full = open_tiny(tiny_policy, of_videos)
    for ours in (part.train, part.held_out):
        same = Observations(full.train.dataset, ours.frames)
        for a, b in zip(read(ours), read(same), strict=True):
            assert a.keys() == b.keys()
            equal = (a[k].equal(b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)
            assert all(equal)
    assert {int(item["episode_index"]) for item in read(part.train) + read(part.held_out)} == set(named)
    # A store of couplings that was made on the whole dataset is still one of these observations.
    as_opened_before = replace(full, train=Observations(full.train.dataset, part.train.frames))
    assert fingerprint(part) == fingerprint(as_opened_before)
    with pytest.raises(UserError, match=rf"without episode\(s\) {missing[0]}.*\(--dataset.episodes\)"):
        open_tiny(tiny_policy, root)
    with pytest.raises(UserError, match=rf"without episode\(s\) {missing[-1]}, whose files are missing"):
        open_tiny(tiny_policy, root, episodes=[*named, missing[-1]])


def test_no_more_is_fetched_than_is_needed(
    tiny_policy: SmolVLAFlowPolicy, of_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot_download(repo_id: str, *, allow_patterns: Any = None, **_: Any) -> str:
        patterns = [allow_patterns] if isinstance(allow_patterns, str) else allow_patterns
        for file in filter(Path.is_file, of_videos.rglob("*")):
            name = file.relative_to(of_videos).as_posix()
            if any(fnmatch(name, f"{p}*" if p.endswith("/") else p) for p in patterns or ["*"]):
                (tmp_path / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, tmp_path / "cache" / name)
        return str(tmp_path / "cache")

    for module in (dataset_metadata, lerobot_dataset):
        monkeypatch.setattr(module, "snapshot_download", snapshot_download)
        monkeypatch.setattr(module, "get_safe_version", lambda _repo_id, version, **_: version)
    split = open_split(DatasetConfig("test/on-a-hub", episodes=[1, 4]), tiny_policy)
    assert (split.held_out_episodes, len(split.train)) == ([4], 3)
    names = [path.relative_to(tmp_path / "cache") for path in (tmp_path / "cache").rglob("file-*")]
    kinds = ("data/chunk-000/file-00{}.parquet", f"videos/{CAMERA}/chunk-000/file-00{{}}.mp4")
    wanted = [kind.format(episode) for kind in kinds for episode in (1, 4)]
    assert sorted(str(name) for name in names if name.parts[0] != "meta") == wanted


@pytest.mark.parametrize("verb", ["reflow", "couple"])
def test_a_timestamp_out_of_tolerance(
    verb: str, checkpoint: Path, of_videos: Path, tiny_policy: SmolVLAFlowPolicy, tmp_path: Path, capsys: Capture,
) -> None:  # fmt: skip
    root = Path(shutil.copytree(of_videos, tmp_path / "data"))
    for episode in range(3) if verb == "couple" else range(3, 6):
        edit_column(file_of(root, "data", episode), "timestamp", lambda times: [t + 0.02 for t in times])
    arguments = [verb, f"--teacher.path={checkpoint}", "--dataset.repo_id=test/tiny", f"--dataset.root={root}",
                 f"--output_dir={tmp_path / 'out'}", "--device=cpu", "--num_workers=0"]  # fmt: skip
    said = refusal(arguments, capsys)
    assert re.search(
        r"frame \d of episode \d of test/tiny in .*: the nearest frame of its video is 0\.0\d+ s away, and "
        r"tolerance_s=0\.0001; raise --tolerance_s if that is less than half a frame \(0\.05 s\)",
        said,
    ), said
    split = open_split(DatasetConfig("test/tiny", root=str(root)), tiny_policy, tolerance_s=0.03)
    assert read(split.held_out) + read(split.train)


def edit_image(root: Path, episode: int, frame: int, change: Callable[[bytes], bytes]) -> None:
    def edit(images: list[dict[str, Any]]) -> list[dict[str, Any]]:
        images[frame]["bytes"] = change(images[frame]["bytes"])
        return images

    edit_column(file_of(root, "data", episode), CAMERA, edit)


def cut_image(root: Path, episode: int, frame: int = 1) -> None:
    edit_image(root, episode, frame, lambda whole: whole[: len(whole) // 2])


def shrink_image(root: Path, episode: int) -> None:
    def shrunk(whole: bytes) -> bytes:
        small = io.BytesIO()
        Image.open(io.BytesIO(whole)).resize((16, 16)).save(small, "PNG")
        return small.getvalue()

    edit_image(root, episode, 1, shrunk)


def cut_video(root: Path) -> None:
    (file,) = root.glob("videos/**/file-*")
    file.write_bytes(file.read_bytes()[: int(0.8 * file.stat().st_size)])


BROKEN: dict[str, tuple[dict[str, bool], Callable[[Path], object], str]] = {
    "half an image": ({}, lambda root: cut_image(root, 5), r"frame 1 of episode 5 of .* cannot be read \("),
    "an image of another size": ({}, lambda root: shrink_image(root, 5), r"episodes \[3, 4, 5\].*another size"),
    # The index stands before the frames of a file with several episodes, which can be read as far as it goes.
    "a video that ends early": ({"videos": True, "a_file_each": False}, cut_video,
        r"frame \d of episode [345] of .* cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_will_be_measured_is_read_before_training(
    case: str, tmp_path: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, breaks, message = BROKEN[case]
    root = build_dataset(tmp_path / "data", length=3, **{"a_file_each": True, **kind})
    breaks(root)
    monkeypatch.setattr(job, "run_round", lambda *_, **__: pytest.fail("it trains"))
    said = refuse("--measure.num_observations=99", data=root)
    assert re.search(message, said), said
    assert "--dataset.episodes" in said
    assert "resume" not in said


def test_what_is_read_is_what_is_measured(
    tiny_policy: SmolVLAFlowPolicy, of_one_each: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    get = Observations.__getitem__
    monkeypatch.setattr(Observations, "__getitem__", lambda self, index: seen.add(index) or get(self, index))
    split = open_tiny(tiny_policy, of_one_each, eval_split=0.8)
    config = MeasureConfig(num_observations=4, num_steps=[1], latency_repeats=1, converged_noises=1)
    read_beforehand(split, config)
    beforehand = set(seen)
    measure({"teacher": Sampler(tiny_policy, 2)}, split.held_out, config)
    assert seen == beforehand
    assert len(seen) < len(split.held_out)
    # What is not measured on does no harm.
    root = Path(shutil.copytree(of_one_each, tmp_path / "data"))
    unread = next(index for index in range(len(split.held_out)) if index not in seen)
    episode, frame = divmod(split.held_out.frames[unread], 3)
    cut_image(root, episode, frame)
    read_beforehand(open_tiny(tiny_policy, root, eval_split=0.8), config)


def told(said: str) -> list[str]:
    """The command that a refusal names."""
    found = re.search(r"resume with: chordflow (reflow --resume=true --config_path=\S+)", said)
    assert found, said
    return found[1].split()


def test_a_frame_that_breaks_after_training(
    checkpoint: Path, of_one_each: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, output = Path(shutil.copytree(of_one_each, tmp_path / "data")), tmp_path / "out"
    cut_image(root, 5)
    more = ["--dataset.eval_split=0.5", "--measure.num_observations=99", "--steps=3"]
    with monkeypatch.context() as patch:
        # As if it had been whole then.
        patch.setattr(job, "read_beforehand", lambda *_: None)
        said = refusal(options(checkpoint, root, output, *more), capsys)
    assert "frame 1 of episode 5 of test/tiny" in said
    weights = student_of(output) / "model.safetensors"
    trained = weights.read_bytes()
    resume = told(said)
    # As it is, the run stops before anything is done again.
    assert "frame 1 of episode 5 of test/tiny" in refusal(resume, capsys)
    for episodes, message in (
        ("[0,1,2]", r"none of these is left to measure on, as the run holds out \[3, 4, 5\]"),
        ("[3,4]", "none of these is left to train on"),
        ("[0,1,9]", r"dataset\.episodes=\[0, 1, 9\]: give a number from 0 to 5"),
    ):
        assert re.search(message, refusal([*resume, f"--dataset.episodes={episodes}"], capsys))
    assert main([*resume, "--dataset.episodes=[0,1,2,4]"]) == 0
    results = Results.load(output / "results.json")
    # None that was trained on is measured on.
    assert (results.held_out.episodes, results.held_out.whole_tasks) == ([4], 1)
    assert results.held_out.maybe_seen_by_teacher
    assert all(row.interval is None for row in results.gaps)
    printed = " ".join(capsys.readouterr().out.split())
    caveats = "have no other episode", "the teacher may have seen", "no intervals", "too few for intervals"
    assert all(caveat in printed for caveat in caveats), printed
    assert weights.read_bytes() == trained


def test_a_frame_that_breaks_while_training(
    checkpoint: Path, of_one_each: Path, tiny_policy: SmolVLAFlowPolicy, tmp_path: Path, capsys: Capture
) -> None:
    root, output = Path(shutil.copytree(of_one_each, tmp_path / "data")), tmp_path / "out"
    # Each step makes the one block that it looks at.
    more = ["--dataset.eval_split=0.4", "--measure.num_observations=99", "--buffer.num_observations=2",
            "--buffer.block_size=2", "--batch_size=4", "--save_freq=100"]  # fmt: skip
    split = open_tiny(tiny_policy, root, eval_split=0.4)
    assert split.held_out_episodes == [3, 4, 5]
    first = [split.train.of_block(number, 2, 5) for number in range(4)]
    later = next(index for index in first[3] if index not in [i for block in first[:3] for i in block])
    episode, frame = divmod(split.train.frames[later], 3)
    cut_image(root, episode, frame)
    said = refusal(options(checkpoint, root, output, *more), capsys)
    assert f"frame {frame} of episode {episode} of test/tiny" in said
    # Nothing of what was trained is lost.
    assert training_step(output / "checkpoints" / "last") == 3
    resume = told(said)
    kept = [number for number in range(6) if number != episode]
    assert "resuming cannot change it" in refusal([*resume, "--dataset.repo_id=test/other"], capsys)
    assert main([*resume, f"--dataset.episodes={kept}"]) == 0
    student = student_of(output)
    assert read_record(student)[HELD_OUT] == [3, 4, 5]
    assert json.loads((student / "train_config.json").read_text())["dataset"]["episodes"] == kept
    # Going on again changes nothing, and cannot bring an episode back in.
    said = refusal([*resume, "--dataset.episodes=[0,1,2,3,4,5]"], capsys)
    assert re.search(r"dataset\.episodes=\[0,1,2,3,4,5\]: .* can only leave some of them out", said)
    # As a teacher it has not seen what it held out, and may have seen all else: the episode that was dropped, too.
    teacher = Path(shutil.copytree(checkpoint, tmp_path / "teacher"))
    (teacher / "train_config.json").write_text('{"dataset": {"repo_id": "test/tiny", "episodes": []}}')
    edit_json(student / "reflow_config.json", lambda record: record["teacher"].update(path=str(teacher)))
    for episodes, seen in (([3, 4, 5], False), ([episode], True)):
        assert teacher_may_have_seen(student, DatasetConfig("test/tiny"), episodes) == seen
    # A checkpoint of an older chordflow does not say what it held out.
    edit_json(student / "reflow_config.json", lambda record: record.pop(HELD_OUT))
    assert "dataset.episodes=[0,3,4]" in refusal([*resume, "--dataset.episodes=[0,3,4]"], capsys)
