"""Pictures open, are large enough to read, and hold what the plots hold; clips have their frames, marks and size."""

import dataclasses
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from chordflow.errors import UserError
from chordflow.reporting import flow_plots, pictures
from chordflow.reporting.pictures import (
    FAILURE,
    RUNNING,
    SUCCESS,
    Filmed,
    drawn,
    png,
    save_clip,
    save_figures,
)
from chordflow.results.actions import TrajectoryRow
from chordflow.results.schema import Clip, LossCurve, Results
from report_samples import gap, sample


def test_three_pictures_that_open(tmp_path: Path) -> None:
    folder = tmp_path / "images été 图"
    folder.mkdir()
    before = dict(matplotlib.rcParams)
    paths = save_figures(sample(), folder)
    assert dict(matplotlib.rcParams) == before, "no global state is left behind"
    assert [p.name for p in paths] == ["trajectories.png", "gap.png", "loss.png"]
    for path in paths:
        with Image.open(path) as image:
            assert image.width >= 1000
            assert image.height >= 500
            assert image.info["dpi"][0] >= 150
            assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 20
    assert png(drawn(flow_plots.loss(sample()))) == paths[-1].read_bytes()


def test_only_what_was_measured_is_drawn(tmp_path: Path) -> None:
    nothing = sample(trajectories=[], gaps=[gap("teacher", 10, "deployed", 0.0)], loss=None)
    assert save_figures(nothing, tmp_path) == []
    assert save_figures(dataclasses.replace(nothing, loss=LossCurve([], [])), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_the_gap_picture_holds_every_euler_row_and_the_floor() -> None:
    results = sample()
    near, far = drawn(flow_plots.gaps(results)).axes
    for panel, reference in ((near, "deployed"), (far, "converged")):
        found = [(list(line.get_xdata()), list(line.get_ydata())) for line in panel.get_lines()]
        for policy in ("teacher", "student"):
            rows = [results.gap(policy, n, reference) for n in (1, 2, 4, 10)]
            # The deployed teacher's gap to itself is zero, which a logarithmic axis does not have.
            drawn_rows = [row for row in rows if row is not None and row.rms > 0]
            expected = [row.nfe for row in drawn_rows], pytest.approx([100 * row.rms for row in drawn_rows])
            assert expected in found
        assert "midpoint" in " ".join(str(line.get_label()) for line in panel.get_lines())
    assert ([0, 1], pytest.approx([4.3, 4.3])) in found
    assert [text.get_text() for text in far.texts] == ["floor 4.3 %"]
    assert near.get_title(loc="left") == "Gap to the deployed teacher (ten steps)"
    assert near.get_ylim() == far.get_ylim()


@pytest.mark.parametrize("changes", [
    {"trajectories": [TrajectoryRow("teacher", 0, [2.0, 2.0], [1.0, 1.0])]},
    {"trajectories": [TrajectoryRow("student", 0, [0.0, 1.0], [0.0, 50.0])], "curvature": []},
    {"gaps": [gap("teacher", 1, "deployed", 0.2)], "student": None},
    {"gaps": [gap("teacher", 1, "deployed", 1e-6), gap("student", 1, "deployed", 3.0)]},
    {"gaps": [gap("student", 1, "deployed", 0.061), gap("student", 2, "deployed", 0.0611)]},
    *({"loss": LossCurve([1, 2][: len(losses)], losses)} for losses in ([0.1], [0.1, 0.0], [0.1, -0.1])),
])  # fmt: skip
def test_few_or_extreme_measures_are_drawn(changes: dict[str, object]) -> None:
    results: Results = sample(**changes)
    kinds = {"trajectories": flow_plots.trajectories, "gaps": flow_plots.gaps, "loss": flow_plots.loss}
    figure = drawn(kinds[next(iter(changes))](results))
    assert png(figure)
    for panel in figure.axes:
        low, high = sorted(panel.get_ylim())
        assert any(low <= tick <= high for tick in panel.get_yticks())


SIDE, PITCH, HEAD = 32, 32 + 16, 15
"""Pixels of a frame, from one cell to the next, and of the line of labels."""


def filmed(seed: int, solved: bool, length: int, side: int = SIDE) -> Filmed:
    """A bright square that moves one pixel a frame, so that no two frames are equal."""
    frames = np.full((length, side, side, 3), 60, np.uint8)
    for time in range(length):
        frames[time, time // side, time % side] = (250, 250, 0)
    return seed, solved, frames


def noise(length: int, side: int) -> Filmed:
    return 0, True, np.random.default_rng(0).integers(0, 256, (length, side, side, 3), dtype=np.uint8)


def frames_of(path: Path) -> tuple[list[np.ndarray], list[int]]:
    frames, durations = [], []
    with Image.open(path) as image:
        for index in range(image.n_frames):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")).astype(int))
            durations.append(image.info["duration"])
    return frames, durations


def test_a_clip_has_the_frames_marks_and_labels_of_its_episodes(tmp_path: Path) -> None:
    columns = {
        "teacher": [filmed(0, True, 5), filmed(1, False, 9), (2, True, None)],
        "student": [filmed(0, False, 7), filmed(1, True, 4), (2, True, None)],
    }
    # Episodes without frames are no part of it.
    found = save_clip(columns, tmp_path, "media/side.gif")
    assert found == Clip("media/side.gif", ["teacher", "student"], [0, 1], [[True, False], [False, True]])
    assert [path.name for path in (tmp_path / "media").iterdir()] == ["side.gif"]
    frames, durations = frames_of(tmp_path / "media" / "side.gif")
    assert durations == [pictures.FRAME_MS] * 8 + [pictures.HOLD_MS]
    assert frames[0].shape == (HEAD + 2 * PITCH, 8 + 2 * PITCH, 3)
    # An episode that is over keeps its last frame and takes its mark.
    ends = {(0, 0): (4, SUCCESS), (0, 1): (8, FAILURE), (1, 0): (6, FAILURE), (1, 1): (3, SUCCESS)}
    for (column, row), (end, mark) in ends.items():
        top, left = HEAD + row * PITCH, 8 + column * PITCH
        for time, frame in enumerate(frames):
            near = np.abs(frame[top + 1, left + 1] - (mark if time >= end else RUNNING)).max()
            assert near < 12, (column, row, time)
        inside = (slice(top + 4, top + 24), slice(left + 4, left + 24))
        assert (frames[end][inside] == frames[-1][inside]).all()
        assert (frames[0][inside] != frames[end][inside]).any()
    # Pixels are those of the environment.
    bright = frames[2][HEAD + 4 : HEAD + 4 + SIDE, 12 : 12 + SIDE, 0] > 200
    assert np.argwhere(bright).tolist() == [[0, 2]]
    for column in range(2):
        start = 8 + column * PITCH
        assert (frames[0][: HEAD - 1, start : start + SIDE] < 100).all(axis=-1).sum() > 5


def test_a_clip_stays_below_its_size_by_fewer_colours_or_is_no_file(tmp_path: Path) -> None:
    whole = tmp_path / save_clip({"a": [noise(8, 32)]}, tmp_path, "whole.gif").path
    most = whole.stat().st_size - 1
    small = tmp_path / save_clip({"a": [noise(8, 32)]}, tmp_path, "small.gif", most).path
    assert small.stat().st_size <= most
    assert len(frames_of(small)[0]) == 8
    with pytest.raises(UserError, match=r"bytes of at most 500; give fewer or shorter episodes"):
        save_clip({"a": [noise(8, 32)]}, tmp_path, "none.gif", 500)
    assert not (tmp_path / "none.gif").exists()


def test_long_episodes_and_large_pictures_are_thinned_out(tmp_path: Path) -> None:
    length, side = pictures.MAX_CLIP_FRAMES + 50, 2 * pictures.MAX_CLIP_SIDE
    label = "[bold]学生 | один шаг" * 9
    found = save_clip(
        {label: [filmed(0, True, length, side)]}, tmp_path, "large.gif", pictures.MAX_CLIP_BYTES
    )
    frames, _ = frames_of(tmp_path / found.path)
    # Every other frame, and the last one.
    assert len(frames) == length // 2 + 1
    assert frames[0].shape[1] == pictures.MAX_CLIP_SIDE + 8 + 16
