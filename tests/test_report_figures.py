"""The pictures open, are large enough to read, and say what the results say."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from chordflow.errors import UserError
from chordflow.reporting import figures
from chordflow.reporting.figures import MOST_PATHS, gap_by_steps, loss, save_figures, trajectories
from chordflow.results.actions import TrajectoryRow
from chordflow.results.schema import LossCurve, Results
from report_samples import curvature, gap, sample


def drawn(figure: Figure | None) -> Figure:
    assert figure is not None
    figures._png(figure)  # What cannot be drawn fails here.
    return figure


def lines(figure: Figure, axes: int = 0) -> list[tuple[list[float], list[float]]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[axes].get_lines()]


def texts(figure: Figure) -> str:
    found = [t.get_text() for legend in figure.legends for t in legend.get_texts()]
    for panel in figure.axes:
        found += [panel.get_title(loc="left"), panel.get_xlabel(), panel.get_ylabel()]
        found += [t.get_text() for t in panel.texts]
    return " | ".join([figure.get_suptitle(), *found])


def test_three_pictures_that_open(tmp_path: Path) -> None:
    folder = tmp_path / "images été 图"
    folder.mkdir()
    paths = save_figures(sample(), folder)
    assert [p.name for p in paths] == ["trajectories.png", "gap.png", "loss.png"]
    assert sorted(p.name for p in folder.iterdir()) == ["gap.png", "loss.png", "trajectories.png"]
    for path in paths:
        with Image.open(path) as image:
            assert image.width >= 1000
            assert image.height >= 500
            assert image.info["dpi"][0] >= 150
            assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 20
    before = [p.read_bytes() for p in paths]
    assert [p.read_bytes() for p in save_figures(sample(), folder)] == before


def test_only_what_was_measured_is_drawn(tmp_path: Path) -> None:
    nothing = sample(trajectories=[], gaps=[], loss=None)
    assert save_figures(nothing, tmp_path) == []
    assert save_figures(dataclasses.replace(nothing, loss=LossCurve([], [])), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trajectories\.png cannot be written"):
        save_figures(sample(), tmp_path / "none")


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match="No space left"):
        save_figures(sample(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_paths_and_chords_start_and_end_together() -> None:
    results = sample()
    figure = drawn(trajectories(results))
    teacher, student = figure.axes
    assert teacher.get_xlim() == student.get_xlim()
    assert teacher.get_ylim() == student.get_ylim()
    rows = [row for row in results.trajectories if row.policy == "teacher"]
    found = lines(figure)
    assert len(found) == 2 * len(rows)
    for row, chord, path in zip(rows, found[::2], found[1::2], strict=True):
        assert path == (row.x, row.y)
        assert chord == ([row.x[0], row.x[-1]], [row.y[0], row.y[-1]])
    assert "the student takes straighter paths" in texts(figure)
    assert "Teacher: curvature 15 % | Component 1 of the chunk, 61 % of variance" in texts(figure)
    assert "Student: curvature 4.5 %" in texts(figure)


def test_the_title_does_not_praise_a_student_that_is_not_straighter() -> None:
    worse = sample(curvature=[curvature("teacher", 0.1), curvature("student", 0.1)])
    assert "no straighter" in texts(drawn(trajectories(worse)))
    unmeasured = sample(curvature=[], trajectory_axes=[])
    assert texts(drawn(trajectories(unmeasured))).startswith("From noise to action |")


@pytest.mark.parametrize(
    "rows",
    [
        [TrajectoryRow("teacher", 0, [0.0, 1.0], [0.0, 1.0])],
        [TrajectoryRow("teacher", 0, [2.0, 2.0], [1.0, 1.0])],
        [TrajectoryRow("student", 0, [0.0, 1.0], [0.0, 0.0])],
        [TrajectoryRow("teacher", 0, [0.0, 1.0], [0.0, 50.0])],
    ],
)
def test_few_or_odd_trajectories_are_drawn(rows: list[TrajectoryRow]) -> None:
    assert len(drawn(trajectories(sample(trajectories=rows))).axes) == 1


def test_a_panel_is_not_crowded() -> None:
    rows = [TrajectoryRow("teacher", i, [0.0, 1.0], [0.0, float(i)]) for i in range(100)]
    assert len(lines(drawn(trajectories(sample(trajectories=rows))))) == 2 * MOST_PATHS


def test_the_gap_picture_holds_every_euler_row_and_the_floor() -> None:
    results = sample()
    found = lines(drawn(gap_by_steps(results)))
    for policy, reference in (("teacher", "converged"), ("student", "deployed"), ("student", "converged")):
        rows = [results.gap(policy, n, reference) for n in (1, 2, 4, 10)]  # type: ignore[arg-type]
        assert ([1, 2, 4, 10], [100 * row.rms for row in rows if row]) in found
    # The deployed teacher's gap to itself is zero, which a logarithmic axis does not have.
    assert ([1, 2, 4], pytest.approx([23.1, 13.4, 6.8])) in found
    assert ([0, 1], pytest.approx([4.3, 4.3])) in found
    text = texts(drawn(gap_by_steps(results)))
    assert "At one step the gap to the teacher is 9.1 %, untrained 23 %" in text
    assert "floor: ten steps to the ODE, 4.3 %" in text
    assert "midpoint" in text


@pytest.mark.parametrize(
    "results",
    [
        sample(gaps=[gap("teacher", 1, "deployed", 0.2)], student=None),
        sample(gaps=[gap("teacher", 10, "converged", 0.04)]),
        sample(gaps=[gap("teacher", 1, "deployed", 1e-6), gap("student", 1, "deployed", 3.0)]),
        sample(gaps=[gap("student", 1, "deployed", 0.061), gap("student", 2, "deployed", 0.0611)]),
    ],
)
def test_few_or_extreme_gaps_are_drawn(results: Results) -> None:
    figure = drawn(gap_by_steps(results))
    low, high = figure.axes[0].get_ylim()
    assert any(low <= tick <= high for tick in figure.axes[0].get_yticks())


def test_gaps_of_zero_alone_are_no_picture() -> None:
    assert gap_by_steps(sample(gaps=[gap("teacher", 10, "deployed", 0.0)])) is None


def test_the_loss_is_drawn_as_logged() -> None:
    results = sample()
    assert results.loss is not None
    figure = drawn(loss(results))
    assert lines(figure) == [(results.loss.steps, results.loss.losses)]
    assert figure.axes[0].get_yscale() == "log"
    assert "The training loss fell from 0.021 to 0.001" in texts(figure)


@pytest.mark.parametrize(
    ("curve", "title", "scale"),
    [
        (LossCurve([1, 2, 3], [0.1, 0.3, 0.2]), "did not fall: from 0.1 to 0.2", "linear"),
        (LossCurve([1], [0.1]), "did not fall", "linear"),
        (LossCurve([1, 2], [0.1, 0.0]), "fell from 0.1 to 0", "linear"),
        (LossCurve([1, 2], [0.1, -0.1]), "fell from 0.1 to -0.1", "linear"),
    ],
)
def test_losses_that_a_logarithm_does_not_suit(curve: LossCurve, title: str, scale: str) -> None:
    figure = drawn(loss(sample(loss=curve)))
    assert title in texts(figure)
    assert figure.axes[0].get_yscale() == scale


def test_no_global_state_is_left_behind(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    save_figures(sample(), tmp_path)
    assert dict(matplotlib.rcParams) == before
