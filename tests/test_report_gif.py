"""The side-by-side animation has its frames, its marks and its size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from chordflow.errors import UserError
from chordflow.reporting.gif import FAILURE, MAX_BYTES, RUNNING, SUCCESS, Frame, save_side_by_side

SIDE, SCALE = 16, 3


def episode(length: int, shade: int = 60) -> list[Frame]:
    """A bright square that moves one pixel a frame, so that no two frames are equal."""
    frames = []
    for time in range(length):
        frame = np.full((SIDE, SIDE, 3), shade, np.uint8)
        frame[time // SIDE, time % SIDE] = (250, 250, 0)
        frames.append(frame)
    return frames


def noise(length: int, side: int) -> list[Frame]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(length)]


def frames_of(path: Path) -> tuple[list[np.ndarray], list[int]]:
    frames, durations = [], []
    with Image.open(path) as image:
        for index in range(image.n_frames):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")).astype(int))
            durations.append(image.info["duration"])
    return frames, durations


def cell_corner(column: int, row: int, head: int) -> tuple[int, int]:
    size = SIDE * SCALE + 8 + 8
    return head + row * size + 1, 8 + column * size + 1


def colour(frame: np.ndarray, corner: tuple[int, int]) -> tuple[int, ...]:
    return tuple(frame[corner])


def near(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return max(abs(a - b) for a, b in zip(found, wanted, strict=True)) < 12


@pytest.fixture
def written(tmp_path: Path) -> tuple[list[np.ndarray], list[int]]:
    columns = {"teacher, 10 steps": [episode(5), episode(9)], "student, 1 step": [episode(7), episode(4)]}
    outcomes = {"teacher, 10 steps": [True, False], "student, 1 step": [False, True]}
    path = save_side_by_side(columns, tmp_path / "side.gif", outcomes=outcomes, fps=10, scale=SCALE, hold_s=1)
    assert [p.name for p in tmp_path.iterdir()] == ["side.gif"]
    return frames_of(path)


def test_frames_are_those_of_the_longest_episode(written: tuple[list[np.ndarray], list[int]]) -> None:
    frames, durations = written
    assert len(frames) == 9
    assert durations == [100] * 8 + [1000]
    height, width, _ = frames[0].shape
    assert width == 8 + 2 * (SIDE * SCALE + 16)
    assert height - 2 * (SIDE * SCALE + 16) in range(15, 40)


def test_an_episode_that_is_over_keeps_its_last_frame_and_takes_its_mark(
    written: tuple[list[np.ndarray], list[int]],
) -> None:
    frames, _ = written
    head = frames[0].shape[0] - 2 * (SIDE * SCALE + 16)
    ends = {(0, 0): (4, SUCCESS), (0, 1): (8, FAILURE), (1, 0): (6, FAILURE), (1, 1): (3, SUCCESS)}
    for (column, row), (end, mark) in ends.items():
        corner = cell_corner(column, row, head)
        for time, frame in enumerate(frames):
            assert near(colour(frame, corner), mark if time >= end else RUNNING), (column, row, time)
        inside = (slice(corner[0] + 3, corner[0] + 20), slice(corner[1] + 3, corner[1] + 30))
        assert (frames[end][inside] == frames[-1][inside]).all()
        assert (frames[0][inside] != frames[end][inside]).any()


def test_pixels_stay_square_and_labels_are_drawn(written: tuple[list[np.ndarray], list[int]]) -> None:
    frames, _ = written
    head = frames[0].shape[0] - 2 * (SIDE * SCALE + 16)
    top, left = head + 4, 8 + 4
    picture = frames[2][top : top + SIDE * SCALE, left : left + SIDE * SCALE]
    bright = picture[:, :, 0] > 200
    assert bright.sum() == SCALE**2
    assert bright[:SCALE, 2 * SCALE : 3 * SCALE].all()
    for column in range(2):
        start = 8 + column * (SIDE * SCALE + 16)
        assert (frames[0][: head - 1, start : start + SIDE * SCALE] < 100).all(axis=-1).sum() > 20


def test_without_outcomes_no_mark(tmp_path: Path) -> None:
    frames, _ = frames_of(save_side_by_side({"a": [episode(3)]}, tmp_path / "a.gif", scale=SCALE))
    head = frames[0].shape[0] - (SIDE * SCALE + 16)
    assert near(colour(frames[-1], cell_corner(0, 0, head)), RUNNING)


def test_large_animations_shrink_until_they_fit(tmp_path: Path) -> None:
    columns = {"teacher": [noise(40, 64)] * 2, "student": [noise(40, 64)] * 2}
    path = save_side_by_side(columns, tmp_path / "noise.gif", scale=3)
    assert path.stat().st_size <= MAX_BYTES
    with Image.open(path) as image:
        assert image.width < 2 * 64 * 3
    small = save_side_by_side({"a": [noise(8, 32)]}, tmp_path / "small.gif", scale=4, max_bytes=12_000)
    assert small.stat().st_size <= 12_000
    with Image.open(small) as image:
        assert image.width < 4 * 32
        assert image.n_frames == 8


def test_what_cannot_fit_is_one_sentence_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"bytes of at most 500; give fewer or shorter episodes"):
        save_side_by_side({"a": [noise(8, 32)]}, tmp_path / "a.gif", scale=2, max_bytes=500)
    assert list(tmp_path.iterdir()) == []


def test_a_demo_sized_animation_is_small(tmp_path: Path) -> None:
    def scene(length: int) -> list[Frame]:
        frames = []
        for time in range(length):
            frame = np.full((64, 64, 3), 235, np.uint8)
            frame[24:40, 24:40] = (90, 90, 110)
            frame[time : time + 5, 10:15] = (200, 60, 50)
            frames.append(frame)
        return frames

    columns = {
        label: [scene(n) for n in (40, 55, 50)] for label in ("teacher, 10", "teacher, 1", "student, 1")
    }
    assert save_side_by_side(columns, tmp_path / "demo.gif").stat().st_size < 500_000


def test_any_label_is_drawn(tmp_path: Path) -> None:
    long = {"[bold]学生 | один шаг" * 5: [episode(2)], "": [episode(2)]}
    frames, _ = frames_of(save_side_by_side(long, tmp_path / "a.gif", scale=SCALE))
    head = frames[0].shape[0] - (SIDE * SCALE + 16)
    # The long label stays over its own column.
    assert (frames[0][:head, 8 + SIDE * SCALE + 16 :] > 240).all()


@pytest.mark.parametrize(
    ("columns", "changes", "message"),
    [
        ({}, {}, "same number, at least one"),
        ({"a": []}, {}, "same number, at least one"),
        ({"a": [episode(2)], "b": [episode(2), episode(2)]}, {}, r"episodes \{'a': 1, 'b': 2\}"),
        ({"a": [[]]}, {}, "an episode has no frame"),
        ({"a": [episode(1), noise(1, 8)]}, {}, "all must be uint8 of one shape"),
        ({"a": [[np.zeros((8, 8, 3))]]}, {}, "all must be uint8 of one shape"),
        ({"a": [[np.zeros((8, 8), np.uint8)]]}, {}, "all must be uint8 of one shape"),
        ({"a": [episode(2)]}, {"outcomes": {"b": [True]}}, "outcomes of 'a' must be one for each of its 1"),
        ({"a": [episode(2)]}, {"fps": 0}, "fps is 0"),
        ({"a": [episode(2)]}, {"scale": 0}, "scale 0"),
    ],
)
def test_columns_that_do_not_match_are_refused(
    columns: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        save_side_by_side(columns, tmp_path / "a.gif", **changes)
    assert list(tmp_path.iterdir()) == []
